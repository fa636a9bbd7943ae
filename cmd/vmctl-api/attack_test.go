package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vmctl/vmctl/cmd/vmctl-api/certificates"
	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
)

// rawCodec sends bytes as they are, and takes any answer.
type rawCodec struct{}

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}
func (rawCodec) Unmarshal(mem.BufferSlice, any) error { return nil }
func (rawCodec) Name() string                         { return "proto" }

var _ encoding.CodecV2 = rawCodec{}

// Messages of noise, to every method there is, are refused one by one: none ends the
// service, and none has vmctl do something to a machine that is there.
func TestGarbageMessages(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	s.answers(t, fails("3", "no such thing"))
	out := logged(t)
	conn := s.dial(t, operator)
	noise := rand.New(rand.NewPCG(1, 2))
	for method := range s.methods {
		var all sync.WaitGroup
		for range 8 {
			message := make([]byte, noise.IntN(200))
			for i := range message {
				message[i] = byte(noise.Uint32())
			}
			all.Go(func() {
				// Noise may be a request by chance, and what it asks for a stream without end.
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, grpc.ForceCodecV2(rawCodec{}))
				if err != nil {
					t.Errorf("%s: %v", method, err)
					return
				}
				_ = stream.SendMsg(message)
				_ = stream.CloseSend()
				if err := stream.RecvMsg(nil); status.Code(err) == codes.Unavailable {
					t.Errorf("%s: %v", method, err)
				}
			})
		}
		all.Wait()
	}
	if strings.Contains(out.String(), "goroutine ") {
		t.Errorf("it panicked:\n%s", out)
	}
	if _, err := mvirt.NewVmServiceClient(conn).GetVersion(t.Context(), &mvirt.GetVersionRequest{}); err != nil {
		t.Error(err)
	}
}

// Who connects and says nothing, or not enough, is let go of, and keeps nobody out.
func TestHalfOpenTLS(t *testing.T) {
	s := newService(t)
	dir := certificates.Dir{Path: filepath.Join(t.TempDir(), "api")}
	if err := dir.Prepare("host", []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	gate := newTLSGate(dir)
	gate.within = time.Second
	out := logged(t)
	address := s.listen(t, "tcp", gate)
	half := []string{"", "\x16\x03\x01\x02\x00\x01", "GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}
	var open []net.Conn
	for i := range 100 {
		conn, err := net.Dial("tcp", address.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, half[i%len(half)]); err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	certificate, key, err := dir.Issue("ops", certificates.Operator, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	api := tlsClient(t, address, dir, certificate, key)
	if _, err := api.GetVersion(t.Context(), &mvirt.GetVersionRequest{}); err != nil {
		t.Error(err)
	}
	for _, conn := range open {
		// What TLS says of what it got may come before the end.
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
			t.Error(err)
		}
	}
	eventually(t, "each is in the journal", func() bool { return strings.Count(out.String(), ": refused 127.0.0.1:") == len(open) })
}

// Who never reads what happens holds up neither others nor the end of the service.
func TestWatchersThatDoNotRead(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	line := `{"time": "2026-01-02T03:04:05Z", "vm": "vm0000", "event": "operation", "detail": "` + strings.Repeat("x", 1000) + `"}`
	s.answers(t, "exit 1")
	s.events(t, "i=0; while [ $i -lt 2000 ]; do echo '"+line+"'; i=$((i+1)); done; exec sleep 1000")
	machines := vmctlv1.NewMachineServiceClient(s.dial(t, operator))
	watch := func() vmctlv1.MachineService_WatchEventsClient {
		stream, err := machines.WatchEvents(t.Context(), &vmctlv1.WatchEventsRequest{Since: timestamppb.New(time.Unix(0, 0))})
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	for range 20 {
		watch()
	}
	reads := watch()
	for range 2000 {
		if _, err := reads.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	s.shutDown(time.Hour)
}

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/vmctl/vmctl/cmd/vmctl-api/certificates"
	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/console"
	"github.com/vmctl/vmctl/units/journal"
)

// service is a service of a test, of machines without a systemd to run them: what
// vmctl would say of those is in files, list.json and listNAME.json.
type service struct {
	*server
	dir string

	mu    sync.Mutex
	calls []journal.Call
}

func newService(t testing.TB) *service {
	t.Helper()
	s := &service{dir: t.TempDir()}
	program := filepath.Join(s.dir, "vmctl")
	text := "#!/bin/sh\ncase $3 in\nlist) exec cat " + s.dir + "/list$5.json ;;\nevents) [ ! -e " + s.dir + "/events ] || exec sh " + s.dir + "/events; exec sleep 1000 ;;\nesac\nexec " + s.dir + "/answer \"$@\"\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	s.server = newServer(config.SystemPaths(s.dir), program)
	s.commands.unit = runChild // there is no systemd
	s.server.journal = func(c journal.Call, _ string, _ sdjournal.Priority) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.calls = append(s.calls, c)
	}
	s.define(t, 0)
	t.Cleanup(func() { s.shutDown(time.Second) })
	return s
}

// define makes n machines, of which the first runs.
func (s *service) define(t testing.TB, n int) {
	t.Helper()
	var rows []string
	dir := s.paths.VMDirs[1]
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		name, state := fmt.Sprintf("vm%04d", i), "stopped"
		if i == 0 {
			state = "running"
		}
		if err := os.WriteFile(filepath.Join(dir, name+".toml"), fmt.Appendf(nil, "memory = \"64M\"\napi.id = %q\n[disk.root]\nsize = \"1G\"\n", name), 0o644); err != nil {
			t.Fatal(err)
		}
		row := fmt.Sprintf(`{"name": %q, "state": %q, "cpus": 1, "memory_bytes": 67108864}`, name, state)
		if err := os.WriteFile(s.dir+"/list"+name+".json", []byte("["+row+"]"), 0o644); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row)
	}
	if err := os.WriteFile(s.dir+"/list.json", []byte("["+strings.Join(rows, ",\n")+"]"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// listen has the service listen, at a Unix socket or on loopback.
func (s *service) listen(t testing.TB, network string, g gate) net.Addr {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "api.sock")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	go s.grpc.Serve(&gatedListener{Listener: l, gate: g, open: newConnections(maxConnections, maxOfEach)})
	return l.Addr()
}

// local is a client by a Unix socket.
func (s *service) local(t testing.TB, most role) mvirt.VmServiceClient {
	t.Helper()
	return client(t, "unix:"+s.listen(t, "unix", unixGate{most}).String(), insecure.NewCredentials())
}

func client(t testing.TB, target string, c credentials.TransportCredentials) mvirt.VmServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return mvirt.NewVmServiceClient(conn)
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// logged is what is logged from now on.
func logged(t *testing.T) *lockedBuffer {
	b := &lockedBuffer{}
	log.SetOutput(b)
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
	return b
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain: " + what)
		}
	}
}

func TestViewer(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	api := s.local(t, viewer)
	if list, err := api.ListVms(t.Context(), &mvirt.ListVmsRequest{}); err != nil || len(list.Vms) != 1 || list.Vms[0].State != mvirt.VmState_VM_STATE_RUNNING {
		t.Errorf("%v, %v", list, err)
	}
	for method, err := range map[string]error{
		"StartVm":  second(api.StartVm(t.Context(), &mvirt.StartVmRequest{Id: "vm0000"})),
		"CreateVm": second(api.CreateVm(t.Context(), &mvirt.CreateVmRequest{})),
		"DeleteVm": second(api.DeleteVm(t.Context(), &mvirt.DeleteVmRequest{})),
	} {
		wantCode(t, method, err, codes.PermissionDenied)
	}
	stream, err := api.Console(t.Context())
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, "Console", err, codes.PermissionDenied)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		if c.Method == "" || !strings.HasPrefix(c.Peer, "root (uid 0, pid ") && os.Getuid() == 0 {
			t.Errorf("kept %+v", c)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Each method that changes nothing is one of the service's: a typing error would
// keep viewers out of it.
func TestLooksExist(t *testing.T) {
	s := newService(t)
	for method := range looks {
		if !s.methods[method] {
			t.Errorf("no method %s", method)
		}
	}
}

// Calls of what is not there are told so, whoever calls, and are in the journal.
func TestNoSuchMethod(t *testing.T) {
	s := newService(t)
	for _, method := range []string{"/mvirt.PodService/ListPods", "/mvirt.VmService/Nonsense", "/x/\u00fc\t"} {
		err := s.dial(t, viewer).Invoke(t.Context(), method, &mvirt.ListVmsRequest{}, &mvirt.ListVmsResponse{})
		wantCode(t, method, err, codes.Unimplemented)
	}
	eventually(t, "the journal has them", func() bool {
		return slices.Equal(s.ended("ListPods"), []string{"Unimplemented"}) && slices.Equal(s.ended("Nonsense"), []string{"Unimplemented"})
	})
	long := metadata.AppendToOutgoingContext(t.Context(), "x", strings.Repeat("x", 2*maxHeaders))
	if _, err := s.local(t, viewer).GetVersion(long, &mvirt.GetVersionRequest{}); err == nil {
		t.Error("headers of any length are taken")
	}
}

// panicking is a policy with a bug.
type panicking struct{}

func (panicking) check(context.Context, *call, []object) []error { panic("a bug") }

func TestPanicEndsOneCall(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	s.policy = panicking{}
	out := logged(t)
	api := s.local(t, operator)
	_, err := api.GetVm(t.Context(), &mvirt.GetVmRequest{Id: "vm0000"})
	wantCode(t, "a panic", err, codes.Internal)
	// Nor does what is done beside it: that is asked of each event as it comes.
	s.events(t, `echo '{"time": "2026-01-02T03:04:05Z", "vm": "vm0000", "event": "started"}'; exec sleep 1000`)
	events, err := vmctlv1.NewMachineServiceClient(s.dial(t, operator)).WatchEvents(t.Context(), &vmctlv1.WatchEventsRequest{Since: timestamppb.New(time.Unix(0, 0))})
	if err == nil {
		_, err = events.Recv()
	}
	wantCode(t, "a panic at an event", err, codes.Internal)
	if _, err := api.GetVersion(t.Context(), &mvirt.GetVersionRequest{}); err != nil {
		t.Error(err)
	}
	if strings.Count(out.String(), "a bug") != 2 {
		t.Errorf("logged %q", out)
	}
}

func TestIdle(t *testing.T) {
	a := newActivity()
	end := a.begin()
	idle := a.idleFor(10 * time.Millisecond)
	select {
	case <-idle:
		t.Error("idle while something is done")
	case <-time.After(100 * time.Millisecond):
	}
	end()
	<-idle
}

func TestStreamEndsWithService(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	stream, err := s.local(t, operator).WatchVms(t.Context(), &mvirt.WatchVmsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := stream.Recv(); err != nil || e.VmId != "vm0000" {
		t.Fatalf("%v, %v", e, err)
	}
	go s.shutDown(time.Minute)
	_, err = stream.Recv()
	wantCode(t, "a stream when the service ends", err, codes.Unavailable)
}

// Files that come and go are told.
func TestWatch(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	api := s.local(t, operator)
	stream, err := api.WatchVms(t.Context(), &mvirt.WatchVmsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := func(id string, typ mvirt.VmEventType) {
		t.Helper()
		if e, err := stream.Recv(); err != nil || e.VmId != id || e.Type != typ {
			t.Fatalf("%v, %v, want %v of %s", e, err, typ, id)
		}
	}
	want("vm0000", mvirt.VmEventType_VM_EVENT_CREATED) // it was never started
	s.define(t, 2)
	want("vm0001", mvirt.VmEventType_VM_EVENT_CREATED)
	os.Remove(s.paths.VMDirs[1] + "/vm0001.toml")
	want("vm0001", mvirt.VmEventType_VM_EVENT_DELETED)

}

// ended is how calls of a method have ended so far.
func (s *service) ended(method string) (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		if strings.HasSuffix(c.Method, "/"+method) {
			all = append(all, c.Code)
		}
	}
	return all
}

// A watcher that does not read is ended, whatever of it waits to be sent.
func TestWatchOfWhoDoesNotRead(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	stream, err := s.local(t, operator).WatchVms(t.Context(), &mvirt.WatchVmsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var sub *subscriber
	eventually(t, "it is subscribed", func() bool {
		s.watch.mu.Lock()
		defer s.watch.mu.Unlock()
		for sub = range s.watch.subs {
		}
		return sub != nil
	})
	long := strings.Repeat("x", 1<<20)
	tell := func(n int) {
		s.watch.mu.Lock()
		defer s.watch.mu.Unlock()
		for range n {
			s.watch.tell(vmEvent{change: vmStarted, id: long})
		}
	}
	tell(10)
	// The first is more than what may be under way: the second has to wait.
	eventually(t, "it is stuck", func() bool { return len(sub.events) == 8 })
	tell(watchQueue)
	eventually(t, "it is ended", func() bool { return slices.Equal(s.ended("WatchVms"), []string{"ResourceExhausted"}) })
	for err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, "the watch", err, codes.ResourceExhausted)
}

// Nor does one hold up the end of the service, nor one who says nothing.
func TestStreamsOfWhoDoesNothingEndWithService(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	guest := serveConsole(t, s)
	api := s.local(t, operator)
	for _, send := range []bool{true, false} {
		stream, err := api.Console(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !send {
			continue
		}
		if err := stream.Send(&mvirt.ConsoleInput{VmId: "vm0000"}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both are there", func() bool {
		s.activity.mu.Lock()
		defer s.activity.mu.Unlock()
		return s.activity.n == 2
	})
	line := strings.Repeat("x", 1<<16) + "\n"
	for range 200 {
		if _, err := io.WriteString(guest, line); err != nil {
			t.Fatal(err)
		}
	}
	go s.shutDown(time.Hour)
	eventually(t, "both have ended", func() bool { return slices.Equal(s.ended("Console"), []string{"Unavailable", "Unavailable"}) })
}

// What is being stopped, and was told to have stopped, is not told to have started.
func TestStopIsToldOnce(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	list := func(state string) {
		t.Helper()
		text := fmt.Sprintf(`[{"name": "vm0000", "state": %q}]`, state)
		for _, file := range []string{"list.json", "listvm0000.json"} {
			if err := os.WriteFile(filepath.Join(s.dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	sub, _, err := s.watch.subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.watch.unsubscribe(sub)
	look := func() {
		t.Helper()
		s.watch.mu.Lock()
		defer s.watch.mu.Unlock()
		if _, err := s.watch.reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	list("stopping")
	look()
	s.watch.happened(t.Context(), journalEvent{VM: "vm0000", Event: "ended"})
	look()
	list("stopped")
	look()
	s.watch.happened(t.Context(), journalEvent{VM: "vm0000", Event: "stopped"})
	if e := <-sub.events; e.change != vmStopped || len(sub.events) != 0 {
		t.Errorf("told %v, and %d more", e, len(sub.events))
	}
}

func TestManyClients(t *testing.T) {
	s := newService(t)
	s.define(t, 20)
	s.commands.quick = make(chan struct{}, 4)
	guest := serveConsole(t, s)
	address := "unix:" + s.listen(t, "unix", unixGate{operator}).String()
	var wg sync.WaitGroup
	for i := range 200 {
		api := client(t, address, insecure.NewCredentials())
		wg.Go(func() {
			if list, err := api.ListVms(t.Context(), &mvirt.ListVmsRequest{}); err != nil || len(list.Vms) != 20 {
				t.Error(err)
			}
		})
		if i%4 != 0 {
			continue
		}
		wg.Go(func() {
			stream, err := api.Console(t.Context())
			if err == nil {
				err = stream.Send(&mvirt.ConsoleInput{VmId: "vm0000"})
			}
			for text := ""; err == nil && !strings.Contains(text, "hello"); {
				var out *mvirt.ConsoleOutput
				if out, err = stream.Recv(); err == nil {
					text += string(out.Data)
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	fmt.Fprintln(guest, "hello")
	wg.Wait()
}

// A machine that runs may have no console to show.
func TestNoConsole(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	stream, err := s.local(t, operator).Console(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&mvirt.ConsoleInput{VmId: "vm0000"}); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantCode(t, "no socket", err, codes.Unavailable)
	if text := status.Convert(err).Message(); !strings.HasPrefix(text, "Console not available: ") {
		t.Error(text)
	}
}

// A client that never reads holds up neither the guest nor others.
func TestConsoleOfWhoDoesNotRead(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	guest := serveConsole(t, s)
	api := s.local(t, operator)
	open := func() mvirt.VmService_ConsoleClient {
		stream, err := api.Console(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&mvirt.ConsoleInput{VmId: "vm0000"}); err != nil {
			t.Fatal(err)
		}
		return stream
	}
	open()
	line := strings.Repeat("x", 1<<16) + "\n"
	for range 200 {
		if _, err := io.WriteString(guest, line); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprintln(guest, "the end")
	reads := open()
	for text := ""; !strings.Contains(text, "the end"); {
		out, err := reads.Recv()
		if err != nil {
			t.Fatal(err)
		}
		text += string(out.Data)
	}
}

// Who says nothing, or nonsense, harms nobody.
func TestGarbage(t *testing.T) {
	s := newService(t)
	address := s.listen(t, "unix", unixGate{operator})
	for i := range 100 {
		conn, err := net.Dial("unix", address.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n%s", strings.Repeat("\xff\x00garbage", 1000))
		}
	}
	api := client(t, "unix:"+address.String(), insecure.NewCredentials())
	if _, err := api.GetVersion(t.Context(), &mvirt.GetVersionRequest{}); err != nil {
		t.Error(err)
	}
	_, err := api.CreateVm(t.Context(), &mvirt.CreateVmRequest{Config: &mvirt.VmConfig{UserData: new(strings.Repeat("x", maxRequest))}})
	wantCode(t, "a request that is too large", err, codes.ResourceExhausted)
}

// script is what vmctl does that neither lists nor follows events.
func (s *service) script(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "answer"), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// Guests that take their time to shut down hold up nobody who looks or creates.
func TestManySlowStops(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	s.script(t, "case $3 in stop) echo >>"+s.dir+"/stops; exec sleep 1000 ;; esac\n")
	address := "unix:" + s.listen(t, "unix", unixGate{operator}).String()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	const many = 20
	for range many {
		wg.Go(func() {
			_, err := vmctlv1.NewMachineServiceClient(conn).StopMachine(ctx, &vmctlv1.StopMachineRequest{Name: "vm0000"})
			wantCode(t, "a stop that nobody waits for any more", err, codes.Canceled)
		})
	}
	eventually(t, "they wait", func() bool {
		b, _ := os.ReadFile(s.dir + "/stops")
		return len(b) == many
	})
	api := mvirt.NewVmServiceClient(conn)
	soon, cancelSoon := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancelSoon()
	if _, err := api.ListVms(soon, &mvirt.ListVmsRequest{}); err != nil {
		t.Error(err)
	}
	// Whose turn it is not, waits no longer than it likes.
	s.creating <- struct{}{}
	defer func() { <-s.creating }()
	kernel := filepath.Join(s.dir, "vmctl")
	late, cancelLate := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancelLate()
	_, err = api.CreateVm(late, &mvirt.CreateVmRequest{Config: &mvirt.VmConfig{Kernel: &kernel}})
	wantCode(t, "creating", err, codes.DeadlineExceeded)
	eventually(t, "it has ended", func() bool { return len(s.ended("CreateVm")) == 1 })
}

// A machine keeps its id where its definition breaks, and is there where that is gone.
func TestIDs(t *testing.T) {
	s := newService(t)
	s.define(t, 2)
	const id = "8c5a2f0e-1f4b-4c3d-9a6e-0b1c2d3e4f50"
	file, kernel := filepath.Join(s.paths.VMDirs[1], "vm0000.toml"), filepath.Join(s.dir, "vmctl")
	write := func(file, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	api := s.local(t, operator)
	const good = "uuid = \"" + id + "\"\n[disk.root]\nsize = \"1G\"\n"
	write(file, good)
	sub, _, err := s.watch.subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.watch.unsubscribe(sub)
	found := func(what string) {
		t.Helper()
		vm, err := api.GetVm(t.Context(), &mvirt.GetVmRequest{Id: id})
		if err != nil || vm.Id != id || vm.State != mvirt.VmState_VM_STATE_RUNNING {
			t.Errorf("%s: %v, %v", what, vm, err)
		}
		list, err := api.ListVms(t.Context(), &mvirt.ListVmsRequest{})
		if err != nil || !slices.ContainsFunc(list.Vms, func(vm *mvirt.Vm) bool { return vm.Id == id }) {
			t.Errorf("%s: %v, %v", what, list, err)
		}
		_, err = api.CreateVm(t.Context(), &mvirt.CreateVmRequest{Id: new(id), Config: &mvirt.VmConfig{Kernel: &kernel}})
		wantCode(t, what+": creating another", err, codes.Internal)
	}
	write(file, good+"[disk.data]\nsize = \"much\"\n")
	found("a bad value")
	write(file, good+"after = [\"nobody\"]\n")
	found("a mistake between files")
	write(s.paths.Record("vm0000"), `{"machine": {"uuid": "`+id+`"}}`)
	write(file, good+"this is no TOML\n")
	found("no TOML")
	s.watch.mu.Lock()
	_, err = s.watch.reconcile(t.Context())
	s.watch.mu.Unlock()
	if err != nil || len(sub.events) > 0 {
		t.Errorf("%d events told, %v", len(sub.events), err)
	}
	os.Remove(file)
	_, err = api.GetVm(t.Context(), &mvirt.GetVmRequest{Id: id})
	wantCode(t, "neither definition nor process", err, codes.NotFound)
	row := `[{"name": "vm0000", "state": "running", "pid": 17}]`
	write(s.dir+"/list.json", row)
	write(s.dir+"/listvm0000.json", row)
	found("no definition")
}

// Who opens many shuts nobody else out.
func TestCounts(t *testing.T) {
	c := newCounts("connections are open", 3, 2)
	for i, from := range []string{"a", "a", "a", "b", "b"} {
		err := c.add(from)
		if want := []string{"", "", "2 connections are open already of a", "", "3 connections are open already"}[i]; err == nil && want != "" || err != nil && err.Error() != want {
			t.Errorf("%d: %v, want %q", i, err, want)
		}
	}
	c.remove("a")
	if err := c.add("b"); err != nil {
		t.Error(err)
	}
	s := newService(t)
	ctx := func(name string) context.Context {
		return context.WithValue(t.Context(), callKey{}, &call{caller: &caller{Name: name}})
	}
	for range maxLongOfEach {
		if _, err := s.commands.acquire(ctx("a"), command{long: true}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.commands.acquire(ctx("a"), command{long: true})
	wantCode(t, "one too many", err, codes.ResourceExhausted)
	if _, err := s.commands.acquire(ctx("b"), command{long: true}); err != nil {
		t.Error(err)
	}
}

func TestOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"VM a\x1b[2J\nb\x00 not found":   "VM a\uFFFD[2J b\uFFFD not found",
		strings.Repeat("x", maxLine+1):   strings.Repeat("x", maxLine) + "...",
		strings.Repeat("x", maxLine):     strings.Repeat("x", maxLine),
		"\xff" + strings.Repeat("ü", 10): "\uFFFD" + strings.Repeat("ü", 10),
	} {
		if got := oneLine(text); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A machine that its end has removed has been stopped all the same.
func TestStopOfThrowaway(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	s.script(t, "rm "+s.paths.VMDirs[1]+"/vm0000.toml; echo '[]' >"+s.dir+"/listvm0000.json\n")
	conn := s.dial(t, operator)
	r, err := vmctlv1.NewMachineServiceClient(conn).StopMachine(t.Context(), &vmctlv1.StopMachineRequest{Name: "vm0000"})
	if m := r.GetMachine(); err != nil || m.GetState() != vmctlv1.MachineState_MACHINE_STATE_STOPPED || m.GetId() != "vm0000" || m.GetCpus() != 1 {
		t.Errorf("%v, %v", r, err)
	}
}

// Why events cannot be followed is told.
func TestEventsThatFail(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	s.commands.program = s.dir + "/answer"
	s.script(t, "echo '{\"error\": {\"message\": \"the journal cannot be read\", \"status\": 7}}' >&2; exit 7\n")
	conn := s.dial(t, operator)
	stream, err := vmctlv1.NewMachineServiceClient(conn).WatchEvents(t.Context(), &vmctlv1.WatchEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantCode(t, "events", err, codes.PermissionDenied)
	if !strings.Contains(fmt.Sprint(err), "the journal cannot be read") {
		t.Error(err)
	}
}

func TestTooManyConnections(t *testing.T) {
	s := newService(t)
	out := logged(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	go s.grpc.Serve(&gatedListener{Listener: l, gate: unixGate{operator}, open: newConnections(2, 2)})
	var open []net.Conn
	for range 3 {
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	eventually(t, "the third is refused", func() bool { return strings.Contains(out.String(), "2 connections are open already") })
	for _, conn := range open {
		conn.Close()
	}
	eventually(t, "there is room again", func() bool {
		api := client(t, "unix:"+l.Addr().String(), insecure.NewCredentials())
		_, err := api.GetVersion(t.Context(), &mvirt.GetVersionRequest{})
		return err == nil
	})
}

// serveConsole serves the console of the first machine; it returns the guest's end.
func serveConsole(t *testing.T, s *service) io.Writer {
	t.Helper()
	socket := s.paths.ConsoleSocket("vm0000")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	guest := console.NewServer(1<<20, nil)
	go guest.Serve(l)
	t.Cleanup(guest.Close)
	return guest
}

// tlsClient is a client with files that vmctl api cert has made.
func tlsClient(t *testing.T, address net.Addr, dir certificates.Dir, certificate, key []byte) mvirt.VmServiceClient {
	t.Helper()
	authority, err := os.ReadFile(dir.Path + "/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	settings := &tls.Config{RootCAs: x509.NewCertPool()}
	settings.RootCAs.AppendCertsFromPEM(authority)
	if certificate != nil {
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			t.Fatal(err)
		}
		settings.Certificates = []tls.Certificate{pair}
	}
	return client(t, address.String(), credentials.NewTLS(settings))
}

// setRole gives a client a role, at once: half a file would be none.
func setRole(t *testing.T, dir certificates.Dir, name, role string) {
	t.Helper()
	file := filepath.Join(dir.Path, "clients", name)
	if err := os.WriteFile(file+".new", []byte(role+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// Who may not come in is refused, and a line in the journal says why.
func TestTLS(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	authority := func() certificates.Dir {
		d := certificates.Dir{Path: filepath.Join(t.TempDir(), "api")}
		if err := d.Prepare("host", []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}); err != nil {
			t.Fatal(err)
		}
		return d
	}
	dir, other := authority(), authority()
	address := s.listen(t, "tcp", newTLSGate(dir))
	issue := func(d certificates.Dir, name, role string, holds time.Duration) mvirt.VmServiceClient {
		certificate, key, err := d.Issue(name, role, holds)
		if err != nil {
			t.Fatal(err)
		}
		return tlsClient(t, address, dir, certificate, key)
	}
	version := func(api mvirt.VmServiceClient) error {
		return second(api.GetVersion(t.Context(), &mvirt.GetVersionRequest{}))
	}
	start := func(api mvirt.VmServiceClient) error {
		return second(api.StartVm(t.Context(), &mvirt.StartVmRequest{Id: "vm0000"}))
	}

	ops := issue(dir, "ops@laptop", certificates.Operator, time.Hour)
	if err := version(ops); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "an operator starts what runs", start(ops), codes.FailedPrecondition)
	s.define(t, 2)
	s.script(t, `printf %s "$VMCTL_CALLER" >`+s.dir+"/caller\n")
	if _, err := ops.StartVm(t.Context(), &mvirt.StartVmRequest{Id: "vm0001"}); err != nil {
		t.Error(err)
	}
	if who, err := os.ReadFile(s.dir + "/caller"); string(who) != "certificate:ops@laptop" {
		t.Errorf("vmctl is run for %q, %v", who, err)
	}
	os.Remove(s.paths.VMDirs[1] + "/vm0001.toml")
	s.define(t, 1)
	look := issue(dir, "look", certificates.Viewer, time.Hour)
	if err := version(look); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "a viewer starts", start(look), codes.PermissionDenied)
	eventually(t, "the journal has the wrong role", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.ContainsFunc(s.calls, func(c journal.Call) bool {
			return c.Code == "PermissionDenied" && strings.HasPrefix(c.Peer, "look (certificate, 127.0.0.1:") && strings.Contains(c.Message, "StartVm is for an operator")
		})
	})
	// What it may do holds from the next call on.
	setRole(t, dir, "look", certificates.Operator)
	wantCode(t, "a viewer who has become an operator", start(look), codes.FailedPrecondition)

	refused := func(what, why string, api mvirt.VmServiceClient) {
		t.Helper()
		out := logged(t)
		wantCode(t, what, version(api), codes.Unavailable)
		eventually(t, what+": "+why+" is logged", func() bool { return strings.Contains(out.String(), why) })
	}
	refused("no certificate", "client didn't provide a certificate", tlsClient(t, address, dir, nil, nil))
	refused("another authority", "certificate signed by unknown authority", issue(other, "ops@laptop", certificates.Operator, time.Hour))
	refused("expired", "certificate has expired", issue(dir, "late", certificates.Operator, -time.Minute))
	nameless := issue(dir, "nameless", certificates.Operator, time.Hour)
	os.Remove(dir.Path + "/clients/nameless")
	refused("without a role", `the certificate "nameless" has no role`, nameless)
	gone := issue(dir, "gone", certificates.Operator, time.Hour)
	if n, err := dir.Revoke("gone"); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if err := os.WriteFile(dir.Path+"/clients/gone", []byte("operator\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("revoked", "the certificate gone (serial ", gone)
	refused("plain text", "does not look like a TLS handshake", client(t, address.String(), insecure.NewCredentials()))
	old := credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	refused("TLS 1.2", "unsupported versions", client(t, address.String(), old))

	// Of one that was revoked while it is connected, nothing goes on.
	watching, err := ops.WatchVms(t.Context(), &mvirt.WatchVmsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watching.Recv(); err != nil {
		t.Fatal(err)
	}
	lookWatching, err := look.WatchVms(t.Context(), &mvirt.WatchVmsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lookWatching.Recv(); err != nil {
		t.Fatal(err)
	}
	out := logged(t)
	if _, err := dir.Revoke("ops@laptop"); err != nil {
		t.Fatal(err)
	}
	if code := status.Code(version(ops)); code != codes.PermissionDenied && code != codes.Unavailable {
		t.Errorf("revoked meanwhile: %v", code)
	}
	_, err = watching.Recv()
	wantCode(t, "a stream of one who was revoked", err, codes.Unavailable)
	eventually(t, "why is logged", func() bool {
		return strings.Contains(out.String(), "closed the connection of ops@laptop (certificate, ")
	})
	if !strings.Contains(out.String(), "the certificate ops@laptop (serial ") {
		t.Errorf("logged %q", out)
	}
	wantCode(t, "revoked, and connected anew", version(ops), codes.Unavailable)
	// So it is where somebody may less; others are left alone.
	if err := version(look); err != nil {
		t.Error(err)
	}
	setRole(t, dir, "look", certificates.Viewer)
	_, err = lookWatching.Recv()
	wantCode(t, "a stream of one who may less", err, codes.Unavailable)
	eventually(t, "why is logged", func() bool { return strings.Contains(out.String(), `certificate:look is a viewer by now`) })
	if err := version(look); err != nil {
		t.Error(err)
	}
	// A new certificate of the server needs no new start of it.
	if err := dir.IssueServer("host", []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	if err := version(issue(dir, "again", certificates.Viewer, time.Hour)); err != nil {
		t.Error(err)
	}
	// A list that cannot be believed lets nobody in.
	if err := os.WriteFile(dir.Path+"/crl.pem", []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("a list of nonsense", "crl.pem", issue(dir, "more", certificates.Viewer, time.Hour))
}

// A connection ends with the certificate that it came by, and all that goes on over it.
func TestCertificateExpiresMeanwhile(t *testing.T) {
	s := newService(t)
	s.define(t, 1)
	dir := certificates.Dir{Path: filepath.Join(t.TempDir(), "api")}
	if err := dir.Prepare("host", []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	address := s.listen(t, "tcp", newTLSGate(dir))
	// As long as it takes to be in before it has expired.
	for holds := 2 * time.Second; ; holds *= 2 {
		certificate, key, err := dir.Issue("brief", certificates.Operator, holds)
		if err != nil {
			t.Fatal(err)
		}
		out := logged(t)
		api := tlsClient(t, address, dir, certificate, key)
		watch, err := api.WatchVms(t.Context(), &mvirt.WatchVmsRequest{})
		if err == nil {
			_, err = watch.Recv()
		}
		if err != nil && holds < time.Minute {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = watch.Recv()
		wantCode(t, "a stream by a certificate that has expired", err, codes.Unavailable)
		eventually(t, "why is logged", func() bool {
			return strings.Contains(out.String(), "closed the connection of brief (certificate, ") && strings.Contains(out.String(), "has expired")
		})
		err = second(api.GetVersion(t.Context(), &mvirt.GetVersionRequest{}))
		wantCode(t, "connected anew", err, codes.Unavailable)
		return
	}
}

// Without TLS, the kernel says who has called.
func TestLoopback(t *testing.T) {
	s := newService(t)
	address := s.listen(t, "tcp", loopbackGate{})
	api := client(t, address.String(), insecure.NewCredentials())
	_, err := api.GetVersion(t.Context(), &mvirt.GetVersionRequest{})
	if os.Getuid() == 0 && err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if os.Getuid() == 0 && (len(s.calls) != 1 || !strings.HasPrefix(s.calls[0].Peer, "root (uid 0, 127.0.0.1:")) {
		t.Errorf("kept %+v", s.calls)
	}
}

func TestOwnerIn(t *testing.T) {
	const table = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:C383 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000000000000000000001000000:D431 00000000000000000000000001000000:C383 01 00000000:00000000 00:00000000 00000000  1000        0 2 1 0 20 4 30 10 -1
`
	server := &net.TCPAddr{IP: net.IPv6loopback, Port: 0xC383}
	if uid, err := ownerIn(strings.NewReader(table), &net.TCPAddr{IP: net.IPv6loopback, Port: 0xD431}, server); uid != 1000 || err != nil {
		t.Error(uid, err)
	}
	if _, err := ownerIn(strings.NewReader(table), &net.TCPAddr{IP: net.IPv6loopback, Port: 0xD432}, server); err == nil {
		t.Error("a connection of nobody has an owner")
	}
}

func TestHealth(t *testing.T) {
	s := newService(t)
	conn := s.dial(t, viewer)
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", answer, err)
	}
}

// TestReflection: a client that knows nothing of the services, as grpcurl does, is
// told which there are and what is in them.
func TestReflection(t *testing.T) {
	s := newService(t)
	conn := s.dial(t, viewer)
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(q *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
		t.Helper()
		if err := stream.Send(q); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	var names []string
	for _, service := range ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService() {
		names = append(names, service.Name)
	}
	for _, want := range []string{"mvirt.VmService", "vmctl.v1.MachineService", "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s in %q", want, names)
		}
	}
	answer := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "mvirt.VmService"}})
	if files := answer.GetFileDescriptorResponse().GetFileDescriptorProto(); len(files) == 0 || !bytes.Contains(files[0], []byte("CreateVm")) {
		t.Errorf("of mvirt.VmService it says %v", answer)
	}
}

func BenchmarkListVms(b *testing.B) {
	s := newService(b)
	s.define(b, 1000)
	api := s.local(b, operator)
	for b.Loop() {
		if list, err := api.ListVms(b.Context(), &mvirt.ListVmsRequest{}); err != nil || len(list.Vms) != 1000 {
			b.Fatal(err)
		}
	}
}

package cloudhypervisor

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDialVsock(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "vsock.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(conn).ReadString('\n')
			switch line {
			case "CONNECT 22\n":
				io.WriteString(conn, "OK 1073741824\nSSH-2.0-guest\r\n")
			case "CONNECT 23\n":
				io.WriteString(conn, "HTTP/1.1 400\n")
			case "CONNECT 24\n":
				io.WriteString(conn, strings.Repeat("x", 2*maxReply)+"\n")
			case "CONNECT 26\n":
				continue // never answers
			}
			conn.Close()
		}
	}()
	conn, err := CloudHypervisor{}.DialVsock(t.Context(), socket, 22)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if rest, err := io.ReadAll(conn); err != nil || string(rest) != "SSH-2.0-guest\r\n" {
		t.Errorf("got %q, %v", rest, err)
	}
	for port, want := range map[uint32]string{23: "answers", 24: "takes no connection at port 24", 25: "takes no connection at port 25"} {
		if _, err := (CloudHypervisor{}).DialVsock(t.Context(), socket, port); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: got %v, want %q", port, err, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := (CloudHypervisor{}).DialVsock(ctx, socket, 26); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

package bus

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

func TestVarlink(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	answers := make(chan string, 1)
	calls := make(chan string, 10)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			call, _ := bufio.NewReader(conn).ReadString(0)
			calls <- call
			io.WriteString(conn, <-answers)
			conn.Close()
		}
	}()
	for _, tt := range []struct{ answer, want string }{
		{"{\"parameters\":{}}\x00", ""},
		{"{}\x00{}\x00", ""},
		{"{\"error\":\"io.systemd.Machine.MachineExists\"}\x00", "io.systemd.Machine.MachineExists"},
		{"{\"error\":\"x.y\",\"parameters\":{\"a\":1}}\x00", `x.y {"a":1}`},
		{"{}", "hung up"},
		{"", "hung up"},
		{"garbage\x00", "invalid character"},
		{strings.Repeat("x", maxVarlink+1), "too long"},
	} {
		answers <- tt.answer
		err := varlink(t.Context(), socket, "a.b.C", map[string]any{"name": "web"})
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%.40q: got %v, want %q", tt.answer, err, tt.want)
		}
		if call := <-calls; call != `{"method":"a.b.C","parameters":{"name":"web"}}`+"\x00" {
			t.Errorf("called %q", call)
		}
	}
	// Who never answers is not waited for longer than wanted.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- varlink(ctx, socket, "a.b.C", nil) }()
	<-calls
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	answers <- ""
}

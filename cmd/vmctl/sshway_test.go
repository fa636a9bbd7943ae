package main

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
)

// says is a way to what says a text, and then nothing.
func says(t *testing.T, text string) sshWay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, text)
			conn.Close()
		}
	}()
	return sshWay{"here", func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}}
}

func TestTryWay(t *testing.T) {
	conn, first, err := tryWay(t.Context(), says(t, "SSH-2.0-x\r\nmore"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if all, _ := io.ReadAll(first); string(all) != "SSH-2.0-x\r\nmore" {
		t.Errorf("got %q", all)
	}
	// A forward of QEMU accepts, and closes where nobody in the guest does.
	for text, want := range map[string]string{"": "EOF", "HTTP/1.1 400\r\n": "what answers is no ssh server"} {
		if _, _, err := tryWay(t.Context(), says(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestSSHPath(t *testing.T) {
	if got, want := sshPath(`/home/a b/100%/"x"`), `"/home/a b/100%%/\"x\""`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

package main

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// Each who comes gets a connection to the display of its own, through which all
// passes, until either side ends.
func TestRelay(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "display.sock")
	display, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer display.Close()
	go func() {
		for {
			conn, err := display.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.WriteString(conn, "hello ")
				io.Copy(conn, io.LimitReader(conn, 5))
			}()
		}
	}()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		relay(ctx, listener, grant{Socket: socket}.dial)
	}()
	var all []net.Conn
	for range 3 {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		all = append(all, conn)
	}
	for _, conn := range all[:2] {
		if _, err := io.WriteString(conn, "there"); err != nil {
			t.Error(err)
		}
		if said, err := io.ReadAll(conn); err != nil || string(said) != "hello there" {
			t.Errorf("%q, %v", said, err)
		}
	}
	cancel()
	<-ended
	if _, err := net.Dial("tcp", listener.Addr().String()); err == nil {
		t.Error("it still listens")
	}
	if said, _ := io.ReadAll(all[2]); !strings.HasPrefix("hello ", string(said)) {
		t.Errorf("%q", said)
	}
}

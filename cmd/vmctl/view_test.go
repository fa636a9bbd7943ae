package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
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

// tunnel stands for ssh -N -L SOCKET:DISPLAY -- HOST. At the display, one who
// comes is told where that is.
func tunnel() {
	i := slices.Index(os.Args, "-L")
	socket, display, _ := strings.Cut(os.Args[i+1], ":")
	host := os.Args[len(os.Args)-1]
	if host == "host6" {
		os.Exit(255)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprintf(conn, "display of %s by %s", display, host)
		conn.Close()
	}
}

// remoteViewer stands for the program.
func remoteViewer() {
	file := os.Args[len(os.Args)-1]
	text, err := os.ReadFile(file)
	if err != nil {
		log.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		log.Fatal(err)
	}
	settings := map[string]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		settings[key] = value
	}
	conn, err := net.Dial("tcp", net.JoinHostPort(settings["host"], settings["port"]))
	if err != nil {
		log.Fatal(err)
	}
	seen, err := io.ReadAll(conn)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintf(os.Stderr, "seen: %s, password %s, file of mode %o\n", seen, settings["password"], info.Mode())
	os.Remove(file)
}

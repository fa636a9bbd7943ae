package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/console"
)

// guest serves the console of the machine web as its monitor does. The guest
// clears the screen as firmware does, writes the lines that its arguments are,
// says "login:", then how each line that is typed reads, and ends at "halt".
func guest() {
	socket := config.SystemPaths(os.Getenv("VMCTL_ROOT")).ConsoleSocket("web")
	if err := guestAt(socket); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func guestAt(socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}
	// Whoever waits for the socket finds one that is listened to.
	l, err := net.Listen("unix", socket+".new")
	if err != nil {
		return err
	}
	if err := os.Rename(socket+".new", socket); err != nil {
		return err
	}
	ours, theirs := net.Pipe()
	server := console.NewServer(1<<20, theirs)
	fmt.Fprint(server, "\x1bc\x1b[?7l\x1b[2J")
	for _, line := range os.Args[1:] {
		fmt.Fprint(server, line+"\r\n")
	}
	fmt.Fprint(server, "login:\r\n")
	go server.Serve(l)
	var line []byte
	p := make([]byte, 1)
	for !bytes.HasSuffix(line, []byte("halt")) {
		if _, err := ours.Read(p); err != nil {
			return err
		}
		if line = append(line, p...); p[0] == '\n' {
			fmt.Fprintf(server, "typed %q\r\n", line)
			line = nil
		}
	}
	fmt.Fprint(server, "halted\r\n")
	server.Close()
	return nil
}

// await waits until a file is there: await FILE.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE")
	}
	path := ts.MkAbs(args[0])
	for range 1000 {
		if _, err := os.Lstat(path); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s did not appear", path)
}

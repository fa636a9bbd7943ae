package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/console"
)

// personAt is somebody who sits at a console, at a terminal of their own.
type personAt struct {
	t        *testing.T
	cmd      *exec.Cmd
	terminal *os.File
	screen   *bufio.Reader
}

// sitsAt has somebody sit down at the console of the machine web below root.
func sitsAt(t *testing.T, root string) personAt {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, person := openTerminal(t)
	cmd := &exec.Cmd{
		Path: own, Args: []string{"vmctl", "console", "web"},
		Env:   append(os.Environ(), "VMCTL_ROOT="+root, "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+root+"/no-bus"),
		Stdin: program, Stdout: program, Stderr: program,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: true},
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	program.Close()
	return personAt{t, cmd, person, bufio.NewReader(person)}
}

// sees waits until the screen has shown text.
func (p personAt) sees(text string) {
	p.t.Helper()
	// Without it, the terminal has no other side, and the read ends.
	late := time.AfterFunc(time.Minute, func() { p.cmd.Process.Kill() })
	defer late.Stop()
	var seen strings.Builder
	for !strings.HasSuffix(seen.String(), text) {
		b, err := p.screen.ReadByte()
		if err != nil {
			p.t.Fatalf("no %q in %q: %v", text, seen.String(), err)
		}
		seen.WriteByte(b)
	}
}

func (p personAt) types(text string) {
	p.t.Helper()
	if _, err := p.terminal.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// ends waits for the end of vmctl.
func (p personAt) ends() {
	p.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		p.t.Fatal("vmctl goes on though its terminal is gone")
	}
}

// Two people at one console see and type the same; a terminal that is resized goes on,
// and one whose line is cut takes nothing from the guest, nor from the other.
func TestConsoleTerminals(t *testing.T) {
	root := t.TempDir()
	socket := config.SystemPaths(root).ConsoleSocket("web")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	guest, port := net.Pipe()
	server := console.NewServer(1<<16, port)
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	typed := bufio.NewReader(guest)
	hears := func(want string) {
		t.Helper()
		if err := guest.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		line, err := typed.ReadString('\r')
		if err != nil || line != want+"\r" {
			t.Fatalf("the guest hears %q (%v), want %q", line, err, want)
		}
		fmt.Fprintf(server, "heard %s\r\n", want)
	}
	fmt.Fprint(server, "login:\r\n")

	one, two := sitsAt(t, root), sitsAt(t, root)
	for _, p := range []personAt{one, two} {
		p.sees("login:")
	}
	one.types("by one\r")
	hears("by one")
	two.sees("heard by one")
	for _, size := range []unix.Winsize{{Row: 4, Col: 12}, {Row: 200, Col: 500}, {}} {
		if err := unix.IoctlSetWinsize(int(one.terminal.Fd()), unix.TIOCSWINSZ, &size); err != nil {
			t.Fatal(err)
		}
		word := fmt.Sprintf("at %d lines", size.Row)
		one.types(word + "\r")
		hears(word)
		one.sees("heard " + word)
	}
	// The line is cut.
	one.terminal.Close()
	one.ends()
	two.types("still here\r")
	hears("still here")
	two.sees("heard still here")
	two.types("\x1dq")
	two.ends()

	three := sitsAt(t, root)
	three.sees("heard still here")
}

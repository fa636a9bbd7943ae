package guestnotify

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// serveUnix serves on a Unix socket, which differs from the guest's in its
// addresses alone.
func serveUnix(t *testing.T, trusted func(unix.Sockaddr) bool) (socket string, messages chan Message) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "notify")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		t.Fatal(err)
	}
	messages = make(chan Message, 16)
	ended := make(chan error, 1)
	go func() { ended <- Serve(fd, trusted, func(m Message) { messages <- m }) }()
	t.Cleanup(func() {
		// Wakes up who accepts, which closing does not.
		if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil {
			t.Error("Serve ended without an error")
		}
		unix.Close(fd)
	})
	return socket, messages
}

// send sends a message as systemd does: it half-closes and waits for the end.
func send(t *testing.T, socket, text string) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(text)); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		t.Fatal(err)
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil && !errors.Is(err, unix.ENOTCONN) {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 {
		t.Errorf("got an answer (%v)", err)
	}
}

func everybody(unix.Sockaddr) bool { return true }

func TestMessages(t *testing.T) {
	socket, messages := serveUnix(t, everybody)
	for text, want := range map[string]Message{
		"READY=1\nSTATUS=Startup finished in 3s.\n": {true, "Startup finished in 3s."},
		"STATUS=\x1b[31mred\x00\xff":                {false, "?[31mred??"},
		"X_SYSTEMD_UNIT_ACTIVE=ssh-access.target":   {},
		"READY=0":                             {},
		"READY=1":                             {true, ""},
		"\nREADY=1":                           {true, ""},
		"STATUS=" + strings.Repeat("x", 1000): {false, strings.Repeat("x", maxStatus)},
	} {
		send(t, socket, text)
		if got := <-messages; got != want {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
}

// TestHostileMessages goes on after what a guest may do to it.
func TestHostileMessages(t *testing.T) {
	socket, messages := serveUnix(t, everybody)
	// One that never ends, one without end, and one that says nothing.
	stays, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	send(t, socket, strings.Repeat("x", 4*maxMessage))
	send(t, socket, "")
	send(t, socket, "READY=1")
	for m := range messages {
		if m.Ready {
			break
		}
	}
}

func TestStrangersAreNotHeard(t *testing.T) {
	socket, messages := serveUnix(t, func(unix.Sockaddr) bool { return false })
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
	if len(messages) != 0 {
		t.Errorf("heard %+v", <-messages)
	}
}

func TestFromGuest(t *testing.T) {
	trusted := FromGuest(42)
	for peer, want := range map[unix.Sockaddr]bool{
		&unix.SockaddrVM{CID: 42, Port: 1023}: true,
		&unix.SockaddrVM{CID: 42, Port: 1024}: false, // not root
		&unix.SockaddrVM{CID: 43, Port: 1}:    false, // another guest
		&unix.SockaddrUnix{}:                  false,
	} {
		if got := trusted(peer); got != want {
			t.Errorf("%+v: got %v", peer, got)
		}
	}
}

// TestListen listens on vsock. Nobody reaches it without a guest or the module
// vsock_loopback; the port is taken all the same.
func TestListen(t *testing.T) {
	f, err := Listen(70000)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skip("the kernel has no vsock")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Listen(70000); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second time: %v", err)
	}
	if got, want := Credential(70000), "io.systemd.credential:vmm.notify_socket=vsock-stream:2:70000"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

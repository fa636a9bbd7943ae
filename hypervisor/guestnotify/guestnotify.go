// Package guestnotify hears what the service manager in a guest says of itself:
// systemd from version 254 on sends the messages of sd_notify(3) to the vsock
// address that the credential vmm.notify_socket names
// (systemd.system-credentials(7)).
//
// The guest is not trusted: a message is bounded in length and time, and who
// else reaches the socket is not listened to. Each message is a connection of
// its own, and its sender waits until that is closed, so it is closed at once.
package guestnotify

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage is how long a message may be, in bytes.
	maxMessage = 16 << 10
	// maxTime is how long a message may take to come.
	maxTime = 2 * time.Second
	// maxStatus is how much of a status is kept, in bytes.
	maxStatus = 200

	backlog = 64
	// privileged ports are the guest's root's.
	privileged = 1024
)

// Address is what vmm.notify_socket says for the socket of [Listen], as seen from
// the guest.
func Address(port uint32) string {
	return fmt.Sprintf("vsock-stream:%d:%d", unix.VMADDR_CID_HOST, port)
}

// Credential is the SMBIOS string (type 11) by which the guest's systemd learns
// of that.
func Credential(port uint32) string {
	return "io.systemd.credential:" + CredentialName + "=" + Address(port)
}

// CredentialName is the name of that credential.
const CredentialName = "vmm.notify_socket"

// Listen opens the socket. The error is [unix.EADDRINUSE] where somebody has the
// port, and [unix.EAFNOSUPPORT] where the kernel has no vsock.
func Listen(port uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("vsock: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("vsock port %d: %w", port, err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("vsock port %d: %w", port, err)
	}
	return os.NewFile(uintptr(fd), "vsock"), nil
}

// Message is what one message says, as far as it matters.
type Message struct {
	Ready  bool
	Status string // printable, on one line; "" where it says none
}

// FromGuest says whether a peer is root in the guest with this CID.
func FromGuest(cid uint32) func(unix.Sockaddr) bool {
	return func(peer unix.Sockaddr) bool {
		vm, ok := peer.(*unix.SockaddrVM)
		return ok && vm.CID == cid && vm.Port < privileged
	}
}

// FromWhoMayConnect trusts every peer: of a Unix socket behind a guest's vsock, whose
// peer is the hypervisor alone. That a user of the guest may be behind it, and no
// ports tell who is root there, harms nobody but that guest.
func FromWhoMayConnect(unix.Sockaddr) bool { return true }

// Serve hands on the messages that come to a listening socket, one after the
// other, until it is closed or fails.
func Serve(fd int, trusted func(unix.Sockaddr) bool, on func(Message)) error {
	for {
		conn, peer, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.ECONNRESET):
			continue
		case err != nil:
			return fmt.Errorf("accept: %w", err)
		}
		var text []byte
		if trusted(peer) {
			text = read(conn)
		}
		unix.Close(conn)
		if len(text) > 0 {
			on(parse(text))
		}
	}
}

// read is a message to its end, or as much of it as comes in time.
func read(conn int) []byte {
	var text []byte
	part := make([]byte, 4<<10)
	for end := time.Now().Add(maxTime); len(text) < maxMessage; {
		left := time.Until(end)
		if left <= 0 {
			break
		}
		t := unix.NsecToTimeval(left.Nanoseconds() + int64(time.Microsecond)) // 0 would be forever
		if err := unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t); err != nil {
			break
		}
		n, err := unix.Read(conn, part)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			break
		}
		text = append(text, part[:n]...)
	}
	return text[:min(len(text), maxMessage)]
}

// parse reads the lines of a message.
func parse(text []byte) Message {
	var m Message
	for line := range bytes.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), "=")
		switch key {
		case "READY":
			m.Ready = m.Ready || value == "1"
		case "STATUS":
			m.Status = printable(value)
		}
	}
	return m
}

// printable is a text without what could mean something to a terminal or to
// systemd.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return text[:min(len(text), maxStatus)]
}

package journal

import (
	"encoding/binary"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
	_ "unsafe" // for go:linkname

	"github.com/coreos/go-systemd/v22/journal"
)

// journalSocket is where entries go, which is meant to be overridden when a program
// is built.
//
//go:linkname journalSocket github.com/coreos/go-systemd/v22/journal.journalSocket
var journalSocket string

// An entry of a call has who has called what of which machine, how that has ended,
// and how long it took.
func TestSendCall(t *testing.T) {
	usual := journalSocket
	t.Cleanup(func() { journalSocket = usual })
	journalSocket = filepath.Join(t.TempDir(), "socket")
	listener, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: journalSocket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	call := Call{Method: "/mvirt.VmService/StartVm", Peer: "root (uid 0, pid 7)", VM: "web", Code: "Internal", Message: "no such kernel", Took: 1500 * time.Millisecond}
	look, none := call, call
	look.Look, none.VM = true, ""
	for what, c := range map[string]struct {
		call     Call
		vm, unit string
	}{
		"a change":   {call, "web", "vm@web.service"},
		"a look":     {look, "web", ""},
		"no machine": {none, "", ""},
	} {
		if err := SendCall(c.call, "said", journal.PriNotice); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 64<<10)
		n, err := listener.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		got := entryOf(buffer[:n])
		for field, want := range map[string]string{
			"MESSAGE": "said", "MESSAGE_ID": callID, "PRIORITY": "5", "SYSLOG_IDENTIFIER": "vmctl-api",
			"VMCTL_METHOD": "/mvirt.VmService/StartVm", "VMCTL_PEER": "root (uid 0, pid 7)",
			"VMCTL_RESULT": "Internal", "VMCTL_DETAIL": "no such kernel", "VMCTL_USEC": "1500000",
			"VMCTL_VM": c.vm, "OBJECT_SYSTEMD_UNIT": c.unit,
		} {
			if value, ok := got[field]; value != want || ok != (want != "") {
				t.Errorf("%s: %s=%q, want %q", what, field, value, want)
			}
		}
	}
}

// entryOf reads an entry as it is sent to the journal: NAME=VALUE, or, where the value
// may be of several lines, NAME, its length and the value.
func entryOf(sent []byte) map[string]string {
	out, text := map[string]string{}, string(sent)
	for text != "" {
		line, rest, _ := strings.Cut(text, "\n")
		name, value, short := strings.Cut(line, "=")
		if !short {
			n := binary.LittleEndian.Uint64([]byte(rest))
			value, rest = rest[8:8+n], rest[8+n+1:]
		}
		out[name], text = value, rest
	}
	return out
}

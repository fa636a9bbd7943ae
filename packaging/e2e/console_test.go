//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

// A guest that writes without end is not held up by a client that does not
// read, keeps its history for who comes later, and neither floods the journal
// nor is cut by it; a reboot changes nothing for who looks.
func TestConsoleOfAChattyGuest(t *testing.T) {
	t.Parallel()
	v := newVM(t, "chatty", "")
	v.boot()
	pid := v.mainPID()

	stuck, err := net.Dial("unix", v.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	if _, err := io.WriteString(stuck, "attach\n"); err != nil {
		t.Fatal(err)
	}

	const lines = 30000 // more than a scrollback, and than the journal is given
	v.typeLine(fmt.Sprintf("spam %d", lines))
	v.expect(`vmctl-guest: spam done`)
	last := fmt.Sprintf("spam %[1]d of %[1]d", lines)

	log := run(t, "vmctl", "console", "--log", v.name)
	contains(t, log, last)
	// run leaves out the last line's end, and the history what a terminal would
	// answer to.
	if len(log) < 1<<20-64 {
		t.Errorf("the history has %d bytes, want at least 1 MiB", len(log))
	}
	journal := v.journal()
	contains(t, journal, "lines not logged")
	if logged := strings.Count(journal, "spam "); logged == 0 || logged >= lines {
		t.Errorf("%d of %d lines are in the journal", logged, lines)
	}
	// journald says so where it drops a unit's messages by a limit of its own.
	if out := run(t, "journalctl", "-t", "systemd-journald", "-o", "cat", "--no-pager"); strings.Contains(out, "Suppressed") && strings.Contains(out, v.unit()) {
		t.Errorf("journald dropped lines:\n%s", out)
	}

	v.typeLine("reboot")
	v.expectReady()
	if got := v.mainPID(); got != pid {
		t.Errorf("process %d after the guest's reboot, was %d", got, pid)
	}
	contains(t, run(t, "vmctl", "console", "--log", v.name), last, "vmctl-guest: ready")
	run(t, "vmctl", "stop", v.name)
}

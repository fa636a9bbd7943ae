//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"

	"github.com/vmctl/vmctl/units/journal"
)

// event is a line of vmctl events -o json, or of vmctl history.
type event struct {
	VM        string  `json:"vm"`
	Event     string  `json:"event"`
	Detail    string  `json:"detail"`
	Operation string  `json:"operation"`
	User      string  `json:"user"`
	Seconds   float64 `json:"seconds"`
	Failed    bool    `json:"failed"`
}

func (e event) String() string {
	if e.Event == "operation" {
		return e.Operation
	}
	return e.Event
}

// A reader that stands still holds up nobody, and misses nothing.
func TestEventsSlowReader(t *testing.T) {
	t.Parallel()
	v := newVMFrom(t, "slowly-read", hollow)
	cmd := exec.Command("vmctl", "events", "-o", "json", v.name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	read := func() (e event) {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("the events end: %v", lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		return e
	}
	send := func(detail string) {
		t.Helper()
		if err := journal.Send(journal.Event{VM: v.name, Kind: journal.Rebooted, Detail: detail}, false, detail, sdjournal.PriDebug); err != nil {
			t.Fatal(err)
		}
	}
	// From when on it follows, nobody but itself can tell.
	followed := make(chan bool)
	go func() {
		for {
			select {
			case <-followed:
				return
			case <-time.After(100 * time.Millisecond):
				_ = journal.Send(journal.Event{VM: v.name, Kind: journal.Rebooted, Detail: "first"}, false, "first", sdjournal.PriDebug)
			}
		}
	}()
	read()
	followed <- true
	// More than all the pipes between hold.
	const many = 1000
	long := strings.Repeat("x", 500)
	for i := range many {
		send(fmt.Sprint(i, " ", long))
	}
	next := read()
	for next.Detail == "first" {
		next = read()
	}
	for i := range many {
		if want := fmt.Sprint(i, " ", long); next.Detail != want {
			t.Fatalf("after event %d: %.20q", i-1, next.Detail)
		}
		if i < many-1 {
			next = read()
		}
	}
}

// What happens to a machine is told as it happens, in order, without a gap, of
// that machine alone; and afterwards by its history and the journal's catalog.
func TestEventsAndHistory(t *testing.T) {
	t.Parallel()
	v := newVM(t, "eventful", "lifecycle.restart_delay = \"1s\"\n")
	other := newVMFrom(t, "eventless", hollow)
	cmd := exec.Command("vmctl", "events", "-o", "json", v.name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var seen []event
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Errorf("%s: %v", lines.Bytes(), err)
			}
			mu.Lock()
			seen = append(seen, e)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() { cmd.Process.Signal(os.Interrupt); <-done; _ = cmd.Wait() })
	// From when on it follows, nobody but itself can tell.
	eventually(t, "events are followed", func() bool {
		try("vmctl", "disable", v.name)
		mu.Lock()
		defer mu.Unlock()
		return len(seen) > 0
	})
	mu.Lock()
	seen = nil
	mu.Unlock()
	// inOrder waits until these have happened, in this order, and possibly others
	// between them. What vmctl has done, and what that does to the machine, are told
	// by two processes, in no order.
	inOrder := func(want ...string) {
		t.Helper()
		eventually(t, "it is told: "+strings.Join(want, ", "), func() bool {
			mu.Lock()
			defer mu.Unlock()
			left := want
			for i, e := range seen {
				if len(left) > 0 && e.String() == left[0] {
					if left = left[1:]; len(left) == 0 {
						seen = seen[i+1:]
						return true
					}
				}
			}
			return false
		})
	}
	together := func(a, b string) {
		t.Helper()
		eventually(t, "it is told: "+a+" and "+b, func() bool {
			mu.Lock()
			defer mu.Unlock()
			is := func(what string) int { return slices.IndexFunc(seen, func(e event) bool { return e.String() == what }) }
			if is(a) < 0 || is(b) < 0 {
				return false
			}
			seen = seen[max(is(a), is(b))+1:]
			return true
		})
	}
	run(t, "systemctl", "daemon-reload")
	run(t, "vmctl", "start", v.name, other.name)
	inOrder("starting", "started", "start")
	v.expectReady()
	run(t, "vmctl", "pause", v.name)
	together("paused", "pause")
	run(t, "vmctl", "resume", v.name)
	together("resumed", "resume")
	run(t, "vmctl", "reset", v.name)
	together("rebooted", "reset")
	v.expectReady()
	run(t, "kill", "-KILL", strings.TrimSpace(run(t, "systemctl", "show", "-P", "MainPID", v.unit())))
	inOrder("ended", "failed", "restarting", "starting", "started")
	v.expectReady()
	v.typeLine("panic")
	inOrder("panicked", "ended", "started")
	if r := try("vmctl", "resume", v.name); r.code != 4 {
		t.Errorf("exit status %d: %s", r.code, r.all())
	}
	inOrder("resume")
	run(t, "vmctl", "kill", v.name)
	together("ended", "kill")
	mu.Lock()
	if i := slices.IndexFunc(seen, func(e event) bool { return e.VM != v.name }); i >= 0 {
		t.Errorf("of another machine: %+v", seen[i])
	}
	mu.Unlock()

	var history []event
	if err := json.Unmarshal([]byte(run(t, "vmctl", "history", "-o", "json", v.name)), &history); err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, e := range history {
		if told = append(told, e.String()); e.Event == "operation" && (e.User != "root" || e.Seconds <= 0 || e.Failed != (e.Detail != "")) {
			t.Errorf("%+v", e)
		}
	}
	told = slices.DeleteFunc(told, func(s string) bool { return s == "disable" })
	if i := len(told) - 2; told[i] == "kill" { // told in no order
		told[i], told[i+1] = told[i+1], told[i]
	}
	if want := []string{"start", "pause", "resume", "reset", "ended", "ended", "resume", "ended", "kill"}; !slices.Equal(told, want) {
		t.Errorf("the history is %q, want %q", told, want)
	}
	text := run(t, "vmctl", "history", "-n", "3", v.name)
	contains(t, text, "failed: invalid transition from running", "killed: by SIGKILL")
	contains(t, run(t, "journalctl", "--no-pager", "-u", v.unit(), "--catalog"), "Virtual machine eventful is paused", "has panicked", "vmctl kill of virtual machine eventful", "kill: done")
	if got := run(t, "vmctl", "events", "--no-follow", "-n", "4", v.name); strings.Count(got, "\n") != 3 || !strings.Contains(got, "eventful: kill by root: done") {
		t.Errorf("the last four events are %q", got)
	}
	contains(t, run(t, "vmctl", "events", "--no-follow", v.name), "eventful: ended: killed: by SIGKILL", "eventful: start by root: done in")
}

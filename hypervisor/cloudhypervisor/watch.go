package cloudhypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"syscall"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/jsonline"
)

// event is what cloud-hypervisor writes of what happens, one JSON value after the
// other, of several lines each.
type event struct {
	Source     string            `json:"source"`
	Event      string            `json:"event"`
	Properties map[string]string `json:"properties"`
}

// maxEvent bounds an event, in bytes.
const maxEvent = 64 << 10

// Watch implements [hypervisor.Hypervisor].
func (CloudHypervisor) Watch(ctx context.Context, conn net.Conn, on func(hypervisor.Event)) error {
	defer jsonline.Until(ctx, conn)()
	limited := &io.LimitedReader{R: conn, N: maxEvent}
	events := json.NewDecoder(limited)
	w := &watcher{on: on}
	for {
		var e event
		err := events.Decode(&e)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case limited.N == 0:
			return fmt.Errorf("reading the events of cloud-hypervisor: one of more than %d bytes", maxEvent)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
			return nil
		default:
			return fmt.Errorf("reading the events of cloud-hypervisor: %w", err)
		}
		limited.N = maxEvent
		w.event(e)
	}
}

// watcher turns cloud-hypervisor's events into ours.
type watcher struct {
	on        func(hypervisor.Event)
	started   bool
	rebooting bool
}

func (w *watcher) event(e event) {
	emit := func(kind hypervisor.EventKind, detail string) {
		w.on(hypervisor.Event{Kind: kind, Detail: detail})
	}
	switch e.Source + " " + e.Event {
	case "vm booted":
		if !w.started {
			w.started = true
			emit(hypervisor.Started, "")
		}
	case "vm restored":
		emit(hypervisor.Loading, "")
	case "vm paused":
		emit(hypervisor.Paused, "")
	case "vm resumed":
		if !w.started { // it goes on from a saved state
			w.started = true
			emit(hypervisor.Started, "")
			return
		}
		emit(hypervisor.Resumed, "")
	case "vm rebooting":
		w.rebooting = true
	case "vm rebooted":
		w.rebooting = false
		emit(hypervisor.Rebooted, "")
	case "guest panic":
		// "crash_loaded" is that the guest deals with it itself, by kdump.
		if e.Properties["event"] == "panic" {
			emit(hypervisor.Panicked, "the guest's kernel panicked")
		}
	case "vmm shutdown":
		// Why, its log alone says: see ReadEnd.
		if !w.rebooting {
			w.on(hypervisor.Event{Kind: hypervisor.ShutDown})
			return
		}
		w.on(hypervisor.Event{Kind: hypervisor.ShutDown, Cause: "error", Detail: "the reboot failed"})
	}
}

// logLine is a line of cloud-hypervisor's log:
//
//	cloud-hypervisor: 12.345678s: <vcpu0> ERROR:vmm/src/cpu.rs:1460 -- VCPU generated error: …
var logLine = regexp.MustCompile(`^cloud-hypervisor: +\S+: +<[^>]*> +(ERROR|WARN|INFO|DEBUG|TRACE):\S+ -- (.*)$`)

var _ hypervisor.EndReader = CloudHypervisor{}

// ReadEnd implements [hypervisor.EndReader]. The process ends with status 0 for a
// guest that powers off, a signal, a request and a CPU that crashed.
func (CloudHypervisor) ReadEnd(lines []string) (end hypervisor.Event, kept []string, ok bool) {
	end = hypervisor.Event{Kind: hypervisor.ShutDown}
	set := func(cause, detail string) {
		// What came first led to the rest; an error is never hidden.
		if end.Cause == "" || cause == "error" && end.Cause != "error" {
			end.Cause, end.Detail = cause, detail
		}
	}
	for _, line := range lines {
		line = strings.TrimSpace(line)
		m := logLine.FindStringSubmatch(line)
		if m == nil {
			// The error on which it gives up, and the message of a panic of its own.
			if line != "" {
				kept = append(kept, line)
			}
			continue
		}
		level, text := m[1], m[2]
		if level == "ERROR" || level == "WARN" {
			kept = append(kept, line)
		}
		switch {
		case level == "ERROR" && (strings.HasPrefix(text, "VCPU generated error") || strings.Contains(text, "thread panicked")):
			set("error", text)
		case strings.Contains(text, "ACPI Shutdown signalled"):
			set("guest", "")
		case strings.Contains(text, "API request event: VmmShutdown"):
			set("host", "")
		case strings.HasPrefix(text, "VM exit event"):
			set("signal", "by a signal that cloud-hypervisor took as a request to end")
		}
	}
	return end, kept, end.Cause != ""
}

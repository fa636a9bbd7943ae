package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/jsonline"
)

// Watch implements [hypervisor.Hypervisor].
func (QEMU) Watch(ctx context.Context, conn net.Conn, on func(hypervisor.Event)) error {
	w := &watcher{on: on}
	s, err := newSession(ctx, conn, w.event)
	if err != nil {
		return ended(err)
	}
	var answer struct {
		Running bool
		Status  string
	}
	if err := s.execute(ctx, "query-status", nil, &answer, w.event); err != nil {
		return ended(err)
	}
	switch {
	case answer.Running:
		w.start()
	case answer.Status != "prelaunch": // about to run
		on(hypervisor.Event{Kind: hypervisor.Loading})
	}
	defer jsonline.Until(ctx, s.conn)()
	for {
		m, err := s.read()
		if err != nil {
			return ended(s.fail(ctx, "waiting for events of QEMU", err))
		}
		w.event(m)
	}
}

// ended is nil where err says no more than that QEMU has gone.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// watcher turns QEMU's events into ours.
type watcher struct {
	on      func(hypervisor.Event)
	started bool
}

// start reports, once, that the CPUs run.
func (w *watcher) start() {
	if !w.started {
		w.started = true
		w.on(hypervisor.Event{Kind: hypervisor.Started})
	}
}

// eventData is what the events that are of interest carry.
type eventData struct {
	Guest     bool   `json:"guest"`     // SHUTDOWN, RESET
	Reason    string `json:"reason"`    // the same: ShutdownCause; BLOCK_IO_ERROR: the error
	Action    string `json:"action"`    // GUEST_PANICKED, WATCHDOG, BLOCK_IO_ERROR
	NodeName  string `json:"node-name"` // BLOCK_IO_ERROR
	Operation string `json:"operation"` // BLOCK_IO_ERROR
	ID        string `json:"id"`        // VSERPORT_CHANGE: of the device
	Open      bool   `json:"open"`      // VSERPORT_CHANGE
}

func (w *watcher) event(m message) {
	var d eventData
	if len(m.Data) > 0 && json.Unmarshal(m.Data, &d) != nil {
		d = eventData{} // an event of another shape has none of this
	}
	emit := func(kind hypervisor.EventKind, detail string) {
		w.on(hypervisor.Event{Kind: kind, Detail: detail})
	}
	switch m.Event {
	case "RESUME":
		if !w.started {
			w.start()
			return
		}
		emit(hypervisor.Resumed, "")
	case "STOP":
		emit(hypervisor.Paused, "")
	case "RESET":
		emit(hypervisor.Rebooted, d.Reason)
	case "GUEST_PANICKED":
		emit(hypervisor.Panicked, "")
	case "WATCHDOG":
		emit(hypervisor.Watchdog, "action: "+d.Action)
	case "BLOCK_IO_ERROR":
		_, disk, _ := strings.Cut(d.NodeName, "-") // of topNode
		emit(hypervisor.IOError, fmt.Sprintf("disk %s: %s: %s", disk, d.Operation, d.Reason))
	case "VSERPORT_CHANGE": // at most one a second of each port
		switch {
		case d.ID != agentPort:
		case d.Open:
			emit(hypervisor.AgentConnected, "")
		default:
			emit(hypervisor.AgentDisconnected, "")
		}
	case "SHUTDOWN":
		w.on(hypervisor.Event{Kind: hypervisor.ShutDown, Cause: shutdownCause(d), Detail: d.Reason})
	}
}

// shutdownCause is why QEMU ends (ShutdownCause in qapi/run-state.json).
func shutdownCause(d eventData) string {
	switch {
	case d.Reason == "guest-panic":
		return "panic"
	case d.Reason == "host-signal":
		return "signal"
	case d.Reason == "host-error":
		return "error"
	case d.Guest:
		return "guest"
	}
	return "host"
}

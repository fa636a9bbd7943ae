package main

import (
	"testing"

	"github.com/vmctl/vmctl/hypervisor"
)

func TestStateOf(t *testing.T) {
	ended := func(r hypervisor.Reason) *hypervisor.Exit { return &hypervisor.Exit{Reason: r} }
	tests := []struct {
		name string
		unit unitState
		hv   hypervisor.Status
		exit *hypervisor.Exit
		want state
	}{
		{"never seen by systemd", unitState{}, "", nil, stopped},
		{"inactive", unitState{Active: "inactive"}, "", nil, stopped},
		{"inactive after a crash before the host's last boot", unitState{Active: "inactive"}, "", ended(hypervisor.HypervisorError), stopped},
		{"queued behind another machine", unitState{Active: "inactive", Job: "start"}, "", nil, starting},
		{"activating", unitState{Active: "activating", Job: "start"}, "", nil, starting},
		{"waiting to be started again", unitState{Active: "activating"}, "", ended(hypervisor.HypervisorError), starting},
		{"active, hypervisor not asked", unitState{Active: "active"}, "", nil, running},
		{"active and running", unitState{Active: "active"}, hypervisor.StatusRunning, nil, running},
		{"active and paused", unitState{Active: "active"}, hypervisor.StatusPaused, nil, paused},
		{"stopped by its own panic", unitState{Active: "active"}, hypervisor.StatusPanicked, nil, paused},
		{"guest shut down, process not yet ended", unitState{Active: "active"}, hypervisor.StatusStopping, nil, stopping},
		{"active, stop queued", unitState{Active: "active", Job: "stop"}, hypervisor.StatusRunning, nil, stopping},
		{"active, restart queued", unitState{Active: "active", Job: "restart"}, hypervisor.StatusRunning, nil, stopping},
		{"reloading", unitState{Active: "reloading"}, hypervisor.StatusRunning, nil, running},
		{"deactivating", unitState{Active: "deactivating"}, hypervisor.StatusRunning, nil, stopping},
		{"failed", unitState{Active: "failed"}, "", ended(hypervisor.HypervisorError), failed},
		{"failed, reason unknown", unitState{Active: "failed"}, "", nil, failed},
		{"failed by a panic", unitState{Active: "failed"}, "", ended(hypervisor.GuestPanic), failed},
		{"killed because it did not stop", unitState{Active: "failed"}, "", ended(hypervisor.StopTimedOut), stopped},
		{"failed, start queued", unitState{Active: "failed", Job: "start"}, "", nil, starting},
		{"a state that does not exist yet", unitState{Active: "pondering"}, "", nil, stopped},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := stateOf(tt.unit, tt.hv, tt.exit); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// TestAllowed has every cell of operation and state.
func TestAllowed(t *testing.T) {
	const yes = ""
	table := map[transition]map[state]string{
		opStart: {
			stopped:  yes,
			starting: "invalid transition from starting: VM is already starting",
			running:  "invalid transition from running: VM is already running",
			paused:   yes, // resumes it
			stopping: "invalid transition from stopping: cannot start VM while it is stopping",
			failed:   yes,
		},
		opStop: {
			stopped:  "invalid transition from stopped: VM is already stopped",
			starting: yes,
			running:  yes,
			paused:   yes, // resumes it first
			stopping: "invalid transition from stopping: VM is already stopping",
			failed:   "invalid transition from failed: VM has failed and does not run",
		},
		opRestart: {
			stopped:  yes,
			starting: yes,
			running:  yes,
			paused:   yes,
			stopping: "invalid transition from stopping: cannot restart VM while it is stopping",
			failed:   yes,
		},
		opKill:  {stopped: yes, starting: yes, running: yes, paused: yes, stopping: yes, failed: yes},
		opReset: {stopped: yes, starting: yes, running: yes, paused: yes, stopping: yes, failed: yes},
		opPause: {
			stopped:  "invalid transition from stopped: cannot pause a stopped VM",
			starting: "invalid transition from starting: cannot pause VM while it is starting",
			running:  yes,
			paused:   "invalid transition from paused: VM is already paused",
			stopping: "invalid transition from stopping: cannot pause VM while it is stopping",
			failed:   "invalid transition from failed: cannot pause a failed VM, start it first",
		},
		opResume: {
			stopped:  "invalid transition from stopped: cannot resume a stopped VM, start it",
			starting: "invalid transition from starting: cannot resume VM while it is starting",
			running:  "invalid transition from running: VM is already running",
			paused:   yes,
			stopping: "invalid transition from stopping: cannot resume VM while it is stopping",
			failed:   "invalid transition from failed: cannot resume a failed VM, start it",
		},
		opDelete: {
			stopped:  yes,
			starting: "invalid transition from starting: cannot delete VM while it is starting",
			running:  "invalid transition from running: cannot delete a running VM",
			paused:   "invalid transition from paused: cannot delete a paused VM",
			stopping: "invalid transition from stopping: cannot delete VM while it is stopping",
			failed:   yes,
		},
	}
	for op, row := range table {
		for _, from := range states {
			want, there := row[from]
			if !there {
				t.Errorf("%s from %s: not in the table", op, from)
			}
			got := ""
			if err := allowed(op, from); err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("%s from %s: got %q, want %q", op, from, got, want)
			}
		}
	}
}

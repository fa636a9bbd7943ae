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
		kept keptState
		want state
	}{
		{"never seen by systemd", unitState{}, "", nil, keptState{}, stopped},
		{"inactive", unitState{Active: "inactive"}, "", nil, keptState{}, stopped},
		{"inactive after a crash before the host's last boot", unitState{Active: "inactive"}, "", ended(hypervisor.HypervisorError), keptState{}, stopped},
		{"queued behind another machine", unitState{Active: "inactive", Job: "start"}, "", nil, keptState{}, starting},
		{"activating", unitState{Active: "activating", Job: "start"}, "", nil, keptState{}, starting},
		{"waiting to be started again", unitState{Active: "activating"}, "", ended(hypervisor.HypervisorError), keptState{}, starting},
		{"active, hypervisor not asked", unitState{Active: "active"}, "", nil, keptState{}, running},
		{"active and running", unitState{Active: "active"}, hypervisor.StatusRunning, nil, keptState{}, running},
		{"active and paused", unitState{Active: "active"}, hypervisor.StatusPaused, nil, keptState{}, paused},
		{"stopped by its own panic", unitState{Active: "active"}, hypervisor.StatusPanicked, nil, keptState{}, paused},
		{"guest shut down, process not yet ended", unitState{Active: "active"}, hypervisor.StatusStopping, nil, keptState{}, stopping},
		{"active, stop queued", unitState{Active: "active", Job: "stop"}, hypervisor.StatusRunning, nil, keptState{}, stopping},
		{"active, restart queued", unitState{Active: "active", Job: "restart"}, hypervisor.StatusRunning, nil, keptState{}, stopping},
		{"reloading", unitState{Active: "reloading"}, hypervisor.StatusRunning, nil, keptState{}, running},
		{"deactivating", unitState{Active: "deactivating"}, hypervisor.StatusRunning, nil, keptState{}, stopping},
		{"failed", unitState{Active: "failed"}, "", ended(hypervisor.HypervisorError), keptState{}, failed},
		{"failed, reason unknown", unitState{Active: "failed"}, "", nil, keptState{}, failed},
		{"failed by a panic", unitState{Active: "failed"}, "", ended(hypervisor.GuestPanic), keptState{}, failed},
		{"killed because it did not stop", unitState{Active: "failed"}, "", ended(hypervisor.StopTimedOut), keptState{}, stopped},
		{"failed, start queued", unitState{Active: "failed", Job: "start"}, "", nil, keptState{}, starting},
		{"saved", unitState{Active: "inactive"}, "", ended(hypervisor.Saved), keptState{Saved: true}, saved},
		{"saved, could not be loaded", unitState{Active: "failed"}, "", ended(hypervisor.HypervisorError), keptState{Saved: true}, saved},
		{"loading", unitState{Active: "activating", Job: "start"}, "", nil, keptState{Saved: true}, loading},
		{"being saved", unitState{Active: "active"}, hypervisor.StatusRunning, nil, keptState{Saving: true}, saving},
		{"being saved, CPUs stopped", unitState{Active: "active"}, hypervisor.StatusPaused, nil, keptState{Saving: true}, saving},
		{"saved, about to end", unitState{Active: "deactivating"}, "", nil, keptState{Saving: true, Saved: true}, saving},
		{"saving cut off with the host", unitState{Active: "inactive"}, "", nil, keptState{Saving: true}, stopped},
		{"a state that does not exist yet", unitState{Active: "pondering"}, "", nil, keptState{}, stopped},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := stateOf(tt.unit, tt.hv, tt.exit, tt.kept); got != tt.want {
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
			loading:  "invalid transition from loading: VM is already loading",
			saving:   "invalid transition from saving: cannot start VM while it is being saved, wait for completion",
			saved:    yes,
			stopped:  yes,
			starting: "invalid transition from starting: VM is already starting",
			running:  "invalid transition from running: VM is already running",
			paused:   yes, // resumes it
			stopping: "invalid transition from stopping: cannot start VM while it is stopping",
			failed:   yes,
		},
		opStop: {
			loading:  "invalid transition from loading: cannot stop VM while it is loading: wait, or kill it, and it stays saved",
			saving:   "invalid transition from saving: cannot stop VM while it is being saved",
			saved:    "invalid transition from saved: VM is saved: start it to go on, or reset it to discard what is saved",
			stopped:  "invalid transition from stopped: VM is already stopped",
			starting: yes,
			running:  yes,
			paused:   yes, // resumes it first
			stopping: "invalid transition from stopping: VM is already stopping",
			failed:   "invalid transition from failed: VM has failed and does not run",
		},
		opRestart: {
			loading:  "invalid transition from loading: cannot restart VM while it is loading",
			saving:   "invalid transition from saving: cannot restart VM while it is being saved",
			saved:    "invalid transition from saved: VM is saved: start it to go on, or reset it to discard what is saved",
			stopped:  yes,
			starting: yes,
			running:  yes,
			paused:   yes,
			stopping: "invalid transition from stopping: cannot restart VM while it is stopping",
			failed:   yes,
		},
		opKill: {
			stopped:  yes,
			starting: yes,
			running:  yes,
			paused:   yes,
			stopping: yes,
			failed:   yes,
			loading:  yes,
			saving:   "invalid transition from saving: cannot kill VM while it is being saved: Ctrl-C of vmctl save, or systemctl stop of its unit, ends that first",
			saved:    "invalid transition from saved: VM is saved and does not run: reset discards what is saved",
		},
		opReset: {
			stopped:  yes,
			starting: yes,
			running:  yes,
			paused:   yes,
			stopping: yes,
			failed:   yes,
			saved:    yes,
			loading:  "invalid transition from loading: cannot reset VM while it is loading",
			saving:   "invalid transition from saving: cannot reset VM while it is being saved",
		},
		opSave: {
			running:  yes,
			paused:   yes,
			stopped:  "invalid transition from stopped: cannot save a stopped VM",
			starting: "invalid transition from starting: cannot save VM while it is starting",
			loading:  "invalid transition from loading: cannot save VM while it is loading",
			stopping: "invalid transition from stopping: cannot save VM while it is stopping",
			saving:   "invalid transition from saving: VM is already being saved",
			saved:    "invalid transition from saved: VM is already saved",
			failed:   "invalid transition from failed: cannot save a failed VM",
		},
		opPause: {
			loading:  "invalid transition from loading: cannot pause VM while it is loading",
			saving:   "invalid transition from saving: cannot pause VM while it is being saved",
			saved:    "invalid transition from saved: cannot pause a saved VM, start it first",
			stopped:  "invalid transition from stopped: cannot pause a stopped VM",
			starting: "invalid transition from starting: cannot pause VM while it is starting",
			running:  yes,
			paused:   "invalid transition from paused: VM is already paused",
			stopping: "invalid transition from stopping: cannot pause VM while it is stopping",
			failed:   "invalid transition from failed: cannot pause a failed VM, start it first",
		},
		opResume: {
			loading:  "invalid transition from loading: cannot resume VM while it is loading",
			saving:   "invalid transition from saving: cannot resume VM while it is being saved",
			saved:    "invalid transition from saved: cannot resume a saved VM, start it",
			stopped:  "invalid transition from stopped: cannot resume a stopped VM, start it",
			starting: "invalid transition from starting: cannot resume VM while it is starting",
			running:  "invalid transition from running: VM is already running",
			paused:   yes,
			stopping: "invalid transition from stopping: cannot resume VM while it is stopping",
			failed:   "invalid transition from failed: cannot resume a failed VM, start it",
		},
		opDelete: {
			loading:  "invalid transition from loading: cannot delete VM while it is loading",
			saving:   "invalid transition from saving: cannot delete VM while it is being saved",
			saved:    yes,
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

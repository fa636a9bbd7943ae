package main

import (
	"fmt"

	"github.com/vmctl/vmctl/hypervisor"
)

// state is what a machine does, in one word for people and scripts.
type state string

const (
	stopped  state = "stopped"
	starting state = "starting"
	loading  state = "loading"
	running  state = "running"
	paused   state = "paused"
	stopping state = "stopping"
	saving   state = "saving"
	saved    state = "saved"
	failed   state = "failed"
)

// states are all of them, in the order of a machine's life.
var states = [...]state{stopped, starting, loading, running, paused, stopping, saving, saved, failed}

// unitState is what systemd says of a machine's unit.
type unitState struct {
	Active string // ActiveState: "active", "inactive", …; "" where systemd has not loaded the unit
	Job    string // type of the job that waits or runs: "start", "stop", …, "" for none
}

// keptState is what the machine's state directory says.
type keptState struct {
	Saved  bool // there is a saved state
	Saving bool // one is being written, or was when that was cut off
}

// stateOf decides a machine's state from what systemd says of its unit, what
// the hypervisor says ("" where it was not or could not be asked), why the
// machine last ended (nil where that is not known), and what is kept of it.
func stateOf(u unitState, h hypervisor.Status, exit *hypervisor.Exit, kept keptState) state {
	s := unkeptState(u, h, exit)
	switch {
	case kept.Saved && s == starting:
		return loading
	case kept.Saved && (s == stopped || s == failed):
		return saved
	case (kept.Saving || kept.Saved) && (s == running || s == paused || s == stopping):
		return saving
	}
	return s
}

// unkeptState is the state of a machine of which nothing is kept.
func unkeptState(u unitState, h hypervisor.Status, exit *hypervisor.Exit) state {
	switch u.Active {
	case "activating":
		return starting
	case "deactivating":
		return stopping
	case "active", "reloading", "refreshing":
		return activeState(u.Job, h)
	case "failed":
		return failedState(u.Job, exit)
	}
	// inactive, not loaded, or a state that a later systemd invents.
	if u.Job == "start" || u.Job == "restart" {
		return starting
	}
	return stopped
}

// activeState is the state of a machine whose unit is active.
func activeState(job string, h hypervisor.Status) state {
	if job == "stop" || job == "restart" {
		return stopping
	}
	switch h {
	case hypervisor.StatusPaused, hypervisor.StatusPanicked:
		return paused
	case hypervisor.StatusStopping:
		return stopping
	}
	return running
}

// failedState is the state of a machine whose unit has failed. A guest that
// was asked to stop and had to be killed leaves the unit failed, but what was
// asked for has happened.
func failedState(job string, exit *hypervisor.Exit) state {
	if job == "start" || job == "restart" {
		return starting
	}
	if exit != nil {
		switch exit.Reason {
		case hypervisor.StopRequested, hypervisor.StopTimedOut, hypervisor.GuestPowerOff:
			return stopped
		}
	}
	return failed
}

// transition is what a person asks of a machine.
type transition string

const (
	opStart   transition = "start"
	opStop    transition = "stop"
	opRestart transition = "restart"
	opKill    transition = "kill"
	opReset   transition = "reset"
	opPause   transition = "pause"
	opResume  transition = "resume"
	opSave    transition = "save"
	opDelete  transition = "delete"
)

// transitionError is an operation that is not possible in a machine's state.
type transitionError struct {
	From   state
	Reason string
}

func (e *transitionError) Error() string {
	return fmt.Sprintf("invalid transition from %s: %s", e.From, e.Reason)
}

// refusals say why an operation is not possible in a state. What is not here
// is possible.
var refusals = map[transition]map[state]string{
	opStart: {
		starting: "VM is already starting",
		loading:  "VM is already loading",
		running:  "VM is already running",
		stopping: "cannot start VM while it is stopping",
		saving:   "cannot start VM while it is being saved, wait for completion",
	},
	opStop: {
		stopped:  "VM is already stopped",
		stopping: "VM is already stopping",
		loading:  "cannot stop VM while it is loading: wait, or kill it, and it stays saved",
		saving:   "cannot stop VM while it is being saved",
		saved:    "VM is saved: start it to go on, or reset it to discard what is saved",
		failed:   "VM has failed and does not run",
	},
	opRestart: {
		stopping: "cannot restart VM while it is stopping",
		loading:  "cannot restart VM while it is loading",
		saving:   "cannot restart VM while it is being saved",
		saved:    "VM is saved: start it to go on, or reset it to discard what is saved",
	},
	opKill: {
		saving: "cannot kill VM while it is being saved: Ctrl-C of vmctl save, or systemctl stop of its unit, ends that first",
		saved:  "VM is saved and does not run: reset discards what is saved",
	},
	opReset: {
		loading: "cannot reset VM while it is loading",
		saving:  "cannot reset VM while it is being saved",
	},
	opSave: {
		stopped:  "cannot save a stopped VM",
		starting: "cannot save VM while it is starting",
		loading:  "cannot save VM while it is loading",
		stopping: "cannot save VM while it is stopping",
		saving:   "VM is already being saved",
		saved:    "VM is already saved",
		failed:   "cannot save a failed VM",
	},
	opPause: {
		stopped:  "cannot pause a stopped VM",
		starting: "cannot pause VM while it is starting",
		loading:  "cannot pause VM while it is loading",
		saving:   "cannot pause VM while it is being saved",
		saved:    "cannot pause a saved VM, start it first",
		paused:   "VM is already paused",
		stopping: "cannot pause VM while it is stopping",
		failed:   "cannot pause a failed VM, start it first",
	},
	opResume: {
		stopped:  "cannot resume a stopped VM, start it",
		starting: "cannot resume VM while it is starting",
		loading:  "cannot resume VM while it is loading",
		saving:   "cannot resume VM while it is being saved",
		saved:    "cannot resume a saved VM, start it",
		running:  "VM is already running",
		stopping: "cannot resume VM while it is stopping",
		failed:   "cannot resume a failed VM, start it",
	},
	opDelete: {
		starting: "cannot delete VM while it is starting",
		loading:  "cannot delete VM while it is loading",
		saving:   "cannot delete VM while it is being saved",
		running:  "cannot delete a running VM",
		paused:   "cannot delete a paused VM",
		stopping: "cannot delete VM while it is stopping",
	},
}

// allowed returns a [*transitionError] where op is not possible from a state.
// A machine that does not run has nothing left to kill or reset but the mark of a
// failure, which always is.
func allowed(op transition, from state) error {
	if reason, refused := refusals[op][from]; refused {
		return &transitionError{From: from, Reason: reason}
	}
	return nil
}

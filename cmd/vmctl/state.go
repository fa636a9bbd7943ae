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
	running  state = "running"
	paused   state = "paused"
	stopping state = "stopping"
	failed   state = "failed"
)

// states are all of them, in the order of a machine's life.
var states = [...]state{stopped, starting, running, paused, stopping, failed}

// unitState is what systemd says of a machine's unit.
type unitState struct {
	Active string // ActiveState: "active", "inactive", …; "" where systemd has not loaded the unit
	Job    string // type of the job that waits or runs: "start", "stop", …, "" for none
}

// stateOf decides a machine's state from what systemd says of its unit, what
// the hypervisor says ("" where it was not or could not be asked) and why the
// machine last ended (nil where that is not known).
func stateOf(u unitState, h hypervisor.Status, exit *hypervisor.Exit) state {
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
		running:  "VM is already running",
		stopping: "cannot start VM while it is stopping",
	},
	opStop: {
		stopped:  "VM is already stopped",
		stopping: "VM is already stopping",
		failed:   "VM has failed and does not run",
	},
	opRestart: {
		stopping: "cannot restart VM while it is stopping",
	},
	opPause: {
		stopped:  "cannot pause a stopped VM",
		starting: "cannot pause VM while it is starting",
		paused:   "VM is already paused",
		stopping: "cannot pause VM while it is stopping",
		failed:   "cannot pause a failed VM, start it first",
	},
	opResume: {
		stopped:  "cannot resume a stopped VM, start it",
		starting: "cannot resume VM while it is starting",
		running:  "VM is already running",
		stopping: "cannot resume VM while it is stopping",
		failed:   "cannot resume a failed VM, start it",
	},
	opDelete: {
		starting: "cannot delete VM while it is starting",
		running:  "cannot delete a running VM",
		paused:   "cannot delete a paused VM",
		stopping: "cannot delete VM while it is stopping",
	},
}

// allowed returns a [*transitionError] where op is not possible from a state.
// Kill and reset always are: a machine that does not run has nothing left to
// kill or reset but the mark of a failure.
func allowed(op transition, from state) error {
	if reason, refused := refusals[op][from]; refused {
		return &transitionError{From: from, Reason: reason}
	}
	return nil
}

package main

import (
	sdjournal "github.com/coreos/go-systemd/v22/journal"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/units/journal"
)

// event writes to the journal, for people and for programs, what has happened to
// the machine. Without a journal it is a line like others.
func (a app) event(kind journal.Kind, priority sdjournal.Priority, text, detail string) {
	if a.journal && journal.Send(journal.Event{VM: a.vm, Kind: kind, Detail: detail}, a.paths.User, text, priority) == nil {
		return
	}
	a.say(int(priority), "%s", text)
}

// happening is how the journal calls what a hypervisor tells.
type happening struct {
	kind     journal.Kind
	priority sdjournal.Priority
	text     string
}

// happenings are those that systemd does not see itself.
var happenings = map[hypervisor.EventKind]happening{
	hypervisor.Paused:            {journal.Paused, sdjournal.PriInfo, "paused"},
	hypervisor.Resumed:           {journal.Resumed, sdjournal.PriInfo, "goes on"},
	hypervisor.Rebooted:          {journal.Rebooted, sdjournal.PriInfo, "the guest has rebooted"},
	hypervisor.Panicked:          {journal.Panicked, sdjournal.PriErr, "the guest's kernel has panicked"},
	hypervisor.Watchdog:          {journal.Watchdog, sdjournal.PriErr, "the guest did not feed its watchdog"},
	hypervisor.IOError:           {journal.DiskError, sdjournal.PriErr, "disk error"},
	hypervisor.AgentConnected:    {journal.AgentConnected, sdjournal.PriInfo, "the guest agent has connected"},
	hypervisor.AgentDisconnected: {journal.AgentDisconnected, sdjournal.PriInfo, "the guest agent has disconnected"},
	hypervisor.ShutDown:          {journal.ShutDown, sdjournal.PriInfo, "shut down"},
}

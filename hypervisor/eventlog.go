package hypervisor

import "slices"

// maxEvents is how many events are kept: the last.
const maxEvents = 32

// EventLog is what a hypervisor has told of a machine since it was started, as far as
// that says how the machine is and why it ends: the content of paths.Events.
type EventLog struct {
	PID    int     `json:"pid"` // of the hypervisor
	Events []Event `json:"events"`
}

// Add adds what was told last.
func (l *EventLog) Add(e Event) {
	l.Events = append(l.Events, e)
	if len(l.Events) > maxEvents {
		l.Events = l.Events[1:]
	}
}

// Ends says whether the last event is of a kind.
func (l *EventLog) Ends(kind EventKind) bool {
	return len(l.Events) > 0 && l.Events[len(l.Events)-1].Kind == kind
}

// Reboot forgets what a reboot has mended.
func (l *EventLog) Reboot() {
	l.Events = slices.DeleteFunc(l.Events, func(e Event) bool { return e.Kind == Panicked || e.Kind == Watchdog })
}

// Status is the status that a hypervisor tells, with what only the log says: that it
// is a panic which the guest is paused for. A hypervisor that leaves panics to others
// ([PanicWatcher]) does not know.
func (l *EventLog) Status(told Status) Status {
	if told != StatusPaused {
		return told
	}
	for _, e := range slices.Backward(l.Events) {
		switch e.Kind {
		case Panicked:
			return StatusPanicked
		case Resumed:
			return told
		}
	}
	return told
}

package hypervisor

import "testing"

// TestLoggedStatus: a guest that is paused has panicked where nothing has come since
// that would have it run.
func TestLoggedStatus(t *testing.T) {
	for name, test := range map[string]struct {
		events []EventKind
		told   Status
		want   Status
	}{
		"paused":             {[]EventKind{Started, Paused}, StatusPaused, StatusPaused},
		"paused for a panic": {[]EventKind{Started, Panicked, Paused}, StatusPaused, StatusPanicked},
		"resumed since":      {[]EventKind{Started, Panicked, Paused, Resumed, Paused}, StatusPaused, StatusPaused},
		"panicked again":     {[]EventKind{Started, Panicked, Paused, Resumed, Panicked, Paused}, StatusPaused, StatusPanicked},
		"rebooted since":     {[]EventKind{Started, Panicked, Paused, Rebooted, Paused}, StatusPaused, StatusPaused},
		"not paused":         {[]EventKind{Started, Panicked}, StatusRunning, StatusRunning},
		"nothing told":       {nil, StatusPaused, StatusPaused},
		"much told since":    {append([]EventKind{Panicked}, make([]EventKind, maxEvents)...), StatusPaused, StatusPaused},
	} {
		var l EventLog
		for _, kind := range test.events {
			if kind == Rebooted {
				l.Reboot()
				continue
			}
			l.Add(Event{Kind: kind})
		}
		if got := l.Status(test.told); got != test.want || len(l.Events) > maxEvents {
			t.Errorf("%s: got %s, want %s, with %d events", name, got, test.want, len(l.Events))
		}
	}
}

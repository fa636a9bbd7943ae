package main

import (
	"testing"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
)

func TestDecide(t *testing.T) {
	type events = []hypervisor.Event
	started := hypervisor.Event{Kind: hypervisor.Started}
	panicked := hypervisor.Event{Kind: hypervisor.Panicked}
	shutDown := func(cause string) hypervisor.Event {
		return hypervisor.Event{Kind: hypervisor.ShutDown, Cause: cause}
	}
	for _, test := range []struct {
		name   string
		facts  facts
		reason hypervisor.Reason
		detail string
	}{
		{"guest power-off",
			facts{Result: "success", Code: "exited", Status: "0", Events: events{started, shutDown("guest")}},
			hypervisor.GuestPowerOff, ""},
		{"the monitor died before the end",
			facts{Result: "success", Code: "exited", Status: "0"},
			hypervisor.GuestPowerOff, ""},
		{"guest panic",
			facts{Result: "exit-code", Code: "exited", Status: "1", Events: events{started, panicked, shutDown("panic")}},
			hypervisor.GuestPanic, "the guest's kernel panicked"},
		{"guest panic that powers off",
			facts{Result: "success", Code: "exited", Status: "0", Events: events{started, shutDown("panic")}},
			hypervisor.GuestPanic, "the guest's kernel panicked"},
		{"stop of a guest that waits after its panic",
			facts{Result: "success", Code: "exited", Status: "0", Events: events{started, panicked}, Stop: &stopNote{Ended: endedByQuit, Why: "the guest has panicked"}},
			hypervisor.GuestPanic, "the guest's kernel panicked"},
		{"watchdog",
			facts{Result: "success", Code: "exited", Status: "0", Events: events{started, {Kind: hypervisor.Watchdog}, shutDown("guest")}},
			hypervisor.GuestHung, "the guest did not feed its watchdog"},
		{"stop by the button",
			facts{Result: "success", Code: "exited", Status: "0", Events: events{started, shutDown("guest")},
				Stop: &stopNote{Asked: "power button", Ended: endedByGuest, Took: 2100 * time.Millisecond}},
			hypervisor.StopRequested, "the guest shut down in 2.1s (power button)"},
		{"killed during a stop",
			facts{Result: "signal", Code: "killed", Status: "KILL",
				Stop: &stopNote{Asked: "power button", Ended: endedByGuest, Took: 2100 * time.Millisecond}},
			hypervisor.Killed, "by SIGKILL"},
		{"stop that ended in force",
			facts{Result: "success", Code: "killed", Status: "KILL",
				Stop: &stopNote{Asked: "power button", Ended: endedByKill, Why: "the guest has not shut down in 2m45s"}},
			hypervisor.StopTimedOut, "the guest has not shut down in 2m45s; ended by SIGKILL"},
		{"stop that systemd cut short",
			facts{Result: "timeout", Code: "killed", Status: "KILL", Stop: &stopNote{}},
			hypervisor.StopTimedOut, "the stop was cut short; ended by systemd"},
		{"kill -9 just after a stop began",
			facts{Result: "signal", Code: "killed", Status: "KILL", Events: events{started}, Stop: &stopNote{}},
			hypervisor.Killed, "by SIGKILL"},
		{"stop before it was up",
			facts{Result: "success", Code: "exited", Status: "0", Events: events{shutDown("signal")}},
			hypervisor.StopRequested, "before it was up"},
		{"guest panic of which the monitor could not tell",
			facts{Result: "exit-code", Code: "exited", Status: "1", Events: events{started}},
			hypervisor.GuestPanic, "as the hypervisor's exit status says"},
		{"stop during prepare",
			facts{Result: "signal", Unprepared: true},
			hypervisor.NotStarted, "preparing it was ended, as by a stop"},
		{"kill -9",
			facts{Result: "signal", Code: "killed", Status: "KILL", Events: events{started}},
			hypervisor.Killed, "by SIGKILL"},
		{"kill",
			facts{Result: "success", Code: "exited", Status: "0", Events: events{started, {Kind: hypervisor.ShutDown, Cause: "signal", Detail: "by SIGTERM"}}},
			hypervisor.Killed, "by SIGTERM"},
		{"told to quit by a person",
			facts{Result: "success", Code: "exited", Status: "0", Events: events{started, shutDown("host")}},
			hypervisor.StopRequested, "the hypervisor was told to quit"},
		{"out of memory",
			facts{Result: "oom-kill", Code: "killed", Status: "KILL", Events: events{started}},
			hypervisor.Killed, "out of memory: a limit of the unit or of the host was reached"},
		{"out of memory, with a unit that goes on",
			facts{Result: "signal", Code: "killed", Status: "KILL", OutOfMemory: true, Events: events{started}},
			hypervisor.Killed, "out of memory: a limit of the unit or of the host was reached"},
		{"a helper was out of memory",
			facts{Result: "success", Code: "exited", Status: "0", OutOfMemory: true, Events: events{started, shutDown("host")}},
			hypervisor.StopRequested, "the hypervisor was told to quit"},
		{"crash",
			facts{Result: "core-dump", Code: "dumped", Status: "SEGV", Events: events{started}},
			hypervisor.HypervisorError, "the hypervisor crashed by SIGSEGV"},
		{"forbidden system call",
			facts{Result: "signal", Code: "killed", Status: "SYS", Events: events{started}},
			hypervisor.HypervisorError, "the hypervisor crashed by SIGSYS"},
		{"bad option",
			facts{Result: "exit-code", Code: "exited", Status: "1", Lines: []string{"qemu: -x: invalid option"}},
			hypervisor.HypervisorError, "qemu: -x: invalid option"},
		{"error without a word",
			facts{Result: "exit-code", Code: "exited", Status: "1"},
			hypervisor.HypervisorError, "exit status 1"},
		{"disk locked by another",
			facts{Result: "exit-code", Code: "exited", Status: "1", Lines: []string{"Is another process using the image?"}, Holders: []string{"disk.root.path: /x is in use by vm@first"}},
			hypervisor.HypervisorError, "disk.root.path: /x is in use by vm@first"},
		{"error of the hypervisor while it ran",
			facts{Result: "success", Code: "exited", Status: "0", Events: events{started, {Kind: hypervisor.ShutDown, Cause: "error", Detail: "triple fault"}}},
			hypervisor.HypervisorError, "triple fault"},
		{"no answer",
			facts{Result: "timeout", Code: "killed", Status: "KILL"},
			hypervisor.HypervisorError, "the hypervisor did not answer in start_timeout"},
		{"refused",
			facts{Result: "exit-code", Code: "exited", Status: "78", Lines: []string{"/etc/vmctl/vms/a.toml:3: cpus: want at least 1, got 0", "more"}},
			hypervisor.NotStarted, "/etc/vmctl/vms/a.toml:3: cpus: want at least 1, got 0"},
		{"prepare failed",
			facts{Result: "exit-code", Lines: []string{"disk.root: make /x: no space left on device"}},
			hypervisor.NotStarted, "disk.root: make /x: no space left on device"},
		{"prepare failed after a run that was killed",
			facts{Result: "exit-code", Code: "killed", Status: "KILL", Unprepared: true},
			hypervisor.NotStarted, "see its log"},
		{"prepare took too long",
			facts{Result: "timeout"},
			hypervisor.NotStarted, "preparing it took longer than start_timeout"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.facts.Now = time.Unix(1, 0)
			e := decide(test.facts)
			if e.Reason != test.reason || e.Detail != test.detail {
				t.Errorf("got %q, %q; want %q, %q", e.Reason, e.Detail, test.reason, test.detail)
			}
			if e.Result != test.facts.Result || e.Code != test.facts.Code || e.Status != test.facts.Status || !e.Time.Equal(test.facts.Now) {
				t.Errorf("the facts are not all in it: %+v", e)
			}
		})
	}
}

func TestIsLocked(t *testing.T) {
	for line, want := range map[string]bool{
		`qemu-system-x86_64: -blockdev {}: Failed to get "write" lock`:     true,
		`qemu-system-x86_64: -blockdev {}: Failed to lock byte 100`:        true,
		`  3: Failed to get Write lock for disk image: /x: already locked`: true,
		`qemu-system-x86_64: -x: invalid option`:                           false,
	} {
		if got := isLocked([]string{"something", line}); got != want {
			t.Errorf("%s: got %v", line, got)
		}
	}
}

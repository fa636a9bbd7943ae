package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
)

// facts are what is known when a machine has ended.
type facts struct {
	Now    time.Time
	Result string // $SERVICE_RESULT, $EXIT_CODE and $EXIT_STATUS: systemd.exec(5)
	Code   string
	Status string
	// Unprepared says that this run of the unit did not come as far as the
	// hypervisor: Code and Status may then be of the run before.
	Unprepared bool
	Stop       *stopNote // nil if no stop was asked for
	Events     []hypervisor.Event
	Lines      []string // the hypervisor's own last lines
	// OutOfMemory says that the kernel has killed a process of the unit for that.
	OutOfMemory bool
	// Saved says that there is a saved state of this run. Loading says that the
	// run was to go on from one, which is still there; Note is what was noted
	// of that.
	Saved   bool
	Loading bool
	Note    string
	// Holders says, for disks that another process has locked, which.
	Holders []string
}

// decide says why a machine ended.
func decide(f facts) hypervisor.Exit {
	e := hypervisor.Exit{Time: f.Now, Result: f.Result, Code: f.Code, Status: f.Status, Lines: f.Lines}
	e.Reason, e.Detail = f.reason()
	return e
}

func (f facts) reason() (hypervisor.Reason, string) {
	last := func(kind hypervisor.EventKind) (hypervisor.Event, bool) {
		for _, e := range slices.Backward(f.Events) {
			if e.Kind == kind {
				return e, true
			}
		}
		return hypervisor.Event{}, false
	}
	_, started := last(hypervisor.Started)
	panicked, hasPanicked := last(hypervisor.Panicked)
	watchdog, hasWatchdog := last(hypervisor.Watchdog)
	shutDown, hasShutDown := last(hypervisor.ShutDown)

	switch {
	case f.refused() && !started:
		return hypervisor.NotStarted, f.notStarted()
	case f.Saved:
		return hypervisor.Saved, ""
	case f.loadError() != "":
		return hypervisor.HypervisorError, "the saved state was not loaded: " + f.loadError()
	case f.Loading && f.Stop != nil:
		return hypervisor.StopRequested, "while the saved state was loaded, which is still there"
	// vmctl kill looks to the stop as if the guest had ended, or cuts it short.
	case f.Stop != nil && f.Code == "killed" && (f.Stop.Ended == endedByGuest || f.Stop.Ended == "" && f.Result != "timeout"):
		return hypervisor.Killed, "by SIG" + f.Status
	case f.Stop != nil && f.Stop.Ended == endedByGuest:
		return hypervisor.StopRequested, fmt.Sprintf("the guest shut down in %v (%s)", f.Stop.Took.Round(time.Millisecond), cmp.Or(f.Stop.Asked, "by itself"))
	case f.Stop != nil && f.Stop.Cut != "":
		return hypervisor.StopRequested, f.Stop.Cut + ", and the guest was not asked"
	case f.Stop != nil && !hasPanicked:
		return hypervisor.StopTimedOut, cmp.Or(f.Stop.Why, "the stop was cut short") + "; ended by " + cmp.Or(string(f.Stop.Ended), "systemd")
	case hasPanicked, hasShutDown && shutDown.Cause == "panic":
		return hypervisor.GuestPanic, cmp.Or(panicked.Detail, "the guest's kernel panicked")
	case f.Result == "oom-kill", f.OutOfMemory && f.Code == "killed" && f.Status == "KILL":
		return hypervisor.Killed, "out of memory: a limit of the unit or of the host was reached"
	case f.Result == "timeout" && !started:
		return hypervisor.HypervisorError, "the hypervisor did not answer in start_timeout"
	case f.Code == "dumped", f.Code == "killed" && crash(f.Status):
		return hypervisor.HypervisorError, "the hypervisor crashed by SIG" + f.Status
	case f.Code == "killed":
		return hypervisor.Killed, "by SIG" + f.Status
	// systemd ends the monitor together with a hypervisor that fails, maybe
	// before it could write down the panic; but nothing else makes a hypervisor
	// fail without a word.
	case started && f.Status == "1" && len(f.Lines) == 0 && !hasShutDown:
		return hypervisor.GuestPanic, "as the hypervisor's exit status says"
	case f.Status != "0":
		return hypervisor.HypervisorError, f.failed()
	case hasWatchdog:
		return hypervisor.GuestHung, cmp.Or(watchdog.Detail, "the guest did not feed its watchdog")
	case hasShutDown && shutDown.Cause == "signal" && !started:
		return hypervisor.StopRequested, "before it was up"
	case hasShutDown && shutDown.Cause == "signal":
		return hypervisor.Killed, cmp.Or(shutDown.Detail, "by a signal that the hypervisor took as a request to end")
	case hasShutDown && shutDown.Cause == "host":
		return hypervisor.StopRequested, "the hypervisor was told to quit"
	case hasShutDown && shutDown.Cause == "error":
		return hypervisor.HypervisorError, cmp.Or(shutDown.Detail, f.failed())
	default:
		return hypervisor.GuestPowerOff, shutDown.Detail
	}
}

// refused says whether this run did not come as far as the hypervisor, unless
// that was up.
func (f facts) refused() bool {
	return f.Code == "" || f.Unprepared || f.Code == "exited" && f.Status == fmt.Sprint(exitConfig)
}

// loadError is what was wrong with the saved state, or with this hypervisor and
// it; "" where nothing of the kind is known.
func (f facts) loadError() string {
	switch {
	case !f.Loading, f.Stop != nil, f.refused():
		return ""
	case f.Note != "" && f.Note != loadWhole:
		return f.Note
	case f.Code == "exited" && f.Status != "0":
		return f.failed()
	}
	return ""
}

// notStarted is what went wrong before the hypervisor.
func (f facts) notStarted() string {
	switch {
	case len(f.Lines) > 0:
		return f.Lines[0]
	case f.Result == "timeout":
		return "preparing it took longer than start_timeout"
	case f.Result == "signal":
		return "preparing it was ended, as by a stop"
	default:
		return "see its log"
	}
}

// failed is what a hypervisor said that exited with an error.
func (f facts) failed() string {
	switch {
	case len(f.Holders) > 0:
		return strings.Join(f.Holders, "; ")
	case len(f.Lines) > 0:
		return f.Lines[len(f.Lines)-1]
	default:
		return "exit status " + f.Status
	}
}

// crash says whether a signal is one that a process causes by its own fault.
func crash(signal string) bool {
	return slices.Contains([]string{"SEGV", "ABRT", "BUS", "ILL", "FPE", "TRAP", "SYS"}, signal)
}

// isLocked says whether the hypervisor's last lines say that it could not lock
// a disk: in QEMU's words where another QEMU has it, those where cloud-hypervisor
// has, which locks more than single bytes, and cloud-hypervisor's.
func isLocked(lines []string) bool {
	return slices.ContainsFunc(lines, func(l string) bool {
		return strings.Contains(l, "Failed to get") && strings.Contains(l, "lock") || strings.Contains(l, "Failed to lock byte")
	})
}

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// firmwareOnly is a machine that starts at once, since it has nothing to boot:
// its hypervisor runs, and no guest hears the power button.
const firmwareOnly = `
memory = "64M"
`

// Each command does what its name says in each state where it can, and refuses
// it in the others.
func TestCommandsInEachState(t *testing.T) {
	t.Parallel()
	v := newVM(t, "life", "")
	refused := func(state, command, reason string) {
		t.Helper()
		if got := v.state(); got != state {
			t.Errorf("state %s, want %s", got, state)
		}
		text := fail(t, 4, "vmctl", command, v.name)
		if want := "vmctl: " + command + " life: invalid transition from " + state + ": " + reason; !strings.HasPrefix(text, want) {
			t.Errorf("%s: got %s, want %s", command, text, want)
		}
	}
	says := func(want string, argv ...string) {
		t.Helper()
		if got := run(t, argv...); got != want {
			t.Errorf("%s: got %q, want %q", strings.Join(argv, " "), got, want)
		}
	}

	refused("stopped", "stop", "VM is already stopped")
	refused("stopped", "pause", "cannot pause a stopped VM")
	refused("stopped", "resume", "cannot resume a stopped VM, start it")
	says("life: did not run", "vmctl", "kill", "life")
	says("life: does not run", "vmctl", "reset", "life")

	// systemd has not heard of the definition; vmctl sees to it.
	says("life: started", "vmctl", "start", "life")
	pid := v.mainPID()
	v.expectReady()
	refused("running", "start", "VM is already running")
	refused("running", "resume", "VM is already running")
	text := fail(t, 4, "vmctl", "delete", "--yes", "life")
	contains(t, text, "invalid transition from running: cannot delete a running VM", "vmctl delete --force life")

	says("life: paused", "vmctl", "pause", "life")
	refused("paused", "pause", "VM is already paused")
	if got := v.property("ActiveState"); got != "active" {
		t.Errorf("unit of a paused machine is %s, want active", got)
	}
	v.typeLine("cat /proc/uptime")
	before := v.shown()
	says("life: paused", "vmctl", "wait", "--for", "paused", "life")
	if v.shown() != before {
		t.Error("a paused guest wrote to its console")
	}
	says("life: resumed", "vmctl", "resume", "life")
	v.expect(`\d+\.\d+ \d+\.\d+`)
	says("life: paused", "vmctl", "pause", "life")
	says("life: resumed", "vmctl", "start", "life")
	refused("running", "start", "VM is already running")

	says("life: reset", "vmctl", "reset", "life")
	v.expectReady()
	if got := v.mainPID(); got != pid {
		t.Errorf("process %d after pause, resume and reset, was %d", got, pid)
	}

	says("life: restarted", "vmctl", "restart", "life")
	if got := v.mainPID(); got == pid || got == 0 {
		t.Errorf("process %d after restart, was %d", got, pid)
	}
	v.expect("power button pressed")
	v.expectReady()

	says("life: paused", "vmctl", "pause", "life")
	text = run(t, "vmctl", "stop", "life")
	contains(t, text, "life: stopped (stop requested: the guest shut down in ", "(power button)")
	v.expect("power button pressed")
	v.expect("powering off")
	v.ended("inactive", "success", "stop requested")
	refused("stopped", "stop", "VM is already stopped")
}

// What is not there, or cannot be waited for, has an exit status of its own.
func TestExitStatus(t *testing.T) {
	t.Parallel()
	v := newVMFrom(t, "status", firmwareOnly)
	contains(t, fail(t, 3, "vmctl", "start", "statux"), "no VM is named statux", `did you mean "status"?`)
	fail(t, 2, "vmctl", "start")
	fail(t, 2, "vmctl", "start", "--all", "status")
	fail(t, 2, "vmctl", "start", "../status")
	fail(t, 5, "vmctl", "wait", "--timeout", "10ms", "status")

	v.define("memory = \"64M\"\ncpus = 0\n")
	text := fail(t, 6, "vmctl", "start", "status")
	contains(t, text, v.file()+":2: cpus: ")
	v.define(firmwareOnly)

	// Nobody else's to start, and no polkit rule says otherwise.
	text = fail(t, 7, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "vmctl", "start", "status")
	contains(t, text, "vmctl: start status: ", "run it as root")

	if got := run(t, "vmctl", "start", "--no-wait", "status"); got != "status: is starting" {
		t.Errorf("start --no-wait: %s", got)
	}
	run(t, "vmctl", "wait", "--for", "running", "status")
	fail(t, 5, "vmctl", "wait", "--for", "stopped", "--timeout", "10ms", "status")
	fail(t, 5, "vmctl", "stop", "--timeout", "10ms", "status")
	if got := run(t, "vmctl", "kill", "status"); got != "status: killed" {
		t.Errorf("kill: %s", got)
	}
	v.ended("inactive", "success", "killed")
}

// Several names at once: one line each, and the exit status of the worst.
func TestSeveralAtOnce(t *testing.T) {
	t.Parallel()
	a, b, c := newVMFrom(t, "several-a", firmwareOnly), newVMFrom(t, "several-b", firmwareOnly), newVMFrom(t, "several-c", firmwareOnly)
	lines := strings.Split(run(t, "vmctl", "start", a.name, b.name), "\n")
	if len(lines) != 2 {
		t.Errorf("want a line for each, got %q", lines)
	}
	contains(t, strings.Join(lines, "\n"), "several-a: started", "several-b: started")

	r := try("vmctl", "start", a.name, "several-none", c.name)
	if r.code != 4 {
		t.Errorf("exit status %d, want 4, the worst", r.code)
	}
	contains(t, r.stdout, "several-c: started")
	contains(t, r.stderr, "start several-a: invalid transition from running", "no VM is named several-none")

	type result struct {
		Name, Result string
		Error        *struct{ Message string }
	}
	r = try("vmctl", "-o", "json", "kill", a.name, b.name, c.name, "several-none")
	if r.code != 3 {
		t.Errorf("exit status %d, want 3", r.code)
	}
	results := decode[[]result](t, r.stdout)
	if len(results) != 4 || results[0].Result != "killed" || results[0].Error != nil || results[3].Error == nil {
		t.Errorf("JSON of kill: %s", r.stdout)
	}
	for _, v := range []*vm{a, b, c} {
		if got := v.state(); got != "stopped" {
			t.Errorf("%s is %s, want stopped", v.name, got)
		}
	}
}

// What ends a hypervisor that nobody asked to: it runs again, but not where it
// was the guest's wish.
func TestEndsAndRestarts(t *testing.T) {
	t.Parallel()
	v := newVM(t, "crash", `lifecycle.restart_delay = "500ms"`)
	v.boot()
	pid := v.mainPID()

	// A crash.
	v.kill(syscall.SIGKILL)
	v.expectReady()
	next := v.mainPID()
	if next == pid || next == 0 {
		t.Errorf("process %d after kill -9, was %d", next, pid)
	}
	if got := v.property("NRestarts"); got != "1" {
		t.Errorf("%s restarts, want 1", got)
	}
	if got := v.exitReason(); got != "killed" {
		t.Errorf("reason %q, want killed", got)
	}
	pid = next

	// A reboot of the guest is none of systemd's business.
	v.typeLine("reboot")
	v.expect("vmctl-guest: rebooting")
	v.expectReady()
	if got := v.mainPID(); got != pid {
		t.Errorf("process %d after the guest's reboot, was %d", got, pid)
	}
	contains(t, v.property("StatusText"), "guest rebooted")
	contains(t, run(t, "vmctl", "console", "--log", v.name), "vmctl-guest: rebooting")

	// A panic of its kernel is.
	v.typeLine("panic")
	v.expect("Kernel panic")
	v.expectReady()
	next = v.mainPID()
	if next == pid || next == 0 {
		t.Errorf("process %d after the guest's panic, was %d", next, pid)
	}
	if got := v.exitReason(); got != "guest panic" {
		t.Errorf("reason %q, want guest panic", got)
	}

	// A power-off is the end.
	v.typeLine("poweroff")
	v.waitState("inactive")
	v.ended("inactive", "success", "guest power-off")
}

// A stop is a stop, whatever "restart" says.
func TestStopIsNotFollowedByRestart(t *testing.T) {
	t.Parallel()
	v := newVM(t, "always", `
lifecycle.restart = "always"
lifecycle.restart_delay = "100ms"
lifecycle.stop_timeout = "30s"
`)
	v.boot()
	// "always" is for a guest that powers off, too.
	pid := v.mainPID()
	v.typeLine("poweroff")
	v.expectReady()
	if got := v.mainPID(); got == pid {
		t.Errorf("still process %d after the guest's power-off", got)
	}
	run(t, "vmctl", "stop", v.name)
	v.ended("inactive", "success", "stop requested")

	run(t, "systemctl", "start", v.unit())
	run(t, "vmctl", "kill", v.name)
	v.ended("inactive", "success", "killed")

	run(t, "systemctl", "start", v.unit())
	v.expectReady()
	run(t, "systemctl", "stop", v.unit())
	v.ended("inactive", "success", "stop requested")
}

// After five crashes in a row systemd leaves it alone, until somebody asks. Not
// beside other tests: systemd 252 forgets at a reload how often it has started
// a unit.
func TestStartLimit(t *testing.T) {
	v := newVMFrom(t, "limit", firmwareOnly+"lifecycle.restart_delay = \"0s\"\n")
	v.start()
	for range 5 {
		pid := v.mainPID()
		v.kill(syscall.SIGKILL)
		eventually(t, "it has started again or failed", func() bool {
			state, next := v.property("ActiveState"), v.mainPID()
			return state == "failed" || state == "active" && next != pid && next != 0
		})
	}
	v.waitState("failed")
	contains(t, v.journal(), "Start request repeated too quickly")
	if got := v.state(); got != "failed" {
		t.Errorf("state %s, want failed", got)
	}
	if got := v.exitReason(); got != "killed" {
		t.Errorf("reason %q, want killed", got)
	}
	contains(t, run(t, "vmctl", "show", v.name), "killed: by SIGKILL")
	contains(t, fail(t, 1, "vmctl", "wait", v.name), "it has failed: killed: by SIGKILL", "journalctl -u vm@limit")
	contains(t, fail(t, 4, "vmctl", "pause", v.name), "invalid transition from failed: cannot pause a failed VM, start it first")
	contains(t, fail(t, 4, "vmctl", "stop", v.name), "invalid transition from failed: ")

	if got := run(t, "vmctl", "start", v.name); got != "limit: started" {
		t.Errorf("start: %s", got)
	}
	if got := v.state(); got != "running" {
		t.Errorf("state %s, want running", got)
	}
}

// on_panic says what a panic of the guest's kernel leads to.
func TestOnPanic(t *testing.T) {
	t.Run("poweroff", func(t *testing.T) {
		t.Parallel()
		v := newVM(t, "panic-poweroff", `lifecycle.on_panic = "poweroff"`)
		v.boot()
		v.typeLine("panic")
		v.waitState("inactive", "failed")
		v.ended("inactive", "success", "guest panic")
	})
	t.Run("pause", func(t *testing.T) {
		t.Parallel()
		v := newVM(t, "panic-pause", `lifecycle.on_panic = "pause"`)
		v.boot()
		pid := v.mainPID()
		v.typeLine("panic")
		run(t, "vmctl", "wait", "--for", "paused", v.name)
		contains(t, v.property("StatusText"), "panicked")
		// The reset button helps.
		run(t, "vmctl", "reset", v.name)
		v.expectReady()
		if got := v.state(); got != "running" {
			t.Errorf("state %s after a reset, want running", got)
		}
		v.typeLine("panic")
		run(t, "vmctl", "wait", "--for", "paused", v.name)
		if got := v.mainPID(); got != pid {
			t.Errorf("process %d, was %d", got, pid)
		}
		// A guest that has panicked is not waited for.
		run(t, "vmctl", "stop", v.name)
		v.ended("inactive", "success", "guest panic")
	})
	t.Run("ignore", func(t *testing.T) {
		t.Parallel()
		v := newVMFrom(t, "panic-ignore", littleGuest("cloud", "panic=1")+`lifecycle.on_panic = "ignore"`)
		v.boot()
		pid := v.mainPID()
		// The guest's own business: its kernel reboots it.
		v.typeLine("panic")
		v.expect("Kernel panic")
		v.expectReady()
		if got := v.mainPID(); got != pid {
			t.Errorf("process %d, was %d", got, pid)
		}
		run(t, "vmctl", "stop", v.name)
		v.ended("inactive", "success", "stop requested")
	})
}

// A hypervisor that refuses its command line says why where people look.
func TestHypervisorDoesNotStart(t *testing.T) {
	t.Parallel()
	v := newVMFrom(t, "refuses", firmwareOnly+`
lifecycle.restart = "no"
hypervisor_options.extra_args = ["-device", "no-such-device"]
`)
	text := fail(t, 1, "vmctl", "start", v.name)
	contains(t, text, "vmctl: start refuses: hypervisor error: ", "'no-such-device' is not a valid device model name", "journalctl -u vm@refuses has more")
	v.ended("failed", "exit-code", "hypervisor error")
	exit := v.show()["exit"].(map[string]any)
	contains(t, fmt.Sprint(exit["lines"]), "'no-such-device' is not a valid device model name")
	contains(t, v.journal(), "'no-such-device' is not a valid device model name")
	contains(t, run(t, "vmctl", "list"), "hypervisor error")
	fail(t, 1, "systemctl", "start", v.unit())

	v.define(firmwareOnly)
	run(t, "vmctl", "start", v.name)
	if got := v.state(); got != "running" {
		t.Errorf("state %s, want running", got)
	}
}

// Somebody sends the hypervisor the signal that ends a process in order: it is
// no failure, but not what the guest wanted either.
func TestHypervisorIsTerminated(t *testing.T) {
	t.Parallel()
	v := newVMFrom(t, "terminated", firmwareOnly)
	v.start()
	v.kill(syscall.SIGTERM)
	v.waitState("inactive", "failed")
	v.ended("inactive", "success", "killed")
}

// A guest that does not answer the power button is ended in the time that it
// has; meanwhile, what is possible is what is possible while it stops.
func TestGuestIgnoresPowerButton(t *testing.T) {
	t.Parallel()
	v := newVM(t, "deaf", `lifecycle.stop_timeout = "12s"`)
	v.boot()
	v.typeLine("ignore-power")
	v.expect("ignoring the power button")

	contains(t, fail(t, 5, "vmctl", "stop", "--timeout", "1s", v.name), "timed out, not yet stopped", "vmctl wait --for stopped deaf waits on")
	v.expect("power button pressed, and ignored")
	if got := v.state(); got != "stopping" {
		t.Errorf("state %s, want stopping", got)
	}
	for command, reason := range map[string]string{
		"start":   "cannot start VM while it is stopping",
		"stop":    "VM is already stopping",
		"restart": "cannot restart VM while it is stopping",
		"pause":   "cannot pause VM while it is stopping",
	} {
		contains(t, fail(t, 4, "vmctl", command, v.name), "invalid transition from stopping: "+reason)
	}
	run(t, "vmctl", "wait", "--for", "stopped", v.name)
	v.ended("inactive", "success", "stop timed out")
	contains(t, run(t, "vmctl", "show", v.name), "the guest has not shut down in")
}

// systemd's own start, given while the machine stops, comes after the stop. Not
// in parallel: systemd tries the waiting job again, and counts it as a start, at
// each daemon-reload of other tests.
func TestStartDuringStop(t *testing.T) {
	v := newVMFrom(t, "again", firmwareOnly+"lifecycle.stop_timeout = \"4s\"\n")
	v.start()
	pid := v.mainPID()
	if got := run(t, "vmctl", "stop", "--no-wait", v.name); got != "again: is stopping" {
		t.Errorf("stop --no-wait: %s", got)
	}
	v.waitState("deactivating")
	run(t, "systemctl", "start", v.unit())
	if got := v.property("ActiveState"); got != "active" {
		t.Errorf("unit is %s after a start, want active", got)
	}
	if got := v.mainPID(); got == pid || got == 0 {
		t.Errorf("process %d, was %d", got, pid)
	}
	if got := v.exitReason(); got != "stop timed out" {
		t.Errorf("reason %q, want stop timed out", got)
	}
}

// A stop, given while the machine starts, ends it, however far it has come.
func TestStopDuringStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, definition, dropIn, sub string
		there                         func(*vm) bool
	}{
		// With -S the hypervisor is up, but the guest's CPUs do not run.
		{"early", firmwareOnly + `hypervisor_options.extra_args = ["-S"]`, "", "start", func(v *vm) bool { return v.mainPID() != 0 }},
		// Not sooner: systemd goes on to the next ExecStartPre= where one ends
		// well just as it is told to stop.
		{"earlier", firmwareOnly, "[Service]\nExecStartPre=/usr/bin/sleep infinity\n", "start-pre", func(v *vm) bool {
			command, _ := os.ReadFile("/proc/" + v.property("ControlPID") + "/comm")
			return string(command) == "sleep\n"
		}},
	} {
		t.Run(c.sub, func(t *testing.T) {
			v := newVMFrom(t, c.name, c.definition)
			if c.dropIn != "" {
				dir := "/run/systemd/system/" + v.unit() + ".d"
				writeFile(t, dir+"/slow.conf", c.dropIn)
				t.Cleanup(func() { os.RemoveAll(dir) })
			}
			for _, stop := range [][]string{{"vmctl", "stop", v.name}, {"systemctl", "stop", v.unit()}, {"vmctl", "kill", v.name}} {
				run(t, "vmctl", "start", "--no-wait", v.name)
				eventually(t, "it starts", func() bool { return v.property("SubState") == c.sub && c.there(v) })
				if got := v.state(); got != "starting" {
					t.Errorf("state %s, want starting", got)
				}
				contains(t, fail(t, 4, "vmctl", "start", v.name), "invalid transition from starting: VM is already starting")
				contains(t, fail(t, 4, "vmctl", "pause", v.name), "invalid transition from starting: ")
				run(t, stop...)
				if pid, state := v.mainPID(), v.property("ActiveState"); pid != 0 || state != "inactive" && state != "failed" {
					t.Errorf("after %q the unit is %s, with process %d", stop, state, pid)
				}
				// systemd takes a command for failed that it has ended itself.
				if stop[0] == "systemctl" {
					continue
				}
				if state := v.state(); state != "stopped" {
					t.Errorf("after %q it is %s, want stopped", stop, state)
				}
				if job := v.property("Job"); job != "" && job != "0" {
					t.Errorf("after %q job %s is left", stop, job)
				}
			}
		})
	}
}

// However many start it at once, there is one.
func TestTwoStartsAtOnce(t *testing.T) {
	t.Parallel()
	v := newVMFrom(t, "once", firmwareOnly)
	run(t, "systemctl", "daemon-reload")
	results := make(chan result)
	commands := [][]string{{"vmctl", "start", v.name}, {"systemctl", "start", v.unit()}, {"vmctl", "start", v.name}, {"systemctl", "start", v.unit()}}
	for _, argv := range commands {
		go func() { results <- try(argv...) }()
	}
	started := 0
	for range commands {
		switch r := <-results; {
		case r.code == 0:
			started++
		// vmctl says so where it comes second.
		case r.code == 4 && strings.Contains(r.stderr, "VM is already "):
		default:
			t.Errorf("exit status %d: %s", r.code, r.all())
		}
	}
	// systemctl's two join the one start that there is.
	if started < 2 {
		t.Errorf("%d of %d starts succeeded", started, len(commands))
	}
	if got := v.property("ActiveState"); got != "active" {
		t.Errorf("unit is %s, want active", got)
	}
	if pids := strings.Fields(run(t, "pgrep", "-f", "^/usr/bin/qemu-system-x86_64 -name guest=once ")); len(pids) != 1 {
		t.Errorf("processes %v, want one", pids)
	}
	if got := v.property("NRestarts"); got != "0" {
		t.Errorf("%s restarts, want none", got)
	}
}

// Enable and disable are systemctl's; delete leaves nothing, and asks first.
func TestEnableAndDelete(t *testing.T) {
	v := newVMFrom(t, "kept", firmwareOnly+"[disk.root]\nsize = \"1M\"\n")
	link := "/etc/systemd/system/vms.target.wants/" + v.unit()
	run(t, "vmctl", "enable", v.name)
	if got := run(t, "systemctl", "is-enabled", v.unit()); got != "enabled" {
		t.Errorf("unit is %s, want enabled", got)
	}
	if _, err := os.Lstat(link); err != nil {
		t.Error(err)
	}
	run(t, "vmctl", "disable", v.name)
	if _, err := os.Lstat(link); err == nil {
		t.Errorf("%s is left", link)
	}
	if got := run(t, "vmctl", "enable", "--now", v.name); got != "kept: enabled, started" {
		t.Errorf("enable --now: %s", got)
	}

	text := fail(t, 2, "vmctl", "delete", "--force", v.name)
	contains(t, text, "--yes")
	if got := v.state(); got != "running" {
		t.Errorf("state %s, want running: nobody has said yes", got)
	}
	run(t, "vmctl", "kill", v.name)
	run(t, "vmctl", "delete", "--yes", v.name)
	for _, path := range []string{v.file(), v.stateDir(), link} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	fail(t, 3, "vmctl", "show", v.name)
	if got := v.property("LoadState"); got != "loaded" {
		t.Errorf("unit is %s, want the template's, which refuses", got)
	}
}

// What a definition leaves behind that was removed by hand is shown, and can be
// taken back and removed. Not parallel: other tests reload systemd.
func TestLeftovers(t *testing.T) {
	v := newVMFrom(t, "lost", "[disk.root]\nsize = \"1M\"\n[boot]\nkernel = \"/nowhere\"\n")
	run(t, "vmctl", "enable", v.name)
	fail(t, 1, "vmctl", "start", v.name)
	run(t, "systemctl", "stop", v.unit()) // it is tried again until then
	writeFile(t, v.stateDir()+"/disk-root.qcow2", "")
	if err := os.Remove(v.file()); err != nil {
		t.Fatal(err)
	}
	contains(t, try("vmctl", "reload").stderr, "lost is still enabled, but has no definition")
	contains(t, run(t, "vmctl", "list"), "no definition")
	if got := v.show()["error"]; got != "no definition" {
		t.Errorf("error %q", got)
	}
	contains(t, run(t, "vmctl", "show", v.name), "vmctl delete lost")
	contains(t, try("vmctl", "doctor").stdout, "state without definition: ")
	fail(t, 3, "vmctl", "start", v.name)
	fail(t, 4, "vmctl", "stop", v.name)
	run(t, "systemctl", "reset-failed", v.unit())
	fail(t, 1, "systemctl", "start", v.unit()) // refused
	if got := v.state(); got != "failed" {
		t.Errorf("state %s, want failed", got)
	}
	if got := run(t, "vmctl", "reset", v.name); got != "lost: cleared" {
		t.Errorf("reset: %s", got)
	}
	run(t, "vmctl", "disable", v.name)
	fail(t, 1, "systemctl", "start", v.unit())
	run(t, "systemctl", "enable", v.unit())
	text := run(t, "vmctl", "delete", "--yes", v.name)
	contains(t, text, "lost: removed "+v.stateDir(), "lost: removed /etc/systemd/system/vms.target.wants/"+v.unit(), "lost: cleared the mark of its failure")
	fail(t, 3, "vmctl", "show", v.name)
	fail(t, 3, "vmctl", "delete", "--yes", v.name)
}

// A masked unit is shown, and refused with what lifts it.
func TestMasked(t *testing.T) {
	v := newVMFrom(t, "hidden", firmwareOnly)
	run(t, "systemctl", "mask", v.unit())
	defer try("systemctl", "unmask", v.unit())
	contains(t, run(t, "vmctl", "list"), "its unit is masked")
	for _, command := range []string{"start", "restart", "enable"} {
		contains(t, fail(t, 4, "vmctl", command, v.name), "its unit is masked", "systemctl unmask vm@hidden")
	}
}

// A changed definition is told, and takes effect at the next start; vmctl
// reload has systemd read all of them.
func TestReload(t *testing.T) {
	v := newVMFrom(t, "changes", "description = \"before\"\n"+firmwareOnly)
	run(t, "vmctl", "reload")
	run(t, "systemctl", "start", v.unit())
	pid := v.mainPID()
	if got := v.property("Description"); got != "before" {
		t.Errorf("description %s", got)
	}

	v.define("description = \"after\"\n" + firmwareOnly)
	if got := v.show()["pending_changes"]; got != true {
		t.Errorf("pending changes: %v, want true", got)
	}
	run(t, "vmctl", "reload")
	if got := v.property("Description"); got != "after" {
		t.Errorf("description %s", got)
	}
	if got := v.mainPID(); got != pid {
		t.Errorf("process %d after a reload, was %d", got, pid)
	}
	run(t, "vmctl", "kill", v.name)
	run(t, "vmctl", "start", v.name)
	if got := v.show()["pending_changes"]; got != false {
		t.Errorf("pending changes: %v, want false", got)
	}

	v.define("cpus = \"many\"\n")
	contains(t, fail(t, 6, "vmctl", "reload"), v.file()+":1: cpus: ")
	v.define(firmwareOnly)
}

// The machine is known to machined as long as it runs, and what machinectl can
// ask of a machine does what it says.
func TestMachined(t *testing.T) {
	t.Parallel()
	v := newVM(t, "registered", `lifecycle.restart_delay = "100ms"`)
	known := func(property string) string {
		return strings.TrimSpace(try("machinectl", "show", "--value", "--property="+property, v.name).stdout)
	}
	v.boot()
	eventually(t, "machined knows it", func() bool { return known("Unit") == v.unit() })
	if class := known("Class"); class != "vm" {
		t.Errorf("class %s, want vm", class)
	}
	// Columns are as wide as the longest name of any machine.
	list := strings.Join(strings.Fields(run(t, "machinectl", "list", "--no-legend")), " ")
	contains(t, list, v.name+" vm ")
	contains(t, run(t, "machinectl", "status", v.name), v.unit(), "vmctl-unit monitor")

	// Started again after a crash, it has another leader.
	pid, leader := v.mainPID(), known("Leader")
	v.kill(syscall.SIGKILL)
	eventually(t, "machined knows the next one", func() bool {
		return v.mainPID() != pid && known("Leader") != leader && known("Unit") == v.unit()
	})
	v.expectReady()

	run(t, "machinectl", "poweroff", v.name)
	v.expect("power button pressed")
	v.waitState("inactive", "failed")
	v.ended("inactive", "success", "guest power-off")
	eventually(t, "machined knows it no more", func() bool { return known("Unit") == "" })

	v.start()
	v.expectReady()
	eventually(t, "machined knows it", func() bool { return known("Unit") == v.unit() })
	run(t, "machinectl", "terminate", v.name)
	// To systemd that is a stop.
	v.waitState("inactive", "failed")
	v.ended("inactive", "success", "stop requested")
	eventually(t, "machined knows it no more", func() bool { return known("Unit") == "" })
}

// state is the machine's state, as vmctl says it.
func (v *vm) state() string {
	v.t.Helper()
	state, _ := v.show()["state"].(string)
	return state
}

// kill sends the hypervisor a signal.
func (v *vm) kill(signal syscall.Signal) {
	v.t.Helper()
	if err := syscall.Kill(v.mainPID(), signal); err != nil {
		v.t.Fatal(err)
	}
}

// ended checks that the machine has ended, and how: the unit's state and
// result, and the reason that vmctl show tells.
func (v *vm) ended(active, result, reason string) {
	v.t.Helper()
	if got := v.property("ActiveState"); got != active {
		v.t.Errorf("unit is %s, want %s", got, active)
	}
	if got := v.property("Result"); got != result {
		v.t.Errorf("result %s, want %s", got, result)
	}
	if got := v.exitReason(); got != reason {
		v.t.Errorf("reason %q, want %q", got, reason)
	}
	if got := v.mainPID(); got != 0 {
		v.t.Errorf("process %d is left", got)
	}
	if _, err := os.Stat(v.runtimeDir()); err == nil {
		v.t.Errorf("%s is left", v.runtimeDir())
	}
}

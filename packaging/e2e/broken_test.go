//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// monitorPID is the process id of the machine's monitor.
func (v *vm) monitorPID() int {
	v.t.Helper()
	text := run(v.t, "cat", config.SystemPaths("").MonitorPID(v.name))
	pid, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		v.t.Fatal(err)
	}
	return pid
}

// exitDetail is what more is known of why the machine last ended. It can be
// read when the definition is gone as well.
func (v *vm) exitDetail() string {
	v.t.Helper()
	var exit struct{ Reason, Detail string }
	text := run(v.t, "cat", config.SystemPaths("").Exit(v.name))
	if err := json.Unmarshal([]byte(text), &exit); err != nil {
		v.t.Fatal(err)
	}
	return exit.Reason + ": " + exit.Detail
}

// Whatever happens to files and services around it, a machine runs on, and is
// shut down by its guest when it is stopped. Not parallel: it disturbs all of
// the system.
func TestRunsOnWhateverBreaks(t *testing.T) {
	one := newVM(t, "tough-one", "")
	two := newVM(t, "tough-two", "")
	other := newVMFrom(t, "tough-other", hollow)
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "start", one.unit(), two.unit())
	one.expectReady()
	two.expectReady()
	pids := [2]int{one.mainPID(), two.mainPID()}

	kill := func(pid int) {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(file string) {
		t.Helper()
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"its file is broken", func() { one.define("this is [not TOML") }},
		{"another's file is broken", func() { other.define("cpus = \"many\"") }},
		{"reload", func() { run(t, "systemctl", "daemon-reload") }},
		{"vmctl reload", func() { fail(t, 6, "vmctl", "reload") }},
		{"its file is deleted", func() { remove(two.file()) }},
		{"reload again", func() { run(t, "systemctl", "daemon-reload") }},
		{"systemd executes itself anew", func() { run(t, "systemctl", "daemon-reexec") }},
		{"machined restarts", func() { run(t, "systemctl", "restart", "systemd-machined") }},
		{"D-Bus restarts", func() {
			run(t, "systemctl", "restart", "dbus")
			eventually(t, "the bus answers", func() bool { return try("busctl", "status").code == 0 })
			// They do not come back to a new bus by themselves, and others want them.
			run(t, "systemctl", "restart", "systemd-logind", "systemd-resolved")
		}},
		{"the journal restarts", func() { run(t, "systemctl", "restart", "systemd-journald") }},
		{"its monitor is killed", func() { kill(one.monitorPID()) }},
	} {
		step.do()
		if got := [2]int{one.mainPID(), two.mainPID()}; got != pids {
			t.Fatalf("%s: main processes %v, before %v", step.name, got, pids)
		}
		for _, v := range []*vm{one, two} {
			if got := v.property("ActiveState"); got != "active" {
				t.Fatalf("%s: %s is %s", step.name, v.name, got)
			}
			if got := v.state(); got != "running" {
				t.Errorf("%s: vmctl says that %s is %s", step.name, v.name, got)
			}
		}
	}
	// The guest still hears who types, and is still heard.
	two.typeLine("echo still there")
	two.expect(`still there\n.*still there`)

	run(t, "vmctl", "stop", one.name)
	run(t, "systemctl", "stop", two.unit())
	for _, v := range []*vm{one, two} {
		if got := v.property("Result"); got != "success" {
			t.Errorf("%s: result %s, want success", v.name, got)
		}
		// Without a monitor nobody hears the first guest's last words.
		contains(t, v.exitDetail(), "stop requested: the guest shut down")
	}
	contains(t, two.journal(), "vmctl-guest: power button pressed", "vmctl-guest: powering off")
	if _, err := os.Stat(one.runtimeDir()); err == nil {
		t.Errorf("%s is left", one.runtimeDir())
	}
}

// A broken definition says where it is broken wherever one looks, and harms
// nobody else.
func TestBrokenDefinition(t *testing.T) {
	t.Parallel()
	whole := newVMFrom(t, "whole", hollow)
	v := newVMFrom(t, "broken", hollow+"[disk.root]\npth = \"/disk\"\n")
	run(t, "systemctl", "daemon-reload")
	const problem = `/etc/vmctl/vms/broken.toml:4: disk.root.pth: unknown key, did you mean "path"?`

	fail(t, 1, "systemctl", "start", v.unit())
	contains(t, try("systemctl", "status", v.unit()).stdout, problem)
	contains(t, v.journal(), problem)
	if got := v.property("NRestarts"); got != "0" {
		t.Errorf("started %s times again, which mends nothing", got)
	}
	contains(t, fail(t, 6, "vmctl", "start", v.name), problem)
	r := try("vmctl", "check", v.name)
	if r.code != 6 {
		t.Errorf("vmctl check: exit status %d, want 6", r.code)
	}
	contains(t, r.all(), problem)
	fail(t, 6, "vmctl", "check")
	contains(t, run(t, "vmctl", "list"), problem)
	contains(t, run(t, "vmctl", "show", v.name), problem)
	run(t, "vmctl", "check", whole.name)
	run(t, "systemctl", "start", whole.unit())

	// Mended, it starts, without anybody telling systemd of it.
	v.define(hollow)
	run(t, "vmctl", "start", v.name)
	if got := v.state(); got != "running" {
		t.Errorf("mended and started, it is %s", got)
	}
}

// The generator says what is wrong in the kernel's log, and fails. Not
// parallel: a container has no kernel log of its own, so one is made.
func TestGeneratorLogs(t *testing.T) {
	const kmsg = "/dev/kmsg"
	if err := syscall.Mkfifo(kmsg, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(kmsg)
	// Open for both, so that nobody waits for anybody.
	log, err := os.OpenFile(kmsg, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	newVMFrom(t, "logs", "cpus = 0\n")
	run(t, "systemctl", "daemon-reload")
	text := make([]byte, 1<<16)
	n, err := log.Read(text)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, string(text[:n]), "<3>vmctl-generator[", "/etc/vmctl/vms/logs.toml:1: cpus: want")
	eventually(t, "the journal has the generator's exit status", func() bool {
		return strings.Contains(run(t, "journalctl", "-b", "--no-pager", "-o", "cat"), "vmctl-generator failed with exit status 1")
	})
}

// What systemd was not told of yet is never run by half: it starts what it
// has, or says that it has to be reloaded; vmctl start reloads it. Not parallel:
// other tests reload systemd.
func TestChangedWithoutReload(t *testing.T) {
	v := newVMFrom(t, "changed", hollow+"cpus = 1\n")
	run(t, "systemctl", "daemon-reload")
	v.define(hollow + "cpus = 2\n")
	// It never ran, so nobody knows what systemd's command line was made from.
	fail(t, 1, "systemctl", "start", v.unit())
	contains(t, try("systemctl", "status", v.unit()).stdout, "run systemctl daemon-reload")
	run(t, "vmctl", "start", v.name)
	contains(t, commandLine(t, v.mainPID()), "-smp 2,")

	// It ran, so that what systemd has is known.
	v.define(hollow + "cpus = 3\n")
	if got := v.property("NeedDaemonReload"); got != "yes" {
		t.Errorf("NeedDaemonReload=%s", got)
	}
	run(t, "systemctl", "restart", v.unit())
	contains(t, commandLine(t, v.mainPID()), "-smp 2,")
	contains(t, v.journal(), "starting with what systemd has")
	contains(t, run(t, "cat", config.SystemPaths("").VMJSON(v.name)), `"cpus":2`)
	if pending := v.show()["pending_changes"]; pending != true {
		t.Errorf("pending_changes is %v", pending)
	}
	r := try("vmctl", "diff", "--exit-code", v.name)
	if !regexp.MustCompile(`(?m)^`+v.name+` +cpus +2 +3$`).MatchString(r.stdout) || r.code != 10 {
		t.Errorf("exit status %d: %s", r.code, r.all())
	}
	run(t, "vmctl", "restart", v.name)
	contains(t, run(t, "vmctl", "diff", "--exit-code", v.name), "runs with what is defined")
	contains(t, commandLine(t, v.mainPID()), "-smp 3,")
}

// commandLine is a process' command line.
func commandLine(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "\x00", " ")
}

// A machine whose file broke meanwhile and which then crashes: as long as
// systemd knows the old definition, it runs again; then it says what is broken.
// Not parallel: other tests reload systemd.
func TestCrashWithBrokenDefinition(t *testing.T) {
	v := newVMFrom(t, "crash-broken", hollow+"lifecycle.restart_delay = \"100ms\"\n")
	v.start()
	before := v.mainPID()
	v.define("nonsense")
	crash := func() {
		t.Helper()
		if err := syscall.Kill(v.mainPID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	crash()
	eventually(t, "it runs again", func() bool {
		pid := v.mainPID()
		return pid != 0 && pid != before && v.property("ActiveState") == "active"
	})
	// Which machined knows, too.
	if got, want := run(t, "machinectl", "show", "--value", "--property=Leader", v.name), fmt.Sprint(v.monitorPID()); got != want {
		t.Errorf("machined's leader is process %s, the monitor is %s", got, want)
	}
	run(t, "systemctl", "daemon-reload")
	crash()
	v.waitState("failed")
	contains(t, try("systemctl", "status", v.unit()).stdout, v.file()+":1:")
	contains(t, v.exitDetail(), v.file()+":1:")
}

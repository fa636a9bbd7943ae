//go:build e2e

package e2e

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// rebootMark asks packaging/e2e/run for a second boot of the container, for
// the tests whose names begin with TestAfterReboot.
const rebootMark = "/opt/vmctl-test/reboot"

// A guest that is up when the host goes down, and machines that come up with
// the host. Their names are not in the order that they want.
func TestBeforeReboot(t *testing.T) {
	define := func(name, definition string) *vm {
		v := &vm{t: t, name: name, screen: newScreen(t, name)}
		t.Cleanup(v.screen.close) // and leave it
		v.define(definition)
		return v
	}
	z := define("boot-z", littleGuest("cloud", "")+"autostart = true\n")
	m := define("boot-m", firmwareOnly+"autostart = true\nafter = [\"boot-z\"]\nlifecycle.stop_timeout = \"5s\"\n")
	a := define("boot-a", firmwareOnly+"autostart = true\nafter = [\"boot-m\"]\nlifecycle.stop_timeout = \"5s\"\n")
	define("boot-off", firmwareOnly)
	enabled := define("boot-enabled", firmwareOnly)
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "enable", enabled.unit())
	run(t, "systemctl", "start", a.unit(), m.unit(), z.unit())
	z.expectReady()
	// Of what is thrown away when it ends, one ends with the host, and one is
	// what a host leaves that has crashed: all but what lay in /run.
	importImage(t, "boot-golden", "golden")
	run(t, append([]string{"vmctl", "run", "--rm", "--name", "boot-throw-away", "boot-golden"}, littleFlags()...)...)
	for _, file := range []string{"throw-away", "disk-root.qcow2", "definition.json"} {
		writeFile(t, "/var/lib/vmctl/vms/boot-crashed/"+file, "")
	}
	writeFile(t, rebootMark, "")
}

func TestAfterReboot(t *testing.T) {
	known := func(name string) *vm {
		v := &vm{t: t, name: name, screen: newScreen(t, name)}
		t.Cleanup(v.remove)
		return v
	}
	a, m, z, off, enabled := known("boot-a"), known("boot-m"), known("boot-z"), known("boot-off"), known("boot-enabled")

	// What ran went down with the host in order, and the other way round.
	before := run(t, "journalctl", "-b", "-1", "-u", z.unit(), "-o", "cat", "--no-pager")
	contains(t, before, "vmctl-guest: power button pressed", "vmctl-guest: powering off")
	if got := z.exitReason(); got != "stop requested" {
		t.Errorf("reason %q, want stop requested", got)
	}
	log := run(t, "journalctl", "-b", "-1", "-u", "vm@boot-*", "-o", "cat", "--no-pager")
	ordered(t, log, "Stopped vm@boot-a.service", "Stopping vm@boot-m.service", "Stopped vm@boot-m.service", "Stopping vm@boot-z.service")

	for _, name := range []string{"boot-throw-away", "boot-crashed"} {
		eventually(t, name+" is gone", func() bool { return try("test", "-e", "/var/lib/vmctl/vms/"+name).code != 0 })
	}

	// What starts with the host has started, each after those that it names.
	for _, v := range []*vm{a, m, z, enabled} {
		v.waitState("active")
	}
	for _, pair := range [][2]*vm{{z, m}, {m, a}} {
		first, then := pair[0], pair[1]
		if up, begun := first.microseconds("ActiveEnterTimestampMonotonic"), then.microseconds("InactiveExitTimestampMonotonic"); begun < up {
			t.Errorf("%s began to start at %d µs, before %s was up at %d", then.name, begun, first.name, up)
		}
	}
	if got := off.property("ActiveState"); got != "inactive" {
		t.Errorf("%s is %s, want inactive: nothing starts it", off.name, got)
	}
	if got := run(t, "systemctl", "is-active", "vms.target"); got != "active" {
		t.Errorf("vms.target is %s", got)
	}
	contains(t, run(t, "systemctl", "list-dependencies", "--plain", "vms.target"), a.unit(), m.unit(), z.unit(), enabled.unit())
	z.expectReady()

	// Autostart is the definition's, enable is a link; both are told.
	if got := enabled.show()["autostart"]; got != true {
		t.Errorf("autostart %v of what is enabled, want true", got)
	}
	run(t, "systemctl", "disable", enabled.unit())
	if got := enabled.show()["autostart"]; got != false {
		t.Errorf("autostart %v of what is disabled, want false", got)
	}
}

// microseconds is a time that systemctl show tells of the unit.
func (v *vm) microseconds(name string) int64 {
	v.t.Helper()
	n, err := strconv.ParseInt(v.property(name), 10, 64)
	if err != nil {
		v.t.Fatal(err)
	}
	return n
}

// ordered checks that a text has all of the parts, one after the other.
func ordered(t *testing.T, text string, parts ...string) {
	t.Helper()
	rest := text
	for _, part := range parts {
		_, after, found := strings.Cut(rest, part)
		if !found {
			t.Errorf("no %q, or not in its place, in:\n%s", part, text)
			return
		}
		rest = after
	}
}

// lastSaved is where the guest was that is saved when the host goes down.
const lastSaved = "/opt/vmctl-test/last-saved"

// A guest that is saved when the host goes down, and goes on when it is up.
func TestBeforeRebootSave(t *testing.T) {
	v := &vm{t: t, name: "boot-save", screen: newScreen(t, "boot-save")}
	t.Cleanup(v.screen.close) // and leave it
	v.define(littleGuest("cloud", "") + "autostart = true\nlifecycle.on_host_shutdown = \"save\"\n[disk.data]\nsize = \"8M\"\nformat = \"raw\"\n")
	// Neither a stop nor a restart is the host's.
	v.boot()
	run(t, "systemctl", "restart", v.unit())
	if got := v.state(); got != "running" {
		t.Errorf("state %s", got)
	}
	v.expect("power button pressed")
	v.expectReady()
	v.count()
	writeFile(t, lastSaved, strconv.Itoa(v.lastTick()))
	writeFile(t, rebootMark, "")
}

func TestAfterRebootSave(t *testing.T) {
	v := &vm{t: t, name: "boot-save", screen: newScreen(t, "boot-save")}
	t.Cleanup(v.remove)
	before, err := os.ReadFile(lastSaved)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, run(t, "journalctl", "-b", "-1", "-u", v.unit(), "-o", "cat", "--no-pager"), "of memory in", "ended: saved")
	v.waitState("active")
	v.ticks(atoi2(string(before)))
	v.isNotSaved()
	if strings.Contains(v.shown(), "vmctl-guest: ready") {
		t.Error("the guest has booted again")
	}
}

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
)

// patience is how long anything may take, on a CPU made of software that
// others use too.
const patience = 3 * time.Minute

// waitEnded waits until a unit neither runs nor is about to.
func waitEnded(t testing.TB, unit string) {
	t.Helper()
	eventually(t, unit+" has ended", func() bool {
		job := run(t, "systemctl", "show", "-P", "Job", unit)
		state := run(t, "systemctl", "show", "-P", "ActiveState", unit)
		return (job == "" || job == "0") && (state == "inactive" || state == "failed")
	})
}

// olderSuite tells whether this is Debian 12, with systemd 252 and QEMU 7.2.
func olderSuite() bool { return os.Getenv("VMCTL_SUITE") == "bookworm" }

// newerSuiteOnly leaves out, on the older suite, what takes long and shows nothing
// there beyond what why tells.
func newerSuiteOnly(t *testing.T, why string) {
	t.Helper()
	if olderSuite() {
		t.Skip("on the newer suite alone: " + why)
	}
}

// vm is one machine of a test.
type vm struct {
	t     testing.TB
	name  string
	marks int // lines that typed has waited for
	*screen
}

// newVM defines a machine whose guest is the little one, on Debian's cloud
// kernel (see packaging/guest/init for what it can do). more is further TOML,
// which begins with keys of the top level, if it has any, and can override
// nothing that stands in littleGuest.
func newVM(t testing.TB, name, more string) *vm {
	t.Helper()
	v := newVMFrom(t, name, littleGuest("cloud", "")+more)
	return v
}

// newVMFrom defines a machine by a whole definition.
func newVMFrom(t testing.TB, name, definition string) *vm {
	t.Helper()
	v := &vm{t: t, name: name, screen: newScreen(t, name)}
	v.define(definition)
	t.Cleanup(v.remove)
	return v
}

// littleGuest is the part of a definition that boots the little guest. kernel
// is "cloud" or "generic" (USB, SATA, IDE, floppy, watchdog), cmdline is added
// to the kernel's. On a busy host that emulates, a kernel that checks its timer
// finds it too slow, and panics ("IO-APIC + timer doesn't work!").
func littleGuest(kernel, cmdline string) string {
	dir := filepath.Join(os.Getenv("VMCTL_GUEST"), kernel)
	return fmt.Sprintf(`
memory = "256M"
boot.kernel = %q
boot.initrd = %q
boot.cmdline = %q
`, dir+"/vmlinuz", dir+"/initrd", strings.TrimSpace("console=ttyS0 quiet no_timer_check "+cmdline))
}

func (v *vm) unit() string { return config.Unit(v.name) }

// file is the machine's definition.
func (v *vm) file() string { return "/etc/vmctl/vms/" + v.name + ".toml" }

// stateDir is what belongs to the machine for good.
func (v *vm) stateDir() string { return config.SystemPaths("").StateDir(v.name) }

// runtimeDir is there while the machine runs.
func (v *vm) runtimeDir() string { return config.SystemPaths("").RuntimeDir(v.name) }

// define writes the definition. systemd does not know of it yet.
func (v *vm) define(definition string) {
	v.t.Helper()
	writeFile(v.t, v.file(), definition)
}

// start is what a person does after writing a definition, by systemd's own
// means.
func (v *vm) start() {
	v.t.Helper()
	run(v.t, "systemctl", "daemon-reload")
	run(v.t, "systemctl", "start", v.unit())
}

// boot starts the machine and waits for its guest.
func (v *vm) boot() {
	v.t.Helper()
	v.start()
	v.expectReady()
}

// expectReady waits until the little guest is up and its shell reads.
func (v *vm) expectReady() {
	v.t.Helper()
	v.expect(`vmctl-guest: ready`)
	v.expect(`# `)
}

// property is what systemctl show says of the unit.
func (v *vm) property(name string) string {
	v.t.Helper()
	return run(v.t, "systemctl", "show", "-P", name, v.unit())
}

// mainPID is the hypervisor's process id; 0 where none runs.
func (v *vm) mainPID() int {
	v.t.Helper()
	pid, err := strconv.Atoi(v.property("MainPID"))
	if err != nil {
		v.t.Fatal(err)
	}
	return pid
}

// waitState waits until the unit's ActiveState is one of states.
func (v *vm) waitState(states ...string) {
	v.t.Helper()
	eventually(v.t, v.unit()+" is "+strings.Join(states, " or "), func() bool {
		active := v.property("ActiveState")
		for _, state := range states {
			if active == state {
				return true
			}
		}
		return false
	})
}

// journal is what the journal has of the unit, one message per line; options
// are journalctl's.
func (v *vm) journal(options ...string) string {
	v.t.Helper()
	return run(v.t, append([]string{"journalctl", "-u", v.unit(), "-o", "cat", "--no-pager"}, options...)...)
}

// show is what vmctl show says, as JSON.
func (v *vm) show() map[string]any {
	v.t.Helper()
	return decode[map[string]any](v.t, run(v.t, "vmctl", "show", "-o", "json", v.name))
}

// exitReason is why the machine last ended, "" where it never has.
func (v *vm) exitReason() string {
	v.t.Helper()
	exit, _ := v.show()["exit"].(map[string]any)
	reason, _ := exit["reason"].(string)
	return reason
}

// remove ends the machine and leaves nothing of it.
func (v *vm) remove() {
	if v.t.Failed() {
		v.t.Logf("console of %s:\n%s", v.name, v.lastLines(40))
		v.t.Logf("journal of %s:\n%s", v.unit(), try("journalctl", "-u", v.unit(), "-n", "60", "-o", "short-precise", "--no-pager").all())
		if try("systemctl", "is-active", "--quiet", v.unit()).code == 0 {
			// Of a guest that hangs: what it does, and what it waits for.
			for _, command := range []string{"info status", "info cpus", "info registers", "info lapic", "info chardev"} {
				v.t.Logf("%s:\n%s", command, try("timeout", "20", "vmctl", "monitor", v.name, "--command", command).all())
			}
		}
	}
	v.screen.close()
	try("systemctl", "kill", "--signal=KILL", v.unit())
	try("systemctl", "stop", v.unit())
	try("systemctl", "reset-failed", v.unit())
	for _, dir := range []string{v.file(), v.file() + ".d", v.stateDir()} {
		if err := os.RemoveAll(dir); err != nil {
			v.t.Error(err)
		}
	}
	try("systemctl", "daemon-reload")
}

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file is dropped, systemd is told, and the guest is up; systemctl and
// journalctl show it as they show any service; it shuts down when asked to.
func TestFromFileToGuestAndBack(t *testing.T) {
	t.Parallel()
	v := newVM(t, "web", `description = "Public web server"`)
	v.boot()

	status := run(t, "systemctl", "status", v.unit())
	contains(t, status, "Public web server", "active (running)", "qemu-system-x86_64", v.file())
	contains(t, run(t, "systemctl", "cat", v.unit()), "/usr/bin/qemu-system-x86_64", "ExecStop=", v.file())
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", v.mainPID()))
	if err != nil || filepath.Base(exe) != "qemu-system-x86_64" {
		t.Errorf("main process runs %s, %v; want the hypervisor", exe, err)
	}

	run(t, "systemctl", "stop", v.unit())
	if got := v.property("Result"); got != "success" {
		t.Errorf("result %s, want success", got)
	}
	if got := v.property("ActiveState"); got != "inactive" {
		t.Errorf("state %s, want inactive", got)
	}
	// The guest's own log says that it was asked, and did what it was asked.
	contains(t, v.journal(), "vmctl-guest: ready", "vmctl-guest: power button pressed", "vmctl-guest: powering off")
	if got := v.exitReason(); got != "stop requested" {
		t.Errorf("reason %q, want stop requested", got)
	}
	if _, err := os.Stat(v.runtimeDir()); err == nil {
		t.Errorf("%s is left", v.runtimeDir())
	}
}

// The console's lines are found by their fields, from the firmware's first on.
func TestConsoleIsInTheJournal(t *testing.T) {
	t.Parallel()
	v := newVM(t, "journal", "")
	v.boot()
	lines := run(t, "journalctl", "-o", "cat", "--no-pager", "VMCTL_VM=journal", "VMCTL_STREAM=console")
	contains(t, lines, "vmctl-guest: ready")
	if log := run(t, "vmctl", "console", "--log", "journal"); !strings.Contains(log, "vmctl-guest: ready") {
		t.Errorf("vmctl console --log has no line of the guest:\n%s", log)
	}
}

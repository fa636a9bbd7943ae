//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/cloudhypervisor/standin"
	"github.com/vmctl/vmctl/hypervisor/hypervisortest"
)

// TestMain is cloud-hypervisor where it is called that: what stands in for it.
func TestMain(m *testing.M) {
	if standin.Called() {
		standin.Main()
		return
	}
	os.Exit(m.Run())
}

// cloudDefinition is a machine of cloud-hypervisor's.
func cloudDefinition(t *testing.T, binary, more string) string {
	t.Helper()
	dir := hostDir(t, t.Name())
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, hypervisortest.Guest(), 0o644); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("hypervisor = \"cloud-hypervisor\"\nmemory = \"64M\"\nboot.kernel = %q\nhypervisor_options.binary = %q\nlifecycle.restart_delay = \"200ms\"\n%s[disk.root]\nsize = \"16M\"\n",
		kernel, binary, more)
}

// cloudStandin is a program that stands in for cloud-hypervisor: this one.
func cloudStandin(t *testing.T) string {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(hostDir(t, t.Name()+"-bin"), "cloud-hypervisor")
	run(t, "cp", own, binary)
	run(t, "chmod", "755", binary)
	return binary
}

// What systemd has to do for a machine of cloud-hypervisor's, by what stands in for
// it: the sandbox, the console, and what becomes of each end, of which its exit
// status tells none. It says nothing of the real one.
func TestCloudUnit(t *testing.T) {
	t.Parallel()
	v := newVMFrom(t, "cloud", cloudDefinition(t, cloudStandin(t), ""))
	v.start()
	v.expect(`guest up`)
	if level := v.exposure(); level > 1.0 {
		t.Errorf("exposure %.1f, want at most 1.0", level)
	}
	if status := v.show(); status["state"] != "running" || status["hypervisor"] != "cloud-hypervisor" {
		t.Errorf("got %v", status)
	}
	if out := run(t, "vmctl", "monitor", v.name, "--command", "vm.info"); !strings.Contains(out, `"Running"`) {
		t.Errorf("got %s", out)
	}
	v.typeLine("keep tea")
	v.expect(`kept`)
	run(t, "vmctl", "save", v.name)
	if status := v.show(); status["state"] != "saved" {
		t.Errorf("got %v", status)
	}
	v.start()
	v.typeLine("what")
	v.expect(`it is tea`)
	run(t, "vmctl", "pause", v.name)
	run(t, "vmctl", "resume", v.name)
	v.typeLine("reboot")
	v.expect(`guest up`)

	before := v.mainPID()
	v.typeLine("crash")
	v.expect(`guest up`) // by systemd, though its exit status was 0
	if v.mainPID() == before {
		t.Error("the process is the same")
	}
	if reason := v.exitReason(); reason != "hypervisor error" {
		t.Errorf("after a crash: got %q", reason)
	}
	v.typeLine("panic")
	v.expect(`guest up`)
	if reason := v.exitReason(); reason != "guest panic" {
		t.Errorf("after a panic: got %q", reason)
	}
	v.typeLine("off")
	v.waitState("inactive")
	if reason := v.exitReason(); reason != "guest power-off" {
		t.Errorf("after a power-off: got %q", reason)
	}
	v.start()
	run(t, "systemctl", "kill", "--kill-whom=main", "--signal=TERM", v.unit())
	v.waitState("inactive")
	if reason := v.exitReason(); reason != "killed" {
		t.Errorf("after a signal: got %q", reason)
	}
	v.start()
	run(t, "vmctl", "stop", v.name)
	if reason := v.exitReason(); reason != "stop requested" {
		t.Errorf("after a stop: got %q", reason)
	}
}

// What runs beside a machine of cloud-hypervisor's, which connects to it by itself,
// and again at each reboot of the guest: it is there again, by what stands in for the
// hypervisor.
func TestCloudBeside(t *testing.T) {
	t.Parallel()
	shared := hostDir(t, t.Name()+"-shared")
	v := newVMFrom(t, "cloud-beside", cloudDefinition(t, cloudStandin(t), fmt.Sprintf("tpm.enabled = true\n[share.src]\npath = %q\n", shared)))
	share, tpm := v.shareUnit("src"), config.TPMUnit(v.name)
	v.start()
	v.expect(`guest up`)
	if level := v.exposure(); level > 1.0 {
		t.Errorf("exposure %.1f, want at most 1.0", level)
	}
	contains(t, run(t, "vmctl", "show", v.name), "tag src, serving", "2.0, serving")
	contains(t, fail(t, 4, "vmctl", "save", v.name), "does not save what is behind share", "does not save what is behind tpm.enabled")

	pid, served, measured := v.mainPID(), unitPID(t, share), unitPID(t, tpm)
	v.typeLine("reboot")
	v.expect(`guest up`)
	if v.mainPID() != pid || unitPID(t, tpm) != measured {
		t.Error("the guest's reboot has ended cloud-hypervisor or swtpm")
	}
	if unitPID(t, share) == served {
		t.Error("virtiofsd is the same, which serves one connection")
	}
	if strings.Contains(v.journal(), "has ended") {
		t.Errorf("the guest's reboot has lost something:\n%s", v.journal())
	}

	kill(t, unitPID(t, share))
	eventually(t, "the machine says that its share is lost", func() bool {
		return strings.Contains(v.journal(), "share.src: virtiofsd has ended (killed KILL): the guest has none until it reboots")
	})
	v.typeLine("reboot")
	v.expect(`guest up`)
	v.typeLine("crash")
	v.expect(`guest up`) // with all that is beside it
	run(t, "vmctl", "stop", v.name)
	for _, unit := range []string{share, tpm} {
		eventually(t, unit+" has ended", func() bool { return run(t, "systemctl", "show", "-P", "ActiveState", unit) == "inactive" })
	}
}

// The same as TestCloudUnit by cloud-hypervisor itself, with a guest of ours.
func TestCloudHypervisor(t *testing.T) {
	binary, err := exec.LookPath("cloud-hypervisor")
	if err != nil {
		t.Skip("NOT TRIED: there is no cloud-hypervisor here")
	}
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("NOT TRIED: /dev/kvm does not open: ", err)
	}
	unix.Close(kvm)
	v := newVMFrom(t, "cloud-real", cloudDefinition(t, binary, "lifecycle.stop_timeout = \"10s\"\n"))
	up := strings.TrimSpace(hypervisortest.GuestUp)
	v.start()
	v.expect(up)
	if level := v.exposure(); level > 1.0 {
		t.Errorf("exposure %.1f, want at most 1.0", level)
	}
	v.typeLine("echo")
	v.expect("echo")
	v.typeLine("r")
	v.expect(up)
	v.typeLine("p")
	v.waitState("inactive")
	if reason := v.exitReason(); reason != "guest power-off" {
		t.Errorf("after a power-off: got %q", reason)
	}
	v.start()
	v.expect(up)
	run(t, "vmctl", "stop", v.name) // which this guest does not hear
	if reason := v.exitReason(); reason != "stop timed out" {
		t.Errorf("after a stop: got %q", reason)
	}
}

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/cloudhypervisor"
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

// cloudStandin is a program that stands in for cloud-hypervisor: this one. It needs
// no KVM, but a machine of cloud-hypervisor's is not started without the node: where
// there is none, one that opens and can do nothing stands in for that.
func cloudStandin(t *testing.T) string {
	t.Helper()
	if err := unix.Mknod(hypervisor.KVM, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
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
	v := newVMFrom(t, "cloud", cloudDefinition(t, cloudStandin(t), "memory_options.max = \"192M\"\ncpu.max = 2\n"))
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
	contains(t, fail(t, 4, "vmctl", "snapshot", "create", v.name), "disk.root.format: a raw disk cannot take part in snapshots", "vmctl disk clone")
	run(t, "vmctl", "disk", "attach", v.name, "data", "--size", "1M")
	run(t, "vmctl", "disk", "resize", v.name, "data", "2M")
	contains(t, run(t, "vmctl", "disk", "list", v.name), "data")
	run(t, "vmctl", "disk", "detach", v.name, "data")
	run(t, "vmctl", "set", v.name, "cpus=2", "memory=192M")
	contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), `"boot_vcpus": 2`, `"hotplugged_size": 134217728`)
	run(t, "vmctl", "balloon", v.name, "32M")
	contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), `"size": 33554432`)
	if out := v.journal(); !olderSuite() && strings.Contains(out, "VmInfo") {
		t.Errorf("the journal has every question: %s", out) // systemd 252 cannot leave any out
	}
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

	run(t, "systemctl", "stop", share)
	contains(t, v.journal(), "as it was stopped (systemctl start "+share+"), and it reboots")
	run(t, "systemctl", "start", share)
	v.typeLine("reboot")
	v.expect(`guest up`)

	// A directory that vanishes: the machine says so, and gets it back.
	if err := os.Rename(shared, shared+".gone"); err != nil {
		t.Fatal(err)
	}
	kill(t, unitPID(t, share))
	eventually(t, "the machine says that its share has vanished", func() bool {
		return strings.Contains(v.journal(), "share.src: virtiofsd has ended (exited 1)")
	})
	if got := v.show()["state"]; got != "running" {
		t.Errorf("without its share the machine is %s", got)
	}
	contains(t, fail(t, 6, "vmctl", "restart", v.name), "share.src.path: ", shared, "it could not start again, and runs on")
	if got := v.show()["state"]; got != "running" {
		t.Errorf("after a restart that was refused the machine is %s", got)
	}
	run(t, "vmctl", "stop", v.name)
	contains(t, fail(t, 1, "vmctl", "start", v.name), "share.src.path: want a directory, got "+shared+", which does not exist on this host")
	if err := os.Rename(shared+".gone", shared); err != nil {
		t.Fatal(err)
	}
	run(t, "vmctl", "start", v.name)
	v.expect(`guest up`)
	contains(t, run(t, "vmctl", "show", v.name), "tag src, serving")
	run(t, "vmctl", "stop", v.name)
	for _, unit := range []string{share, tpm} {
		eventually(t, unit+" has ended", func() bool { return run(t, "systemctl", "show", "-P", "ActiveState", unit) == "inactive" })
	}
}

// TestHypervisorSwitched: one definition, by QEMU and by cloud-hypervisor, shows the
// same but for what is the hypervisor's own.
func TestHypervisorSwitched(t *testing.T) {
	newerSuiteOnly(t, "what is shown of a machine depends on neither systemd nor QEMU")
	t.Parallel()
	const cloud = "hypervisor = \"cloud-hypervisor\"\n"
	definition := cloudDefinition(t, cloudStandin(t), fmt.Sprintf("cpus = 2\nguest_agent.enabled = false\ntpm.enabled = true\nballoon.enabled = true\n"+
		"[share.src]\npath = %q\n[nic.lan]\ntap = \"e2e-switched\"\n", hostDir(t, t.Name()+"-shared"))) + "format = \"raw\"\n"
	run(t, "ip", "tuntap", "add", "e2e-switched", "mode", "tap", "multi_queue")
	t.Cleanup(func() { run(t, "ip", "link", "delete", "e2e-switched") })
	v := newVMFrom(t, "switched", definition)
	shown := func(up string) map[string]any {
		v.start()
		v.expect(up)
		s := v.show()
		run(t, "vmctl", "kill", v.name)
		v.waitState("failed", "inactive")
		return s
	}
	byCloud := shown(`guest up`)
	v.define(strings.Replace(strings.Replace(definition, cloud, "", 1), "hypervisor_options.binary", "# ", 1))
	byQEMU := shown(strings.TrimSpace(hypervisortest.GuestUp))
	for _, s := range []map[string]any{byCloud, byQEMU} {
		if s["state"] != "running" || s["hypervisor"] != s["definition"].(map[string]any)["hypervisor"] {
			t.Errorf("state %v, hypervisor %v", s["state"], s["hypervisor"])
		}
		for _, own := range []string{"hypervisor", "pid", "started_at", "usage", "exit"} {
			delete(s, own)
		}
		definition := s["definition"].(map[string]any)
		delete(definition, "hypervisor")
		delete(definition, "hypervisor_options")
		delete(definition["boot"].(map[string]any), "firmware") // whose defaults are others
		delete(definition["watchdog"].(map[string]any), "model")
		delete(s["sockets"].(map[string]any), "qmp")
	}
	for _, key := range slices.Sorted(maps.Keys(byQEMU)) {
		if !reflect.DeepEqual(byQEMU[key], byCloud[key]) {
			t.Errorf("%s:\nby qemu %v\nby cloud-hypervisor %v", key, byQEMU[key], byCloud[key])
		}
	}
	if len(byCloud) != len(byQEMU) {
		t.Errorf("%d keys by qemu, %d by cloud-hypervisor", len(byQEMU), len(byCloud))
	}
}

// cloudItself is cloud-hypervisor: such a test is run only where there is one that
// can run (packaging/e2e/run --cloud-hypervisor).
func cloudItself(t *testing.T) string {
	t.Helper()
	binary, err := exec.LookPath("cloud-hypervisor")
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// The same as TestCloudUnit by cloud-hypervisor itself, with a guest of ours, which has
// no drivers: it has no part in what is plugged in, and lets go of nothing.
func TestCloudHypervisor(t *testing.T) {
	binary := cloudItself(t)
	v := newVMFrom(t, "cloud-real", cloudDefinition(t, binary, "memory_options.max = \"192M\"\ncpu.max = 2\nlifecycle.stop_timeout = \"10s\"\n"))
	up := strings.TrimSpace(hypervisortest.GuestUp)
	ended := func(what, reason string) {
		t.Helper()
		v.waitState("inactive")
		if got := v.exitReason(); got != reason {
			t.Errorf("after %s: got %q, want %q", what, got, reason)
		}
	}
	v.start()
	v.expect(up)
	if level := v.exposure(); level > 1.0 {
		t.Errorf("exposure %.1f, want at most 1.0", level)
	}
	v.typeLine("echo")
	v.expect("echo")

	v.typeLine("kT")
	v.expect("T")
	run(t, "vmctl", "pause", v.name)
	if state := v.show()["state"]; state != "paused" {
		t.Errorf("after a pause: got %v", state)
	}
	run(t, "vmctl", "resume", v.name)
	v.savedAndStarted()
	v.typeLine("<w>")
	v.expect("<T>") // also where the last process was told

	run(t, "vmctl", "disk", "attach", v.name, "data", "--size", "1M")
	contains(t, run(t, "vmctl", "disk", "list", v.name), "data")
	if out, err := exec.CommandContext(t.Context(), "vmctl", "disk", "resize", v.name, "data", "2M").CombinedOutput(); err != nil && !strings.Contains(string(out), "by io_uring: want v52.0") {
		t.Errorf("resize: %v: %s", err, out)
	}
	run(t, "vmctl", "set", v.name, "cpus=2", "memory=192M")
	contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), `"boot_vcpus": 2`, `"hotplugged_size": 134217728`)
	run(t, "vmctl", "balloon", v.name, "32M")
	contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), `"size": 33554432`)
	contains(t, run(t, "vmctl", "metrics"), "vmctl_vm_disk_read_bytes_total{vm=\"cloud-real\",disk=\"root\"}")
	version, _, err := cloudhypervisor.Version(t.Context(), binary)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, run(t, "vmctl", "info"), version)

	pid := v.mainPID()
	v.typeLine("r")
	v.expect(up)
	run(t, "vmctl", "reset", v.name)
	v.expect(up)
	if v.mainPID() != pid {
		t.Error("a reboot has ended cloud-hypervisor")
	}
	v.typeLine("n")
	v.expect(up) // by systemd
	if reason := v.exitReason(); reason != "guest panic" {
		t.Errorf("after a panic: got %q", reason)
	}
	kill(t, v.mainPID())
	v.expect(up)
	if reason := v.exitReason(); reason != "killed" && reason != "hypervisor error" {
		t.Errorf("after a crash: got %q", reason)
	}
	v.typeLine("p")
	ended("a power-off", "guest power-off")
	v.start()
	v.expect(up)
	run(t, "systemctl", "kill", "--kill-whom=main", "--signal=TERM", v.unit())
	ended("a signal", "killed")
	v.start()
	v.expect(up)
	run(t, "vmctl", "stop", v.name) // which this guest does not hear
	ended("a stop", "stop timed out")
	v.start()
	v.expect(up)
	v.typeLine("b")
	v.expect("b")
	run(t, "vmctl", "stop", v.name) // which it does now
	ended("a stop that is heard", "stop requested")
	v.start()
	v.expect(up)
	run(t, "vmctl", "kill", v.name)
	v.waitState("failed", "inactive")
}

// savedAndStarted has a machine saved, and started from what was saved.
func (v *vm) savedAndStarted() {
	v.t.Helper()
	out, err := exec.CommandContext(v.t.Context(), "vmctl", "save", v.name).CombinedOutput()
	switch {
	case err != nil && strings.Contains(string(out), "GetNestedState"):
		v.t.Log("NOT TRIED: this KVM does not give its state to be saved")
		return
	case err != nil:
		v.t.Fatalf("save: %v: %s", err, out)
	}
	if state := v.show()["state"]; state != "saved" {
		v.t.Errorf("after a save: got %v", state)
	}
	v.start()
}

// Cards of cloud-hypervisor itself, at its start, plugged in, and after it was saved.
func TestCloudHypervisorCards(t *testing.T) {
	binary := cloudItself(t)
	version, _, err := cloudhypervisor.Version(t.Context(), binary)
	if err != nil {
		t.Fatal(err)
	}
	if lacks := cloudhypervisor.Lacks(version); lacks != "" {
		t.Skipf("NOT TRIED: cloud-hypervisor %s %s", version, lacks)
	}
	run(t, "ip", "tuntap", "add", "e2e-real", "mode", "tap", "multi_queue")
	t.Cleanup(func() { run(t, "ip", "link", "delete", "e2e-real") })
	run(t, "ip", "link", "add", "e2e-realbr", "type", "bridge")
	t.Cleanup(func() { run(t, "ip", "link", "delete", "e2e-realbr") })
	v := newVMFrom(t, "cloud-real-cards", cloudDefinition(t, binary, "[nic.lan]\ntap = \"e2e-real\"\n"))
	up := strings.TrimSpace(hypervisortest.GuestUp)
	v.start()
	v.expect(up)
	v.typeLine("kT")
	v.expect("T")
	v.savedAndStarted()
	v.typeLine("<w>")
	v.expect("<T>")
	v.typeLine("r")
	v.expect(up)
	run(t, "vmctl", "nic", "attach", v.name, "hot", "--bridge", "e2e-realbr")
	contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), `"nic-lan"`, `"nic-hot"`)
}

// The same as TestCloudBeside by cloud-hypervisor itself.
func TestCloudHypervisorBeside(t *testing.T) {
	v := newVMFrom(t, "cloud-real-beside", cloudDefinition(t, cloudItself(t),
		fmt.Sprintf("tpm.enabled = true\n[share.src]\npath = %q\n", hostDir(t, t.Name()+"-shared"))))
	up := strings.TrimSpace(hypervisortest.GuestUp)
	v.start()
	v.expect(up)
	pid, measured := v.mainPID(), unitPID(t, config.TPMUnit(v.name))
	v.typeLine("r")
	v.expect(up)
	if !strings.Contains(v.journal(), "ends where a guest with a TPM reboots") && (v.mainPID() != pid || unitPID(t, config.TPMUnit(v.name)) != measured) {
		t.Error("the guest's reboot has ended cloud-hypervisor or swtpm")
	}
	eventually(t, "the share and the TPM are served", func() bool {
		shown := run(t, "vmctl", "show", v.name)
		return strings.Contains(shown, "tag src, serving") && strings.Contains(shown, "2.0, serving")
	})
}

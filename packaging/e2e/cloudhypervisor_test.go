//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/cloudhypervisor"
	"github.com/vmctl/vmctl/hypervisor/cloudhypervisor/standin"
)

// TestMain is cloud-hypervisor where it is called that: what stands in for it.
func TestMain(m *testing.M) {
	if standin.Called() {
		standin.Main()
		return
	}
	os.Exit(m.Run())
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

// What runs beside a machine of cloud-hypervisor's, which connects to it by itself,
// and again at each reboot of the guest: it is there again, by what stands in for the
// hypervisor.
func TestCloudBeside(t *testing.T) {
	t.Parallel()
	shared := hostDir(t, t.Name()+"-shared")
	v := newVMFrom(t, "cloud-beside", byStandin(t).line+sameOfBoth(guestKernel(t), fmt.Sprintf("tpm.enabled = true\n[share.src]\npath = %q\n", shared)))
	share, tpm := v.shareUnit("src"), config.TPMUnit(v.name)
	v.up()
	if level := v.exposure(); level > 1.0 {
		t.Errorf("exposure %.1f, want at most 1.0", level)
	}
	contains(t, run(t, "vmctl", "show", v.name), "tag src, serving", "2.0, serving")
	contains(t, fail(t, 4, "vmctl", "save", v.name), "does not save what is behind share", "does not save what is behind tpm.enabled")

	pid, served, measured := v.mainPID(), unitPID(t, share), unitPID(t, tpm)
	v.typeLine("r")
	v.expect(guestUp)
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
	v.typeLine("r")
	v.expect(guestUp)
	v.typeLine("crash")
	v.expect(guestUp) // with all that is beside it

	run(t, "systemctl", "stop", share)
	contains(t, v.journal(), "as it was stopped (systemctl start "+share+"), and it reboots")
	run(t, "systemctl", "start", share)
	v.typeLine("r")
	v.expect(guestUp)

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
	v.hears()
	run(t, "vmctl", "stop", v.name)
	contains(t, fail(t, 1, "vmctl", "start", v.name), "share.src.path: want a directory, got "+shared+", which does not exist on this host")
	if err := os.Rename(shared+".gone", shared); err != nil {
		t.Fatal(err)
	}
	run(t, "vmctl", "start", v.name)
	v.expect(guestUp)
	contains(t, run(t, "vmctl", "show", v.name), "tag src, serving")
	v.hears()
	run(t, "vmctl", "stop", v.name)
	for _, unit := range []string{share, tpm} {
		eventually(t, unit+" has ended", func() bool { return run(t, "systemctl", "show", "-P", "ActiveState", unit) == "inactive" })
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

// What only cloud-hypervisor is asked, and says, of a machine that runs, by what stands
// in for it; a guest is willing to let go of what it is asked for.
func TestCloudAsked(t *testing.T) {
	t.Parallel()
	v := asked(t, byStandin(t))
	run(t, "vmctl", "disk", "detach", v.name, "data")
	// A virtual CPU that fails, which no guest here can cause: the exit status is 0.
	v.otherProcess("hypervisor error", func() { v.typeLine("crash") })
}

// The same by cloud-hypervisor itself.
func TestCloudHypervisorAsked(t *testing.T) {
	v := asked(t, byCloud(t))
	contains(t, run(t, "vmctl", "metrics"), "vmctl_vm_disk_read_bytes_total{vm=\""+v.name+"\",disk=\"root\"}")
	version, _, err := cloudhypervisor.Version(t.Context(), cloudItself(t))
	if err != nil {
		t.Fatal(err)
	}
	contains(t, run(t, "vmctl", "info"), version)
}

func asked(t *testing.T, by chosen) *vm {
	v := newVMFrom(t, "asked-"+by.name, by.line+sameOfBoth(guestKernel(t), "memory_options.max = \"192M\"\ncpu.max = 2\n"))
	v.up()
	says := func(parts ...string) {
		t.Helper()
		contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), parts...)
	}
	says(`"Running"`)
	contains(t, fail(t, 4, "vmctl", "snapshot", "create", v.name), "disk.root.format: a raw disk cannot take part in snapshots", "vmctl disk clone")
	run(t, "vmctl", "disk", "attach", v.name, "data", "--size", "1M")
	contains(t, run(t, "vmctl", "disk", "list", v.name), "data")
	if r := try("vmctl", "disk", "resize", v.name, "data", "2M"); r.code != 0 && !strings.Contains(r.stderr, "by io_uring: want v52.0") {
		t.Errorf("resize: %s", r.all())
	}
	run(t, "vmctl", "set", v.name, "cpus=2", "memory=192M")
	says(`"boot_vcpus": 2`, `"hotplugged_size": 134217728`)
	run(t, "vmctl", "balloon", v.name, "32M")
	says(`"size": 33554432`)
	if out := v.journal(); !olderSuite() && strings.Contains(out, "VmInfo") {
		t.Errorf("the journal has every question: %s", out) // systemd 252 cannot leave any out
	}
	return v
}

// What the program that is there cannot do is why a machine has not started, and not
// what was warned of before.
func TestCloudTooOld(t *testing.T) {
	t.Parallel()
	binary := cloudStandin(t)
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho cloud-hypervisor v45.0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	v := newVMFrom(t, "cloud-old", fmt.Sprintf("hypervisor = \"cloud-hypervisor\"\nhypervisor_options.binary = %q\n", binary)+sameOfBoth(guestKernel(t), ""))
	const why = "disk.root: cloud-hypervisor v45.0 does not lock the disks that it writes to, so that two machines could destroy one: want v46.0 or newer"
	contains(t, fail(t, 1, "vmctl", "start", v.name), "not started: "+why)
	contains(t, run(t, "vmctl", "show", v.name), "not started: "+why)
	contains(t, run(t, "systemctl", "show", "-P", "StatusText", v.unit()), why)
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
	v := newVMFrom(t, "cloud-real-cards", byCloud(t).line+sameOfBoth(guestKernel(t), "[nic.lan]\ntap = \"e2e-real\"\n"))
	v.up()
	v.typeLine("kT")
	v.expect("T")
	if v.saves() {
		v.start()
	}
	v.typeLine("<w>")
	v.expect("<T>")
	v.typeLine("r")
	v.expect(guestUp)
	run(t, "vmctl", "nic", "attach", v.name, "hot", "--bridge", "e2e-realbr")
	contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), `"nic-lan"`, `"nic-hot"`)
}

// What cloud-hypervisor itself did not see at its start it is shown, in its sandbox and
// under its own rules of Landlock, also where its guest reboots; nothing of that is left
// when it has ended.
func TestCloudHypervisorShown(t *testing.T) {
	binary := cloudItself(t)
	version, _, err := cloudhypervisor.Version(t.Context(), binary)
	if err != nil {
		t.Fatal(err)
	}
	if lacks := cloudhypervisor.Lacks(version); lacks != "" {
		t.Skipf("NOT TRIED: cloud-hypervisor %s %s", version, lacks)
	}
	v := newVMFrom(t, "cloud-real-shown", byCloud(t).line+"memory_options.shared = true\n"+sameOfBoth(guestKernel(t), ""))
	paths := config.SystemPaths("")
	dir := hostDir(t, t.Name()+"-closed")
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file, other := filepath.Join(dir, "data.img"), filepath.Join(dir, "other.img")
	run(t, "truncate", "--size", "4M", file, other)
	run(t, "chmod", "600", file, other)
	before := run(t, "getfacl", "--absolute-names", file, other)
	v.up()

	run(t, "vmctl", "disk", "attach", v.name, "data", "--path", file, "--format", "raw")
	run(t, "vmctl", "disk", "attach", v.name, "other", "--path", other, "--format", "raw", "--readonly")
	if hasVhostUser() {
		startPeer(t, "10.77.13")
		run(t, "vmctl", "nic", "attach", v.name, "peer", "--vhost-user", peerSocket)
		contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), `"nic-peer"`)
	}
	shown := []string{paths.ShownFile(v.name, "disk.data"), paths.ShownFile(v.name, "disk.other")}
	contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), append(shown, `"disk-data"`, `"disk-other"`)...)
	contains(t, run(t, "cat", fmt.Sprintf("/proc/%d/mountinfo", v.mainPID())), shown[0]+" rw,nosuid", shown[1]+" ro,nosuid")
	loop := loopDevice(t, filepath.Join(dir, "loop.img"))
	if loop != "" {
		run(t, "vmctl", "disk", "attach", v.name, "loop", "--path", loop, "--format", "raw")
		contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), `"disk-loop"`)
		run(t, "systemctl", "daemon-reload")
		contains(t, run(t, "systemctl", "show", "-P", "DeviceAllow", v.unit()), "/dev/block/7:", "/dev/kvm")
	}
	contains(t, fail(t, 1, "vmctl", "disk", "attach", v.name, "twice", "--path", file, "--format", "raw"), "is another disk of this machine already")
	pid := v.mainPID()
	v.typeLine("r")
	v.expect(guestUp)
	if v.mainPID() != pid || !strings.Contains(run(t, "ls", "-l", fmt.Sprintf("/proc/%d/fd", pid)), shown[0]) {
		t.Error("after a reboot of its guest it has ended, or not got the disk")
	}
	fail(t, 5, "vmctl", "disk", "detach", v.name, "data", "--timeout", "1s") // of which this guest knows nothing
	kill(t, pid)
	v.expect(guestUp)
	contains(t, fail(t, 2, "ls", paths.Shown(v.name)), "No such file")
	if after := run(t, "getfacl", "--absolute-names", file, other); after != before {
		t.Errorf("access is left: %s", after)
	}
	if allowed := run(t, "systemctl", "show", "-P", "DeviceAllow", v.unit()); strings.Contains(allowed, "/dev/block/") {
		t.Errorf("it may still open %s", allowed)
	}
	run(t, "vmctl", "kill", v.name)
	v.waitState("failed", "inactive")
}

// loopDevice is a block device with a new file behind it, "" where this host gives a
// container none.
func loopDevice(t *testing.T, file string) string {
	t.Helper()
	run(t, "truncate", "--size", "4M", file)
	_ = unix.Mknod("/dev/loop-control", unix.S_IFCHR|0o600, int(unix.Mkdev(10, 237)))
	for i := range 8 {
		_ = unix.Mknod(fmt.Sprintf("/dev/loop%d", i), unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(i))))
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Logf("NOT TRIED: a block device: %v: %s", err, out)
		return ""
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { run(t, "losetup", "--detach", loop) })
	return loop
}

// The same as TestCloudBeside by cloud-hypervisor itself.
func TestCloudHypervisorBeside(t *testing.T) {
	v := newVMFrom(t, "cloud-real-beside", byCloud(t).line+sameOfBoth(guestKernel(t),
		fmt.Sprintf("tpm.enabled = true\n[share.src]\npath = %q\n", hostDir(t, t.Name()+"-shared"))))
	v.up()
	pid, measured := v.mainPID(), unitPID(t, config.TPMUnit(v.name))
	v.typeLine("r")
	v.expect(guestUp)
	if !strings.Contains(v.journal(), "ends where a guest with a TPM reboots") && (v.mainPID() != pid || unitPID(t, config.TPMUnit(v.name)) != measured) {
		t.Error("the guest's reboot has ended cloud-hypervisor or swtpm")
	}
	eventually(t, "the share and the TPM are served", func() bool {
		shown := run(t, "vmctl", "show", v.name)
		return strings.Contains(shown, "tag src, serving") && strings.Contains(shown, "2.0, serving")
	})
}

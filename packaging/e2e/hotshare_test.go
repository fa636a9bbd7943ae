//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
)

// shareEnded waits until nothing is left of what served a share that was plugged in.
func (v *vm) shareEnded(share string) {
	v.t.Helper()
	unit := v.shareUnit(share)
	eventually(v.t, unit+" has ended", func() bool { return run(v.t, "systemctl", "show", "-P", "ActiveState", unit) == "inactive" })
	paths := config.SystemPaths("")
	for _, left := range []string{paths.DropInDir + "/" + unit + ".d", paths.SidecarDir(unit)} {
		if _, err := os.Stat(left); !os.IsNotExist(err) {
			v.t.Errorf("left is %s: %v", left, err)
		}
	}
}

// Directories are shared with a guest that runs, and no more: what it has written is
// there, and what serves them is confined, and ends after the guest has let go.
func TestHotShares(t *testing.T) {
	t.Parallel()
	base := hostDir(t, "hot-shares")
	rw, ro := base+"/with space, %n $HOME:x", base+"/ro"
	for _, dir := range []string{rw, ro} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, rw+"/from-host", "hello guest\n")
	writeFile(t, ro+"/kept", "as it was\n")
	private := newVM(t, "hotshare-private", "")
	private.start()
	contains(t, fail(t, 4, "vmctl", "share", "attach", private.name, "rw", "--path", rw), "share.rw: hotshare-private was started with memory that no other process can map", "memory_options.shared = true")
	private.shareEnded("rw")
	run(t, "vmctl", "kill", private.name)

	v := newVM(t, "hotshare", "memory_options.shared = true\n")
	v.boot()
	contains(t, fail(t, 4, "vmctl", "share", "attach", v.name, "rw", "--path", base+"/none"), "share.rw.path: want a directory", "does not exist on this host")
	contains(t, fail(t, 4, "vmctl", "share", "attach", v.name, "rw", "--path", "/var/lib/vmctl"), "has files of the machines themselves in it")
	contains(t, fail(t, 2, "vmctl", "share", "attach", v.name, "rw"), "want --path")
	contains(t, fail(t, 3, "vmctl", "share", "detach", v.name, "rw"), "runs without a share named rw")

	run(t, "vmctl", "share", "attach", v.name, "rw", "--path", rw, "--cache", "never")
	contains(t, fail(t, 4, "vmctl", "share", "attach", v.name, "rw", "--path", rw), "has a share named rw already")
	contains(t, fail(t, 4, "vmctl", "share", "attach", v.name, "other", "--path", rw, "--tag", "rw"), `share.other.tag: want a tag of its own, got "rw" as share.rw has`)
	run(t, "vmctl", "share", "attach", v.name, "ro", "--path", ro, "--tag", "the-ro", "--readonly")
	contains(t, v.typed("mkdir -p /m /r; mount -t virtiofs rw /m && cat /m/from-host; mount -t virtiofs the-ro /r; cat /r/kept; echo x >/r/kept"),
		"hello guest", "as it was", "Read-only file system")
	v.typed("echo from the guest >/m/from-guest")
	contains(t, run(t, "cat", rw+"/from-guest"), "from the guest")
	contains(t, run(t, "vmctl", "show", v.name), "Share rw:", rw+", tag rw, serving", "tag the-ro, read-only, serving", "share.rw was attached, share.ro was attached")
	contains(t, run(t, "vmctl", "share", "list", v.name), ro, "the-ro", "reads and writes")
	contains(t, run(t, "vmctl", "diff", v.name), "share.rw")
	for _, share := range []string{"rw", "ro"} {
		if level := exposureOf(t, v.shareUnit(share)); level > 2.0 {
			t.Errorf("%s: exposure %v, want at most 2.0", v.shareUnit(share), level)
		}
	}
	refused := "share-rw was plugged in while it ran"
	if olderSuite() {
		refused = "vhost-user-fs" // which its QEMU saves none of
	}
	contains(t, fail(t, 4, "vmctl", "save", v.name), refused)

	// No reload takes it away.
	run(t, "systemctl", "daemon-reload")
	if out := run(t, "systemctl", "show", "-P", "DropInPaths", v.shareUnit("rw")); !strings.Contains(out, "/run/systemd/system/") {
		t.Errorf("after a reload systemd has forgotten it: %s", out)
	}
	contains(t, v.typed("cat /m/from-host"), "hello guest")

	// Taken out from under a guest that has it mounted, and a file open.
	v.typed("exec 9>/m/open; i=0; while [ $i -lt 200 ]; do echo line $i >&9; i=$((i+1)); done")
	run(t, "vmctl", "share", "detach", v.name, "rw")
	v.shareEnded("rw")
	if got := run(t, "cat", rw+"/open"); strings.Count(got, "line") != 200 {
		t.Errorf("of 200 lines that the guest has written there are %d", strings.Count(got, "line"))
	}
	contains(t, v.typed("exec 9>&-; umount /m; cat /r/kept"), "as it was")
	if strings.Contains(v.journal(), "has ended (") {
		t.Errorf("a share that was detached is called lost:\n%s", v.journal())
	}

	// Once more by its name, and then its server dies.
	run(t, "vmctl", "share", "attach", v.name, "rw", "--path", rw)
	contains(t, v.typed("mount -t virtiofs rw /m; cat /m/from-guest"), "from the guest")
	kill(t, unitPID(t, v.shareUnit("rw")))
	eventually(t, "the machine says that its share is lost", func() bool {
		return strings.Contains(v.journal(), "share.rw: virtiofsd has ended (killed KILL): the guest has none until it is detached and attached again")
	})
	contains(t, run(t, "vmctl", "show", v.name), "tag rw, lost")
	run(t, "vmctl", "share", "detach", v.name, "rw")
	v.shareEnded("rw")
	run(t, "vmctl", "share", "attach", v.name, "rw", "--path", rw)
	contains(t, v.typed("umount /m; mount -t virtiofs rw /m; cat /m/from-guest"), "from the guest")

	// What holds for this run is gone with it, however it ends.
	kill(t, v.mainPID())
	v.expectReady()
	v.shareEnded("rw")
	v.shareEnded("ro")
	if strings.Contains(run(t, "vmctl", "show", v.name), "Share ") || v.pending() {
		t.Error("after a crash a share is left")
	}

	// For good.
	run(t, "vmctl", "share", "attach", v.name, "rw", "--path", rw, "--persist")
	contains(t, run(t, "cat", v.file()+".d/60-share-rw.toml"), "[share.rw]", "with space")
	if v.pending() {
		t.Error("what was persisted is pending")
	}
	run(t, "vmctl", "restart", v.name)
	v.expectReady()
	contains(t, v.typed("mkdir -p /m; mount -t virtiofs rw /m; cat /m/from-guest; umount /m"), "from the guest")
	run(t, "vmctl", "share", "detach", v.name, "rw")
	if !v.pending() {
		t.Error("what a restart brings back is not pending")
	}
	run(t, "vmctl", "share", "attach", v.name, "rw")
	contains(t, v.typed("mount -t virtiofs rw /m; cat /m/from-guest; umount /m"), "from the guest")
	run(t, "vmctl", "share", "detach", v.name, "rw", "--persist")
	v.shareEnded("rw")
	if left := try("ls", v.file()+".d").stdout; strings.Contains(left, "share-") || v.pending() {
		t.Errorf("drop-ins are left: %s", left)
	}
	run(t, "vmctl", "stop", v.name)
	contains(t, fail(t, 4, "vmctl", "share", "attach", v.name, "rw", "--path", rw), "does not run", "--persist")
}

// Whatever is killed in between leaves nothing that the next attempt does not mend.
func TestHotSharesInterrupted(t *testing.T) {
	newerSuiteOnly(t, "what is cut off is ours, and done undisturbed on both")
	t.Parallel()
	dir := hostDir(t, "hot-shares-killed")
	v := newVM(t, "hotshare-killed", "memory_options.shared = true\n")
	v.boot()
	attach := []string{"share", "attach", v.name, "src", "--path", dir}
	run(t, append([]string{"vmctl"}, attach...)...)
	run(t, "vmctl", "pause", v.name)
	contains(t, fail(t, 5, "vmctl", "share", "detach", v.name, "src", "--timeout", "3s"), "the guest has not let go of src")
	contains(t, run(t, "vmctl", "show", v.name), "share.src is being detached")
	contains(t, fail(t, 4, append([]string{"vmctl"}, attach...)...), "has not let go of src yet")
	run(t, "vmctl", "resume", v.name)
	run(t, "vmctl", "share", "detach", v.name, "src")
	v.shareEnded("src")

	unit := "vm-share@" + v.name + ".service"
	for i := range 10 {
		for _, args := range [][]string{attach, {"share", "detach", v.name, "src"}} {
			cmd := exec.Command("vmctl", args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
			if i%2 == 0 {
				try("systemctl", "kill", "--signal=KILL", unit)
			}
			cmd.Process.Kill()
			cmd.Wait()
		}
		eventually(t, "what goes on without vmctl has ended", func() bool {
			return strings.TrimSpace(try("systemctl", "list-units", "--all", "--plain", "--no-legend", unit).stdout) == ""
		})
		if r := try(append([]string{"vmctl"}, attach...)...); r.code != 0 && !strings.Contains(r.stderr, "has a share named src already") && !strings.Contains(r.stderr, "has not let go of src yet") {
			t.Fatalf("attach: %s", r.all())
		}
		run(t, "vmctl", "share", "detach", v.name, "src")
		v.shareEnded("src")
	}
	if strings.Contains(v.journal(), "virtiofsd has ended") {
		t.Errorf("a share that nobody has is called lost:\n%s", v.journal())
	}
	// It takes one still.
	writeFile(t, dir+"/file", "content\n")
	run(t, append([]string{"vmctl"}, attach...)...)
	contains(t, v.typed("mkdir -p /m; mount -t virtiofs src /m; cat /m/file"), "content")
	run(t, "systemctl", "stop", v.unit())
	v.shareEnded("src")
}

// A share of a machine of cloud-hypervisor's, by what stands in for it: it is served
// anew at each reboot of the guest, until it is detached.
func TestCloudHotShare(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "cloud-hotshare")
	by := byStandin(t)
	private := newVMFrom(t, "cloud-private", by.line+sameOfBoth(guestKernel(t), ""))
	private.up()
	contains(t, fail(t, 4, "vmctl", "share", "attach", private.name, "src", "--path", dir), "memory that no other process can map")
	run(t, "vmctl", "kill", private.name)

	v := newVMFrom(t, "cloud-hotshare", by.line+sameOfBoth(guestKernel(t), "memory_options.shared = true\n"))
	v.up()
	run(t, "vmctl", "share", "attach", v.name, "src", "--path", dir, "--readonly")
	contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), `"share-src"`, config.SystemPaths("").SidecarSocket(v.shareUnit("src")))
	contains(t, run(t, "vmctl", "show", v.name), "tag src, read-only, serving")
	if level := exposureOf(t, v.shareUnit("src")); level > 2.0 {
		t.Errorf("exposure %v, want at most 2.0", level)
	}
	run(t, "systemctl", "daemon-reload")
	served := unitPID(t, v.shareUnit("src"))
	v.typeLine("r")
	v.expect(guestUp)
	eventually(t, "it is served again", func() bool { return unitPID(t, v.shareUnit("src")) != served })
	contains(t, fail(t, 4, "vmctl", "save", v.name), "share-src was plugged in while it ran")
	v.typeLine("deaf")
	v.expect(`deaf`)
	contains(t, fail(t, 5, "vmctl", "share", "detach", v.name, "src", "--timeout", "1s"), "the guest has not let go of src")
	if unitPID(t, v.shareUnit("src")) == 0 {
		t.Error("a share that the guest has is served no more")
	}
	v.typeLine("willing")
	v.expect(`willing`)
	run(t, "vmctl", "share", "detach", v.name, "src")
	v.shareEnded("src")
	run(t, "vmctl", "share", "attach", v.name, "src", "--path", dir)
	v.typeLine("crash")
	v.expect(guestUp) // without it
	v.shareEnded("src")
	if strings.Contains(v.journal(), "virtiofsd has ended") {
		t.Errorf("a share that nobody misses is called lost:\n%s", v.journal())
	}
	if got := fmt.Sprint(v.show()["shares"]); got != "[]" {
		t.Errorf("after a crash there are %s", got)
	}
}

// The same by cloud-hypervisor itself, with a guest of ours, which has no drivers: it
// lets go of a share by a reboot alone.
func TestCloudHypervisorHotShare(t *testing.T) {
	dir := hostDir(t, "cloud-real-hotshare")
	v := newVMFrom(t, "cloud-real-hotshare", byCloud(t).line+sameOfBoth(guestKernel(t), "memory_options.shared = true\n"))
	v.up()
	pid := v.mainPID()
	run(t, "vmctl", "share", "attach", v.name, "src", "--path", dir, "--tag", "the-src")
	contains(t, run(t, "vmctl", "monitor", v.name, "--command", "vm.info"), `"share-src"`, `"the-src"`)
	served := unitPID(t, v.shareUnit("src"))
	v.typeLine("r")
	v.expect(guestUp)
	eventually(t, "it is served again", func() bool { return unitPID(t, v.shareUnit("src")) != served })
	contains(t, run(t, "vmctl", "show", v.name), "tag the-src, serving")
	contains(t, fail(t, 5, "vmctl", "share", "detach", v.name, "src", "--timeout", "1s"), "the guest has not let go of src")
	v.typeLine("r")
	v.expect(guestUp)
	run(t, "vmctl", "share", "detach", v.name, "src")
	v.shareEnded("src")
	if v.mainPID() != pid {
		t.Error("cloud-hypervisor has ended")
	}
	if strings.Contains(v.journal(), "virtiofsd has ended") {
		t.Errorf("a share that nobody misses is called lost:\n%s", v.journal())
	}
}

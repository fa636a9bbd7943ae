//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hasDisk waits until the guest has a disk, and returns it.
func (v *vm) hasDisk(serial string) guestDisk {
	v.t.Helper()
	return v.guestDisks(serial)[serial]
}

// hasNoDisk waits until the guest has not got a disk any more.
func (v *vm) hasNoDisk(serial string) {
	v.t.Helper()
	eventually(v.t, "the guest has not got "+serial, func() bool {
		_, ok := v.guestDisks()[serial]
		return !ok
	})
}

// pending is whether vmctl says that a restart would change something.
func (v *vm) pending() bool {
	v.t.Helper()
	pending, _ := v.show()["pending_changes"].(bool)
	return pending
}

// Disks are plugged into running guests on every bus that takes them, written to,
// grown, taken out, and read elsewhere.
func TestHotDisks(t *testing.T) {
	for _, board := range []string{"q35", "pc"} {
		t.Run(board, func(t *testing.T) {
			t.Parallel()
			dir := hostDir(t, "hot-"+board)
			v := newVMFrom(t, "hot-"+board, littleGuest("generic", "")+fmt.Sprintf("machine = %q\n[disk.boot]\nsize = \"8M\"\n", board))
			other := newVMFrom(t, "hot-other-"+board, littleGuest("generic", "")+fmt.Sprintf("machine = %q\n", board))
			v.boot()
			other.start()
			buses := []string{"virtio", "scsi", "usb", "nvme"}
			file := func(bus string) string { return filepath.Join(dir, `a, "b" %n '`+bus+`' ü.img`) }
			for i, bus := range buses {
				path, name := image(t, file(bus), "before "+bus, megabyte), "d-"+bus
				before := run(t, "getfacl", "--absolute-names", "--numeric", path)
				run(t, "vmctl", "disk", "attach", v.name, name, "--path", path, "--bus", bus)
				d := v.hasDisk(name)
				if got := v.read(d); got != "before "+bus || d.bus != bus {
					t.Errorf("%s: the guest reads %q of %+v", bus, got, d)
				}
				if after := run(t, "getfacl", "--absolute-names", "--numeric", path); after != before {
					t.Errorf("%s: the file's access changed to %s", bus, after)
				}
				contains(t, fail(t, 1, "vmctl", "disk", "attach", other.name, "x", "--path", path, "--bus", buses[(i+1)%len(buses)]), "is in use by vm@"+v.name)
				contains(t, fail(t, 4, "vmctl", "disk", "attach", v.name, name, "--path", path), "has a disk named "+name+" already")
				if bus == "nvme" {
					contains(t, fail(t, 4, "vmctl", "disk", "resize", v.name, name, "2M"), "does not grow while the machine runs")
				} else {
					run(t, "vmctl", "disk", "resize", v.name, name, "2M")
				}
				if bus == "virtio" || bus == "scsi" {
					eventually(t, "the guest sees that "+name+" has grown", func() bool { return v.guestDisks()[name].size == fmt.Sprint(2*megabyte) })
				}
				contains(t, fail(t, 4, "vmctl", "disk", "resize", v.name, name, "512K"), "would lose what lies beyond")
				v.write(v.hasDisk(name), "after "+bus)
			}
			if !v.pending() {
				t.Error("what a restart would take out again is not pending")
			}
			contains(t, run(t, "vmctl", "diff", v.name), "disk.d-virtio")
			contains(t, run(t, "vmctl", "disk", "list", v.name), "d-virtio", "d-nvme")
			contains(t, run(t, "vmctl", "show", v.name), "d-virtio", "d-nvme")
			for i, bus := range buses {
				run(t, "vmctl", "disk", "detach", v.name, "d-"+bus)
				v.hasNoDisk("d-" + bus)
				if got := imageText(t, file(bus)); got != "after "+bus {
					t.Errorf("%s: the file holds %q", bus, got)
				}
				next := buses[(i+1)%len(buses)]
				run(t, "vmctl", "disk", "attach", v.name, "again-"+bus, "--path", file(bus), "--bus", next)
				if got := v.read(v.hasDisk("again-" + bus)); got != "after "+bus {
					t.Errorf("%s: on %s the guest reads %q", bus, next, got)
				}
			}
			run(t, "vmctl", "disk", "detach", v.name, "again-virtio")
			run(t, "vmctl", "disk", "attach", other.name, "mine", "--path", file("virtio"), "--bus", "scsi")
			run(t, "vmctl", "disk", "detach", other.name, "mine")

			// One that the machine was started with.
			v.write(v.hasDisk("boot"), "written to boot")
			run(t, "vmctl", "disk", "detach", v.name, "boot")
			v.hasNoDisk("boot")
			run(t, "vmctl", "disk", "attach", v.name, "boot")
			if got := v.read(v.hasDisk("boot")); got != "written to boot" {
				t.Errorf("of the boot disk the guest reads %q", got)
			}
			run(t, "vmctl", "restart", v.name)
			v.expectReady()
			disks := v.guestDisks()
			if _, ok := disks["boot"]; !ok || len(disks) != 1 {
				t.Errorf("after a restart the guest has %v", disks)
			}
			contains(t, fail(t, 4, "vmctl", "disk", "attach", v.name, "s", "--size", "1M", "--bus", "sata"), "takes no disks while the machine runs")
		})
	}
}

// What is attached or detached with --persist is so after a restart, and is no
// pending change before.
func TestHotDisksPersist(t *testing.T) {
	t.Parallel()
	v := newVM(t, "hot-persist", "[disk.first]\nsize = \"8M\"\n[disk.second]\nsize = \"8M\"\n")
	v.boot()
	dropIn := func(disk string) string { return v.file() + ".d/60-disk-" + disk + ".toml" }
	v.write(v.hasDisk("second"), "on second")
	run(t, "vmctl", "disk", "attach", v.name, "data", "--size", "8M", "--bus", "scsi", "--persist")
	v.write(v.hasDisk("data"), "on data")
	run(t, "vmctl", "disk", "detach", v.name, "second", "--persist")
	v.hasNoDisk("second")
	if v.pending() {
		t.Error("what was persisted is pending")
	}
	contains(t, run(t, "cat", dropIn("data")), "[disk.data]", `size = "8M"`)
	contains(t, run(t, "cat", dropIn("second")), "enabled = false")

	run(t, "systemctl", "restart", v.unit())
	v.expectReady()
	disks := v.guestDisks("data")
	if _, has := disks["second"]; has || v.read(disks["data"]) != "on data" || v.pending() {
		t.Errorf("after a restart the guest has %v, pending %v", disks, v.pending())
	}
	run(t, "vmctl", "disk", "attach", v.name, "second", "--persist")
	if got := v.read(v.hasDisk("second")); got != "on second" {
		t.Errorf("on second is %q", got)
	}
	run(t, "vmctl", "disk", "detach", v.name, "data", "--persist")
	v.hasNoDisk("data")
	if v.pending() {
		t.Error("what was persisted is pending")
	}
	for _, disk := range []string{"data", "second"} {
		if _, err := os.Lstat(dropIn(disk)); err == nil {
			t.Errorf("%s is left", dropIn(disk))
		}
	}

	// The same to a machine that does not run.
	run(t, "vmctl", "stop", v.name)
	contains(t, fail(t, 4, "vmctl", "disk", "attach", v.name, "data", "--size", "8M"), "does not run", "--persist")
	run(t, "vmctl", "disk", "attach", v.name, "data", "--size", "8M", "--persist")
	run(t, "vmctl", "disk", "detach", v.name, "first", "--persist")
	contains(t, fail(t, 3, "vmctl", "disk", "attach", v.name, "none", "--path", "/srv/none.img", "--persist"), "/srv/none.img")
	run(t, "vmctl", "start", v.name)
	v.expectReady()
	disks = v.guestDisks()
	if _, has := disks["first"]; has || v.read(disks["data"]) != "on data" {
		t.Errorf("after a start the guest has %v", disks)
	}
}

// A guest that does not let go of a disk keeps it, and when it does, the disk is
// taken out by the next attempt. Whatever is killed in between leaves nothing.
func TestHotDisksInterrupted(t *testing.T) {
	newerSuiteOnly(t, "what is cut off is ours, and done undisturbed on both")
	t.Parallel()
	dir := hostDir(t, "hot-killed")
	path := image(t, filepath.Join(dir, "data.img"), "data", megabyte)
	v := newVM(t, "hot-killed", "[disk.base]\nsize = \"1M\"\n")
	v.boot()
	attach := []string{"disk", "attach", v.name, "data", "--path", path}
	run(t, append([]string{"vmctl"}, attach...)...)
	v.hasDisk("data")
	run(t, "vmctl", "pause", v.name)
	contains(t, fail(t, 5, "vmctl", "disk", "detach", v.name, "data", "--timeout", "3s"), "the guest has not let go of data")
	contains(t, run(t, "vmctl", "show", v.name), "disk.data is being detached")
	run(t, "vmctl", "resume", v.name)
	run(t, "vmctl", "disk", "detach", v.name, "data")
	v.hasNoDisk("data")

	for range 10 { // two each
		for _, args := range [][]string{attach, {"disk", "detach", v.name, "data"}} {
			cmd := exec.Command("vmctl", args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
			cmd.Process.Kill()
			cmd.Wait()
		}
		eventually(t, "what goes on without vmctl has ended", func() bool {
			return strings.TrimSpace(try("systemctl", "list-units", "--all", "--plain", "--no-legend", "vm-disk@"+v.name+".service").stdout) == ""
		})
		if r := try(append([]string{"vmctl"}, attach...)...); r.code != 0 && !strings.Contains(r.stderr, "has a disk named data already") {
			t.Fatalf("attach: %s", r.all())
		}
		if got := v.read(v.hasDisk("data")); got != "data" {
			t.Fatalf("the guest reads %q", got)
		}
		run(t, "vmctl", "disk", "detach", v.name, "data")
		v.hasNoDisk("data")
	}

	// The end of the hypervisor takes all back.
	run(t, append([]string{"vmctl"}, attach...)...)
	run(t, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", v.unit())
	v.expectReady()
	if disks := v.guestDisks(); len(disks) != 1 {
		t.Errorf("after a crash the guest has %v", disks)
	}
	run(t, append([]string{"vmctl"}, attach...)...)
	v.hasDisk("data")
}

// A guest sees another medium in its drive.
func TestChangeMedium(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "medium")
	first, second := image(t, filepath.Join(dir, "first.iso"), "first", megabyte), image(t, filepath.Join(dir, "second.iso"), "second", 2*megabyte)
	v := newVMFrom(t, "medium", littleGuest("generic", "")+fmt.Sprintf("[disk.cd]\nmedia = \"cdrom\"\npath = %q\n", first))
	v.boot()
	cd := v.hasDisk("sata cdrom")
	if got := v.read(cd); got != "first" {
		t.Errorf("in the drive is %q", got)
	}
	run(t, "vmctl", "disk", "insert", v.name, "cd", second)
	eventually(t, "the guest reads the other medium", func() bool {
		v.typeLine("read " + cd.name)
		return strings.Contains(v.expect(`vmctl-guest: (.*)\n`)[0], `holds "second"`)
	})
	run(t, "vmctl", "disk", "eject", v.name, "cd")
	run(t, "vmctl", "disk", "insert", v.name, "cd", first)
	contains(t, fail(t, 3, "vmctl", "disk", "eject", v.name, "none"), "without a drive named none")
}

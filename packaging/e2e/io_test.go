//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// shellTime has the guest do something and returns how many whole seconds of
// its own clock went by.
func (v *vm) shellTime(command string) int {
	v.t.Helper()
	v.typeLine("a=$(cut -d. -f1 /proc/uptime); " + command + " && b=$(cut -d. -f1 /proc/uptime) && echo it took $((b-a)) seconds")
	seconds, err := strconv.Atoi(v.expect(`it took (\d+) seconds`)[0])
	if err != nil {
		v.t.Fatal(err)
	}
	return seconds
}

// allocated is how many bytes of the host's disk a file takes.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var s syscall.Stat_t
	if err := syscall.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return s.Blocks * 512
}

// openFlags are those with which a machine's hypervisor has a file open.
func (v *vm) openFlags(file string) int64 {
	v.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", v.mainPID())
	fds, err := filepath.Glob(proc + "fd/*")
	if err != nil {
		v.t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err != nil || target != file {
			continue
		}
		info, err := os.ReadFile(proc + "fdinfo/" + filepath.Base(fd))
		if err != nil {
			v.t.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			if value, ok := strings.CutPrefix(line, "flags:"); ok {
				flags, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
				if err != nil {
					v.t.Fatal(err)
				}
				return flags
			}
		}
	}
	v.t.Fatalf("the hypervisor does not have %s open", file)
	return 0
}

// cannotDirect mounts a file system that knows no direct I/O.
func cannotDirect(t *testing.T, dir string) {
	t.Helper()
	run(t, "mount", "-t", "ramfs", "-o", "mode=0755", "vmctl-test", dir)
	t.Cleanup(func() { try("umount", "-l", dir) })
}

// Direct I/O where all that a disk stands on can do it, io_uring where the
// sandbox lets it: as told, as shown, and as the kernel sees it.
func TestIOIsChosenByTrying(t *testing.T) {
	t.Parallel()
	can, cannot := hostDir(t, "io-can"), hostDir(t, "io-cannot")
	cannotDirect(t, cannot)
	plain := image(t, filepath.Join(can, "plain.img"), "plain", megabyte)
	ram := image(t, filepath.Join(cannot, "ram.img"), "ram", megabyte)
	run(t, "chmod", "666", ram)
	child := filepath.Join(can, "child.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", ram, "-F", "raw", child)
	unsafe := image(t, filepath.Join(can, "unsafe.img"), "unsafe", megabyte)
	disks := []struct {
		name, file, more string
		direct           bool
	}{
		{"plain", plain, "", true},
		{"ram", ram, "bus = \"scsi\"\n", false},
		{"forgets", plain, "readonly = true\nbus = \"scsi\"\n", true},
		{"unsafe", unsafe, "cache = \"unsafe\"\n", false},
		{"cached", filepath.Join(can, "cached.img"), "cache = \"writeback\"\n", false},
		{"cd", filepath.Join(can, "cd.iso"), "media = \"cdrom\"\n", true},
	}
	image(t, filepath.Join(can, "cached.img"), "cached", megabyte)
	image(t, filepath.Join(can, "cd.iso"), "cd", megabyte)
	disks[2].file = image(t, filepath.Join(can, "readonly.img"), "readonly", megabyte)
	definition := "[disk.new]\nsize = \"8M\"\n"
	for _, d := range disks {
		definition += fmt.Sprintf("[disk.%s]\npath = %q\n%s", d.name, d.file, d.more)
	}
	v := newVM(t, "io-chosen", definition)
	v.boot()
	for _, d := range disks {
		if got := v.openFlags(d.file)&syscall.O_DIRECT != 0; got != d.direct {
			t.Errorf("disk %s: direct: %v, want %v", d.name, got, d.direct)
		}
	}
	if v.openFlags(config.SystemPaths("").Disk(v.name, "new", "qcow2"))&syscall.O_DIRECT == 0 {
		t.Error("the new disk is not read and written directly")
	}
	contains(t, v.journal(), "disk ram: "+ram+": the host's page cache by threads ("+ram+" cannot do direct I/O: invalid argument)")
	shown := v.show()["disks"].([]any)
	for _, one := range shown {
		d := one.(map[string]any)
		t.Logf("%s: %v", d["name"], d["io"])
		switch d["name"] {
		case "plain", "new", "cd", "forgets":
			// Nothing in the sandbox forbids it, and the kernels of tests have it.
			if d["direct_io"] != true || d["aio"] != hypervisor.IOURing && !uringForbidden() {
				t.Errorf("%v", d)
			}
		default:
			if d["direct_io"] != false || d["aio"] != hypervisor.Threads {
				t.Errorf("%v", d)
			}
		}
	}
	contains(t, run(t, "vmctl", "show", v.name), "direct I/O by ")
	// All of them work.
	writable := []string{"new", "plain", "ram", "unsafe", "cached"}
	seen := v.guestDisks(writable...)
	for _, name := range writable {
		v.write(seen[name], "written to "+name)
		if got := v.read(seen[name]); got != "written to "+name {
			t.Errorf("%s holds %q", name, got)
		}
	}
	run(t, "systemctl", "stop", v.unit())

	// What is below counts too.
	v.define(littleGuest("cloud", "") + fmt.Sprintf("[disk.below]\npath = %q\nreadonly = true\n[disk.child]\npath = %q\n", ram, child))
	v.boot()
	if v.openFlags(child)&syscall.O_DIRECT != 0 {
		t.Error("the child of a file that cannot be read directly is read directly")
	}
	if got := v.read(v.guestDisks()["child"]); got != "written to ram" {
		t.Errorf("through the child: %q", got)
	}
	run(t, "systemctl", "stop", v.unit())

	// What cannot be done is refused by its key, and not tried again and again.
	v.define(littleGuest("cloud", "") + fmt.Sprintf("[disk.ram]\npath = %q\ncache = \"none\"\n", ram))
	run(t, "systemctl", "daemon-reload")
	if r := try("systemctl", "start", v.unit()); r.code == 0 {
		t.Error("a machine started that cannot have what it wants")
	}
	contains(t, v.journal("-n", "20"), `disk.ram.cache: "none" needs direct I/O, `+ram)
	v.waitState("failed")
	contains(t, v.property("ExecMainStatus"), "78")
}

// uringForbidden says whether the host forbids io_uring to all, or to all but
// root.
func uringForbidden() bool {
	b, err := os.ReadFile("/proc/sys/kernel/io_uring_disabled")
	return err == nil && strings.TrimSpace(string(b)) != "0"
}

// What the guest does not need any more, the host has back: by discard, and by
// zeros that are written. Limits on the disk change nothing of that.
func TestDiscardReachesTheHost(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "discard")
	raw := image(t, filepath.Join(dir, "raw.img"), "", 16*megabyte)
	kept := image(t, filepath.Join(dir, "kept.img"), "", 16*megabyte)
	v := newVM(t, "discard", fmt.Sprintf(`
[disk.raw]
path = %q
[disk.qcow]
size = "16M"
[disk.limited]
size = "16M"
bandwidth = "1G"
[disk.kept]
path = %q
discard = false
`, raw, kept))
	v.boot()
	made := func(disk string) string { return config.SystemPaths("").Disk(v.name, disk, "qcow2") }
	files := map[string]string{"raw": raw, "qcow": made("qcow"), "limited": made("limited"), "kept": kept}
	seen := v.guestDisks()
	fill := func(name, from string) {
		v.typeLine("dd if=" + from + " of=/dev/" + seen[name].name + " bs=1M count=8 oflag=direct conv=fsync 2>/dev/null && echo $((8-1)) MiB and one more")
		v.expect("7 MiB and one more")
	}
	for name, file := range files {
		for _, how := range []string{"discard", "zeros"} {
			fill(name, "/dev/urandom")
			full := allocated(t, file)
			if full < 8*megabyte {
				t.Fatalf("%s: 8 MiB were written, the file has %d bytes", name, full)
			}
			if how == "zeros" {
				fill(name, "/dev/zero")
			} else {
				v.typeLine("blkdiscard -l 8388608 /dev/" + seen[name].name + "; echo discard: $?")
				v.expect(`discard: \d`)
			}
			got := allocated(t, file)
			if name == "kept" && got < full || name != "kept" && got > full/2 {
				t.Errorf("%s: %d bytes on the host, %d after %s", name, full, got, how)
			}
		}
	}
	run(t, "systemctl", "stop", v.unit())
}

// A disk is as slow as its limits say, and no slower once they are gone.
func TestThrottledDisk(t *testing.T) {
	newerSuiteOnly(t, "QEMU has held to such limits for as long as there are both")
	t.Parallel()
	v := newVM(t, "throttled", `
[disk.slow]
size = "64M"
bandwidth_write = "1M"
[disk.few]
size = "64M"
bus = "scsi"
iops = 16
[disk.free]
size = "64M"
`)
	v.boot()
	seen := v.guestDisks("slow", "few", "free")
	write := func(disk string, kib int) string {
		return fmt.Sprintf("dd if=/dev/zero of=/dev/%s bs=64k count=%d oflag=direct 2>/dev/null", seen[disk].name, kib/64)
	}
	// A limit lets a tenth of a second's worth through at once. A guest's own
	// requests may be smaller than what it was asked for, which only takes longer.
	if took := v.shellTime(write("slow", 4<<10)); took < 2 {
		t.Errorf("4 MiB at 1 MiB/s took %d s", took)
	}
	if took := v.shellTime(write("few", 4<<10)); took < 2 {
		t.Errorf("64 writes at 16/s took %d s", took)
	}

	throttle := func(disk string, options ...string) {
		t.Helper()
		run(t, append([]string{"vmctl", "disk", "throttle", v.name, disk}, options...)...)
	}
	for _, disk := range []string{"slow", "few", "free"} {
		throttle(disk, "--bandwidth", "256K", "--iops-read", "1000")
		if took := v.shellTime(write(disk, 1<<10)); took < 2 {
			t.Errorf("%s: 1 MiB at 256 KiB/s took %d s", disk, took)
		}
		throttle(disk, "--none")
		// At 256 KiB/s it would take longer than a test may.
		v.shellTime(write(disk, 60<<10))
	}
	contains(t, run(t, "vmctl", "disk", "throttle", v.name, "free"), v.name+" free: no limits")

	// For the next start too, with what the definition says set aside.
	if r := try("vmctl", "disk", "throttle", v.name, "none", "--none"); r.code == 0 {
		t.Error("a disk that is not there was limited")
	}
	throttle("slow", "--iops", "8", "--persist")
	run(t, "vmctl", "stop", v.name)
	if r := try("vmctl", "disk", "throttle", v.name, "slow", "--none"); r.code != 4 {
		t.Errorf("while it does not run: exit status %d: %s", r.code, r.all())
	}
	throttle("few", "--none", "--persist")
	run(t, "vmctl", "start", v.name)
	v.expectReady()
	contains(t, run(t, "vmctl", "disk", "throttle", v.name, "slow"), v.name+" slow: 8 operations/s")
	contains(t, run(t, "vmctl", "disk", "throttle", v.name, "few"), v.name+" few: no limits")
	if took := v.shellTime(write("slow", 2<<10)); took < 2 {
		t.Errorf("32 writes at 8/s took %d s", took)
	}
	run(t, "systemctl", "stop", v.unit())
}

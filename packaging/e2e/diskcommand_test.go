//go:build e2e

package e2e

import (
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// noise makes a raw image of random content, which nothing compresses.
func noise(t *testing.T, path string, size int) string {
	t.Helper()
	content := make([]byte, size)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, string(content))
	return path
}

// same checks that two images have the same content.
func same(t *testing.T, a, formatA, b, formatB string) {
	t.Helper()
	run(t, "qemu-img", "compare", "-q", "-f", formatA, "-F", formatB, a, b)
}

// sum has the guest read the first 4 MiB of a disk.
func (v *vm) sum(disk guestDisk) string {
	v.t.Helper()
	v.typeLine("head -c 4194304 /dev/" + disk.name + " | sha256sum")
	return v.expect(`([0-9a-f]{64})  -`)[0]
}

// fillWithNoise has the guest write to the first 4 MiB of a disk, and says what
// it then has there.
func (v *vm) fillWithNoise(disk guestDisk) string {
	v.t.Helper()
	v.typeLine("dd if=/dev/urandom of=/dev/" + disk.name + " bs=1M count=4 conv=fsync; echo filled $?")
	v.expect(`filled 0`)
	return v.sum(disk)
}

// noDrafts checks that nothing half made lies in directories.
func noDrafts(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// Whatever is done to a machine's disks, its guest finds on them what it wrote.
func TestDiskCommands(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "diskcmd")
	golden := noise(t, filepath.Join(dir, "golden.raw"), 4*megabyte)
	run(t, "vmctl", "image", "import", golden, "--name", "e2e-diskcmd")
	t.Cleanup(func() { try("vmctl", "image", "delete", "--yes", "e2e-diskcmd") })
	base, other, given := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "other.qcow2"), filepath.Join(dir, "given.qcow2")
	for _, file := range []string{base, other} {
		run(t, "vmctl", "disk", "convert", golden, file)
		run(t, "chmod", "644", file) // what an overlay stands on, everybody may read
	}
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 7 1M 1M", other)
	run(t, "vmctl", "disk", "overlay", base, given)
	definition := fmt.Sprintf(`
[disk.own]
size = "4M"
[disk.other-format]
size = "4M"
[disk.of-image]
image = "e2e-diskcmd"
[disk.given]
path = %q
`, given)
	v := newVM(t, "diskcmd", definition)
	v.boot()
	disks := v.guestDisks()
	sums := map[string]string{}
	for _, name := range []string{"own", "other-format", "of-image", "given"} {
		sums[name] = v.fillWithNoise(disks[name])
	}
	own := v.stateDir() + "/disk-own.qcow2"
	for _, args := range [][]string{
		{"flatten", v.name, "of-image"}, {"convert", v.name, "own"}, {"clone", v.name, "own", dir + "/torn.qcow2"}, {"delete", v.name, "own", "--yes"},
		{"rebase", given, "--backing", other}, {"flatten", given}, {"import", golden, v.name, "own", "--replace"},
	} {
		contains(t, fail(t, 4, append([]string{"vmctl", "disk"}, args...)...), v.name)
	}
	contains(t, run(t, "vmctl", "disk", "show", v.name, "own"), "Held by:", "vm@"+v.name, "Used by:", "running")
	contains(t, run(t, "vmctl", "disk", "show", base), "Below:", given)
	contains(t, run(t, "vmctl", "disk", "list", v.name), "image e2e-diskcmd", given)
	run(t, "systemctl", "stop", v.unit())

	contains(t, fail(t, 4, "vmctl", "disk", "resize", base, "8M"), given)
	owner := run(t, "stat", "-c", "%u:%g %a", own)
	run(t, "vmctl", "disk", "resize", v.name, "own", "8M")
	run(t, "vmctl", "disk", "convert", v.name, "own", "--compress")
	if got := run(t, "stat", "-c", "%u:%g %a", own); got != owner {
		t.Errorf("the disk is of %s now, was of %s", got, owner)
	}
	run(t, "vmctl", "disk", "clone", v.name, "other-format", filepath.Join(dir, "clone.qcow2"))
	run(t, "vmctl", "disk", "convert", filepath.Join(dir, "clone.qcow2"), filepath.Join(dir, "clone.vmdk"))
	run(t, "vmctl", "disk", "flatten", v.name, "of-image")
	run(t, "vmctl", "disk", "rebase", given, "--backing", other)
	run(t, "vmctl", "image", "delete", "--yes", "e2e-diskcmd")

	// The same machine with two more disks: of a foreign format, and another's copy.
	v.define(littleGuest("cloud", "") + definition + "[disk.imported]\nsize = \"4M\"\n[disk.cloned]\nsize = \"4M\"\n")
	run(t, "vmctl", "disk", "import", filepath.Join(dir, "clone.vmdk"), v.name, "imported")
	run(t, "vmctl", "disk", "clone", v.name, "own", v.name, "cloned")
	contains(t, fail(t, 4, "vmctl", "disk", "convert", v.name, "other-format", "--format", "raw"), `write format = "raw" for disk.other-format first`)
	v.define(littleGuest("cloud", "") + strings.Replace(definition, "[disk.other-format]", "[disk.other-format]\nformat = \"raw\"", 1) +
		"[disk.imported]\nsize = \"4M\"\n[disk.cloned]\nsize = \"4M\"\n")
	run(t, "vmctl", "disk", "convert", v.name, "other-format", "--format", "raw")
	noDrafts(t, dir, v.stateDir())
	sums["imported"], sums["cloned"] = sums["other-format"], sums["own"]
	v.boot()
	disks = v.guestDisks()
	for name, want := range sums {
		if got := v.sum(disks[name]); got != want {
			t.Errorf("%s: the guest reads something else than it wrote", name)
		}
	}
	if got := disks["own"].size; got != fmt.Sprint(8*megabyte) {
		t.Errorf("grown to 8M it has %s bytes", got)
	}
	run(t, "systemctl", "stop", v.unit())
	run(t, "vmctl", "disk", "flatten", given)
	run(t, "rm", base, other)
	v.boot()
	if got := v.sum(v.guestDisks()["given"]); got != sums["given"] {
		t.Error("given: once it stands on nothing, the guest reads something else than it wrote")
	}
	run(t, "systemctl", "stop", v.unit())
	run(t, "vmctl", "disk", "delete", "--yes", v.name, "imported")
	noDrafts(t, dir, v.stateDir())
}

// killed runs vmctl and kills it after a time. It says whether it had ended
// before.
func killed(t *testing.T, after time.Duration, args ...string) (ended bool) {
	t.Helper()
	cmd := exec.Command("vmctl", args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return true
	case <-time.After(after):
	}
	err := cmd.Process.Kill()
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	<-done
	return err != nil
}

// A command that is killed, at whatever moment, leaves the disk whole, keeps
// nobody from it, and can be done again.
func TestDiskCommandsKilled(t *testing.T) {
	newerSuiteOnly(t, "what is cut off is ours, and done undisturbed on both")
	t.Parallel()
	const times = 20
	dir := hostDir(t, "diskkill")
	in := func(name string) string { return filepath.Join(dir, name) }
	v := newVM(t, "diskkill", "\n[disk.root]\nsize = \"4M\"\n")
	v.boot()
	written := v.fillWithNoise(v.guestDisks()["root"])
	run(t, "systemctl", "stop", v.unit())
	disk := v.stateDir() + "/disk-root.qcow2"
	// Something that takes a while: an overlay of the guest's disk, grown, with more.
	run(t, "cp", disk, in("base.qcow2"))
	run(t, "chmod", "644", in("base.qcow2"))
	run(t, "qemu-img", "resize", "-q", "-f", "qcow2", in("base.qcow2"), "96M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", in("base.qcow2"), "-F", "qcow2", in("pristine.qcow2"))
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 5 5M 80M", in("pristine.qcow2"))
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", in("pristine.qcow2"), in("content.raw"))

	for _, op := range []struct {
		args []string
		made string // the file that it makes; "" where it changes work.qcow2
	}{
		{[]string{"flatten", in("work.qcow2")}, ""},
		{[]string{"resize", in("work.qcow2"), "64G"}, ""},
		{[]string{"rebase", in("work.qcow2"), "--backing", in("base2.qcow2")}, ""},
		{[]string{"clone", in("work.qcow2"), in("made.qcow2")}, "made.qcow2"},
		{[]string{"convert", in("work.qcow2"), in("made.raw")}, "made.raw"},
		{[]string{"import", in("work.qcow2"), v.name, "root", "--replace"}, disk},
	} {
		args := append([]string{"disk"}, op.args...)
		reset := func() {
			run(t, "cp", in("pristine.qcow2"), in("work.qcow2"))
			run(t, "cp", in("base.qcow2"), in("base2.qcow2"))
			if op.made != "" && op.made != disk {
				os.Remove(in(op.made))
			}
		}
		check := func() {
			t.Helper()
			var r result
			eventually(t, "what was killed has ended", func() bool { // a moment after vmctl
				r = try("qemu-img", "check", "-q", "-f", "qcow2", in("work.qcow2"))
				return !strings.Contains(r.stderr, "lock")
			})
			if r.code != 0 && r.code != 3 { // lost space is no lost data
				t.Fatalf("%s: %s", op.args[0], r.all())
			}
			// Grown, it has zeros at its end, which compare takes as the same.
			same(t, in("work.qcow2"), "qcow2", in("content.raw"), "raw")
			if op.made == disk {
				if r := try("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", disk, in("base.qcow2")); r.code != 0 {
					same(t, disk, "qcow2", in("content.raw"), "raw")
				}
			} else if op.made != "" {
				if _, err := os.Stat(in(op.made)); err == nil {
					same(t, in(op.made), strings.TrimPrefix(filepath.Ext(op.made), "."), in("content.raw"), "raw")
				}
			}
		}
		reset()
		begin := time.Now()
		run(t, append([]string{"vmctl"}, args...)...)
		whole := time.Since(begin)
		check()
		ended := 0
		for interrupted := 0; interrupted < times; {
			reset()
			if killed(t, time.Duration(mathrand.Int64N(int64(whole))), args...) {
				ended++
				whole = whole * 9 / 10 // what was first measured was on a busier machine
			} else {
				interrupted++
			}
			check()
		}
		t.Logf("%s: killed %d times before its end, %d times not, at moments up to %v", op.args[0], times, ended, whole)
		// Nothing is locked, and what was left is removed.
		reset()
		run(t, append([]string{"vmctl"}, args...)...)
		check()
		noDrafts(t, dir, v.stateDir())
	}
	run(t, "qemu-img", "check", "-q", "-f", "qcow2", disk)
	v.boot()
	if got := v.sum(v.guestDisks()["root"]); got != written {
		t.Error("the guest reads something else than it wrote")
	}
}

// Where there is no space, a command says so and leaves the disk as it was.
func TestDiskCommandsWithoutSpace(t *testing.T) {
	newerSuiteOnly(t, "what runs out of space is ours, and done with enough of it on both")
	t.Parallel()
	dir := hostDir(t, "diskfull")
	in := func(name string) string { return filepath.Join(dir, name) }
	content := noise(t, in("content.raw"), 6*megabyte)
	run(t, "vmctl", "disk", "convert", content, in("content.qcow2"))
	run(t, "chmod", "644", content)
	small := in("small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("vmctl-test", small, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", content, "-F", "raw", small+"/disk.qcow2")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 3 0 4M", small+"/disk.qcow2")
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", small+"/disk.qcow2", in("wanted.raw"))
	disk := small + "/disk.qcow2"
	refused := func(name string, args ...string) {
		t.Helper()
		before := run(t, "ls", "-A", small)
		r := try(append([]string{"vmctl", "disk"}, args...)...)
		if r.code != 4 && r.code != 1 || !strings.Contains(strings.ToLower(r.stderr), "space") {
			t.Errorf("%s: exit status %d, %s", name, r.code, r.all())
		}
		run(t, "qemu-img", "check", "-q", "-f", "qcow2", disk)
		same(t, disk, "qcow2", in("wanted.raw"), "raw")
		if left := run(t, "ls", "-A", small); left != before {
			t.Errorf("%s: left behind: %s", name, left)
		}
	}
	for name, args := range map[string][]string{
		"flatten":      {"flatten", disk},
		"clone":        {"clone", in("content.qcow2"), small + "/new.qcow2"},
		"convert":      {"convert", content, small + "/new.qcow2"},
		"compressed":   {"convert", content, small + "/new.qcow2", "--compress"}, // how much it takes is not known before
		"rebase":       {"rebase", disk, "--backing", in("content.qcow2")},
		"clone of raw": {"clone", content, small + "/new.raw"},
	} {
		refused(name, args...)
	}
	// Not a byte is left.
	try("dd", "if=/dev/zero", "of="+small+"/rest", "bs=64K")
	try("dd", "if=/dev/zero", "of="+small+"/rest2", "bs=4K")
	refused("create", "create", small+"/new.qcow2", "--size", "1G")
	refused("overlay", "overlay", in("content.qcow2"), small+"/new.qcow2")
	// The tables of a disk that grows much need space too.
	refused("resize", "resize", disk, "100T")
}

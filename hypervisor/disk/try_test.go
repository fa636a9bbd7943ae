package disk

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// cannotDirect is a directory on a file system that knows no direct I/O.
func cannotDirect(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("vmctl-test", dir, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestTryDirect(t *testing.T) {
	can, cannot := t.TempDir(), cannotDirect(t)
	child := func(dir, name, base, format string) string {
		path := filepath.Join(dir, name)
		if out, err := exec.Command("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", format, path, "1M").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return path
	}
	good := image(t, filepath.Join(can, "good.raw"), "-f", "raw")
	bad := image(t, filepath.Join(cannot, "bad.raw"), "-f", "raw")
	empty := filepath.Join(can, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pretends := child(can, "pretends.raw", "/dev/null", "raw")
	middle := child(can, "middle.qcow2", bad, "raw")
	for _, test := range []struct {
		path, format string
		chain        bool
		want         string // "" that it works
	}{
		{good, Raw, true, ""},
		{empty, Raw, true, ""},
		{bad, Raw, true, bad + " cannot do direct I/O: invalid argument"},
		{child(can, "a.qcow2", good, "raw"), QCOW2, true, ""},
		{child(can, "b.qcow2", "good.raw", "raw"), QCOW2, true, ""},
		{child(cannot, "c.qcow2", good, "raw"), QCOW2, true, "c.qcow2 cannot do direct I/O: invalid argument"},
		{middle, QCOW2, true, bad + " cannot do direct I/O: invalid argument"},
		{child(can, "d.qcow2", middle, "qcow2"), QCOW2, true, bad + " cannot do direct I/O: invalid argument"},
		{middle, QCOW2, false, ""},
		{child(can, "e.qcow2", "e.qcow2", "qcow2"), QCOW2, true, "the images behind it never end"},
		{image(t, filepath.Join(can, "f.vmdk"), "-f", "vmdk"), "vmdk", false, "a vmdk image may have its content elsewhere"},
		{child(can, "g.qcow2", pretends, "raw"), QCOW2, true, ""}, // a guest wrote its header
		{"/dev/null", Raw, true, "/dev/null is neither a file nor a block device"},
		{good, QCOW2, true, good + ": not a qcow2 image"},
		{filepath.Join(can, "missing"), Raw, true, "open " + filepath.Join(can, "missing") + ": no such file or directory"},
	} {
		d := TryDirect(test.path, test.format, test.chain)
		if d.Works != (test.want == "") || !strings.HasSuffix(d.Unwise, test.want) {
			t.Errorf("%s: got %+v, want %q", test.path, d, test.want)
		}
	}
}

func TestUnwise(t *testing.T) {
	for fs, want := range map[int64]bool{unix.EXT4_SUPER_MAGIC: false, unix.XFS_SUPER_MAGIC: false, unix.BTRFS_SUPER_MAGIC: true, 0x2fc12fc1: true} {
		if got := unwise(fs); (got != "") != want {
			t.Errorf("%#x: got %q", fs, got)
		}
	}
}

func TestTryEngines(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	linked := libraries(qemu)
	if !linked["liburing"] || !linked["libaio"] || linked["libc.so"] {
		t.Errorf("%s: got %v", qemu, linked)
	}
	if got := TryEngines(qemu, false); got.IOURing != (tryURing() == nil) || got.Native != (tryNative() == nil) {
		t.Errorf("got %+v, the kernel says %v and %v", got, tryURing(), tryNative())
	}
	script := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{script, "/nowhere", "/proc/self/exe"} {
		if got := TryEngines(program, false); got.IOURing || got.Native {
			t.Errorf("%s: got %+v", program, got)
		}
		if got := TryEngines(program, true); got.IOURing != (tryURing() == nil) || got.Native != (tryNative() == nil) {
			t.Errorf("%s, which has them built in: got %+v", program, got)
		}
	}
}

package access

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

// Block devices are given like files, and not while the host itself uses them.
func TestBlockDevice(t *testing.T) {
	h := newHost(t)
	image := h.file("disk.img", 0o600)
	if err := os.Truncate(image, 8<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", image).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "--detach", device).Run()

	before := h.state(device)
	f := hypervisor.File{Key: "disk.data.path", Path: device, Write: true, Disk: true}
	h.mustTake("first", alice, f)
	if !can(alice, device, true) {
		t.Error("the machine's user has not got access")
	}
	if got := h.take("second", bob, f); len(got) != 1 || got[0].Text != device+" is in use by vm@first" {
		t.Errorf("a second machine: got %v", got)
	}
	h.giveBack("first")
	if after := h.state(device); after != before {
		t.Errorf("after: %s\nbefore: %s", after, before)
	}

	if out, err := exec.Command("mkfs.ext4", "-q", device).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	mounted := h.dir + "/mounted"
	h.mkdir(mounted, 0o755)
	if err := unix.Mount(device, mounted, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(mounted, 0)
	want := device + " is in use by the host (mounted, or part of a volume group or RAID)"
	if got := h.take("first", alice, f); len(got) != 1 || got[0].Text != want {
		t.Errorf("a mounted device: got %v, want %q", got, want)
	}
}

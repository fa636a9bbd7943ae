package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/console"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// parseDisk is a disk as a definition would have it.
func (h host) parseDisk(name, table string) config.Disk {
	h.Helper()
	file := filepath.Join(h.TB.TempDir(), "x.toml")
	h.write(file, "[disk."+name+"]\n"+table, 0o644)
	vm := config.LoadFile(h.paths, file)
	if len(vm.Problems) > 0 {
		h.Fatal(vm.Problems)
	}
	return vm.Machine.Disks[0]
}

// operate does something to a disk, and returns its error, "" for none.
func (h host) operate(what string, q hypervisor.DiskRequest) string {
	h.Helper()
	out, err := h.operation(what, q).Output()
	if err != nil && len(out) == 0 {
		h.Fatal(err)
	}
	err = operation.Follow(strings.NewReader(string(out)), func(operation.Progress) {}, func(string) {}, nil)
	if err == nil {
		return ""
	}
	return err.Error()
}

func (h host) operation(what string, q hypervisor.DiskRequest) *exec.Cmd {
	if q.Timeout == 0 {
		q.Timeout = 5 * time.Second
	}
	b, err := json.Marshal(q)
	if err != nil {
		h.Fatal(err)
	}
	return h.command(nil, "operate", h.vm, what, string(b))
}

// plugged are the disks that the hypervisor has.
func (h host) plugged() (disks map[string]int64) {
	h.Helper()
	h.control(func(ctx context.Context, c hypervisor.Control) (err error) {
		disks, err = c.(hypervisor.DiskHotplug).PluggedDisks(ctx)
		return err
	})
	return disks
}

func (h host) changes() hypervisor.Changes {
	h.Helper()
	c, err := hypervisor.ReadChanges(h.paths, h.vm)
	if err != nil {
		h.Fatal(err)
	}
	return c
}

// guestFile is a file that the machine's user cannot open.
func (h host) guestFile(name string, size int64) string {
	h.Helper()
	path := filepath.Join(filepath.Dir(h.disk), name)
	h.write(path, "", 0o600)
	if err := os.Truncate(path, size); err != nil {
		h.Fatal(err)
	}
	return path
}

func TestAttachAndDetach(t *testing.T) {
	h := newHost(t)
	p := h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	path := h.guestFile(`a, "b" %n $x ü`, 1<<20)
	before := acls(t, path)
	data := h.parseDisk("data", fmt.Sprintf("path = %q\nformat = \"raw\"\nbus = \"scsi\"\n", path))
	extra := h.parseDisk("extra", "size = \"1M\"\nbus = \"usb\"\n")
	want := func(what string, d config.Disk, text string) {
		t.Helper()
		got := h.operate(what, hypervisor.DiskRequest{Disk: d})
		if text == "" && got != "" || !strings.Contains(got, text) {
			t.Fatalf("%s %s: got %q, want %q", what, d.Name, got, text)
		}
	}
	// The controller has to be plugged in first, for which no guest is needed.
	want(hypervisor.DiskAttach, data, "")
	want(hypervisor.DiskAttach, data, "has a disk named data already")
	want(hypervisor.DiskAttach, extra, "")
	if got := h.plugged(); got["data"] != 1<<20 || got["extra"] != 1<<20 {
		t.Errorf("plugged are %v", got)
	}
	if acls(t, path) != before {
		t.Error("the machine's user was given access to the file")
	}
	again := data
	again.Name = "again"
	want(hypervisor.DiskAttach, again, "is another disk of this machine already")
	sata := h.parseDisk("x", "size = \"1M\"\nbus = \"sata\"\n")
	want(hypervisor.DiskAttach, sata, "takes no disks while the machine runs")
	wrong := h.parseDisk("x", fmt.Sprintf("path = %q\nformat = \"qcow2\"\n", h.disk))
	other := h.guestFile("other.img", 1<<20)
	wrong.Path = other
	want(hypervisor.DiskAttach, wrong, "want a qcow2 image")
	wrong.Path, wrong.Format = filepath.Dir(h.disk), "raw"
	want(hypervisor.DiskAttach, wrong, "is a directory")
	h.importImage("stored", "x")
	wrong.Path = h.paths.Image("stored")
	want(hypervisor.DiskAttach, wrong, "is the stored image stored, which is never written to")
	want(hypervisor.DiskDetach, config.Disk{Name: "none"}, "runs without a disk named none")

	// What the hypervisor has is not touched by mending.
	h.must(nil, "mend", h.vm)
	want(hypervisor.DiskDetach, data, "")
	want(hypervisor.DiskDetach, extra, "")
	want(hypervisor.DiskAttach, extra, "")
	if c := h.changes(); len(c.Disks) != 1 || c.Disks[0].Name != "extra" || len(c.Gone) != 0 {
		t.Errorf("changed are %+v", c)
	}
	if !access.IsThere(h.paths.Disk(h.vm, "extra", "qcow2")) {
		t.Error("the file of a detached disk is gone")
	}
	// This guest lets go of nothing.
	want(hypervisor.DiskDetach, config.Disk{Name: "boot"}, "the guest has not let go of boot")
	if c := h.changes(); len(c.Leaving) != 1 {
		t.Errorf("changed are %+v", c)
	}
	p.Process.Kill()
	h.cleanup(p)
	if c := h.changes(); !c.None() {
		t.Errorf("after the end, changed are %+v", c)
	}
	want(hypervisor.DiskAttach, data, "does not run")
}

// A disk of an image with a file behind it, which the machine's user may read or
// may not.
func TestAttachChain(t *testing.T) {
	h := newHost(t)
	h.start()
	top, base := filepath.Join(h.paths.Root, "top.qcow2"), filepath.Join(h.paths.Root, "base.img")
	h.write(base, strings.Repeat("x", 1<<20), 0o644)
	create := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%s", out)
		}
	}
	create("-b", base, "-F", "raw", top)
	d := h.parseDisk("data", fmt.Sprintf("path = %q\nbus = \"scsi\"\n", top))
	if got := h.operate(hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: d}); got != "" {
		t.Fatal(got)
	}
	if got := h.operate(hypervisor.DiskDetach, hypervisor.DiskRequest{Disk: d}); got != "" {
		t.Fatal(got)
	}
	if err := os.Chmod(base, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := h.operate(hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: d}); !strings.Contains(got, "may not read "+base) {
		t.Errorf("got %q", got)
	}
	if err := os.Remove(base); err != nil {
		t.Fatal(err)
	}
	if got := h.operate(hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: d}); !strings.Contains(got, "does not exist") {
		t.Errorf("got %q", got)
	}
}

// Whenever what attaches or detaches is killed, mending has the record agree with
// the hypervisor, and the next attempt works.
func TestDiskOperationsKilled(t *testing.T) {
	h := newHost(t)
	h.start()
	path := h.guestFile("data.img", 1<<20)
	byPath := h.parseDisk("data", fmt.Sprintf("path = %q\nformat = \"raw\"\nbus = \"usb\"\n", path))
	made := h.parseDisk("made", "size = \"1M\"\nbus = \"scsi\"\n")
	for range 8 {
		for _, d := range []config.Disk{byPath, made} {
			for _, what := range []string{hypervisor.DiskAttach, hypervisor.DiskDetach} {
				cmd := h.operation(what, hypervisor.DiskRequest{Disk: d})
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
				cmd.Process.Kill()
				cmd.Wait()
				h.must(nil, "mend", h.vm)
				_, there := h.plugged()[d.Name]
				noted := len(h.changes().Disks) == 1
				if there != noted {
					t.Fatalf("%s %s: there: %v, noted: %v", what, d.Name, there, noted)
				}
				if (what == hypervisor.DiskAttach) != there {
					if got := h.operate(what, hypervisor.DiskRequest{Disk: d}); got != "" {
						t.Fatalf("%s %s again: %s", what, d.Name, got)
					}
				}
			}
		}
	}
}

func TestMediumOfADrive(t *testing.T) {
	h := newHost(t)
	first, second := h.guestFile("first.iso", 1<<20), h.guestFile("second.iso", 2<<20)
	h.define(h.definition() + fmt.Sprintf("\n[disk.cd]\nmedia = \"cdrom\"\npath = %q\n", first))
	h.start()
	do := func(what, path, want string) {
		t.Helper()
		got := h.operate(what, hypervisor.DiskRequest{Disk: config.Disk{Name: "cd", Path: path, Format: "raw"}})
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Fatalf("%s %s: %q", what, path, got)
		}
	}
	do(hypervisor.DiskInsert, second, "")
	if got := h.plugged()["cd"]; got != 2<<20 {
		t.Errorf("in the drive are %d bytes", got)
	}
	do(hypervisor.DiskInsert, second+"x", "does not exist")
	do(hypervisor.DiskInsert, h.disk, "is another disk of this machine already")
	if got := h.plugged()["cd"]; got != 2<<20 {
		t.Errorf("in the drive are %d bytes", got)
	}
	do(hypervisor.DiskEject, "", "")
	do(hypervisor.DiskEject, "", "")
	if got := h.plugged()["cd"]; got != 0 || len(h.changes().Empty) != 1 {
		t.Errorf("in the empty drive are %d bytes; %+v", got, h.changes())
	}
	do(hypervisor.DiskInsert, first, "")
	if got := h.plugged()["cd"]; got != 1<<20 || len(h.changes().Empty) != 0 {
		t.Errorf("in the drive are %d bytes; %+v", got, h.changes())
	}
	if got := h.operate(hypervisor.DiskEject, hypervisor.DiskRequest{Disk: config.Disk{Name: "boot"}}); !strings.Contains(got, "only CD-ROM drives") {
		t.Errorf("got %q", got)
	}
}

// A block device is handed over open: the unit's own rules would not let it in.
func TestAttachBlockDevice(t *testing.T) {
	h := newHost(t)
	h.start()
	out, err := exec.Command("losetup", "--find", "--show", h.guestFile("device.img", 1<<20)).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "--detach", device).Run()
	before := acls(t, device)
	d := h.parseDisk("data", fmt.Sprintf("path = %q\nbus = \"scsi\"\n", device))
	if got := h.operate(hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: d}); got != "" {
		t.Fatal(got)
	}
	if got := h.plugged()["data"]; got != 1<<20 {
		t.Errorf("the device has %d bytes", got)
	}
	if acls(t, device) != before {
		t.Error("the machine's user was given access to the device")
	}
	if got := h.operate(hypervisor.DiskDetach, hypervisor.DiskRequest{Disk: d}); got != "" {
		t.Fatal(got)
	}
	if err := exec.Command("mkfs.ext4", "-q", device).Run(); err != nil {
		t.Errorf("the device is still in use: %v", err)
	}
}

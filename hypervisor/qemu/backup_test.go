package qemu_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/qemu"
)

// hmp has QEMU run a command of its human monitor.
func (m *machine) hmp(command string) string {
	m.t.Helper()
	conn, err := net.Dial("unix", m.paths.QMPSocket("vm"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	lines.Scan() // greeting
	answer := ""
	for _, request := range []any{
		map[string]any{"execute": "qmp_capabilities"},
		map[string]any{"execute": "human-monitor-command", "arguments": map[string]string{"command-line": command}},
	} {
		b, err := json.Marshal(request)
		if err != nil {
			m.t.Fatal(err)
		}
		if _, err := conn.Write(append(b, '\n')); err != nil {
			m.t.Fatalf("%v; QEMU says: %s", err, m.stderr)
		}
		for lines.Scan() {
			var m struct{ Return any }
			if json.Unmarshal(lines.Bytes(), &m) == nil && m.Return != nil {
				answer, _ = m.Return.(string)
				break
			}
		}
	}
	return answer
}

// write writes to a disk below the guest's device, as the guest would.
func (m *machine) write(disk, pattern, at, size string) {
	m.t.Helper()
	m.io(disk, fmt.Sprintf("write -q -P %s %s %s", pattern, at, size))
}

// io has QEMU run a command of qemu-io on a guest's device, which must not have
// a thread of its own: QEMU 7.2 would end.
func (m *machine) io(disk, command string) {
	m.t.Helper()
	if out := m.hmp(fmt.Sprintf("qemu-io -d disk-%s %q", disk, command)); strings.TrimSpace(out) != "" {
		m.t.Fatalf("%s on %s: %s", command, disk, out)
	}
}

func (m *machine) copier() hypervisor.DiskCopier {
	m.t.Helper()
	return m.control().(hypervisor.DiskCopier)
}

func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
	return string(out)
}

// target makes an image to copy to.
func target(t *testing.T, path string, size int64, backing string) *os.File {
	t.Helper()
	args := []string{"create", "-q", "-f", "qcow2"}
	if backing != "" {
		args = append(args, "-b", backing, "-F", "qcow2")
	}
	qemuImg(t, append(args, path, fmt.Sprint(size))...)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// copied waits for the end of a copy.
func copied(t *testing.T, c hypervisor.DiskCopier) error {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		_, _, ended, err := c.Copying(t.Context())
		if ended || err != nil {
			return errors.Join(err, c.EndCopy(t.Context()))
		}
	}
	t.Fatal("the copy does not end")
	return nil
}

// holds checks what an image, with all that it stands on, holds.
func holds(t *testing.T, path, format string, reads ...string) {
	t.Helper()
	for _, r := range reads {
		if out, err := exec.Command("qemu-io", "-r", "-f", format, "-c", "read -q -P "+r, path).CombinedOutput(); err != nil || strings.Contains(string(out), "failed") {
			t.Errorf("%s does not hold %q: %v %s", path, r, err, out)
		}
	}
}

func inspect(t *testing.T, c hypervisor.DiskCopier, key string) hypervisor.DiskState {
	t.Helper()
	s, err := c.InspectDisk(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCopyOfARunningMachine(t *testing.T) {
	const size = 8 << 20
	m := start(t, "[disk.root]\nsize = \"8M\"\nbus = \"sata\"\n[disk.raw]\nsize = \"8M\"\nformat = \"raw\"\nbus = \"sata\"\nbandwidth = \"500M\"\n")
	m.want(hypervisor.Started, "")
	c := m.copier()
	dir := t.TempDir()
	file := func(n string) string { return filepath.Join(dir, n+".qcow2") }

	m.write("root", "1", "0", "256k")
	m.write("raw", "2", "0", "256k")
	both := func(suffix, since, bitmap string) []hypervisor.DiskCopy {
		var copies []hypervisor.DiskCopy
		for _, d := range []string{"root", "raw"} {
			backing := ""
			if since != "" {
				backing = file(d + "-full")
			}
			copies = append(copies, hypervisor.DiskCopy{Key: "disk." + d, Target: target(t, file(d+suffix), size, backing), Since: since, Bitmap: bitmap})
		}
		return copies
	}
	if err := c.BeginCopy(t.Context(), both("-full", "", "b1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := copied(t, c); err != nil {
		t.Fatal(err)
	}
	holds(t, file("root-full"), "qcow2", "1 0 256k", "0 256k 7m")
	holds(t, file("raw-full"), "qcow2", "2 0 256k", "0 256k 7m")

	m.write("root", "3", "64k", "64k")
	m.io("root", "write -q -z 0 64k")
	m.write("raw", "4", "4m", "1")
	m.io("raw", "discard -q 64k 64k")
	for _, d := range []string{"root", "raw"} {
		s := inspect(t, c, "disk."+d)
		if len(s.Bitmaps) != 1 || !s.Bitmaps[0].Sound || s.Bitmaps[0].Dirty != 128<<10 || s.VirtualSize != size || s.KeepsBitmaps != (d == "root") {
			t.Errorf("%s: %+v", d, s)
		}
	}
	if err := c.BeginCopy(t.Context(), both("-inc", "b1", "b2"), 0); err != nil {
		t.Fatal(err)
	}
	m.write("root", "5", "64k", "64k") // after the moment
	if err := copied(t, c); err != nil {
		t.Fatal(err)
	}
	holds(t, file("root-inc"), "qcow2", "0 0 64k", "3 64k 64k", "1 128k 128k", "0 256k 7m")
	holds(t, file("raw-inc"), "qcow2", "2 0 64k", "0 64k 64k", "2 128k 128k", "4 4m 1")
	if s := inspect(t, c, "disk.root"); len(s.Bitmaps) != 2 {
		t.Errorf("bitmaps: %+v", s.Bitmaps)
	}

	// Cancelled: nothing is left of it but the bitmap, which can be removed.
	if err := c.BeginCopy(t.Context(), both("-cancelled", "b1", "b3"), 1<<10); err != nil {
		t.Fatal(err)
	}
	if _, _, ended, err := c.Copying(t.Context()); ended || err != nil {
		t.Errorf("so slow a copy has ended: %v, %v", ended, err)
	}
	if err := c.EndCopy(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{"b3", "b2", "none"} {
		if err := c.RemoveBitmap(t.Context(), "disk.root", b); err != nil {
			t.Error(err)
		}
	}
	if s := inspect(t, c, "disk.root"); len(s.Bitmaps) != 1 || s.Bitmaps[0].Name != "b1" {
		t.Errorf("bitmaps: %+v", s.Bitmaps)
	}
	if out := m.hmp("info block -n"); strings.Contains(out, "copy-") {
		t.Errorf("left: %s", out)
	}
	if _, err := c.InspectDisk(t.Context(), "disk.none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no disk: %v", err)
	}

	// What one that ended in order has kept, one that runs without a machine
	// goes on with.
	m.do(c.(hypervisor.Control).Quit)
	<-m.exited
	root, err := os.OpenFile(m.paths.Disk("vm", "root", "qcow2"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	o := openDisks(t, root)
	if s := inspect(t, o, "disk.root"); len(s.Bitmaps) != 1 || !s.Bitmaps[0].Sound {
		t.Errorf("bitmaps: %+v", s.Bitmaps)
	}
	if err := o.BeginCopy(t.Context(), both("-off", "b1", "b4")[:1], 0); err != nil {
		t.Fatal(err)
	}
	if err := copied(t, o); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if out := qemuImg(t, "compare", file("root-off"), m.paths.Disk("vm", "root", "qcow2")); !strings.Contains(out, "identical") {
		t.Error(out)
	}
	if out := qemuImg(t, "info", m.paths.Disk("vm", "root", "qcow2")); !strings.Contains(out, "b4") || strings.Contains(out, "in-use") {
		t.Error(out)
	}
}

func openDisks(t *testing.T, image *os.File) hypervisor.OpenedDisks {
	t.Helper()
	o, err := qemu.QEMU{}.OpenDisks(t.Context(), hypervisor.Probe(""), []hypervisor.OpenDisk{
		{Key: "disk.root", Images: []hypervisor.OpenImage{{File: image, Format: "qcow2", Write: true}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// A target that gets full fails the copy, and nothing else.
func TestCopyToAFullDisk(t *testing.T) {
	m := start(t, "[disk.root]\nsize = \"8M\"\nbus = \"sata\"\n")
	m.want(hypervisor.Started, "")
	c := m.copier()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "vmctl-test", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer exec.Command("umount", "-l", dir).Run()
	m.write("root", "7", "0", "4m")
	err := c.BeginCopy(t.Context(), []hypervisor.DiskCopy{{Key: "disk.root", Target: target(t, filepath.Join(dir, "x.qcow2"), 8<<20, ""), Bitmap: "b1"}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := copied(t, c); err == nil || !strings.Contains(err.Error(), "No space left") {
		t.Errorf("got %v", err)
	}
	m.status(c.(hypervisor.Control), hypervisor.StatusRunning)
	m.write("root", "8", "0", "4m")
}

func TestOpenDisksInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	first, second := target(t, path, 1<<20, ""), target(t, path, 1<<20, "")
	o := openDisks(t, first)
	_, err := qemu.QEMU{}.OpenDisks(context.Background(), hypervisor.Probe(""), []hypervisor.OpenDisk{
		{Key: "disk.root", Images: []hypervisor.OpenImage{{File: second, Format: "qcow2", Write: true}}},
	})
	if err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("got %v", err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}

// Disks that have a thread of their own, limits, or a firmware's variables on them.
func TestCopyOfAllKinds(t *testing.T) {
	definition := "boot.firmware = \"uefi\"\n"
	keys := []string{"boot.firmware"}
	for _, bus := range []string{"virtio", "scsi", "sata", "nvme", "usb", "floppy"} {
		definition += fmt.Sprintf("[disk.%s]\nsize = \"1440K\"\nbus = %q\nformat = \"raw\"\n", bus, bus)
		if bus != "floppy" {
			definition += "iops = 100\n"
		}
		keys = append(keys, "disk."+bus)
	}
	m := start(t, definition)
	m.want(hypervisor.Started, "")
	c := m.copier()
	dir := t.TempDir()
	since := ""
	for _, bitmap := range []string{"b1", "b2"} {
		var copies []hypervisor.DiskCopy
		for _, key := range keys {
			d := hypervisor.DiskCopy{Key: key, Target: target(t, filepath.Join(dir, key+bitmap), inspect(t, c, key).VirtualSize, "")}
			if key != "boot.firmware" {
				d.Bitmap, d.Since = bitmap, since
			}
			copies = append(copies, d)
		}
		if err := c.BeginCopy(t.Context(), copies, 0); err != nil {
			t.Fatal(err)
		}
		if err := copied(t, c); err != nil {
			t.Fatal(err)
		}
		since = bitmap
	}
	m.status(c.(hypervisor.Control), hypervisor.StatusRunning)
}

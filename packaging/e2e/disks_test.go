//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// guestDisk is a block device as the little guest sees it.
type guestDisk struct{ name, kind, bus, size, mode, serial string }

// id is what a disk is known by across restarts: its serial number, or since
// drives for removable media have none, what it is.
func (d guestDisk) id() string {
	if d.kind == "disk" {
		return d.serial
	}
	return d.bus + " " + d.kind
}

var diskLine = regexp.MustCompile(`disk (\S+) kind=(\S+) bus=(\S+) size=(\d+) mode=(\S+) serial="([^"\n]*)"`)

// guestDisks asks the guest for its disks, until it has those of the given ids: one
// on a bus that has to be scanned comes when the guest is up already.
func (v *vm) guestDisks(ids ...string) map[string]guestDisk {
	v.t.Helper()
	var disks map[string]guestDisk
	eventually(v.t, fmt.Sprintf("the guest sees %q", ids), func() bool {
		disks = v.disksNow()
		return !slices.ContainsFunc(ids, func(id string) bool {
			_, ok := disks[id]
			return !ok
		})
	})
	return disks
}

// disksNow asks the guest for the disks that it has.
func (v *vm) disksNow() map[string]guestDisk {
	v.t.Helper()
	v.typeLine("disks")
	text := v.expect(`(?s)(vmctl-guest: disk .*?)vmctl-guest: disks done`)[0]
	disks := map[string]guestDisk{}
	for _, m := range diskLine.FindAllStringSubmatch(text, -1) {
		d := guestDisk{name: m[1], kind: m[2], bus: m[3], size: m[4], mode: m[5], serial: m[6]}
		if other, ok := disks[d.id()]; ok {
			v.t.Errorf("two disks are %s: %v and %v", d.id(), other, d)
		}
		disks[d.id()] = d
	}
	return disks
}

// write has the guest write a text to a disk.
func (v *vm) write(disk guestDisk, text string) {
	v.t.Helper()
	v.typeLine("write " + disk.name + " " + text)
	v.expect(`vmctl-guest: wrote ` + disk.name)
}

// cannotWrite checks that the guest cannot write to a disk.
func (v *vm) cannotWrite(disk guestDisk) {
	v.t.Helper()
	v.typeLine("write " + disk.name + " overwritten")
	if how := v.expect(`vmctl-guest: (write: .*|wrote .*)\n`)[0]; !strings.HasPrefix(how, "write: ") {
		v.t.Errorf("%s: the guest could write to it", disk.id())
	}
}

// read has the guest read what is written on a disk.
func (v *vm) read(disk guestDisk) string {
	v.t.Helper()
	v.typeLine("read " + disk.name)
	return v.expect(`vmctl-guest: ` + disk.name + ` holds "(.*)"`)[0]
}

// image makes a raw image that begins with a text.
func image(t *testing.T, path, text string, size int64) string {
	t.Helper()
	writeFile(t, path, text+"\x00")
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// imageText is the text with which a raw image begins.
func imageText(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sector := make([]byte, 512)
	if _, err := f.Read(sector); err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(sector), "\x00")
	return text
}

// hostDir makes a directory of the host's that tests cannot confuse with one
// of systemd's own temporary ones.
func hostDir(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join("/srv", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

const megabyte = 1 << 20

// busDisk is one disk of TestBuses: what the definition says, and what the
// guest has to see.
type busDisk struct {
	table string // TOML below [disk.NAME], path apart
	bus   string
	kind  string // "disk" if empty
	ro    bool
	size  int64 // megabyte if 0
}

// testBuses boots a machine with the disks, each a file of its own, and checks
// that the guest sees each as it should, that what is written comes to the file
// and is there after a restart, and that what is read-only is. The guest also
// has a network card of the model, and answers behind a port of the host.
func testBuses(t *testing.T, name, board, card string, port int, disks map[string]busDisk) {
	t.Parallel()
	dir := hostDir(t, name)
	file := func(disk string) string { return filepath.Join(dir, disk+".img") }
	definition := littleGuest("generic", "") + fmt.Sprintf(`machine = %q
[nic.lan]
user = true
model = %q
forward = ["127.0.0.1:%d:7"]
`, board, card, port)
	ids := map[string]string{} // what the guest knows it by, to the definition's name
	for disk, want := range disks {
		size := want.size
		if size == 0 {
			size = megabyte
		}
		image(t, file(disk), "before "+disk, size)
		definition += fmt.Sprintf("[disk.%s]\npath = %q\n%s\n", disk, file(disk), want.table)
		id := disk
		switch {
		case want.kind == "cdrom", want.kind == "floppy":
			id = want.bus + " " + want.kind
		case strings.Contains(want.table, "serial"):
			id = "S-123 x"
		}
		ids[id] = disk
	}
	v := newVMFrom(t, name, definition)
	v.boot()
	contains(t, v.shown(), "driver "+card)
	v.greets(fmt.Sprint("127.0.0.1:", port), "hello from")

	seen := byName(v.guestDisks(slices.Collect(maps.Keys(ids))...), ids)
	for disk, want := range disks {
		got := seen[disk]
		kind, mode, size := want.kind, "rw", want.size
		if kind == "" {
			kind = "disk"
		}
		if size == 0 {
			size = megabyte
		}
		if want.ro {
			mode = "ro"
		}
		if got.kind != kind || got.bus != want.bus || got.size != fmt.Sprint(size) || got.mode != mode && kind == "disk" {
			t.Errorf("%s: the guest sees %+v, want %s %s of %d bytes, %s", disk, got, want.bus, kind, size, mode)
		}
		if text := v.read(got); text != "before "+disk {
			t.Errorf("%s: the guest reads %q", disk, text)
		}
		if want.ro {
			v.cannotWrite(got)
		} else {
			v.write(got, "after "+disk)
		}
	}
	if t.Failed() {
		return
	}

	run(t, "systemctl", "restart", v.unit())
	v.expectReady()
	seen = byName(v.guestDisks(slices.Collect(maps.Keys(ids))...), ids)
	for disk, want := range disks {
		text := "after " + disk
		if want.ro {
			text = "before " + disk
		}
		if got := v.read(seen[disk]); got != text {
			t.Errorf("%s: after a restart the guest reads %q, want %q", disk, got, text)
		}
		if got := imageText(t, file(disk)); got != text {
			t.Errorf("%s: its file holds %q, want %q", disk, got, text)
		}
	}
	run(t, "systemctl", "stop", v.unit())
}

// byName are disks by the definition's names, which ids has.
func byName(disks map[string]guestDisk, ids map[string]string) map[string]guestDisk {
	named := map[string]guestDisk{}
	for id, d := range disks {
		if name, ok := ids[id]; ok {
			id = name
		}
		named[id] = d
	}
	return named
}

// On the board that is the default, every bus that it has.
func TestBusesOnQ35(t *testing.T) {
	testBuses(t, "buses-q35", "q35", "e1000e", 7011, map[string]busDisk{
		"d-virtio":  {bus: "virtio"},
		"d-scsi":    {table: `bus = "scsi"`, bus: "scsi"},
		"d-sata":    {table: `bus = "sata"`, bus: "sata"},
		"d-nvme":    {table: `bus = "nvme"`, bus: "nvme"},
		"d-usb":     {table: `bus = "usb"`, bus: "usb"},
		"d-floppy":  {table: `bus = "floppy"`, bus: "floppy", kind: "floppy", size: 1440 << 10},
		"d-serial":  {table: `serial = "S-123 x"`, bus: "virtio"},
		"ro-virtio": {table: `readonly = true`, bus: "virtio", ro: true},
		"ro-scsi":   {table: "bus = \"scsi\"\nreadonly = true", bus: "scsi", ro: true},
		"cd-sata":   {table: "bus = \"sata\"\nmedia = \"cdrom\"", bus: "sata", kind: "cdrom", ro: true},
		"cd-scsi":   {table: "bus = \"scsi\"\nmedia = \"cdrom\"", bus: "scsi", kind: "cdrom", ro: true},
		"cd-usb":    {table: "bus = \"usb\"\nmedia = \"cdrom\"", bus: "usb", kind: "cdrom", ro: true},
	})
}

// The old board has IDE where the other has SATA.
func TestBusesOnPC(t *testing.T) {
	newerSuiteOnly(t, "the buses of the other board are tried on both")
	testBuses(t, "buses-pc", "pc", "e1000", 7012, map[string]busDisk{
		"d-ide":    {table: `bus = "ide"`, bus: "ide"},
		"d-virtio": {bus: "virtio"},
		"d-scsi":   {table: `bus = "scsi"`, bus: "scsi"},
		"d-nvme":   {table: `bus = "nvme"`, bus: "nvme"},
		"d-usb":    {table: `bus = "usb"`, bus: "usb"},
		"d-floppy": {table: `bus = "floppy"`, bus: "floppy", kind: "floppy", size: 1440 << 10},
		"ro-usb":   {table: "bus = \"usb\"\nreadonly = true", bus: "usb", ro: true},
		"cd-ide":   {table: "bus = \"ide\"\nmedia = \"cdrom\"", bus: "ide", kind: "cdrom", ro: true},
	})
}

// Disks that vmctl makes, disks that forget, and images of other formats.
func TestDisksMadeAndForgotten(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "made")
	base := image(t, filepath.Join(dir, "base.img"), "golden", megabyte)
	qcow := filepath.Join(dir, "other.qcow2")
	run(t, "qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", image(t, filepath.Join(dir, "other.img"), "converted", megabyte), qcow)
	v := newVM(t, "made", fmt.Sprintf(`
[disk.new]
size = "8M"
[disk.new-raw]
size = "8M"
format = "raw"
[disk.scratch]
size = "8M"
ephemeral = true
[disk.forgets]
path = %q
ephemeral = true
[disk.qcow]
path = %q
`, base, qcow))
	v.boot()
	disks := v.guestDisks()
	for name, want := range map[string]string{"new": "", "new-raw": "", "scratch": "", "forgets": "golden", "qcow": "converted"} {
		if got := v.read(disks[name]); got != want {
			t.Errorf("%s: reads %q, want %q", name, got, want)
		}
		v.write(disks[name], "written to "+name)
	}
	if got := disks["new"].size; got != fmt.Sprint(8*megabyte) {
		t.Errorf("a disk of 8M has %s bytes", got)
	}
	made := v.stateDir() + "/disk-new.qcow2"
	contains(t, run(t, "stat", "-c", "%a", made), "600")
	inode := run(t, "stat", "-c", "%i", made)

	// Grown while nobody looks; the rest as before.
	run(t, "systemctl", "stop", v.unit())
	for _, disk := range []string{"scratch", "forgets"} {
		if _, err := os.Stat(v.stateDir() + "/disk-" + disk + ".qcow2"); err == nil {
			t.Errorf("%s is ephemeral, and left", disk)
		}
	}
	definition, err := os.ReadFile(v.file())
	if err != nil {
		t.Fatal(err)
	}
	v.define(strings.Replace(string(definition), `size = "8M"`, `size = "16M"`, 1))
	v.boot()
	disks = v.guestDisks()
	for name, want := range map[string]string{
		"new": "written to new", "new-raw": "written to new-raw", "scratch": "", "forgets": "golden", "qcow": "written to qcow",
	} {
		if got := v.read(disks[name]); got != want {
			t.Errorf("%s: after a restart reads %q, want %q", name, got, want)
		}
	}
	if got := disks["new"].size; got != fmt.Sprint(16*megabyte) {
		t.Errorf("grown to 16M it has %s bytes", got)
	}
	if got := run(t, "stat", "-c", "%i", made); got != inode {
		t.Errorf("the disk was made anew")
	}
	if got := imageText(t, base); got != "golden" {
		t.Errorf("the file of an ephemeral disk holds %q", got)
	}
	run(t, "systemctl", "stop", v.unit())
}

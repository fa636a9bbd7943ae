package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/qemu"
)

// hotDisk is a disk of a definition, to be plugged into the machine.
func (m *machine) hotDisk(name, table string) hypervisor.HotDisk {
	m.t.Helper()
	other := load(m.t, "vm", m.definition+"\n[disk."+name+"]\n"+table+"\n")
	for _, d := range other.Disks {
		if d.Name == name {
			hot := hypervisor.HotDisk{Machine: load(m.t, "vm", m.definition), Disk: d, Host: hypervisor.Probe(""), Paths: m.paths}
			if plan, problems := (qemu.QEMU{}).PlanDisk(hot); len(problems) == 0 {
				hot.IO = chooseIO(m.t, &hypervisor.Plan{Argv: m.cmd.Args[:1], Disks: plan.Disks})
			}
			return hot
		}
	}
	m.t.Fatalf("no disk %s", name)
	return hypervisor.HotDisk{}
}

// open opens what a disk needs, and makes what is new.
func (m *machine) open(d hypervisor.HotDisk) map[string][]*os.File {
	m.t.Helper()
	plan, problems := qemu.QEMU{}.PlanDisk(d)
	if len(problems) > 0 {
		m.t.Fatal(problems)
	}
	makeFiles(m.t, m.paths, &hypervisor.Plan{New: plan.New})
	files := map[string][]*os.File{}
	for _, o := range plan.Open {
		for _, flags := range o.Flags() {
			f, err := os.OpenFile(o.Path, flags, 0)
			if err != nil {
				m.t.Fatal(err)
			}
			m.t.Cleanup(func() { f.Close() })
			files[o.Path] = append(files[o.Path], f)
		}
	}
	return files
}

// hot is the control by which disks are changed; the caller closes it.
func (m *machine) hot() (hypervisor.DiskHotplug, func() error) {
	m.t.Helper()
	c, err := qemu.QEMU{}.Control(m.t.Context(), m.paths.JobSocket("vm"))
	if err != nil {
		m.t.Fatal(err)
	}
	return c.(hypervisor.DiskHotplug), c.Close
}

func (m *machine) attach(d hypervisor.HotDisk) error {
	m.t.Helper()
	c, done := m.hot()
	defer done()
	return c.AttachDisk(m.t.Context(), d, m.open(d))
}

// detach waits no longer than it takes where no guest is asked.
func (m *machine) detach(d hypervisor.HotDisk) error {
	m.t.Helper()
	c, done := m.hot()
	defer done()
	ctx, cancel := context.WithTimeout(m.t.Context(), 2*time.Second)
	defer cancel()
	return c.DetachDisk(ctx, d)
}

// nothingLeft checks that QEMU has nothing of a disk.
func (m *machine) nothingLeft(disk string) {
	m.t.Helper()
	var nodes []struct {
		Name string `json:"node-name"`
	}
	m.query("query-named-block-nodes", nil, &nodes)
	for _, n := range nodes {
		if strings.HasSuffix(n.Name, "-"+disk) {
			m.t.Errorf("node %s is left", n.Name)
		}
	}
	var sets []struct {
		Files []struct{ Opaque string } `json:"fds"`
	}
	m.query("query-fdsets", nil, &sets)
	for _, s := range sets {
		if strings.HasSuffix(s.Files[0].Opaque, "-"+disk) {
			m.t.Errorf("files %+v are left", s.Files)
		}
	}
	var threads []struct{ ID string }
	m.query("query-iothreads", nil, &threads)
	for _, t := range threads {
		if strings.HasSuffix(t.ID, "-"+disk) {
			m.t.Errorf("thread %s is left", t.ID)
		}
	}
}

// hotImage makes an image and returns the TOML that names it.
func hotImage(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("path = %q\nformat = \"raw\"\n", path)
}

// TestHotplug plugs disks into every bus that takes them, where there is a
// controller already and where there is none, and takes them out again. There is
// no guest: where it would have to let go of a disk, a reset of the machine
// does.
func TestHotplug(t *testing.T) {
	for _, board := range []string{"q35", "pc"} {
		for _, disks := range []string{"", "[disk.first]\nsize = \"1M\"\nbus = \"scsi\"\n[disk.second]\nsize = \"1M\"\nbus = \"usb\"\n[disk.third]\nsize = \"1M\"\n"} {
			m := start(t, "machine = \""+board+"\"\n"+disks)
			m.want(hypervisor.Started, "")
			dir := t.TempDir()
			for i, bus := range []string{"virtio", "scsi", "usb", "nvme"} {
				name := "hot" + bus
				table := hotImage(t, dir, fmt.Sprintf("a, \"b\" %%n $y ü=,,%d", i)) + fmt.Sprintf("bus = %q\n", bus)
				if bus == "virtio" {
					table += "cache = \"none\"\nserial = \"a,b=c\"\n"
				}
				if bus == "nvme" {
					table += "readonly = true\n"
				}
				d := m.hotDisk(name, table)
				if err := m.attach(d); err != nil {
					t.Fatalf("%s: attach %s: %v", board, bus, err)
				}
				m.drives([]string{name})
				if err := m.attach(d); !errors.Is(err, hypervisor.ErrPlugged) {
					t.Errorf("%s: attach %s again: %v", board, bus, err)
				}
				if lockable(t, d.Disk.Path) == d.Disk.Readonly {
					continue
				}
				err := m.detach(d)
				asked := bus == "virtio" || bus == "nvme"
				if asked != errors.Is(err, hypervisor.ErrNotReleased) || !asked && err != nil {
					t.Fatalf("%s: detach %s: %v", board, bus, err)
				}
				if asked {
					m.do(m.control().Reset)
					m.want(hypervisor.Rebooted, "")
					if err := m.detach(d); err != nil {
						t.Fatalf("%s: detach %s after a reset: %v", board, bus, err)
					}
				}
				m.nothingLeft(name)
				if !lockable(t, d.Disk.Path) {
					t.Errorf("%s: %s is still locked", board, d.Disk.Path)
				}
				if err := m.attach(d); err != nil {
					t.Fatalf("%s: attach %s once more: %v", board, bus, err)
				}
			}
		}
	}
}

// lockable says whether a second QEMU could write to an image.
func lockable(t *testing.T, path string) bool {
	t.Helper()
	return exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", path).Run() == nil
}

// A disk of the start can be detached, and the disk of another start attached by
// its name.
func TestDetachFromStart(t *testing.T) {
	m := start(t, "[disk.root]\nsize = \"1M\"\nbus = \"scsi\"\n[disk.long-"+strings.Repeat("x", 50)+"]\nsize = \"1M\"\nbus = \"usb\"\n")
	m.want(hypervisor.Started, "")
	for _, d := range load(t, "vm", m.definition).Disks {
		hot := hypervisor.HotDisk{Machine: load(t, "vm", m.definition), Disk: d, Paths: m.paths}
		if err := m.detach(hot); err != nil {
			t.Fatal(err)
		}
		m.nothingLeft(d.Name)
		if err := m.attach(hot); err != nil {
			t.Fatal(err)
		}
		m.drives([]string{d.Name})
	}
}

// What was cut off after any of its steps is no hindrance.
func TestHotplugCutOff(t *testing.T) {
	m := start(t, "[disk.root]\nsize = \"1M\"\nbus = \"usb\"\n")
	m.want(hypervisor.Started, "")
	d := m.hotDisk("data", hotImage(t, t.TempDir(), "x.img")+"bus = \"usb\"\n")
	for steps := 0; ; steps++ {
		c, done := m.hot()
		more, err := qemu.MakeSome(t.Context(), c, d, m.open(d), steps)
		done()
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			break
		}
		if err := m.attach(d); err != nil {
			t.Fatalf("after %d steps: %v", steps, err)
		}
		m.drives([]string{"data"})
		if err := m.detach(d); err != nil {
			t.Fatalf("after %d steps: %v", steps, err)
		}
		m.nothingLeft("data")
	}
}

// A qcow2 disk is opened with all the files that it stands on, and grown.
func TestHotplugChain(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, args := range [][]string{
		{"-f", "raw", at("base"), "1M"},
		{"-f", "qcow2", "-b", at("base"), "-F", "raw", at("middle.qcow2")},
		{"-f", "qcow2", "-b", at("middle.qcow2"), "-F", "qcow2", at("top.qcow2")},
	} {
		if out, err := exec.Command("qemu-img", append([]string{"create", "-q"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	}
	d := m.hotDisk("data", fmt.Sprintf("path = %q\nbus = \"scsi\"\n", at("top.qcow2")))
	d.Backing = []hypervisor.Layer{{Path: at("middle.qcow2"), Format: "qcow2"}, {Path: at("base"), Format: "raw"}}
	if err := m.attach(d); err != nil {
		t.Fatal(err)
	}
	c, done := m.hot()
	if err := c.ResizeDisk(t.Context(), d, 4<<20); err != nil {
		t.Error(err)
	}
	if sizes, err := c.PluggedDisks(t.Context()); err != nil || sizes["data"] != 4<<20 {
		t.Errorf("grown to %v, %v", sizes, err)
	}
	done()
	if err := m.detach(d); err != nil {
		t.Error(err)
	}
	m.nothingLeft("data")
}

// A file that another process has is refused by QEMU itself, and nothing is
// left.
func TestHotplugLocked(t *testing.T) {
	m, other := start(t, ""), start(t, "")
	m.want(hypervisor.Started, "")
	other.want(hypervisor.Started, "")
	table := hotImage(t, t.TempDir(), "x.img")
	if err := m.attach(m.hotDisk("data", table)); err != nil {
		t.Fatal(err)
	}
	d := other.hotDisk("data", table)
	if err := other.attach(d); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("a second machine: %v", err)
	}
	other.nothingLeft("data")
}

func TestHotRefusals(t *testing.T) {
	for _, test := range []struct{ board, bus, want string }{
		{"q35", "sata", `"sata" takes no disks while the machine runs: want virtio, scsi, usb, nvme, or a restart`},
		{"pc", "ide", `"ide" takes no disks while the machine runs`},
		{"q35", "floppy", `"floppy" takes no disks while the machine runs`},
		{"microvm", "virtio", `"microvm" takes no devices while it runs`},
	} {
		m := load(t, "vm", fmt.Sprintf("machine = %q\nboot.kernel = \"/k\"\n[disk.a]\nsize = \"1M\"\nbus = %q\n", test.board, test.bus))
		_, problems := qemu.QEMU{}.PlanDisk(hypervisor.HotDisk{Machine: m, Disk: m.Disks[0]})
		if len(problems) != 1 || !strings.Contains(problems[0].Text, test.want) {
			t.Errorf("%s %s: got %v", test.board, test.bus, problems)
		}
	}
}

// A medium is taken out of a drive, and another one put in.
func TestMedium(t *testing.T) {
	dir := t.TempDir()
	for _, bus := range []string{"sata", "scsi", "usb", "ide"} {
		m := start(t, "[disk.cd]\nmedia = \"cdrom\"\nbus = \""+bus+"\"\n"+hotImage(t, dir, "first,1"))
		m.want(hypervisor.Started, "")
		d := hypervisor.HotDisk{Machine: load(t, "vm", m.definition), Disk: load(t, "vm", m.definition).Disks[0], Paths: m.paths}
		for i := range 2 {
			c, done := m.hot()
			if err := c.EjectMedium(t.Context(), d, false); err != nil {
				t.Fatalf("%s: %v", bus, err)
			}
			if sizes, err := c.PluggedDisks(t.Context()); err != nil || sizes["cd"] != 0 {
				t.Errorf("%s: with an empty drive: %v, %v", bus, sizes, err)
			}
			m.nothingLeft("cd")
			d = m.hotDisk("cd2", hotImage(t, dir, fmt.Sprint("other", i))+"media = \"cdrom\"\nbus = \""+bus+"\"\n")
			d.Disk.Name = "cd"
			if err := c.InsertMedium(t.Context(), d, m.open(d), false); err != nil {
				t.Fatalf("%s: %v", bus, err)
			}
			done()
			m.drives([]string{"cd"})
		}
	}
}

// More disks than there are places are refused, and nothing is left of the last.
func TestHotplugFull(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	dir := t.TempDir()
	var names []string
	for i := range 10 {
		name := fmt.Sprint("d", i)
		err := m.attach(m.hotDisk(name, hotImage(t, dir, name)))
		if err == nil {
			names = append(names, name)
			continue
		}
		if !strings.Contains(err.Error(), "no place is free") || len(names) < 4 {
			t.Fatalf("after %v: %v", names, err)
		}
		m.nothingLeft(name)
		m.drives(names)
		return
	}
	t.Errorf("there was place for %v", names)
}

// The files are opened as the nodes will ask for them.
func TestOpenFlags(t *testing.T) {
	if got := (hypervisor.Open{Write: true}).Flags(); !slices.Equal(got, []int{os.O_RDWR, os.O_RDONLY}) {
		t.Errorf("got %v", got)
	}
}

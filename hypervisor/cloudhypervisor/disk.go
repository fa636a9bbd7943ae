package cloudhypervisor

import (
	"fmt"
	"slices"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// disk is one drive: its file, and what the guest sees.
func (p *planner) disk(d config.Disk) {
	before := len(p.problems)
	p.checkDisk(d)
	if len(p.problems) > before {
		return
	}
	file, shown := p.diskFile(d)
	p.plan.Disks = append(p.plan.Disks, hypervisor.DiskFile{
		Disk: d.Name, Nodes: []string{diskID(d.Name)}, Path: file, Format: d.Format, Cache: d.Cache, AIO: d.AIO,
	})
	queues := d.Queues
	if queues == 0 {
		queues = min(p.m.CPUs, 16)
	}
	parts := []string{text("path", shown)}
	if d.Readonly {
		parts = append(parts, "readonly=on")
	}
	if d.Cache == "none" {
		parts = append(parts, "direct=on")
	}
	parts = append(parts, engine(d.AIO)...)
	parts = append(parts, "image_type="+d.Format)
	if d.Format == "qcow2" {
		queues = 1 // several destroy images (upstream issues 7660, 8621)
		parts = append(parts, "backing_files=off")
	}
	if !d.Discard {
		parts = append(parts, "sparse=off")
	}
	parts = append(parts, fmt.Sprintf("num_queues=%d", queues))
	parts = append(parts, limits(d)...)
	parts = append(parts, text("serial", d.Serial), "id="+diskID(d.Name))
	p.disks = append(p.disks, options(parts...))
}

// checkDisk refuses what cloud-hypervisor cannot do, or not without danger for the
// guest's data, key by key.
func (p *planner) checkDisk(d config.Disk) {
	key := func(k string) string { return d.Key() + "." + k }
	if d.Media == "cdrom" {
		p.problem(key("media"), "%s, which has no CD-ROM drives: want \"disk\" with readonly = true, got \"cdrom\"", notSupported)
		return // and its bus with it
	}
	p.want(key("bus"), d.Bus, "virtio")
	p.checkFormat(d)
	p.want(key("cache"), d.Cache, "auto", "none", "writeback")
	switch {
	case d.Path == "" && d.Image == "" && d.Readonly:
		p.problem(key("readonly"), "a new empty disk cannot be read-only")
	case d.Ephemeral && d.Readonly:
		p.problem(key("ephemeral"), "of no use on a read-only disk")
	case d.Shareable && !d.Readonly:
		p.problem(key("shareable"), "%s, which locks what it writes to: want readonly = true beside it", notSupported)
	}
	if d.AIO == hypervisor.Native && d.Cache != "none" {
		p.problem(key("aio"), `"native" needs cache = "none", got %q`, d.Cache)
	}
	if d.Queues > p.m.CPUs {
		p.problem(key("queues"), "%s: want at most one for each CPU (%d), got %d", notSupported, p.m.CPUs, d.Queues)
	}
	for _, l := range []struct {
		key string
		set bool
	}{{"iops_read", d.IOPSRead != 0}, {"iops_write", d.IOPSWrite != 0}, {"bandwidth_read", d.BandwidthRead != 0}, {"bandwidth_write", d.BandwidthWrite != 0}} {
		if l.set {
			p.problem(key(l.key), "%s, which limits reads and writes together alone", notSupported)
		}
	}
}

// checkFormat refuses formats that cloud-hypervisor has not got, or is known to
// destroy: qcow2 while it is written to (upstream issues 7660, 8358, 8606, 8621,
// found in v50 to v53) and VHDX (6844).
func (p *planner) checkFormat(d config.Disk) {
	key := d.Key() + ".format"
	switch {
	case d.Format == "raw":
	case d.Format == "qcow2" && d.Readonly && d.Path != "":
	case d.Format == "qcow2":
		p.problem(key, "\"qcow2\" is %s while it is written to, since that has destroyed such images (its issues 7660, 8358, 8606 and 8621): want \"raw\" (qemu-img convert -O raw)", notSupported)
	default:
		p.problem(key, "%s: want \"raw\" (qemu-img convert -O raw), got %q", notSupported, d.Format)
	}
}

// diskFile is the file that a disk reads, which is made or taken from its owner
// before the start, and where the machine sees it.
func (p *planner) diskFile(d config.Disk) (file, shown string) {
	if d.Path != "" && !d.Ephemeral {
		f := hypervisor.File{
			Key: d.Key() + ".path", Path: d.Path, Write: !d.Readonly, Disk: true, Format: d.Format, Shareable: d.Shareable,
		}
		shown = p.shown(&f, d.Key())
		p.plan.Files = append(p.plan.Files, f)
		return d.Path, shown
	}
	file = p.paths.Disk(p.m.Name, d.Name, d.Format)
	made := hypervisor.NewFile{Key: d.Key(), Path: file, Size: int64(d.Size), Format: d.Format, Ephemeral: d.Ephemeral}
	switch {
	case d.Image != "":
		made.Backing, made.Image = p.paths.Image(d.Image), d.Image
	case d.Path != "": // a copy of it, made anew at each start
		p.plan.Files = append(p.plan.Files, hypervisor.File{Key: d.Key() + ".path", Path: d.Path, Disk: true, Format: d.Format})
		made.Backing, made.BackingFormat = d.Path, d.Format
	}
	p.plan.New = append(p.plan.New, made)
	return file, file
}

// limits are those of a disk. Each bucket is filled again every second.
func limits(d config.Disk) (parts []string) {
	const second = 1000 // ms
	if d.IOPS != 0 {
		parts = append(parts, fmt.Sprintf("ops_size=%d", d.IOPS), fmt.Sprintf("ops_refill_time=%d", second))
	}
	if d.Bandwidth != 0 {
		parts = append(parts, fmt.Sprintf("bw_size=%d", d.Bandwidth), fmt.Sprintf("bw_refill_time=%d", second))
	}
	return parts
}

var _ hypervisor.EngineBuilder = CloudHypervisor{}

// HasEngines implements [hypervisor.EngineBuilder]. Where it was built without one, it
// takes the next by itself.
func (CloudHypervisor) HasEngines() {}

// engine is how a disk waits for the kernel. cloud-hypervisor takes the first of
// io_uring, native and threads that works, and can be told to leave some out.
func engine(aio string) []string {
	switch aio {
	case hypervisor.Native:
		return []string{"_disable_io_uring=on"}
	case hypervisor.Threads:
		return []string{"_disable_io_uring=on", "_disable_aio=on"}
	}
	return nil
}

// WithIO implements [hypervisor.Hypervisor].
func (CloudHypervisor) WithIO(argv []string, chosen []hypervisor.FileIO) []string {
	return mapValues(argv, "--disk", func(disk string) string {
		id, _ := option(disk, "id")
		for _, c := range chosen {
			if !slices.Contains(c.Nodes, id) {
				continue
			}
			disk = without(disk, "direct", "_disable_io_uring", "_disable_aio")
			if c.Direct {
				disk = options(disk, "direct=on")
			}
			disk = options(append([]string{disk}, engine(c.AIO)...)...)
		}
		return disk
	})
}

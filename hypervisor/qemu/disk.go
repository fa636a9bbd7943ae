package qemu

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// blockNode is one node of QEMU's block graph (BlockdevOptions), as far as it
// is used here. The order of the fields is the order on the command line.
type blockNode struct {
	Driver       string      `json:"driver"`
	Name         string      `json:"node-name"`
	Filename     string      `json:"filename,omitempty"`
	File         string      `json:"file,omitempty"`    // node below
	Backing      string      `json:"backing,omitempty"` // node of the original content
	Group        string      `json:"throttle-group,omitempty"`
	AIO          string      `json:"aio,omitempty"`
	Locking      string      `json:"locking,omitempty"`
	ReadOnly     bool        `json:"read-only"`
	Cache        *blockCache `json:"cache,omitempty"`
	Discard      string      `json:"discard,omitempty"`
	DetectZeroes string      `json:"detect-zeroes,omitempty"`
}

type blockCache struct {
	Direct  bool `json:"direct"`   // O_DIRECT
	NoFlush bool `json:"no-flush"` // flushes of the guest are not passed on
}

// disk is one drive: the file, the nodes that read it, and the device that the
// guest sees.
func (p *planner) disk(d config.Disk) {
	before := len(p.problems)
	p.checkDisk(d)
	cache := p.diskCache(d)
	if len(p.problems) > before {
		return
	}
	p.diskNodes(d, cache)
	p.throttle(d)
	p.diskDevice(d, cache)
}

// checkDisk refuses what QEMU cannot do, key by key.
func (p *planner) checkDisk(d config.Disk) {
	key := func(k string) string { return d.Key() + "." + k }
	made := d.Path == "" && d.Image == ""
	switch {
	case made && d.Readonly:
		p.problem(key("readonly"), "a new empty disk cannot be read-only")
	case d.Ephemeral && d.Readonly:
		p.problem(key("ephemeral"), "of no use on a read-only disk")
	case d.Shareable && (d.Path == "" || d.Ephemeral):
		p.problem(key("shareable"), "only a disk by path that keeps its content can be shared")
	}
	if d.Queues != 0 && d.Bus != "virtio" && d.Bus != "scsi" {
		p.problem(key("queues"), `not supported by qemu for bus = %q`, d.Bus)
	}
	p.checkBus(d)
}

// checkBus refuses what a bus cannot carry.
func (p *planner) checkBus(d config.Disk) {
	bus := d.Key() + ".bus"
	switch d.Bus {
	case "scsi", "sata", "ide", "usb":
	case "virtio", "nvme", "floppy":
		if d.Media == "cdrom" {
			p.problem(d.Key()+".media", `a CD-ROM cannot be on bus = %q; want "scsi", "sata", "ide" or "usb"`, d.Bus)
		}
	case "pflash":
		p.problem(bus, `"pflash" is not supported by qemu yet; firmware is named by boot.firmware`)
	default:
		p.refuse(bus)
	}
	if p.microvm() && d.Bus != "virtio" && d.Bus != "scsi" {
		p.problem(bus, `not supported by qemu for machine = "microvm": want "virtio" or "scsi", got %q`, d.Bus)
	}
	if (d.Bus == "sata" || d.Bus == "ide") && d.Readonly && d.Media != "cdrom" {
		p.problem(d.Key()+".readonly", "not supported by qemu for bus = %q, which has no write protection", d.Bus)
	}
}

// diskCache is how a disk is cached and accessed.
type diskCache struct {
	blockCache
	aio        string
	writeCache bool // the guest sees a volatile write cache, and flushes it
}

// diskCache is how the definition wants a disk cached and accessed, and where
// it leaves that open, what works everywhere: for a file, the page cache of the
// host; for a block device, which always can, direct I/O; threads. What is
// better, where it works, is chosen at the start.
func (p *planner) diskCache(d config.Disk) diskCache {
	c := diskCache{aio: d.AIO, writeCache: true}
	switch d.Cache {
	case "auto":
		c.Direct = isDevice(d.Path)
	case "none":
		c.Direct = true
	case "writeback":
	case "writethrough":
		c.writeCache = false
	case "directsync":
		c.Direct, c.writeCache = true, false
	case "unsafe":
		c.NoFlush = true
	default:
		p.refuse(d.Key() + ".cache")
	}
	switch {
	case c.aio == "auto":
		c.aio = hypervisor.Threads
	case c.aio == hypervisor.Native && !c.Direct:
		p.problem(d.Key()+".aio", `"native" needs cache = "none" or "directsync", got %q`, d.Cache)
	}
	return c
}

// isDevice says whether path is that of a block device. QEMU has two drivers
// for the two kinds, and nothing can be looked up here.
func isDevice(path string) bool {
	return strings.HasPrefix(path, "/dev/") && !strings.HasPrefix(path, "/dev/shm/")
}

// short is name, or where it is longer than limit bytes its beginning and a
// hash of it. The dot, which no name has, keeps the two apart.
func short(name string, limit int) string {
	if len(name) <= limit {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return name[:limit-9] + "." + hex.EncodeToString(sum[:4])
}

// nodeName is the name of a node of the disk's. QEMU allows 31 bytes; the
// longest role, "base-file", takes ten with its hyphen.
func nodeName(role, disk string) string { return role + "-" + short(disk, 21) }

// diskNodes are the nodes from the file up to the one that the device reads,
// which is named "disk-NAME" and knows the format.
func (p *planner) diskNodes(d config.Disk, c diskCache) {
	switch {
	case d.Ephemeral && d.Path != "":
		// What is written goes to a child that is made anew at each start.
		overlay := p.paths.Disk(p.m.Name, d.Name, "qcow2")
		p.plan.Files = append(p.plan.Files, diskFile(d, false))
		p.plan.New = append(p.plan.New, hypervisor.NewFile{
			Key: d.Key(), Path: overlay, Format: "qcow2", Ephemeral: true, Backing: d.Path, BackingFormat: d.Format,
		})
		base, child := d, d
		base.Readonly, child.Format = true, "qcow2"
		p.blockNodes("base-file", "base", base, d.Path, c, "")
		p.blockNodes("file", "disk", child, overlay, c, nodeName("base", d.Name))
	case d.Path != "":
		p.plan.Files = append(p.plan.Files, diskFile(d, !d.Readonly))
		p.blockNodes("file", "disk", d, d.Path, c, "")
	case d.Image != "":
		p.imageNodes(d, c)
	default:
		file := p.paths.Disk(p.m.Name, d.Name, d.Format)
		p.plan.New = append(p.plan.New, hypervisor.NewFile{
			Key: d.Key(), Path: file, Size: int64(d.Size), Format: d.Format, Ephemeral: d.Ephemeral,
		})
		p.blockNodes("file", "disk", d, file, c, "")
	}
}

// imageNodes are those of a child of a stored image, or of a raw copy of one.
// The image's own are not named: its format, and whether the disk still stands on
// it at all, is known where the machine starts, and written in the child's
// header, which no guest can change.
func (p *planner) imageNodes(d config.Disk, c diskCache) {
	file, image := p.paths.Disk(p.m.Name, d.Name, d.Format), p.paths.Image(d.Image)
	if d.Format == "qcow2" {
		// Several disks may be children of one image, and of several machines.
		p.plan.Files = append(p.plan.Files, hypervisor.File{Key: d.Key() + ".image", Path: image, Disk: true})
	}
	p.plan.New = append(p.plan.New, hypervisor.NewFile{
		Key: d.Key(), Path: file, Size: int64(d.Size), Format: d.Format, Ephemeral: d.Ephemeral, Backing: image, Image: d.Image,
	})
	p.blockNodes("file", "disk", d, file, c, "")
}

// discard is what becomes of blocks that the guest does not need any more.
func discard(d config.Disk) string {
	if d.Discard {
		return "unmap"
	}
	return "ignore"
}

func diskFile(d config.Disk, write bool) hypervisor.File {
	return hypervisor.File{
		Key: d.Key() + ".path", Path: d.Path, Write: write, Disk: true, Format: d.Format, Shareable: d.Shareable,
	}
}

// blockNodes are the two nodes of one file: the one that reads it, and the one
// that understands its format, which backing may stand behind.
func (p *planner) blockNodes(fileRole, role string, d config.Disk, path string, c diskCache, backing string) {
	if role == "disk" && backing == "" {
		backing = p.backingNodes(d, c)
	}
	cache := c.blockCache
	file := blockNode{Driver: "file", Name: nodeName(fileRole, d.Name), Filename: path,
		AIO: c.aio, Locking: "on", ReadOnly: d.Readonly, Cache: &cache}
	if isDevice(path) {
		file.Driver = "host_device"
	}
	p.plan.Disks = append(p.plan.Disks, hypervisor.DiskFile{
		Disk: d.Name, Nodes: []string{file.Name, nodeName(role, d.Name)}, Path: path,
		Format: d.Format, Chain: d.Format == "qcow2" && backing == "", Cache: d.Cache, AIO: d.AIO,
	})
	format := blockNode{Driver: d.Format, Name: nodeName(role, d.Name), File: file.Name, Backing: backing,
		ReadOnly: d.Readonly, Cache: &cache}
	if !d.Readonly {
		file.Discard, format.Discard = discard(d), discard(d)
		if d.Discard {
			format.DetectZeroes = "unmap"
		}
	}
	p.arg("-blockdev", jsonArg(file), "-blockdev", jsonArg(format))
}

// WithIO implements [hypervisor.Hypervisor].
func (QEMU) WithIO(argv []string, chosen []hypervisor.FileIO) []string {
	out := slices.Clone(argv)
	for i, arg := range out {
		var n blockNode
		// Of what extra_args adds, not all is JSON, and nothing has such a name.
		if i == 0 || argv[i-1] != "-blockdev" || json.Unmarshal([]byte(arg), &n) != nil {
			continue
		}
		for _, c := range chosen {
			if !slices.Contains(c.Nodes, n.Name) || n.Cache == nil {
				continue
			}
			n.Cache.Direct = c.Direct
			if n.AIO != "" {
				n.AIO = c.AIO
			}
			out[i] = jsonArg(n)
		}
	}
	return out
}

// diskDevice is what the guest sees.
func (p *planner) diskDevice(d config.Disk, c diskCache) {
	common := []string{
		"id=disk-" + d.Name,
		"drive=" + topNode(d),
	}
	if d.Bus != "floppy" {
		common = append(common, p.bootIndex(d.Key()), "serial="+d.Serial)
	}
	if d.Media != "cdrom" {
		common = append(common, "write-cache="+onOff(c.writeCache), when(d.Shareable, "share-rw=on"))
	}
	device := func(driver string, parts ...string) {
		p.arg("-device", options(append(append([]string{driver}, parts...), common...)...))
	}
	kind := "hd"
	if d.Media == "cdrom" {
		kind = "cd"
	}
	switch d.Bus {
	case "virtio":
		device(p.virtio("virtio-blk"), p.virtioBlk(d)...)
	case "scsi":
		device("scsi-"+kind, p.scsiPlace()...)
	case "sata":
		device("ide-"+kind, p.sataPlace(d))
	case "ide":
		device("ide-"+kind, p.idePlace(d)...)
	case "nvme":
		device("nvme", p.port(d.Key()))
	case "usb":
		p.usbDisk(d, device)
	case "floppy":
		device("floppy", p.floppyPlace(d)...)
	}
}

// virtioBlk are the properties of a virtio disk: a thread of its own and a
// queue for each CPU.
func (p *planner) virtioBlk(d config.Disk) []string {
	return []string{
		p.port(d.Key()),
		p.ioThread("iothread-" + d.Name),
		p.queues("num-queues", d.Queues),
	}
}

// queues is the property for as many queues as are wanted, or where that is 0,
// one for each CPU.
func (p *planner) queues(property string, want int) string {
	if want == 0 && p.microvm() { // virtio-mmio has one interrupt in all
		return ""
	}
	if want == 0 {
		want = min(p.m.CPUs, 16)
	}
	return fmt.Sprintf("%s=%d", property, want)
}

// ioThread makes a thread and returns the property that uses it. QEMU 7.2
// refuses threads for virtio-mmio under TCG.
func (p *planner) ioThread(id string) string {
	if p.microvm() && p.tcg {
		return ""
	}
	p.arg("-object", options("iothread", "id="+id))
	return "iothread=" + id
}

// scsiPlace is the next place on the SCSI controller, which has one thread for
// all, and as many queues as the disk wants that wants most.
func (p *planner) scsiPlace() []string {
	if p.scsi == 0 && !p.hot.hasSCSI() {
		queues := 0
		for _, d := range p.m.Disks {
			if d.Bus == "scsi" {
				queues = max(queues, d.Queues)
			}
		}
		p.arg("-device", options(p.virtio("virtio-scsi"), "id=scsi", p.controller(slotSCSI), p.ioThread("scsi-iothread"), p.queues("num_queues", queues)))
	}
	p.scsi++
	return []string{"bus=scsi.0", "channel=0", fmt.Sprintf("scsi-id=%d", p.scsi-1), "lun=0"}
}

// sataPlace is the next port of a SATA controller: the six of q35's own, then
// of further ones.
func (p *planner) sataPlace(d config.Disk) string {
	const ports = 6
	controller, port := p.sata/ports, p.sata%ports
	p.sata++
	if p.q35() && controller == 0 {
		return fmt.Sprintf("bus=ide.%d", port)
	}
	if slotSATA+controller == slotCard {
		p.problem(d.Key()+".bus", "there is room for %d on \"sata\"", ports*(slotCard-slotSATA))
	}
	if port == 0 {
		p.arg("-device", options("ich9-ahci", fmt.Sprintf("id=sata%d", controller), p.fixed(slotSATA+controller)))
	}
	return fmt.Sprintf("bus=sata%d.%d", controller, port)
}

// idePlace is the next of the four places of an IDE controller, which q35
// does not have by itself.
func (p *planner) idePlace(d config.Disk) []string {
	bus := "ide"
	if p.q35() {
		bus = "pata"
		if p.ide == 0 {
			p.arg("-device", options("piix3-ide", "id=pata", p.fixed(slotPATA)))
		}
	}
	if p.ide == 4 {
		p.problem(d.Key()+".bus", "there is room for four on \"ide\"")
	}
	p.ide++
	return []string{fmt.Sprintf("bus=%s.%d", bus, (p.ide-1)/2), fmt.Sprintf("unit=%d", (p.ide-1)%2)}
}

// usbDisk is a disk or CD-ROM behind USB.
func (p *planner) usbDisk(d config.Disk, device func(driver string, parts ...string)) {
	port := p.usbPort(d.Key() + ".bus")
	if d.Media != "cdrom" {
		device("usb-storage", "bus=usb.0", port)
		return
	}
	bridge := "bot-" + d.Name // usb-storage can only be a disk
	p.arg("-device", options("usb-bot", "id="+bridge, "bus=usb.0", port))
	device("scsi-cd", "bus="+bridge+".0", "lun=0")
}

// usbPort is the property that plugs a device into the next port of the USB
// controller, which comes with the first.
func (p *planner) usbPort(key string) string {
	const ports = 15 // QEMU's maximum
	if p.usb == 0 && !p.hot.hasUSB() {
		p.arg("-device", options("qemu-xhci", "id=usb", p.controller(slotUSB), fmt.Sprintf("p2=%d", ports), fmt.Sprintf("p3=%d", ports)))
	}
	p.usb++
	if p.usb > ports {
		p.problem(key, "there is room for %d on \"usb\"", ports)
	}
	return fmt.Sprintf("port=%d", p.usb)
}

// floppyPlace is the next of the two floppy drives.
func (p *planner) floppyPlace(d config.Disk) []string {
	bus := "floppy-bus.0" // of pc's own controller
	if p.q35() {
		bus = "fdc.0"
		if p.floppies == 0 {
			p.arg("-device", options("isa-fdc", "id=fdc"))
		}
	}
	if p.floppies == 2 {
		p.problem(d.Key()+".bus", "there is room for two on \"floppy\"")
	}
	unit := p.floppies
	p.floppies++
	if index := p.bootIndex(d.Key()); index != "" {
		// It is a property of the controller, which pc brings itself.
		drive := string(rune('A' + unit))
		p.arg("-global", "isa-fdc."+strings.Replace(index, "bootindex", "bootindex"+drive, 1))
	}
	return []string{"bus=" + bus, fmt.Sprintf("unit=%d", unit)}
}

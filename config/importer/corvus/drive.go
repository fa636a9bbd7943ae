package corvus

import (
	"fmt"
	"path"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/config/importer"
)

// endings are those of files that Corvus makes, by format, and formats those by
// which it knows others.
var (
	endings = map[string]string{"qcow2": "qcow2", "raw": "raw", "vmdk": "vmdk", "vdi": "vdi", "vpc": "vhd", "vhdx": "vhdx"}
	formats = map[string]string{".qcow2": "qcow2", ".raw": "raw", ".img": "raw", ".iso": "raw", ".fd": "raw", ".vmdk": "vmdk", ".vdi": "vdi", ".vhd": "vpc", ".vhdx": "vhdx"}
)

// drive is one of a machine's.
func (m *machine) drive(n *importer.Node) {
	called := n.At("disk").Text()
	m.used[called] = true
	kind := n.At("interface").Text()
	if kind == "pflash" {
		m.flash(n)
		return
	}
	source := m.disks[called]
	if source == nil {
		m.Leave(n, "the disk is in Corvus's database, and not in this file", "crv disk show "+called+" tells the path for disk.NAME.path")
		return
	}
	table := "disk." + m.diskName(called)
	m.place(source, table)
	m.options(n, table, kind)
}

// diskName is a name that no other disk of the machine has.
func (m *machine) diskName(called string) string {
	name := config.PlainName(called, 60)
	if name == "" {
		name = "disk"
	}
	free := name
	for i := 2; m.Draft.Has("disk." + free + ".bus"); i++ {
		free = fmt.Sprintf("%s%d", name, i)
	}
	return free
}

// flash: the firmware is the host's, and the variables are the machine's own.
func (m *machine) flash(n *importer.Node) {
	if !m.Draft.Has("boot.firmware") {
		m.Default("boot.firmware", "uefi")
	}
	if n.At("readOnly").IsTrue() {
		n.Drop()
		return
	}
	m.Leave(n, "the machine has a variable store of its own, made at its first start, without the old boot entries",
		"a guest that has no \\EFI\\BOOT\\BOOTX64.EFI to be found by wants the old one: start and stop it once, then copy that over /var/lib/vmctl/vms/"+m.Name+"/nvram.fd")
}

// place says where a disk is.
func (m *machine) place(disk *importer.Node, table string) {
	file, format := m.locate(disk, 0)
	m.Set(disk.At("name"), table+".path", file)
	if format != "" {
		m.Set(disk.At("name"), table+".format", format)
	}
	if file := disk.At("import"); strings.Contains(file.Text(), "://") {
		m.Tell(disk, ".import", file.Text(), "nothing is downloaded", "crv apply has put it to "+m.where(disk)+"; or vmctl image import, and "+table+".image")
	}
}

// where is the path of a disk.
func (m *machine) where(disk *importer.Node) string {
	file, _ := m.locate(disk, 0)
	return file
}

// locate finds where Corvus has a disk, and in which format; "" for one that its
// name tells.
func (m *machine) locate(disk *importer.Node, depth int) (file, format string) {
	format = disk.At("format").Text()
	if registered := disk.At("register").Text(); registered != "" {
		if format == "" {
			format = formats[strings.ToLower(path.Ext(registered))]
		}
		return m.absolute(registered), format
	}
	switch source := strings.TrimSuffix(disk.At("import").Text(), ".xz"); {
	case format != "":
	case source != "":
		format = formats[strings.ToLower(path.Ext(source))]
	case disk.At("overlay").Text() != "":
		format = "qcow2"
	case disk.At("clone").Text() != "" && depth < 16:
		if of := m.disks[disk.At("clone").Text()]; of != nil {
			_, format = m.locate(of, depth+1)
		}
	}
	if format == "" {
		format = "qcow2"
	}
	name := disk.At("name").Text() + "." + endings[format]
	switch at := disk.At("path").Text(); {
	case at == "":
		return m.absolute(name), format
	case strings.HasSuffix(at, "/"):
		return m.absolute(path.Join(at, name)), format
	default:
		return m.absolute(at), format
	}
}

func (m *machine) absolute(file string) string {
	if path.IsAbs(file) {
		return path.Clean(file)
	}
	return path.Join(m.Base, file)
}

// options are those of a drive, whatever is in it.
func (m *machine) options(n *importer.Node, table, bus string) {
	if bus != "" {
		m.Set(n.At("interface"), table+".bus", bus)
	}
	if media := n.At("media"); media.Text() != "" {
		m.Set(media, table+".media", media.Text())
	}
	if n.At("readOnly").IsTrue() && n.At("media").Text() != "cdrom" {
		m.Default(table+".readonly", "true")
	}
	if cache := n.At("cacheType"); cache.Text() != "" {
		m.Set(cache, table+".cache", cache.Text())
	}
	if discard := n.At("discard"); discard.Text() != "" {
		m.Default(table+".discard", fmt.Sprint(discard.IsTrue()))
	}
}

// templateDrive is a disk that each machine of a template has for itself, or the
// same as all others.
func (m *machine) templateDrive(n *importer.Node, i int) {
	called := n.At("diskImageName").Text()
	m.used[called] = true
	kind := n.At("interface").Text()
	if kind == "pflash" {
		m.flash(n)
		return
	}
	name := called
	if name == "" {
		name = fmt.Sprintf("disk%d", i+1)
	}
	table := "disk." + m.diskName(name)
	source := m.disks[called]
	switch strategy := n.At("strategy"); {
	case strategy.Text() == "create":
		m.Set(n.At("sizeMb"), table+".size", n.At("sizeMb").Text()+"M")
		if format := n.At("format"); format.Text() != "" {
			m.Set(format, table+".format", format.Text())
		}
	case strategy.Text() == "direct" && source != nil:
		m.place(source, table)
	case strategy.Text() == "direct":
		m.Leave(n, "the disk is in Corvus's database, and not in this file", "crv disk show "+called+" tells the path for disk.NAME.path")
		return
	default: // clone, overlay
		file := "FILE, as crv disk show " + called + " tells"
		if source != nil {
			file = m.where(source)
		}
		m.Set(n.At("diskImageName"), table+".image", called)
		m.Tell(n, ".strategy", strategy.Text(), "machines begin with a stored image", "vmctl image import --name "+called+" "+file)
		if size := n.At("sizeMb"); size.Text() != "" {
			m.Set(size, table+".size", size.Text()+"M")
		}
	}
	m.options(n, table, kind)
	n.DropAll("ephemeral", "format") // what is made for a machine goes with it
}

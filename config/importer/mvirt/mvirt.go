// Package mvirt makes definitions of the machines in mvirt-vmm's database
// (mvirt.db, table vms), read as JSON: what
//
//	sqlite3 -json mvirt.db 'SELECT * FROM vms'
//
// prints. It knows both generations of mvirt-vmm: that of the first has no
// boot_mode, and boots the kernel that it names.
package mvirt

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/config/importer"
)

// Query is what is asked of the database.
const Query = "SELECT * FROM vms"

// Convert reads the rows of the table. The error is a [config.Problem].
func Convert(file string, data []byte) (importer.Result, error) {
	var all importer.Result
	if len(data) == 0 { // what sqlite3 prints of no rows
		data = []byte("[]")
	}
	rows, err := importer.ParseJSON(file, data)
	if err != nil {
		return all, err
	}
	taken := map[string]bool{}
	for _, row := range rows.Items() {
		if row.At("microvm").Text() == "1" {
			all.NotCarried = append(all.NotCarried, importer.Left(file, row.At("id"), "it is a pod of containers, in a machine of mvirt's own", "vmctl runs machines"))
			continue
		}
		d, err := convertRow(file, row, taken)
		if err != nil {
			return importer.Result{}, err
		}
		all.Definitions = append(all.Definitions, d)
	}
	return all, nil
}

// machine is one that is being written.
type machine struct {
	*importer.Builder
	config *importer.Node
}

func convertRow(file string, row *importer.Node, taken map[string]bool) (*importer.Definition, error) {
	id, text := row.At("id"), row.At("config_json")
	if id.Text() == "" || text.Text() == "" {
		return nil, config.Problem{File: file, Line: row.Line, Key: row.Path(), Text: "want a row of mvirt's table vms, with id and config_json"}
	}
	c, err := text.Inside(file)
	if err != nil {
		return nil, err
	}
	called := row.At("name").Text()
	b := importer.NewNamedBuilder(file, config.KindVM, row, called, freeName(called, id.Text(), taken))
	m := &machine{b, c}
	if called != "" && b.Name != b.Called {
		m.Set(row.At("name"), "api.name", b.Called)
		m.Leave(row.At("name"), "want a name of a-z, 0-9 and hyphens, of its own", "it is called "+b.Name+" here, and "+strconv.Quote(b.Called)+" over the API")
	}
	if config.CheckUUID(id.Text()) == nil && strings.ToLower(id.Text()) == id.Text() {
		m.Set(id, "uuid", id.Text())
	} else {
		m.Set(id, "api.id", id.Text())
	}
	if state := row.At("state"); state.Text() != "stopped" {
		m.Leave(state, "nothing is started", "it was not stopped when the database was read: mvirt stop "+id.Text())
	}
	row.Drop()
	m.machine()
	m.boot()
	m.devices()
	if data := c.At("user_data"); data.Text() != "" {
		m.Set(data, "cloud_init.user_data", data.Text())
	}
	return m.Finish(c, func(*importer.Node) (string, string) { return "", "" }), nil
}

// freeName is a legal name of its own: mvirt's are any text, need not be unique, and
// may be left out.
func freeName(name, id string, taken map[string]bool) string {
	short := config.PlainName(id, 8)
	plain := cmp.Or(config.PlainName(name, 40), "vm-"+short)
	names := []string{plain, plain + "-" + short, "vm-" + config.PlainName(id, 60)}
	if config.CheckName(name) == nil {
		names = slices.Insert(names, 0, name)
	}
	i := max(0, slices.IndexFunc(names, func(n string) bool { return !taken[n] && config.CheckName(n) == nil }))
	taken[names[i]] = true
	return names[i]
}

func (m *machine) machine() {
	cpus, memory := m.config.At("vcpus"), m.config.At("memory_mb")
	m.Set(cpus, "cpus", cpus.Text())
	m.Set(memory, "memory", memory.Text()+"M")
	if !m.config.At("nested_virt").IsTrue() {
		for _, flag := range []string{"-vmx", "-svm"} {
			m.Default("cpu.features", flag)
		}
	}
}

// boot: the first generation always boots its kernel, which may be a firmware.
func (m *machine) boot() {
	kernel := m.config.At("kernel")
	mode := m.config.At("boot_mode").Text()
	byKernel := kernel.Text() != "" && (mode == "" || mode == "0" || mode == "2" || strings.EqualFold(mode, "kernel"))
	if byKernel && !isFirmware(kernel.Text()) {
		for _, k := range []struct{ from, key string }{{"kernel", "boot.kernel"}, {"initramfs", "boot.initrd"}, {"cmdline", "boot.cmdline"}} {
			if n := m.config.At(k.from); n.Text() != "" {
				m.Set(n, k.key, n.Text())
			}
		}
		return
	}
	m.Default("boot.firmware", "uefi")
	if byKernel {
		m.Leave(kernel, "it is a firmware for cloud-hypervisor", "the UEFI firmware of the host is taken")
	}
	m.config.DropAll("kernel", "initramfs", "cmdline") // of no use to a firmware
}

// isFirmware says whether a kernel is one of those firmwares that
// cloud-hypervisor's users know.
func isFirmware(file string) bool {
	name := strings.ToLower(path.Base(file))
	return strings.HasSuffix(name, ".fd") || strings.Contains(name, "hypervisor-fw") || strings.Contains(name, "firmware")
}

func (m *machine) devices() {
	for i, d := range m.config.At("disks").Items() {
		disk := fmt.Sprintf("disk.disk%d", i)
		m.Set(d.At("path"), disk+".path", path.Clean(d.At("path").Text()))
		if d.At("readonly").IsTrue() {
			m.Default(disk+".readonly", "true")
		}
	}
	cards := m.config.At("nics").Items()
	for i, n := range cards {
		nic := fmt.Sprintf("nic.nic%d", i)
		m.plug(n, nic)
		if mac := n.At("mac"); mac.Text() != "" {
			m.Set(mac, nic+".mac", mac.Text())
		}
	}
	if first := m.config.At("boot_mode") == nil; first && len(cards) == 0 {
		m.Tell(m.config, ".nics", "none", "each machine had a TAP on the daemon's bridge", "[nic.nic0] bridge = \"br0\", or the bridge that --bridge named")
	}
}

// plug is what a card is plugged into.
func (m *machine) plug(n *importer.Node, nic string) {
	socket := n.At("vhost_socket")
	tap, isTap := strings.CutPrefix(socket.Text(), "tap:")
	switch name := n.At("tap"); {
	case name.Text() != "":
		m.Set(name, nic+".tap", name.Text())
	case isTap:
		m.Set(socket, nic+".tap", tap)
	case socket.Text() != "":
		m.Set(socket, nic+".vhost_user", strings.TrimPrefix(socket.Text(), "vhost-user:"))
	default:
		m.Default(nic+".user", "true")
		m.Tell(n, "", "plugged into nothing", "a card is plugged into something", nic+".user = true is a way out; network, bridge or tap are others")
	}
}

// Package corvus makes definitions of the YAML that Corvus's crv apply and crv
// template create take: machines, networks and templates, with the disks and keys
// that they name. What has been applied lies where Corvus has put it, and is named
// there.
package corvus

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/config/importer"
)

// Converter is an importer for one host.
type Converter struct {
	Base string // directory of Corvus's images, "$HOME/VMs" of who runs its daemon
}

// document is what machines and templates refer to.
type document struct {
	Converter
	file  string
	disks map[string]*importer.Node
	keys  map[string]string
	used  map[string]bool // disks
}

// Convert reads an environment, or one template. The error is a [config.Problem].
func (c Converter) Convert(file string, data []byte) (importer.Result, error) {
	root, err := importer.ParseYAML(file, data)
	if err != nil {
		return importer.Result{}, err
	}
	d := &document{c, file, map[string]*importer.Node{}, map[string]string{}, map[string]bool{}}
	if root.At("cpuCount") != nil { // of crv template create
		t, err := d.template(root)
		if err != nil {
			return importer.Result{}, err
		}
		return importer.Result{Definitions: []*importer.Definition{t}}, nil
	}
	sections := []string{"sshKeys", "disks", "networks", "vms", "templates"}
	if !slices.ContainsFunc(sections, func(s string) bool { return root.At(s) != nil }) {
		return importer.Result{}, config.Problem{File: file, Line: root.Line, Text: "want one of " + strings.Join(sections, ", ") + " at the top, as crv apply does, or a template"}
	}
	return d.convert(root)
}

func (d *document) convert(root *importer.Node) (all importer.Result, err error) {
	for _, k := range root.At("sshKeys").Items() {
		d.keys[k.At("name").Text()] = k.At("publicKey").Text()
		k.Drop()
	}
	for _, disk := range root.At("disks").Items() {
		d.disks[disk.At("name").Text()] = disk
	}
	for _, section := range []struct {
		name string
		one  func(*importer.Node) (*importer.Definition, error)
	}{{"networks", d.network}, {"vms", d.machine}, {"templates", d.template}} {
		for _, n := range root.At(section.name).Items() {
			definition, err := section.one(n)
			if err != nil {
				return importer.Result{}, err
			}
			all.Definitions = append(all.Definitions, definition)
		}
	}
	for _, disk := range root.At("disks").Items() {
		if name := disk.At("name").Text(); !d.used[name] && !d.isBase(root, name) {
			all.NotCarried = append(all.NotCarried, importer.Left(d.file, disk, "a disk is of a machine, and no machine here has it", "vmctl image import stores it, for machines to begin with"))
		}
	}
	return all, nil
}

// isBase says whether a disk is what another one was made of.
func (d *document) isBase(root *importer.Node, name string) bool {
	return slices.ContainsFunc(root.At("disks").Items(), func(disk *importer.Node) bool {
		return disk.At("overlay").Text() == name || disk.At("clone").Text() == name || disk.At("backing").Text() == name
	})
}

// network: without NAT, a network of Corvus's has no way out.
func (d *document) network(n *importer.Node) (*importer.Definition, error) {
	b, err := importer.NewBuilder(d.file, config.KindNetwork, n, n.At("name"))
	if err != nil {
		return nil, err
	}
	if subnet := n.At("subnet"); subnet.Text() != "" {
		b.Set(subnet, "subnet", subnet.Text())
		b.Default("subnet6", "none")
	}
	if !n.At("dhcp").IsTrue() {
		b.Default("dhcp", "false")
	}
	if !n.At("nat").IsTrue() {
		b.Default("isolated", "true")
	}
	if n.At("autostart").IsTrue() {
		b.Default("autostart", "true")
	}
	for _, server := range n.At("dnsServers").Items() {
		b.Set(server, "dns", server.Text())
	}
	if domain := n.At("domain"); domain.Text() != "" {
		b.Set(domain, "domain", domain.Text())
	}
	return b.Finish(n, reason), nil
}

// machine is one machine or template that is being written.
type machine struct {
	*importer.Builder
	*document
	node *importer.Node
}

func (d *document) machine(n *importer.Node) (*importer.Definition, error) {
	b, err := importer.NewBuilder(d.file, config.KindVM, n, n.At("name"))
	if err != nil {
		return nil, err
	}
	m := &machine{b, d, n}
	if b.Name != b.Called {
		b.Set(n.At("name"), "api.name", b.Called)
	}
	m.common()
	for _, drive := range n.At("drives").Items() {
		m.drive(drive)
	}
	return b.Finish(n, reason), nil
}

// template writes what begins with an image, where Corvus copies a disk or puts an
// overlay on it.
func (d *document) template(n *importer.Node) (*importer.Definition, error) {
	b, err := importer.NewBuilder(d.file, config.KindTemplate, n, n.At("name"))
	if err != nil {
		return nil, err
	}
	m := &machine{b, d, n}
	m.common()
	for i, drive := range n.At("drives").Items() {
		m.templateDrive(drive, i)
	}
	return b.Finish(n, reason), nil
}

// common is what machines and templates have both.
func (m *machine) common() {
	n := m.node
	for _, k := range []struct{ from, key, unit string }{{"cpuCount", "cpus", ""}, {"ramMb", "memory", "M"}, {"description", "description", ""}} {
		if v := n.At(k.from); v.Text() != "" {
			m.Set(v, k.key, v.Text()+k.unit)
		}
	}
	if model := n.At("cpuModel"); model.Text() != "" && model.Text() != "host" {
		m.Set(model, "cpu.model", model.Text())
	}
	if n.At("autostart").IsTrue() {
		m.Default("autostart", "true")
	}
	if n.At("tpm").IsTrue() {
		m.Default("tpm.enabled", "true")
	}
	if !n.At("headless").IsTrue() {
		m.Default("display.type", "spice")
	}
	n.DropAll("guestAgent", "rebootQuirk") // it is always there · QEMU resets by itself
	for i, card := range n.At("networkInterfaces").Items() {
		m.card(card, i)
	}
	for i, dir := range n.At("sharedDirs").Items() {
		m.share(dir, i)
	}
	m.cloudInit()
}

func (m *machine) card(n *importer.Node, i int) {
	nic := "nic.lan"
	if i > 0 {
		nic += fmt.Sprint(i + 1)
	}
	host, network := n.At("hostDevice"), n.At("network")
	switch kind := n.At("type").Text(); {
	case network.Text() != "":
		name := network.Text()
		if config.CheckName(name) != nil {
			name = config.PlainName(name, 63)
		}
		m.Set(network, nic+".network", name)
	case kind == "" || kind == "user":
		m.Default(nic+".user", "true")
		m.forwards(host, nic)
	case host.Text() != "" && slices.Contains([]string{"tap", "bridge", "macvtap", "vde"}, kind):
		m.Set(host, nic+"."+kind, host.Text())
	default:
		m.Leave(n, "a card is plugged into something", nic+" has network, user, bridge, tap, macvtap and vde")
		return
	}
	if mac := n.At("mac"); mac.Text() != "" {
		m.Set(mac, nic+".mac", mac.Text())
	}
}

// forwards are in options for QEMU: hostfwd=tcp:ADDRESS:PORT-:PORT.
func (m *machine) forwards(n *importer.Node, nic string) {
	for option := range strings.SplitSeq(n.Text(), ",") {
		if option == "" {
			continue
		}
		rule, isForward := strings.CutPrefix(option, "hostfwd=")
		proto, rest, _ := strings.Cut(rule, ":")
		host, guest, _ := strings.Cut(rest, "-")
		_, guestPort, _ := strings.Cut(guest, ":")
		if !isForward || m.Draft.Set(nic+".forward", fmt.Sprintf("%s:%s/%s", strings.TrimPrefix(host, ":"), guestPort, cmp.Or(proto, "tcp"))) != nil {
			m.Tell(n, "", option, "user-mode networking has port forwards, and no other options", nic+".forward = [\"2222:22/tcp\"]")
		}
	}
}

func (m *machine) share(n *importer.Node, i int) {
	tag := n.At("tag")
	name := cmp.Or(config.PlainName(tag.Text(), 63), fmt.Sprintf("share%d", i+1))
	table := "share." + name
	m.Set(n.At("path"), table+".path", path.Clean(n.At("path").Text()))
	if tag.Text() != name {
		m.Set(tag, table+".tag", tag.Text())
	}
	if cache := n.At("cache"); cache.Text() != "" {
		m.Set(cache, table+".cache", cache.Text())
	}
	if n.At("readOnly").IsTrue() {
		m.Default(table+".readonly", "true")
	}
}

// cloudInit: with keys it is on, and without user data there is a user corvus.
func (m *machine) cloudInit() {
	n := m.node
	var keys []string
	for _, k := range n.At("sshKeys").Items() {
		name := cmp.Or(k.At("name").Text(), k.Text())
		if key := m.keys[name]; key != "" {
			keys = append(keys, key)
		} else {
			m.Tell(k, "", name, "the key is in Corvus's database, and not in this file", "cloud_init.ssh_keys")
		}
	}
	on, own := n.At("cloudInit"), n.At("cloudInitConfig")
	if on != nil && !on.IsTrue() || on == nil && len(n.At("sshKeys").Items()) == 0 {
		if own != nil {
			m.Leave(own, "cloud-init is off", "")
		}
		return
	}
	m.Default("cloud_init.enabled", "true")
	if m.Kind == config.KindVM {
		m.Tell(n, ".cloudInit", "instance-id", "it is the machine's uuid, and was corvus- and a number: cloud-init does its work of a first boot once more",
			"cloud_init.meta_data = \"instance-id: corvus-ID\\nlocal-hostname: "+m.Name+"\\n\" prevents it")
	}
	data := own.At("userData")
	if inject := own.At("injectSshKeys"); inject != nil && !inject.IsTrue() {
		keys = nil
	}
	switch {
	case data.IsMapping():
		user := data
		if first := data.At("users").Items(); len(first) > 0 && first[0].IsMapping() {
			user = first[0]
		}
		if len(keys) > 0 {
			user.AppendTexts("ssh_authorized_keys", keys)
		}
		m.setYAML(data, "cloud_init.user_data", "#cloud-config\n")
	case data.Text() != "":
		m.Set(data, "cloud_init.user_data", data.Text())
		m.sshKeys(keys)
	default:
		m.Default("cloud_init.user", "corvus")
		m.sshKeys(keys)
		m.Tell(n, ".cloudInit", "password", "the user corvus has no password that everybody knows", "cloud_init.password_hash")
	}
	if network := own.At("networkConfig"); network.IsMapping() {
		m.setYAML(network, "cloud_init.network_config", "")
	} else if network.Text() != "" {
		m.Set(network, "cloud_init.network_config", network.Text())
	}
}

func (m *machine) sshKeys(keys []string) {
	for _, key := range keys {
		m.Set(m.node.At("sshKeys"), "cloud_init.ssh_keys", key)
	}
}

// setYAML sets a key to a document of its own.
func (m *machine) setYAML(n *importer.Node, key, header string) {
	text, err := n.YAML()
	if err != nil {
		m.Leave(n, err.Error(), "")
		return
	}
	m.Set(n, key, header+text)
}

// reasons say why something is not carried over, by the name of a key.
var reasons = map[string][2]string{
	"node":         {"a definition is of the host that it is on", ""},
	"hostDns":      {"the host asks its own name servers", ""},
	"audioDevices": {"machines have no sound", ""},
	"ip":           {"", "nic.NAME.address"},
	"cidr":         {"", "nic.NAME.address"},
	"checksum":     {"what was downloaded is there", ""},
}

func reason(n *importer.Node) (why, instead string) {
	r := reasons[n.Name]
	return r[0], r[1]
}

package libvirt

import (
	"cmp"
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/config/importer"
)

func (d *domain) devices() {
	n := d.root.At("devices")
	d.emulator(n.At("emulator"))
	for _, disk := range n.All("disk") {
		d.disk(disk)
	}
	for _, nic := range n.All("interface") {
		d.nic(nic)
	}
	for _, c := range n.All("controller") {
		if model := c.Attribute("model"); c.Attr("type") == "scsi" && !slices.Contains([]string{"", "auto", "virtio-scsi"}, model.Text()) {
			d.Leave(model, "SCSI is by virtio-scsi, for which the guest wants a driver", "")
		}
		c.Drop()
	}
	for i, f := range n.All("filesystem") {
		d.share(f, i)
	}
	for i, h := range n.All("hostdev") {
		d.hostDevice(h, i)
	}
	d.display(n)
	d.text(n)
	d.others(n)
	for _, device := range n.Parts() {
		device.DropAll("alias", "address")
	}
}

func (d *domain) emulator(n *importer.Node) {
	switch binary := n.Text(); binary {
	case "", "/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-i386", "/usr/bin/kvm", "/usr/bin/qemu-kvm", "/usr/libexec/qemu-kvm":
	default:
		d.Set(n, "hypervisor_options.binary", binary)
	}
}

// buses of disks, by the target's bus or the beginning of its name.
var buses = map[string]string{
	"virtio": "virtio", "vd": "virtio", "scsi": "scsi", "sd": "scsi", "sata": "sata", "ide": "ide", "hd": "ide",
	"usb": "usb", "fdc": "floppy", "fd": "floppy",
}

// formats are those of disks that vmctl knows too.
var formats = []string{"raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"}

// disk writes one disk. What the guest cannot have at all is left out.
func (d *domain) disk(n *importer.Node) {
	kind := cmp.Or(n.Attr("device"), "disk")
	target := n.At("target")
	dev := target.Attr("dev")
	source := n.At("source")
	source.DropAll("@startupPolicy", "@index")
	file := cmp.Or(source.Attr("file"), source.Attr("dev"))
	driver := n.At("driver")
	format := cmp.Or(driver.Attr("type"), "raw")
	bus := buses[cmp.Or(target.Attr("bus"), dev[:min(2, len(dev))])]
	switch where := n.Attr("type"); {
	case where == "volume":
		d.Leave(n, "vmctl knows no pools", fmt.Sprintf("virsh vol-path --pool %s %s tells the path for disk.%s.path", source.Attr("pool"), source.Attr("volume"), dev))
		return
	case where != "file" && where != "block":
		d.Leave(n, "a disk is an image file or block device of the host", "bring it there, such as by rbd map or iscsiadm, and name it by disk."+dev+".path")
		return
	case file == "":
		d.Leave(n, "a drive has something in it", "vmctl disk attach puts one in")
		return
	case !slices.Contains(formats, format):
		d.Leave(n, "want a disk of one of the formats "+strings.Join(formats, ", "), "qemu-img convert makes one")
		return
	case bus == "":
		d.Leave(n, "want it on one of virtio, scsi, sata, ide, usb, fdc", "")
		return
	case config.CheckName(dev) != nil:
		d.Leave(n, "want a target dev of a-z and 0-9", "")
		return
	}
	table := "disk." + dev
	d.Set(source, table+".path", path.Clean(file))
	d.Set(driver, table+".format", format)
	d.Default(table+".bus", bus)
	switch kind {
	case "cdrom":
		d.Default(table+".media", "cdrom")
	case "lun":
		d.Leave(n.Attribute("device"), "the guest's SCSI commands do not reach the host's device", "")
	}
	d.diskOptions(n, table)
	d.limitDisk(n.At("iotune"), table)
	d.bootable(n, table, map[string]string{"disk": "hd", "lun": "hd", "cdrom": "cdrom", "floppy": "fd"}[kind])
	n.DropAll("backingStore", "address", "alias", "mirror", "@snapshot", "geometry", "@model")
	target.DropAll("@tray", "@removable", "@rotation_rate")
}

func (d *domain) diskOptions(n *importer.Node, table string) {
	driver := n.At("driver")
	if name := driver.Attribute("name"); name.Text() != "qemu" && name.Text() != "" {
		d.Leave(name, "QEMU is the driver", "")
	}
	copied := func(name, key string) {
		if value := driver.Attr(name); value != "" && value != "default" {
			d.Set(driver.Attribute(name), table+"."+key, value)
		}
	}
	copied("cache", "cache")
	copied("io", "aio")
	copied("queues", "queues")
	if discard := driver.Attribute("discard"); discard != nil {
		d.Set(discard, table+".discard", strconv.FormatBool(discard.Text() == "unmap"))
	}
	driver.DropAll("@detect_zeroes", "@error_policy", "@rerror_policy", "@discard_no_unref", "metadata_cache", "@copy_on_read")
	if n.At("readonly") != nil && n.Attr("device") != "cdrom" {
		d.Default(table+".readonly", "true")
	}
	if n.At("shareable") != nil {
		d.Default(table+".shareable", "true")
	}
	if t := n.At("transient"); t != nil {
		t.Drop()
		d.Default(table+".ephemeral", "true")
	}
	if serial := n.At("serial"); len(serial.Text()) > 20 {
		d.Leave(serial, "want at most 20 characters", "")
	} else if serial != nil {
		d.Set(serial, table+".serial", serial.Text())
	}
}

func (d *domain) limitDisk(n *importer.Node, table string) {
	for _, limit := range []struct {
		element, key string
		bytes        bool
	}{
		{"total_bytes_sec", "bandwidth", true}, {"read_bytes_sec", "bandwidth_read", true}, {"write_bytes_sec", "bandwidth_write", true},
		{"total_iops_sec", "iops", false}, {"read_iops_sec", "iops_read", false}, {"write_iops_sec", "iops_write", false},
	} {
		e := n.At(limit.element)
		if count := number(e.Text()); count <= 0 {
			e.Drop()
		} else if limit.bytes {
			d.Set(e, table+"."+limit.key, config.Size(count).String())
		} else {
			d.Set(e, table+"."+limit.key, e.Text())
		}
	}
}

// nic writes one card: lan, then lan2 and so on, as vmctl create does.
func (d *domain) nic(n *importer.Node) {
	kind := n.Attr("type")
	if kind == "hostdev" {
		d.hostCard(n)
		return
	}
	d.cards++
	table := "nic.lan"
	if d.cards > 1 {
		table += strconv.Itoa(d.cards)
	}
	if !d.plug(n, kind, table) {
		d.cards--
		return
	}
	if mac := n.At("mac"); mac != nil {
		mac.DropAll("@type", "@check")
		d.Set(mac, table+".mac", mac.Attr("address"))
	}
	d.cardModel(n.At("model"), table)
	d.cardOptions(n, kind, table)
	d.bootable(n, table, "network")
	n.DropAll("address", "alias", "guest", "rom", "@trustGuestRxFilters", "actual")
}

// plug says what a card is plugged into, false where there is no such thing.
func (d *domain) plug(n *importer.Node, kind, table string) bool {
	source, target := n.At("source"), n.At("target")
	switch {
	case kind == "network":
		source.DropAll("@portid", "@bridge")
		name := source.Attribute("network")
		here := name.Text()
		if config.CheckName(here) != nil {
			here = config.PlainName(here, 63)
		}
		target.DropAll("@dev")
		return d.Set(name, table+".network", here)
	case kind == "bridge":
		target.DropAll("@dev")
		return d.Set(source, table+".bridge", source.Attr("bridge"))
	case kind == "direct":
		target.DropAll("@dev")
		mode := cmp.Or(source.Attr("mode"), "vepa")
		if mode == "passthrough" {
			mode = "passthru"
		}
		return d.Set(source, table+".macvtap", source.Attr("dev")) && d.Set(source, table+".macvtap_mode", mode)
	case kind == "user":
		d.Default(table+".user", "true")
		d.forwards(n, table)
		return true
	case kind == "ethernet" && target.Attr("dev") != "":
		target.DropAll("@managed")
		return d.Set(target, table+".tap", target.Attr("dev"))
	case kind == "vhostuser" && source.Attr("type") == "unix" && source.Attr("mode") == "client":
		target.DropAll("@dev")
		source.At("reconnect").Drop()
		return d.Set(source, table+".vhost_user", source.Attr("path"))
	}
	d.Leave(n, fmt.Sprintf("a card of type %q is none here", kind), "nic.NAME has what cards can be plugged into")
	return false
}

// forwards are ports of the host that passt gives to the guest.
func (d *domain) forwards(n *importer.Node, table string) {
	if b := n.At("backend"); b.Attr("type") == "passt" {
		d.Leave(b, "user-mode networking is by slirp", "")
	}
	const most = 64
	for _, f := range n.All("portForward") {
		address, proto := f.Attr("address"), f.Attr("proto")
		if strings.Contains(address, ":") {
			d.Leave(f, "want an IPv4 address of the host", "")
			continue
		}
		if address != "" {
			address += ":"
		}
		for _, r := range f.All("range") {
			first := number(r.Attr("start"))
			last := number(cmp.Or(r.Attr("end"), r.Attr("start")))
			to := number(cmp.Or(r.Attr("to"), r.Attr("start")))
			if first <= 0 || last < first || last-first >= most || r.Attr("exclude") == "yes" {
				d.Leave(r, fmt.Sprintf("want at most %d ports, each given to the guest", most), table+".forward lists them")
				continue
			}
			for i := int64(0); i <= last-first; i++ {
				d.Set(r, table+".forward", fmt.Sprintf("%s%d:%d/%s", address, first+i, to+i, proto))
			}
		}
	}
}

// cardModel: without a model, libvirt's is rtl8139.
func (d *domain) cardModel(n *importer.Node, table string) {
	switch model := cmp.Or(n.Attr("type"), "rtl8139"); model {
	case "virtio":
	case "e1000", "e1000e", "rtl8139":
		d.Default(table+".model", model)
	case "virtio-transitional", "virtio-non-transitional":
	default:
		d.Default(table+".model", "e1000e")
		d.Leave(n, "want virtio, e1000e, e1000 or rtl8139", "it is e1000e")
	}
}

func (d *domain) cardOptions(n *importer.Node, kind, table string) {
	driver := n.At("driver")
	if q := driver.Attribute("queues"); q != nil {
		d.Set(q, table+".queues", q.Text())
	}
	driver.DropAll("@name", "@txmode", "@ioeventfd", "@event_idx", "@rx_queue_size", "@tx_queue_size")
	if mtu := n.At("mtu"); mtu != nil {
		d.Set(mtu, table+".mtu", mtu.Attr("size"))
	}
	if link := n.At("link"); link.Attr("state") == "down" {
		d.Set(link, table+".link", "down")
	}
	onBridge := kind == "network" || kind == "bridge"
	for _, limit := range []struct{ element, key string }{{"inbound", "rate_in"}, {"outbound", "rate_out"}} {
		rate := n.At("bandwidth", limit.element)
		average := number(rate.Attr("average")) // in KiB per second
		switch {
		case rate == nil:
		case !onBridge || average <= 0:
			d.Leave(rate, "want an average, and a card on a bridge", "")
		default:
			d.Set(rate, table+"."+limit.key, config.Size(average<<10).String())
			rate.DropAll("@peak", "@burst", "@floor")
		}
	}
	if vlan := n.At("vlan"); vlan != nil {
		if tags := vlan.All("tag"); len(tags) == 1 && onBridge && vlan.Attr("trunk") != "yes" {
			d.Set(tags[0], table+".vlan", tags[0].Attr("id"))
		} else {
			d.Leave(vlan, "want one tag, on a bridge", "a bridge of the host can have a trunk")
		}
	}
	if filter := n.At("filterref"); filter != nil {
		if name := filter.Attr("filter"); onBridge && slices.Contains([]string{"clean-traffic", "no-mac-spoofing", "no-ip-spoofing", "no-arp-spoofing", "no-arp-mac-spoofing"}, name) {
			filter.Drop() // as always here
		} else {
			d.Leave(filter, "vmctl has other filters", table+".allow_in, deny_in, security_groups …")
		}
	}
	if port := n.At("virtualport"); port.Attr("type") == "openvswitch" {
		d.Leave(port, "an Open vSwitch is no bridge of the kernel's", "ovs-vsctl add-port for a TAP of its own, and "+table+".tap in place of bridge")
	}
}

// hostCard is a network card of the host, by its PCI address.
func (d *domain) hostCard(n *importer.Node) {
	address := n.At("source", "address")
	if address.Attr("type") != "pci" {
		d.Leave(n, "want a PCI device", "")
		return
	}
	d.cards++
	name := "pci.lan" + strconv.Itoa(d.cards)
	d.pci(address, name)
	if mac := n.At("mac"); mac != nil {
		d.Leave(mac, "the host does not set it", "ip link set dev PF vf N mac … does")
	}
	d.bootless(n)
	n.DropAll("@managed", "address", "alias", "driver")
}

// bootless tells of a place in the boot order that a device cannot have.
func (d *domain) bootless(n *importer.Node) {
	if b := n.At("boot"); b != nil {
		d.Leave(b, "devices of the host are not booted from", "")
	}
}

func (d *domain) pci(address *importer.Node, table string) {
	part := func(name string) int64 {
		n, _ := strconv.ParseInt(cmp.Or(address.Attr(name), "0"), 0, 32)
		return n
	}
	d.Set(address, table+".address", fmt.Sprintf("%04x:%02x:%02x.%x", part("domain"), part("bus"), part("slot"), part("function")))
}

// hostDevice is a device of the host given to the guest.
func (d *domain) hostDevice(n *importer.Node, i int) {
	source := n.At("source")
	kind := n.Attr("type")
	if n.Attr("mode") != "subsystem" {
		kind = ""
	}
	name := "host" + strconv.Itoa(i+1)
	switch kind {
	case "pci":
		d.pci(source.At("address"), "pci."+name)
		source.At("address").DropAll("@type")
		if n.Attr("managed") != "yes" {
			d.Leave(n.Attribute("managed"), "the device is taken from the host, and given back", "")
		}
	case "usb":
		vendor, product := source.At("vendor").Attr("id"), source.At("product").Attr("id")
		if vendor == "" || product == "" {
			d.Leave(n, "want vendor and product: the number of a device changes when it is plugged in again", "lsusb -t tells [usb."+name+"] bus and port")
			return
		}
		d.Set(source, "usb."+name+".vendor", strings.TrimPrefix(vendor, "0x"))
		d.Set(source, "usb."+name+".product", strings.TrimPrefix(product, "0x"))
		source.DropAll("address", "@startupPolicy", "@guestReset")
	default:
		d.Leave(n, fmt.Sprintf("devices of the host are by PCI and USB, not %q", n.Attr("type")), "")
		return
	}
	d.bootless(n)
	n.DropAll("@managed", "address", "alias", "driver")
}

// share is a directory of the host's.
func (d *domain) share(n *importer.Node, i int) {
	driver := n.At("driver")
	target := n.At("target").Attr("dir")
	dir := n.At("source").Attr("dir")
	if kind := cmp.Or(n.Attr("type"), "mount"); kind != "mount" || dir == "" {
		d.Leave(n, fmt.Sprintf("a directory is shared, not %q", kind), "")
		return
	}
	name := config.PlainName(target, 63)
	if name == "" {
		name = "share" + strconv.Itoa(i+1)
	}
	table := "share." + name
	if kind := driver.Attribute("type"); kind == nil || kind.Text() != "virtiofs" {
		d.Tell(n, "/driver/@type", cmp.Or(kind.Text(), "path"), "directories are shared by virtiofs, and not by 9p", "in the guest, mount -t virtiofs "+target+" DIRECTORY")
		n.DropAll("@accessmode", "@fmode", "@dmode")
		driver.DropAll("@wrpolicy")
	}
	n.DropAll("@accessmode")
	d.Set(n.At("source"), table+".path", path.Clean(dir))
	if target != name {
		d.Set(n.At("target"), table+".tag", target)
	}
	if n.At("readonly") != nil {
		d.Default(table+".readonly", "true")
	}
	if cache := n.At("binary", "cache"); cache != nil {
		d.Set(cache, table+".cache", map[string]string{"none": "never", "always": "always"}[cache.Attr("mode")])
	}
	for _, m := range []struct{ element, key string }{{"uid", "uid_map"}, {"gid", "gid_map"}} {
		for _, r := range n.At("idmap").All(m.element) {
			d.Set(r, table+"."+m.key, fmt.Sprintf("%s:%s:%s", r.Attr("start"), r.Attr("target"), r.Attr("count")))
		}
	}
	driver.DropAll("@queue")
	n.At("binary").DropAll("@path", "sandbox", "@xattr", "lock")
	n.DropAll("address", "alias", "@multidevs")
}

// display is the first graphics that vmctl has too.
func (d *domain) display(devices *importer.Node) {
	found := false
	for _, g := range devices.All("graphics") {
		kind := g.Attr("type")
		switch {
		case kind != "vnc" && kind != "spice":
			d.Leave(g, "a display is by VNC or SPICE", "")
			continue
		case found:
			d.Leave(g, "a machine has one display", "")
			continue
		}
		found = true
		d.Default("display.type", kind)
		d.listen(g)
		if secret := g.Attribute("passwd"); secret != nil {
			d.Leave(secret, "vmctl view makes a password for each time", "")
		}
		if c := g.At("clipboard"); c.Attr("copypaste") == "no" {
			d.Default("display.clipboard", "false")
		}
		g.DropAll("@websocket", "@keymap", "@sharePolicy", "image", "jpeg", "zlib", "playback", "streaming", "mouse", "filetransfer", "@defaultMode", "@passwdValidTo")
		if gl := g.At("gl"); gl.Attr("enable") == "yes" {
			d.Leave(gl, "there is no 3D acceleration", "")
		} else {
			gl.Drop()
		}
	}
	for i, v := range devices.All("video") {
		d.video(v, found, i)
	}
	redirected := devices.All("redirdev")
	for _, r := range redirected {
		if found && d.root.At("devices", "graphics").Attr("type") == "spice" {
			r.Drop()
		}
	}
	if found && d.root.At("devices", "graphics").Attr("type") == "spice" {
		d.Default("display.usb_redirection", strconv.Itoa(min(8, len(redirected))))
	}
}

// listen is where viewers connect. By itself it is a Unix socket of root's.
func (d *domain) listen(g *importer.Node) {
	port, where := g.Attribute("port"), g.At("listen")
	g.DropAll("@autoport")
	address := cmp.Or(where.Attr("address"), g.Attr("listen"), "127.0.0.1")
	where.DropAll("@type", "@network", "@socket")
	if n := number(port.Text()); n > 0 && g.Attr("autoport") != "yes" {
		d.Set(port, "display.address", net.JoinHostPort(address, port.Text()))
	} else if address != "127.0.0.1" && where != nil {
		d.Tell(where, "/@address", address, "without a port of its own it listens on a Unix socket",
			"vmctl -H HOST view opens it from elsewhere; or display.address = \""+net.JoinHostPort(address, "5900")+"\"")
	}
}

func (d *domain) video(n *importer.Node, shown bool, i int) {
	model := n.At("model")
	kind := model.Attr("type")
	switch {
	case kind == "none" || !shown:
		n.Drop() // nobody would see it
		return
	case i > 0:
		d.Leave(n, "a machine has one graphics card", "display.heads")
		return
	case kind == "qxl" || kind == "vga":
		d.Default("display.device", kind)
	case kind == "virtio" || kind == "":
	default:
		d.Default("display.device", "vga")
		d.Leave(model.Attribute("type"), "want virtio, vga or qxl", "it is vga")
	}
	if heads := model.Attribute("heads"); number(heads.Text()) > 1 && kind != "vga" {
		d.Set(heads, "display.heads", heads.Text())
	}
	if a := model.At("acceleration"); a.Attr("accel3d") == "yes" {
		d.Leave(a, "there is no 3D acceleration", "")
	}
	n.Drop()
}

// text is serial ports and consoles: the first is vmctl's console.
func (d *domain) text(devices *importer.Node) {
	serials := devices.All("serial")
	for i, s := range serials {
		kind := s.Attr("type")
		switch {
		case i > 0:
			d.Leave(s, "a machine has one serial port", "")
		case kind == "pty" || kind == "stdio":
			s.Drop()
		default:
			d.Leave(s, "the serial port is the console, which vmctl keeps", "vmctl console, and vmctl logs")
		}
	}
	for _, c := range devices.All("console") {
		target := c.At("target")
		switch kind := target.Attr("type"); {
		case kind == "virtio" && len(serials) == 0:
			d.Set(target, "console.device", "virtio")
			c.Drop()
		case kind == "" || kind == "serial":
			c.Drop() // the first serial port once more
		default:
			d.Leave(c, "a machine has one console", "")
		}
	}
	for _, c := range devices.All("channel") {
		switch name := c.At("target").Attr("name"); name {
		case "org.qemu.guest_agent.0", "com.redhat.spice.0":
			c.Drop() // as always here, or with the display
		default:
			d.Leave(c, "the guest has no other channels", "vsock")
		}
	}
}

// others are those of which there is one at most, or none in vmctl.
func (d *domain) others(n *importer.Node) {
	for _, in := range n.All("input") {
		if kind := in.Attr("type"); kind == "passthrough" || kind == "evdev" {
			d.Leave(in, "keyboard and pointer are the viewer's", "[usb.NAME] gives one of the host's to the guest")
		}
		in.Drop()
	}
	for i, t := range n.All("tpm") {
		d.tpm(t, i)
	}
	d.watchdog(n.All("watchdog"))
	if r := n.At("rng"); r != nil {
		if backend := r.At("backend"); backend.Attr("model") == "egd" {
			d.Leave(backend, "random numbers are those of the host's kernel", "")
		}
		if rate := r.At("rate"); rate != nil {
			d.Leave(rate, "there is no limit", "")
		}
		r.Drop()
	}
	if b := n.At("memballoon"); b != nil {
		switch {
		case b.Attr("model") == "none":
			d.Default("balloon.enabled", "false")
		default:
			if a := b.Attribute("autodeflate"); a != nil {
				d.Default("balloon.deflate_on_oom", strconv.FormatBool(a.Text() == "on"))
			}
			if r := b.Attribute("freePageReporting"); r != nil {
				d.Default("balloon.free_page_reporting", strconv.FormatBool(r.Text() == "on"))
			}
		}
		b.Drop()
	}
	n.DropAll("panic", "hub")
	if v := n.At("vsock"); v != nil {
		if cid := v.At("cid"); cid.Attr("auto") != "yes" && cid.Attr("address") != "" {
			d.Set(cid, "vsock.cid", cid.Attr("address"))
		}
		v.Drop()
	}
}

func (d *domain) tpm(n *importer.Node, i int) {
	backend := n.At("backend")
	version := backend.Attr("version")
	if backend.Attr("type") != "emulator" || version == "1.2" || i > 0 {
		d.Leave(n, "a machine has one emulated TPM 2.0 or none", "tpm.enabled = true gives it one")
		return
	}
	d.Default("tpm.enabled", "true")
	d.Tell(n, "", "what it keeps", "the machine has a new TPM, without the keys of the old one",
		"have the recovery key of a disk that is unlocked by it (BitLocker, systemd-cryptenroll)")
	n.Drop()
}

// watchdog is the first, or of two the one that libvirt does not add by itself.
func (d *domain) watchdog(all []*importer.Node) {
	slices.SortStableFunc(all, func(a, b *importer.Node) int {
		return cmp.Compare(map[string]int{"itco": 1}[a.Attr("model")], map[string]int{"itco": 1}[b.Attr("model")])
	})
	for i, n := range all {
		model, action := n.Attribute("model"), n.Attribute("action")
		if i > 0 {
			d.Leave(n, "a machine has one watchdog", "")
			continue
		}
		d.Default("watchdog.enabled", "true")
		switch kind := model.Text(); kind {
		case "i6300esb":
		case "itco":
			d.Default("watchdog.model", "itco")
		default:
			d.Leave(model, "want i6300esb or itco", "it is i6300esb")
		}
		switch what := cmp.Or(action.Text(), "reset"); what {
		case "reset", "poweroff", "pause", "none":
			d.Default("watchdog.action", what)
		case "shutdown":
			d.Default("watchdog.action", "poweroff")
			d.Leave(action, "a guest that hangs cannot shut down", "it is powered off")
		default:
			d.Leave(action, "want reset, poweroff, pause or none", "it is reset")
		}
		n.Drop()
	}
}

package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// checker fills in the defaults that depend on other keys, and checks what no
// single value can know. A key that has a problem already gets no second one.
type checker struct {
	*Machine
	*decoder
	tree *tree // to ask what was written
}

// bad says that the value of a key, or what a table lacks, is a problem.
func (c *checker) bad(key, format string, args ...any) {
	if c.vague[key] {
		return
	}
	for k := key; k != ""; k = above(k) {
		if c.decoder.bad[k] {
			return
		}
	}
	if c.decoder.bad == nil {
		c.decoder.bad = map[string]bool{}
	}
	c.decoder.bad[key] = true
	c.wrong = append(c.wrong, mistake{shown([]string{key}), key, fmt.Sprintf(format, args...)})
}

// good says whether all the keys are without a problem so far.
func (c *checker) good(keys ...string) bool { return c.goodIn("", keys...) }

// goodIn is good for keys of one table.
func (c *checker) goodIn(table string, keys ...string) bool {
	return len(c.decoder.bad) == 0 || !slices.ContainsFunc(keys, func(k string) bool { return c.decoder.bad[join(table, k)] })
}

func (c *checker) given(path ...string) bool { return c.tree.has(path...) }

// fill sets the defaults that no tag can say.
func (c *checker) fill(host Settings, machineID string) {
	m := c.Machine
	if !c.given("hypervisor") {
		m.Hypervisor = host.Hypervisor
	}
	if m.UUID == "" {
		m.UUID = DeriveUUID(machineID, m.Name)
	}
	if m.Vsock.CID == 0 {
		m.Vsock.CID = DeriveCID(machineID, m.Name)
	}
	c.fillBoot()
	c.fillKind()
	if !c.given("cloud_init", "enabled") {
		m.CloudInit.Enabled = c.given("cloud_init")
	}
	if m.CloudInit.Enabled && m.CloudInit.Hostname == "" {
		m.CloudInit.Hostname = m.Name
	}
	if m.Lifecycle.RemoveOnStop && !c.given("lifecycle", "restart") {
		m.Lifecycle.Restart = "no"
	}
	// Lists that are always shown are empty in JSON, not null.
	m.dropDisabled()
	m.Disks, m.NICs, m.Shares = orEmpty(m.Disks), orEmpty(m.NICs), orEmpty(m.Shares)
	for i := range m.Disks {
		c.fillDisk(&m.Disks[i])
	}
	for i := range m.NICs {
		n := &m.NICs[i]
		if n.MAC == "" {
			n.MAC = DeriveMAC(machineID, m.Name, n.Name)
		}
		if len(plugs(*n)) == 0 {
			n.Network = host.Network
		}
		if n.Queues == 0 {
			n.Queues = 1
		}
		if n.Macvtap != "" && n.MacvtapMode == "" {
			n.MacvtapMode = "bridge"
		}
	}
	for i := range m.Shares {
		if s := &m.Shares[i]; s.Tag == "" {
			s.Tag = s.Name
		}
	}
	for i := range m.PCI {
		if a, ok := pciAddress(m.PCI[i].Address); ok {
			m.PCI[i].Address = a
		}
	}
	c.fillCPU()
	c.fillDisplay()
}

// fillBoot sets the firmware. cloud-hypervisor boots a kernel or a firmware, and
// has no BIOS.
func (c *checker) fillBoot() {
	b := &c.Boot
	switch {
	case b.Firmware != "":
	case c.Hypervisor == CloudHypervisor && b.Kernel == "":
		b.Firmware = "uefi"
	case c.Hypervisor == CloudHypervisor, c.MachineType == "microvm":
		b.Firmware = "none"
	default:
		b.Firmware = "bios"
	}
}

// CloudHypervisor is the name of the hypervisor some of whose defaults differ.
const CloudHypervisor = "cloud-hypervisor"

// fillKind sets what each hypervisor has in another way: cloud-hypervisor has one
// watchdog, and no channel for a guest agent.
func (c *checker) fillKind() {
	if c.Hypervisor == CloudHypervisor && !c.given("guest_agent", "enabled") {
		c.GuestAgent.Enabled = false
	}
	switch {
	case c.Watchdog.Model != "":
	case c.Hypervisor == CloudHypervisor:
		c.Watchdog.Model = "virtio"
	default:
		c.Watchdog.Model = "i6300esb"
	}
}

func (c *checker) fillDisplay() {
	d := &c.Display
	if d.Type == "none" {
		return
	}
	if d.Device == "" {
		d.Device = "virtio"
	}
	if d.Heads == 0 {
		d.Heads = 1
	}
	if d.Type != "spice" {
		return
	}
	if !c.given("display", "clipboard") {
		d.Clipboard = true
	}
	if !c.given("display", "usb_redirection") {
		d.USBRedirection = spiceRedirections
	}
}

// spiceRedirections is how many USB devices a viewer can pass on by default.
const spiceRedirections = 3

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (c *checker) fillDisk(d *Disk) {
	given := func(key string) bool { return c.given("disk", d.Name, key) }
	if d.Media == "cdrom" {
		if !given("bus") {
			d.Bus = "sata"
			if c.MachineType == "pc" {
				d.Bus = "ide"
			}
		}
		if !given("readonly") {
			d.Readonly = true
		}
	}
	if d.Format == "" {
		d.Format = "qcow2"
		if c.Hypervisor == CloudHypervisor {
			d.Format = "raw"
		}
		if d.Path != "" {
			d.Format = FormatOf(d.Path)
		}
	}
	if d.Serial == "" {
		d.Serial = serialOf(d.Name)
	}
}

// FormatOf returns the format that a file has by the ending of its name.
func FormatOf(path string) string {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".qcow2":
		return "qcow2"
	case ".vmdk":
		return "vmdk"
	case ".vdi":
		return "vdi"
	case ".vhd", ".vpc":
		return "vpc"
	case ".vhdx":
		return "vhdx"
	}
	return "raw"
}

// maxSerial is the length of a serial number on virtio, ATA and NVMe.
const maxSerial = 20

// serialOf returns the disk's name; of one that is too long the beginning,
// and a hash so that two long names stay apart.
func serialOf(disk string) string {
	if len(disk) <= maxSerial {
		return disk
	}
	return fmt.Sprintf("%s-%x", disk[:maxSerial-7], derive(3, "serial", disk))
}

func (c *checker) fillCPU() {
	t := &c.CPU
	if t.Sockets == 0 {
		t.Sockets = 1
	}
	if t.Threads == 0 {
		t.Threads = 1
	}
	if t.Cores == 0 {
		t.Cores = max(1, max(c.CPUs, t.Max)/(t.Sockets*t.Threads))
	}
}

// check finds what is wrong with the machine as a whole.
func (c *checker) check() {
	c.checkCPU()
	c.checkMemory()
	c.checkBoot()
	for _, d := range c.Disks {
		c.checkDisk(d)
	}
	c.checkPaths()
	c.checkSnapshots()
	c.checkNICs()
	c.checkShares()
	c.checkPassThrough()
	c.checkCloudInit()
	c.checkOthers()
	c.checkNeeds()
}

func (c *checker) checkCPU() {
	t := c.CPU
	if t.Max > 0 && t.Max < c.CPUs && c.good("cpus", "cpu.max") {
		c.bad("cpu.max", "want at least cpus (%d), got %d", c.CPUs, t.Max)
	}
	total, of := c.CPUs, "cpus"
	if t.Max > 0 {
		total, of = t.Max, "cpu.max"
	}
	if n := t.Sockets * t.Cores * t.Threads; n != total && c.good("cpus", "cpu.max", "cpu.sockets", "cpu.cores", "cpu.threads") {
		c.bad("cpu", "want sockets × cores × threads equal to %s (%d), got %d × %d × %d = %d", of, total, t.Sockets, t.Cores, t.Threads, n)
	}
	if len(t.Pinning) > total && c.good("cpus", "cpu.max") {
		c.bad("cpu.pinning", "want at most one entry for each virtual CPU (%d), got %d", total, len(t.Pinning))
	}
}

func (c *checker) checkMemory() {
	whole := func(key string, s Size) {
		if s%(1<<20) != 0 {
			c.bad(key, "want a multiple of 1M, got %s", s)
		}
	}
	o := c.MemoryOptions
	whole("memory", c.Memory)
	whole("memory_options.max", o.Max)
	if page := Size(o.Hugepages); page > 0 && c.Memory%page != 0 && c.good("memory") {
		c.bad("memory", "want a multiple of the huge pages' size (%s), got %s", page, c.Memory)
	}
	if o.Max > 0 && o.Max < c.Memory && c.good("memory", "memory_options.max") {
		c.bad("memory_options.max", "want at least memory (%s), got %s", c.Memory, o.Max)
	}
	most, ok := systemdSize(c.Resources.MemoryMax)
	if ok && Size(most) < c.Memory && c.good("memory", "resources.memory_max") {
		c.bad("resources.memory_max", "want more than memory (%s), or the machine is killed, got %s", c.Memory, show(c.Resources.MemoryMax))
	}
}

func (c *checker) checkBoot() {
	b := c.Boot
	if b.SecureBoot && b.Firmware != "uefi" && b.Firmware[0] != '/' {
		c.bad("boot.secure_boot", "want boot.firmware = \"uefi\" for it, got %s", show(b.Firmware))
	}
	if b.Kernel == "" && c.good("boot.kernel") {
		if b.Initrd != "" {
			c.bad("boot.initrd", "want boot.kernel beside it")
		}
		if b.Cmdline != "" {
			c.bad("boot.cmdline", "want boot.kernel beside it: without it the guest's boot loader decides")
		}
		if b.Firmware == "none" {
			c.bad("boot.kernel", "want a kernel: without firmware nothing else boots")
		}
	}
	for i, key := range b.Order {
		known := slices.ContainsFunc(c.Disks, func(d Disk) bool { return d.Key() == key }) ||
			slices.ContainsFunc(c.NICs, func(n NIC) bool { return n.Key() == key })
		if !known && c.good(key) {
			c.element("boot.order", i, "want a disk or card of this machine such as \"disk.root\", got %s", show(key))
		} else if slices.Index(b.Order, key) < i {
			c.element("boot.order", i, "want each device once, got %s again", show(key))
		}
	}
}

// element says that one element of a list is a problem.
func (c *checker) element(key string, i int, format string, args ...any) {
	c.wrong = append(c.wrong, mistake{key, index(key, i), fmt.Sprintf(format, args...)})
}

func (c *checker) checkDisk(d Disk) {
	key := func(k string) string { return d.Key() + "." + k }
	c.checkDiskSource(d)
	switch {
	case !c.goodIn(d.Key(), "bus", "media"):
	case d.Media == "cdrom" && !slices.Contains([]string{"sata", "scsi", "ide", "usb"}, d.Bus):
		c.bad(key("bus"), "want sata, scsi, ide or usb for a CD-ROM, got %s", show(d.Bus))
	case d.Media == "cdrom" && !d.Readonly:
		c.bad(key("readonly"), "want true for a CD-ROM, got false")
	case d.Bus == "pflash" && d.Path == "":
		c.bad(key("path"), "want the path of a firmware image on pflash")
	case d.Bus == "pflash" && d.Format != "raw":
		c.bad(key("format"), "want raw on pflash, got %s", show(d.Format))
	}
	if d.Shareable && !d.Readonly && d.Format != "raw" {
		c.bad(key("shareable"), "want format raw for a disk that several machines write to, got %s", show(d.Format))
	}
	if len(d.Serial) > maxSerial || !printable(d.Serial) {
		c.bad(key("serial"), "want at most %d printable ASCII characters, got %s", maxSerial, show(d.Serial))
	}
	if d.IOPS > 0 && d.IOPSRead+d.IOPSWrite > 0 {
		c.bad(key("iops"), "want either one limit for all or iops_read and iops_write, got both")
	}
	if d.Bandwidth > 0 && d.BandwidthRead+d.BandwidthWrite > 0 {
		c.bad(key("bandwidth"), "want either one limit for all or bandwidth_read and bandwidth_write, got both")
	}
}

// use is what matters of a disk to another one of the same path.
type use struct{ written, shareable bool }

func (d *Disk) use() use { return use{!d.Readonly && !d.Ephemeral, d.Shareable} }

// excludes says whether the two cannot be at the same time: one is written to,
// and not both are made for that.
func (u use) excludes(other use) bool {
	return (u.written || other.written) && !(u.shareable && other.shareable)
}

// checkPaths finds files that the machine would have twice.
func (c *checker) checkPaths() {
	for i, d := range c.Disks {
		for _, first := range c.Disks[:i] {
			if d.Path != "" && d.Path == first.Path && d.use().excludes(first.use()) {
				c.bad(d.Key()+".path", "want a file or device of its own, got %s as disk.%s has", show(d.Path), first.Name)
				break
			}
		}
	}
}

// checkSnapshots finds what would have each snapshot of the schedule fail.
func (c *checker) checkSnapshots() {
	if !c.Snapshots.Scheduled() || !c.good("snapshots.schedule") {
		return
	}
	if c.Hypervisor == CloudHypervisor {
		return // which refuses all of it
	}
	for _, d := range c.Disks {
		if d.LacksSnapshots() && c.goodIn(d.Key(), "format", "path", "readonly", "ephemeral") {
			c.bad(d.Key()+".format", "want qcow2 for a disk that snapshots.schedule takes snapshots of, got %s: or make it read-only or ephemeral", show(d.Format))
		}
	}
}

func (c *checker) checkDiskSource(d Disk) {
	key := func(k string) string { return d.Key() + "." + k }
	switch {
	case !c.goodIn(d.Key(), "image", "path", "size"):
	case d.Image == "" && d.Path == "" && d.Size == 0:
		c.bad(d.Key(), "want image, path or size, got none of them")
	case d.Image != "" && d.Path != "":
		c.bad(key("path"), "want either image or path, got both")
	case d.Path != "" && d.Size > 0:
		c.bad(key("size"), "want no size with path: the file has its own")
	case d.Size%512 != 0:
		c.bad(key("size"), "want a multiple of 512 bytes, got %s", d.Size)
	case d.Path == "/" || strings.HasPrefix(d.Path, "/proc/"):
		c.bad(key("path"), "want an image file or block device, got %s", show(d.Path))
	case d.Path != "":
	case d.Image == "" && d.Media == "cdrom":
		c.bad(d.Key(), "want path or image for a CD-ROM, got size alone")
	case d.Format != "qcow2" && d.Format != "raw":
		c.bad(key("format"), "want qcow2 or raw for a new disk, got %s", show(d.Format))
	}
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}

// plugs are the keys that say what a card is plugged into.
func plugs(n NIC) []string {
	var keys []string
	add := func(there bool, key string) {
		if there {
			keys = append(keys, key)
		}
	}
	add(n.Network != "", "network")
	add(n.User, "user")
	add(n.Bridge != "", "bridge")
	add(n.Tap != "", "tap")
	add(n.Macvtap != "", "macvtap")
	add(n.VDE != "", "vde")
	add(n.VhostUser != "", "vhost_user")
	return keys
}

// minRate is the least limit of a card, in bytes per second: with less, one
// packet takes seconds.
const minRate = 1 << 10

func (c *checker) checkNICs() {
	macs := map[MAC]string{}
	for _, n := range c.NICs {
		c.checkPlug(n)
		c.checkFilter(n)
		for _, rate := range []struct {
			key   string
			value Size
		}{{"rate_in", n.RateIn}, {"rate_out", n.RateOut}} {
			if rate.value > 0 && rate.value < minRate {
				c.bad(n.Key()+"."+rate.key, "want at least \"1K\" per second, or \"0B\" for no limit, got %s", show(rate.value.String()))
			}
		}
		if first, twice := macs[n.MAC]; twice {
			c.bad(n.Key()+".mac", "want an address of its own, got %s as nic.%s has", show(string(n.MAC)), first)
		} else {
			macs[n.MAC] = n.Name
		}
	}
	c.checkAlone()
	c.checkForwards()
}

func (c *checker) checkPlug(n NIC) {
	switch keys := plugs(n); {
	case !c.goodIn(n.Key(), "network", "user", "bridge", "tap", "macvtap", "vde", "vhost_user"):
	case len(keys) == 0:
		c.bad(n.Key(), "want one of network, user, bridge, tap, macvtap, vde, vhost_user, got none")
	case len(keys) > 1:
		c.bad(n.Key()+"."+keys[1], "want only one of network, user, bridge, tap, macvtap, vde, vhost_user, got %s", strings.Join(keys, " and "))
	case n.Address.IsValid() && n.Network == "" && n.Bridge == "":
		c.bad(n.Key()+".address", "want a card in one of vmctl's networks or on a bridge of the host for a fixed address, got %s", keys[0])
	case n.Address.IsValid() && (!n.Address.IsGlobalUnicast() || n.Address.Zone() != ""):
		c.bad(n.Key()+".address", "want an address by which others reach the guest, got %s", n.Address)
	case n.Backend != "" && !n.User:
		c.bad(n.Key()+".backend", "want user = true for a backend, got %s", keys[0])
	case n.MacvtapMode != "" && n.Macvtap == "":
		c.bad(n.Key()+".macvtap_mode", "want macvtap for a mode of it, got %s", keys[0])
	case n.VLAN != 0 && n.Network == "" && n.Bridge == "":
		c.bad(n.Key()+".vlan", "want a card on a bridge (network or bridge) for a VLAN tag, got %s%s", keys[0], taggedBy(keys[0]))
	case n.Queues > 1 && (n.User || n.VDE != ""):
		c.bad(n.Key()+".queues", "want 1 for %s, which has no more, got %d", keys[0], n.Queues)
	case n.Queues > 1 && n.Model != "virtio":
		c.bad(n.Key()+".queues", "want 1 for the model %s, which has no more, got %d", show(n.Model), n.Queues)
	case n.MTU != 0 && n.Model != "virtio":
		c.bad(n.Key()+".mtu", "want the model \"virtio\", which alone can be told an MTU, got %s", show(n.Model))
	case n.MTU > 1500 && n.User:
		c.bad(n.Key()+".mtu", "want at most 1500 for user, got %d", n.MTU)
	case n.VhostUser != "" && n.Model != "virtio":
		c.bad(n.Key()+".model", "want \"virtio\" for vhost_user, got %s", show(n.Model))
	case len(n.Forward) > 0 && !n.User && n.Network == "":
		c.bad(n.Key()+".forward", "want a card in one of vmctl's networks, or user = true, got %s, where the guest is reached by its own address", keys[0])
	}
}

// taggedBy says how what a card is plugged into gets a VLAN tag otherwise; plug
// is the key that names it.
func taggedBy(plug string) string {
	switch plug {
	case "tap":
		return ": the bridge that it is on gives it one"
	case "macvtap":
		return ": name a VLAN interface of the host, such as \"eth0.5\""
	case "vde":
		return ": a port of the switch has one"
	}
	return ""
}

// plugAlone is what no other card can be plugged into at the same time, and the
// key that names it; both are "" where there is no such thing.
func (n NIC) plugAlone() (key, value string) {
	switch {
	case n.Tap != "":
		return "tap", n.Tap
	case n.VhostUser != "":
		return "vhost_user", n.VhostUser
	case n.Macvtap != "" && n.MacvtapMode == "passthru":
		return "macvtap", n.Macvtap
	}
	return "", ""
}

// checkAlone finds two cards of the machine on what takes only one.
func (c *checker) checkAlone() {
	for i, n := range c.NICs {
		key, value := n.plugAlone()
		if key == "" || !c.goodIn(n.Key(), key) {
			continue
		}
		for _, other := range c.NICs[:i] {
			if k, v := other.plugAlone(); k == key && v == value {
				c.bad(n.Key()+"."+key, "want what no other card is plugged into, got %s as nic.%s has", show(value), other.Name)
			}
		}
	}
}

// checkFilter refuses rules for a card whose traffic vmctl does not see.
func (c *checker) checkFilter(n NIC) {
	c.checkLists(n.Key(), n.Lists())
	if n.Network != "" || n.Bridge != "" || len(plugs(n)) != 1 {
		return
	}
	for _, key := range append([]string{"anti_spoofing", "security_groups"}, listKeys...) {
		if c.given("nic", n.Name, key) {
			c.bad(n.Key()+"."+key, "want a card in one of vmctl's networks or on a bridge of the host for it, got %s", plugs(n)[0])
		}
	}
}

// checkForwards finds ports of the host that are given away twice.
func (c *checker) checkForwards() {
	type used struct {
		Forward
		nic string
	}
	var all []used
	for _, n := range c.NICs {
		if !c.goodIn(n.Key(), "forward") {
			continue
		}
		for i, f := range n.Forward {
			k := slices.IndexFunc(all, func(u used) bool { return u.overlaps(f) })
			if k >= 0 {
				c.element(n.Key()+".forward", i, "want each port of the host once, got %s beside %s of nic.%s", show(f.String()), show(all[k].String()), all[k].nic)
			}
			all = append(all, used{f, n.Name})
		}
	}
}

func (c *checker) checkShares() {
	tags := map[string]string{}
	for _, s := range c.Shares {
		if s.Path == "" {
			c.bad(s.Key()+".path", "want the absolute path of a directory, got none")
		}
		// VIRTIO 1.2, 5.11.4: 36 bytes.
		if len(s.Tag) > 36 || !printable(s.Tag) || strings.ContainsAny(s.Tag, ", ") {
			c.bad(s.Key()+".tag", "want at most 36 printable characters without space or comma, got %s", show(s.Tag))
		}
		if first, twice := tags[s.Tag]; twice {
			c.bad(s.Key()+".tag", "want a tag of its own, got %s as share.%s has", show(s.Tag), first)
		}
		tags[s.Tag] = s.Name
		c.checkIDMap(s.Key()+".uid_map", s, s.UIDMap)
		c.checkIDMap(s.Key()+".gid_map", s, s.GIDMap)
	}
}

// checkIDMap holds ranges of users or groups against each other.
func (c *checker) checkIDMap(key string, s Share, ranges []string) {
	if len(ranges) > 0 && s.User != "" {
		c.bad(key, "want it without %s.user, as whom all is done there", s.Key())
	}
	var all []IDRange
	for i, text := range ranges {
		r, ok := ParseIDRange(text)
		if !ok {
			continue // said already
		}
		for j, other := range all {
			if r.overlaps(other) {
				c.element(key, i, "want ranges that do not overlap, got %s, which does with %s", show(text), show(ranges[j]))
			}
		}
		all = append(all, r)
	}
}

func (c *checker) checkPassThrough() {
	addresses := map[string]string{}
	for _, p := range c.PCI {
		if p.Address == "" {
			c.bad(p.Key()+".address", "want a PCI address such as \"0000:01:00.0\", got none")
			continue
		}
		if first, twice := addresses[p.Address]; twice {
			c.bad(p.Key()+".address", "want each device once, got %s as pci.%s has", show(p.Address), first)
		}
		addresses[p.Address] = p.Name
	}
	for _, u := range c.USB {
		byID, byPort := u.Vendor != "" || u.Product != "", u.Bus > 0 || u.Port != ""
		whole := byID && u.Vendor != "" && u.Product != "" || byPort && u.Bus > 0 && u.Port != ""
		k := u.Key()
		if byID == byPort || !whole {
			if c.goodIn(k, "vendor", "product", "bus", "port") {
				c.bad(k, "want either vendor and product or bus and port")
			}
		}
	}
}

func (c *checker) checkCloudInit() {
	s := c.CloudInit
	if h := s.PasswordHash; h != "" && h[0] != '$' && h[0] != '!' && h[0] != '*' {
		c.bad("cloud_init.password_hash", "want a hash as mkpasswd makes it, beginning with $, got something else (not shown)")
	}
	for i, key := range s.SSHKeys {
		if len(strings.Fields(key)) < 2 {
			c.element("cloud_init.ssh_keys", i, "want a public key such as \"ssh-ed25519 AAAA… name\", got %s", show(key))
		}
	}
}

func (c *checker) checkOthers() {
	c.checkDisplay()
	if c.Console.Device == "serial" && !c.Serial.Enabled {
		c.bad("serial.enabled", "want console.device = \"virtio\" where there is no serial port, got \"serial\"")
	}
	l := c.Lifecycle
	for _, t := range []struct {
		key string
		d   Duration
	}{{"start_timeout", l.StartTimeout}, {"stop_timeout", l.StopTimeout}, {"ready_timeout", l.ReadyTimeout}} {
		if t.d == 0 {
			// systemd takes 0 for "infinity" here, which is not what it looks like.
			c.bad("lifecycle."+t.key, "want more than 0, or \"infinity\"")
		}
	}
	if l.RestartDelay == Infinity {
		c.bad("lifecycle.restart_delay", "want a span of time, or lifecycle.restart = \"no\", got \"infinity\"")
	}
	if l.Ready == "agent" && !c.GuestAgent.Enabled {
		c.bad("lifecycle.ready", "want guest_agent.enabled = true for \"agent\", got false")
	}
	if l.RemoveOnStop && l.Restart != "no" {
		c.bad("lifecycle.restart", "want \"no\" for a machine that is removed when it ends, got %s", show(l.Restart))
	}
	args := c.HypervisorOptions.ExtraArgs
	if i := slices.Index(args, ""); i == 0 {
		c.element("hypervisor_options.extra_args", i, "want an argument, got %s", strconv.Quote(""))
	}
}

// checkDisplay refuses what a display of its kind has not got.
func (c *checker) checkDisplay() {
	d := c.Display
	for _, k := range []string{"address", "device", "heads", "clipboard", "usb_redirection"} {
		if d.Type == "none" && c.given("display", k) && c.good("display.type") {
			c.bad("display.type", "want vnc or spice with display.%s, got \"none\"", k)
			return
		}
	}
	if !c.good("display.type", "display.device") {
		return
	}
	if d.Device == "vga" && d.Heads > 1 {
		c.bad("display.heads", "want 1 for display.device = \"vga\", got %d", d.Heads)
	}
	if d.Type == "vnc" && d.USBRedirection > 0 {
		c.bad("display.usb_redirection", "want 0 for vnc, which cannot, got %d", d.USBRedirection)
	}
}

// checkRemoval refuses to have a machine removed of which a file may be a
// person's: only those in the first of dirs, which a reboot empties, are not.
// file is the machine's main one.
func (c *checker) checkRemoval(file string, dirs []string) {
	const key = "lifecycle.remove_on_stop"
	if !c.Lifecycle.RemoveOnStop || len(dirs) == 0 || !slices.Contains(dirs, filepath.Dir(file)) {
		return // or a file to be looked at, which lies elsewhere
	}
	if filepath.Dir(file) != dirs[0] {
		c.bad(key, "want a definition in %s for a machine that is removed when it ends, got one in %s", dirs[0], filepath.Dir(file))
		return
	}
	if other := (Paths{}).find(dirs[1:], c.Name); other.file != "" {
		c.bad(key, "want no other definition of the machine that is removed when it ends, got %s", other.file)
	}
}

// checkNeeds looks at the other machines that this one names.
func (c *checker) checkNeeds() {
	for _, key := range needKeys {
		for i, name := range c.needs(key) {
			if name == c.Name {
				c.element(key, i, "want another machine, got %s itself", show(name))
			}
		}
	}
}

// needKeys are the keys that name other machines.
var needKeys = []string{"after", "requires", "wants"}

func (m *Machine) needs(key string) []string {
	switch key {
	case "after":
		return m.After
	case "requires":
		return m.Requires
	}
	return m.Wants
}

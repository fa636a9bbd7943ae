package libvirt

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

// domain is a machine that is being written.
type domain struct {
	*importer.Builder
	root *importer.Node
	file string

	board   string
	cpus    int64 // there can be
	order   []bootPlace
	plugged map[string]string // first device of each kind that <boot dev=…> knows
	cards   int
}

// bootPlace is a device with <boot order="…"/>.
type bootPlace struct {
	order int64
	key   string
}

func convertDomain(file string, root *importer.Node) (*importer.Definition, error) {
	d := &domain{root: root, file: file, plugged: map[string]string{}}
	if err := d.checkKind(); err != nil {
		return nil, err
	}
	name := root.At("name")
	if name == nil {
		return nil, wrong(file, root, "want <name> in <domain>, got none")
	}
	b, err := importer.NewBuilder(file, config.KindVM, root, name)
	if err != nil {
		return nil, err
	}
	d.Builder = b
	if b.Name != b.Called {
		b.Set(name, "api.name", b.Called)
	}
	d.identity()
	if err := d.boardKind(); err != nil {
		return nil, err
	}
	d.memory()
	d.processors()
	d.limits()
	d.firmware()
	d.features()
	d.clock()
	d.lifecycle()
	d.devices()
	d.bootOrder()
	d.commandLine()
	return b.Finish(root, reason), nil
}

// checkKind refuses what vmctl has no hypervisor for.
func (d *domain) checkKind() error {
	d.root.DropAll("@id", "seclabel")
	kind := d.root.Attr("type")
	if kind != "kvm" && kind != "qemu" {
		return wrong(d.file, d.root, "want a domain of type kvm or qemu, got %q", kind)
	}
	os := d.root.At("os", "type")
	if text := os.Text(); text != "" && text != "hvm" {
		return wrong(d.file, os, "want a domain with <type>hvm</type>, got %q", text)
	}
	if arch := os.Attr("arch"); !slices.Contains([]string{"", "x86_64", "i686"}, arch) {
		return wrong(d.file, os, "want a domain for x86_64, got %s", arch)
	}
	return nil
}

func (d *domain) identity() {
	if d.root.Attr("type") == "qemu" {
		d.Default("accel", "tcg")
	}
	if id := d.root.At("uuid"); id != nil {
		d.Set(id, "uuid", id.Text())
	}
	title, description := d.root.At("title"), d.root.At("description")
	if title != nil {
		d.Set(title, "description", oneLine(title.Text()))
		if description != nil {
			d.Leave(description, "a definition has one line for people, which is the title", "keep it as a comment")
		}
	} else if description != nil {
		d.Set(description, "description", oneLine(description.Text()))
	}
	d.root.DropAll("genid") // each has one
	if m := d.root.At("metadata"); m != nil {
		d.Leave(m, "it is of libvirt and its programs alone", "")
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// boardKind is the board that the guest sees.
func (d *domain) boardKind() error {
	n := d.root.At("os", "type").Attribute("machine")
	text := n.Text()
	switch {
	case strings.Contains(text, "q35"):
		d.board = "q35"
	case text == "" || text == "pc" || strings.HasPrefix(text, "pc-"):
		d.board = "pc"
	case text == "microvm":
		d.board = "microvm"
	default:
		return wrong(d.file, n, "want a machine q35, pc or microvm, got %q", text)
	}
	d.Default("machine", d.board)
	if strings.HasPrefix(text, "pc-") || strings.HasPrefix(text, "rhel") {
		d.Leave(n, "the board is that of the newest version that QEMU has", "hypervisor_options.extra_args = [\"-machine\", \"type="+text+"\"] keeps it")
	}
	return nil
}

func (d *domain) memory() {
	n := d.root.At("memory")
	most := size(n)
	n.DropAll("@dumpCore")
	switch {
	case n == nil:
	case most == 0:
		d.Leave(n, "want a size", "")
	default:
		d.Set(n, "memory", wholeMebibytes(most).String())
	}
	if c := d.root.At("currentMemory"); c != nil {
		if now := size(c); now != most {
			d.Leave(c, "the guest begins with all of its memory", "vmctl balloon "+d.Name+" takes some back")
		}
	}
	if m := d.root.At("maxMemory"); m != nil {
		m.DropAll("@slots")
		if all := wholeMebibytes(size(m)); all > most {
			d.Set(m, "memory_options.max", all.String())
		}
	}
	d.memoryBacking(d.root.At("memoryBacking"))
}

// wholeMebibytes is a size that a definition can have, and not less.
func wholeMebibytes(s config.Size) config.Size { return (s + 1<<20 - 1) >> 20 << 20 }

func (d *domain) memoryBacking(n *importer.Node) {
	if pages := n.At("hugepages"); pages != nil {
		d.hugepages(pages)
	}
	n.DropAll("nosharepages", "discard") // as always here
	if source := n.At("source"); source != nil {
		if kind := source.Attr("type"); kind == "file" {
			d.Leave(source, "memory is anonymous, or of huge pages", "")
		}
	}
	if access := n.At("access"); access.Attr("mode") == "shared" {
		d.Set(access, "memory_options.shared", "true")
	}
	if allocation := n.At("allocation"); allocation.Attr("mode") == "immediate" {
		allocation.DropAll("@threads")
		d.Set(allocation, "memory_options.prealloc", "true")
	}
	if locked := n.At("locked"); locked != nil {
		d.Leave(locked, "vmctl locks memory only for PCI devices of the host", "memory_options.hugepages keeps it from being swapped out, and so does resources.memory_swap_max = \"0\"")
	}
}

func (d *domain) hugepages(n *importer.Node) {
	all := n.All("page")
	value := "true"
	if len(all) > 0 {
		value = pageSize(all[0])
		all[0].DropAll("@nodeset")
	}
	d.Set(n, "memory_options.hugepages", value)
	for _, page := range all[min(1, len(all)):] {
		d.Leave(page, "all pages have one size", "")
	}
}

// pageSize is the size of huge pages, in an attribute of its own.
func pageSize(page *importer.Node) string {
	count := number(page.Attr("size"))
	unit := units[strings.ToLower(cmp.Or(page.Attr("unit"), "KiB"))]
	return config.Size(count * unit).String()
}

func (d *domain) processors() {
	n := d.root.At("vcpu")
	d.cpus = max(1, number(cmp.Or(n.Text(), "1")))
	now := d.cpus
	if current := n.Attr("current"); current != "" {
		now = number(current)
	}
	d.Set(n, "cpus", strconv.FormatInt(now, 10))
	if now < d.cpus {
		d.Set(n, "cpu.max", strconv.FormatInt(d.cpus, 10))
	}
	if set := n.Attribute("cpuset"); set != nil {
		d.allowCPUs(set, set.Text())
	}
	if placement := n.Attribute("placement"); placement.Text() == "auto" {
		d.Leave(placement, "vmctl asks no numad", "resources.allowed_cpus and resources.allowed_memory_nodes say where it runs")
	}
	if each := d.root.At("vcpus"); each != nil {
		if len(each.All("vcpu")) > 0 && now < d.cpus {
			d.Leave(each, "cpus begins with the first", "")
		}
		each.Drop()
	}
	d.model(d.root.At("cpu"))
}

// allowCPUs lets the machine run on CPUs of the host, where libvirt's list is one:
// "^" takes some out.
func (d *domain) allowCPUs(n *importer.Node, list string) {
	if strings.Contains(list, "^") {
		d.Leave(n, "a list that takes some out is none here", "resources.allowed_cpus = \"0-3\" lists them")
		return
	}
	d.Set(n, "resources.allowed_cpus", list)
}

// model is the CPU that the guest sees. What is most like the host's is what vmctl
// has by itself.
func (d *domain) model(n *importer.Node) {
	n.DropAll("@match", "@check", "@migratable", "vendor", "cache", "maxphysaddr")
	model := n.At("model")
	model.DropAll("@fallback", "@vendor_id")
	switch mode := n.Attr("mode"); mode {
	case "", "custom":
		if name := model.Text(); name != "" {
			d.Set(model, "cpu.model", name)
		}
	case "host-passthrough", "host-model":
		model.Drop()
	case "maximum":
		d.Set(n.Attribute("mode"), "cpu.model", "max")
	}
	for _, f := range n.All("feature") {
		sign := "+"
		if policy := f.Attr("policy"); policy == "disable" || policy == "forbid" {
			sign = "-"
		}
		d.Set(f, "cpu.features", sign+f.Attr("name"))
	}
	d.topology(n.At("topology"))
	if numa := n.At("numa"); numa != nil {
		cells := numa.All("cell")
		for _, cell := range cells {
			if cell.Attr("memAccess") == "shared" && !d.Draft.Has("memory_options.shared") {
				d.Set(cell, "memory_options.shared", "true")
			}
		}
		if len(cells) > 1 {
			d.Leave(numa, "the guest has one node", "")
		}
		numa.Drop()
	}
}

func (d *domain) topology(n *importer.Node) {
	if n == nil {
		return
	}
	count := func(name string) int64 { return max(1, number(cmp.Or(n.Attr(name), "1"))) }
	sockets, threads := count("sockets"), count("threads")
	cores := count("cores") * count("dies") * count("clusters")
	if sockets*cores*threads != d.cpus {
		d.Leave(n, fmt.Sprintf("it comes to %d CPUs, and there are %d", sockets*cores*threads, d.cpus), "")
		return
	}
	for _, of := range []struct {
		key   string
		count int64
	}{{"cpu.sockets", sockets}, {"cpu.cores", cores}, {"cpu.threads", threads}} {
		d.Set(n, of.key, strconv.FormatInt(of.count, 10))
	}
	for _, group := range []string{"dies", "clusters"} {
		if a := n.Attribute(group); a != nil && a.Text() != "1" {
			d.Leave(a, "their cores are those of the socket", "")
		}
	}
}

// limits are those that libvirt has by cgroup, and systemd too.
func (d *domain) limits() {
	t := d.root.At("cputune")
	d.pins(t)
	if n := t.At("shares"); n != nil {
		d.Set(n, "resources.cpu_weight", n.Text()) // with cgroup v2 it is the weight
	}
	d.quota(t.At("global_quota"), t.At("global_period"), 1)
	if !d.Draft.Has("resources.cpu_quota") {
		d.quota(t.At("quota"), t.At("period"), d.cpus)
	}
	m := d.root.At("memtune")
	for element, key := range map[string]string{"hard_limit": "memory_max", "soft_limit": "memory_high", "min_guarantee": "memory_min"} {
		n := m.At(element)
		limit := size(n)
		switch {
		case n == nil:
		case limit >= unlimited:
			n.Drop()
		case element == "hard_limit" && limit <= size(d.root.At("memory")):
			d.Leave(n, "it is not more than the guest's memory, so that the machine would be killed", "resources.memory_max")
		default:
			d.Set(n, "resources."+key, limit.String())
		}
	}
	if n := m.At("swap_hard_limit"); n != nil {
		d.Leave(n, "it is of memory and swap together", "resources.memory_swap_max is of swap alone")
	}
	numa := d.root.At("numatune", "memory")
	if mode := numa.Attr("mode"); numa != nil && (mode == "" || mode == "strict" || mode == "restrictive") && numa.Attr("nodeset") != "" {
		d.Set(numa, "resources.allowed_memory_nodes", numa.Attr("nodeset"))
	} else if numa != nil {
		d.Leave(numa, "memory comes from the nodes that are allowed, and no others", "resources.allowed_memory_nodes")
	}
	if n := d.root.At("blkiotune", "weight"); n != nil {
		d.Set(n, "resources.io_weight", n.Text())
	}
}

// pins: each virtual CPU cannot be pinned yet, but all of them together.
func (d *domain) pins(tune *importer.Node) {
	pins := tune.All("vcpupin")
	var sets []string
	for _, pin := range pins {
		pin.DropAll("@vcpu")
		if set := pin.Attr("cpuset"); !slices.Contains(sets, set) {
			sets = append(sets, set)
		}
	}
	if len(pins) > 0 && !d.Draft.Has("resources.allowed_cpus") {
		d.allowCPUs(pins[0], strings.Join(sets, ","))
	}
	if len(sets) > 1 {
		for _, pin := range pins {
			d.Leave(pin, "CPUs of the guest are not pinned one by one", "resources.allowed_cpus has those of the host that all of them run on")
		}
	}
}

// quota is a limit of CPU time, for each of several CPUs.
func (d *domain) quota(quota, period *importer.Node, cpus int64) {
	if quota == nil {
		return
	}
	time, of := number(quota.Text()), number(cmp.Or(period.Text(), "100000"))
	if time < 0 || of <= 0 {
		return // none
	}
	d.Set(quota, "resources.cpu_quota", fmt.Sprintf("%d%%", max(1, time*cpus*100/of)))
}

func (d *domain) firmware() {
	os := d.root.At("os")
	loader, nvram := os.At("loader"), os.At("nvram")
	file := loader.Text()
	uefi := os.Attr("firmware") == "efi" || loader.Attr("type") == "pflash" || strings.Contains(strings.ToLower(path.Base(file)), "ovmf")
	loader.DropAll("@type", "@readonly", "@stateless", "@format")
	secure := loader.Attr("secure") == "yes"
	// Debian's store with keys is OVMF_VARS_4M.ms.fd, Fedora's OVMF_VARS.secboot.fd.
	template := path.Base(nvram.Attr("template"))
	enrolled := template == "." || strings.Contains(template, ".ms.") || strings.Contains(template, "secboot")
	for _, f := range os.At("firmware").All("feature") {
		switch f.Attr("name") {
		case "secure-boot":
			secure = f.Attr("enabled") == "yes"
		case "enrolled-keys":
			enrolled = f.Attr("enabled") == "yes"
		}
		f.Drop()
	}
	if secure && !enrolled {
		secure = false
		d.Leave(cmp.Or(os.At("firmware"), loader), "Secure Boot without enrolled keys refuses nothing: it is left off", "boot.secure_boot = true is with Microsoft's keys")
	}
	switch {
	case uefi:
		d.Default("boot.firmware", "uefi")
		if file != "" && !strings.HasPrefix(file, "/usr/") {
			d.Leave(loader, "the firmware is the one that QEMU's descriptors name (/etc/qemu/firmware)", "")
		}
	case file != "" && strings.HasPrefix(path.Base(file), "bios"): // SeaBIOS
	case file != "":
		d.Set(loader, "boot.firmware", file)
	}
	if secure {
		d.Default("boot.secure_boot", "true")
	}
	if nvram != nil {
		nvram.DropAll("@template", "@templateFormat", "@format", "@type")
		store := map[bool]string{true: "nvram-secure.fd", false: "nvram.fd"}[secure]
		d.Leave(nvram, "the machine has a variable store of its own, made at its first start, without the old boot entries",
			"a guest that has no \\EFI\\BOOT\\BOOTX64.EFI to be found by wants the old one: start and stop it once, then copy that over /var/lib/vmctl/vms/"+d.Name+"/"+store)
	}
	for _, k := range []struct{ element, key string }{{"kernel", "boot.kernel"}, {"initrd", "boot.initrd"}, {"cmdline", "boot.cmdline"}} {
		if n := os.At(k.element); n.Text() != "" {
			d.Set(n, k.key, n.Text())
		}
	}
	if menu := os.At("bootmenu"); menu.Attr("enable") != "yes" {
		menu.Drop()
	} else {
		d.Leave(menu, "no menu is shown", "boot.order says what is booted")
	}
	os.At("type").DropAll("@arch")
}

// hyperv are enlightenments that are nothing but a flag of QEMU's CPUs.
var hyperv = map[string]string{
	"relaxed": "hv-relaxed", "vapic": "hv-vapic", "vpindex": "hv-vpindex", "runtime": "hv-runtime", "synic": "hv-synic",
	"stimer": "hv-stimer", "reset": "hv-reset", "frequencies": "hv-frequencies", "reenlightenment": "hv-reenlightenment",
	"tlbflush": "hv-tlbflush", "ipi": "hv-ipi", "evmcs": "hv-evmcs", "avic": "hv-avic",
}

func (d *domain) features() {
	f := d.root.At("features")
	f.DropAll("acpi", "apic", "pae", "vmport", "smm", "privnet", "viridian") // as always here, or what the firmware wants
	hv := f.At("hyperv")
	if hv.Attr("mode") == "passthrough" {
		d.Set(hv.Attribute("mode"), "cpu.features", "+hv-passthrough")
	}
	for _, n := range hv.Parts() {
		if flag := hyperv[n.Name]; flag != "" && isOn(n) {
			d.Set(n, "cpu.features", "+"+flag)
			n.DropAll("direct") // of stimer
		} else if !isOn(n) {
			n.Drop()
		}
	}
	kvm := f.At("kvm")
	if n := kvm.At("hidden"); isOn(n) {
		d.Set(n, "cpu.features", "-kvm")
	}
	if n := kvm.At("hint-dedicated"); isOn(n) {
		d.Set(n, "cpu.features", "+kvm-hint-dedicated")
	}
	if n := kvm.At("poll-control"); isOn(n) {
		d.Set(n, "cpu.features", "+kvm-poll-control")
	}
	if n := f.At("pmu"); n != nil {
		d.Set(n, "cpu.features", map[bool]string{true: "+pmu", false: "-pmu"}[isOn(n)])
	}
}

func (d *domain) clock() {
	c := d.root.At("clock")
	c.DropAll("@adjustment", "@basis")
	switch offset := c.Attribute("offset"); offset.Text() {
	case "", "utc":
	case "localtime":
		d.Leave(offset, "the guest's clock has UTC", "in Windows, set RealTimeIsUniversal; or hypervisor_options.extra_args = [\"-rtc\", \"base=localtime\"]")
	default:
		d.Leave(offset, "the guest's clock has UTC", "")
	}
	for _, t := range c.All("timer") {
		d.timer(t)
	}
}

// timer is one of the guest's timers. Whatever is not as it is here by default is
// told of, also where there is no more than hypervisor_options for it.
func (d *domain) timer(t *importer.Node) {
	name, present := t.Attr("name"), t.Attr("present")
	switch {
	case name == "hpet" && present == "no":
		t.Drop()
		return
	case !slices.Contains([]string{"rtc", "pit", "kvmclock", "hypervclock"}, name):
		d.Leave(t, "vmctl has none of it", "")
		return
	case name == "hypervclock" && present != "no":
		d.Set(t, "cpu.features", "+hv-time")
	case name == "kvmclock" && present == "no":
		d.Set(t, "cpu.features", "-kvmclock")
	case name != "hypervclock" && present == "no":
		d.Leave(t.Attribute("present"), "the guest has one", "")
	}
	d.ticks(t, name)
	if track := t.Attribute("track"); name == "rtc" && track.Text() == "guest" {
		d.Leave(track, "the clock goes on while the machine is paused", "hypervisor_options.extra_args = [\"-rtc\", \"clock=vm\"]")
	} else if track.Text() == "wall" {
		track.Drop() // as here
	}
}

// ticks is what becomes of ticks of a timer that the guest has missed.
func (d *domain) ticks(t *importer.Node, name string) {
	switch policy := t.Attribute("tickpolicy"); {
	case policy.Text() == "" || policy.Text() == "delay": // as here
	case name == "rtc" && policy.Text() == "catchup":
		d.Leave(policy, "ticks that the guest has missed are lost", "hypervisor_options.extra_args = [\"-rtc\", \"driftfix=slew\"]")
	case name == "pit" && policy.Text() == "discard":
		d.Leave(policy, "ticks that the guest has missed come later", "hypervisor_options.extra_args = [\"-global\", \"kvm-pit.lost_tick_policy=discard\"]")
	default:
		d.Leave(policy, "ticks that the guest has missed come as the hypervisor has it", "")
	}
}

func (d *domain) lifecycle() {
	if n := d.root.At("on_poweroff"); n.Text() == "restart" {
		d.Leave(n, "a machine that the guest has powered off stays off", "lifecycle.restart = \"always\" starts it again")
	}
	if n := d.root.At("on_reboot"); n.Text() == "destroy" {
		d.Leave(n, "a guest that reboots is rebooted", "hypervisor_options.extra_args = [\"-no-reboot\"]")
	}
	n := d.root.At("on_crash")
	what := n.Text()
	if rest, dump := strings.CutPrefix(what, "coredump-"); dump {
		d.Tell(n, "", what, "no dump is written of a guest that panics", "kdump in the guest writes one")
		what = rest
	}
	if action := map[string]string{"destroy": "poweroff", "preserve": "pause"}[what]; action != "" {
		d.Set(n, "lifecycle.on_panic", action)
	}
	pm := d.root.At("pm")
	for _, name := range []string{"suspend-to-mem", "suspend-to-disk"} {
		if s := pm.At(name); s.Attr("enabled") == "yes" {
			d.Leave(s, "a guest cannot put itself to sleep", "vmctl save puts it away")
		}
	}
}

// commandLine are QEMU's own arguments.
func (d *domain) commandLine() {
	line := d.root.At("qemu:commandline")
	for _, arg := range line.All("qemu:arg") {
		if value := arg.Attr("value"); value != "" {
			d.Set(arg, "hypervisor_options.extra_args", value)
		}
	}
	for _, env := range line.All("qemu:env") {
		d.Leave(env, "QEMU's environment is the unit's", fmt.Sprintf("[service] Environment = \"%s=…\"", env.Attr("name")))
	}
}

// bootOrder is either by devices or by kinds of them.
func (d *domain) bootOrder() {
	slices.SortStableFunc(d.order, func(a, b bootPlace) int { return cmp.Compare(a.order, b.order) })
	var keys []string
	for _, place := range d.order {
		keys = append(keys, place.key)
	}
	kinds := d.root.At("os").All("boot")
	for _, n := range kinds {
		key := d.plugged[n.Attr("dev")]
		if len(d.order) == 0 && key != "" && !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	if d.board == "microvm" {
		return // which boots a kernel
	}
	for _, key := range keys {
		d.Default("boot.order", key)
	}
}

// bootable notes the place of a device in the order.
func (d *domain) bootable(n *importer.Node, key, kind string) {
	if d.plugged[kind] == "" {
		d.plugged[kind] = key
	}
	if b := n.At("boot"); b != nil {
		d.order = append(d.order, bootPlace{number(b.Attr("order")), key})
		b.DropAll("@loadparm")
	}
}

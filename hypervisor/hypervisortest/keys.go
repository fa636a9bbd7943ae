package hypervisortest

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// elsewhere are keys, or tables of them (ending in "."), that others than the
// hypervisor act on.
var elsewhere = []string{
	"description", "hypervisor", "template", "parameters", // config
	"autostart", "after", "requires", "wants", "unit", "service", "resources.", // units
	"lifecycle.start_timeout", "lifecycle.stop_timeout", "lifecycle.restart", "lifecycle.restart_delay", "lifecycle.ready_timeout", "lifecycle.remove_on_stop", "lifecycle.on_host_shutdown", // units, prepare and cleanup
	"cloud_init.hostname", "cloud_init.user_data", "cloud_init.meta_data", "cloud_init.network_config", "cloud_init.vendor_data", // cloudinit
	"cloud_init.ssh_keys", "cloud_init.user", "cloud_init.password_hash",
	"api.",                                  // those who drive machines by it
	"console.journal", "console.scrollback", // the monitor
	"console.group",                                                                                                                                           // vmctl-unit
	"nic.address", "nic.vlan", "nic.anti_spoofing", "nic.allow_in", "nic.allow_out", "nic.deny_in", "nic.deny_out", "nic.security_groups", "nic.macvtap_mode", // netsetup
	"nic.link",                    // the monitor
	"disk.enabled", "nic.enabled", // config
	"snapshots.", // units, and vmctl snapshot
}

// keyCase is one key: a definition without it and what gives it a value that
// is not the default. Both are of TOML, and the second follows the first, unless it
// is a definition of its own.
type keyCase struct {
	without, with string
	alone         bool
}

// keyCases has every key that is not elsewhere. In the names of devices' keys
// the device's own name is left out.
func (s Subject) keyCases() map[string]keyCase {
	const (
		disk  = "[disk.a]\npath = \"/srv/a\"\n"
		nic   = "[nic.a]\nuser = true\n"
		share = "[share.a]\npath = \"/srv\"\n"
		pci   = "[pci.a]\naddress = \"0000:01:00.0\"\n"
		usb   = "[usb.a]\nvendor = \"1234\"\nproduct = \"5678\"\n"
		uefi  = "[boot]\nfirmware = \"uefi\"\n"
		dog   = "[watchdog]\nenabled = true\n"
		vnc   = "[display]\ntype = \"vnc\"\n"
		spice = "[display]\ntype = \"spice\"\n"
	)
	card := "[nic.a]\n" + s.Card + "\n"
	kernel := "[boot]\nkernel = \"/boot/vmlinuz\"\n"
	return map[string]keyCase{
		"machine": {without: "", with: `machine = "pc"`},
		"accel":   {without: "", with: `accel = "tcg"`},
		"cpus":    {without: "", with: `cpus = 2`},
		"memory":  {without: "", with: `memory = "2G"`},
		"uuid":    {without: "", with: `uuid = "5e0c1f2a-7a57-4b53-9a3e-0d6d8a0f5b11"`},

		"boot.firmware":    {without: "[boot]\n", with: `firmware = "/srv/firmware.fd"`},
		"boot.secure_boot": {without: uefi, with: `secure_boot = true`},
		"boot.kernel":      {without: "[boot]\n", with: `kernel = "/boot/vmlinuz"`},
		"boot.initrd":      {without: kernel, with: `initrd = "/boot/initrd"`},
		"boot.cmdline":     {without: kernel, with: `cmdline = "quiet"`},
		"boot.order":       {without: disk + "[disk.b]\npath = \"/srv/b\"\n[boot]\n", with: `order = ["disk.b"]`},

		"cpu.model":    {without: "[cpu]\n", with: `model = "qemu64"`},
		"cpu.features": {without: "[cpu]\n", with: `features = ["+avx"]`},
		"cpu.sockets":  {without: "cpus = 4\n[cpu]\n", with: `sockets = 2`},
		"cpu.cores":    {without: "cpus = 4\n[cpu]\n", with: "cores = 2\nsockets = 2"},
		"cpu.threads":  {without: "cpus = 4\n[cpu]\n", with: `threads = 2`},
		"cpu.max":      {without: "[cpu]\n", with: `max = 4`},
		"cpu.pinning":  {without: "[cpu]\n", with: `pinning = ["1"]`},

		"memory_options.hugepages": {without: "[memory_options]\n", with: `hugepages = "2M"`},
		"memory_options.shared":    {without: "[memory_options]\n", with: `shared = true`},
		"memory_options.prealloc":  {without: "[memory_options]\n", with: `prealloc = true`},
		"memory_options.max":       {without: "[memory_options]\n", with: `max = "4G"`},

		"disk.image":           {without: "", with: "[disk.a]\nimage = \"debian-13\""},
		"disk.path":            {without: "", with: disk},
		"disk.size":            {without: "", with: "[disk.a]\nsize = \"1G\""},
		"disk.bus":             {without: disk, with: `bus = "scsi"`},
		"disk.media":           {without: disk + "bus = \"scsi\"\n", with: `media = "cdrom"`},
		"disk.format":          {without: disk, with: `format = "qcow2"`},
		"disk.readonly":        {without: disk, with: `readonly = true`},
		"disk.cache":           {without: disk, with: `cache = "none"`},
		"disk.aio":             {without: disk, with: `aio = "io_uring"`},
		"disk.discard":         {without: disk, with: `discard = false`},
		"disk.serial":          {without: disk, with: `serial = "x"`},
		"disk.ephemeral":       {without: disk, with: `ephemeral = true`},
		"disk.shareable":       {without: disk, with: `shareable = true`},
		"disk.queues":          {without: disk, with: `queues = 4`},
		"disk.iops":            {without: disk, with: `iops = 1`},
		"disk.iops_read":       {without: disk, with: `iops_read = 1`},
		"disk.iops_write":      {without: disk, with: `iops_write = 1`},
		"disk.bandwidth":       {without: disk, with: `bandwidth = "1M"`},
		"disk.bandwidth_read":  {without: disk, with: `bandwidth_read = "1M"`},
		"disk.bandwidth_write": {without: disk, with: `bandwidth_write = "1M"`},

		"nic.network":    {without: "", with: "[nic.a]\nnetwork = \"default\""},
		"nic.user":       {without: "", with: nic},
		"nic.bridge":     {without: "", with: "[nic.a]\nbridge = \"br0\""},
		"nic.tap":        {without: "", with: "[nic.a]\ntap = \"tap0\""},
		"nic.macvtap":    {without: "", with: "[nic.a]\nmacvtap = \"eth0\""},
		"nic.vde":        {without: "", with: "[nic.a]\nvde = \"/run/vde\""},
		"nic.vhost_user": {without: "", with: "[nic.a]\nvhost_user = \"/run/sock\""},
		"nic.model":      {without: card, with: `model = "e1000"`},
		"nic.mac":        {without: card, with: `mac = "52:54:00:12:34:56"`},
		"nic.forward":    {without: nic, with: `forward = ["80:80"]`},
		"nic.backend":    {without: nic, with: `backend = "passt"`},
		"nic.queues":     {without: "[nic.a]\nbridge = \"br0\"\n", with: `queues = 2`},
		"nic.mtu":        {without: card, with: `mtu = 1400`},
		"nic.rate_in":    {without: nic, with: `rate_in = "1M"`}, // of what has an interface: netsetup
		"nic.rate_out":   {without: nic, with: `rate_out = "1M"`},

		"share.path":     {without: "", with: share},
		"share.tag":      {without: "", with: share + `tag = "x"`},
		"share.readonly": {without: "", with: share + `readonly = true`},
		"share.cache":    {without: "", with: share + `cache = "never"`},
		"share.user":     {without: "", with: share + `user = "ann"`},
		"share.uid_map":  {without: "", with: share + `uid_map = ["0:1000:1"]`},
		"share.gid_map":  {without: "", with: share + `gid_map = ["0:1000:1"]`},
		"pci.address":    {without: "", with: pci},
		"usb.vendor":     {without: "", with: usb},
		"usb.product":    {without: "", with: usb},
		"usb.bus":        {without: "", with: "[usb.a]\nbus = 1\nport = \"1\""},
		"usb.port":       {without: "", with: "[usb.a]\nbus = 1\nport = \"1\""},

		"cloud_init.enabled":            {without: "", with: "[cloud_init]\nenabled = true"},
		"guest_agent.enabled":           {without: "[guest_agent]\nenabled = true", with: "[guest_agent]\nenabled = false", alone: true},
		"vsock.enabled":                 {without: "[vsock]\n", with: `enabled = false`},
		"vsock.cid":                     {without: "[vsock]\n", with: `cid = 5`},
		"tpm.enabled":                   {without: "[tpm]\n", with: `enabled = true`},
		"watchdog.enabled":              {without: "[watchdog]\n", with: `enabled = true`},
		"watchdog.model":                {without: dog, with: `model = "itco"`},
		"watchdog.action":               {without: dog, with: `action = "pause"`},
		"rng.enabled":                   {without: "[rng]\n", with: `enabled = false`},
		"balloon.enabled":               {without: "[balloon]\n", with: `enabled = false`},
		"balloon.free_page_reporting":   {without: "[balloon]\n", with: `free_page_reporting = false`},
		"balloon.deflate_on_oom":        {without: "[balloon]\n", with: `deflate_on_oom = false`},
		"display.type":                  {without: "", with: vnc},
		"display.address":               {without: vnc, with: `address = "127.0.0.1:5900"`},
		"display.device":                {without: vnc, with: `device = "vga"`},
		"display.heads":                 {without: vnc, with: `heads = 2`},
		"display.tablet":                {without: vnc, with: `tablet = false`},
		"display.clipboard":             {without: vnc, with: `clipboard = true`},
		"display.usb_redirection":       {without: spice, with: `usb_redirection = 1`},
		"console.device":                {without: "[console]\n", with: `device = "virtio"`},
		"serial.enabled":                {without: "[console]\ndevice = \"virtio\"\n[serial]\n", with: `enabled = false`},
		"credentials":                   {without: "[credentials]\n", with: `a = "b"`},
		"lifecycle.on_panic":            {without: "[lifecycle]\n", with: `on_panic = "pause"`},
		"lifecycle.ready":               {without: "[lifecycle]\n", with: `ready = "notify"`},
		"hypervisor_options.binary":     {without: "[hypervisor_options]\n", with: `binary = "/opt/qemu"`},
		"hypervisor_options.extra_args": {without: "[hypervisor_options]\n", with: `extra_args = ["-snapshot"]`},
	}
}

// keys: no key of the schema is ignored. Each changes the plan, or is refused by
// its own name, or is the business of another package. Of what the subject refuses
// as a whole, no key is looked at.
func (s Subject) keys(t *testing.T) {
	cases := s.keyCases()
	keys := schemaKeys(reflect.TypeFor[config.Machine](), "")
	for key := range cases {
		if !slices.Contains(keys, key) {
			t.Errorf("%s is not a key of the schema", key)
		}
	}
	for _, key := range keys {
		if s.isElsewhere(key) {
			continue
		}
		test, ok := cases[key]
		if !ok {
			t.Errorf("%s is neither tested nor the business of others", key)
			continue
		}
		t.Run(key, func(t *testing.T) {
			text := test.with
			if !test.alone {
				text = test.without + "\n" + test.with
			}
			without, before := s.planOf(t, test.without)
			with, problems := s.planOf(t, text)
			table, _, _ := strings.Cut(key, ".")
			ofTable := func(p config.Problem) bool { return p.Key == table || strings.HasPrefix(p.Key, table+".") }
			refused := slices.ContainsFunc(problems, func(p config.Problem) bool { return names(p.Key, key) }) &&
				!slices.ContainsFunc(before, func(p config.Problem) bool { return names(p.Key, key) })
			switch {
			case refused:
			case problems != nil && slices.ContainsFunc(before, ofTable):
			case problems != nil:
				t.Errorf("refused by other keys: %v", problems)
			case reflect.DeepEqual(without, with):
				t.Error("neither planned nor refused")
			}
		})
	}
}

// isElsewhere says whether others than the hypervisor act on a key.
func (s Subject) isElsewhere(key string) bool {
	return slices.ContainsFunc(slices.Concat(elsewhere, s.Elsewhere), func(e string) bool {
		return e == key || strings.HasSuffix(e, ".") && strings.HasPrefix(key, e)
	})
}

// names says whether problem, the key of a problem, blames the key of the
// schema or its whole device.
func names(problem, key string) bool {
	table, name, _ := strings.Cut(key, ".")
	switch table {
	case "disk", "nic":
		return problem == table+".a."+name
	case "share", "pci", "usb", "credentials":
		return problem == table+".a"
	}
	return problem == key || problem == table
}

func (s Subject) planOf(t *testing.T, definition string) (*hypervisor.Plan, []config.Problem) {
	t.Helper()
	return s.plan(s.Load(t, "vm", "description = \"x\"\n"+definition))
}

// schemaKeys are the dotted keys of a table, without the names of devices.
func schemaKeys(table reflect.Type, prefix string) []string {
	var keys []string
	for f := range table.Fields() {
		name := f.Tag.Get("toml")
		if name == "" || name == "-" {
			continue
		}
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		sub := []string{}
		if inner.Kind() == reflect.Struct {
			sub = schemaKeys(inner, prefix+name+".")
		}
		if len(sub) == 0 {
			sub = []string{prefix + name}
		}
		keys = append(keys, sub...)
	}
	return keys
}

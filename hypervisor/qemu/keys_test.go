package qemu_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/qemu"
)

// elsewhere are keys, or tables of them (ending in "."), that others than the
// hypervisor act on.
var elsewhere = []string{
	"description", "hypervisor", "template", // config
	"autostart", "after", "requires", "wants", "unit", "service", "resources.", // units
	"lifecycle.start_timeout", "lifecycle.stop_timeout", "lifecycle.restart", "lifecycle.restart_delay", "lifecycle.ready_timeout", "lifecycle.remove_on_stop", "lifecycle.on_host_shutdown", // units, prepare and cleanup
	"cloud_init.hostname", "cloud_init.user_data", "cloud_init.meta_data", "cloud_init.network_config", "cloud_init.vendor_data", // cloudinit
	"cloud_init.ssh_keys", "cloud_init.user", "cloud_init.password_hash",
	"console.journal", "console.scrollback", // the monitor
	"nic.address", "nic.vlan", "nic.anti_spoofing", "nic.allow_in", "nic.allow_out", "nic.deny_in", "nic.deny_out", "nic.security_groups", "nic.macvtap_mode", // netsetup
	"nic.link",                    // the monitor
	"disk.enabled", "nic.enabled", // config
	"snapshots.", // units, and vmctl snapshot
}

// keyCase is one key: a definition without it and what gives it a value that
// is not the default. Both are of TOML, and the second follows the first.
type keyCase struct{ without, with string }

// keyCases has every key that is not elsewhere. In the names of devices' keys
// the device's own name is left out.
func keyCases() map[string]keyCase {
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
	kernel := "[boot]\nkernel = \"/boot/vmlinuz\"\n"
	return map[string]keyCase{
		"machine": {"", `machine = "pc"`},
		"accel":   {"", `accel = "tcg"`},
		"cpus":    {"", `cpus = 2`},
		"memory":  {"", `memory = "2G"`},
		"uuid":    {"", `uuid = "5e0c1f2a-7a57-4b53-9a3e-0d6d8a0f5b11"`},

		"boot.firmware":    {"[boot]\n", `firmware = "uefi"`},
		"boot.secure_boot": {uefi, `secure_boot = true`},
		"boot.kernel":      {"[boot]\n", `kernel = "/boot/vmlinuz"`},
		"boot.initrd":      {kernel, `initrd = "/boot/initrd"`},
		"boot.cmdline":     {kernel, `cmdline = "quiet"`},
		"boot.order":       {disk + "[disk.b]\npath = \"/srv/b\"\n[boot]\n", `order = ["disk.b"]`},

		"cpu.model":    {"[cpu]\n", `model = "qemu64"`},
		"cpu.features": {"[cpu]\n", `features = ["+avx"]`},
		"cpu.sockets":  {"cpus = 4\n[cpu]\n", `sockets = 2`},
		"cpu.cores":    {"cpus = 4\n[cpu]\n", "cores = 2\nsockets = 2"},
		"cpu.threads":  {"cpus = 4\n[cpu]\n", `threads = 2`},
		"cpu.max":      {"[cpu]\n", `max = 4`},
		"cpu.pinning":  {"[cpu]\n", `pinning = ["1"]`},

		"memory_options.hugepages": {"[memory_options]\n", `hugepages = "2M"`},
		"memory_options.shared":    {"[memory_options]\n", `shared = true`},
		"memory_options.prealloc":  {"[memory_options]\n", `prealloc = true`},
		"memory_options.max":       {"[memory_options]\n", `max = "4G"`},

		"disk.image":           {"", "[disk.a]\nimage = \"debian-13\""},
		"disk.path":            {"", disk},
		"disk.size":            {"", "[disk.a]\nsize = \"1G\""},
		"disk.bus":             {disk, `bus = "scsi"`},
		"disk.media":           {disk + "bus = \"scsi\"\n", `media = "cdrom"`},
		"disk.format":          {disk, `format = "qcow2"`},
		"disk.readonly":        {disk, `readonly = true`},
		"disk.cache":           {disk, `cache = "none"`},
		"disk.aio":             {disk, `aio = "io_uring"`},
		"disk.discard":         {disk, `discard = false`},
		"disk.serial":          {disk, `serial = "x"`},
		"disk.ephemeral":       {disk, `ephemeral = true`},
		"disk.shareable":       {disk, `shareable = true`},
		"disk.queues":          {disk, `queues = 4`},
		"disk.iops":            {disk, `iops = 1`},
		"disk.iops_read":       {disk, `iops_read = 1`},
		"disk.iops_write":      {disk, `iops_write = 1`},
		"disk.bandwidth":       {disk, `bandwidth = "1M"`},
		"disk.bandwidth_read":  {disk, `bandwidth_read = "1M"`},
		"disk.bandwidth_write": {disk, `bandwidth_write = "1M"`},

		"nic.network":    {"", "[nic.a]\nnetwork = \"default\""},
		"nic.user":       {"", nic},
		"nic.bridge":     {"", "[nic.a]\nbridge = \"br0\""},
		"nic.tap":        {"", "[nic.a]\ntap = \"tap0\""},
		"nic.macvtap":    {"", "[nic.a]\nmacvtap = \"eth0\""},
		"nic.vde":        {"", "[nic.a]\nvde = \"/run/vde\""},
		"nic.vhost_user": {"", "[nic.a]\nvhost_user = \"/run/sock\""},
		"nic.model":      {nic, `model = "e1000"`},
		"nic.mac":        {nic, `mac = "52:54:00:12:34:56"`},
		"nic.forward":    {nic, `forward = ["80:80"]`},
		"nic.backend":    {nic, `backend = "passt"`},
		"nic.queues":     {"[nic.a]\nbridge = \"br0\"\n", `queues = 2`},
		"nic.mtu":        {nic, `mtu = 1400`},
		"nic.rate_in":    {nic, `rate_in = "1M"`}, // of what has an interface: netsetup
		"nic.rate_out":   {nic, `rate_out = "1M"`},

		"share.path":     {"", share},
		"share.tag":      {"", share + `tag = "x"`},
		"share.readonly": {"", share + `readonly = true`},
		"share.cache":    {"", share + `cache = "never"`},
		"share.user":     {"", share + `user = "ann"`},
		"pci.address":    {"", pci},
		"usb.vendor":     {"", usb},
		"usb.product":    {"", usb},
		"usb.bus":        {"", "[usb.a]\nbus = 1\nport = \"1\""},
		"usb.port":       {"", "[usb.a]\nbus = 1\nport = \"1\""},

		"cloud_init.enabled":            {"", "[cloud_init]\nenabled = true"},
		"guest_agent.enabled":           {"[guest_agent]\n", `enabled = false`},
		"vsock.enabled":                 {"[vsock]\n", `enabled = false`},
		"vsock.cid":                     {"[vsock]\n", `cid = 5`},
		"tpm.enabled":                   {"[tpm]\n", `enabled = true`},
		"watchdog.enabled":              {"[watchdog]\n", `enabled = true`},
		"watchdog.model":                {dog, `model = "itco"`},
		"watchdog.action":               {dog, `action = "pause"`},
		"rng.enabled":                   {"[rng]\n", `enabled = false`},
		"balloon.enabled":               {"[balloon]\n", `enabled = false`},
		"balloon.free_page_reporting":   {"[balloon]\n", `free_page_reporting = false`},
		"balloon.deflate_on_oom":        {"[balloon]\n", `deflate_on_oom = false`},
		"display.type":                  {"", vnc},
		"display.address":               {vnc, `address = "127.0.0.1:5900"`},
		"display.device":                {vnc, `device = "vga"`},
		"display.heads":                 {vnc, `heads = 2`},
		"display.tablet":                {vnc, `tablet = false`},
		"display.clipboard":             {vnc, `clipboard = true`},
		"display.usb_redirection":       {spice, `usb_redirection = 1`},
		"console.device":                {"[console]\n", `device = "virtio"`},
		"serial.enabled":                {"[console]\ndevice = \"virtio\"\n[serial]\n", `enabled = false`},
		"credentials":                   {"[credentials]\n", `a = "b"`},
		"lifecycle.on_panic":            {"[lifecycle]\n", `on_panic = "pause"`},
		"lifecycle.ready":               {"[lifecycle]\n", `ready = "notify"`},
		"hypervisor_options.binary":     {"[hypervisor_options]\n", `binary = "/opt/qemu"`},
		"hypervisor_options.extra_args": {"[hypervisor_options]\n", `extra_args = ["-snapshot"]`},
	}
}

// TestEveryKey: no key of the schema is ignored. Each changes the plan, or is
// refused by its own name, or is the business of another package.
func TestEveryKey(t *testing.T) {
	cases := keyCases()
	keys := schemaKeys(reflect.TypeFor[config.Machine](), "")
	for key := range cases {
		if !slices.Contains(keys, key) {
			t.Errorf("%s is not a key of the schema", key)
		}
	}
	for _, key := range keys {
		if slices.ContainsFunc(elsewhere, func(e string) bool { return e == key || strings.HasSuffix(e, ".") && strings.HasPrefix(key, e) }) {
			continue
		}
		test, ok := cases[key]
		if !ok {
			t.Errorf("%s is neither tested nor the business of others", key)
			continue
		}
		t.Run(key, func(t *testing.T) {
			without, before := planOf(t, test.without)
			with, problems := planOf(t, test.without+"\n"+test.with)
			refused := slices.ContainsFunc(problems, func(p config.Problem) bool { return names(p.Key, key) }) &&
				!slices.ContainsFunc(before, func(p config.Problem) bool { return names(p.Key, key) })
			switch {
			case refused:
			case problems != nil:
				t.Errorf("refused by other keys: %v", problems)
			case reflect.DeepEqual(without, with):
				t.Error("neither planned nor refused")
			}
		})
	}
}

// names says whether problem, the key of a problem, blames the key of the
// schema or its whole device.
func names(problem, key string) bool {
	table, name, _ := strings.Cut(key, ".")
	switch table {
	case "disk", "nic":
		return problem == table+".a."+name
	case "share", "pci", "usb":
		return problem == table+".a"
	}
	return problem == key || problem == table
}

func planOf(t *testing.T, definition string) (*hypervisor.Plan, []config.Problem) {
	t.Helper()
	return qemu.QEMU{}.Plan(load(t, "vm", "description = \"x\"\n"+definition), testHost(), config.SystemPaths(""))
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

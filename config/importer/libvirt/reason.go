package libvirt

import (
	"strings"

	"github.com/vmctl/vmctl/config/importer"
)

// reasons say why something is not carried over, and what to do instead, by the
// name of an element, or of one that it is in.
var reasons = map[string][2]string{
	"sound":          {"machines have no sound", ""},
	"audio":          {"machines have no sound", ""},
	"parallel":       {"machines have no parallel port", ""},
	"smartcard":      {"machines have no smart card reader", "[usb.NAME] gives one of the host's to the guest"},
	"shmem":          {"guests share no memory", ""},
	"memory":         {"memory is plugged in by memory_options.max", ""},
	"iommu":          {"guests have no IOMMU", ""},
	"crypto":         {"guests have no crypto device", ""},
	"redirdev":       {"USB is redirected by SPICE alone", ""},
	"redirfilter":    {"any USB device can be redirected", ""},
	"lease":          {"QEMU locks images itself", ""},
	"sysinfo":        {"the SMBIOS tables are vmctl's", "[credentials] gives texts to the guest"},
	"smbios":         {"the SMBIOS tables are vmctl's", ""},
	"iothreads":      {"vmctl has no I/O threads", "disk.NAME.queues"},
	"iothreadids":    {"vmctl has no I/O threads", ""},
	"iothreadpin":    {"vmctl has no I/O threads", ""},
	"@iothread":      {"vmctl has no I/O threads", ""},
	"emulatorpin":    {"all threads of the machine run on the same CPUs", "resources.allowed_cpus"},
	"emulator_quota": {"there is one limit for all", "resources.cpu_quota"},
	"memnode":        {"the guest has one node", ""},
	"resource":       {"the slice is machine.slice", "resources.slice"},
	"device":         {"the weight of one disk is systemd's", "[service] IODeviceWeight = \"…\""},
	"launchSecurity": {"guests are not encrypted", ""},
	"encryption":     {"images are not encrypted by QEMU", "the host can (LUKS), and so can the guest"},
	"wwn":            {"a disk is known by its serial", "disk.NAME.serial"},
	"blockio":        {"the sizes of blocks are QEMU's own", ""},
	"portgroup":      {"networks have no port groups", ""},
	"@portgroup":     {"networks have no port groups", ""},
	"hyperv":         {"it has a value, and flags of the CPU are on or off here", "hypervisor_options.extra_args = [\"-cpu\", …]"},
	"spinlocks":      {"it has a value, and flags of the CPU are on or off here", ""},
	"@isolated":      {"guests of a bridge see one another", "nic.NAME.deny_in"},
	"qemu:override":  {"devices are vmctl's", "hypervisor_options.extra_args = [\"-global\", …]"},
}

// reason is the one of the nearest element that has one.
func reason(n *importer.Node) (why, instead string) {
	names := strings.FieldsFunc(n.Path(), func(r rune) bool { return r == '/' })
	for i := len(names) - 1; i >= 0; i-- {
		name, _, _ := strings.Cut(names[i], "[")
		if r, known := reasons[name]; known {
			return r[0], r[1]
		}
	}
	return "", ""
}

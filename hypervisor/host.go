package hypervisor

import (
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vmctl/vmctl/config"
)

// Host is what a plan depends on beside the definition. The facts are chosen
// so that they hold as early as a generator runs: before udev, before modules
// are loaded, without running a program.
type Host struct {
	// CPUVirtualization says that the CPU has VMX or SVM. Without it a
	// /dev/kvm may exist (nested, in software) but not run ordinary guests.
	CPUVirtualization bool `json:"cpu_virtualization"`

	// Nodes are device nodes that exist, or will once used, because the
	// kernel's modules.devname or modules.builtin has their driver:
	// "/dev/kvm", "/dev/vhost-net", "/dev/vhost-vsock", "/dev/net/tun".
	Nodes map[string]bool `json:"nodes"`

	// Programs maps a program's name to its absolute path, for those found.
	Programs map[string]string `json:"programs"`

	// QEMUModules are the parts of QEMU that are files of their own, such as
	// "ui-spice-core"; none where it has none, or they were not found.
	QEMUModules []string `json:"qemu_modules,omitempty"`

	// Firmware are the descriptors of /etc/qemu/firmware and
	// /usr/share/qemu/firmware by precedence (QEMU's docs/interop/firmware.json).
	Firmware []Firmware `json:"firmware"`

	// CloudFirmware are the absolute paths of firmware for cloud-hypervisor, best
	// first.
	CloudFirmware []string `json:"cloud_firmware,omitempty"`

	// HugepageSize is the size in bytes of the kernel's default huge pages; 0
	// where it has none.
	HugepageSize int64 `json:"hugepage_size,omitempty"`

	// NoUserNamespaces says that the kernel is told to let nobody make user
	// namespaces who has no privileges, which passt does.
	NoUserNamespaces bool `json:"no_user_namespaces,omitempty"`

	// Systemd is the major version of systemd; 0 where it was not found.
	Systemd int `json:"systemd"`
}

// Firmware is one firmware descriptor, as far as it concerns x86-64.
type Firmware struct {
	File       string   `json:"file"` // the descriptor
	Interfaces []string `json:"interfaces"`
	Code       string   `json:"code"` // executable image
	CodeFormat string   `json:"code_format"`
	Vars       string   `json:"vars"` // template of the variable store; "" for a memory-mapped image without one
	VarsFormat string   `json:"vars_format"`
	Machines   []string `json:"machines"` // patterns such as "pc-q35-*"
	Features   []string `json:"features"`
}

// Probe gathers the facts about the host whose files are below root, which is
// "" for this one. It only reads files, and says "no" to what it cannot read.
func Probe(root string) Host {
	release := strings.TrimSpace(readString(root + "/proc/sys/kernel/osrelease"))
	return Host{
		CPUVirtualization: cpuVirtualization(readString(root + "/proc/cpuinfo")),
		Nodes:             probeNodes(root, release),
		Programs:          probePrograms(root),
		QEMUModules:       probeModules(root),
		Firmware:          probeFirmware(root),
		CloudFirmware:     probeCloudFirmware(root),
		HugepageSize:      hugepageSize(readString(root + "/proc/meminfo")),
		NoUserNamespaces:  noUserNamespaces(root),
		Systemd:           systemdVersion(root),
	}
}

// readString is the content of a file, "" where it cannot be read.
func readString(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

// cpuVirtualization looks for VMX (Intel) or SVM (AMD) in /proc/cpuinfo. Every
// CPU has the same flags; the first is read.
func cpuVirtualization(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "flags" {
			flags := strings.Fields(value)
			return slices.Contains(flags, "vmx") || slices.Contains(flags, "svm")
		}
	}
	return false
}

// hugepageSize is "Hugepagesize: 2048 kB" of /proc/meminfo, in bytes.
func hugepageSize(meminfo string) int64 {
	for line := range strings.Lines(meminfo) {
		if value, ok := strings.CutPrefix(line, "Hugepagesize:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

// noUserNamespaces looks at the switches of the kernel, of Debian's and of Ubuntu's.
func noUserNamespaces(root string) bool {
	for file, off := range map[string]string{
		"user/max_user_namespaces":                     "0",
		"kernel/unprivileged_userns_clone":             "0",
		"kernel/apparmor_restrict_unprivileged_userns": "1",
	} {
		if strings.TrimSpace(readString(root+"/proc/sys/"+file)) == off {
			return true
		}
	}
	return false
}

// What does user-mode networking.
const (
	Passt = "passt"
	Slirp = "slirp"
)

// UserNetwork is what does the user-mode networking of a card. A passt that nobody
// has asked for by name is one that came with passt-repair, of 2025 or later: that
// of 2023 lets no connection to the guest begin before the client has sent
// something, and loses the end of one that the guest has closed its half of. Nor is
// it used by itself for forwards that slirp alone can do.
func (h Host) UserNetwork(n config.NIC) string {
	sound := h.Programs[Passt] != "" && h.Programs["passt-repair"] != "" && !h.NoUserNamespaces
	bySlirpAlone := len(BeyondPasst(n)) > 0 && !slices.ContainsFunc(n.Forward, BeyondSlirp)
	if n.Backend == Passt || n.Backend != Slirp && sound && !bySlirpAlone {
		return Passt
	}
	return Slirp
}

// BeyondSlirp says whether a forward is one that slirp cannot do: it listens on IPv4
// alone.
func BeyondSlirp(f config.Forward) bool {
	a, err := netip.ParseAddr(f.Address)
	return f.Address != "" && (err != nil || !a.Is4())
}

// BeyondPasst are the forwards of a card, by their index, that passt cannot do, each
// with the one before it by which that is so: passt gives a port of the host to one
// of the guest, on all addresses.
func BeyondPasst(n config.NIC) map[int]config.Forward {
	beyond := map[int]config.Forward{}
	for i, f := range n.Forward {
		for _, other := range n.Forward[:i] {
			if f.HostPort == other.HostPort && f.Protocol == other.Protocol && f.GuestPort != other.GuestPort {
				beyond[i] = other
			}
		}
	}
	return beyond
}

// RunsPasst says whether the user-mode network of a card is passt.
func (h Host) RunsPasst(n config.NIC) bool { return h.UserNetwork(n) == Passt }

// MayBindLowPorts says whether a card of user-mode networking may have ports of the
// host below 1024: what does it for a user's machines has no privileges to give.
func (h Host) MayBindLowPorts(n config.NIC, user bool) bool {
	return !user && h.RunsPasst(n)
}

// KVM is by what the kernel runs guests on the CPU itself.
const KVM = "/dev/kvm"

// NoKVM is the problem of a machine that does not run without KVM, on a host where
// /dev/kvm is not to be had; why is e.g. "does not exist on this host". It is of the
// key that asks for KVM.
func NoKVM(m *config.Machine, why string) config.Problem {
	key := "hypervisor"
	if m.Accel == "kvm" {
		key = "accel"
	}
	return m.Problem(key, "want KVM, without which %s does not run this machine; %s: %s (load kvm_intel or kvm_amd, or have virtualization enabled in the firmware or by the host above)", m.Hypervisor, KVM, why)
}

// VhostNet is by what the kernel is asked to move the packets of a card.
const VhostNet = "/dev/vhost-net"

// hostNode is a device node, and the module whose driver makes it.
type hostNode struct{ path, module string }

// probeNodes says which device nodes are there, or will be once they are
// opened: systemd makes those of modules.devname (kmod static-nodes) early in
// the boot, but after the generators have run.
func probeNodes(root, release string) map[string]bool {
	nodes := map[string]bool{}
	var devname, builtin string
	if release != "" {
		devname = readString(filepath.Join(root, "/lib/modules", release, "modules.devname"))
		builtin = readString(filepath.Join(root, "/lib/modules", release, "modules.builtin"))
	}
	for _, n := range []hostNode{
		{KVM, "kvm"},
		{VhostNet, "vhost_net"},
		{"/dev/vhost-vsock", "vhost_vsock"},
		{"/dev/net/tun", "tun"},
	} {
		_, err := os.Lstat(root + n.path)
		if err == nil || inDevname(devname, n) || inBuiltin(builtin, n.module) {
			nodes[n.path] = true
		}
	}
	return nodes
}

// inDevname looks for a line "vhost_net vhost-net c10:238".
func inDevname(devname string, n hostNode) bool {
	for line := range strings.Lines(devname) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == n.module && "/dev/"+f[1] == n.path {
			return true
		}
	}
	return false
}

// inBuiltin looks for a line "kernel/drivers/vhost/vhost_net.ko". The name of
// the file may have a hyphen where the module has an underscore.
func inBuiltin(builtin, module string) bool {
	for line := range strings.Lines(builtin) {
		name := strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko")
		if strings.ReplaceAll(name, "-", "_") == module {
			return true
		}
	}
	return false
}

// probePrograms looks for the programs that plans use. The directories are
// searched in this order, not in $PATH's, which a generator does not have.
func probePrograms(root string) map[string]string {
	programs := map[string]string{}
	for _, name := range []string{"qemu-system-x86_64", "cloud-hypervisor", "qemu-img", Passt, "passt-repair", "virtiofsd", "swtpm"} {
		for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/libexec", "/usr/lib", "/usr/lib/qemu"} {
			path := filepath.Join(dir, name)
			if s, err := os.Stat(root + path); err == nil && s.Mode().IsRegular() && s.Mode()&0o111 != 0 {
				programs[name] = path
				break
			}
		}
	}
	return programs
}

// probeModules looks for QEMU's modules where distributions have them.
func probeModules(root string) []string {
	for _, dir := range []string{"/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib64/qemu", "/usr/lib64/qemu-kvm", "/usr/lib/qemu"} {
		// The only error is that of a bad pattern.
		files, _ := filepath.Glob(root + dir + "/*-*.so")
		var modules []string
		for _, file := range files {
			modules = append(modules, strings.TrimSuffix(filepath.Base(file), ".so"))
		}
		if modules != nil {
			return modules
		}
	}
	return nil
}

// probeCloudFirmware looks for firmware for cloud-hypervisor where packages and
// people put it: UEFI (CLOUDHV.fd) first, then the small one that boots from a
// single EFI partition (rust-hypervisor-firmware). The packages of its project call
// the first CLOUDHV_EFI.fd, which elsewhere is that for another architecture.
func probeCloudFirmware(root string) (found []string) {
	for _, name := range []string{"CLOUDHV.fd", "CLOUDHV_EFI.fd", "hypervisor-fw"} {
		for _, dir := range []string{
			"/usr/share/cloudhv-efi-x86-64", // Debian
			"/usr/share/cloud-hypervisor", "/usr/local/share/cloud-hypervisor", "/usr/lib/cloud-hypervisor",
			"/usr/share/edk2/cloudhv", "/usr/share/rust-hypervisor-firmware", "/usr/share/mvirt",
		} {
			path := filepath.Join(dir, name)
			if s, err := os.Stat(root + path); err == nil && s.Mode().IsRegular() {
				found = append(found, path)
			}
		}
	}
	return found
}

// systemdVersion is the number in the name of systemd's own shared library,
// such as libsystemd-shared-257.so; Debian and Fedora append more to it
// ("-257.9-1.so"). It is 0 where there is none.
func systemdVersion(root string) int {
	for _, dir := range []string{"/usr/lib/systemd", "/lib/systemd", "/usr/lib/x86_64-linux-gnu/systemd", "/usr/lib64/systemd"} {
		names, err := filepath.Glob(root + dir + "/libsystemd-shared-*.so")
		if err != nil {
			continue // only a malformed pattern
		}
		newest := 0
		for _, name := range names {
			rest := strings.TrimPrefix(filepath.Base(name), "libsystemd-shared-")
			end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
			if n, err := strconv.Atoi(rest[:end]); err == nil {
				newest = max(newest, n)
			}
		}
		if newest > 0 {
			return newest
		}
	}
	return 0
}

// descriptor is a firmware descriptor (QEMU's docs/interop/firmware.json), as
// far as it is used.
type descriptor struct {
	Interfaces []string `json:"interface-types"`
	Mapping    struct {
		Device     string       `json:"device"` // "flash", "memory" or "kernel"
		Mode       string       `json:"mode"`   // of flash: "split" (default), "combined" or "stateless"
		Executable firmwareFile `json:"executable"`
		Template   firmwareFile `json:"nvram-template"`
		Filename   string       `json:"filename"` // of memory
	} `json:"mapping"`
	Targets []struct {
		Architecture string   `json:"architecture"`
		Machines     []string `json:"machines"`
	} `json:"targets"`
	Features []string `json:"features"`
}

type firmwareFile struct {
	Filename string `json:"filename"`
	Format   string `json:"format"`
}

// probeFirmware reads the firmware descriptors in order of file name. One in
// /etc hides one of the same name in /usr/share; an empty one only hides.
func probeFirmware(root string) []Firmware {
	files := map[string]string{}
	for _, dir := range []string{"/usr/share/qemu/firmware", "/etc/qemu/firmware"} {
		entries, err := os.ReadDir(root + dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".json") {
				files[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}
	var all []Firmware
	for _, name := range slices.Sorted(maps.Keys(files)) {
		all = append(all, parseFirmware(files[name], readString(root+files[name]))...)
	}
	return all
}

// parseFirmware returns the firmware that a descriptor describes: none where
// it is of no use here.
func parseFirmware(file, content string) []Firmware {
	var d descriptor
	if json.Unmarshal([]byte(content), &d) != nil {
		return nil // broken, or empty on purpose
	}
	fw := Firmware{
		File: file, Interfaces: d.Interfaces, Features: d.Features,
		Code: d.Mapping.Executable.Filename, CodeFormat: d.Mapping.Executable.Format,
		Vars: d.Mapping.Template.Filename, VarsFormat: d.Mapping.Template.Format,
	}
	if d.Mapping.Device == "memory" {
		fw.Code, fw.CodeFormat = d.Mapping.Filename, "raw"
	}
	for _, t := range d.Targets {
		if t.Architecture == "x86_64" {
			fw.Machines = append(fw.Machines, t.Machines...)
		}
	}
	if fw.Code == "" || len(fw.Machines) == 0 {
		return nil
	}
	return []Firmware{fw}
}

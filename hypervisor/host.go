package hypervisor

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

	// Firmware are the descriptors of /etc/qemu/firmware and
	// /usr/share/qemu/firmware by precedence (QEMU's docs/interop/firmware.json).
	Firmware []Firmware `json:"firmware"`

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

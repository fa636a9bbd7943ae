// Package cloudhypervisor runs machines by cloud-hypervisor: the command line,
// the control of a running machine by its REST interface, and the reading of its
// events.
//
// The command line of a plan is that for the newest version that is known. What
// is there is asked where the machine starts, and the command line is made to fit
// it (fit.go): so a plan runs no program, and an update of cloud-hypervisor needs
// no new plan.
//
// The package knows cloud-hypervisor's syntaxes and no unit, bus or network.
package cloudhypervisor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/guestnotify"
)

const program = "cloud-hypervisor"

// CloudHypervisor is the hypervisor.
type CloudHypervisor struct{}

// Name is "cloud-hypervisor".
func (CloudHypervisor) Name() string { return config.CloudHypervisor }

// Plan implements [hypervisor.Hypervisor].
func (CloudHypervisor) Plan(m *config.Machine, host hypervisor.Host, paths config.Paths) (*hypervisor.Plan, []config.Problem) {
	p := &planner{m: m, host: host, paths: paths, plan: &hypervisor.Plan{}}
	p.program()
	p.control()
	p.confinement()
	p.accelerator()
	p.machine()
	p.cpu()
	p.memory()
	p.boot()
	p.console()
	p.lifecycle()
	p.devices()
	p.arg(m.HypervisorOptions.ExtraArgs...)
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	return p.plan, nil
}

// planner gathers one plan. Its methods add to it, each for one theme, or add
// problems.
type planner struct {
	m     *config.Machine
	host  hypervisor.Host
	paths config.Paths
	hot   bool // of devices of a machine that runs

	plan     *hypervisor.Plan
	problems []config.Problem

	disks       []string // values of --disk
	cards       []string // values of --net
	shares      []string // values of --fs
	hostDevices []string // values of --device
}

func (p *planner) arg(args ...string) { p.plan.Argv = append(p.plan.Argv, args...) }

// problem notes that the machine cannot be planned because of key.
func (p *planner) problem(key, format string, args ...any) {
	p.problems = append(p.problems, p.m.Problem(key, format, args...))
}

const notSupported = "not supported by cloud-hypervisor"

// refuseIf notes, where that is set, that key asks for what cloud-hypervisor cannot
// do.
func (p *planner) refuseIf(set bool, key string) {
	if set {
		p.problem(key, notSupported)
	}
}

// want notes that of a key's values, got is not among those that there are.
func (p *planner) want(key, got string, values ...string) {
	if slices.Contains(values, got) {
		return
	}
	var quoted []string
	for _, v := range values {
		quoted = append(quoted, strconv.Quote(v))
	}
	last := len(quoted) - 1
	list := strings.Join(quoted[:last], ", ")
	if last > 0 {
		list += " or "
	}
	p.problem(key, "%s: want %s, got %q", notSupported, list+quoted[last], got)
}

// descriptor hands cloud-hypervisor one more open descriptor and returns its
// number.
func (p *planner) descriptor(d hypervisor.Descriptor) string {
	p.plan.Descriptors = append(p.plan.Descriptors, d)
	return strconv.Itoa(2 + len(p.plan.Descriptors))
}

// file lets cloud-hypervisor read a file that key names.
func (p *planner) file(key, path string) {
	p.plan.Files = append(p.plan.Files, hypervisor.File{Key: key, Path: path})
}

func (p *planner) program() {
	binary := p.m.HypervisorOptions.Binary
	if binary == "" {
		binary = p.host.Programs[program]
	}
	if binary == "" {
		p.problem("hypervisor", "%s was not found on this host; install it (see %s), or name it by hypervisor_options.binary", program, releases)
	}
	p.arg(binary)
}

// releases is where there are programs to download: few distributions have
// packages.
const releases = "https://github.com/cloud-hypervisor/cloud-hypervisor/releases"

// control are the socket for requests, one for all, and the stream of events. -v
// has cloud-hypervisor log what its exit status does not say: why it ended.
func (p *planner) control() {
	events := p.descriptor(hypervisor.Descriptor{Use: hypervisor.Events})
	api := p.descriptor(hypervisor.Descriptor{
		Use: hypervisor.Listen, Path: p.paths.ControlSocket(p.m.Name), Links: []string{p.paths.JobSocket(p.m.Name)},
	})
	p.arg("--api-socket", options("fd="+api), "--event-monitor", options("fd="+events), "-v")
	p.plan.Noise = noise
	// The allocator of glibc makes system calls that the seccomp filter kills for
	// (v53), but for one arena. A backtrace is nothing for a log.
	p.plan.Env = append(p.plan.Env, "MALLOC_ARENA_MAX=1", "RUST_BACKTRACE=0")
}

// noise are the lines that -v costs for each question about a machine.
const noise = "^cloud-hypervisor: .* API request event: (VmInfo|VmCounters|VmmPing)$"

// confinement is what cloud-hypervisor does by itself within the unit's sandbox.
func (p *planner) confinement() {
	p.plan.Scratch = p.paths.Scratch(p.m.Name)
	// Of what is in the state directory, the machine's user is given single files.
	p.arg("--seccomp", "true")
	if len(p.m.PCI) > 0 {
		return // see hostPCI
	}
	p.arg("--landlock", "--landlock-rules", options(text("path", p.paths.StateDir(p.m.Name)), "access=rw"))
	p.plan.Landlock = true
}

func (p *planner) accelerator() {
	if p.m.Accel == "tcg" {
		p.problem("accel", "%s, which needs KVM: want \"auto\" or \"kvm\", got \"tcg\"", notSupported)
	}
	if !p.host.CPUVirtualization {
		p.plan.Warnings = append(p.plan.Warnings,
			"the host's CPU has no virtualization (VMX or SVM), or it is not exposed to this host: KVM may not work, and cloud-hypervisor cannot do without")
	}
	p.plan.NeedsKVM = true
	p.plan.Devices = append(p.plan.Devices, hypervisor.KVM)
	p.plan.Groups = append(p.plan.Groups, "kvm")
}

// machine is what the firmware tables say. The board is cloud-hypervisor's own.
func (p *planner) machine() {
	if p.m.MachineType != "q35" {
		p.problem("machine", "%s, which has a board of its own: leave it out, got %q", notSupported, p.m.MachineType)
	}
	serial := ""
	if p.m.CloudInit.Enabled {
		// Tells cloud-init not to look for clouds on the network.
		serial = "serial_number=ds=nocloud"
	}
	p.arg("--platform", options("uuid="+string(p.m.UUID), serial, p.notify()))
}

// maxCPUs is what an 8-bit number holds of them: cloud-hypervisor before v48 has no
// wider one.
const maxCPUs = 254

func (p *planner) cpu() {
	c := p.m.CPU
	p.want("cpu.model", c.Model, "auto", "host", "max") // all the same: what KVM can do
	p.refuseIf(len(c.Features) > 0, "cpu.features")
	if p.m.CPUs > maxCPUs {
		p.problem("cpus", "want at most %d with cloud-hypervisor, got %d", maxCPUs, p.m.CPUs)
	} else if c.Max > maxCPUs {
		p.problem("cpu.max", "want at most %d with cloud-hypervisor, got %d", maxCPUs, c.Max)
	}
	var pins []string
	for cpu, hosts := range c.Pinning {
		pins = append(pins, fmt.Sprintf("%d@[%s]", cpu, hosts))
	}
	p.plan.PlaceMemory = len(pins) > 0
	most := ""
	if c.Max > p.m.CPUs {
		most = fmt.Sprintf("max=%d", c.Max)
	}
	parts := []string{fmt.Sprintf("boot=%d", p.m.CPUs), most, fmt.Sprintf("topology=%d:%d:1:%d", c.Threads, c.Cores, c.Sockets)}
	if pins != nil {
		parts = append(parts, "affinity="+list(pins))
	}
	p.arg("--cpus", options(parts...))
}

const mebibyte = 1 << 20

// sharedMemory says whether other processes map the guest's memory: those that
// are behind vhost-user devices do.
func (p *planner) sharedMemory() bool {
	return p.m.MemoryOptions.Shared || len(p.m.Shares) > 0 ||
		slices.ContainsFunc(p.m.NICs, func(n config.NIC) bool { return n.VhostUser != "" })
}

func (p *planner) memory() {
	o := p.m.MemoryOptions
	parts := []string{size("size", int64(p.m.Memory))}
	if p.sharedMemory() {
		parts = append(parts, "shared=on")
	}
	if o.Hugepages != 0 {
		page := int64(o.Hugepages)
		if page < 0 {
			page = p.host.HugepageSize
		}
		if page == 0 {
			p.problem("memory_options.hugepages", "this host's kernel has no huge pages")
		} else if int64(p.m.Memory)%page != 0 {
			p.problem("memory", "want a multiple of the huge page size of %d bytes, got %d bytes", page, p.m.Memory)
		}
		p.plan.HugepageSize = page
		parts = append(parts, "hugepages=on", size("hugepage_size", page))
	}
	if o.Prealloc {
		parts = append(parts, "prefault=on")
	}
	if more := int64(o.Max - p.m.Memory); more > 0 && more%memoryAlign != 0 {
		p.problem("memory_options.max", "want memory and a multiple of %d MiB with cloud-hypervisor, got %d MiB more", memoryAlign/mebibyte, more/mebibyte)
	}
	if o.Max > p.m.Memory {
		parts = append(parts, "hotplug_method=virtio-mem", size("hotplug_size", int64(o.Max-p.m.Memory)))
	}
	p.arg("--memory", options(parts...))
}

// boot is a kernel booted directly, or a firmware, never both.
func (p *planner) boot() {
	b := p.m.Boot
	p.refuseIf(b.SecureBoot, "boot.secure_boot")
	p.refuseIf(len(b.Order) > 0, "boot.order")
	switch {
	case b.Kernel != "" && b.Firmware != "none":
		p.problem("boot.firmware", "%s beside boot.kernel, which may be a firmware itself: want \"none\", got %q", notSupported, b.Firmware)
	case b.Kernel != "":
		p.file("boot.kernel", b.Kernel)
		p.arg("--kernel", b.Kernel)
		if b.Initrd != "" {
			p.file("boot.initrd", b.Initrd)
			p.arg("--initramfs", b.Initrd)
		}
		if b.Cmdline != "" {
			p.arg("--cmdline=" + b.Cmdline) // which may begin with a hyphen
		}
	case b.Firmware == "bios", b.Firmware == "none":
		p.problem("boot.firmware", "%s: want \"uefi\" or the absolute path of a firmware, got %q", notSupported, b.Firmware)
	default:
		p.firmware(b.Firmware)
	}
}

// firmware is one by its path, or the first that was found on the host.
func (p *planner) firmware(path string) {
	if path == "uefi" {
		if len(p.host.CloudFirmware) == 0 {
			p.problem("boot.firmware", "no firmware for cloud-hypervisor (CLOUDHV.fd, hypervisor-fw) was found on this host; install one (Debian newer than 13: cloudhv-efi-x86-64; else put it into /usr/local/share/cloud-hypervisor), or want its absolute path, or a boot.kernel")
			return
		}
		path = p.host.CloudFirmware[0]
	}
	p.file("boot.firmware", path)
	p.arg("--firmware", path)
}

// console is the text console, on a terminal that the hypervisor has as its
// standard input and output: of what it can write a console to, the only thing
// that is opened by others, loses nothing, and stays over a reboot.
func (p *planner) console() {
	p.plan.Terminal = true
	serial, virtio := "tty", "off"
	if p.m.Console.Device == "virtio" {
		serial, virtio = "off", "tty"
		if p.m.Serial.Enabled {
			serial = "null"
		}
	}
	p.arg("--serial", serial, "--console", virtio)
}

// lifecycle: a panic is reported to the monitor, which acts on it.
func (p *planner) lifecycle() {
	if ready := p.m.Lifecycle.Ready; ready != "started" && ready != "notify" {
		p.problem("lifecycle.ready", "%s, which has no channel to a guest agent: want \"started\" or \"notify\", got %q", notSupported, ready)
	}
	p.arg("--pvpanic")
}

// notifyPort is the port of the host at which a guest says that it has booted: each
// guest has ports of the host of its own.
const notifyPort = 1

// notify is the text in the firmware's tables by which the guest's systemd knows
// whom to tell that it has booted.
func (p *planner) notify() string {
	if p.m.Lifecycle.Ready != "notify" {
		return ""
	}
	if p.m.Vsock.Enabled == "false" {
		p.problem("lifecycle.ready", `"notify" needs vsock: want vsock.enabled = "auto", got "false"`)
	}
	p.plan.NotifySocket = fmt.Sprintf("%s_%d", p.paths.VsockSocket(p.m.Name), notifyPort)
	return "oem_strings=" + list([]string{guestnotify.Credential(notifyPort)})
}

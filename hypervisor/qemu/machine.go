package qemu

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

func (p *planner) microvm() bool { return p.m.MachineType == "microvm" }
func (p *planner) q35() bool     { return p.m.MachineType == "q35" }

// checkTransports holds the virtio devices of a microvm against the places
// that it has for them: 24, or 8 without ACPI (which is on with KVM; without
// KVM, a kernel that finds this board's ACPI has no clock to start with: it
// then ignores the PIT, and nothing else tells it the frequency of the TSC).
func (p *planner) checkTransports() {
	places := 8
	if p.kvm {
		places = 24
	}
	if p.microvm() && p.transports > places {
		p.problem("machine", `"microvm" has room for %d virtio devices here, got %d`, places, p.transports)
	}
}

// machine is the board, without what no guest of today needs.
func (p *planner) machine() {
	common := []string{"usb=off", "graphics=" + onOff(p.m.Display.Type != "none"), "dump-guest-core=off", "mem-merge=off",
		when(p.memfd(), "memory-backend=mem0")}
	switch p.m.MachineType {
	case "q35", "pc":
		common = append([]string{p.m.MachineType, "smm=" + onOff(p.needsSMM()), "vmport=off", "hpet=off"}, common...)
	case "microvm":
		if !p.kvm {
			p.warn(`machine = "microvm" without KVM: only a kernel with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES sees the devices, and there is no power button`)
		}
		common = append([]string{"microvm", "acpi=" + onOff(p.kvm), "pit=on", "pic=on", "rtc=on",
			"isa-serial=" + onOff(p.m.Serial.Enabled)}, common...)
		// The old virtio-mmio of QEMU's default knows no vsock.
		p.arg("-global", "virtio-mmio.force-legacy=false")
	default:
		p.refuse("machine")
	}
	if uefi := p.uefi(); uefi != nil && uefi.Vars != "" {
		common = append(common, "pflash0=firmware", "pflash1=nvram")
	}
	p.arg("-machine", options(common...))
	switch p.m.MachineType { // no suspend: nothing of ours could wake the guest up
	case "q35":
		p.arg("-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1")
	case "pc":
		p.arg("-global", "PIIX4_PM.disable_s3=1", "-global", "PIIX4_PM.disable_s4=1")
	}
	p.arg("-uuid", string(p.m.UUID))
}

// accelerator chooses by the CPU's own flags, not by /dev/kvm: that node is
// not there yet when a generator runs, and may be there without being able to
// run ordinary guests.
func (p *planner) accelerator() {
	switch p.m.Accel {
	case "kvm":
		p.kvm = true
	case "tcg":
		p.tcg = true
	case "auto":
		p.tcg = true
		p.kvm = p.host.CPUVirtualization
		if p.kvm && p.m.CPU.Model == "host" {
			p.tcg = false // which has no such model
		}
	default:
		p.refuse("accel")
	}
	if !p.host.CPUVirtualization {
		what := "the machine runs by software emulation, many times slower"
		if p.m.Accel == "kvm" {
			what = "KVM may not work"
		}
		p.warn("the host's CPU has no virtualization (VMX or SVM), or it is not exposed to this host: %s", what)
	}
	if p.kvm {
		p.arg("-accel", "kvm")
		p.node(hypervisor.KVM, "kvm")
		p.plan.NeedsKVM = !p.tcg
	}
	if p.tcg {
		// split-wx: no page is writable and executable at once, as the unit's
		// MemoryDenyWriteExecute= asks. tb-size, in MiB, bounds what the
		// translation takes beside the guest's memory.
		p.arg("-accel", "tcg,thread=multi,tb-size=256,split-wx=on")
	}
}

// cpuWord is what the name of a CPU model or feature may be: nothing that
// could begin another option.
var cpuWord = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func (p *planner) cpu() {
	c := p.m.CPU
	model := c.Model
	switch {
	case model == "auto":
		model = "max" // the same as host under KVM, and TCG has it too
	case model == "host" && !p.kvm:
		p.problem("cpu.model", `"host" needs KVM, which this host cannot do; use "max"`)
	case !cpuWord.MatchString(model):
		p.problem("cpu.model", "want the name of a CPU model, got %q", model)
	}
	parts := []string{model}
	for _, f := range c.Features {
		name, value := strings.TrimPrefix(f, "+"), "on"
		if strings.HasPrefix(f, "-") {
			name, value = f[1:], "off"
		}
		if !cpuWord.MatchString(name) {
			p.problem("cpu.features", `want "+FLAG" or "-FLAG", got %q`, f)
		}
		parts = append(parts, name+"="+value)
	}
	p.arg("-cpu", options(parts...))

	smp := fmt.Sprintf("%d,sockets=%d,cores=%d,threads=%d", p.m.CPUs, c.Sockets, c.Cores, c.Threads)
	if c.Max > p.m.CPUs {
		smp += fmt.Sprintf(",maxcpus=%d", c.Max)
		if p.microvm() {
			p.problem("cpu.max", `not supported by qemu for machine = "microvm", which takes no CPUs while it runs`)
		}
	}
	p.arg("-smp", smp)
	p.refuseIf(len(c.Pinning) > 0, "cpu.pinning")
}

const mebibyte = 1 << 20

// sharedMemory says whether other processes map the guest's memory: those that
// are behind vhost-user devices do.
func (p *planner) sharedMemory() bool {
	behindSocket := func(n config.NIC) bool { return n.VhostUser != "" }
	return p.m.MemoryOptions.Shared || len(p.m.Shares) > 0 || slices.ContainsFunc(p.m.NICs, behindSocket)
}

// memfd says whether the guest's memory is an object of its own: where others
// map it, or where the pages are special.
func (p *planner) memfd() bool {
	o := p.m.MemoryOptions
	return o.Hugepages != 0 || p.sharedMemory() || o.Prealloc
}

func (p *planner) memory() {
	o, size := p.m.MemoryOptions, int64(p.m.Memory)
	most := ""
	if o.Max > p.m.Memory {
		most = fmt.Sprintf("maxmem=%dM", int64(o.Max)/mebibyte)
	}
	p.arg("-m", options(fmt.Sprintf("%dM", size/mebibyte), most))
	if !p.memfd() {
		return
	}
	page := int64(o.Hugepages)
	if page < 0 {
		page = p.host.HugepageSize
		if page == 0 {
			p.problem("memory_options.hugepages", "this host's kernel has no huge pages")
		}
	}
	if page > 0 && size%page != 0 {
		p.problem("memory", "want a multiple of the huge page size of %d bytes, got %d bytes", page, size)
	}
	p.plan.HugepageSize = page
	p.arg("-object", p.memfdObject("mem0", size))
}

// memfdObject is memory that is an object of its own.
func (p *planner) memfdObject(id string, size int64) string {
	o, page := p.m.MemoryOptions, p.plan.HugepageSize
	return options("memory-backend-memfd", "id="+id, fmt.Sprintf("size=%d", size),
		"share="+onOff(p.sharedMemory()),
		when(page > 0, "hugetlb=on"), when(page > 0, fmt.Sprintf("hugetlbsize=%d", page)),
		when(o.Prealloc, "prealloc=on"), when(o.Prealloc, fmt.Sprintf("prealloc-threads=%d", min(p.m.CPUs, 16))))
}

// memoryStep is in what steps memory can be given to a guest that runs, and taken
// back, in bytes.
func (p *planner) memoryStep() int64 { return max(2*mebibyte, p.plan.HugepageSize) }

// spareMemory is the memory that a guest can be given while it runs. At first it has
// none of it, and the host neither.
func (p *planner) spareMemory() {
	const key = "memory_options.max"
	o := p.m.MemoryOptions
	size := int64(o.Max - p.m.Memory)
	step := p.memoryStep()
	switch {
	case o.Max <= p.m.Memory:
		return
	case p.microvm():
		p.problem(key, `not supported by qemu for machine = "microvm", which takes no memory while it runs`)
		return
	case o.Prealloc:
		p.problem(key, "not supported by qemu with memory_options.prealloc, which takes all of it from the host at once")
		return
	case size%step != 0:
		p.problem(key, "want memory and a multiple of %s, got %s beside %s", config.Size(step), config.Size(size), p.m.Memory)
		return
	}
	object := options("memory-backend-ram", "id="+memoryObject, fmt.Sprintf("size=%d", size))
	if p.memfd() {
		object = p.memfdObject(memoryObject, size)
	}
	p.arg("-object", object)
	p.arg("-device", options(p.virtio("virtio-mem"), "id="+memoryDevice, p.port(key), "memdev="+memoryObject,
		fmt.Sprintf("block-size=%d", step), "requested-size=0",
		// Where no page is free, the guest is refused it, and not killed by its use.
		when(p.plan.HugepageSize > 0, "prealloc=on")))
}

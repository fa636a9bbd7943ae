package qemu

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// boot is the firmware, a kernel booted directly, and the order of devices.
func (p *planner) boot() {
	p.firmware()
	b := p.m.Boot
	if b.Kernel != "" {
		p.file("boot.kernel", b.Kernel)
		p.arg("-kernel", b.Kernel)
	}
	if b.Initrd != "" {
		p.file("boot.initrd", b.Initrd)
		p.arg("-initrd", b.Initrd)
	}
	if b.Cmdline != "" {
		p.arg("-append", b.Cmdline)
	}
	p.order()
	// strict: what has no place in the order is not tried.
	p.arg("-boot", "strict=on")
}

// order gathers the keys of the devices to boot from, first first.
func (p *planner) order() {
	if p.microvm() && len(p.m.Boot.Order) > 0 {
		p.problem("boot.order", `not supported by qemu for machine = "microvm", which boots a kernel directly`)
	}
	p.bootable = p.m.Boot.Order
	if len(p.bootable) == 0 {
		for _, d := range p.m.Disks {
			p.bootable = append(p.bootable, d.Key())
		}
	}
}

// bootIndex is the property that gives the device its place in the boot
// order, or "" where it has none. virtio-mmio devices have no such property,
// and microvm boots a kernel directly.
func (p *planner) bootIndex(key string) string {
	i := slices.Index(p.bootable, key)
	if i < 0 || p.microvm() {
		return ""
	}
	return fmt.Sprintf("bootindex=%d", i+1)
}

func (p *planner) firmware() {
	f := p.m.Boot.Firmware
	switch {
	case p.microvm():
		// Its small firmware (qboot) starts a kernel, and nothing else.
		if f != "none" {
			p.problem("boot.firmware", `not supported by qemu for machine = "microvm": want "none" and boot.kernel, got %q`, f)
		}
	case f == "none":
		p.problem("boot.firmware", `not supported by qemu for machine = %q: want "bios" or "uefi", got "none"`, p.m.MachineType)
	case f == "bios": // QEMU's default, SeaBIOS
	default:
		p.flash()
	}
}

// flash is UEFI, or a firmware named by its path.
func (p *planner) flash() {
	fw := p.uefi()
	switch {
	case p.m.Boot.SecureBoot && (fw == nil || fw.Vars == ""):
		p.problem("boot.secure_boot", "want a UEFI firmware with Secure Boot and enrolled keys for machine = %q, none was found in /usr/share/qemu/firmware (Debian: ovmf, for q35)", p.m.MachineType)
	case fw == nil && p.m.Boot.Firmware == "uefi":
		p.problem("boot.firmware", "no UEFI firmware for machine = %q was found in /usr/share/qemu/firmware; install it (Debian: ovmf)", p.m.MachineType)
	case fw == nil:
		p.file("boot.firmware", p.m.Boot.Firmware)
		p.arg("-bios", p.m.Boot.Firmware)
	case fw.Vars == "":
		p.file("boot.firmware", fw.Code)
		p.arg("-bios", fw.Code)
	default:
		p.file("boot.firmware", fw.Code)
		vars := p.paths.NVRAM(p.m, fw.VarsFormat)
		p.plan.New = append(p.plan.New, hypervisor.NewFile{Key: "boot.firmware", Path: vars, Format: fw.VarsFormat, Copy: fw.Vars})
		p.flashDevice("firmware", fw.Code, fw.CodeFormat, true)
		p.flashDevice("nvram", vars, fw.VarsFormat, false)
		if p.needsSMM() {
			// Only the firmware itself, in system management mode, writes variables.
			p.arg("-global", "driver=cfi.pflash01,property=secure,value=on")
		}
	}
}

// flashDevice is one flash chip, by the name that the -machine option refers to.
func (p *planner) flashDevice(name, file, format string, readOnly bool) {
	p.arg("-blockdev", jsonArg(blockNode{Driver: "file", Name: name + "-file", Filename: file, Locking: "on", ReadOnly: readOnly}))
	p.arg("-blockdev", jsonArg(blockNode{Driver: format, Name: name, File: name + "-file", ReadOnly: readOnly}))
}

// needsSMM says whether the firmware wants system management mode.
func (p *planner) needsSMM() bool {
	fw := p.uefi()
	return fw != nil && slices.Contains(fw.Features, "requires-smm")
}

// uefi is the firmware of the host that the definition asks for: the first whose
// descriptor fits the board and that is plain, or has Secure Boot with enrolled
// keys; or the one that is named by its path. It is nil where there is none.
func (p *planner) uefi() *hypervisor.Firmware {
	want := p.m.Boot.Firmware
	if p.microvm() {
		return nil
	}
	for i, fw := range p.host.Firmware {
		switch {
		case !slices.Contains(fw.Interfaces, "uefi") || !fits(fw.Machines, p.m.MachineType):
		case p.m.Boot.SecureBoot && !secure(fw.Features):
		case want == fw.Code:
			return &p.host.Firmware[i]
		case want == "uefi" && (p.m.Boot.SecureBoot || plain(fw.Features)):
			return &p.host.Firmware[i]
		}
	}
	return nil
}

// plain says that a firmware wants neither SMM nor a confidential machine.
func plain(features []string) bool {
	for _, f := range features {
		switch f {
		case "requires-smm", "secure-boot", "enrolled-keys", "amd-sev-snp", "intel-tdx":
			return false
		}
	}
	return true
}

// secure says that a firmware has Secure Boot, and a variable store with keys.
func secure(features []string) bool {
	return slices.Contains(features, "secure-boot") && slices.Contains(features, "enrolled-keys") &&
		!slices.Contains(features, "amd-sev-snp") && !slices.Contains(features, "intel-tdx")
}

// fits says whether one of a descriptor's patterns, which name versioned
// boards such as "pc-q35-*", has the board's newest version.
func fits(patterns []string, board string) bool {
	prefix := map[string]string{"q35": "pc-q35-", "pc": "pc-i440fx-"}[board]
	return prefix != "" && slices.ContainsFunc(patterns, func(pattern string) bool {
		// No error: a malformed pattern fits nothing.
		ok, _ := path.Match(pattern, prefix+"7.2")
		return ok || strings.TrimSuffix(pattern, "*") == prefix || pattern == board
	})
}

// credential gives the guest one systemd credential as an SMBIOS string. Only
// the path of the file is on the command line, which everybody can read.
func (p *planner) credential(c config.Credential) {
	if p.microvm() {
		p.problem(c.Key(), `not supported by qemu for machine = "microvm", which has no SMBIOS`)
		return
	}
	p.plan.Credentials = append(p.plan.Credentials, c)
	p.arg("-smbios", options("type=11", "path="+p.paths.Credential(p.m.Name, c.Name)))
}

// seed is the cloud-init seed: a disk and not a CD-ROM, which cloud-init would
// not wait for where its driver comes late. The SMBIOS serial tells cloud-init
// not to look for clouds on the network.
func (p *planner) seed() {
	if !p.m.CloudInit.Enabled {
		return
	}
	p.plan.Seed = true
	file := p.paths.Seed(p.m.Name)
	p.arg("-blockdev", jsonArg(blockNode{Driver: "file", Name: "seed-file", Filename: file, Locking: "on", ReadOnly: true}))
	p.arg("-blockdev", jsonArg(blockNode{Driver: "raw", Name: "seed", File: "seed-file", ReadOnly: true}))
	// After the disks, so that the first of them is the guest's first.
	p.arg("-device", options(p.virtio("virtio-blk"), "id=seed", p.port("cloud_init"), "drive=seed", "serial=cloudinit"))
	if !p.microvm() {
		p.arg("-smbios", options("type=1", "serial=ds=nocloud"))
	}
}

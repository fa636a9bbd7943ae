package qemu

import (
	"strconv"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// sidecar has s run beside QEMU, and is the character device with the connection
// to it.
func (p *planner) sidecar(id string, s hypervisor.Sidecar) {
	p.plan.Sidecars = append(p.plan.Sidecars, s)
	fd := p.inherit(hypervisor.Descriptor{Use: hypervisor.Connect, Unit: s.Unit})
	p.arg("-chardev", options("socket", "id="+id, "fd="+strconv.Itoa(fd)))
}

// share is a directory of the host. QEMU passes the guest's requests on, in the
// guest's memory.
func (p *planner) share(s config.Share) {
	server, problems := p.host.Virtiofsd(p.m, s, p.paths)
	if problems != nil {
		p.problems = append(p.problems, problems...)
		return
	}
	id := shareID(s.Name)
	p.sidecar(id, server)
	p.arg("-device", options(p.virtio("vhost-user-fs"), "id="+id, p.port(s.Key()), "chardev="+id, "tag="+s.Tag))
}

// tpm is a TPM 2.0 with the interface that goes with the board.
func (p *planner) tpm() {
	if p.microvm() {
		p.problem("tpm.enabled", `not supported by qemu for machine = "microvm", which has no ACPI table for it`)
		return
	}
	server, problems := p.host.SWTPM(p.m, p.paths, "--terminate")
	if problems != nil {
		p.problems = append(p.problems, problems...)
		return
	}
	device := "tpm-crb"
	if !p.q35() {
		device = "tpm-tis"
	}
	p.sidecar("tpm", server)
	p.arg("-tpmdev", "emulator,id=tpm,chardev=tpm")
	p.arg("-device", options(device, "tpmdev=tpm"))
}

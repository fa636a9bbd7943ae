package cloudhypervisor

import (
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// maxSocketPath is what the kernel takes of a socket's path, in bytes.
const maxSocketPath = 107

// share is a directory of the host.
func (p *planner) share(s config.Share) {
	server, problems := p.host.Virtiofsd(p.m, s, p.paths)
	if problems != nil {
		p.problems = append(p.problems, problems...)
		return
	}
	server.Reconnects = true // virtiofsd serves one connection
	p.shares = append(p.shares, options(text("tag", s.Tag), text("socket", p.sidecar(server)), "id="+shareID(s.Name)))
}

// tpm is a TPM 2.0. Connected to anew at each boot of the guest, and at once, it may
// not end with a connection; nor is there a firmware that starts it.
func (p *planner) tpm() {
	server, problems := p.host.SWTPM(p.m, p.paths, "--flags", "startup-clear")
	if problems != nil {
		p.problems = append(p.problems, problems...)
		return
	}
	p.arg("--tpm", options(text("socket", p.sidecar(server))))
}

// sidecar has s run beside cloud-hypervisor, which connects to it by the path of its
// socket.
func (p *planner) sidecar(s hypervisor.Sidecar) (socket string) {
	p.plan.Sidecars = append(p.plan.Sidecars, s)
	socket = p.paths.SidecarSocket(s.Unit)
	if over := len(socket) - maxSocketPath; over > 0 {
		p.problem(s.Key, "want names of the machine and of this that have %d characters less: cloud-hypervisor finds it by the path %s, of which the kernel takes %d bytes", over, socket, maxSocketPath)
	}
	return socket
}

// hostPCI is a PCI device of the host, which reaches all of the guest's memory:
// that is pinned. Under --landlock cloud-hypervisor (v41 to v53) looks for the
// device's IOMMU group by a wrong name, and gives up.
func (p *planner) hostPCI(d config.PCI) {
	if p.paths.User {
		p.problem(d.Key(), "not supported for machines of a user: only root can take a device from the host")
		return
	}
	p.plan.PCI = append(p.plan.PCI, hypervisor.HostPCI{Key: d.Key() + ".address", Address: d.Address})
	p.plan.LockMemory = true
	p.hostDevices = append(p.hostDevices, options("path=/sys/bus/pci/devices/"+d.Address, "id="+pciID(d.Name)))
}

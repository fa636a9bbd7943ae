package qemu

import (
	"strconv"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// hostPCI is a PCI device of the host, which reaches all of the guest's memory:
// that is pinned.
func (p *planner) hostPCI(d config.PCI) {
	switch {
	case p.paths.User:
		p.problem(d.Key(), "not supported for machines of a user: only root can take a device from the host")
	case p.microvm():
		p.problem(d.Key(), `not supported by qemu for machine = "microvm"`)
	default:
		p.plan.PCI = append(p.plan.PCI, hypervisor.HostPCI{Key: d.Key() + ".address", Address: d.Address})
		p.plan.LockMemory = true
		p.arg("-device", options("vfio-pci", "id=pci-"+d.Name, "host="+d.Address, p.port(d.Key())))
	}
}

// hostUSB is a USB device of the host. QEMU finds it by itself, among those to
// whose nodes it has access.
func (p *planner) hostUSB(d config.USB) {
	switch {
	case p.paths.User:
		p.problem(d.Key(), "not supported for machines of a user: only root can give access to a device of the host")
		return
	case p.microvm():
		p.problem(d.Key(), `not supported by qemu for machine = "microvm"`)
		return
	}
	p.plan.USB = append(p.plan.USB, hypervisor.HostUSB{Key: d.Key(), Vendor: d.Vendor, Product: d.Product, Bus: d.Bus, Port: d.Port})
	port := p.usbPort(d.Key())
	which := []string{"vendorid=0x" + d.Vendor, "productid=0x" + d.Product}
	if d.Vendor == "" {
		which = []string{"hostbus=" + strconv.Itoa(d.Bus), "hostport=" + d.Port}
	}
	p.arg("-device", options(append([]string{"usb-host", "id=usb-" + d.Name, "bus=usb.0", port}, which...)...))
}

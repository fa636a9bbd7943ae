package hostdevice

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// pci is one PCI device of the host.
type pci struct {
	address string
	driver  string // "" for none
	bridge  bool
	group   string // number of its IOMMU group; "" without an IOMMU
}

const pciDir = "/sys/bus/pci/devices/"

// pci finds a device; the error is for people.
func (h Host) pci(address string) (pci, error) {
	dir := pciDir + address
	if _, err := os.Stat(h.paths.Root + dir); err != nil {
		return pci{}, fmt.Errorf("want a PCI device of this host, got %s, which is not there (lspci -D lists them)", address)
	}
	return pci{
		address: address, driver: h.target(dir + "/driver"), group: h.target(dir + "/iommu_group"),
		bridge: strings.HasPrefix(h.read(dir+"/class"), "0x06"),
	}, nil
}

// choosePCI finds a device that a machine can have, with others that it is given.
func (h Host) choosePCI(address string, given []string, others map[string]note) (pci, error) {
	p, err := h.pci(address)
	if err != nil {
		return p, err
	}
	if p.bridge {
		return p, fmt.Errorf("want a device, got %s, which is a bridge", address)
	}
	if p.group == "" {
		groups, _ := os.ReadDir(h.paths.Root + "/sys/kernel/iommu_groups")
		if len(groups) == 0 {
			return p, errors.New("want an IOMMU, which this host has not or which is off: switch VT-d or AMD-Vi on in the firmware, and boot with intel_iommu=on where the CPU is Intel's")
		}
		return p, fmt.Errorf("want a device behind the IOMMU, %s is not", address)
	}
	for vm, n := range others {
		if slices.Contains(n.Groups, p.group) {
			return p, fmt.Errorf("%s is in IOMMU group %s, of which machine %s has a device: only one can have any of it", address, p.group, vm)
		}
	}
	members, err := os.ReadDir(h.paths.Root + "/sys/kernel/iommu_groups/" + p.group + "/devices")
	if err != nil {
		return p, err
	}
	for _, m := range members {
		other, err := h.pci(m.Name())
		if err != nil || slices.Contains(given, other.address) || other.bridge || other.driver == "" || other.driver == vfio {
			continue
		}
		return p, fmt.Errorf("%s is in IOMMU group %s with %s, which this host uses (driver %s): want all of a group given to one machine, or without a driver", address, p.group, other.address, other.driver)
	}
	return p, h.wantUnused(address, pciDir+address)
}

// bind has vfio-pci take over a device.
func (h Host) bind(b bound) error {
	at := h.paths.Root + pciDir + b.Address
	if err := h.write(at+"/driver_override", vfio); err != nil {
		return fmt.Errorf("taking %s for %s: %w", b.Address, vfio, err)
	}
	if err := h.unbind(b.Address); err != nil {
		return err
	}
	if err := h.probe(b.Address); err != nil {
		return err
	}
	if driver := h.target(pciDir + b.Address + "/driver"); driver != vfio {
		return fmt.Errorf("%s has driver %q, and not %s, after it was asked to take it over: does modprobe vfio-pci work?", b.Address, driver, vfio)
	}
	return nil
}

// release gives a device back to the driver that it had. One that is gone, or
// that somebody else has given another driver meanwhile, is left alone.
func (h Host) release(b bound) error {
	dir := pciDir + b.Address
	if h.read(dir+"/driver_override") != vfio {
		return nil
	}
	if err := h.write(h.paths.Root+dir+"/driver_override", "\n"); err != nil {
		return fmt.Errorf("giving back %s: %w", b.Address, err)
	}
	if driver := h.target(dir + "/driver"); driver != vfio && driver != "" {
		return nil
	}
	if err := h.unbind(b.Address); err != nil || b.Driver == "" {
		return err
	}
	return h.probe(b.Address)
}

// unbind takes a device from its driver, where it has one.
func (h Host) unbind(address string) error {
	driver := pciDir + address + "/driver"
	if h.target(driver) == "" {
		return nil
	}
	if err := h.write(h.paths.Root+driver+"/unbind", address); err != nil {
		return fmt.Errorf("taking %s from its driver: %w", address, err)
	}
	return nil
}

// probe has the kernel look for a driver.
func (h Host) probe(address string) error {
	if err := h.write(h.paths.Root+"/sys/bus/pci/drivers_probe", address); err != nil {
		return fmt.Errorf("looking for a driver of %s: %w", address, err)
	}
	return nil
}

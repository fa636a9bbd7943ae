package hostdevice

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vmctl/vmctl/hypervisor"
)

// usb is one USB device of the host.
type usb struct {
	name            string // the kernel's, "1-1.4"
	vendor, product string
	bus, device     int
	port            string // "1.4"
	hub             bool
}

func (u usb) String() string { return fmt.Sprintf("bus %d port %s", u.bus, u.port) }

// node is by what programs reach it. It is another one whenever the device is
// plugged in again.
func (u usb) node() string { return fmt.Sprintf("/dev/bus/usb/%03d/%03d", u.bus, u.device) }

const usbDir = "/sys/bus/usb/devices"

// usbs are all devices, by the names of the kernel.
func (h Host) usbs() []usb {
	entries, _ := os.ReadDir(h.paths.Root + usbDir)
	var all []usb
	for _, e := range entries {
		dir := usbDir + "/" + e.Name()
		bus, busErr := strconv.Atoi(h.read(dir + "/busnum"))
		device, deviceErr := strconv.Atoi(h.read(dir + "/devnum"))
		if errors.Join(busErr, deviceErr) != nil {
			continue // an interface of a device
		}
		all = append(all, usb{
			name:   e.Name(),
			vendor: h.read(dir + "/idVendor"), product: h.read(dir + "/idProduct"), bus: bus, device: device,
			port: h.read(dir + "/devpath"), hub: h.read(dir+"/bDeviceClass") == "09",
		})
	}
	return all
}

// chooseUSB finds the node of a device that a machine can have.
func (h Host) chooseUSB(d hypervisor.HostUSB, others map[string]note) (string, error) {
	what := fmt.Sprintf("%s:%s", d.Vendor, d.Product)
	if d.Vendor == "" {
		what = usb{bus: d.Bus, port: d.Port}.String()
	}
	var found []usb
	for _, u := range h.usbs() {
		if d.Vendor != "" && strings.EqualFold(u.vendor, d.Vendor) && strings.EqualFold(u.product, d.Product) || d.Vendor == "" && u.bus == d.Bus && u.port == d.Port {
			found = append(found, u)
		}
	}
	switch {
	case len(found) == 0:
		return "", fmt.Errorf("want a USB device that is plugged in, got %s, which is not (lsusb lists them)", what)
	case len(found) > 1:
		var where []string
		for _, u := range found {
			where = append(where, u.String())
		}
		return "", fmt.Errorf("want one USB device, %s are %d: %s: name one by bus and port", what, len(found), strings.Join(where, ", "))
	case found[0].hub:
		return "", fmt.Errorf("want a device, got %s, which is a hub", what)
	}
	node := found[0].node()
	for vm, n := range others {
		for _, has := range n.USB {
			if has == node {
				return "", fmt.Errorf("%s is given to machine %s, which runs", what, vm)
			}
		}
	}
	return node, h.wantUnused(what, usbDir+"/"+found[0].name)
}

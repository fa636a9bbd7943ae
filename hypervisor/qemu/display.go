package qemu

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vmctl/vmctl/config"
)

// minVNCPort is where QEMU's VNC ports begin; it counts displays from there.
const minVNCPort = 5900

// display is a graphics card with its monitors, the pointer, and the server
// that viewers connect to. The keyboard is the board's own: a USB keyboard
// would take the keys from it, whether the guest has a driver for USB or not.
func (p *planner) display(d config.Display) {
	if p.microvm() {
		p.problem("display.type", `not supported by qemu for machine = "microvm", which has no PCI for a graphics card: want "none", got %q`, d.Type)
		return
	}
	p.graphicsCard(d)
	if d.Tablet {
		p.arg("-device", options("usb-tablet", "id=tablet", "bus=usb.0", p.usbPort("display.tablet")))
	}
	p.checkAddress(d)
	switch d.Type {
	case "vnc":
		p.vnc(d)
	case "spice":
		p.spice(d)
	default:
		p.refuse("display.type")
	}
}

// slotDisplay is where the graphics card is; pc has its own devices in the
// first slot, and none of those in the last.
func (p *planner) slotDisplay() int {
	if p.q35() {
		return 0x01
	}
	return slotEnd + 1
}

func (p *planner) graphicsCard(d config.Display) {
	place := p.fixed(p.slotDisplay())
	switch d.Device {
	case "virtio":
		p.arg("-device", options("virtio-vga", "id=video", place, fmt.Sprintf("max_outputs=%d", d.Heads)))
	case "vga":
		p.arg("-device", options("VGA", "id=video", place))
	case "qxl":
		p.module("display.device", "hw-display-qxl", "qemu-system-modules-spice")
		p.arg("-device", options("qxl-vga", "id=video", place, fmt.Sprintf("max_outputs=%d", d.Heads)))
	default:
		p.refuse("display.device")
	}
}

// checkAddress refuses ports that QEMU cannot have.
func (p *planner) checkAddress(d config.Display) {
	if d.Address == "" {
		return
	}
	p.plan.Internet = true
	lowest := 1024 // below, the kernel wants a capability
	if d.Type == "vnc" {
		lowest = minVNCPort
	}
	host, port := splitAddress(d.Address)
	if port < lowest {
		p.problem("display.address", "want a port from %d on for display.type = %q, got %d", lowest, d.Type, port)
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		p.warn("display.address = %q: what is shown and typed crosses the network as it is; by default vmctl -H HOST view has it encrypted by ssh", d.Address)
	}
}

// splitAddress reads an address whose form was checked.
func splitAddress(address string) (host string, port int) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		panic(err)
	}
	port, _ = strconv.Atoi(text)
	return host, port
}

// vnc lets nobody in until a password is set (Authorize). Who comes does not
// throw out who is there, even where it asks to be alone, as remote-viewer does.
func (p *planner) vnc(d config.Display) {
	where := "unix:" + p.paths.DisplaySocket(p.m.Name)
	if d.Address != "" {
		host, port := splitAddress(d.Address)
		where = net.JoinHostPort(host, strconv.Itoa(port-minVNCPort))
	}
	p.arg("-vnc", options(where, "password=on", "share=ignore"))
	if d.Clipboard {
		p.warn("display.clipboard = true: before QEMU 10.1 the machine cannot be saved")
		p.vdagent("qemu-vdagent", "clipboard=on", "mouse=off")
	}
}

// spice lets nobody in until a password (a ticket) is set.
func (p *planner) spice(d config.Display) {
	p.module("display.type", "ui-spice-core", "qemu-system-modules-spice")
	where := []string{"unix=on", "addr=" + p.paths.DisplaySocket(p.m.Name)}
	if d.Address != "" {
		host, port := splitAddress(d.Address)
		where = []string{when(host != "", "addr="+host), fmt.Sprintf("port=%d", port)}
	}
	p.arg("-spice", options(append(where, "disable-ticketing=off", "disable-agent-file-xfer=on")...))
	if d.Clipboard {
		p.vdagent("spicevmc")
	}
	for i := range d.USBRedirection {
		id := "redirect" + strconv.Itoa(i+1)
		p.arg("-chardev", options("spicevmc", "id="+id, "name=usbredir"))
		p.arg("-device", options("usb-redir", "id="+id, "chardev="+id, "bus=usb.0", p.usbPort("display.usb_redirection")))
	}
}

// vdagent is the channel to spice-vdagent in the guest; backend is who speaks
// with it.
func (p *planner) vdagent(backend string, more ...string) {
	p.virtioSerial()
	p.arg("-chardev", options(append([]string{backend, "id=vdagent", "name=vdagent"}, more...)...))
	p.arg("-device", options("virtserialport", "id=vdagent", "chardev=vdagent", "name=com.redhat.spice.0"))
}

// module refuses what a part of QEMU is needed for that distributions have in a
// package of its own. What a QEMU of one's own has is not known.
func (p *planner) module(key, name, debian string) {
	if p.m.HypervisorOptions.Binary == "" && len(p.host.QEMUModules) > 0 && !slices.Contains(p.host.QEMUModules, name) {
		p.problem(key, "%s.so, a part of QEMU, was not found on this host; install it (Debian: %s)", name, debian)
	}
}

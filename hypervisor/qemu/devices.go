package qemu

import (
	"fmt"
	"strconv"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// Slots of the PCI root bus. Every device has a place of its own, whichever
// others there are, so that what a guest calls them stays the same.
const (
	slotRNG      = 0x02
	slotBalloon  = 0x03
	slotConsole  = 0x04 // virtio-serial
	slotVsock    = 0x05
	slotPanic    = 0x06
	slotWatchdog = 0x07
	slotUSB      = 0x08
	slotSCSI     = 0x09
	slotPATA     = 0x0a
	slotSATA     = 0x0b // further controllers: to 0x0f
	slotCard     = 0x10 // conventional network cards; on pc everything that has a port on q35
	slotPort     = 0x18 // PCIe root ports on q35, eight to a slot
	slotEnd      = 0x1e // the last; 0x1f is q35's own
)

// spares is how many PCIe ports are left free, for devices that are plugged in
// while the machine runs.
const spares = 4

// virtio is the driver of one more virtio device on this board.
func (p *planner) virtio(name string) string {
	p.transports++
	if p.microvm() {
		return name + "-device"
	}
	return name + "-pci"
}

// fixed is the property that puts a device into a slot of the root bus.
func (p *planner) fixed(slot int) string {
	if p.microvm() {
		return ""
	}
	return fmt.Sprintf("addr=0x%x", slot)
}

// slot is the property that puts a device into the next free slot of the root
// bus.
func (p *planner) slot(key string) string {
	end := slotPort // q35
	if !p.q35() {
		end = slotEnd + 2 // 0x1f is free there
		if p.m.Display.Type != "none" {
			end = p.slotDisplay()
		}
	}
	if slotCard+p.slots == end {
		p.problem(key, "too many devices of this kind: there is room for %d", end-slotCard)
		return ""
	}
	p.slots++
	return p.fixed(slotCard + p.slots - 1)
}

// port is the property that plugs a device into a PCIe port of its own, from
// which it can be unplugged while the machine runs. On pc any slot will do.
func (p *planner) port(key string) string {
	switch {
	case p.microvm():
		return ""
	case p.hot != nil:
		return p.freePlace(key)
	case p.q35():
		return "bus=" + p.newPort(key)
	}
	return p.slot(key)
}

// controller is the place of a controller whose slot is fixed, but for one that
// is plugged in while the machine runs: q35's root bus takes nothing then.
func (p *planner) controller(slot int) string {
	if p.hot != nil && p.q35() {
		return p.freePlace("machine")
	}
	return p.fixed(slot)
}

// newPort is one more PCIe root port.
func (p *planner) newPort(key string) string {
	const perSlot = 8
	n := p.ports
	p.ports++
	if n/perSlot > slotEnd-slotPort {
		p.problem(key, "too many disks and cards: there is room for %d", perSlot*(slotEnd-slotPort+1)-spares)
		return ""
	}
	id := "port" + strconv.Itoa(n+1)
	p.arg("-device", options("pcie-root-port", "id="+id, "bus=pcie.0", fmt.Sprintf("addr=0x%x.0x%x", slotPort+n/perSlot, n%perSlot),
		when(n%perSlot == 0, "multifunction=on"), "chassis="+strconv.Itoa(n+1)))
	return id
}

// spares are ports for later.
func (p *planner) spares() {
	for i := 0; p.q35() && i < spares; i++ {
		p.newPort("machine")
	}
}

// serial is the text console, and the serial port where that is not it.
func (p *planner) serial() {
	console := func() {
		fd := p.descriptor(hypervisor.Console, "")
		p.arg("-chardev", options("socket", "id=console", "fd="+strconv.Itoa(fd)))
	}
	switch p.m.Console.Device {
	case "serial":
		console()
		p.arg("-serial", "chardev:console")
	case "virtio":
		console()
		p.virtioSerial()
		p.arg("-device", options("virtconsole", "id=console", "chardev=console"))
		if p.m.Serial.Enabled {
			p.arg("-serial", "null")
		}
	default:
		p.refuse("console.device")
	}
}

// virtioSerial is the controller of virtio consoles and channels.
func (p *planner) virtioSerial() {
	if !p.virtConsole {
		p.virtConsole = true
		p.arg("-device", options(p.virtio("virtio-serial"), "id=channels", p.fixed(slotConsole)))
	}
}

// agentPort is the id of the port that is the guest agent's channel.
const agentPort = "agent"

func (p *planner) guestAgent() {
	fd := p.descriptor(hypervisor.Listen, p.paths.AgentSocket(p.m.Name))
	p.virtioSerial()
	p.arg("-chardev", options("socket", "id=agent", "fd="+strconv.Itoa(fd), "server=on", "wait=off"))
	p.arg("-device", options("virtserialport", "id="+agentPort, "chardev=agent", "name=org.qemu.guest_agent.0"))
}

func (p *planner) rng() {
	p.arg("-object", options("rng-random", "id=rng", "filename=/dev/urandom"))
	p.arg("-device", options(p.virtio("virtio-rng"), "id=rng", p.fixed(slotRNG), "rng=rng"))
}

func (p *planner) balloon(b config.Balloon) {
	p.arg("-device", options(p.virtio("virtio-balloon"), "id=balloon", p.fixed(slotBalloon),
		"free-page-reporting="+onOff(b.FreePageReporting), "deflate-on-oom="+onOff(b.DeflateOnOOM)))
}

const vsockNode = "/dev/vhost-vsock"

// vsock needs a driver of the host's kernel.
func (p *planner) vsock(v config.Vsock) {
	if !p.host.Nodes[vsockNode] {
		if v.Enabled == "true" {
			p.problem("vsock.enabled", "this host has no %s; load the module vhost_vsock, or use \"auto\"", vsockNode)
		}
		return
	}
	p.node(vsockNode, "kvm")
	p.arg("-device", options(p.virtio("vhost-vsock"), "id=vsock", p.fixed(slotVsock), fmt.Sprintf("guest-cid=%d", v.CID)))
}

func (p *planner) watchdog(w config.Watchdog) {
	switch {
	case p.microvm():
		p.problem("watchdog.enabled", `not supported by qemu for machine = "microvm"`)
	case w.Model == "i6300esb":
		p.arg("-device", options("i6300esb", "id=watchdog", p.fixed(slotWatchdog)))
	case w.Model == "itco" && p.q35():
		// The board has it; it only has to be let act.
		p.arg("-global", "ICH9-LPC.noreboot=off")
	default:
		p.problem("watchdog.model", "not supported by qemu for machine = %q, got %q", p.m.MachineType, w.Model)
	}
}

// panicDevice is how the guest's kernel says that it panics.
func (p *planner) panicDevice() {
	if p.microvm() {
		p.arg("-device", "pvpanic")
		return
	}
	p.arg("-device", options("pvpanic-pci", "id=panic", p.fixed(slotPanic)))
}

// generationID tells the guest when it was cloned. It needs ACPI tables that
// microvm does not have.
func (p *planner) generationID() {
	if !p.microvm() {
		p.arg("-device", "vmgenid,id=generation,guid=auto")
	}
}

package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// nic is one card and what it is plugged into.
func (p *planner) nic(n config.NIC) {
	before := len(p.problems)
	p.checkNIC(n)
	forwards := p.forwards(n)
	if len(p.problems) > before {
		return
	}
	id := "id=net-" + n.Name
	switch {
	case p.byPasst(n):
		p.passt(n)
	case n.User:
		p.plan.Internet = true
		p.arg("-netdev", options(append([]string{"user", id}, forwards...)...))
	case n.VDE != "":
		// What QEMU's own vde does, but for plugging into the switch, which root
		// can and the machine cannot.
		p.arg("-netdev", options("dgram", id, "local.type=fd", "local.str="+strconv.Itoa(p.queue(n))))
		if p.hot != nil { // else systemd keeps its port of the switch
			p.inherit(hypervisor.Descriptor{Use: hypervisor.Kept, Card: n.Name})
		}
	case n.VhostUser != "":
		p.vhostUser(n)
	default:
		p.arg("-netdev", options("tap", id, p.hostQueues(n))+p.vhost(n))
	}

	index := p.bootIndex(n.Key())
	parts := []string{p.cardDriver(n.Model), p.cardPlace(n), "id=nic-" + n.Name, "netdev=net-" + n.Name, "mac=" + string(n.MAC), index}
	if index == "" && !p.microvm() {
		// Without a place in the boot order, the code to boot from it would
		// only take time.
		parts = append(parts, "romfile=")
	}
	parts = append(parts, when(n.MTU != 0, fmt.Sprintf("host_mtu=%d", n.MTU)))
	if n.Queues > 1 {
		// An interrupt for each direction of each queue, for changes of the
		// configuration and for the control queue.
		parts = append(parts, "mq=on", when(!p.microvm(), fmt.Sprintf("vectors=%d", 2*n.Queues+2)))
	}
	p.arg("-device", options(parts...))
}

// hostQueues are the descriptors of the interface on the host, in QEMU's notation.
func (p *planner) hostQueues(n config.NIC) string {
	var fds []string
	for range n.Queues {
		fds = append(fds, strconv.Itoa(p.queue(n)))
	}
	return several("fd", fds)
}

// vhost are the descriptors by which the host's kernel moves the card's packets, in
// QEMU's notation, from a comma on: "" where the host, or the card, is not made for
// that.
func (p *planner) vhost(n config.NIC) string {
	if n.Model != "virtio" || !p.host.Nodes[hypervisor.VhostNet] {
		return ""
	}
	first := len(p.plan.Descriptors)
	var fds []string
	for range n.Queues {
		fds = append(fds, strconv.Itoa(p.inherit(hypervisor.Descriptor{Use: hypervisor.Vhost, Card: n.Name})))
	}
	option := "," + several("vhostfd", fds)
	for i := range p.plan.Descriptors[first:] {
		p.plan.Descriptors[first+i].Option = option
	}
	return option
}

// several is an option with one value or more, such as "fd=5" or "fds=5:6".
func several(name string, values []string) string {
	if len(values) > 1 {
		name += "s"
	}
	return name + "=" + strings.Join(values, ":")
}

// queue hands QEMU one more of the card's queues and returns its number.
func (p *planner) queue(n config.NIC) int {
	return p.inherit(hypervisor.Descriptor{Use: hypervisor.Queue, Card: n.Name})
}

// vhostUser connects the card to a peer that reads and writes the guest's memory.
// QEMU passes descriptors on by a socket that it has opened by path alone.
func (p *planner) vhostUser(n config.NIC) {
	f, path := hypervisor.File{Key: n.Key() + ".vhost_user", Path: n.VhostUser, Write: true, Socket: true}, n.VhostUser
	if p.hot != nil && !p.paths.User {
		f.At = p.paths.ShownFile(p.m.Name, n.Key())
		path = f.At
	}
	p.plan.Files = append(p.plan.Files, f)
	p.arg("-chardev", options("socket", "id="+peerID(n.Name), "path="+path))
	p.arg("-netdev", options("vhost-user", "id=net-"+n.Name, "chardev="+peerID(n.Name), when(n.Queues > 1, fmt.Sprintf("queues=%d", n.Queues))))
}

// checkNIC refuses what is not built yet, or what a card or what it is plugged
// into cannot do, key by key.
func (p *planner) checkNIC(n config.NIC) {
	key := func(k string) string { return n.Key() + "." + k }
	p.checkRates(n)
	p.checkPasst(n)
	if (n.Network != "" || n.Bridge != "" || n.Macvtap != "") && p.paths.User {
		p.problem(n.Key(), "want user = true, a TAP of the user's own, vde or vhost_user: a user's own machines cannot be plugged into other interfaces of the host")
	}
	switch n.Model {
	case "virtio":
	case "e1000e", "e1000", "rtl8139":
		if p.microvm() {
			p.problem(key("model"), `not supported by qemu for machine = "microvm": want "virtio", got %q`, n.Model)
		}
	default:
		p.refuse(key("model"))
	}
}

// checkRates refuses limits of what passes no TAP interface of ours, where they
// would be set: of a TAP of the host's nothing is changed, and what goes to a
// guest by a macvtap passes no queue.
func (p *planner) checkRates(n config.NIC) {
	if n.Network != "" || n.Bridge != "" {
		return
	}
	for _, limit := range []struct {
		key  string
		rate config.Size
	}{{"rate_in", n.RateIn}, {"rate_out", n.RateOut}} {
		if limit.rate != 0 {
			p.problem(n.Key()+"."+limit.key, "want a card on a bridge (network or bridge) to limit")
		}
	}
}

func (p *planner) cardDriver(model string) string {
	if model == "virtio" {
		return p.virtio("virtio-net")
	}
	return model
}

// cardPlace is where the card is plugged in. e1000 and rtl8139 are
// conventional PCI, which a PCIe port does not take.
func (p *planner) cardPlace(n config.NIC) string {
	if conventional(n.Model) && p.hot == nil {
		return p.slot(n.Key())
	}
	return p.port(n.Key())
}

// forwards are the host's ports that reach the guest.
func (p *planner) forwards(n config.NIC) []string {
	if !n.User || p.byPasst(n) {
		return nil // see package netsetup, and passt
	}
	var parts []string
	for i, f := range n.Forward {
		if hypervisor.BeyondSlirp(f) {
			p.problem(fmt.Sprintf("%s.forward[%d]", n.Key(), i), "want an IPv4 address of the host, got %q, for user-mode networking by slirp; with passt installed (Debian: passt) and backend \"passt\" or none it may be one of IPv6", f.Address)
		}
		parts = append(parts, fmt.Sprintf("hostfwd=%s:%s:%d-:%d", f.Protocol, f.Address, f.HostPort, f.GuestPort))
	}
	return parts
}

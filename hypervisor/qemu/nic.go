package qemu

import (
	"fmt"
	"net/netip"
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
	if n.User {
		p.plan.Internet = true
		p.arg("-netdev", options(append([]string{"user", "id=net-" + n.Name}, forwards...)...))
	} else {
		p.arg("-netdev", options("tap", "id=net-"+n.Name, p.hostQueues(n)))
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
		parts = append(parts, "mq=on", fmt.Sprintf("vectors=%d", 2*n.Queues+2))
	}
	p.arg("-device", options(parts...))
}

// hostQueues are the descriptors of the interface on the host, in QEMU's notation.
func (p *planner) hostQueues(n config.NIC) string {
	var fds []string
	for range n.Queues {
		fds = append(fds, strconv.Itoa(p.inherit(hypervisor.Descriptor{Use: hypervisor.Queue, Card: n.Name})))
	}
	if len(fds) == 1 {
		return "fd=" + fds[0]
	}
	return "fds=" + strings.Join(fds, ":")
}

// checkNIC refuses what is not built yet, or what a card or what it is plugged
// into cannot do, key by key.
func (p *planner) checkNIC(n config.NIC) {
	key := func(k string) string { return n.Key() + "." + k }
	p.refuseIf(n.Tap != "", key("tap"))
	p.refuseIf(n.Macvtap != "", key("macvtap"))
	p.refuseIf(n.VDE != "", key("vde"))
	p.refuseIf(n.VhostUser != "", key("vhost_user"))
	p.checkRates(n)
	if (n.Network != "" || n.Bridge != "") && p.paths.User {
		p.problem(n.Key(), "want user = true: a user's own machines cannot be plugged into interfaces of the host")
	}
	switch {
	case n.Queues > 1 && n.User:
		p.problem(key("queues"), "not supported by qemu for user = true, which has one, got %d", n.Queues)
	case n.Queues > 1 && n.Model != "virtio":
		p.problem(key("queues"), "not supported by qemu for model = %q, which has one, got %d", n.Model, n.Queues)
	case n.MTU != 0 && n.Model != "virtio":
		p.problem(key("mtu"), "not supported by qemu for model = %q", n.Model)
	case n.MTU > 1500 && n.User:
		p.problem(key("mtu"), "want at most 1500 for user = true, got %d", n.MTU)
	case n.VLAN != 0 && n.User:
		p.problem(key("vlan"), "not supported by qemu for user = true")
	case len(n.Forward) > 0 && n.Bridge != "":
		p.problem(key("forward"), "want a card in one of vmctl's networks, or user = true: on a bridge of the host the guest is reached by its own address")
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

// checkRates refuses limits of what passes no interface of the host, where they
// would be set.
func (p *planner) checkRates(n config.NIC) {
	if n.Network != "" || n.Bridge != "" || n.Tap != "" || n.Macvtap != "" {
		return
	}
	for _, limit := range []struct {
		key  string
		rate config.Size
	}{{"rate_in", n.RateIn}, {"rate_out", n.RateOut}} {
		if limit.rate != 0 {
			p.problem(n.Key()+"."+limit.key, "want a card with an interface on the host (network, bridge, tap or macvtap) to limit, got one without")
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
	if n.Model == "e1000" || n.Model == "rtl8139" {
		return p.slot(n.Key())
	}
	return p.port(n.Key())
}

// forwards are the host's ports that reach the guest.
func (p *planner) forwards(n config.NIC) []string {
	if !n.User {
		return nil // see package netsetup
	}
	var parts []string
	for _, f := range n.Forward {
		if a, err := netip.ParseAddr(f.Address); f.Address != "" && (err != nil || !a.Is4()) {
			p.problem(n.Key()+".forward", "not supported by qemu for user = true: want an IPv4 address of the host, got %q", f.Address)
		}
		parts = append(parts, fmt.Sprintf("hostfwd=%s:%s:%d-:%d", f.Protocol, f.Address, f.HostPort, f.GuestPort))
	}
	return parts
}

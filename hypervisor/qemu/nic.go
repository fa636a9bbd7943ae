package qemu

import (
	"fmt"
	"net/netip"

	"github.com/vmctl/vmctl/config"
)

// nic is one card and what it is plugged into.
func (p *planner) nic(n config.NIC) {
	before := len(p.problems)
	p.checkNIC(n)
	forwards := p.forwards(n)
	if len(p.problems) > before {
		return
	}
	p.plan.Internet = true
	p.arg("-netdev", options(append([]string{"user", "id=net-" + n.Name}, forwards...)...))

	index := p.bootIndex(n.Key())
	parts := []string{p.cardDriver(n.Model), p.cardPlace(n), "id=nic-" + n.Name, "netdev=net-" + n.Name, "mac=" + string(n.MAC), index}
	if index == "" && !p.microvm() {
		// Without a place in the boot order, the code to boot from it would
		// only take time.
		parts = append(parts, "romfile=")
	}
	parts = append(parts, when(n.MTU != 0, fmt.Sprintf("host_mtu=%d", n.MTU)))
	p.arg("-device", options(parts...))
}

// checkNIC refuses what is not built yet, or what a user-mode network cannot
// do, key by key.
func (p *planner) checkNIC(n config.NIC) {
	key := func(k string) string { return n.Key() + "." + k }
	p.refuseIf(n.Network != "", key("network"))
	p.refuseIf(n.Bridge != "", key("bridge"))
	p.refuseIf(n.Tap != "", key("tap"))
	p.refuseIf(n.Macvtap != "", key("macvtap"))
	p.refuseIf(n.VDE != "", key("vde"))
	p.refuseIf(n.VhostUser != "", key("vhost_user"))
	p.refuseIf(n.Address.IsValid(), key("address"))
	p.refuseIf(n.VLAN != 0, key("vlan"))
	p.refuseIf(n.AntiSpoofing != nil, key("anti_spoofing"))
	p.refuseIf(len(n.AllowIn) > 0, key("allow_in"))
	p.refuseIf(len(n.AllowOut) > 0, key("allow_out"))
	p.refuseIf(len(n.DenyIn) > 0, key("deny_in"))
	p.refuseIf(len(n.DenyOut) > 0, key("deny_out"))
	p.refuseIf(len(n.SecurityGroups) > 0, key("security_groups"))
	p.refuseIf(n.RateIn != 0, key("rate_in"))
	p.refuseIf(n.RateOut != 0, key("rate_out"))
	switch {
	case n.Queues > 1:
		p.problem(key("queues"), "not supported by qemu for user = true, which has one, got %d", n.Queues)
	case n.MTU != 0 && n.Model != "virtio":
		p.problem(key("mtu"), "not supported by qemu for model = %q", n.Model)
	case n.MTU > 1500:
		p.problem(key("mtu"), "want at most 1500 for user = true, got %d", n.MTU)
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
	var parts []string
	for _, f := range n.Forward {
		if a, err := netip.ParseAddr(f.Address); f.Address != "" && (err != nil || !a.Is4()) {
			p.problem(n.Key()+".forward", "not supported by qemu for user = true: want an IPv4 address of the host, got %q", f.Address)
		}
		parts = append(parts, fmt.Sprintf("hostfwd=%s:%s:%d-:%d", f.Protocol, f.Address, f.HostPort, f.GuestPort))
	}
	return parts
}

package cloudhypervisor

import (
	"fmt"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// nic is one card and what it is plugged into.
func (p *planner) nic(n config.NIC) {
	before := len(p.problems)
	p.checkNIC(n)
	if len(p.problems) > before {
		return
	}
	var back string
	if n.VhostUser != "" {
		f := hypervisor.File{Key: n.Key() + ".vhost_user", Path: n.VhostUser, Write: true, Socket: true}
		back = options("vhost_user=true", text("socket", p.shown(&f, n.Key())))
		p.plan.Files = append(p.plan.Files, f)
	} else {
		var fds []string
		for range n.Queues {
			fds = append(fds, p.descriptor(hypervisor.Descriptor{Use: hypervisor.Queue, Card: n.Name}))
		}
		back = "fd=" + list(fds)
	}
	// num_queues counts both directions.
	p.cards = append(p.cards, options(back, fmt.Sprintf("num_queues=%d", 2*n.Queues), "mac="+string(n.MAC), "id="+nicID(n.Name)))
}

// What a device is called in requests.
func nicID(nic string) string     { return "nic-" + nic }
func diskID(disk string) string   { return "disk-" + disk }
func shareID(share string) string { return "share-" + share }
func pciID(device string) string  { return "pci-" + device }

// checkNIC refuses what cloud-hypervisor, a card or what it is plugged into cannot
// do, key by key.
func (p *planner) checkNIC(n config.NIC) {
	key := func(k string) string { return n.Key() + "." + k }
	const plugs = "want a network, a bridge, a TAP, a macvtap or vhost_user"
	switch {
	case n.User:
		p.problem(key("user"), "%s: %s", notSupported, plugs)
	case n.VDE != "":
		p.problem(key("vde"), "%s: %s", notSupported, plugs)
	case (n.Network != "" || n.Bridge != "" || n.Macvtap != "") && p.paths.User:
		p.problem(n.Key(), "want a TAP of the user's own or vhost_user: a user's own machines cannot be plugged into other interfaces of the host")
	}
	p.want(key("model"), n.Model, "virtio")
	if n.Queues > p.m.CPUs {
		p.problem(key("queues"), "%s: want at most one for each CPU (%d), got %d", notSupported, p.m.CPUs, n.Queues)
	}
	if n.MTU != 0 {
		p.problem(key("mtu"), "%s, which would set it on the host's interface, and may not", notSupported)
	}
	if n.Link == "down" {
		p.problem(key("link"), "%s, whose cards are always plugged in: want \"up\", got \"down\"", notSupported)
	}
	p.checkRates(n)
}

// checkRates refuses limits of what passes no TAP interface of ours, where they
// would be set.
func (p *planner) checkRates(n config.NIC) {
	if n.Network != "" || n.Bridge != "" {
		return
	}
	for key, rate := range map[string]config.Size{"rate_in": n.RateIn, "rate_out": n.RateOut} {
		if rate != 0 {
			p.problem(n.Key()+"."+key, "want a card on a bridge (network or bridge) to limit")
		}
	}
}

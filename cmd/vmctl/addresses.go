package main

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/guestagent"
	"github.com/vmctl/vmctl/netsetup"
)

// foundAddress is an address of a guest that runs, and who says so.
type foundAddress struct {
	Address string `json:"address"`
	Source  string `json:"source"` // one of those below
}

// Who knows addresses, the best first.
const (
	fromLease     = "lease"     // the network's DHCP service lent it to the guest
	fromAgent     = "agent"     // the guest agent says so
	fromNeighbour = "neighbour" // the host has met it there (ip-neighbour(8))
)

// seen is what is known of the network, for all machines at once.
type seen struct {
	netsetup.Seen
	networks map[string]seenNetwork
}

// seenNetwork is a network that is up.
type seenNetwork struct {
	*config.Network
	reserved map[string]netsetup.Reserved // by "MACHINE/NIC"
	lent     []netsetup.GivenOut
}

// see finds what is known of the network as far as machines that run need it.
func (a *app) see(looks []look) seen {
	s := seen{networks: map[string]seenNetwork{}}
	if !slices.ContainsFunc(looks, look.active) || a.user {
		return s
	}
	// For show: what cannot be asked is not told.
	s.Seen, _ = netsetup.See()
	for _, l := range looks {
		if m := l.machine(); m != nil && l.active() {
			for _, n := range m.NICs {
				a.seeNetwork(s.networks, n.Network)
			}
		}
	}
	return s
}

func (a *app) seeNetwork(networks map[string]seenNetwork, name string) {
	if _, known := networks[name]; known || name == "" {
		return
	}
	n := seenNetwork{Network: readJSON[config.Network](a.paths.NetworkJSON(name))}
	if n.Network != nil {
		n.reserved, n.lent = a.reserved(name), a.lent(name)
	}
	networks[name] = n
}

// addresses are those of a card of a machine that runs, those of the best source
// first. told is what the guest agent says.
func (s seen) addresses(l look, n config.NIC, told []guestagent.Interface) []foundAddress {
	all := []foundAddress{}
	add := func(source string, ips []netip.Addr) {
		for _, ip := range netsetup.Presentable(ips) {
			if !slices.ContainsFunc(all, func(f foundAddress) bool { return f.Address == ip.String() }) {
				all = append(all, foundAddress{ip.String(), source})
			}
		}
	}
	if !l.active() {
		return all
	}
	add(fromLease, s.lent(l, n))
	for _, i := range told {
		if strings.EqualFold(i.MAC, string(n.MAC)) {
			add(fromAgent, i.Addresses)
		}
	}
	if device := s.device(n); device != "" {
		add(fromNeighbour, s.Addresses(device, n.MAC))
	}
	return all
}

// device is the interface behind which the host meets a card, "" where it never
// does.
func (s seen) device(n config.NIC) string {
	if network := s.networks[n.Network]; network.Network != nil {
		return network.Device()
	}
	return n.Bridge + n.Tap // one of them at most
}

// lent are the addresses that a machine has been given since it was started.
// Those that it asked for before are lent to it still, but it may not know.
func (s seen) lent(l look, n config.NIC) []netip.Addr {
	network := s.networks[n.Network]
	if network.Network == nil || l.record == nil {
		return nil
	}
	var since time.Time
	if l.record.Incoming == nil { // else it goes on with what it had
		since = l.record.Started.Truncate(time.Second)
	}
	reserved := network.reserved[l.vm.Name+"/"+n.Name].Addresses()
	var ips []netip.Addr
	for _, g := range network.lent {
		given := g.Expires.Add(-time.Duration(network.LeaseTime))
		if slices.Contains(reserved, g.Address) && (g.Expires.IsZero() || !given.Before(since)) && (g.MAC == "" || strings.EqualFold(g.MAC, string(n.MAC))) {
			ips = append(ips, g.Address)
		}
	}
	return ips
}

// told is what a machine's guest agent says.
type told struct {
	interfaces []guestagent.Interface
	guest      *guestagent.Guest // nil where it was not asked, or did not answer
}

// askAgent is what a machine's guest agent says of its interfaces and, with
// guest, of all else; nothing where none answers in time: it is the guest's, and
// may do as it likes.
func (a *app) askAgent(ctx context.Context, l look, guest bool) (t told) {
	if l.state != running {
		return t
	}
	if listens, err := a.agentListens(ctx, l); err != nil || !listens {
		return t
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	agent, err := a.dialAgent(ctx, l.vm.Name)
	if err != nil {
		return t
	}
	defer agent.Close()
	// What it does not say is not shown.
	t.interfaces, _ = agent.Interfaces(ctx)
	if !guest || ctx.Err() != nil {
		return t
	}
	if g, err := agent.Describe(ctx); err == nil || g.AgentVersion != "" {
		t.guest = &g
	}
	return t
}

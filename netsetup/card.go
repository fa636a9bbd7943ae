package netsetup

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
)

// CardState is what one card of a machine needs of the host: a TAP interface on
// a bridge, for as long as the machine runs.
type CardState struct {
	Interface string // the TAP
	AltName   string // for people
	Bridge    string // that it is put on
	Queues    int
	MTU       int  // bytes; 0: the bridge's
	VLAN      int  // 0: none
	Forward4  bool // packets are forwarded to it even if its network is isolated
	Forward6  bool
	RateIn    int64  // limit of what goes to the guest, bytes per second; 0: none
	RateOut   int64  // limit of what comes from it
	Localnet  bool   // the host reaches it from its loopback addresses (127.0.0.0/8) by a forward
	Rules     string // for nft: replaces the card's table
}

// Lease are the addresses that belong to a card; zero ones are not known.
type Lease struct {
	IP4, IP6 netip.Addr
}

// Addresses are those of a lease that are known.
func (l Lease) Addresses() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{l.IP4, l.IP6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// TapPrefix is what the names of all TAP interfaces of ours begin with.
const TapPrefix = "vmt"

// cardPrefix is what the alternative names of those begin with.
const cardPrefix = "vmctl-"

// TapName is the TAP interface of a card.
func TapName(vm, nic string) string { return config.InterfaceName(TapPrefix, vm, nic) }

// Card is what a card on a bridge needs. network is nil for a card on a bridge
// that is not one of ours, of which nothing is known but its name.
func Card(vm string, nic config.NIC, network *config.Network, lease Lease) CardState {
	s := CardState{
		Interface: TapName(vm, nic.Name),
		AltName:   cardPrefix + vm + "-" + nic.Name,
		Bridge:    nic.Bridge,
		Queues:    nic.Queues,
		MTU:       nic.MTU,
		VLAN:      nic.VLAN,
		RateIn:    int64(nic.RateIn),
		RateOut:   int64(nic.RateOut),
	}
	if network != nil {
		s.Bridge = network.Device()
		if s.VLAN == 0 {
			s.VLAN = network.VLAN
		}
	}
	for _, f := range nic.Forward {
		s.Forward4 = s.Forward4 || forward(f, lease.IP4) != ""
		s.Forward6 = s.Forward6 || forward(f, lease.IP6) != ""
		s.Localnet = s.Localnet || forward(f, lease.IP4) != "" && (every(f) || fromLoopback(f))
	}
	table := cardTable(s.Interface)
	s.Rules = removeCard(s.Interface) + cardFilter(table, s.Interface, nic, network, lease) + cardForwards(table, nic, network, lease)
	return s
}

// cardTable is the name of a card's tables.
func cardTable(tap string) string {
	return "vmctl_card_" + strings.NewReplacer("-", "_", ".", "_").Replace(tap)
}

// removeCard is a transaction after which a card's tables are not there.
func removeCard(tap string) string {
	return removeTable("bridge", cardTable(tap)) + removeTable("inet", cardTable(tap))
}

// maySpoof says whether the guest may send under another's name.
func maySpoof(nic config.NIC) bool { return nic.AntiSpoofing != nil && !*nic.AntiSpoofing }

// cardFilter is the table that stands between the guest and the bridge. Frames
// of a guest come in by its TAP before any other of the host's filters sees
// them.
func cardFilter(table, tap string, nic config.NIC, network *config.Network, lease Lease) string {
	if maySpoof(nic) {
		return ""
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "\t\t"+format+"\n", args...) }
	b.WriteString("\tchain prerouting {\n")
	line("type filter hook prerouting priority -300; policy accept;")
	line("iifname != %q accept", tap)
	line("ether saddr != %s drop", nic.MAC)
	line("arp saddr ether != %s drop", nic.MAC)
	// No guest gives addresses to others.
	line("ether type ip udp sport 67 drop")
	line("ether type ip6 udp sport 547 drop")
	line("icmpv6 type { nd-router-advert, nd-redirect } drop")
	if lease.IP4.IsValid() {
		// 0.0.0.0 asks by DHCP for the address, and by ARP whether it is free.
		line("ip saddr != { 0.0.0.0, %s } drop", lease.IP4)
		line("arp saddr ip != { 0.0.0.0, %s } drop", lease.IP4)
	}
	if network != nil {
		if p := network.Prefix6(); p.IsValid() {
			line("ip6 saddr != { ::, fe80::/10, %s } drop", p)
			line("ip6 saddr %s drop", network.Gateway6())
			// The advertised address (RFC 4861, 4.4); nft has no word for it before 1.0.8.
			line("icmpv6 type nd-neighbor-advert @th,64,128 0x%x drop", network.Gateway6().AsSlice())
		}
	}
	b.WriteString("\t}\n")
	return fmt.Sprintf("table bridge %s {\n%s}\n", table, b.String())
}

// cardForwards is the table of the host's ports that reach the guest.
func cardForwards(table string, nic config.NIC, network *config.Network, lease Lease) string {
	if network == nil || len(nic.Forward) == 0 {
		return ""
	}
	var outside, inside, source strings.Builder
	for _, to := range []netip.Addr{lease.IP4, lease.IP6} {
		for _, f := range nic.Forward {
			rule := forward(f, to)
			if rule == "" {
				continue
			}
			fmt.Fprintf(&inside, "\t\t%s\n", rule)
			// Nobody outside has a loopback address, whatever a packet says.
			if !fromLoopback(f) {
				fmt.Fprintf(&outside, "\t\t%s\n", rule)
			}
		}
		if !to.IsValid() {
			continue
		}
		// A guest that reaches itself by the host's address has to get the answer
		// from there, and none can answer a loopback address. In an isolated
		// network there is no router for others either.
		from := fmt.Sprintf("%s saddr %s ", family(to), to)
		if to.Is4() {
			from = fmt.Sprintf("ip saddr { 127.0.0.0/8, %s } ", to)
		}
		if network.Isolated {
			from = ""
		}
		fmt.Fprintf(&source, "\t\t%s%s daddr %s ct status dnat masquerade\n", from, family(to), to)
	}
	return fmt.Sprintf(`table inet %s {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
%s	}
	chain output {
		type nat hook output priority -100; policy accept;
%s	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
%s	}
}
`, table, outside.String(), inside.String(), source.String())
}

// fromLoopback says whether a port is given to the guest on a loopback address
// alone.
func fromLoopback(f config.Forward) bool {
	host, err := netip.ParseAddr(f.Address)
	return err == nil && host.IsLoopback()
}

// every says whether a port is given to the guest on every address of the host.
func every(f config.Forward) bool {
	host, err := netip.ParseAddr(f.Address)
	return f.Address == "" || err == nil && host.IsUnspecified()
}

// forward is the rule of one port, "" where the guest has no address of the
// host's protocol.
func forward(f config.Forward, to netip.Addr) string {
	if !to.IsValid() {
		return ""
	}
	match := "fib daddr type local"
	if f.Address != "" {
		host, err := netip.ParseAddr(f.Address)
		if err != nil || host.Is4() != to.Is4() {
			return ""
		}
		if !host.IsUnspecified() {
			match = fmt.Sprintf("%s daddr %s", family(host), host)
		}
	}
	protocol := "ipv4"
	if to.Is6() {
		protocol = "ipv6"
		if every(f) {
			match += " ip6 daddr != ::1" // which cannot be forwarded: refused, a client tries 127.0.0.1
		}
	}
	return fmt.Sprintf("meta nfproto %s %s %s dport %d dnat %s to %s", protocol, match, f.Protocol, f.HostPort, family(to),
		netip.AddrPortFrom(to, uint16(f.GuestPort)))
}

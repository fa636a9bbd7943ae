package netsetup

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
)

// CardState is what one card of a machine needs of the host: a TAP interface on
// a bridge or a macvtap interface, for as long as the machine runs, or a TAP
// interface that is there.
type CardState struct {
	Interface string     // its name
	AltName   string     // for people
	Bridge    string     // that a TAP is put on; "" for none
	Lower     string     // that a macvtap is put on; "" for none
	Mode      string     // of the macvtap
	MAC       config.MAC // of the guest
	Queues    int
	MTU       int  // bytes, of the guest, and on a bridge of it alone; 0: that of what it is put on
	VLAN      int  // 0: none
	Forward4  bool // packets are forwarded to it even if its network is isolated
	Forward6  bool
	Down      bool   // no frame passes, in either direction
	RateIn    int64  // limit of what goes to the guest, bytes per second; 0: none
	RateOut   int64  // limit of what comes from it
	Localnet  bool   // the host reaches it from its loopback addresses (127.0.0.0/8) by a forward
	Filter    string // for nft: adds what it may send and get, "" for all
	Forwards  string // for nft: the card's table of ports of the host, "" for none
	Rules     string // for nft: replaces both
	Proxies   []Proxy
	domain    string // of its addresses, on a bridge of the host's own
	fixed     []netip.Addr
}

// Lease are the addresses that belong to a card; zero ones are not known.
type Lease struct {
	IP4, IP6 netip.Addr
}

// Addresses are those of a lease that are known.
func (l Lease) Addresses() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{l.IP4, l.IP6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// TapPrefix is what the names of all TAP and macvtap interfaces of ours begin
// with.
const TapPrefix = "vmt"

// cardPrefix is what the alternative names of those begin with.
const cardPrefix = "vmctl-"

// Interface is the host's interface of a card, "" where it has none.
func Interface(vm string, nic config.NIC) string {
	switch {
	case nic.Tap != "":
		return nic.Tap
	case nic.HasInterface():
		return TapName(vm, nic.Name)
	}
	return ""
}

// TapName is the interface that is made for a card.
func TapName(vm, nic string) string { return config.InterfaceName(TapPrefix, vm, nic) }

// Card is what a card with an interface needs. network is nil for a card that is
// in none of ours. On a bridge of the host's own, which on is, lease is what the
// definition fixes.
func Card(vm string, nic config.NIC, network *config.Network, lease Lease, on HostBridge) CardState {
	s := CardState{
		Interface: Interface(vm, nic),
		AltName:   cardPrefix + vm + "-" + nic.Name,
		Bridge:    nic.Bridge,
		Lower:     nic.Macvtap,
		Mode:      nic.MacvtapMode,
		MAC:       nic.MAC,
		Queues:    nic.Queues,
		MTU:       nic.MTU,
		VLAN:      nic.VLAN,
		Down:      nic.Link == "down",
		RateIn:    int64(nic.RateIn),
		RateOut:   int64(nic.RateOut),
	}
	if network != nil {
		s.Bridge, s.VLAN = network.Device(), cmp.Or(nic.VLAN, network.VLAN)
	}
	if s.Bridge == "" {
		return s // past all that filters bridges
	}
	if network != nil {
		s.Proxies = proxies(nic, lease)
	}
	for _, f := range nic.Forward {
		s.Forward4 = s.Forward4 || forward(f, lease.IP4) != ""
		s.Forward6 = s.Forward6 || forward(f, lease.IP6) != ""
		s.Localnet = s.Localnet || forward(f, lease.IP4) != "" && (every(f) || fromLoopback(f))
	}
	var host *hostBridge
	if bridge, vlan := hostBridgeOf(nic, network); bridge != "" {
		host = &hostBridge{domain(bridge, vlan, on.PVID), on.Addresses}
		s.domain, s.fixed = host.domain, lease.Addresses()
	}
	s.Filter = cardFilter(s.Interface, nic, network, lease, host)
	s.Forwards = cardForwards(cardTable(s.Interface), nic, network, lease)
	s.Rules = removeFilter(s.Interface) + s.Filter + removeTable("inet", cardTable(s.Interface)) + s.Forwards
	return s
}

// hostBridgeOf is the bridge of the host's own that a card is on, "" for none, and
// the VLAN of it.
func hostBridgeOf(nic config.NIC, network *config.Network) (bridge string, vlan int) {
	if network == nil {
		return nic.Bridge, nic.VLAN
	}
	return network.Bridge, cmp.Or(nic.VLAN, network.VLAN)
}

// FixedLease is what the definition of a card fixes.
func FixedLease(nic config.NIC) (l Lease) {
	if nic.Address.Is4() {
		l.IP4 = nic.Address
	} else {
		l.IP6 = nic.Address
	}
	return l
}

// cardTable is the name of the table of a card's ports of the host.
func cardTable(tap string) string { return "vmctl_card_" + cardID(tap) }

// cardID is what ends the names of all that is of one card in nft.
func cardID(tap string) string { return strings.NewReplacer("-", "_", ".", "_").Replace(tap) }

// maySpoof says whether the guest may send under another's name.
func maySpoof(nic config.NIC) bool { return nic.AntiSpoofing != nil && !*nic.AntiSpoofing }

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
	if !to.IsValid() || f.IsProxied() {
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
			match += " ip6 daddr != ::1" // which cannot be forwarded ([Proxy]): refused, a client tries 127.0.0.1
		}
	}
	return fmt.Sprintf("meta nfproto %s %s %s dport %d dnat %s to %s", protocol, match, f.Protocol, f.HostPort, family(to),
		netip.AddrPortFrom(to, uint16(f.GuestPort)))
}

// graceTime is how long connections that nothing is known of pass, after a card
// has got its first lists.
const graceTime = "2m"

// Refilter replaces all rules of a card that is plugged in, in one transaction:
// what it may send and get, the ports of the host that reach it, and its limit.
// Flows that are known stay known; where none were, as it had no lists or somebody
// has removed all tables of the host, connections pass for a while in which one
// packet makes them known.
func Refilter(s CardState) error {
	filter := removeFilter(s.Interface) + s.Filter
	if strings.Contains(s.Filter, "set flows4_out") {
		known, err := hasSet(cardsTable, setName("flows4_out", s.Interface))
		if err != nil {
			return err
		}
		if known {
			filter = removeChains(s.Interface) + s.Filter
		} else {
			filter += fmt.Sprintf("add element bridge %s %s { %s timeout %s }\n", cardsTable, setName("grace", s.Interface), s.MAC, graceTime)
		}
	}
	return s.hold(filter + removeTable("inet", cardTable(s.Interface)) + s.Forwards)
}

// hold applies a card's rules, with its limit.
func (s CardState) hold(rules string) error {
	if err := apply(rules + linkRules(s.Interface) + limitRules(s)); err != nil {
		return err
	}
	if s.Filter == "" {
		return removeCards("bridge", doneChain)
	}
	return nil
}

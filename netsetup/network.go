package netsetup

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
)

// State is what a network needs of the host.
type State struct {
	Bridge    string         // the interface
	Own       bool           // made by us, and removed
	AltName   string         // alternative name, for people
	MTU       int            // bytes; of an own bridge
	Addresses []netip.Prefix // of the host on it
	Forward4  bool           // packets are forwarded to and from it
	Forward6  bool
	VXLAN     *VXLAN
	Rules     string // for nft: replaces the network's table
	Remove    string // for nft: removes it
}

// VXLAN is the interface that ties the bridge to other hosts'.
type VXLAN struct {
	Interface string
	ID, Port  int
	Local     netip.Addr
	Peers     []netip.Addr
	MTU       int // bytes
}

// Network is what a network needs of the host, beside others of ours that are up.
func Network(n *config.Network, others ...*config.Network) State {
	s := State{Bridge: n.Device(), Own: n.Bridge == ""}
	if !s.Own {
		return s
	}
	s.AltName = "vmctl-network-" + n.Name
	s.MTU = n.MTU
	if p := n.Prefix4(); p.IsValid() {
		s.Addresses = append(s.Addresses, netip.PrefixFrom(n.Gateway, p.Bits()))
		s.Forward4 = !n.Isolated
	}
	if p := n.Prefix6(); p.IsValid() {
		s.Addresses = append(s.Addresses, netip.PrefixFrom(n.Gateway6(), p.Bits()))
		s.Forward6 = !n.Isolated
	}
	if v := n.VXLAN; v.ID != 0 {
		s.VXLAN = &VXLAN{Interface: config.InterfaceName("vmvx", n.Name), ID: v.ID, Port: v.Port, Local: v.Local, Peers: v.Peers, MTU: n.MTU}
	}
	s.Rules, s.Remove = networkRules(n, others), removeTable("inet", networkTable(n.Name))
	return s
}

// networkTable is the name of a network's table. nft takes no hyphens, and names
// have no underscores.
func networkTable(network string) string {
	return "vmctl_network_" + strings.ReplaceAll(network, "-", "_")
}

// replaceTable is a transaction after which a table has the content, whatever
// was in it before.
func replaceTable(family, table, content string) string {
	return fmt.Sprintf("add table %[1]s %[2]s\ndelete table %[1]s %[2]s\ntable %[1]s %[2]s {\n%[3]s}\n", family, table, content)
}

// removeTable is a transaction after which a table is not there, whether it was
// before or not.
func removeTable(family, table string) string {
	return fmt.Sprintf("add table %[1]s %[2]s\ndelete table %[1]s %[2]s\n", family, table)
}

// networkRules is the table of a network with an own bridge. It drops what must
// not pass, and accepts nothing for others: another table may still drop it.
func networkRules(n *config.Network, others []*config.Network) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	bridge := fmt.Sprintf("%q", n.Device())
	p4, p6 := n.Prefix4(), n.Prefix6()
	near := nearby(n, others)

	// A bridge by which the host reaches guests from its loopback addresses
	// (route_localnet) would let guests reach what listens there, too.
	line("\tchain prerouting {")
	line("\t\ttype filter hook prerouting priority raw; policy accept;")
	line("\t\tiifname %[1]s ip daddr 127.0.0.0/8 drop", bridge)
	line("\t\tiifname %[1]s ip saddr 127.0.0.0/8 drop", bridge)
	line("\t}")

	line("\tchain input {")
	line("\t\ttype filter hook input priority filter; policy accept;")
	// The service answers the network's guests and the host alone.
	for _, address := range Gateways(n) {
		line("\t\tiifname != { %s, \"lo\" } %s daddr %s meta l4proto { tcp, udp } th dport 53 drop", bridge, family(address), address)
	}
	if v := n.VXLAN; v.ID != 0 {
		line("\t\t%s", strangers(v))
	}
	// Guests of other networks have the host's address in theirs.
	for _, address := range Gateways(n) {
		if len(near.kept) > 0 {
			line("\t\tiifname { %s } %s daddr %s counter drop", quoted(near.kept), family(address), address)
		}
	}
	if n.Isolated {
		line("\t\tiifname %s ct state established,related accept", bridge)
		line("\t\tiifname %s meta l4proto { icmp, icmpv6 } accept", bridge)
		line("\t\tiifname %s meta l4proto { tcp, udp } th dport { 53, 67, 547 } accept", bridge)
		line("\t\tiifname %s drop", bridge)
	}
	line("\t}")

	line("\tchain forward {")
	line("\t\ttype filter hook forward priority filter; policy accept;")
	line("\t\tiifname %[1]s oifname %[1]s accept", bridge)
	line("\t\toifname %s ct state established,related accept", bridge)
	line("\t\toifname %s ct status dnat accept", bridge)
	if len(near.allowed) > 0 {
		line("\t\tiifname { %s } oifname %s accept", quoted(near.allowed), bridge)
	}
	line("\t\toifname %s drop", bridge)
	if n.Isolated {
		// Of the guests' packets, only answers to who came by a forward go out.
		line("\t\tiifname %s ct direction reply ct status dnat accept", bridge)
		line("\t\tiifname %s drop", bridge)
	} else {
		// What claims to come from elsewhere does not.
		if p4.IsValid() {
			line("\t\tiifname %s ip saddr != %s drop", bridge, p4)
		}
		if p6.IsValid() {
			line("\t\tiifname %s ip6 saddr != %s drop", bridge, p6)
		}
	}
	line("\t}")

	if nat4, nat6 := n.NAT && p4.IsValid(), n.NAT6 && p6.IsValid(); nat4 || nat6 {
		line("\tchain postrouting {")
		line("\t\ttype nat hook postrouting priority srcnat; policy accept;")
		inside := bridge
		if len(near.open) > 0 {
			inside = "{ " + quoted(append([]string{n.Device()}, near.open...)) + " }"
		}
		if nat4 {
			line("\t\tip saddr %s oifname != %s ip daddr != 224.0.0.0/4 masquerade", p4, inside)
		}
		if nat6 {
			line("\t\tip6 saddr %s oifname != %s ip6 daddr != ff00::/8 masquerade", p6, inside)
		}
		line("\t}")
	}
	return replaceTable("inet", networkTable(n.Name), b.String())
}

// near are the bridges of other networks.
type near struct {
	allowed []string // whose guests may reach this one's
	kept    []string // whose guests may not
	open    []string // whose guests this one's may reach, under their own addresses
}

func nearby(n *config.Network, others []*config.Network) near {
	var found near
	for _, o := range others {
		switch {
		case o.Name == n.Name || o.Bridge != "":
			continue
		case slices.Contains(n.AllowFrom, o.Name):
			found.allowed = append(found.allowed, o.Device())
		default:
			found.kept = append(found.kept, o.Device())
		}
		if slices.Contains(o.AllowFrom, n.Name) {
			found.open = append(found.open, o.Device())
		}
	}
	return found
}

// Settle brings the rules of networks that are up into line with which of them
// there are, in one transaction.
func Settle(up []*config.Network) error {
	var b strings.Builder
	for _, n := range up {
		b.WriteString(Network(n, up...).Rules)
	}
	return apply(b.String())
}

// strangers drops packets of the network's VXLAN that are not from a peer: the
// number is in the last three bytes of the first eight after UDP's header
// (RFC 7348, 5).
func strangers(v config.VXLAN) string {
	rule := fmt.Sprintf("udp dport %d @th,96,24 0x%x", v.Port, v.ID)
	if len(v.Peers) > 0 {
		var peers []string
		for _, p := range v.Peers {
			peers = append(peers, p.String())
		}
		rule += fmt.Sprintf(" %s saddr != { %s }", family(v.Local), strings.Join(peers, ", "))
	}
	return rule + " drop"
}

// Gateways are the host's addresses in the network.
func Gateways(n *config.Network) []netip.Addr {
	var all []netip.Addr
	for _, a := range []netip.Addr{n.Gateway, n.Gateway6()} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}

// family is nft's name of an address' protocol.
func family(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}

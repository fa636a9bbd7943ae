package netsetup

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vmctl/vmctl/config"
)

// What guests may send and get is decided in one table for all cards, between
// their TAPs and the bridges. Maps lead each frame to the chains of its card, so
// that a frame takes no longer the more cards there are. Nor does a change of a
// card's rules: nft asks the kernel about every table of the host before it changes
// anything, and the kernel looks through all of them for each answer. For the same
// reason no set here has intervals, whose elements nft asks for.

// cardsTable is that table, of the family bridge.
const cardsTable = "vmctl_cards"

// doneChain lets a frame through. All that a card has in the table ends in it, so
// that the kernel refuses to remove the table while there are cards ([removeCards]).
const doneChain = "done"

// Who has which IPv6 address. A guest makes addresses itself (RFC 4862), so that
// they are not known before. Those with its Ethernet address in them (EUI-64) are
// its own in any case, as is the one that DHCPv6 gives it, and no other's are. Any
// other belongs to whom it is seen of first, for as long as that sends from it once
// in ownedTime. That is sound for addresses that nobody can guess (RFC 7217,
// RFC 8981); one that somebody writes into a guest by hand is nobody's before.
//
// On a bridge of the host's own, whose addresses we do not give out, IPv4 goes the
// same way. There a guest has its address from a DHCP server that may give it to
// another soon, so that it is kept for less long, and none has many. Who has an
// address is known for each such bridge and VLAN by itself: two may have the same.
const (
	ownedTime  = "2h"
	ownedTime4 = "30m"
	// So many may a guest make at once, and so many more per minute or hour: without
	// end, they would fill the sets, or leave none to others.
	newAddresses  = "rate over 1/minute burst 32 packets"
	newAddresses4 = "rate over 1/hour burst 16 packets"
	// For so long it is known how many a guest has made: until it may make all of
	// them again.
	madeTime  = ownedTime
	madeTime4 = "17h"
	maxOwned  = 65536
)

// owned are the addresses of a protocol that guests have made themselves, or have
// from elsewhere.
type owned struct {
	suffix string // of its sets
	typ    string // of an address, in nft's words
	time   string
	limit  string
	made   string
}

// owned6 are those of IPv6 on bridges of ours.
func owned6() owned { return owned{"6", "typeof @nh,64,128", ownedTime, newAddresses, madeTime} } // raw 128 bits are an address, in whatever header

// ownedOn are those on a bridge of the host's own.
func ownedOn(domain string) (v4, v6 owned) {
	v6 = owned6()
	v6.suffix += "_" + domain
	return owned{"4_" + domain, "type ipv4_addr", ownedTime4, newAddresses4, madeTime4}, v6
}

// fixed is the set of those that definitions give to cards.
func (o owned) fixed() string { return "fixed" + o.suffix }

// owners is the set of addresses with the Ethernet addresses of who has them: for a
// time, or, by a definition, for as long as the card is there.
func (o owned) owners() string { return "owners" + o.suffix }

// sets are those that know whose each address is.
func (o owned) sets() string { return o.ownersSet("") + dynamicSet("owned"+o.suffix, o.typ, "") }

func (o owned) ownersSet(elements string) string {
	mac := " . ether_addr"
	if strings.HasPrefix(o.typ, "typeof") {
		mac = " . ether saddr"
	}
	return dynamicSet(o.owners(), o.typ+mac, elements)
}

// fixedSets are the sets of those that definitions give to cards, and of who has
// them, with what one's gives it.
func (o owned) fixedSets(a netip.Addr, mac config.MAC) string {
	address, owner := "", ""
	if a.IsValid() {
		address = elements(o.element(a))
		owner = elements(o.element(a) + " . " + string(mac))
	}
	return o.ownersSet(owner) + dynamicSet("owned"+o.suffix, o.typ, "") + fmt.Sprintf("\tset %s {\n\t\t%s\n%s\t}\n", o.fixed(), o.typ, address)
}

func elements(element string) string { return fmt.Sprintf("\t\telements = { %s }\n", element) }

// element is an address in nft's words.
func (o owned) element(a netip.Addr) string {
	if a.Is4() {
		return a.String()
	}
	return "0x" + strings.TrimLeft(hex.EncodeToString(a.AsSlice()), "0") // as it prints them
}

// names are those of all sets on a bridge of the host's own.
func (o owned) names() []string { return []string{o.owners(), "owned" + o.suffix, o.fixed()} }

// dynamicSet is a set that rules add to, with elements that stay.
func dynamicSet(name, typ, elements string) string {
	return fmt.Sprintf("\tset %s {\n\t\t%s\n\t\tsize %d\n\t\tflags dynamic,timeout\n%s\t}\n", name, typ, maxOwned, elements)
}

// rules drop a frame with an address in a field that is another's.
func (o owned) rules(field string) []string {
	renew := fmt.Sprintf("update @owners%[1]s { %[2]s . ether saddr timeout %[3]s } update @owned%[1]s { %[2]s timeout %[3]s }", o.suffix, field, o.time)
	return []string{
		fmt.Sprintf("%s . ether saddr @owners%s %s return", field, o.suffix, renew),
		fmt.Sprintf("%s @owned%s counter drop", field, o.suffix),
		fmt.Sprintf("update @makers%s { ether saddr timeout %s limit %s } counter drop", o.suffix[:1], o.made, o.limit),
		renew,
	}
}

// A bridge does not pass on what is for its neighbour alone (IEEE 802.1D, 7.12.6):
// some of that it gives to the host as if it had come from an interface of the
// host's own, and all of it tells where a sender is, before any filter of bridges
// sees it. So it is dropped as it comes from the card, whatever else a guest may
// send.

// linkChain drops that.
const linkChain = "link"

func cardLinkChain(tap string) string { return linkChain + "_" + cardID(tap) }

// linkRules is a transaction after which a card, whose interface is there, sends
// nothing that is for its neighbour alone. An interface has a hook of its own, in a
// table that all cards share as they share that of bridges.
func linkRules(tap string) string {
	return removeLink(tap) + fmt.Sprintf(`flush chain netdev %[1]s %[2]s
table netdev %[1]s {
	chain %[2]s {
		ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 counter drop
	}
	chain %[3]s {
		type filter hook ingress device %[4]q priority -450; policy accept;
		goto %[2]s
	}
}
`, cardsTable, linkChain, cardLinkChain(tap), tap)
}

// removeLink is a transaction after which the chain of [linkRules] is not there.
// Before Linux 6.16 it went with the interface.
func removeLink(tap string) string {
	return fmt.Sprintf(`table netdev %[1]s {
	chain %[2]s {
	}
	chain %[3]s {
	}
}
delete chain netdev %[1]s %[3]s
`, cardsTable, linkChain, cardLinkChain(tap))
}

// cardMap leads the frames of a card to its chain: all that the hook sees of it.
type cardMap struct{ name, hook, match, priority, chain string }

func cardMaps() []cardMap {
	return []cardMap{
		{"guards", "prerouting", "iifname", "-300", "guard"}, // before any other of the host's filters
		{"lists_out", "prerouting", "iifname", "-150", "list_out"},
		{"lists_in", "postrouting", "oifname", "-150", "list_in"},
	}
}

// sharedFilter is what the table has beside cards. It is written with each card's,
// which changes nothing where it is there.
func sharedFilter() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("table bridge %s {", cardsTable)
	b.WriteString(owned6().sets() + dynamicSet("makers6", "type ether_addr", "") + dynamicSet("makers4", "type ether_addr", ""))
	chains := []struct{ name, rules string }{{doneChain, "\t\taccept\n"}, {"fragment6", fragment6}}
	for _, c := range []struct{ name, address string }{{"own_source6", "@nh,64,128"}, {"own_target6", "@th,64,128"}} {
		chains = append(chains, struct{ name, rules string }{c.name, "\t\t" + strings.Join(owned6().rules(c.address), "\n\t\t") + "\n"})
	}
	for _, m := range cardMaps() {
		line("\tmap %s {\n\t\ttype ifname : verdict\n\t}", m.name)
		chains = append(chains, struct{ name, rules string }{m.name, fmt.Sprintf("\t\t%s vmap @%s\n", m.match, m.name)})
		line("\tchain %s {\n\t\ttype filter hook %s priority %s; policy accept;\n\t}", m.name, m.hook, m.priority)
	}
	for _, c := range chains {
		line("\tchain %s {\n\t}", c.name)
	}
	line("}")
	for _, c := range chains {
		line("flush chain bridge %s %s", cardsTable, c.name)
	}
	line("table bridge %s {", cardsTable)
	for _, c := range chains {
		line("\tchain %s {\n%s\t}", c.name, c.rules)
	}
	line("}")
	return b.String()
}

// fragment6 drops fragments of IPv6 that hide from rules what they are of: the first
// one has all headers, up to the one that says it (RFC 7112), and neighbour
// discovery is in none (RFC 6980).
const fragment6 = `		icmpv6 type { 133, 134, 135, 136, 137 } counter drop
		frag frag-off != 0x0 return
		@th,0,64 != 0x0 return
		counter drop
`

// cardChains are the names of all chains that a card may have, each before those
// that it leads to.
func cardChains(tap string) []string {
	var names []string
	for _, d := range directions(tap, config.Lists{}, nil) {
		for _, name := range []string{"list", "known", "keep", "pass"} {
			names = append(names, d.chainName(name))
		}
	}
	names = append(names, guardChain(tap), targetChain(tap))
	for _, c := range ownChains() {
		names = append(names, c.name+"_"+cardID(tap))
	}
	return names
}

// ownChains are those of a card on a bridge of the host's own that know its addresses
// from others', each with the field that it looks at.
func ownChains() []struct{ name, field string } {
	return []struct{ name, field string }{
		{"own_source4", "ip saddr"}, {"own_arp4", "arp saddr ip"}, {"own_source6", "@nh,64,128"}, {"own_target6", "@th,64,128"},
	}
}

func guardChain(tap string) string  { return "guard_" + cardID(tap) }
func targetChain(tap string) string { return "target6_" + cardID(tap) }

// removeChains is a transaction after which the chains of cards are not there, whether
// they were before or not; their flows stay known.
func removeChains(taps ...string) string {
	var b strings.Builder
	b.WriteString(sharedFilter())
	for _, tap := range taps {
		removeOwnChains(&b, tap)
	}
	return b.String()
}

func removeOwnChains(b *strings.Builder, tap string) {
	line := func(format string, args ...any) { fmt.Fprintf(b, format+"\n", args...) }
	all := cardChains(tap)
	for _, name := range all {
		line("add chain bridge %s %s", cardsTable, name)
	}
	for _, m := range cardMaps() {
		line("add element bridge %s %s { %q : jump %s_%s }", cardsTable, m.name, tap, m.chain, cardID(tap))
		line("delete element bridge %s %s { %q }", cardsTable, m.name, tap)
	}
	for _, name := range all {
		line("flush chain bridge %s %s", cardsTable, name)
	}
	for _, name := range all {
		line("delete chain bridge %s %s", cardsTable, name)
	}
}

// removeFilter is a transaction after which nothing of cards is in the table.
func removeFilter(taps ...string) string {
	var b strings.Builder
	b.WriteString(removeChains(taps...))
	for _, tap := range taps {
		fmt.Fprintf(&b, "table bridge %s {\n%s}\n", cardsTable, flowSets(tap))
		for _, name := range flowSetNames(tap) {
			fmt.Fprintf(&b, "delete set bridge %s %s\n", cardsTable, name)
		}
	}
	return b.String()
}

// cardFilter adds what stands between the guest and the bridge; "" for nothing.
func cardFilter(tap string, nic config.NIC, network *config.Network, lease Lease, host *hostBridge) string {
	content := cardLists(tap, nic, network)
	lists := content != ""
	if !maySpoof(nic) {
		content += antiSpoofing(tap, nic, network, lease, host)
	}
	if content == "" {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table bridge %s {\n%s}\n", cardsTable, content)
	for _, m := range cardMaps() {
		if m.chain == "guard" && !maySpoof(nic) || m.chain != "guard" && lists {
			fmt.Fprintf(&b, "add element bridge %s %s { %q : jump %s_%s }\n", cardsTable, m.name, tap, m.chain, cardID(tap))
		}
	}
	return b.String()
}

// domain names a bridge of the host's own, and a VLAN of it, in names of sets. pvid is
// the VLAN there of who has none of its own, so that this has no other name.
func domain(bridge string, vlan, pvid int) string {
	if vlan == pvid {
		vlan = 0
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d", bridge, vlan))
	return hex.EncodeToString(sum[:6])
}

// antiSpoofing drops what a guest sends under another's name.
func antiSpoofing(tap string, nic config.NIC, network *config.Network, lease Lease, host *hostBridge) string {
	var lines []string
	line := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	drop := func(format string, args ...any) { line(format+" counter drop", args...) }
	drop("ether saddr != %s", nic.MAC)
	drop("arp saddr ether != %s", nic.MAC)
	// What is in any other frame the rules below do not see: packets in one with a
	// tag, be it of VLAN 0, which means none, or with a header of IEEE 802.2. By
	// RARP (8035) a machine says where its card is, after it has moved.
	drop("ether type != { arp, ip, ip6, 0x8035 }")
	line("exthdr frag exists jump fragment6")
	// No guest gives addresses to others.
	drop("ether type ip udp sport 67")
	drop("ether type ip6 udp sport 547")
	// Whom DHCP gives an address, or takes it from, a request says itself: how long
	// an Ethernet address is, and which (RFC 2131, 2). One that is in fragments does
	// not tell.
	drop("ether type ip udp dport 67 ip frag-off & 0x3fff != 0x0")
	drop("ether type ip udp dport 67 @th,72,16 != 0x0106")
	drop("ether type ip udp dport 67 @th,288,48 != 0x%s", strings.ReplaceAll(string(nic.MAC), ":", ""))
	drop("icmpv6 type { nd-router-advert, nd-redirect }")
	if lease.IP4.IsValid() {
		// 0.0.0.0 asks by DHCP for the address, and by ARP whether it is free.
		drop("ip saddr != { 0.0.0.0, %s }", lease.IP4)
		drop("arp saddr ip != { 0.0.0.0, %s }", lease.IP4)
	} else if network != nil && network.Prefix4().IsValid() {
		// Which somebody else gives out.
		for _, from := range []string{"ip saddr", "arp saddr ip"} {
			drop("%[1]s != 0.0.0.0 %[1]s != %[2]s", from, network.Prefix4())
			drop("%s %s", from, network.Gateway)
		}
	}
	// What it says that it has, and before that, from no address, asks whether
	// anybody has.
	line("icmpv6 type nd-neighbor-advert jump %s", targetChain(tap))
	line("ip6 saddr :: icmpv6 type nd-neighbor-solicit jump %s", targetChain(tap))
	if host != nil {
		sources, targets, own := host.rules(tap, nic.MAC, lease)
		return own + chain(targetChain(tap), targets) + chain(guardChain(tap), append(lines, sources...))
	}
	ours := prefix6(network)
	if ours.IsValid() {
		drop("ip6 saddr != :: ip6 saddr != fe80::/10 ip6 saddr != %s", ours)
	}
	own := []string{"::"}
	var targets []string
	for _, p := range []netip.Prefix{linkLocal, ours} {
		if !p.IsValid() {
			continue
		}
		own = append(own, eui64(p, nic.MAC).String())
		// Whose Ethernet address is in it.
		iface := eui64(p, nic.MAC).AsSlice()[8:]
		drop("ip6 saddr %s @nh,152,16 0xfffe @nh,128,64 != 0x%x", p, iface)
		targets = append(targets, fmt.Sprintf("@th,64,64 0x%x @th,152,16 0xfffe @th,128,64 != 0x%x counter drop", p.Addr().AsSlice()[:8], iface))
	}
	if ours.IsValid() {
		gateway := network.Gateway6()
		drop("ip6 saddr %s", gateway)
		targets = append(targets, fmt.Sprintf("@th,64,128 0x%x counter drop", gateway.AsSlice()))
		if lease.IP6.IsValid() {
			// Addresses that are given out have an owner.
			own = append(own, lease.IP6.String())
			first, last := hostAddress(ours, first6), hostAddress(ours, last6)
			drop("ip6 saddr %s-%s ip6 saddr != %s", first, last, lease.IP6)
			targets = append(targets, fmt.Sprintf("@th,64,128 0x%x-0x%x @th,64,128 != 0x%x counter drop", first.AsSlice(), last.AsSlice(), lease.IP6.AsSlice()))
		}
	}
	line("ip6 saddr { %s } goto %s", strings.Join(own, ", "), doneChain)
	for _, p := range []netip.Prefix{linkLocal, ours} {
		if p.IsValid() {
			line("ip6 saddr %s jump own_source6", p)
			targets = append(targets, fmt.Sprintf("@th,64,64 0x%x jump own_target6", p.Addr().AsSlice()[:8]))
		}
	}
	line("goto %s", doneChain)
	return chain(targetChain(tap), targets) + chain(guardChain(tap), lines)
}

// hostBridge is a bridge of the host's own, and a VLAN of it, seen from a card.
type hostBridge struct {
	domain string
	others []netip.Addr // that are no guest's: the host's there, and its routers'
}

// rules are what a card's guest may send from (sources) and say that it has
// (targets), and the sets and chains that these need.
func (h hostBridge) rules(tap string, mac config.MAC, lease Lease) (sources, targets []string, content string) {
	source := func(format string, args ...any) { sources = append(sources, fmt.Sprintf(format, args...)) }
	target := func(format string, args ...any) { targets = append(targets, fmt.Sprintf(format, args...)) }
	own4, own6 := ownedOn(h.domain)
	content = own4.fixedSets(lease.IP4, mac) + own6.fixedSets(lease.IP6, mac)
	for _, a := range h.others {
		if a == lease.IP4 || a == lease.IP6 {
			continue // the host's router, as the definition says
		}
		if a.Is4() {
			source("ip saddr %s counter drop", a)
			source("arp saddr ip %s counter drop", a)
			continue
		}
		source("ip6 saddr %s counter drop", a)
		target("@th,64,128 0x%x counter drop", a.AsSlice())
	}
	for _, c := range ownChains() {
		name := c.name + "_" + cardID(tap)
		own := own4
		switch {
		case strings.HasSuffix(c.name, "6"):
			own = own6
		case lease.IP4.IsValid():
			continue
		default:
			source("%s != 0.0.0.0 jump %s", c.field, name)
		}
		content += chain(name, append([]string{c.field + " @" + own.fixed() + " counter drop"}, own.rules(c.field)...))
	}
	// Whose Ethernet address is in it.
	iface := eui64(linkLocal, mac).AsSlice()[8:]
	source("ether type ip6 @nh,152,16 0xfffe @nh,128,64 != 0x%x counter drop", iface)
	target("@th,152,16 0xfffe @th,128,64 != 0x%x counter drop", iface)
	own := []string{"::", eui64(linkLocal, mac).String()}
	if lease.IP6.IsValid() {
		own = append(own, lease.IP6.String())
		target("@th,64,128 0x%x return", lease.IP6.AsSlice())
		target("@th,64,64 != 0x%x counter drop", linkLocal.Addr().AsSlice()[:8])
	}
	source("ip6 saddr { %s } goto %s", strings.Join(own, ", "), doneChain)
	if lease.IP6.IsValid() {
		source("ip6 saddr != fe80::/64 counter drop")
	}
	source("ether type ip6 jump own_source6_%s", cardID(tap))
	target("jump own_target6_%s", cardID(tap))
	source("goto %s", doneChain)
	return sources, targets, content
}

// linkLocal is what link-local addresses are in (RFC 4291, 2.5.6).
var linkLocal = netip.MustParsePrefix("fe80::/64")

// prefix6 is what the addresses of a network are in, zero for a card that is in
// none, or in one without.
func prefix6(network *config.Network) netip.Prefix {
	if network == nil {
		return netip.Prefix{}
	}
	return network.Prefix6().Masked()
}

// eui64 is the address that a card has in a /64 by its Ethernet address
// (RFC 4291, appendix A).
func eui64(p netip.Prefix, mac config.MAC) netip.Addr {
	a := p.Masked().Addr().As16()
	m, err := net.ParseMAC(string(mac))
	if err != nil || len(m) != 6 { // config has checked it
		return netip.AddrFrom16(a)
	}
	copy(a[8:], []byte{m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
	return netip.AddrFrom16(a)
}

package netsetup

import (
	"fmt"
	"strings"

	"github.com/vmctl/vmctl/config"
)

// The lists of a card are held to where its TAP meets the bridge, so that they
// are for what guests of one network send each other, too. Connection tracking is
// not to be had there without tracking what passes every other bridge of the
// host: each card's flows are remembered in sets of its own, of who talks to whom,
// whose elements expire. A flow is remembered as the guest's side sees it,
// whoever began it, so that answers pass the other direction's list.

// maxFlows is how many flows of a kind are remembered of a card, about 4 MiB of
// the kernel's memory. With more, answers may have to be allowed by a list.
const maxFlows = 32768

// How long a flow is remembered after its last packet.
const (
	flowNew    = "2m"  // one way was seen alone
	flowTCP    = "2h"  // after the last packet with data
	flowEnding = "30s" // one side has ended the connection
	flowOther  = "3m"
)

// protocol is what differs between IPv4 and IPv6.
type protocol struct {
	ip, icmp   string // in nft's words
	number     string // of ICMP
	typ        string
	suffix     string // of sets
	errors     string // types of ICMP that belong to connections
	first, mid string // fragments: the first of several, the others
	to         string // the receiver's address, and in what an error of ICMP quotes
	quoted     string
	from       string // the sender's address
}

func protocols() []protocol {
	return []protocol{
		{"ip", "icmp", "icmp", "ipv4_addr", "4", "destination-unreachable, time-exceeded, parameter-problem",
			"ip frag-off & 0x3fff == 0x2000", "ip frag-off & 0x1fff != 0x0", "@nh,128,32", "@th,192,32", "@nh,96,32"},
		{"ip6", "icmpv6", "ipv6-icmp", "ipv6_addr", "6", "destination-unreachable, packet-too-big, time-exceeded, parameter-problem",
			"frag frag-off 0x0 frag more-fragments 1", "frag frag-off != 0x0", "@nh,192,128", "@th,256,128", "@nh,64,128"},
	}
}

// direction is one of the two.
type direction struct {
	name        string // of chains
	tap         string
	remote      string // field with the other's address
	ports       string // the other's port, and the guest's
	guest       string // field with the guest's Ethernet address
	needs       []string
	allow, deny []config.Rule
	in          bool
}

// directions are both. network is nil for a card in none of ours.
func directions(tap string, l config.Lists, network *config.Network) []direction {
	// What is for the link alone, by which nothing gets any further: from a
	// neighbour, to one.
	dhcp := "255.255.255.255"
	neighbours := []string{""}
	if network != nil && network.Gateway.IsValid() {
		dhcp = fmt.Sprintf("{ %s, %s }", dhcp, network.Gateway)
	}
	if ours := prefix6(network); ours.IsValid() {
		neighbours = []string{"ip6 daddr fe80::/10 ", "ip6 daddr ff02::/16 ", fmt.Sprintf("ip6 daddr %s ", ours)}
	}
	out := []string{
		fmt.Sprintf("ip daddr %s udp sport 68 udp dport 67", dhcp),
		"ip6 daddr ff02::1:2 udp sport 546 udp dport 547",
		"ip6 hoplimit 1 icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report }",
	}
	for _, to := range neighbours {
		out = append(out, to+"ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }")
	}
	return []direction{
		{
			name: "out", tap: tap, remote: "daddr", ports: "th dport . th sport", guest: "ether saddr",
			needs: out,
			allow: l.AllowOut, deny: l.DenyOut,
		},
		{
			name: "in", tap: tap, remote: "saddr", ports: "th sport . th dport", guest: "ether daddr",
			needs: []string{
				"udp sport 67 udp dport 68",
				"ip6 saddr fe80::/10 udp sport 547 udp dport 546",
				"ip6 hoplimit 255 icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }",
				"ip6 hoplimit 1 icmpv6 type mld-listener-query",
			},
			allow: l.AllowIn, deny: l.DenyIn, in: true,
		},
	}
}

// hasLists says whether a card has any.
func hasLists(l config.Lists) bool {
	return len(l.AllowIn)+len(l.AllowOut)+len(l.DenyIn)+len(l.DenyOut) > 0
}

// listsOf are the lists of a card. One in groups that nobody has looked up is
// closed.
func listsOf(nic config.NIC) config.Lists {
	if len(nic.SecurityGroups) > 0 {
		everything := []config.Rule{{Protocol: config.AnyProtocol}}
		return config.Lists{DenyIn: everything, DenyOut: everything}
	}
	return nic.Lists()
}

// sides are who begins a flow: the guest, by what goes out, or somebody else. The
// flows of each are in sets of their own, so that nobody takes the guest's place in
// them by beginning very many.
func sides() []string { return []string{"out", "in"} }

// flowKinds are the sets in which flows are remembered, and with whom they are.
func flowKinds() []string { return []string{"flows", "others", "echoes", "peers", "fragments"} }

// flowSets are the sets in which the flows of a card with lists are remembered.
func flowSets(tap string) string {
	var b strings.Builder
	for _, p := range protocols() {
		keys := map[string]string{
			"flows":     "type " + p.typ + " . inet_proto . inet_service . inet_service",
			"others":    "type " + p.typ + " . inet_proto",
			"echoes":    fmt.Sprintf("typeof %s saddr . %s id", p.ip, p.icmp),
			"peers":     "typeof " + p.to,
			"fragments": "type " + p.typ,
		}
		for _, began := range sides() {
			for _, name := range flowKinds() {
				fmt.Fprintf(&b, "\tset %s {\n\t\t%s\n\t\tsize %d\n\t\tflags dynamic,timeout\n\t}\n", setName(name+p.suffix+"_"+began, tap), keys[name], maxFlows)
			}
		}
	}
	// Connections that were there before the lists, of which nothing is known:
	// by Ethernet address, for as long as [graceTime].
	fmt.Fprintf(&b, "\tset %s {\n\t\ttype ether_addr\n\t\tflags timeout\n\t}\n", setName("grace", tap))
	return b.String()
}

// flowSetNames are their names.
func flowSetNames(tap string) []string {
	names := []string{setName("grace", tap)}
	for _, p := range protocols() {
		for _, began := range sides() {
			for _, name := range flowKinds() {
				names = append(names, setName(name+p.suffix+"_"+began, tap))
			}
		}
	}
	return names
}

// cardLists are the sets and chains that hold a card to its lists; "" where it
// has none.
func cardLists(tap string, nic config.NIC, network *config.Network) string {
	l := listsOf(nic)
	if !hasLists(l) {
		return ""
	}
	var b strings.Builder
	b.WriteString(flowSets(tap))
	for _, d := range directions(tap, l, network) {
		b.WriteString(d.pass() + d.keep() + d.known() + d.chain())
	}
	return b.String()
}

func chain(name string, lines []string) string {
	return "\tchain " + name + " {\n\t\t" + strings.Join(lines, "\n\t\t") + "\n\t}\n"
}

// chainName is the name of one of the direction's chains.
func (d direction) chainName(name string) string { return name + "_" + d.name + "_" + cardID(d.tap) }

// set is one of the card's sets, of what one of the [sides] has begun, as rules name
// it.
func (d direction) set(name string, p protocol, began string) string {
	return "@" + setName(name+p.suffix+"_"+began, d.tap)
}

// setName is the name of one of a card's sets.
func setName(name, tap string) string { return name + "_" + cardID(tap) }

// pass lets a packet through, and the fragments that follow it.
func (d direction) pass() string {
	var lines []string
	for _, p := range protocols() {
		lines = append(lines, fmt.Sprintf("%s update %s { %s %s timeout 30s }", p.first, d.set("fragments", p, d.name), p.ip, d.remote))
	}
	return chain(d.chainName("pass"), append(lines, "goto "+doneChain))
}

// flow is what a packet is remembered by.
func (d direction) flow(p protocol) string {
	return fmt.Sprintf("%s %s . meta l4proto . %s", p.ip, d.remote, d.ports)
}

func (d direction) echo(p protocol) string {
	return fmt.Sprintf("%s %s . %s id", p.ip, d.remote, p.icmp)
}

func (d direction) other(p protocol) string {
	return fmt.Sprintf("%s %s . meta l4proto", p.ip, d.remote)
}

// peer remembers with whom a flow is.
func (d direction) peer(p protocol, began, timeout string) string {
	address := p.to
	if d.in {
		address = p.from
	}
	return fmt.Sprintf("update %s { %s timeout %s }", d.set("peers", p, began), address, timeout)
}

// keep remembers the flow of a packet that is let through.
func (d direction) keep() string {
	var lines []string
	pass := " goto " + d.chainName("pass")
	for _, p := range protocols() {
		set := func(name string) string { return d.set(name, p, d.name) }
		lines = append(lines,
			fmt.Sprintf("ether type %s %s", p.ip, d.peer(p, d.name, flowNew)),
			fmt.Sprintf("ether type %s meta l4proto { tcp, udp, sctp } update %s { %s timeout %s }%s", p.ip, set("flows"), d.flow(p), flowNew, pass),
			fmt.Sprintf("%s type echo-request update %s { %s timeout %s }%s", p.icmp, set("echoes"), d.echo(p), flowNew, pass),
			fmt.Sprintf("ether type %s meta l4proto != { tcp, udp, sctp, %s } update %s { %s timeout %s }%s", p.ip, p.number, set("others"), d.other(p), flowOther, pass))
	}
	return chain(d.chainName("keep"), append(lines, strings.TrimSpace(pass)))
}

// known lets packets of flows through that are remembered. What begins a connection
// is of none, whatever was sent before it; so is one that both sides begin at once.
func (d direction) known() string {
	lines := []string{"tcp flags & (syn | ack) == syn return"}
	pass := " goto " + d.chainName("pass")
	for _, p := range protocols() {
		for _, began := range sides() {
			set := func(name string) string { return d.set(name, p, began) }
			flow := d.flow(p) + " " + set("flows")
			update := func(timeout string) string {
				return fmt.Sprintf("update %s { %s timeout %s }", set("flows"), d.flow(p), timeout)
			}
			// An error comes from anybody on the way, and quotes a packet to the
			// other; the guest's own go to that.
			quoted := p.to
			if d.in {
				quoted = p.quoted
			}
			lines = append(lines,
				fmt.Sprintf("tcp flags & (fin | rst) != 0x0 %s %s%s", flow, update(flowEnding), pass),
				fmt.Sprintf("tcp flags & psh != 0x0 %s %s %s%s", flow, update(flowTCP), d.peer(p, began, flowTCP), pass),
				fmt.Sprintf("meta l4proto != tcp %s %s %s%s", flow, update(flowOther), d.peer(p, began, flowOther), pass),
				fmt.Sprintf("tcp flags & (syn | ack) != syn %s%s", flow, pass),
				fmt.Sprintf("meta l4proto != tcp %s%s", flow, pass), // there is no room for the peer
				fmt.Sprintf("%s type echo-reply %s %s%s", p.icmp, d.echo(p), set("echoes"), pass),
				fmt.Sprintf("%[1]s %[2]s update %[2]s { %[1]s timeout %[3]s } %[4]s%[5]s", d.other(p), set("others"), flowOther, d.peer(p, began, flowOther), pass),
				fmt.Sprintf("%s %s %s %s accept", p.mid, p.ip, d.remote, set("fragments")),
				fmt.Sprintf("%s type { %s } %s %s%s", p.icmp, p.errors, quoted, set("peers"), pass))
		}
	}
	return chain(d.chainName("known"), lines)
}

// chain decides on each packet of the guest in a direction. What it needs to have
// an address at all passes before the lists are asked.
func (d direction) chain() string {
	lines := []string{
		"ether type arp accept",
		"exthdr frag exists jump fragment6",
	}
	for _, need := range d.needs {
		lines = append(lines, need+" accept")
	}
	lines = append(lines,
		"jump "+d.chainName("known"),
		fmt.Sprintf("%s @%s tcp flags & syn == 0x0 goto %s", d.guest, setName("grace", d.tap), d.chainName("keep")))
	for _, r := range d.deny {
		lines = append(lines, strings.TrimSpace(match(r, d.remote)+" counter drop"))
	}
	for _, r := range d.allow {
		lines = append(lines, strings.TrimSpace(match(r, d.remote)+" goto "+d.chainName("keep")))
	}
	if len(d.allow) > 0 {
		lines = append(lines, "counter drop")
	} else {
		lines = append(lines, "goto "+d.chainName("keep"))
	}
	return chain(d.chainName("list"), lines)
}

// match is a rule in nft's words; remote is the field with the other's address.
func match(r config.Rule, remote string) string {
	var parts []string
	switch p := r.Peer; {
	case !p.IsValid():
	case p.Bits() == 0:
		parts = append(parts, "ether type "+family(p.Addr()))
	default:
		parts = append(parts, fmt.Sprintf("%s %s %s", family(p.Addr()), remote, p))
	}
	switch {
	case r.Protocol == config.AnyProtocol:
	case r.Protocol == config.ICMP:
		parts = append(parts, "meta l4proto "+icmpNumbers(r))
	case r.First == 0:
		parts = append(parts, "meta l4proto "+r.Protocol)
	case r.Last > r.First:
		parts = append(parts, fmt.Sprintf("%s dport %d-%d", r.Protocol, r.First, r.Last))
	default:
		parts = append(parts, fmt.Sprintf("%s dport %d", r.Protocol, r.First))
	}
	return strings.Join(parts, " ")
}

func icmpNumbers(r config.Rule) string {
	switch {
	case !r.Peer.IsValid():
		return "{ icmp, ipv6-icmp }"
	case r.Peer.Addr().Is4():
		return "icmp"
	}
	return "ipv6-icmp"
}

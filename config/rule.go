package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Protocols of a [Rule], beside TCP and UDP.
const (
	AnyProtocol = "any"
	ICMP        = "icmp" // ICMP and ICMPv6
	SCTP        = "sctp"
)

// Rule is the traffic that an element of a card's lists means, written
// PROTOCOL[/PORT[-PORT]] [from ADDRESS[/BITS]], or with "to" for what the guest
// sends. Ports are of whoever is connected to.
type Rule struct {
	Protocol string       `json:"protocol"`
	First    int          `json:"first_port,omitempty"` // 0: every port
	Last     int          `json:"last_port,omitempty"`
	Peer     netip.Prefix `json:"peer,omitzero"` // zero: everybody
}

const wantRule = `PROTOCOL[/PORT[-PORT]] [%[1]s ADDRESS[/BITS]] such as "tcp/22", "udp/8000-8100 %[1]s 10.0.0.0/8", "icmp" or "any %[1]s 2001:db8::/32"`

// parseRule reads a rule; preposition is "from" or "to". The string says what was
// wanted, "" where it is good.
func parseRule(s, preposition string) (Rule, string) {
	want := fmt.Sprintf(wantRule, preposition)
	words := strings.Split(s, " ")
	if len(words) != 1 && len(words) != 3 {
		return Rule{}, want
	}
	protocol, ports, given := strings.Cut(words[0], "/")
	r := Rule{Protocol: protocol}
	switch {
	case !slices.Contains([]string{AnyProtocol, TCP, UDP, SCTP, ICMP}, protocol):
		return Rule{}, "protocol any, tcp, udp, sctp or icmp: " + want
	case given && (protocol == AnyProtocol || protocol == ICMP):
		return Rule{}, "no port for " + protocol
	case given:
		first, last, isRange := strings.Cut(ports, "-")
		if !isRange {
			last = first
		}
		var ok1, ok2 bool
		r.First, ok1 = port(first)
		if r.Last, ok2 = port(last); !ok1 || !ok2 || r.Last < r.First {
			return Rule{}, `ports from 1 to 65535, one or a range such as "8000-8100"`
		}
	}
	if len(words) == 1 {
		return r, ""
	}
	if words[1] != preposition {
		return Rule{}, fmt.Sprintf("%q before the address", preposition)
	}
	var problem string
	r.Peer, problem = parsePeer(words[2])
	return r, problem
}

// parsePeer reads an address or a network.
func parsePeer(s string) (netip.Prefix, string) {
	const want = `an address or a network such as "192.0.2.1", "10.0.0.0/8" or "2001:db8::/32"`
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, want
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	switch {
	case p.Addr().Is4In6():
		return netip.Prefix{}, want
	case p != p.Masked():
		return netip.Prefix{}, fmt.Sprintf("a network without bits of a host, %s", p.Masked())
	}
	return p, ""
}

// preposition is the word before the address in rules of a form.
func preposition(form string) string {
	if form == "rule_out" {
		return "to"
	}
	return "from"
}

// Text writes a rule as it is read; in says that it is of a list of what goes to
// the guest.
func (r Rule) Text(in bool) string {
	s := r.Protocol
	if r.First > 0 {
		s += "/" + strconv.Itoa(r.First)
	}
	if r.Last > r.First {
		s += "-" + strconv.Itoa(r.Last)
	}
	if !r.Peer.IsValid() {
		return s
	}
	word := " to "
	if in {
		word = " from "
	}
	if r.Peer.IsSingleIP() {
		return s + word + r.Peer.Addr().String()
	}
	return s + word + r.Peer.String()
}

// Lists are what is let through and what is dropped, to the guest (in) and from
// it (out).
type Lists struct {
	AllowIn  []Rule `json:"allow_in,omitempty"`
	AllowOut []Rule `json:"allow_out,omitempty"`
	DenyIn   []Rule `json:"deny_in,omitempty"`
	DenyOut  []Rule `json:"deny_out,omitempty"`
}

// Lists are those of the card itself.
func (n NIC) Lists() Lists { return Lists{n.AllowIn, n.AllowOut, n.DenyIn, n.DenyOut} }

// Filter is all that a card is held to.
type Filter struct {
	AntiSpoofing bool `json:"anti_spoofing"`
	Lists
}

// Filter is what a card is held to that is in no group.
func (n NIC) Filter() Filter {
	return Filter{n.AntiSpoofing == nil || *n.AntiSpoofing, n.Lists()}
}

// HeldTo returns the card with a filter in place of its own lists and groups.
func (n NIC) HeldTo(f Filter) NIC {
	n.AntiSpoofing, n.SecurityGroups = &f.AntiSpoofing, nil
	n.AllowIn, n.AllowOut, n.DenyIn, n.DenyOut = f.AllowIn, f.AllowOut, f.DenyIn, f.DenyOut
	return n
}

// InGroups returns the card with the lists of its security groups added to its
// own, and none of their names any more. The groups are those that it names.
func (n NIC) InGroups(groups []*SecurityGroup) NIC {
	n.SecurityGroups = nil
	for _, g := range groups {
		n.AllowIn = slices.Concat(n.AllowIn, g.AllowIn)
		n.AllowOut = slices.Concat(n.AllowOut, g.AllowOut)
		n.DenyIn = slices.Concat(n.DenyIn, g.DenyIn)
		n.DenyOut = slices.Concat(n.DenyOut, g.DenyOut)
	}
	return n
}

// withFilter returns the card with all that says what it may send and get taken
// from another.
func (n NIC) withFilter(of NIC) NIC {
	n.AntiSpoofing, n.SecurityGroups = of.AntiSpoofing, of.SecurityGroups
	n.AllowIn, n.AllowOut, n.DenyIn, n.DenyOut = of.AllowIn, of.AllowOut, of.DenyIn, of.DenyOut
	return n
}

// onBridge says whether a card can be held to what it may send and get.
func (n NIC) onBridge() bool { return n.Network != "" || n.Bridge != "" }

// WithReloadedOf returns a machine with what a reload brings from another to one that
// runs: what the cards of the same name may send and get, for problems with which the
// other is blamed, and who sits down at its console.
func (m *Machine) WithReloadedOf(other *Machine) *Machine {
	out := *m
	out.origin = other.origin
	out.Console.Group = other.Console.Group
	out.NICs = slices.Clone(m.NICs)
	for i, n := range out.NICs {
		// One that is on no bridge by now cannot have any, which does not open this.
		k := slices.IndexFunc(other.NICs, func(o NIC) bool { return o.Name == n.Name && o.onBridge() == n.onBridge() })
		if k >= 0 {
			out.NICs[i] = n.withFilter(other.NICs[k])
		}
	}
	return &out
}

// WithoutReloaded returns a machine without what a reload can change while it runs
// ([Machine.WithReloadedOf]).
func (m *Machine) WithoutReloaded() *Machine {
	out := *m
	out.Console.Group = ""
	out.NICs = slices.Clone(m.NICs)
	for i, n := range out.NICs {
		out.NICs[i] = n.withFilter(NIC{})
	}
	return &out
}

package netsetup

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vmctl/vmctl/config"
)

// ServiceDir are the files of a network's DHCP and DNS service, in its runtime
// directory.
type ServiceDir struct {
	Hosts  string // directory of one file for each card, [HostLine]
	Leases string // file of what was given out
	Resolv string // file with the host's name servers (resolv.conf(5))
}

// Service is the configuration of dnsmasq(8) for a network: it answers on the
// network's own addresses alone, for the names of its guests, and passes other
// questions of theirs on to the network's name servers, or to those that the host
// has at the time.
func Service(n *config.Network, dir ServiceDir) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by vmctl for the network %s.", n.Name)
	line("keep-in-foreground")
	line("pid-file=")
	line("conf-file=")
	line("bind-dynamic")
	line("interface=%s", n.Device())
	line("except-interface=lo")
	line("no-hosts")
	if len(n.DNS) > 0 || n.Isolated {
		line("no-resolv")
	} else {
		line("resolv-file=%s", dir.Resolv)
	}
	for _, s := range n.DNS {
		line("server=%s", s)
	}
	line("domain=%s", n.Domain)
	line("local=/%s/", n.Domain)
	line("domain-needed")
	line("bogus-priv")
	// Nobody outside says who has an address of the network: a page that a guest
	// shows would get at others by it (DNS rebinding).
	for _, p := range []netip.Prefix{n.Prefix4(), n.Prefix6()} {
		if p.IsValid() {
			line("bogus-nxdomain=%s", p.Masked())
		}
	}
	line("expand-hosts")
	line("strict-order")
	line("dhcp-leasefile=%s", dir.Leases)
	line("dhcp-hostsdir=%s", dir.Hosts)
	line("dhcp-authoritative")
	line("dhcp-fqdn")
	// Names are given by definitions: no guest takes another's.
	line("dhcp-ignore-names=tag:!known")
	seconds := int(time.Duration(n.LeaseTime).Seconds())
	if first, last := n.Range4(); first.IsValid() {
		line("dhcp-range=%s,%s,%s,%d", first, last, netmask(n.Prefix4()), seconds)
		line("dhcp-option=option:mtu,%d", n.MTU)
		if n.Isolated {
			line("dhcp-option=option:router")
		}
	}
	if p := n.Prefix6(); p.IsValid() {
		// Addresses by DHCPv6 for names' sake, and by router advertisements for
		// guests that speak no DHCPv6.
		line("enable-ra")
		line("dhcp-range=%s,%s,slaac,64,%d", hostAddress(p, first6), hostAddress(p, last6), seconds)
		line("ra-param=%s,mtu:%d,0,%d", n.Device(), n.MTU, routerLifetime(n))
	}
	return b.String()
}

// routerLifetime is for how long, in seconds, guests take the host for their
// router; 0: it is none.
func routerLifetime(n *config.Network) int {
	if n.Isolated {
		return 0
	}
	return 1800
}

func netmask(p netip.Prefix) netip.Addr {
	all := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), p.Bits())
	return all.Masked().Addr()
}

// hostAddress is an address of a /64 by its last 16 bits.
func hostAddress(p netip.Prefix, host uint16) netip.Addr {
	a := p.Masked().Addr().As16()
	a[14], a[15] = byte(host>>8), byte(host)
	return netip.AddrFrom16(a)
}

// HostLine is the content of a card's file in [ServiceDir].Hosts: what its
// address and name are (dnsmasq's --dhcp-host). The name is written with its
// domain, so that dnsmasq takes none for a word of its own ("ignore") or for the
// time of a lease ("42", "2h").
func HostLine(n *config.Network, mac config.MAC, lease Lease, hostname string) string {
	parts := []string{string(mac)}
	if lease.IP4.IsValid() {
		parts = append(parts, lease.IP4.String())
	}
	if lease.IP6.IsValid() {
		parts = append(parts, "["+lease.IP6.String()+"]")
	}
	return strings.Join(append(parts, hostname+"."+n.Domain), ",") + "\n"
}

// NameLines is the content of a card's file for the host: what its guest is
// called there, as in hosts(5).
func NameLines(n *config.Network, lease Lease, hostname string) string {
	var b strings.Builder
	for _, ip := range lease.Addresses() {
		fmt.Fprintf(&b, "%s %s.%s\n", ip, hostname, n.Domain)
	}
	return b.String()
}

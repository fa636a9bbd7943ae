package netsetup

import (
	"net/netip"

	"github.com/vmctl/vmctl/config"
)

// Proxy is a port of the host's ::1 that is a guest's. No interface but lo takes a
// packet from there, and IPv6 has no route_localnet, so that no rule can send it on:
// somebody has to listen there who connects to the guest.
type Proxy struct {
	Listen netip.AddrPort
	Guest  netip.AddrPort
}

// proxies are those of a card. Whatever address the guest has serves: that of IPv4
// before that of IPv6, which not every guest takes that it is given.
func proxies(nic config.NIC, lease Lease) []Proxy {
	var all []Proxy
	for _, f := range nic.Forward {
		if addresses := lease.Addresses(); f.IsProxied() && len(addresses) > 0 {
			all = append(all, Proxy{netip.AddrPortFrom(netip.IPv6Loopback(), uint16(f.HostPort)), netip.AddrPortFrom(addresses[0], uint16(f.GuestPort))})
		}
	}
	return all
}

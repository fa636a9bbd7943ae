// Package netsetup makes the networks of machines: bridges and their addresses,
// interfaces of machines on them, packet filters, and what the DHCP and DNS
// service has to know. What is wanted is computed first, purely ([Network],
// [Card]), and then applied to the network namespace of the process ([Up],
// [Plug]).
//
// Everything that it makes can be told by its name or its alternative name, and
// nothing else is touched: the host's own interfaces, addresses, routes and
// rules stay as they are, but for forwarding, which NAT cannot do without.
//
// It knows nothing of hypervisors and units. Filters are text for nft(8), which
// applies each as one transaction; the service is dnsmasq(8).
package netsetup

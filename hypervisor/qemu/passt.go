package qemu

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// byPasst says whether the card's user-mode networking is passt's.
func (p *planner) byPasst(n config.NIC) bool {
	return n.User && p.host.RunsPasst(n)
}

// passt connects the card to a passt of its own. QEMU is who listens, so that a
// passt that ends is followed by another: before 8.0 QEMU connects only once, and
// the option for more has had two names since.
//
// The guest gets the addresses that slirp gives. passt takes them with an
// interface of the host alone, and that of 2023 those of IPv6 with one alone that
// has a link-local address; it uses the interface for nothing else.
func (p *planner) passt(n config.NIC) {
	side := hypervisor.Sidecar{Unit: config.PasstUnit(p.m.Name, n.Name), Key: n.Key(), Name: hypervisor.Passt, Card: n.Name, Argv: []string{
		p.host.Programs[hypervisor.Passt], "--quiet", "--fd", hypervisor.SocketArg, "--interface", hypervisor.InterfaceArg, "--mac-addr", "52:55:0a:00:02:02",
		"--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2", "--address", "fec0::15", "--gateway", "fe80::2",
	}}
	p.arg("-netdev", options("stream", "id=net-"+n.Name, "server=on", "addr.type=fd", "addr.str="+strconv.Itoa(p.queue(n))))
	switch {
	case n.MTU != 0:
		side.Argv = append(side.Argv, "--mtu", strconv.Itoa(n.MTU))
	case n.Model != "virtio": // which alone takes packets of passt's own size
		side.Argv = append(side.Argv, "--mtu", "1500")
	}
	for _, f := range n.Forward {
		side.Argv = append(side.Argv, "--"+f.Protocol+"-ports", passtForward(f))
		side.LowPorts = side.LowPorts || f.HostPort < 1024
	}
	p.plan.Sidecars = append(p.plan.Sidecars, side)
}

// checkPasst refuses what passt is asked for and cannot do.
func (p *planner) checkPasst(n config.NIC) {
	if n.Backend == hypervisor.Passt && p.host.Programs[hypervisor.Passt] == "" {
		p.problem(n.Key()+".backend", "passt was not found on this host; install it (Debian: passt), or use \"slirp\"")
	}
	if !p.byPasst(n) {
		return
	}
	beyond := hypervisor.BeyondPasst(n)
	for i, f := range n.Forward {
		if other, is := beyond[i]; is {
			p.problem(fmt.Sprintf("%s.forward[%d]", n.Key(), i), "want the port %d of the guest, as %q has: passt gives a port of the host to one of the guest, on all addresses; got %q", other.GuestPort, other, f)
		}
	}
}

// passtForward is a port in passt's notation, such as "127.0.0.1/8080:80".
func passtForward(f config.Forward) string {
	ports := fmt.Sprintf("%d:%d", f.HostPort, f.GuestPort)
	if ip, err := netip.ParseAddr(f.Address); err == nil {
		return ip.String() + "/" + ports
	}
	return ports
}

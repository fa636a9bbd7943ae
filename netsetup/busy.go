package netsetup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// Busy is an error where somebody else has a port that the service of a network
// needs: 53 on the network's own addresses, 67 and 547 on the host's. It asks for them
// as dnsmasq does, whether the addresses are there yet or not.
func Busy(n *config.Network) error {
	for _, address := range Gateways(n) {
		dns := netip.AddrPortFrom(address, 53).String()
		for _, network := range []string{"udp", "tcp"} {
			if err := bindable(network, dns); err != nil {
				return err
			}
		}
	}
	if n.Prefix4().IsValid() {
		if err := bindable("udp4", "0.0.0.0:67"); err != nil {
			return err
		}
	}
	if n.Prefix6().IsValid() {
		return bindable("udp6", "[::]:547")
	}
	return nil
}

// bindable is an error where an address and port cannot be had.
func bindable(network, address string) error {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) {
			// IPv6 takes IPv4's option, too (ipv6(7)).
			set = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1))
		})
		return errors.Join(err, set)
	}}
	var c io.Closer
	var err error
	if network == "tcp" {
		c, err = config.Listen(context.Background(), network, address)
	} else {
		c, err = config.ListenPacket(context.Background(), network, address)
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("DHCP and DNS for the network need the port %s (%s), but %s", address, network[:3], holder(network[:3], address))
	case err != nil:
		return fmt.Errorf("try the port %s: %w", address, err)
	}
	return c.Close()
}

// holder says who has a port.
func holder(protocol, address string) string {
	want := netip.MustParseAddrPort(address)
	listeners, _ := Listeners("") // else it is anybody
	for _, l := range listeners {
		at := l.Address.Addr().Unmap()
		if l.Protocol == protocol && l.Address.Port() == want.Port() && (at == want.Addr() || at.IsUnspecified() || want.Addr().IsUnspecified()) {
			return l.String()
		}
	}
	return "another program has it"
}

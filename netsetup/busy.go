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
// needs: 53 on the network's own addresses, 67 on the host's. It asks for them
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
		return bindable("udp4", "0.0.0.0:67")
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
		return fmt.Errorf("another program has the port %s (%s) that DHCP and DNS for the network need; ss -lnp tells which", address, network[:3])
	case err != nil:
		return fmt.Errorf("try the port %s: %w", address, err)
	}
	return c.Close()
}

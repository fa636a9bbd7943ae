package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// startNetwork brings the cards up. The first gets the address that user-mode
// networking gives its only guest (10.0.2.15/24, gateway 10.0.2.2), so that
// port forwards arrive.
func (g *guest) startNetwork() {
	links, err := netlink.LinkList()
	if err != nil {
		g.say("looking for network cards: %v", err)
		return
	}
	first := true
	for _, link := range links {
		attrs := link.Attrs()
		if err := netlink.LinkSetUp(link); err != nil {
			g.say("bringing %s up: %v", attrs.Name, err)
			continue
		}
		if attrs.Flags&net.FlagLoopback != 0 {
			continue
		}
		if first {
			first = false
			if err := addAddress(link); err != nil {
				g.say("giving %s an address: %v", attrs.Name, err)
			}
		}
	}
	if err := g.showCards(nil); err != nil {
		g.say("looking for network cards: %v", err)
	}
	// Whoever has read "ready" may call at once.
	l, err := net.Listen("tcp", ":7")
	if err != nil {
		g.say("serving port 7: %v", err)
		return
	}
	go g.greet(l)
	packets, err := listenUDP()
	if err != nil {
		g.say("serving UDP port 7: %v", err)
		return
	}
	go g.echo(packets)
}

// showCards lists the network cards.
func (g *guest) showCards([]string) error {
	cards, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, card := range cards {
		if card.Flags&net.FlagLoopback == 0 {
			g.say("card %s mac %s mtu %d driver %s", card.Name, card.HardwareAddr, card.MTU, driver("/sys/class/net/"+card.Name+"/device"))
		}
	}
	return nil
}

// dhcpScript is what udhcpc runs with what it was given in its environment.
const dhcpScript = `#!/bin/busybox sh
[ "$1" = bound ] || exit 0
/bin/busybox ip -4 address flush dev $interface
/bin/busybox ip address add $ip/$mask dev $interface
[ -z "$router" ] || /bin/busybox ip route add default via $router
: >/etc/resolv.conf
for server in $dns; do echo nameserver $server >>/etc/resolv.conf; done
[ -z "$domain" ] || echo search $domain >>/etc/resolv.conf
echo vmctl-guest: dhcp $interface address $ip router $router dns $dns domain $domain
`

// dhcp gets an address for a card. busybox's client does not end before it has
// one, or has asked for half a minute.
func (g *guest) dhcp(args []string) error {
	const script = "/etc/dhcp"
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(script, []byte(dhcpScript), 0o755); err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	return g.runProgram(busybox, "udhcpc", "-i", args[0], "-x", "hostname:"+name, "-n", "-q", "-t", "10", "-T", "3", "-s", script)
}

func addAddress(link netlink.Link) error {
	addr, err := netlink.ParseAddr("10.0.2.15/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IPv4(10, 0, 2, 2)})
}

// greet answers those who call: one line with the host name, then everything
// back.
func (g *guest) greet(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			g.say("serving port 7: %v", err)
			return
		}
		go func() {
			defer conn.Close()
			name, err := os.Hostname()
			if err != nil {
				name = err.Error()
			}
			fmt.Fprintf(conn, "hello from %s\n", name)
			// Whoever called has hung up when it fails.
			io.Copy(conn, conn)
		}()
	}
}

func listenUDP() (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: 7})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	// To answer under the address that was asked (ipv6(7)).
	var optErr error
	err = raw.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) })
	return conn, errors.Join(err, optErr)
}

// echo sends back what comes in by UDP, with the host name before it.
func (g *guest) echo(conn *net.UDPConn) {
	b, control := make([]byte, 1500), make([]byte, 128)
	for {
		n, length, _, from, err := conn.ReadMsgUDP(b, control)
		if err != nil {
			g.say("serving UDP port 7: %v", err)
			return
		}
		name, err := os.Hostname()
		if err != nil {
			name = err.Error()
		}
		// Who asked may have gone.
		_, _, _ = conn.WriteMsgUDP(fmt.Appendf(nil, "%s: %s", name, b[:n]), control[:length], from)
	}
}

// sendFrame sends an Ethernet frame, given in hexadecimal digits.
func (g *guest) sendFrame(args []string) error {
	frame, err := hex.DecodeString(args[1])
	if err != nil {
		return err
	}
	card, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: card.Index, Halen: 6}); err != nil {
		return err
	}
	g.say("frame sent")
	return nil
}

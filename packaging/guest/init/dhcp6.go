package main

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Messages and options of DHCPv6 (RFC 8415, 7.3 and 21).
const (
	solicitMessage = 1
	replyMessage   = 7

	clientIDOption    = 1
	identityOption    = 3 // IA_NA
	addressOption     = 5
	elapsedOption     = 8
	rapidCommitOption = 14
)

// dhcp6 gets an IPv6 address for a card by DHCPv6, which busybox cannot, beside
// those that it has: in one step, as the server has to allow.
func (g *guest) dhcp6(args []string) error {
	link, err := netlink.LinkByName(args[0])
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{Port: 546, Zone: args[0]})
	if err != nil {
		return err
	}
	defer conn.Close()
	servers := &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: 547, Zone: args[0]}
	query := solicit(link.Attrs().HardwareAddr)
	answer := make([]byte, 1500)
	for range 20 {
		// Until the card has its own address, this fails.
		_, _ = conn.WriteToUDP(query, servers)
		if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		n, err := conn.Read(answer)
		if err != nil {
			time.Sleep(200 * time.Millisecond)
			continue
		}
		if ip, ok := leased(query, answer[:n]); ok {
			return g.use(link, ip)
		}
	}
	return errors.New("no answer by DHCPv6")
}

func (g *guest) use(link netlink.Link, ip netip.Addr) error {
	address := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrReplace(link, address); err != nil {
		return err
	}
	g.say("dhcp6 %s address %s", link.Attrs().Name, ip)
	return nil
}

// solicit asks for an address, to be given at once.
func solicit(mac net.HardwareAddr) []byte {
	query := []byte{solicitMessage, byte(rand.Uint32()), byte(rand.Uint32()), byte(rand.Uint32())}
	query = option(query, clientIDOption, append([]byte{0, 3, 0, 1}, mac...)) // DUID-LL, Ethernet
	query = option(query, rapidCommitOption, nil)
	query = option(query, elapsedOption, []byte{0, 0})
	return option(query, identityOption, append([]byte(mac[2:6]), make([]byte, 8)...)) // number, times
}

func option(to []byte, code uint16, content []byte) []byte {
	to = binary.BigEndian.AppendUint16(to, code)
	to = binary.BigEndian.AppendUint16(to, uint16(len(content)))
	return append(to, content...)
}

// leased is the address in an answer to the query.
func leased(query, answer []byte) (netip.Addr, bool) {
	if len(answer) < 4 || answer[0] != replyMessage || string(answer[1:4]) != string(query[1:4]) {
		return netip.Addr{}, false
	}
	identity := find(answer[4:], identityOption)
	if len(identity) < 12 {
		return netip.Addr{}, false
	}
	address := find(identity[12:], addressOption)
	if len(address) < 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(address[:16])
}

// find is the content of the first option of that code, nil for none.
func find(options []byte, code uint16) []byte {
	for len(options) >= 4 {
		length := int(binary.BigEndian.Uint16(options[2:]))
		if len(options) < 4+length {
			return nil
		}
		if binary.BigEndian.Uint16(options) == code {
			return options[4 : 4+length]
		}
		options = options[4+length:]
	}
	return nil
}

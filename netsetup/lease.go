package netsetup

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/vmctl/vmctl/config"
)

// ErrFull is a network all of whose addresses are taken.
var ErrFull = errors.New("no address of the network is free")

// Assign chooses the addresses of a card: those it is fixed to, or those that
// follow from its name, so that it gets the same again, unless taken says that
// they are another's; then the next that are free. In a network that gives none
// out there are none but fixed ones: guests have theirs from elsewhere.
func Assign(n *config.Network, vm string, nic config.NIC, taken func(netip.Addr) bool) (l Lease, err error) {
	seed := sha256.Sum256([]byte(vm + "\x00" + nic.Name))
	if first, last := n.Range4(); nic.Address.Is4() {
		l.IP4 = nic.Address
	} else if first.IsValid() && n.DHCP {
		if l.IP4, err = assign4(n, first, last, binary.BigEndian.Uint32(seed[:]), taken); err != nil {
			return l, err
		}
	}
	if p := n.Prefix6(); nic.Address.Is6() {
		l.IP6 = nic.Address
	} else if p.IsValid() && n.DHCP {
		if l.IP6, err = assign6(p, binary.BigEndian.Uint16(seed[4:]), taken); err != nil {
			return l, err
		}
	}
	return l, nil
}

func assign4(n *config.Network, first, last netip.Addr, seed uint32, taken func(netip.Addr) bool) (netip.Addr, error) {
	from := number4(first)
	size := number4(last) - from + 1
	for i := range size {
		a := address4(from + (seed%size+i)%size)
		if a != n.Gateway && !taken(a) {
			return a, nil
		}
	}
	return netip.Addr{}, ErrFull
}

// The last 16 bits of the IPv6 addresses that are given out; those below are
// the host's.
const first6, last6 = 0x1000, 0xffff

func assign6(p netip.Prefix, seed uint16, taken func(netip.Addr) bool) (netip.Addr, error) {
	const size = last6 - first6 + 1
	for i := range size {
		a := hostAddress(p, uint16(first6+(int(seed)+i)%size))
		if !taken(a) {
			return a, nil
		}
	}
	return netip.Addr{}, ErrFull
}

func number4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address4(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

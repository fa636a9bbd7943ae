package netsetup

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// Traffic is what has gone through a card, seen from the guest: received is what
// it received.
type Traffic struct {
	RxBytes   uint64 `json:"rx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxDropped uint64 `json:"rx_dropped"` // packets, like errors
	RxErrors  uint64 `json:"rx_errors"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
	TxDropped uint64 `json:"tx_dropped"`
	TxErrors  uint64 `json:"tx_errors"`
}

// Seen is what the kernel knows at one time of interfaces and of who is behind
// them.
type Seen struct {
	links      map[string]netlink.Link
	neighbours []netlink.Neigh
}

// See asks the kernel, once for all interfaces.
func See() (Seen, error) {
	s := Seen{links: map[string]netlink.Link{}}
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return s, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		s.links[l.Attrs().Name] = l
	}
	s.neighbours, err = neighbours()
	return s, err
}

// neighbours are those of all interfaces, by IPv4 and IPv6. What changes
// meanwhile may be missing, or be there twice.
func neighbours() ([]netlink.Neigh, error) {
	var all []netlink.Neigh
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		some, err := netlink.NeighList(0, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		all = append(all, some...)
	}
	return all, nil
}

// Traffic is that of a card whose interface on the host is named; nil where
// there is none. What the host sends to a TAP interface, the guest receives; a
// macvtap interface is the guest's own.
func (s Seen) Traffic(name string) *Traffic {
	link := s.links[name]
	if link == nil || link.Attrs().Statistics == nil {
		return nil
	}
	n := link.Attrs().Statistics
	if link.Type() == "macvtap" {
		return &Traffic{
			RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxDropped: n.RxDropped, RxErrors: n.RxErrors,
			TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxDropped: n.TxDropped, TxErrors: n.TxErrors,
		}
	}
	return &Traffic{
		RxBytes: n.TxBytes, RxPackets: n.TxPackets, RxDropped: n.TxDropped, RxErrors: n.TxErrors,
		TxBytes: n.RxBytes, TxPackets: n.RxPackets, TxDropped: n.RxDropped, TxErrors: n.RxErrors,
	}
}

// maxAddresses bounds those of one card: guests have a say in them.
const maxAddresses = 16

// Addresses are those at which the host has met a card, behind an interface or a
// VLAN of it: a bridge, or the card's own, and then the bridge that it is on.
func (s Seen) Addresses(device string, mac config.MAC) []netip.Addr {
	own := s.links[device]
	if own == nil {
		return nil
	}
	on := []int{own.Attrs().Index}
	if bridge := own.Attrs().MasterIndex; bridge != 0 {
		on = append(on, bridge)
	}
	behind := slices.Clone(on)
	for _, l := range s.links {
		if slices.Contains(on, l.Attrs().ParentIndex) && l.Type() == "vlan" {
			behind = append(behind, l.Attrs().Index)
		}
	}
	var all []netip.Addr
	for _, n := range s.neighbours {
		if slices.Contains(behind, n.LinkIndex) && n.State&met != 0 && isOf(n, mac) {
			ip, _ := netip.AddrFromSlice(n.IP)
			all = append(all, ip.Unmap())
		}
	}
	return Presentable(all)
}

// met are the states in which a neighbour has answered at some time.
const met = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT

func isOf(n netlink.Neigh, mac config.MAC) bool {
	return strings.EqualFold(n.HardwareAddr.String(), string(mac))
}

// Presentable are the addresses by which others may reach a guest, IPv4 first,
// each once and not endlessly many. Those that every card has on its link say
// nothing of the guest.
func Presentable(all []netip.Addr) []netip.Addr {
	all = slices.DeleteFunc(slices.Clone(all), func(a netip.Addr) bool { return !a.IsGlobalUnicast() })
	slices.SortFunc(all, netip.Addr.Compare)
	all = slices.Compact(all)
	return all[:min(len(all), maxAddresses)]
}

// ForgetNeighbours has the host forget at which addresses it has met cards: what
// it knows is of machines that had them before.
func ForgetNeighbours(macs ...config.MAC) error {
	all, err := neighbours()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range all {
		if n.State&netlink.NUD_PERMANENT != 0 || !slices.ContainsFunc(macs, func(m config.MAC) bool { return isOf(n, m) }) {
			continue
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("forget the neighbour %s: %w", n.IP, err))
		}
	}
	return errors.Join(errs...)
}

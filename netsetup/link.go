package netsetup

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Up makes what a network needs: all that is missing of it, and nothing twice.
// An interface that has the name of ours and is not ours is refused.
func Up(s State) error {
	if !s.Own {
		_, err := bridgeOf(s.Bridge)
		return err
	}
	link, err := ownBridge(s)
	if err != nil {
		return err
	}
	if err := addresses(link, s.Addresses); err != nil {
		return err
	}
	if s.VXLAN != nil {
		if err := vxlan(link, *s.VXLAN); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", s.Bridge, err)
	}
	// The filters first: nothing passes before them.
	if err := apply(s.Rules); err != nil {
		return err
	}
	return forwarding(s.Forward4, s.Forward6)
}

// Down removes what [Up] has made. What is gone already is no error.
func Down(s State) error {
	if !s.Own {
		return nil
	}
	var errs []error
	if s.VXLAN != nil {
		errs = append(errs, removeLink(s.VXLAN.Interface))
	}
	link, err := netlink.LinkByName(s.Bridge)
	switch {
	case notFound(err):
	case err != nil:
		errs = append(errs, err)
	case isOurs(link):
		errs = append(errs, removeLink(s.Bridge))
	}
	return errors.Join(append(errs, apply(s.Remove))...)
}

// Ports are the interfaces on a bridge, by name.
func Ports(bridge string) ([]string, error) {
	link, err := netlink.LinkByName(bridge)
	if notFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var names []string
	for _, l := range links {
		if l.Attrs().MasterIndex == link.Attrs().Index {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// Index is the number of an interface.
func Index(name string) (int, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find the interface %s: %w", name, err)
	}
	return link.Attrs().Index, nil
}

// alias marks the interfaces that are ours (ip-link(8), alias).
const alias = "vmctl"

func isOurs(link netlink.Link) bool { return link.Attrs().Alias == alias }

func notFound(err error) bool {
	_, ok := errors.AsType[netlink.LinkNotFoundError](err)
	return ok
}

// bridgeOf finds a bridge of the host.
func bridgeOf(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if notFound(err) {
		return nil, fmt.Errorf("want the bridge %s, the host has no such interface", name)
	}
	if err != nil {
		return nil, fmt.Errorf("find the bridge %s: %w", name, err)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("want the bridge %s, it is an interface of type %s", name, link.Type())
	}
	return link, nil
}

// ownBridge makes the bridge, or takes over the one that is there from before.
func ownBridge(s State) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = s.Bridge, s.MTU
	err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	made := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make the bridge %s: %w", s.Bridge, err)
	}
	link, err := bridgeOf(s.Bridge)
	if err != nil {
		return nil, err
	}
	if !made && !isOurs(link) {
		return nil, fmt.Errorf("the host has an interface %s that is not vmctl's: name another by the key interface", s.Bridge)
	}
	if err := mark(link, s.AltName); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetMTU(link, s.MTU); err != nil {
		return nil, fmt.Errorf("set the MTU of %s to %d: %w", s.Bridge, s.MTU, err)
	}
	return link, nil
}

// mark makes an interface known as ours, and by a name for people.
func mark(link netlink.Link, name string) error {
	if err := netlink.LinkSetAlias(link, alias); err != nil {
		return fmt.Errorf("mark %s: %w", link.Attrs().Name, err)
	}
	if slices.Contains(link.Attrs().AltNames, name) {
		return nil
	}
	if err := netlink.LinkAddAltName(link, name); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("name %s also %s: %w", link.Attrs().Name, name, err)
	}
	return nil
}

// addresses gives a bridge its addresses, and takes away those of an earlier
// definition.
func addresses(link netlink.Link, want []netip.Prefix) error {
	name := link.Attrs().Name
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	for _, a := range have {
		if !slices.Contains(want, prefixOf(a.IPNet)) && !a.IP.IsLinkLocalUnicast() {
			if err := netlink.AddrDel(link, &a); err != nil {
				return fmt.Errorf("take %s from %s: %w", a.IPNet, name, err)
			}
		}
	}
	for _, p := range want {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			// Nobody else has it, and the service binds to it at once.
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("give %s to %s: %w", p, name, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

// vxlan makes the interface to the other hosts. Frames whose receiver is not
// known go to all of them (entries of the zero address, bridge(8)).
func vxlan(bridge netlink.Link, v VXLAN) error {
	_ = removeLink(v.Interface) // of an earlier definition
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = v.Interface, v.MTU, bridge.Attrs().Index
	link := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: v.ID, SrcAddr: v.Local.AsSlice(), Port: v.Port, Learning: true}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("make the VXLAN %s: %w", v.Interface, err)
	}
	for _, peer := range v.Peers {
		err := netlink.NeighAppend(&netlink.Neigh{
			LinkIndex: link.Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
			IP: peer.AsSlice(), HardwareAddr: make(net.HardwareAddr, 6),
		})
		if err != nil {
			return fmt.Errorf("tell %s of %s: %w", v.Interface, peer, err)
		}
	}
	if err := mark(link, "vmctl-"+v.Interface); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// removeLink removes an interface, if there is one.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if notFound(err) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove the interface %s: %w", name, err)
	}
	return nil
}

// Plug makes a card's TAP interface and puts it on its bridge. The answer are
// its queues, open: the interface is there for as long as one of them is.
func Plug(s CardState) (queues []*os.File, err error) {
	bridge, err := bridgeOf(s.Bridge)
	if err != nil {
		return nil, err
	}
	if queues, err = openTap(s.Interface, s.Queues); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeAll(queues)
		}
	}()
	return queues, plug(s, bridge)
}

// plug puts a card's interface on its bridge, once nothing passes there that must
// not.
func plug(s CardState, bridge netlink.Link) error {
	link, err := netlink.LinkByName(s.Interface)
	if err != nil {
		return fmt.Errorf("find %s: %w", s.Interface, err)
	}
	if err := mark(link, s.AltName); err != nil {
		return err
	}
	mtu := s.MTU
	if mtu == 0 {
		mtu = bridge.Attrs().MTU
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set the MTU of %s to %d: %w", s.Interface, mtu, err)
	}
	if err := apply(s.Rules + limitRules(s)); err != nil {
		return err
	}
	if err := shape(s); err != nil {
		return err
	}
	if err := forwarding(s.Forward4, s.Forward6); err != nil {
		return err
	}
	if s.Localnet {
		if err := localnet(s.Bridge); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("put %s on %s: %w", s.Interface, s.Bridge, err)
	}
	if s.VLAN != 0 {
		if err := netlink.BridgeVlanAdd(link, uint16(s.VLAN), true, true, false, true); err != nil {
			return fmt.Errorf("give %s the VLAN %d: %w", s.Interface, s.VLAN, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", s.Interface, err)
	}
	return nil
}

// Unplug removes what [Plug] has made, but for what goes with the queues.
func Unplug(vm, nic string) error {
	tap := TapName(vm, nic)
	return apply(removeCard(tap) + removeLimit(tap))
}

// openTap opens the queues of a new TAP interface, which goes with the last of
// them (Documentation/networking/tuntap.rst of the kernel).
func openTap(name string, queues int) ([]*os.File, error) {
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	var files []*os.File
	for range queues {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("open /dev/net/tun: %w", err)
		}
		files = append(files, os.NewFile(uintptr(fd), name))
		request, err := unix.NewIfreq(name)
		if err == nil {
			request.SetUint16(flags)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("make the TAP interface %s: %w", name, err)
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Overlap is the route of the host that a network would take traffic from, "" if
// there is none. Routes by device, and the default routes, do not count.
func Overlap(p netip.Prefix, device string) (string, error) {
	if !p.IsValid() {
		return "", nil
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return "", fmt.Errorf("list routes: %w", err)
	}
	own := -1
	if link, err := netlink.LinkByName(device); err == nil {
		own = link.Attrs().Index
	}
	for _, r := range routes {
		if r.Dst == nil || r.LinkIndex == own {
			continue
		}
		if to := prefixOf(r.Dst); to.Bits() > 0 && to.Overlaps(p) {
			return r.Dst.String(), nil
		}
	}
	return "", nil
}

package netsetup

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// Check says what of the host is in the way of a network, by the key of its
// definition; nil for nothing.
func Check(s State) (key string, err error) {
	if !s.Own {
		_, err := bridgeOf(s.Bridge)
		return "bridge", err
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return "", ErrNoNft
	}
	names := []string{s.Bridge}
	if s.VXLAN != nil {
		names = append(names, s.VXLAN.Interface)
	}
	for _, name := range names {
		if link, err := netlink.LinkByName(name); err == nil && !s.owns(link) {
			return "interface", taken(name)
		}
	}
	return "", nil
}

// taken is the error of an interface that is somebody else's.
func taken(name string) error {
	return fmt.Errorf("the host has an interface %s that is not vmctl's: name another by the key interface", name)
}

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
	// The filters first: nothing passes before them.
	if err := apply(s.Rules); err != nil {
		return err
	}
	if s.VXLAN != nil {
		if err := vxlan(link, s); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", s.Bridge, err)
	}
	return nil
}

// Down removes what [Up] has made. What is gone already is no error.
func Down(s State) error {
	if !s.Own {
		return nil
	}
	return errors.Join(removeTunnel(s), s.remove(s.Bridge), apply(s.Remove))
}

// Change removes of what [Up] has made for a network what it no longer needs by
// its definition of now.
func Change(was, is State) error {
	if was.Own && (!is.Own || was.Bridge != is.Bridge) {
		return Down(was)
	}
	if is.VXLAN == nil {
		return removeTunnel(was)
	}
	return nil
}

func removeTunnel(s State) error {
	if s.VXLAN == nil {
		return nil
	}
	return s.remove(s.VXLAN.Interface)
}

// remove removes an interface of the network's, if there is one by the name.
func (s State) remove(name string) error {
	link, err := netlink.LinkByName(name)
	if notFound(err) || err == nil && !s.owns(link) {
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

// Ports are the interfaces on a network's bridge, but for its own: those of
// machines' cards, by a name for people, and those of others.
func Ports(s State) (cards, others []string, err error) {
	bridge, err := netlink.LinkByName(s.Bridge)
	if notFound(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find the bridge %s: %w", s.Bridge, err)
	}
	links, err := whole("interfaces", netlink.LinkList)
	if err != nil {
		return nil, nil, err
	}
	for _, l := range links {
		attrs := l.Attrs()
		switch {
		case attrs.MasterIndex != bridge.Attrs().Index, s.VXLAN != nil && attrs.Name == s.VXLAN.Interface:
		case isCard(l):
			cards = append(cards, cardName(l))
		default:
			others = append(others, attrs.Name)
		}
	}
	return cards, others, nil
}

// isCard says whether an interface is a machine's card.
func isCard(l netlink.Link) bool { return isOurs(l) && strings.HasPrefix(l.Attrs().Name, TapPrefix) }

// cardName is what a card is called for people.
func cardName(l netlink.Link) string {
	for _, name := range l.Attrs().AltNames { // others may have given it more
		if name, ok := strings.CutPrefix(name, cardPrefix); ok {
			return name
		}
	}
	return l.Attrs().Name
}

// tries is how often a list of the kernel's is asked for that changes meanwhile.
const tries = 20

// whole is a list of the kernel's, none of whose parts is missing because it has
// changed while it was read.
func whole[T any](what string, list func() ([]T, error)) (all []T, err error) {
	for range tries {
		if all, err = list(); err == nil {
			return all, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return nil, fmt.Errorf("list %s: %w", what, err)
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
	attrs.Name, attrs.MTU, attrs.HardwareAddr = s.Bridge, s.MTU, hardwareAddress(s, s.Bridge)
	err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	made := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make the bridge %s: %w", s.Bridge, err)
	}
	link, err := bridgeOf(s.Bridge)
	if err != nil {
		return nil, err
	}
	if !made && !s.owns(link) {
		return nil, taken(s.Bridge)
	}
	if err := mark(link, s.AltName); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetMTU(link, s.MTU); err != nil {
		return nil, fmt.Errorf("set the MTU of %s to %d: %w", s.Bridge, s.MTU, err)
	}
	return link, nil
}

// owns says whether an interface is the network's: marked so or, where there was
// no time for that, made with its address.
func (s State) owns(link netlink.Link) bool {
	attrs := link.Attrs()
	return isOurs(link) || bytes.Equal(attrs.HardwareAddr, hardwareAddress(s, attrs.Name))
}

// hardwareAddress is that of an interface of the network's own, the same each
// time. A bridge that is given none has that of one of its ports, and so another
// as machines come and go, while their guests remember it as their router's.
func hardwareAddress(s State, name string) net.HardwareAddr {
	seed := fmt.Sprint(name, s.AltName, s.Addresses)
	if s.VXLAN != nil {
		seed += s.VXLAN.Local.String()
	}
	sum := sha256.Sum256([]byte(seed))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2 // of one interface, locally administered (IEEE 802, 8.4)
	return mac
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
	have, err := whole("the addresses of "+name, func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return err
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

// vxlan makes the interface to the other hosts, or takes over the one that is
// there from before. Frames whose receiver is not known go to all of them
// (entries of the zero address, bridge(8)).
func vxlan(bridge netlink.Link, s State) error {
	v := *s.VXLAN
	link, err := tunnel(s)
	if err != nil {
		return err
	}
	if err := peers(link, v.Peers); err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(link, v.MTU); err != nil {
		return fmt.Errorf("set the MTU of %s to %d: %w", v.Interface, v.MTU, err)
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("put %s on %s: %w", v.Interface, bridge.Attrs().Name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", v.Interface, err)
	}
	return nil
}

// tunnel is the VXLAN's interface; one that is there and differs in what the
// kernel does not change is made anew.
func tunnel(s State) (netlink.Link, error) {
	v := *s.VXLAN
	link, err := netlink.LinkByName(v.Interface)
	switch {
	case err == nil && !s.owns(link):
		return nil, taken(v.Interface)
	case err == nil:
		if x, ok := link.(*netlink.Vxlan); ok && x.VxlanId == v.ID && x.Port == v.Port && x.SrcAddr.Equal(v.Local.AsSlice()) {
			return link, mark(link, "vmctl-"+v.Interface)
		}
		if err := s.remove(v.Interface); err != nil {
			return nil, err
		}
	case !notFound(err):
		return nil, fmt.Errorf("find %s: %w", v.Interface, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = v.Interface, v.MTU, hardwareAddress(s, v.Interface)
	made := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: v.ID, SrcAddr: v.Local.AsSlice(), Port: v.Port, Learning: true}
	if err := netlink.LinkAdd(made); err != nil {
		return nil, fmt.Errorf("make the VXLAN %s: %w", v.Interface, err)
	}
	return made, mark(made, "vmctl-"+v.Interface)
}

// peers tells a VXLAN's interface of the other hosts, and of those no more that
// are not among them.
func peers(link netlink.Link, want []netip.Addr) error {
	name := link.Attrs().Name
	entries, err := whole("the peers of "+name, func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, unix.AF_BRIDGE) })
	if err != nil {
		return err
	}
	nobody := make(net.HardwareAddr, 6)
	have := map[netip.Addr]bool{}
	for _, e := range entries {
		peer, ok := netip.AddrFromSlice(e.IP)
		peer = peer.Unmap()
		switch {
		case !ok:
		case slices.Contains(want, peer):
			have[peer] = have[peer] || e.HardwareAddr.String() == nobody.String()
		default:
			// What it has learned of guests there may have gone meanwhile.
			if err := netlink.NeighDel(&e); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("have %s forget %s: %w", name, peer, err)
			}
		}
	}
	for _, peer := range want {
		if have[peer] {
			continue
		}
		err := netlink.NeighAppend(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
			IP: peer.AsSlice(), HardwareAddr: nobody,
		})
		if err != nil {
			return fmt.Errorf("tell %s of %s: %w", name, peer, err)
		}
	}
	return nil
}

// Plug makes a card's interface and plugs it in, or opens the one that is there.
// The answer are its queues, open. A TAP interface that was made is there for as
// long as one of them is.
func Plug(s CardState) ([]*os.File, error) {
	switch {
	case s.Bridge != "":
		return plugBridge(s)
	case s.Lower != "":
		return plugMacvtap(s)
	default:
		return plugTap(s)
	}
}

// plugBridge makes a TAP interface and puts it on a bridge.
func plugBridge(s CardState) (queues []*os.File, err error) {
	bridge, err := bridgeOf(s.Bridge)
	if err != nil {
		return nil, err
	}
	if s.VLAN != 0 {
		if err := needVLANs(bridge, s.VLAN); err != nil {
			return nil, err
		}
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
	address, err := tapAddress(s.MAC)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(link, address); err != nil {
		return fmt.Errorf("set the address of %s: %w", s.Interface, err)
	}
	// A bridge that nobody has given an MTU goes by the lowest of its ports': a card's
	// own is told to its guest alone.
	mtu := bridge.Attrs().MTU
	if err := s.checkFixed(); err != nil {
		return err
	}
	if s.MTU > mtu {
		return fmt.Errorf("want an mtu of at most %d, that of %s, got %d", mtu, s.Bridge, s.MTU)
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set the MTU of %s to %d: %w", s.Interface, mtu, err)
	}
	if err := hostless(s.Interface); err != nil {
		return err
	}
	if err := s.hold(s.Rules); err != nil {
		return err
	}
	if err := shape(s, link); err != nil {
		return err
	}
	if s.Localnet {
		if err := localnet(s.Bridge, s.Interface); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("put %s on %s: %w", s.Interface, s.Bridge, err)
	}
	if s.VLAN != 0 {
		if err := onlyVLAN(link, uint16(s.VLAN)); err != nil {
			return err
		}
	}
	return setLink(s, link)
}

// tapAddress is the address of the host's end of a card: not the guest's, and
// higher than that of any real card. A bridge that nobody has given an address has
// the lowest of its ports, and would go by another with each random one.
func tapAddress(guest config.MAC) (net.HardwareAddr, error) {
	address, err := net.ParseMAC(string(guest))
	if err != nil {
		return nil, err
	}
	if address[0] == 0xfe {
		address[0] = 0xfa
	} else {
		address[0] = 0xfe
	}
	return address, nil
}

// needVLANs is the error of a bridge that does not keep VLANs apart. Only a kernel
// that can have it do that tells into which VLAN its new ports come.
func needVLANs(bridge netlink.Link, vlan int) error {
	name := bridge.Attrs().Name
	b, ok := bridge.(*netlink.Bridge)
	switch {
	case ok && b.VlanDefaultPVID == nil:
		return fmt.Errorf("want a bridge that keeps VLANs apart for the VLAN %d, %s cannot: the kernel of this host is built without that (CONFIG_BRIDGE_VLAN_FILTERING)", vlan, name)
	case !ok || b.VlanFiltering == nil || !*b.VlanFiltering:
		return fmt.Errorf("want a bridge that keeps VLANs apart for the VLAN %[2]d, %[1]s does not: ip link set %[1]s type bridge vlan_filtering 1", name, vlan)
	}
	return nil
}

// onlyVLAN has a port of a bridge be in one VLAN and in no other, which it
// notices nothing of: the bridge puts each new port into one of its own.
func onlyVLAN(link netlink.Link, vlan uint16) error {
	name := link.Attrs().Name
	all, err := netlink.BridgeVlanList()
	if err != nil {
		return fmt.Errorf("list the VLANs of %s: %w", name, err)
	}
	for _, have := range all[int32(link.Attrs().Index)] {
		if have.Vid == vlan {
			continue
		}
		if err := netlink.BridgeVlanDel(link, have.Vid, false, false, false, true); err != nil {
			return fmt.Errorf("take %s out of the VLAN %d: %w", name, have.Vid, err)
		}
	}
	if err := netlink.BridgeVlanAdd(link, vlan, true, true, false, true); err != nil {
		return fmt.Errorf("put %s into the VLAN %d: %w", name, vlan, err)
	}
	return nil
}

// Unplug removes what [Plug] has made for cards of a machine, but for what goes with
// the queues: the rules of all at once, since each change of them takes its time.
func Unplug(vm string, cards ...Unplugged) error {
	var errs []error
	var taps []string
	var rules strings.Builder
	for _, c := range cards {
		switch tap := TapName(vm, c.NIC.Name); {
		case c.onBridge():
			taps = append(taps, tap)
			rules.WriteString(removeTable("inet", cardTable(tap)) + removeLink(tap) + removeLimit(tap))
		case c.NIC.Macvtap != "":
			errs = append(errs, removeMacvtap(tap))
		}
	}
	if taps == nil {
		return errors.Join(errs...)
	}
	errs = append(errs, apply(removeFilter(taps...)+rules.String()), release(cards), noLocalnet(taps...))
	return errors.Join(append(errs, removeCards("bridge", doneChain), removeCards("netdev", linkChain))...)
}

// Unplugged is a card that goes, and the network that it was in: nil for one that is
// in none of ours, or in one that is gone.
type Unplugged struct {
	NIC     config.NIC
	Network *config.Network
}

func (u Unplugged) onBridge() bool { return u.NIC.Network != "" || u.NIC.Bridge != "" }

// release has nobody own the addresses of cards on bridges of the host's own. Into which
// VLAN a bridge put those without one is not noted: where the bridge has gone, or puts
// them into another by now, what they had stays theirs until the last card that shares
// their sets goes.
func release(cards []Unplugged) error {
	domains := map[string][]config.MAC{}
	for _, c := range cards {
		bridge, vlan := hostBridgeOf(c.NIC, c.Network)
		if bridge == "" {
			continue
		}
		pvid := 0
		if link, err := bridgeOf(bridge); err == nil {
			pvid = pvidOf(link)
		}
		d := domain(bridge, vlan, pvid)
		domains[d] = append(domains[d], c.NIC.MAC)
	}
	var errs []error
	for d, macs := range domains {
		errs = append(errs, freeAddresses(d, macs))
	}
	return errors.Join(errs...)
}

// HostBridge is what cards on a bridge of the host's own have to know of it.
type HostBridge struct {
	Addresses []netip.Addr // that are no guest's: the host's there, and its routers'
	PVID      int          // the VLAN of cards that have none of their own; 0: it keeps none apart
}

// FindHostBridge finds out about one. What it does not know, it does not leave out:
// guests could have it.
func FindHostBridge(name string) (h HostBridge, err error) {
	link, err := bridgeOf(name)
	if err != nil {
		return h, err
	}
	h.PVID = pvidOf(link)
	links, err := whole("interfaces", netlink.LinkList)
	if err != nil {
		return h, err
	}
	on := []int{link.Attrs().Index}
	for _, l := range links {
		if standsOn(l, on[0]) {
			on = append(on, l.Attrs().Index)
		}
	}
	add := func(ip net.IP) {
		if a, ok := netip.AddrFromSlice(ip); ok && !a.IsUnspecified() {
			h.Addresses = append(h.Addresses, a.Unmap())
		}
	}
	addresses, err := whole("addresses", func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return h, err
	}
	for _, a := range addresses {
		if slices.Contains(on, a.LinkIndex) {
			add(a.IP)
		}
	}
	routes, err := routesOf(unix.RT_TABLE_UNSPEC)
	if err != nil {
		return h, err
	}
	for _, r := range routes {
		for _, hop := range append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: r.LinkIndex, Gw: r.Gw}) {
			if slices.Contains(on, hop.LinkIndex) {
				add(hop.Gw)
			}
		}
	}
	slices.SortFunc(h.Addresses, netip.Addr.Compare)
	h.Addresses = slices.Compact(h.Addresses)
	return h, nil
}

// standsOn says whether what an interface sends goes out by another. Others have a
// number there too, such as that of a cable's other end, in whatever namespace.
func standsOn(l netlink.Link, lower int) bool {
	attrs := l.Attrs()
	on := []string{"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"}
	return attrs.ParentIndex == lower && attrs.NetNsID < 0 && slices.Contains(on, l.Type())
}

// pvidOf is the VLAN into which a bridge puts what comes without a tag, 0 where it
// has none.
func pvidOf(bridge netlink.Link) int {
	b, ok := bridge.(*netlink.Bridge)
	if !ok || b.VlanDefaultPVID == nil {
		return 0
	}
	return int(*b.VlanDefaultPVID)
}

// routesOf are the host's routes in a table, or, for unix.RT_TABLE_UNSPEC, in all.
func routesOf(table int) ([]netlink.Route, error) {
	return whole("routes", func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
}

// shortestRoute is the length of the prefixes that somebody is behind. Shorter ones
// are in place of a default route, such as 0.0.0.0/1 and 128.0.0.0/1 of a VPN.
const shortestRoute = 8

// Overlap is the route of the host that a network would take traffic from, with its
// device, "" if there is none. Routes by device, and the default routes, do not
// count, nor those by which nothing gets anywhere (blackhole); nor does anything for
// a subnet that the device has already.
func Overlap(p netip.Prefix, device string) (string, error) {
	if !p.IsValid() {
		return "", nil
	}
	routes, err := routesOf(unix.RT_TABLE_MAIN)
	if err != nil {
		return "", err
	}
	own := -1
	if link, err := netlink.LinkByName(device); err == nil {
		own = link.Attrs().Index
	}
	overlap := ""
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		to := prefixOf(r.Dst)
		switch {
		case r.LinkIndex == own && to == p.Masked():
			return "", nil
		case r.Type != unix.RTN_UNICAST || to.Bits() < shortestRoute:
		case r.LinkIndex != own && to.Overlaps(p) && overlap == "":
			overlap = r.Dst.String()
			if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
				overlap += " dev " + link.Attrs().Name
			}
		}
	}
	return overlap, nil
}

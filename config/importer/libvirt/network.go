package libvirt

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/config/importer"
)

// network is a network that is being written.
type network struct {
	*importer.Builder
	root *importer.Node
}

func convertNetwork(file string, root *importer.Node) (*importer.Definition, error) {
	name := root.At("name")
	if name == nil {
		return nil, wrong(file, root, "want <name> in <network>, got none")
	}
	forward := root.At("forward")
	mode := cmp.Or(forward.Attr("mode"), map[bool]string{true: "nat"}[forward != nil])
	bridge := root.At("bridge").Attribute("name")
	switch mode {
	case "", "nat", "route", "open":
	case "bridge":
		if bridge == nil {
			return nil, wrong(file, forward, "want a network with a bridge, got one of macvtap interfaces: cards have nic.NAME.macvtap instead")
		}
	default:
		return nil, wrong(file, forward, "want a network that is isolated, or forwards by nat, route, open or bridge, got %q", mode)
	}
	b, err := importer.NewBuilder(file, config.KindNetwork, root, name)
	if err != nil {
		return nil, err
	}
	n := &network{b, root}
	root.DropAll("uuid", "metadata", "mac", "@ipv6", "@connections", "@trustGuestRxFilters")
	root.At("bridge").DropAll("@stp", "@delay", "@macTableManager", "@zone")
	switch mode {
	case "":
		n.Default("isolated", "true")
	case "route", "open":
		n.Default("nat", "false")
		n.Default("nat6", "false")
	}
	if mode == "bridge" {
		n.Set(bridge, "bridge", bridge.Text())
		return b.Finish(root, reason), nil
	}
	if bridge != nil {
		n.Leave(bridge, "the bridge has a name of vmctl's", "interface = \""+bridge.Text()+"\" keeps it, once libvirt's network is gone (virsh net-destroy)")
	}
	n.forward(forward)
	n.addresses()
	n.names()
	if mtu := root.At("mtu"); mtu != nil {
		n.Set(mtu, "mtu", mtu.Attr("size"))
	}
	return b.Finish(root, reason), nil
}

func (n *network) forward(f *importer.Node) {
	if dev := f.Attribute("dev"); dev != nil {
		n.Leave(dev, "guests go out by any interface of the host", "")
		f.DropAll("interface")
	}
	nat := f.At("nat")
	if nat.Attr("ipv6") == "yes" {
		nat.DropAll("@ipv6")
	}
}

// addresses are the first network of each protocol.
func (n *network) addresses() {
	dhcp := false
	for _, ip := range n.root.All("ip") {
		prefix, gateway, err := subnet(ip)
		six := ip.Attr("family") == "ipv6"
		key := map[bool]string{false: "subnet", true: "subnet6"}[six]
		switch {
		case err != nil:
			n.Leave(ip, err.Error(), "")
			continue
		case n.Draft.Has(key):
			n.Leave(ip, "a network has one subnet of each protocol", "")
			continue
		case !n.Set(ip, key, prefix.String()):
			continue
		}
		if !six && gateway != prefix.Addr().Next() {
			n.Set(ip, "gateway", gateway.String())
		}
		d := ip.At("dhcp")
		dhcp = dhcp || d != nil
		for i, r := range d.All("range") {
			if six || i > 0 {
				n.Leave(r, "a network has one range of IPv4 addresses that it gives out", "dhcp_range")
				continue
			}
			n.Set(r, "dhcp_range", r.Attr("start")+"-"+r.Attr("end"))
		}
		for _, host := range d.All("host") {
			instead := fmt.Sprintf("[nic.NAME] address = \"%s\" in that machine's definition", host.Attr("ip"))
			if six {
				instead = ""
			}
			n.Leave(host, "a fixed address stands with the card that has it", instead)
		}
		ip.DropAll("@localPtr", "tftp")
	}
	if !dhcp {
		n.Default("dhcp", "false")
	}
	if !n.Draft.Has("subnet6") && n.Draft.Has("subnet") {
		n.Default("subnet6", "none")
	}
}

// subnet reads the network of an address, and the address itself.
func subnet(ip *importer.Node) (netip.Prefix, netip.Addr, error) {
	address, err := netip.ParseAddr(ip.Attr("address"))
	if err != nil {
		return netip.Prefix{}, netip.Addr{}, err
	}
	bits := number(ip.Attr("prefix"))
	if mask, err := netip.ParseAddr(ip.Attr("netmask")); err == nil && mask.Is4() {
		bits = 0
		for _, b := range mask.As4() {
			bits += int64(strings.Count(strconv.FormatInt(int64(b), 2), "1"))
		}
	}
	if bits < 0 {
		bits = map[bool]int64{true: 24, false: 64}[address.Is4()]
	}
	prefix, err := address.Prefix(int(bits))
	return prefix, address, err
}

func (n *network) names() {
	if domain := n.root.At("domain"); domain.Attr("name") != "" {
		domain.DropAll("@localOnly", "@register")
		n.Set(domain, "domain", domain.Attr("name"))
	}
	dns := n.root.At("dns")
	dns.DropAll("@forwardPlainNames")
	for _, f := range dns.All("forwarder") {
		if address := f.Attr("addr"); address != "" && f.Attr("domain") == "" {
			n.Set(f, "dns", address)
		} else {
			n.Leave(f, "all questions go to the same name servers", "")
		}
	}
}

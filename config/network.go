package config

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Network is one of vmctl's networks: NAME.toml in the networks' directories,
// with its drop-ins. The tags are those of [Machine].
type Network struct {
	Name   string  `toml:"-" json:"name"`
	origin *origin // where each key was written

	Description string `toml:"description" json:"description,omitempty" doc:"one line for people"`

	Interface string `toml:"interface" json:"interface" form:"interface" doc:"name of the bridge that vmctl makes; default: derived from the network's name"`
	Bridge    string `toml:"bridge" json:"bridge,omitempty" form:"interface" doc:"an existing bridge of the host to use instead of an own one; vmctl gives it no addresses, and changes nothing of it"`

	Subnet  string     `toml:"subnet" json:"subnet,omitempty" form:"prefix4" doc:"IPv4 network of the guests, e.g. \"192.168.100.0/24\"; default: none"`
	Subnet6 string     `toml:"subnet6" json:"subnet6,omitempty" form:"prefix6" doc:"IPv6 network of the guests, a /64; \"auto\": an own one (ULA, RFC 4193) derived from host and network, so stable; \"none\"; default: \"auto\" with subnet"`
	Gateway netip.Addr `toml:"gateway" json:"gateway,omitzero" doc:"the host's IPv4 address in the network; default: the first of the subnet"`

	DHCP      bool     `toml:"dhcp" json:"dhcp" default:"true" doc:"give addresses to the guests (DHCPv4, DHCPv6 and router advertisements) and answer for their names; where not, guests have addresses of the subnet from elsewhere, and a card is held to one by its address alone"`
	DHCPRange string   `toml:"dhcp_range" json:"dhcp_range,omitempty" form:"range4" doc:"IPv4 addresses that are given out, \"FIRST-LAST\"; default: all of the subnet but the gateway"`
	LeaseTime Duration `toml:"lease_time" json:"lease_time" default:"\"1h\"" doc:"how long an address is lent"`
	DNS       []string `toml:"dns" json:"dns,omitempty" doc:"name servers that the guests' other questions are passed on to; default: the host's"`
	Domain    string   `toml:"domain" json:"domain" form:"hostname" doc:"domain of the guests, for which the network answers alone, so no top-level one of the Internet's, such as com or dev, is accepted; default: the network's name, with a warning where that is one of those"`

	NAT      bool `toml:"nat" json:"nat" default:"true" doc:"let guests out under the host's IPv4 address"`
	NAT6     bool `toml:"nat6" json:"nat6" default:"true" doc:"let guests out under the host's IPv6 address"`
	Isolated bool `toml:"isolated" json:"isolated" doc:"no way out of the network, nor to other networks"`

	AllowFrom []string `toml:"allow_from" json:"allow_from,omitempty" form:"name" doc:"other networks whose guests may reach the guests of this one, under their own addresses; default: none, but by forwards"`

	MTU       int   `toml:"mtu" json:"mtu,omitempty" min:"1280" max:"65535" doc:"largest packet in bytes; default 1500, with vxlan 1450, or 1430 where that goes over IPv6"`
	VLAN      int   `toml:"vlan" json:"vlan,omitempty" min:"1" max:"4094" doc:"VLAN tag of the guests on the host's bridge"`
	Autostart bool  `toml:"autostart" json:"autostart" doc:"start with the host; else it starts with the first machine that uses it"`
	VXLAN     VXLAN `toml:"vxlan" json:"vxlan" doc:"one network over several hosts"`
}

// VXLAN ties the bridges of several hosts together (RFC 7348).
type VXLAN struct {
	ID    int          `toml:"id" json:"id,omitempty" min:"1" max:"16777215" doc:"the same on all hosts"`
	Local netip.Addr   `toml:"local" json:"local,omitzero" doc:"address of this host"`
	Peers []netip.Addr `toml:"peers" json:"peers,omitempty" doc:"addresses of the other hosts"`
	Port  int          `toml:"port" json:"port" min:"1" max:"65535" default:"4789" doc:"UDP port"`
}

// NetworkChange is a key that has another value than it had.
type NetworkChange struct{ Key, Was, Is string }

// Waiting are the changes from was that wait until no machine is plugged into n.
func (n *Network) Waiting(was *Network) []NetworkChange {
	vlan := func(n *Network) string {
		if n.VLAN == 0 {
			return ""
		}
		return strconv.Itoa(n.VLAN)
	}
	return slices.DeleteFunc([]NetworkChange{
		{"interface", was.Interface, n.Interface},
		{"bridge", was.Bridge, n.Bridge},
		{"vlan", vlan(was), vlan(n)},
		{"subnet", was.Subnet, n.Subnet},
		{"subnet6", was.Subnet6, n.Subnet6},
	}, func(c NetworkChange) bool { return c.Was == c.Is })
}

// Prefix4 is the IPv4 subnet, the zero prefix where there is none.
func (n *Network) Prefix4() netip.Prefix { return parsedPrefix(n.Subnet) }

// Prefix6 is the IPv6 subnet, the zero prefix where there is none.
func (n *Network) Prefix6() netip.Prefix { return parsedPrefix(n.Subnet6) }

func parsedPrefix(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// Range4 are the first and last IPv4 address that are given out; zero where
// none are.
func (n *Network) Range4() (first, last netip.Addr) {
	a, b, _ := strings.Cut(n.DHCPRange, "-")
	first, err1 := netip.ParseAddr(a)
	last, err2 := netip.ParseAddr(b)
	if err1 != nil || err2 != nil {
		return netip.Addr{}, netip.Addr{}
	}
	return first, last
}

// Gateway6 is the host's IPv6 address in the network; zero where it has none.
func (n *Network) Gateway6() netip.Addr {
	if p := n.Prefix6(); p.IsValid() {
		return p.Masked().Addr().Next()
	}
	return netip.Addr{}
}

// Device is the bridge that the machines' interfaces are put on.
func (n *Network) Device() string {
	if n.Bridge != "" {
		return n.Bridge
	}
	return n.Interface
}

// Problem is that of [Machine.Problem].
func (n *Network) Problem(key, format string, args ...any) Problem {
	text := fmt.Sprintf(format, args...)
	if n.origin == nil {
		return Problem{Key: key, Text: text}
	}
	return n.origin.problem(key, key, text)
}

// NetworkFile is one network as it was found.
type NetworkFile struct {
	Name     string
	File     string
	Network  *Network // nil where there are problems
	Problems []Problem
	// Warnings are what may be a mistake, but keeps the network from nothing.
	Warnings []Problem
}

// LoadNetworks reads every network, by name.
func LoadNetworks(p Paths) ([]NetworkFile, []Problem) {
	return newNetworkLoader(p, machineID(p)).all()
}

// networkLoader holds what is the same for all networks.
type networkLoader struct {
	paths     Paths
	schema    *table // of Network
	machineID string
}

func newNetworkLoader(p Paths, machineID string) networkLoader {
	return networkLoader{p, schemaOf(reflect.TypeFor[Network]()), machineID}
}

// all reads every network, by name, and checks them together.
func (l networkLoader) all() ([]NetworkFile, []Problem) {
	found, problems := l.paths.search(l.paths.NetworkDirs)
	var all []NetworkFile
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if n := l.load(name, found[name]); n != nil {
			all = append(all, *n)
		}
	}
	crossCheckNetworks(all)
	return all, problems
}

// LoadNetwork reads one network, without the checks that concern others. The
// error is fs.ErrNotExist where none is defined by that name.
func LoadNetwork(p Paths, name string) (NetworkFile, error) {
	if err := CheckName(name); err != nil {
		return NetworkFile{}, fmt.Errorf("network %s: %w (%w)", show(name), fs.ErrNotExist, err)
	}
	at := p.find(p.NetworkDirs, name)
	if at.file == "" {
		return NetworkFile{}, fmt.Errorf("network %s: %w: no %s%s in %s", name, fs.ErrNotExist, name, suffix, strings.Join(p.NetworkDirs, ", "))
	}
	n := newNetworkLoader(p, machineID(p)).load(name, at)
	if n == nil {
		return NetworkFile{}, fmt.Errorf("network %s: %w: masked by %s", name, fs.ErrNotExist, at.file)
	}
	return *n, nil
}

// LoadNetworkFile is [LoadFile] for a network.
func LoadNetworkFile(p Paths, file string) NetworkFile {
	return newNetworkLoader(p, machineID(p)).alone(readSource(file, false))
}

// TryNetwork is [Try] for a network. What it must not share with others it is
// blamed for, and not they.
func TryNetwork(p Paths, file, text string) NetworkFile {
	draft := &source{file: file, tree: newTree(0), masked: text == ""}
	if !draft.masked {
		draft.parse(text)
	}
	l := newNetworkLoader(p, machineID(p))
	tried := l.alone(draft)
	if tried.Network == nil {
		return tried
	}
	tried = l.build(tried.Name, slices.Concat([]*source{draft}, p.dropIns(p.find(p.NetworkDirs, tried.Name).dropIns)))
	others, _ := l.all()
	if tried.Network != nil {
		tried.Problems = append(tried.Problems, strangers(tried.Network, others)...)
	}
	for _, other := range others {
		if tried.Network != nil && other.Network != nil && other.Name != tried.Name {
			tried.Problems = append(tried.Problems, clashes(tried.Network, other.Network)...)
		}
	}
	if len(tried.Problems) > 0 {
		tried.Network = nil
	}
	return tried
}

// alone is a network of one file, after which it is named.
func (l networkLoader) alone(main *source) NetworkFile {
	name := strings.TrimSuffix(filepath.Base(main.file), suffix)
	refused := func(problem Problem) NetworkFile {
		return NetworkFile{Name: name, File: main.file, Problems: []Problem{problem}}
	}
	if want := wantName(name); want != "" {
		return refused(badName(main.file, want))
	}
	if main.masked {
		return refused(Problem{File: main.file, Text: "want a definition, got an empty file"})
	}
	return l.build(name, []*source{main})
}

// load reads one network; nil where it is masked.
func (l networkLoader) load(name string, at entry) *NetworkFile {
	main := l.paths.source(at.file, false)
	if main.masked {
		return nil
	}
	n := l.build(name, slices.Concat([]*source{main}, l.paths.dropIns(at.dropIns)))
	return &n
}

// build makes a network of its main file and drop-ins.
func (l networkLoader) build(name string, own []*source) NetworkFile {
	out := NetworkFile{Name: name, File: own[0].file}
	files := layered(own)
	if out.Problems = files.problems; len(out.Problems) > 0 {
		SortProblems(out.Problems)
		return out
	}
	n := l.schema.zero.Interface().(Network)
	n.Name, n.origin = name, &files.origin
	d := decoder{}
	d.table(l.schema, files.tree, reflect.ValueOf(&n).Elem())
	c := networkChecker{checker{decoder: &d, tree: files.tree}, &n}
	c.fill(l.machineID)
	c.check()
	out.Problems = d.problems(files.origin)
	SortProblems(out.Problems)
	if len(out.Problems) == 0 {
		out.Network = &n
		if !c.given("domain") && n.takesDomain() {
			out.Warnings = append(out.Warnings, n.Problem("domain", "guests are named after the network, in %s, which is a top-level domain of the Internet: neither guests nor host find any other name there; domain = \"%s.internal\" is their own", n.Domain, n.Name))
		}
	}
	return out
}

// topLevelDomains are those of the Internet, a line for each.
// (golang.org/x/net/publicsuffix, which cmd/vmctl compares it with, links net/http,
// and all that reads definitions would with it.)
//
//go:embed topleveldomains.txt
var topLevelDomains string

// takesDomain says whether a network takes a whole top-level domain of the Internet,
// such as dev, from its guests and the host: its service answers for all in it.
func (n *Network) takesDomain() bool {
	domain := strings.ToLower(n.Domain)
	if n.Bridge != "" || !n.DHCP {
		return false
	}
	return strings.Contains(topLevelDomains, "\n"+domain+"\n")
}

// networkChecker is [checker] for a network.
type networkChecker struct {
	checker
	network *Network
}

// fill sets the defaults that no tag can say.
func (c networkChecker) fill(machineID string) {
	n := c.network
	if n.Interface == "" {
		n.Interface = InterfaceName("vmbr", n.Name)
	}
	if n.Domain == "" {
		n.Domain = n.Name
	}
	if n.Subnet6 == "" && n.Subnet != "" {
		n.Subnet6 = "auto"
	}
	switch n.Subnet6 {
	case "auto":
		n.Subnet6 = deriveULA(machineID, n.Name).String()
	case "none":
		n.Subnet6 = ""
	}
	if n.MTU == 0 {
		n.MTU = 1500
		// What VXLAN adds (RFC 7348, 5), over IPv4 or IPv6.
		switch v := n.VXLAN; {
		case v.ID != 0 && v.Local.Is6():
			n.MTU -= 70
		case v.ID != 0:
			n.MTU -= 50
		}
	}
	if p := n.Prefix4(); p.IsValid() {
		if !n.Gateway.IsValid() {
			n.Gateway = p.Masked().Addr().Next()
		}
		if n.DHCPRange == "" {
			n.DHCPRange = defaultRange(p, n.Gateway)
		}
	}
	if n.Isolated {
		n.NAT, n.NAT6 = false, false
	}
}

// defaultRange are the longest run of addresses of a subnet without the
// network's own, the broadcast address and the gateway.
func defaultRange(p netip.Prefix, gateway netip.Addr) string {
	first, last := p.Masked().Addr().Next(), broadcast(p).Prev()
	switch {
	case gateway == first:
		first = first.Next()
	case gateway == last:
		last = last.Prev()
	case p.Contains(gateway):
		last = gateway.Prev() // the part below is not always the longer, but always simple to tell
		if first == gateway {
			last = broadcast(p).Prev()
		}
	}
	return first.String() + "-" + last.String()
}

// broadcast is the last address of an IPv4 subnet.
func broadcast(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a)
}

// deriveULA is the /64 of a network: global and subnet ID are hashes, so that
// two hosts that are joined later do not have the same (RFC 4193, 3.2.2).
func deriveULA(machineID, network string) netip.Prefix {
	sum := sha256.Sum256([]byte("vmctl network\x00" + machineID + "\x00" + network))
	a := [16]byte{0: 0xfd}
	copy(a[1:8], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// InterfaceName is a name for a network interface of ours, at most 15 bytes:
// prefix and name, shortened to a hash where that is too long. The dot of a
// shortened one keeps the two kinds apart.
func InterfaceName(prefix string, names ...string) string {
	const longest = 15
	whole := prefix + "-" + strings.Join(names, "-")
	if len(names) == 1 && len(whole) <= longest {
		return whole
	}
	sum := sha256.Sum256([]byte(strings.Join(names, "\x00")))
	return prefix + "." + hex.EncodeToString(sum[:])[:longest-1-len(prefix)]
}

func (c networkChecker) check() {
	n := c.network
	if c.good("bridge") && n.Bridge != "" {
		for _, key := range []string{"interface", "subnet", "subnet6", "gateway", "dhcp", "dhcp_range", "dns", "nat", "nat6", "mtu", "vxlan", "allow_from"} {
			if c.given(key) {
				c.bad(key, "want none for a bridge of the host, got one beside bridge = %s", show(n.Bridge))
			}
		}
		return
	}
	c.checkSubnet()
	c.checkRange()
	if n.VLAN != 0 {
		c.bad("vlan", "want a bridge of the host (bridge = …) for a VLAN, got none")
	}
	for i, server := range n.DNS {
		if a, err := netip.ParseAddr(server); err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			c.element("dns", i, "want the IP address of a name server, got %s", show(server))
		}
	}
	c.checkVXLAN()
	// One that is named so has always had that domain, and keeps it.
	if c.given("domain") && c.good("domain", "dhcp") && n.takesDomain() {
		c.bad("domain", "want a domain of the guests' own, such as \"%s.internal\", got %s, which is a top-level one of the Internet: neither guests nor host would find any other name in it", n.Name, show(n.Domain))
	}
	if n.Isolated && len(n.AllowFrom) > 0 {
		c.bad("allow_from", "want a network that is not isolated, whose guests could not answer")
	}
}

func (c networkChecker) checkSubnet() {
	n := c.network
	if !c.good("subnet", "gateway") {
		return
	}
	p := n.Prefix4()
	switch {
	case !p.IsValid() && n.Gateway.IsValid():
		c.bad("gateway", "want a subnet with it, got none")
	case !p.IsValid():
	case !p.Contains(n.Gateway) || n.Gateway == p.Addr() || n.Gateway == broadcast(p):
		c.bad("gateway", "want an address of a host in %s, got %s", p, n.Gateway)
	}
}

func (c networkChecker) checkRange() {
	n := c.network
	if !c.good("subnet", "gateway", "dhcp_range") || n.DHCPRange == "" {
		return
	}
	p := n.Prefix4()
	first, last := n.Range4()
	switch {
	case !p.IsValid():
		c.bad("dhcp_range", "want a subnet with it, got none")
	case !p.Contains(first) || !p.Contains(last) || first == p.Addr() || last == broadcast(p):
		c.bad("dhcp_range", "want addresses of hosts in %s, got %s", p, show(n.DHCPRange))
	case last.Less(first):
		c.bad("dhcp_range", "want the first address before the last, got %s", show(n.DHCPRange))
	case !n.Gateway.Less(first) && !last.Less(n.Gateway):
		c.bad("dhcp_range", "want a range without the gateway %s, got %s", n.Gateway, show(n.DHCPRange))
	}
}

func (c networkChecker) checkVXLAN() {
	v := c.network.VXLAN
	switch {
	case !c.given("vxlan") || !c.good("vxlan.id", "vxlan.local", "vxlan.peers"):
	case v.ID == 0:
		c.bad("vxlan.id", "want the number of the VXLAN, got none")
	case !v.Local.IsValid():
		c.bad("vxlan.local", "want the address of this host, got none")
	default:
		for i, peer := range v.Peers {
			if peer.Is4() != v.Local.Is4() {
				c.element("vxlan.peers", i, "want an address of the kind of local = %s, got %s", show(v.Local.String()), show(peer.String()))
			}
		}
	}
}

// crossCheckNetworks finds what two networks must not share. The later by name
// is blamed.
func crossCheckNetworks(all []NetworkFile) {
	for i := range all {
		for k := range i {
			if all[i].Network != nil && all[k].Network != nil {
				all[i].Problems = append(all[i].Problems, clashes(all[i].Network, all[k].Network)...)
			}
		}
	}
	for i := range all {
		if n := all[i].Network; n != nil {
			all[i].Problems = append(all[i].Problems, strangers(n, all)...)
		}
	}
	for i := range all {
		if len(all[i].Problems) > 0 {
			SortProblems(all[i].Problems)
			all[i].Network = nil
		}
	}
}

func networkNames(all []NetworkFile) []string {
	var names []string
	for _, n := range all {
		names = append(names, n.Name)
	}
	return names
}

// strangers finds networks that a network lets in, and that could not come.
func strangers(n *Network, all []NetworkFile) []Problem {
	var out []Problem
	for i, name := range n.AllowFrom {
		k := slices.IndexFunc(all, func(f NetworkFile) bool { return f.Name == name })
		key := index("allow_from", i)
		switch {
		case name == n.Name:
			out = append(out, n.Problem(key, "want another network, got %s itself", show(name)))
		case k < 0:
			out = append(out, n.Problem(key, "want a network that is defined, got %s%s", show(name), didYouMean(name, networkNames(all))))
		case all[k].Network == nil: // which has problems of its own
		case all[k].Network.Bridge != "":
			out = append(out, n.Problem(key, "want a network with a bridge of its own, got %s on %s, whose guests come as anybody from outside does", show(name), all[k].Network.Bridge))
		case all[k].Network.Isolated:
			out = append(out, n.Problem(key, "want a network that is not isolated, got %s", show(name)))
		}
	}
	return out
}

func clashes(n, other *Network) []Problem {
	var out []Problem
	if n.Bridge == "" && other.Bridge == "" && n.Interface == other.Interface {
		out = append(out, n.Problem("interface", "want a name of its own, got %s as network %s has", show(n.Interface), other.Name))
	}
	if a, b := n.Prefix4(), other.Prefix4(); a.IsValid() && b.IsValid() && a.Overlaps(b) {
		out = append(out, n.Problem("subnet", "want a subnet of its own, got %s, which overlaps %s of network %s", a, b, other.Name))
	}
	if a, b := n.Prefix6(), other.Prefix6(); a.IsValid() && b.IsValid() && a.Overlaps(b) {
		out = append(out, n.Problem("subnet6", "want a subnet of its own, got %s, which overlaps %s of network %s", a, b, other.Name))
	}
	serve := func(n *Network) bool { return n.Bridge == "" && n.DHCP }
	if serve(n) && serve(other) && strings.EqualFold(n.Domain, other.Domain) {
		out = append(out, n.Problem("domain", "want a domain of its own, got %s as network %s has", show(n.Domain), other.Name))
	}
	if n.VXLAN.ID != 0 && n.VXLAN.ID == other.VXLAN.ID && n.VXLAN.Port == other.VXLAN.Port {
		out = append(out, n.Problem("vxlan.id", "want a number of its own, got %d as network %s has", n.VXLAN.ID, other.Name))
	}
	return out
}

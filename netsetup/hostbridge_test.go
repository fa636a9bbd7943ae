package netsetup

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// bridgeRig is a host with a bridge of its own, its router behind it, and guests on
// it whose addresses nobody has told us.
type bridgeRig struct {
	rig
	on HostBridge
}

func newBridgeRig(t *testing.T) bridgeRig {
	t.Helper()
	inNamespace(t)
	for _, args := range []string{
		"link add br0 type bridge", "link set br0 up", "address add 192.0.2.1/24 dev br0", "-6 address add 2001:db8::1/64 dev br0 nodad",
		"route add default via 192.0.2.254", "-6 route add default via fe80::fe dev br0",
	} {
		output(t, "ip "+args)
	}
	r := bridgeRig{rig: rig{TB: t}}
	var err error
	if r.on, err = FindHostBridge("br0"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"192.0.2.1", "192.0.2.254", "2001:db8::1", "fe80::fe"} {
		if !strings.Contains(fmt.Sprint(r.on.Addresses), want) {
			t.Errorf("the host's addresses and routers are %v, want %s among them", r.on.Addresses, want)
		}
	}
	return r
}

// plug puts a guest on the bridge, by the keys of its card.
func (r bridgeRig) plug(vm string, nic config.NIC) namespace {
	r.Helper()
	n := newNamespace(r.TB)
	card := Card(vm, nic, nil, FixedLease(nic), r.on)
	n.connect(card.Interface, "eth0")
	// Only what a test sends.
	n.run("ip link set eth0 address " + string(nic.MAC) + " arp off addrgenmode none up")
	bridge, err := bridgeOf("br0")
	if err != nil {
		r.Fatal(err)
	}
	if err := plug(card, bridge); err != nil {
		r.Fatal(err)
	}
	return n
}

// expect has frames sent of which so many are dropped, by a rule.
func (r bridgeRig) expect(what, rule string, want int, send func()) {
	r.Helper()
	all, by := r.dropped(""), r.dropped(rule)
	send()
	if got := r.dropped("") - all; got != want || r.dropped(rule)-by != want {
		r.Errorf("%s: dropped %d, %d by the rule %q, want %d:\n%s", what, got, r.dropped(rule)-by, rule, want, listed(r))
	}
}

// What a guest may send on a bridge of the host's own: from the addresses that it is
// the first to have there, and from no other guest's, the host's or its router's.
func TestSpoofingOnHostBridge(t *testing.T) {
	const (
		webMAC, dbMAC     = "52540000000a", "52540000000d"
		web6, db6, shared = "20010db8000000001111111111111111", "20010db8000000002222222222222222", "20010db8000000003333333333333333"
		fixed6            = "20010db8000000000000000000000014"
		local             = "fe80000000000000a1b2c3d4e5f60718"
		nodes             = "ff020000000000000000000000000001"
		none              = "00000000000000000000000000000000"
	)
	r := newBridgeRig(t)
	nic := func(mac, address string) config.NIC {
		n := config.NIC{Name: "net", Bridge: "br0", MAC: config.MAC(mac), Queues: 1}
		if address != "" {
			n.Address = netip.MustParseAddr(address)
		}
		return n
	}
	webNIC := nic("52:54:00:00:00:0a", "")
	web, db := r.plug("web", webNIC), r.plug("db", nic("52:54:00:00:00:0d", ""))
	send := func(n namespace, mac, rest string) func() {
		return func() { n.spoof(frame(t, "ffffffffffff"+mac+rest)) }
	}
	ip4 := func(source string) string {
		return "0800 45000024 00000000 40110000" + source + "c0000263 00350035 00100000 0000000000000000"
	}
	arp := func(mac, address string) string {
		return "0806 0001 0800 06 04 0001" + mac + address + "000000000000 c0000263"
	}
	from := func(address string) string { return ip6(address, nodes, "3b", "00000000") }
	has := func(by, address string) string { return ip6(by, nodes, "3a", "88000000 60000000"+address) }
	asks := func(address string) string { return ip6(none, nodes, "3a", "87000000 00000000"+address) }

	for _, tt := range []struct {
		what string
		rule string // that drops it; "" for none
		send func()
	}{
		{"web asks by DHCP", "", send(web, webMAC, "0800 4500001c 00000000 40110000 00000000 ffffffff 0044 0044 0008 0000")},
		{"web asks whether an address is free", "", send(web, webMAC, arp(webMAC, "00000000"))},
		{"web has an address", "", send(web, webMAC, arp(webMAC, "c000020a"))},
		{"web sends from it", "", send(web, webMAC, ip4("c000020a"))},
		{"db sends from web's", "ip saddr @owned4", send(db, dbMAC, ip4("c000020a"))},
		{"db says that it has web's", "arp saddr ip @owned4", send(db, dbMAC, arp(dbMAC, "c000020a"))},
		{"db says so in web's name", "ether saddr !=", send(db, webMAC, arp(webMAC, "c000020a"))},
		{"db says that web's address is at its own", "arp saddr ether !=", send(db, dbMAC, arp(webMAC, "c000020a"))},
		{"db sends from its own", "", send(db, dbMAC, ip4("c000020d"))},
		{"web says that it has that", "arp saddr ip @owned4", send(web, webMAC, arp(webMAC, "c000020d"))},
		{"web sends from the host's", "ip saddr 192.0.2.1 ", send(web, webMAC, ip4("c0000201"))},
		{"web says that it has the host's", "arp saddr ip 192.0.2.1 ", send(web, webMAC, arp(webMAC, "c0000201"))},
		{"web sends from the router's", "ip saddr 192.0.2.254 ", send(web, webMAC, ip4("c00002fe"))},
		{"web says that it has the router's", "arp saddr ip 192.0.2.254 ", send(web, webMAC, arp(webMAC, "c00002fe"))},
		{"web has an IPv6 address", "", send(web, webMAC, has(web6, web6))},
		{"db sends from it", "@nh,64,128 @owned6", send(db, dbMAC, from(web6))},
		{"db says that it has it", "@th,64,128 @owned6", send(db, dbMAC, has(db6, web6))},
		{"db asks whether it is free", "@th,64,128 @owned6", send(db, dbMAC, asks(web6))},
		{"db has a link-local address", "", send(db, dbMAC, has(local, local))},
		{"web sends from that", "@nh,64,128 @owned6", send(web, webMAC, from(local))},
		{"web sends from the host's IPv6 address", "ip6 saddr 2001:db8::1 ", send(web, webMAC, from("20010db8000000000000000000000001"))},
		{"web says that it has that", "@th,64,128 0x20010db8000000000000000000000001 ", send(web, webMAC, has(web6, "20010db8000000000000000000000001"))},
		{"web sends from the router's", "ip6 saddr fe80::fe ", send(web, webMAC, from("fe8000000000000000000000000000fe"))},
		{"web says that it has that", "@th,64,128 0xfe8000000000000000000000000000fe ", send(web, webMAC, has(web6, "fe8000000000000000000000000000fe"))},
		{"web sends from what has another's Ethernet address", "@nh,152,16 0xfffe", send(web, webMAC, from("20010db800000000505400fffe00000d"))},
		{"web says that it has such a one", "@th,152,16 0xfffe", send(web, webMAC, has(web6, "20010db800000000505400fffe00000d"))},
		{"web sends from what has its own", "", send(web, webMAC, from("20010db800000000505400fffe00000a"))},
		{"web serves DHCP", "udp sport 67", send(web, webMAC, "0800 4500001c 00000000 40110000 c000020a ffffffff 0043 0044 0008 0000")},
		{"web says that it is a router", "nd-router-advert", send(web, webMAC, ip6("fe80000000000000505400fffe00000a", nodes, "3a", "86000000 40000708 00000000 00000000"))},
		{"web sends a tag", "ether type !=", send(web, webMAC, "81000000"+ip4("c000020a"))},
	} {
		want := 0
		if tt.rule != "" {
			want = 1
		}
		r.expect(tt.what, tt.rule, want, tt.send)
	}

	// Rules that are put back keep what is known.
	if err := Refilter(Card("web", webNIC, nil, Lease{}, r.on)); err != nil {
		t.Fatal(err)
	}
	r.expect("db sends from web's, after a change of rules", "ip saddr @owned4", 1, send(db, dbMAC, ip4("c000020a")))

	// A definition counts for more than who was first.
	r.expect("web sends from what is db2's later", "", 0, func() {
		send(web, webMAC, ip4("c0000214"))()
		send(web, webMAC, from(fixed6))()
	})
	const db2MAC, db3MAC = "5254000000d2", "5254000000d3"
	db2, db3 := r.plug("db2", nic("52:54:00:00:00:d2", "192.0.2.20")), r.plug("db3", nic("52:54:00:00:00:d3", "2001:db8::14"))
	for _, tt := range []struct {
		what, rule string
		send       func()
	}{
		{"db2 sends from its own", "", send(db2, db2MAC, ip4("c0000214"))},
		{"db2 sends from another", "ip saddr != { 0.0.0.0", send(db2, db2MAC, ip4("c0000215"))},
		{"db2 says that it has another", "arp saddr ip != { 0.0.0.0", send(db2, db2MAC, arp(db2MAC, "c0000215"))},
		{"db2 makes an IPv6 address", "", send(db2, db2MAC, from(shared))},
		{"web sends from db2's", "ip saddr @fixed4", send(web, webMAC, ip4("c0000214"))},
		{"web says that it has db2's", "arp saddr ip @fixed4", send(web, webMAC, arp(webMAC, "c0000214"))},
		{"db3 sends from its own", "", send(db3, db3MAC, from(fixed6))},
		{"db3 says that it has its own", "", send(db3, db3MAC, has(fixed6, fixed6))},
		{"db3 sends from another", "ip6 saddr != fe80::/64", send(db3, db3MAC, from("20010db8000000000000000000000015"))},
		{"db3 says that it has another", "@th,64,64 != 0xfe80000000000000", send(db3, db3MAC, has(fixed6, "20010db8000000000000000000000015"))},
		{"db3 makes a link-local address", "", send(db3, db3MAC, from("fe800000000000001234567812345678"))},
		{"db3 has an IPv4 address", "", send(db3, db3MAC, ip4("c000021e"))},
		{"web sends from db3's", "@nh,64,128 @fixed6", send(web, webMAC, from(fixed6))},
		{"web says that it has db3's", "@th,64,128 @fixed6", send(web, webMAC, has(web6, fixed6))},
	} {
		want := 0
		if tt.rule != "" {
			want = 1
		}
		r.expect(tt.what, tt.rule, want, tt.send)
	}

	// What a card had is free once it is gone; what others have is not.
	for vm, n := range map[string]config.NIC{"db": nic("52:54:00:00:00:0d", ""), "db2": nic("52:54:00:00:00:d2", "192.0.2.20"), "db3": nic("52:54:00:00:00:d3", "2001:db8::14")} {
		if err := Unplug(vm, Unplugged{n, nil}); err != nil {
			t.Fatal(err)
		}
	}
	r.expect("web sends from what was others'", "", 0, func() {
		for _, address := range []string{"c000020d", "c0000214", "c000021e"} {
			send(web, webMAC, ip4(address))()
			send(web, webMAC, arp(webMAC, address))()
		}
		for _, address := range []string{db6, local, fixed6, shared} {
			send(web, webMAC, from(address))()
		}
	})
	newer := r.plug("newer", nic("52:54:00:00:00:e0", ""))
	r.expect("another sends from what is web's still", "ip saddr @owned4", 1, send(newer, "5254000000e0", ip4("c000020a")))

	// Nobody has all addresses of a link.
	before := r.dropped("update @makers4")
	for i := range 40 {
		send(newer, "5254000000e0", ip4(fmt.Sprintf("c00002%02x", 100+i)))()
	}
	if n := r.dropped("update @makers4") - before; n < 20 || n > 24 {
		t.Errorf("of 40 addresses, %d are refused, want all but 16", n)
	}
	// But who starts once more has its own again.
	if err := Unplug("newer", Unplugged{nic("52:54:00:00:00:e0", ""), nil}); err != nil {
		t.Fatal(err)
	}
	output(t, "ip link delete "+TapName("newer", nic("", "").Name))
	newer = r.plug("newer", nic("52:54:00:00:00:e0", ""))
	r.expect("it sends after it was plugged in again", "", 0, send(newer, "5254000000e0", ip4("c0000265")))
	for _, vm := range []string{"web", "newer"} {
		mac := map[string]string{"web": "52:54:00:00:00:0a", "newer": "52:54:00:00:00:e0"}[vm]
		if err := Unplug(vm, Unplugged{nic(mac, ""), nil}); err != nil {
			t.Fatal(err)
		}
	}
	if left := output(t, "nft list ruleset"); left != "" {
		t.Errorf("left is:\n%s", left)
	}
}

// What a definition gives to a card is that card's for as long as it is there: nobody
// frees it who had it at another time, and no other is plugged in with it.
func TestFixedOnHostBridge(t *testing.T) {
	r := newBridgeRig(t)
	nic := func(name, mac, address string) config.NIC {
		return config.NIC{Name: name, Bridge: "br0", MAC: config.MAC(mac), Queues: 1, Address: netip.MustParseAddr(address)}
	}
	addresses := map[string]string{"v4": "192.0.2.20", "v6": "2001:db8::14"}
	web := config.NIC{Name: "net", Bridge: "br0", MAC: "52:54:00:00:00:0a", Queues: 1}
	guest := r.plug("web", web)
	taken := func(want bool, when string) {
		t.Helper()
		for rule, send := range map[string]string{
			"ip saddr @fixed4":   "0800 45000024 00000000 40110000 c0000214 c0000263 00350035 00100000 0000000000000000",
			"@nh,64,128 @fixed6": ip6("20010db8000000000000000000000014", "ff020000000000000000000000000001", "3b", "00000000"),
		} {
			before := r.dropped(rule)
			guest.spoof(frame(t, "ffffffffffff52540000000a"+send))
			if got := r.dropped(rule) != before; got != want {
				t.Errorf("%s, what is another's is dropped by %q: %v, want %v", when, rule, got, want)
			}
		}
	}
	for kind, address := range addresses {
		r.plug("db"+kind, nic("net", map[string]string{"v4": "52:54:00:00:00:d4", "v6": "52:54:00:00:00:d6"}[kind], address))
	}
	taken(true, "while they have them")
	for kind, address := range addresses {
		// Whose start was refused, with what was its own when it ran last.
		if err := Unplug("old", Unplugged{nic("net", "52:54:00:00:00:01", address), nil}); err != nil {
			t.Fatal(err)
		}
		card := Card("new"+kind, config.NIC{Name: "net", Network: "lan", MAC: "52:54:00:00:00:02", Queues: 1}, &config.Network{Name: "lan", Bridge: "br0"}, FixedLease(nic("", "", address)), r.on)
		queues, err := Plug(card)
		if want := "want an address of its own on br0, got " + address + ", which the card db" + kind + "-net is plugged in with"; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		closeAll(queues)
	}
	taken(true, "after another with the same has gone")
	// Whatever their definitions say by now.
	if err := Unplug("dbv4", Unplugged{nic("net", "52:54:00:00:00:d4", "192.0.2.77"), nil}); err != nil {
		t.Fatal(err)
	}
	if err := Unplug("dbv6", Unplugged{config.NIC{Name: "net", Bridge: "br0", MAC: "52:54:00:00:00:d6"}, nil}); err != nil {
		t.Fatal(err)
	}
	taken(false, "after they have gone")
}

// Who has no sets any more has made no addresses either, so that the next start with its
// Ethernet address may make as many as any.
func TestMakerOfNoSets(t *testing.T) {
	r := newBridgeRig(t)
	web := config.NIC{Name: "net", Bridge: "br0", MAC: "52:54:00:00:00:0a", Queues: 1}
	r.plug("db", config.NIC{Name: "net", Bridge: "br0", MAC: "52:54:00:00:00:0d", Queues: 1}) // so that the table stays
	guest := r.plug("web", web)
	makes := func() bool {
		return strings.Contains(output(t, "nft list set bridge "+cardsTable+" makers4"), string(web.MAC))
	}
	eventually(t, "it has made an address", func() bool { // once the bridge forwards what comes from it
		guest.spoof(frame(t, "ffffffffffff52540000000a0800 45000024 00000000 40110000 c0000214 c0000263 00350035 00100000 0000000000000000"))
		return makes()
	})
	output(t, "ip link add br1 type bridge")
	web.Bridge = "br1" // where nobody is
	if err := Unplug("web", Unplugged{web, nil}); err != nil {
		t.Fatal(err)
	}
	if makes() {
		t.Errorf("it has made addresses still:\n%s", listed(r))
	}
}

// A machine's cards go with a few changes of the packet filter, however many they are.
func TestManyGoAtOnce(t *testing.T) {
	r := newBridgeRig(t)
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal(err)
	}
	var cards []Unplugged
	for i := range 8 {
		nic := config.NIC{Name: fmt.Sprint("net", i), Bridge: "br0", MAC: config.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i)), Queues: 1, Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(20 + i)})}
		queues, err := Plug(Card("web", nic, nil, FixedLease(nic), r.on))
		if err != nil {
			t.Fatal(err)
		}
		closeAll(queues)
		cards = append(cards, Unplugged{nic, nil})
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\necho >>%s/runs\nexec %s \"$@\"\n", dir, nft)
	if err := os.WriteFile(filepath.Join(dir, "nft"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, c := range []struct {
		cards []Unplugged
		most  int
	}{{cards[:7], 7}, {cards[7:], 4}} { // with the last, the sets go as they are
		if err := Unplug("web", c.cards...); err != nil {
			t.Fatal(err)
		}
		runs, err := os.ReadFile(filepath.Join(dir, "runs"))
		if err != nil || len(runs) > c.most {
			t.Errorf("%d cards: nft was run %d times, want at most %d (%v)", len(c.cards), len(runs), c.most, err)
		}
		if err := os.Remove(filepath.Join(dir, "runs")); err != nil {
			t.Fatal(err)
		}
	}
	if left := output(t, "nft list ruleset"); left != "" {
		t.Errorf("left is:\n%s", left)
	}
}

// What is the host's on a bridge is on what stands on it, too, and on no cable's other
// end.
func TestHostOnBridge(t *testing.T) {
	r := newBridgeRig(t)
	output(t, "ip link add link br0 name mv0 type macvlan")
	output(t, "ip link set mv0 up")
	output(t, "ip address add 198.51.100.1/24 dev mv0")
	on, err := FindHostBridge("br0")
	if err != nil || len(on.Addresses) <= len(r.on.Addresses) || !slices.Contains(on.Addresses, netip.MustParseAddr("198.51.100.1")) {
		t.Errorf("got %v, %v", on, err)
	}
	for _, l := range []netlink.Link{
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{ParentIndex: 7, NetNsID: -1}},
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{ParentIndex: 7, NetNsID: 0}},
		&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{ParentIndex: 7, NetNsID: 0}}, // of another namespace
		&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{ParentIndex: 8, NetNsID: -1}},
	} {
		if standsOn(l, 7) {
			t.Errorf("%s %+v stands on 7", l.Type(), l.Attrs())
		}
	}
	if !standsOn(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{ParentIndex: 7, NetNsID: -1}}, 7) {
		t.Error("a VLAN does not stand on its bridge")
	}
}

// A list that changes while it is read is read again, and never taken for all there is.
func TestWhole(t *testing.T) {
	for fails, want := range map[int]int{0: 1, 3: 1, tries: 0} {
		n := 0
		all, err := whole("things", func() ([]string, error) {
			if n++; n <= fails {
				return []string{"some", "of", "them"}, netlink.ErrDumpInterrupted
			}
			return []string{"all"}, nil
		})
		if len(all) != want || (err == nil) != (want == 1) {
			t.Errorf("interrupted %d times: %v, %v", fails, all, err)
		}
	}
	if _, err := whole("things", func() ([]string, error) { return nil, unix.EPERM }); err == nil || err.Error() != "list things: operation not permitted" {
		t.Error(err)
	}
}

// Two guests may have one address on two bridges, or in two VLANs.
func TestSameAddressElsewhere(t *testing.T) {
	r := newBridgeRig(t)
	output(t, "ip link add br1 type bridge")
	rules := ""
	domains := map[string]bool{}
	for i, c := range []struct {
		nic     config.NIC
		network *config.Network
	}{
		{config.NIC{Bridge: "br0"}, nil},
		{config.NIC{Bridge: "br1"}, nil},
		{config.NIC{Bridge: "br0", VLAN: 5}, nil},
		{config.NIC{Network: "lan"}, &config.Network{Name: "lan", Bridge: "br0", VLAN: 6}},
		{config.NIC{Network: "lan", VLAN: 7}, &config.Network{Name: "lan", Bridge: "br0", VLAN: 6}},
	} {
		c.nic.Name, c.nic.MAC = "net", config.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i))
		rules += Card(fmt.Sprintf("web%d", i), c.nic, c.network, Lease{}, HostBridge{}).Rules
		domains[domainOf(c.nic, c.network, 0)] = true
	}
	r.nft(rules)
	if len(domains) != 5 {
		t.Errorf("five cards share %d sets", len(domains))
	}
	lan := &config.Network{Name: "lan", Bridge: "br0"}
	if domainOf(config.NIC{Network: "lan"}, lan, 0) != domainOf(config.NIC{Bridge: "br0"}, nil, 0) {
		t.Error("cards by a network and without on one bridge share none")
	}
	// The bridge puts who has no VLAN into this one.
	for _, nic := range []config.NIC{{Bridge: "br0", VLAN: 5}, {Network: "lan", VLAN: 5}} {
		if domainOf(nic, lan, 5) != domainOf(config.NIC{Bridge: "br0"}, nil, 5) {
			t.Errorf("%+v shares none with who is in the VLAN 5 without saying so", nic)
		}
	}
	if domainOf(config.NIC{Bridge: "br0", VLAN: 6}, nil, 5) == domainOf(config.NIC{Bridge: "br0"}, nil, 5) {
		t.Error("two VLANs share sets")
	}
}

// domainOf are the sets that a card goes by, on a bridge that puts what has no tag
// into a VLAN.
func domainOf(nic config.NIC, network *config.Network, pvid int) string {
	if nic.Network == "" {
		network = nil
	}
	nic.Name, nic.MAC = "net", "52:54:00:00:00:01"
	return Card("web", nic, network, Lease{}, HostBridge{PVID: pvid}).domain
}

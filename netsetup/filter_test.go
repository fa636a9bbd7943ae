package netsetup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// rig is a host with a network, guests in it and somebody outside.
type rig struct {
	testing.TB
	network *config.Network
	card    CardState // of the guest web
	nic     config.NIC
	lease   Lease
	web, db namespace // guests; web is held to its card's rules
	outside namespace
}

// newRig makes the host in the test's own namespace. keys are those of web's
// card.
func newRig(t *testing.T, keys string) rig {
	t.Helper()
	network, machine := load(t, txtar.Parse([]byte(`
-- network.toml --
subnet = "192.168.100.0/24"
subnet6 = "fd00:1::/64"
nat = false
nat6 = false
-- vm.toml --
memory = "64M"
[nic.net]
network = "lan"
address = "192.168.100.10"
`+keys)))
	inNamespace(t)
	if err := Up(Network(network)); err != nil {
		t.Fatal(err)
	}
	r := rig{TB: t, network: network, nic: machine.NICs[0], web: newNamespace(t), db: newNamespace(t), outside: newNamespace(t)}
	var err error
	if r.lease, err = Assign(network, "web", r.nic, func(netip.Addr) bool { return false }); err != nil {
		t.Fatal(err)
	}
	r.card = Card("web", r.nic, network, r.lease, HostBridge{})
	r.guest(r.web, r.card, r.nic.MAC, r.lease)
	other := CardState{Interface: "vmt-db", MAC: "52:54:00:00:00:dd", AltName: "vmctl-db-net", Bridge: r.card.Bridge, Queues: 1}
	r.guest(r.db, other, "52:54:00:00:00:dd", Lease{netip.MustParseAddr("192.168.100.20"), netip.MustParseAddr("fd00:1::20")})
	r.outside.connect("up0", "eth0")
	r.outside.run("ip address add 198.51.100.2/24 dev eth0")
	r.outside.run("ip -6 address add 2001:db8::2/64 dev eth0 nodad")
	r.outside.run("ip link set eth0 up")
	r.outside.run("ip route add 192.168.100.0/24 via 198.51.100.1")
	r.outside.run("ip -6 route add fd00:1::/64 via 2001:db8::1")
	for _, args := range []string{"address add 198.51.100.1/24 dev up0", "-6 address add 2001:db8::1/64 dev up0 nodad", "link set up0 up"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatal(err, string(out))
		}
	}
	forwardFor(t, network)
	// Without NAT nobody outside begins a connection; here they may.
	r.nft(`insert rule inet vmctl_network_lan forward iifname "up0" accept`)
	settled(t)
	for _, n := range []namespace{r.web, r.db, r.outside} {
		n.in(func() { settled(t) })
		for _, port := range []string{"22", "80", "8050"} {
			n.serve(":" + port)
			n.serveUDP("0.0.0.0:" + port)
			n.serveUDP("[::]:" + port)
		}
	}
	return r
}

func (r rig) guest(n namespace, card CardState, mac config.MAC, lease Lease) {
	r.Helper()
	n.connect(card.Interface, "eth0")
	n.run("ip link set eth0 address " + string(mac) + " up")
	n.run("ip address add " + lease.IP4.String() + "/24 dev eth0")
	n.run("ip -6 address add " + lease.IP6.String() + "/64 dev eth0 nodad")
	bridge, err := bridgeOf(card.Bridge)
	if err != nil {
		r.Fatal(err)
	}
	if err := plug(card, bridge); err != nil {
		r.Fatal(err)
	}
	n.run("ip route add default via 192.168.100.1")
	n.run("ip -6 route add default via fd00:1::1")
}

func (r rig) nft(rules string) {
	r.Helper()
	if err := apply(rules); err != nil {
		r.Fatal(err)
	}
}

// dropped is how many packets the rules of web's card have dropped that contain
// a text.
func (r rig) dropped(text string) int {
	r.Helper()
	n := 0
	for line := range strings.Lines(listed(r)) {
		if m := regexp.MustCompile(`counter packets (\d+) .*drop`).FindStringSubmatch(line); m != nil && strings.Contains(line, text) {
			packets, _ := strconv.Atoi(m[1])
			n += packets
		}
	}
	return n
}

// drops has something sent of which so many packets are dropped. What guests' kernels
// tell by IGMP in between lists drop, too: then it is sent again.
func (r rig) drops(what string, want int, send func()) {
	r.Helper()
	got := -1
	for i := 0; i < 5 && got != want; i++ {
		before := r.dropped("")
		send()
		got = r.dropped("") - before
	}
	if got != want {
		r.Errorf("%s: dropped %d, want %d", what, got, want)
	}
}

// serveUDP sends each datagram back.
func (n namespace) serveUDP(address string) {
	n.Helper()
	var c net.PacketConn
	var err error
	network := "udp4"
	if strings.Contains(address, "[") {
		network = "udp6"
	}
	n.in(func() { c, err = net.ListenPacket(network, address) })
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 65536)
		for {
			k, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:k], from)
		}
	}()
}

// reaches says whether n gets an answer of an address by "tcp/22", "udp/80" or
// "icmp". Where none is expected it does not wait long.
func (n namespace) reaches(what, address string, expected bool) (answered bool) {
	patience := time.Second
	if expected {
		patience = 10 * time.Second
	}
	n.in(func() {
		protocol, port, _ := strings.Cut(what, "/")
		for end := time.Now().Add(patience); !answered && time.Now().Before(end); {
			switch protocol {
			case "tcp":
				c, err := net.DialTimeout("tcp", net.JoinHostPort(address, port), patience)
				if answered = err == nil; answered {
					c.Close()
				}
			case "udp":
				answered = exchange("udp", net.JoinHostPort(address, port), []byte("hello"), 1)
			case "icmp":
				answered = ping(address)
			}
		}
	})
	return answered
}

// exchange sends a packet and waits for the answer, at most as many seconds.
func exchange(network, address string, packet []byte, seconds int) bool {
	c, err := net.Dial(network, address)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Duration(seconds) * time.Second))
	if _, err := c.Write(packet); err != nil {
		return false
	}
	b := make([]byte, 65536)
	for {
		// Without the IPv4 header, which Read has of a raw socket.
		k, _, err := c.(net.PacketConn).ReadFrom(b)
		if err != nil {
			return false
		}
		if k > 0 && (network == "udp" || b[0] == 0 || b[0] == 129) {
			return true
		}
	}
}

var echoes uint16

// ping asks once (RFC 792, RFC 4443), by an identifier of its own.
func ping(address string) bool {
	echoes++
	packet := []byte{8, 0, 0, 0, 0, 0, 0, 1}
	network := "ip4:icmp"
	if strings.Contains(address, ":") {
		network, packet[0] = "ip6:ipv6-icmp", 128 // whose checksum the kernel makes
	}
	binary.BigEndian.PutUint16(packet[4:], echoes)
	if packet[0] == 8 {
		sum := uint32(8<<8) + uint32(echoes) + 1
		binary.BigEndian.PutUint16(packet[2:], ^uint16(sum+sum>>16))
	}
	return exchange(network, address, packet, 1)
}

type attempt struct {
	from, to string // web, db, host, outside
	what     string
	want     bool
}

// try makes attempts by IPv4 and IPv6.
func (r rig) try(attempts []attempt) {
	r.Helper()
	addresses := map[string][]string{
		"web": {"192.168.100.10", r.lease.IP6.String()}, "db": {"192.168.100.20", "fd00:1::20"},
		"outside": {"198.51.100.2", "2001:db8::2"},
	}
	who := map[string]namespace{"web": r.web, "db": r.db, "outside": r.outside}
	for _, a := range attempts {
		for _, address := range addresses[a.to] {
			if got := who[a.from].reaches(a.what, address, a.want); got != a.want {
				r.Errorf("%s to %s (%s) by %s: reached %v, want %v", a.from, a.to, address, a.what, got, a.want)
			}
		}
	}
}

// TestLists: each kind of rule, in both directions, among guests of a network and
// with those outside.
func TestLists(t *testing.T) {
	for _, tt := range []struct {
		name, keys string
		attempts   []attempt
	}{
		{"allow in", `allow_in = ["tcp/22", "udp/8000-8100 from 198.51.100.0/24", "udp/8000-8100 from 2001:db8::/32", "icmp from 192.168.100.20", "icmp from fd00:1::20"]`, []attempt{
			{"db", "web", "tcp/22", true}, {"outside", "web", "tcp/22", true},
			{"db", "web", "tcp/80", false}, {"outside", "web", "tcp/80", false},
			{"db", "web", "udp/8050", false}, {"outside", "web", "udp/8050", true}, {"outside", "web", "udp/80", false},
			{"db", "web", "icmp", true}, {"outside", "web", "icmp", false},
			// Answers to what the guest asks pass.
			{"web", "outside", "tcp/80", true}, {"web", "db", "udp/80", true}, {"web", "outside", "icmp", true},
		}},
		{"allow out", `allow_out = ["tcp/80 to 198.51.100.2", "tcp/80 to 2001:db8::/64", "udp/8000-8100", "icmp"]`, []attempt{
			{"web", "outside", "tcp/80", true}, {"web", "outside", "tcp/22", false}, {"web", "db", "tcp/80", false},
			{"web", "db", "udp/8050", true}, {"web", "db", "udp/80", false}, {"web", "outside", "icmp", true},
			{"db", "web", "tcp/22", true}, {"outside", "web", "udp/80", true}, {"outside", "web", "icmp", true},
		}},
		{"deny in", `deny_in = ["tcp/22", "any from 198.51.100.2", "any from 2001:db8::2", "icmp"]`, []attempt{
			{"db", "web", "tcp/22", false}, {"db", "web", "tcp/80", true}, {"db", "web", "udp/22", true}, {"db", "web", "icmp", false},
			{"outside", "web", "tcp/80", false}, {"outside", "web", "udp/80", false},
			{"web", "outside", "tcp/80", true}, {"web", "db", "icmp", true},
		}},
		{"deny out", "allow_out = [\"any\"]\ndeny_out = [\"tcp to 198.51.100.0/24\", \"tcp to 2001:db8::/32\", \"udp/1-80\"]", []attempt{
			{"web", "outside", "tcp/80", false}, {"web", "db", "tcp/80", true}, {"web", "db", "udp/80", false}, {"web", "db", "udp/8050", true},
			{"web", "outside", "icmp", true}, {"outside", "web", "tcp/22", true},
		}},
		{"deny all", "deny_in = [\"any\"]\ndeny_out = [\"any\"]", []attempt{
			{"web", "db", "tcp/80", false}, {"db", "web", "tcp/80", false}, {"web", "outside", "icmp", false}, {"db", "web", "udp/80", false},
		}},
		{"both", "allow_in = [\"tcp/22\"]\nallow_out = [\"tcp/80\", \"icmp\"]", []attempt{
			{"db", "web", "tcp/22", true}, {"db", "web", "tcp/80", false}, {"web", "db", "tcp/80", true}, {"web", "db", "tcp/22", false},
			{"web", "outside", "icmp", true}, {"outside", "web", "icmp", false},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, tt.keys)
			r.try(tt.attempts)
			if r.dropped("") == 0 {
				t.Error("no packet is counted as dropped")
			}
		})
	}
}

// TestFragments: what belongs to a packet that a list lets through passes with
// it, and nothing else does.
func TestFragments(t *testing.T) {
	r := newRig(t, "allow_in = [\"udp/80\"]\nallow_out = [\"udp/8050\"]")
	big := make([]byte, 4000)
	for address, want := range map[string]bool{
		"192.168.100.10:80": true, "[" + r.lease.IP6.String() + "]:80": true, "192.168.100.10:8050": false,
	} {
		var got bool
		r.db.in(func() {
			for range 30 {
				if got = exchange("udp", address, big, 1); got || !want {
					break
				}
			}
		})
		if got != want {
			t.Errorf("a datagram in fragments to %s: answered %v, want %v", address, got, want)
		}
	}
}

// spoof sends frames by the guest's interface as they are.
func (n namespace) spoof(frames ...[]byte) {
	n.Helper()
	n.in(func() {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			n.Error(err)
			return
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			n.Error(err)
			return
		}
		defer unix.Close(fd)
		for _, frame := range frames {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6}); err != nil {
				n.Error(err)
			}
		}
	})
}

// frame reads a frame in which spaces are for people.
func frame(t testing.TB, text string) []byte {
	t.Helper()
	text = strings.Join(strings.Fields(text), "")
	var b []byte
	for i := 0; i+1 < len(text); i += 2 {
		n, err := strconv.ParseUint(text[i:i+2], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, byte(n))
	}
	return b
}

// checked gives the packet of IPv4 in a frame its checksum, without which a bridge
// may not pass it on.
func checked(frame []byte) []byte {
	var sum uint32
	binary.BigEndian.PutUint16(frame[24:], 0)
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(frame[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(frame[24:], ^uint16(sum+sum>>16))
	return frame
}

// ip6 is a packet of IPv6 in a frame, all in hexadecimal digits.
func ip6(source, destination, next, payload string) string {
	return fmt.Sprintf("86dd 60000000 %04x %s ff %s %s %s", len(strings.Join(strings.Fields(payload), ""))/2, next, source, destination, payload)
}

// TestSpoofing: what a guest sends under another's name is dropped, each kind by
// the rule that is for it; what it may send is not.
func TestSpoofing(t *testing.T) {
	r := newRig(t, `mac = "52:54:00:00:00:0a"`)
	own6 := fmt.Sprintf("%x", r.lease.IP6.AsSlice())
	const (
		broadcast, own, other = "ffffffffffff", "52540000000a", "5254000000dd"
		prefix                = "fd000001000000000000000000"
		ll                    = "fe80000000000000505400fffe00000a"
		nodes                 = "ff020000000000000000000000000001"
		none                  = "00000000000000000000000000000000"
	)
	request := func(mac, length string) string { // what DHCP calls a BOOTREQUEST
		return "0044 0043 00f8 0000 01 01" + length + "00" + strings.Repeat("00", 24) + mac + strings.Repeat("00", 206)
	}
	ip4 := func(source, destination, protocol, payload string) string {
		return "0800 45000024 00000000 40" + protocol + "0000" + source + destination + payload + "0000000000000000"
	}
	arp := func(sender, address string) string {
		return "0806 0001 0800 06 04 0002" + sender + address + broadcast + "c0a86414"
	}
	advert := func(address string) string { return "88000000 60000000" + address + "0201" + own }
	solicit := func(address string) string { return "87000000 00000000" + address }
	for _, tt := range []struct{ what, frame, rule string }{
		{"MAC", broadcast + other + ip4("c0a8640a", "c0a86414", "11", "0035003500080000"), "ether saddr !="},
		{"ARP of another card", broadcast + own + arp(other, "c0a8640a"), "arp saddr ether !="},
		{"ARP of another's address", broadcast + own + arp(own, "c0a86414"), "arp saddr ip !="},
		{"IPv4", broadcast + own + ip4("c0a86414", "c0a86401", "11", "0035003500080000"), "ip saddr != { 0.0.0.0"},
		{"IPv4 from elsewhere", broadcast + own + ip4("08080808", "c0a86414", "06", "0035003500080000"), "ip saddr != { 0.0.0.0"},
		{"IPv6 from elsewhere", broadcast + own + ip6("20010db8000000000000000000000002", nodes, "3b", "00000000"), "ip6 saddr != ::"},
		{"IPv6 of the host", broadcast + own + ip6(prefix+"000001", nodes, "3b", "00000000"), "ip6 saddr fd00:1::1 "},
		{"IPv6 of another's lease", broadcast + own + ip6(prefix+"001234", nodes, "3b", "00000000"), "ip6 saddr fd00:1::1000-fd00:1::ffff"},
		{"neighbour advertisement of the host", broadcast + own + ip6(ll, nodes, "3a", advert(prefix+"000001")), "@th,64,128 0xfd000001000000000000000000000001 "},
		{"neighbour advertisement of another's lease", broadcast + own + ip6(ll, nodes, "3a", advert(prefix+"001234")), "@th,64,128 0xfd000001000000000000000000001000-"},
		{"IPv6 of another's Ethernet address", broadcast + own + ip6("fd00000100000000505400fffe0000dd", nodes, "3b", "00000000"), "ip6 saddr fd00:1::/64 @nh,152,16"},
		{"link-local address of another", broadcast + own + ip6("fe80000000000000505400fffe0000dd", nodes, "3b", "00000000"), "ip6 saddr fe80::/64 @nh,152,16"},
		{"neighbour advertisement of another's Ethernet address", broadcast + own + ip6(ll, nodes, "3a", advert("fd00000100000000505400fffe0000dd")), "@th,64,64 0xfd00000100000000 @th,152,16"},
		{"neighbour advertisement of another's link-local address", broadcast + own + ip6(ll, nodes, "3a", advert("fe80000000000000505400fffe0000dd")), "@th,64,64 0xfe80000000000000 @th,152,16"},
		{"whether another's address is free", broadcast + own + ip6(none, nodes, "3a", solicit(prefix+"001234")), "@th,64,128 0xfd000001000000000000000000001000-"},
		{"DHCP server", broadcast + own + ip4("c0a8640a", "ffffffff", "11", "0043004400080000"), "udp sport 67"},
		{"DHCPv6 server", broadcast + own + ip6(ll, nodes, "11", "0223022200080000"), "udp sport 547"},
		{"router advertisement", broadcast + own + ip6(ll, nodes, "3a", "86000000 40000708 00000000 00000000"), "nd-router-advert"},
		{"redirect", broadcast + own + ip6(ll, nodes, "3a", "89000000 00000000"+nodes+nodes), "nd-router-advert"},
		{"in a frame of VLAN 0", broadcast + own + "81000000" + ip4("c0a86414", "c0a86401", "11", "0035003500080000"), "ether type !="},
		{"in a frame of two tags", broadcast + own + "88a8000081000001" + ip4("c0a86414", "c0a86401", "11", "0035003500080000"), "ether type !="},
		{"behind a header of IEEE 802.2", broadcast + own + "002c aaaa03000000" + ip4("c0a86414", "c0a86401", "11", "0035003500080000"), "ether type !="},
		{"PPPoE", broadcast + own + "8863 11090000 0000" + none, "ether type !="},
		{"asks for another's address", broadcast + own + ip4("00000000", "ffffffff", "11", request(other, "06")), "@th,288,48 != 0x52540000000a"},
		{"asks for many addresses", broadcast + own + ip4("00000000", "ffffffff", "11", request(own, "05")), "@th,72,16 != 0x106"},
		{"asks for an address in fragments", broadcast + own + "0800 4500001c 00002000 40110000 00000000 ffffffff 0044 0043 00f8 0000", "frag-off"},
		{"for its neighbour alone", "0180c200000e" + own + ip4("c0a8640a", "c0a86401", "11", "0035003500080000"), "01:80:c2"},
		{"for its neighbour alone, as another", "0180c2000002" + other + "8809 01", "01:80:c2"},
		{"a first fragment without what it is of", broadcast + own + ip6(ll, nodes, "2c", "3c000001 12345678 11000104 00000000"), "\t\tcounter packets"},
		{"a neighbour advertisement in fragments", broadcast + own + ip6(ll, nodes, "2c", "3a000001 12345678"+advert(ll)), "nd-router-solicit, nd-router-advert"},

		{"a first fragment", broadcast + own + ip6(ll, nodes, "2c", "11000001 12345678 00350035 00180000"), ""},
		{"its second", broadcast + own + ip6(ll, nodes, "2c", "11000008 12345678 00000000 00000000"), ""},
		{"its own ARP", broadcast + own + arp(own, "c0a8640a"), ""},
		{"whether the address is free", broadcast + own + arp(own, "00000000"), ""},
		{"asks for an address", broadcast + own + ip4("00000000", "ffffffff", "11", request(own, "06")), ""},
		{"says where its card is now", broadcast + own + "8035 0001 0800 06 04 0003" + own + "00000000" + own + "00000000", ""},
		{"its own IPv6", broadcast + own + ip6(own6, nodes, "3a", advert(own6)), ""},
		{"an IPv6 address that it made itself", broadcast + own + ip6("fd00000100000000505400fffe00000a", nodes, "3b", "00000000"), ""},
	} {
		all, by, want := r.dropped(""), 0, 0
		if tt.rule != "" {
			by, want = r.dropped(tt.rule), 1
		}
		r.web.spoof(frame(t, tt.frame))
		if got := r.dropped("") - all; got != want {
			t.Errorf("%s: dropped %d, want %d", tt.what, got, want)
		}
		if tt.rule != "" && r.dropped(tt.rule)-by != 1 {
			t.Errorf("%s: not by the rule %q:\n%s", tt.what, tt.rule, listed(t))
		}
	}
}

// TestLinkLocal: no guest, be it held to nothing, reaches the host by frames that
// bridges keep, nor does it get another's.
func TestLinkLocal(t *testing.T) {
	r := newRig(t, `mac = "52:54:00:00:00:0a"`)
	const own = "5254000000dd"
	host, err := net.ListenPacket("udp4", "198.51.100.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for _, name := range []string{"all", "vmt-db"} {
		if err := set(sysctl4+"/"+name+"/rp_filter", "0"); err != nil {
			t.Fatal(err)
		}
	}
	packet := frame(t, own+"0800 45000021 00000000 40110000 c0a86414 c6336401 1e611e61 000d0000 68656c6c6f")
	for _, to := range []string{"0180c2000000", "0180c2000002", "0180c2000003", "0180c200000e", "0180c200000f"} {
		before := r.dropped("01:80:c2")
		r.db.spoof(checked(append(frame(t, to), packet...)))
		r.db.spoof(frame(t, to+"52540000000a"+"8809 01"))
		if n := r.dropped("01:80:c2") - before; n != 2 {
			t.Errorf("to %s: dropped %d of 2 frames", to, n)
		}
	}
	entries := output(t, "bridge fdb show br vmbr-lan")
	for line := range strings.Lines(entries) {
		if strings.HasPrefix(line, "52:54:00:00:00:0a") && strings.Contains(line, "vmt-db") {
			t.Errorf("the frames of web go to db:\n%s", entries)
		}
	}
	_ = host.SetReadDeadline(time.Now().Add(time.Second))
	if n, from, err := host.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("the host got %d bytes from %v", n, from)
	}
	for _, key := range []string{"disable_ipv6", "accept_ra"} {
		if got, want := read(sysctl6+"/vmt-db/"+key), map[string]string{"disable_ipv6": "1", "accept_ra": "0"}[key]; got != want {
			t.Errorf("%s: got %s, want %s", key, got, want)
		}
	}
}

// TestListedNeeds: what a guest that may send nothing sends to have an address at all
// goes no further than the link; and errors go with what they are of.
func TestListedNeeds(t *testing.T) {
	r := newRig(t, "mac = \"52:54:00:00:00:0a\"\nallow_in = [\"udp/9\"]\ndeny_out = [\"any\"]")
	const (
		head    = "5254000000dd52540000000a"
		ll      = "fe80000000000000505400fffe00000a"
		outside = "20010db8000000000000000000000002"
		asked   = "87000000 00000000 fd000001000000000000000000000020"
	)
	limited := func(hops, text string) string { return strings.Replace(text, " ff ", " "+hops+" ", 1) }
	ip4 := func(destination, protocol, payload string) string {
		return head + fmt.Sprintf("0800 4500 %04x 00000000 40 %s 0000 c0a8640a", 20+len(payload)/2, protocol) + destination + payload
	}
	dhcp := "0044004300f80000" + "01010600" + strings.Repeat("00", 24) + "52540000000a" + strings.Repeat("00", 206)
	for _, tt := range []struct {
		what, frame string
		want        int
	}{
		{"DHCP to all", ip4("ffffffff", "11", dhcp), 0},
		{"DHCP to the host", ip4("c0a86401", "11", dhcp), 0},
		{"DHCP to outside", ip4("c6336402", "11", dhcp), 1},
		{"whose an address of the network is", head + ip6(ll, "ff0200000000000000000001ff000020", "3a", asked), 0},
		{"whether a neighbour is there", head + ip6(ll, "fd000001000000000000000000000020", "3a", asked), 0},
		{"the same, to outside", head + ip6(ll, outside, "3a", asked), 1},
		{"the same, as if from afar", head + limited("40", ip6(ll, "fd000001000000000000000000000020", "3a", asked)), 1},
		{"groups", head + limited("01", ip6(ll, "ff020000000000000000000000000016", "3a", "8f000000 00000000")), 0},
		{"an error to one who has sent nothing", ip4("c6336402", "01", "0303000000000000"+strings.Repeat("00", 28)), 1},
	} {
		r.drops(tt.what, tt.want, func() { r.web.spoof(frame(t, tt.frame)) })
	}
	// On which nobody listens: each learns that, by an error.
	refused := func(from namespace, to string) bool {
		var err error
		from.in(func() {
			var c net.Conn
			if c, err = net.Dial("udp", to); err != nil {
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err = c.Write([]byte("hello")); err == nil {
				_, err = c.Read(make([]byte, 10))
			}
		})
		return errors.Is(err, unix.ECONNREFUSED)
	}
	for _, to := range []string{"192.168.100.10:9", "[" + r.lease.IP6.String() + "]:9"} {
		if !refused(r.db, to) {
			t.Errorf("db hears nothing of %s", to)
		}
	}
	nic := r.nic
	nic.AllowIn, nic.DenyOut, nic.AllowOut = nil, nil, []config.Rule{{Protocol: config.UDP, First: 9, Last: 9}}
	nic.DenyIn = []config.Rule{{Protocol: config.AnyProtocol}}
	if err := Refilter(Card("web", nic, r.network, r.lease, HostBridge{})); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"192.168.100.20:9", "[fd00:1::20]:9"} {
		if !refused(r.web, to) {
			t.Errorf("web hears nothing of %s", to)
		}
	}
	r.drops("an error of what the guest has not sent", 1, func() {
		r.db.spoof(checked(frame(t, "52540000000a5254000000dd 0800 45000038 00000000 40010000 c0a86414 c0a8640a 03030000 00000000"+
			"4500001c 00000000 40110000 c0a8640a c6336402 00090009 00080000")))
	})
}

// TestFlood: what others begin, however much, does not end what the guest begins.
func TestFlood(t *testing.T) {
	r := newRig(t, "mac = \"52:54:00:00:00:0a\"\nallow_in = [\"udp/9\"]")
	var all [][]byte
	for i := range maxFlows + 1000 {
		f := frame(t, "52540000000a5254000000dd 0800 4500001c 00000000 40110000 c0a86414 c0a8640a 00000009 00080000")
		binary.BigEndian.PutUint16(f[28:], uint16(i>>8))
		binary.BigEndian.PutUint16(f[34:], uint16(i&0xff+1))
		all = append(all, checked(f))
	}
	r.db.spoof(all...)
	if n := strings.Count(output(t, "nft list set bridge "+cardsTable+" "+setName("flows4_in", r.card.Interface)), "expires"); n < maxFlows {
		t.Errorf("%d flows are remembered, want %d: the test shows nothing", n, maxFlows)
	}
	r.try([]attempt{{"web", "db", "tcp/22", true}, {"web", "outside", "udp/80", true}})
}

// TestOwnAddresses: an address that a guest has made itself is its own, until it has
// not used it for long, whatever others say; and nobody makes too many.
func TestOwnAddresses(t *testing.T) {
	r := newRig(t, `mac = "52:54:00:00:00:0a"`)
	db := config.NIC{Name: "net", Network: "lan", MAC: "52:54:00:00:00:dd"}
	held := cardFilter("vmt-db", db, r.network, Lease{IP6: netip.MustParseAddr("fd00:1::4321")}, nil)
	r.nft(removeFilter("vmt-db") + held)
	const (
		none, nodes = "00000000000000000000000000000000", "ff020000000000000000000000000001"
		prefix      = "fd00000100000000"
		local       = "fe80000000000000"
	)
	send := func(n namespace, mac, rest string) { n.spoof(frame(t, "ffffffffffff"+mac+rest)) }
	fromWeb := func(rest string) { send(r.web, "52540000000a", rest) }
	fromDB := func(rest string) { send(r.db, "5254000000dd", rest) }
	from := func(address string) string { return ip6(address, nodes, "3b", "00000000") }
	asks := func(address string) string { return ip6(none, nodes, "3a", "87000000 00000000"+address) }
	has := func(address string) string { return ip6(address, nodes, "3a", "88000000 60000000"+address) }
	claims := func(address string) string {
		return ip6(local+"505400fffe00000a", nodes, "3a", "88000000 60000000"+address)
	}
	expect := func(what string, want int, do func()) {
		t.Helper()
		before := r.dropped("")
		do()
		if got := r.dropped("") - before; got != want {
			t.Errorf("%s: dropped %d, want %d:\n%s", what, got, want, listed(t))
		}
	}
	for _, p := range []string{prefix, local} {
		made, other := p+"a1b2c3d4e5f60718", p+"0102030405060708"
		expect("db asks whether its address is free, and takes it", 0, func() { fromDB(asks(made)); fromDB(has(made)); fromDB(from(made)) })
		expect("web asks for it", 1, func() { fromWeb(asks(made)) })
		expect("web sends from it", 1, func() { fromWeb(from(made)) })
		expect("web says that it has it", 1, func() { fromWeb(claims(made)) })
		expect("web sends from its own, without asking", 0, func() { fromWeb(from(other)) })
		expect("db sends from that", 1, func() { fromDB(from(other)) })
		r.nft(removeChains("vmt-db") + held)
		if err := Refilter(r.card); err != nil {
			t.Fatal(err)
		}
		expect("web sends from db's after a change of rules", 1, func() { fromWeb(from(made)) })
		expect("and db goes on", 0, func() { fromDB(from(made)) })
	}
	before := r.dropped("update @makers6")
	for i := range 100 {
		fromWeb(from(fmt.Sprintf("%s%016x", prefix, 0x10000+i)))
	}
	if n := r.dropped("update @makers6") - before; n < 60 || n > 90 {
		t.Errorf("of 100 addresses, %d are refused", n)
	}
	expect("what it had before", 0, func() { fromWeb(from(prefix + "0102030405060708")) })
}

func listed(t testing.TB) string {
	t.Helper()
	return output(t, "nft list table bridge "+cardsTable) + output(t, "nft list table netdev "+cardsTable)
}

// TestRefilter: rules change under connections, which go on where both the old
// and the new ones allow them.
func TestRefilter(t *testing.T) {
	r := newRig(t, "")
	with := func(in, out []config.Rule) CardState {
		nic := r.nic
		nic.AllowIn, nic.AllowOut = in, out
		return Card("web", nic, r.network, r.lease, HostBridge{})
	}
	ssh := []config.Rule{{Protocol: config.TCP, First: 22, Last: 22}}
	web := []config.Rule{{Protocol: config.TCP, First: 80, Last: 80}}
	icmp := []config.Rule{{Protocol: config.ICMP}}

	// One that the guest began and on which the other side alone speaks, one to
	// the guest on which the guest alone speaks.
	download, upload := r.flow(r.web, r.db, "192.168.100.20:7001"), r.flow(r.db, r.web, "192.168.100.10:22022")
	for _, step := range []struct {
		what string
		card CardState
	}{
		{"no lists, then some", with(ssh, icmp)},
		{"others", with(append(web, ssh...), icmp)},
		{"none any more", with(nil, nil)},
		{"and again", with(ssh, icmp)},
		{"the same", with(ssh, icmp)},
	} {
		if err := Refilter(step.card); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		download(step.what)
		upload(step.what)
		if step.what == "no lists, then some" {
			// A packet as of a connection that was there makes none of it that was not.
			segment := func(flags string) []byte {
				return checked(frame(t, strings.ReplaceAll(string(r.nic.MAC), ":", "")+"5254000000dd 0800 45000028 00000000 40060000 c0a86414 c0a8640a 15b30050 00000001 00000001 50"+flags+"0400 00000000"))
			}
			r.drops("that, and the beginning of one after that", 1, func() { r.db.spoof(segment("10"), segment("02")) })
		}
	}
	r.try([]attempt{{"db", "web", "tcp/22", true}, {"db", "web", "tcp/80", false}, {"web", "db", "tcp/80", false}, {"web", "db", "icmp", true}})

	// Without anything to hold it to, there is no table.
	open := r.nic
	open.AntiSpoofing = new(bool)
	if err := Refilter(Card("web", open, r.network, r.lease, HostBridge{})); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("nft", "list", "table", "bridge", cardsTable).CombinedOutput(); err == nil {
		t.Errorf("the table is left:\n%s", out)
	}
}

// All of a card's tables are back after somebody has removed those of the host.
func TestRefilterFlushed(t *testing.T) {
	r := newRig(t, "")
	nic := r.nic
	nic.Forward = []config.Forward{{Protocol: config.TCP, HostPort: 2222, GuestPort: 22}}
	nic.RateOut = 1 << 20
	card := Card("web", nic, r.network, r.lease, HostBridge{})
	for range 2 {
		if err := apply("flush ruleset\n"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := Refilter(card); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"tcp dport 2222 dnat", "ether saddr !=", "limit rate over 1 mbytes/second"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("want %s, got %s", want, out)
			}
		}
	}
}

// flow opens a connection between two namespaces on which only the server sends;
// what is returned has it send, and waits for that to arrive.
func (r rig) flow(client, server namespace, address string) func(when string) {
	r.Helper()
	var l net.Listener
	var c net.Conn
	var err error
	server.in(func() { l, err = net.Listen("tcp", address) })
	if err != nil {
		r.Fatal(err)
	}
	client.in(func() { c, err = net.DialTimeout("tcp", address, time.Minute) })
	if err != nil {
		r.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { c.Close(); s.Close(); l.Close() })
	return func(when string) {
		r.Helper()
		text := []byte("still here")
		if _, err := s.Write(text); err != nil {
			r.Errorf("%s: %v", when, err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		b := make([]byte, len(text))
		if _, err := c.Read(b); err != nil || string(b) != string(text) {
			r.Errorf("%s: a connection to %s: got %q, %v", when, address, b, err)
		}
	}
}

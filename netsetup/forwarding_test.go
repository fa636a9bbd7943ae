package netsetup

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// forwardFor switches forwarding on for networks, and off at the end.
func forwardFor(t *testing.T, networks ...*config.Network) Forwarding {
	t.Helper()
	f := Forwarding{File: filepath.Join(t.TempDir(), "forwarding/switched.json"), Lock: filepath.Join(t.TempDir(), "lock")}
	var bridges []string
	for _, n := range networks {
		bridges = append(bridges, n.Device())
	}
	if err := f.On(true, true, bridges); err != nil {
		t.Fatal(err)
	}
	return f
}

// ipLines runs ip in the test's own namespace, for each line.
func ipLines(t *testing.T, lines string) {
	t.Helper()
	for line := range strings.Lines(lines) {
		if args := strings.Fields(line); len(args) > 0 {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Fatalf("ip %v: %v: %s", args, err, out)
			}
		}
	}
}

// advertise sends a router advertisement with a prefix (RFC 4861, 4.2), as the
// network of a provider does.
func (n namespace) advertise() {
	n.Helper()
	n.in(func() {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			n.Fatal(err)
		}
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			n.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
			n.Fatal(err)
		}
		message := frame(n, "86000000 40000708 00000000 00000000 0304 40c0 00015180 00003840 00000000 20010db8000500000000000000000000")
		to := unix.SockaddrInet6{ZoneId: uint32(i.Index), Addr: [16]byte{0: 0xff, 1: 2, 15: 1}}
		if err := unix.Sendto(fd, message, 0, &to); err != nil {
			n.Fatal(err)
		}
	})
}

// hostState is what must be the same of the host's own interfaces: addresses,
// routes, settings.
func hostState(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, command := range []string{"ip address show up0", "ip address show up1", "ip -4 route", "ip -6 route", "nft list ruleset"} {
		args := strings.Fields(command)
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
		b.Write(out)
	}
	var files []string
	for _, pattern := range []string{"ipv4/ip_forward", "ipv4/conf/*/*", "ipv6/conf/*/*"} {
		found, err := filepath.Glob("/proc/sys/net/" + pattern)
		if err != nil || len(found) == 0 {
			t.Fatal(pattern, err)
		}
		files = append(files, found...)
	}
	slices.Sort(files)
	for _, file := range files {
		if !strings.Contains(file, "/vmbr-") {
			b.WriteString(file + " " + read(file) + "\n")
		}
	}
	// What runs down.
	return regexp.MustCompile(`(expires|valid_lft|preferred_lft) \d+sec`).ReplaceAllString(b.String(), "$1")
}

// TestForwarding: a host that was no router is none between others' interfaces
// while networks are up, keeps what it has learned from a router, and is what it
// was when they are gone.
func TestForwarding(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte("-- network.toml --\nsubnet = \"192.168.100.0/24\"\nsubnet6 = \"fd00:1::/64\"\n")))
	inNamespace(t)
	left, right, guest := newNamespace(t), newNamespace(t), newNamespace(t)
	left.connect("up0", "eth0")
	right.connect("up1", "eth0")
	ipLines(t, `
address add 198.51.100.1/24 dev up0
address add 203.0.113.1/24 dev up1
-6 address add 2001:db8:7::1/64 dev up1 nodad
link set up0 up
link set up1 up
`)
	for n, lines := range map[namespace][]string{
		left: {"ip address add 198.51.100.2/24 dev eth0", "ip link set eth0 up", "ip route add default via 198.51.100.1",
			"ip -6 address add 2001:db8:5::2/64 dev eth0 nodad"},
		right: {"ip address add 203.0.113.2/24 dev eth0", "ip link set eth0 up", "ip route add default via 203.0.113.1",
			"ip -6 address add 2001:db8:7::2/64 dev eth0 nodad", "ip -6 route add default via 2001:db8:7::1"},
	} {
		for _, line := range lines {
			n.run(line)
		}
		n.serve(":80")
		n.in(func() { settled(t) })
	}
	learned := ""
	eventually(t, "an address by router advertisement", func() bool {
		left.advertise()
		out, _ := exec.Command("ip", "-6", "-brief", "address", "show", "up0").CombinedOutput()
		m := regexp.MustCompile(`2001:db8:5:[0-9a-f:]+`).FindString(string(out))
		learned = m
		return m != ""
	})
	settled(t)
	left.run("ip -6 route add 2001:db8:7::/64 via " + learned)
	before := hostState(t)
	if !strings.Contains(before, "default via fe80:") {
		t.Fatalf("no default route was learned:\n%s", before)
	}

	if err := Up(Network(network)); err != nil {
		t.Fatal(err)
	}
	f := forwardFor(t, network)
	guest.connect("vmt-guest", "eth0")
	ipLines(t, "link set vmt-guest master vmbr-lan up")
	for _, line := range []string{"ip address add 192.168.100.10/24 dev eth0", "ip -6 address add fd00:1::10/64 dev eth0 nodad", "ip link set eth0 up",
		"ip route add default via 192.168.100.1", "ip -6 route add default via fd00:1::1"} {
		guest.run(line)
	}
	guest.in(func() { settled(t) })
	for _, address := range []string{"198.51.100.2", "203.0.113.2", "2001:db8:5::2", "2001:db8:7::2"} {
		if !guest.reaches("tcp/80", address, true) {
			t.Errorf("the guest does not reach %s", address)
		}
	}
	between := func(when string, want bool) {
		t.Helper()
		for _, address := range []string{"203.0.113.2", "2001:db8:7::2"} {
			if got := left.reaches("tcp/80", address, want); got != want {
				t.Errorf("%s: from one interface of the host to %s by the other: reached %v, want %v", when, address, got, want)
			}
		}
	}
	between("while the network is up", false)
	if read(forward4) != "0" {
		t.Error("ip_forward is on, which tells others that the host is a router")
	}
	for _, name := range []string{"up0", "up1"} {
		if got := read(sysctl6+"/"+name+"/forwarding") + read(sysctl6+"/"+name+"/accept_ra"); got != "01" {
			t.Errorf("%s: forwarding and accept_ra are %s, want 0 and 1", name, got)
		}
	}
	out, _ := exec.Command("ip", "-6", "route").CombinedOutput()
	if !strings.Contains(string(out), "default via fe80:") {
		t.Errorf("the route that was learned is gone:\n%s", out)
	}
	// Without the guard the host would be a router: the test shows something.
	if err := apply(removeTable("inet", guardTable)); err != nil {
		t.Fatal(err)
	}
	between("without the guard", true)
	if err := f.On(false, false, []string{"vmbr-lan"}); err != nil {
		t.Fatal(err)
	}
	between("with the guard again", false)

	// Somebody who makes containers later, the way Docker does.
	container := newNamespace(t)
	container.connect("veth0", "eth0")
	ipLines(t, `
link add docker0 type bridge
link set veth0 master docker0 up
address add 172.17.0.1/16 dev docker0
link set docker0 up
`)
	for _, line := range []string{"ip address add 172.17.0.2/16 dev eth0", "ip link set eth0 up", "ip route add default via 172.17.0.1"} {
		container.run(line)
	}
	right.run("ip route add 172.17.0.0/16 via 203.0.113.1")
	if err := os.WriteFile(forward4, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if !container.reaches("tcp/80", "203.0.113.2", true) {
		t.Error("a container of others does not reach the outside")
	}
	if err := os.WriteFile(forward4, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	ipLines(t, "link del docker0\nlink del veth0")
	if err := os.WriteFile(sysctl4+"/all/accept_redirects", []byte("1"), 0); err != nil { // which that has changed
		t.Fatal(err)
	}
	// Cut off while values were put back.
	var s switched
	b, err := os.ReadFile(f.File)
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Before = map[string]string{sysctl6 + "/up0/accept_ra": "1", sysctl6 + "/up0/forwarding": "0"}
	if err := f.write(s); err != nil {
		t.Fatal(err)
	}
	for file, value := range map[string]string{"accept_ra": "2", "forwarding": "1"} {
		if err := set(sysctl6+"/up0/"+file, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.On(true, true, []string{"vmbr-lan"}); err != nil {
		t.Fatal(err)
	}

	if err := Down(Network(network)); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := f.Off(); err != nil {
			t.Error(err)
		}
	}
	// The interfaces of guests are gone with their namespaces; these were there before.
	ipLines(t, "link del vmt-guest")
	if after := hostState(t); after != before {
		t.Errorf("%s", differences(before, after))
	}
	if _, err := os.Stat(f.File); err == nil {
		t.Error("the note of what was switched is left")
	}
}

// differences are the lines that are in one text alone.
func differences(before, after string) string {
	var b strings.Builder
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range was {
		if !slices.Contains(is, line) {
			b.WriteString("- " + line + "\n")
		}
	}
	for _, line := range is {
		if !slices.Contains(was, line) {
			b.WriteString("+ " + line + "\n")
		}
	}
	return b.String()
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// TestForwardingOfOthers: a host that is a router stays one, untouched.
func TestForwardingOfOthers(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte(lan)))
	inNamespace(t)
	ipLines(t, "link add up0 type bridge\nlink add up1 type bridge")
	for _, file := range []string{forward4, forward6} {
		if err := os.WriteFile(file, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	before := hostState(t)
	if err := Up(Network(network)); err != nil {
		t.Fatal(err)
	}
	f := forwardFor(t, network)
	if out, _ := exec.Command("nft", "list", "tables").CombinedOutput(); strings.Contains(string(out), guardTable) {
		t.Errorf("a host that is a router is kept from it:\n%s", out)
	}
	if err := Down(Network(network)); err != nil {
		t.Error(err)
	}
	if err := f.Off(); err != nil {
		t.Error(err)
	}
	if after := hostState(t); after != before {
		t.Errorf("%s", differences(before, after))
	}

	// Somebody makes a router of it while we have switched forwarding on.
	for _, file := range []string{forward4, forward6} {
		if err := os.WriteFile(file, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := Up(Network(network)); err != nil {
		t.Fatal(err)
	}
	f = forwardFor(t, network)
	for _, file := range []string{forward4, forward6} {
		if err := os.WriteFile(file, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.On(true, true, []string{"vmbr-lan"}); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.Command("nft", "list", "tables").CombinedOutput(); strings.Contains(string(out), guardTable) {
		t.Errorf("what somebody wants is kept from them:\n%s", out)
	}
	if err := f.Off(); err != nil {
		t.Error(err)
	}
	if got := read(forward4) + read(forward6) + read(sysctl4+"/up0/forwarding") + read(sysctl6+"/up0/forwarding"); got != "1111" {
		t.Errorf("what somebody wants was put back: %s", got)
	}
}

// TestNetworks: guests of two networks, and the host's addresses in them, are
// kept from each other, unless one lets the other in.
func TestNetworks(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		t.Run("allowed="+map[bool]string{false: "no", true: "yes"}[allowed], func(t *testing.T) { twoNetworks(t, allowed) })
	}
}

func twoNetworks(t *testing.T, allowed bool) {
	one, _ := load(t, txtar.Parse([]byte("-- network.toml --\nsubnet = \"192.168.100.0/24\"\nsubnet6 = \"fd00:1::/64\"\n")))
	other, _ := load(t, txtar.Parse([]byte("-- network.toml --\nsubnet = \"192.168.101.0/24\"\nsubnet6 = \"fd00:2::/64\"\n")))
	one.Name, one.Interface = "one", "vmbr-one"
	other.Name, other.Interface = "other", "vmbr-other"
	if allowed {
		other.AllowFrom = []string{"one"}
	}
	inNamespace(t)
	up := []*config.Network{one, other}
	for _, n := range up {
		if err := Up(Network(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := Settle(up); err != nil {
		t.Fatal(err)
	}
	forwardFor(t, up...)
	addresses := map[string][]string{"one": {"192.168.100.10", "fd00:1::10"}, "other": {"192.168.101.10", "fd00:2::10"}}
	guests := map[string]namespace{}
	for _, n := range up {
		g := newNamespace(t)
		guests[n.Name] = g
		g.connect("vmt-"+n.Name, "eth0")
		ipLines(t, "link set vmt-"+n.Name+" master "+n.Interface+" up")
		g.run("ip address add " + addresses[n.Name][0] + "/24 dev eth0")
		g.run("ip -6 address add " + addresses[n.Name][1] + "/64 dev eth0 nodad")
		g.run("ip link set eth0 up")
		g.run("ip route add default via " + n.Gateway.String())
		g.run("ip -6 route add default via " + n.Gateway6().String())
		g.in(func() { settled(t) })
		g.serve(":80")
	}
	settled(t)
	l, err := net.Listen("tcp", ":8080") // of the host
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go answer(l)
	for _, from := range up {
		for _, to := range up {
			lets := from == to || allowed && to == other
			for _, address := range addresses[to.Name] {
				if from == to {
					continue
				}
				if got := guests[from.Name].reaches("tcp/80", address, lets); got != lets {
					t.Errorf("from %s to the guest %s: reached %v, want %v", from.Name, address, got, lets)
				}
			}
			for _, address := range Gateways(to) {
				own := from == to || lets
				if got := guests[from.Name].reaches("tcp/8080", address.String(), own); got != own {
					t.Errorf("from %s to the host's %s: reached %v, want %v", from.Name, address, got, own)
				}
			}
		}
	}
	if allowed { // without NAT
		for i, address := range addresses["other"] {
			if got := guests["one"].ask(net.JoinHostPort(address, "80")); got != addresses["one"][i] {
				t.Errorf("%s answered %q, want that it sees %s", address, got, addresses["one"][i])
			}
		}
	}
}

// The host reaches guests from its loopback addresses for as long as a card has a
// forward that needs it, and no longer.
func TestLocalnetGoes(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte("-- network.toml --\nsubnet = \"192.168.100.0/24\"\n")))
	inNamespace(t)
	if err := Up(Network(network)); err != nil {
		t.Fatal(err)
	}
	card := func(i int, forward ...config.Forward) config.NIC {
		return config.NIC{Name: "net", Network: "lan", MAC: config.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i)), Queues: 1, Forward: forward}
	}
	by := func(address string) config.Forward {
		return config.Forward{Address: address, Protocol: config.TCP, HostPort: 2222, GuestPort: 22}
	}
	cards := []config.NIC{card(0, by("127.0.0.1")), card(1, by("")), card(2, by("192.0.2.1")), card(3)}
	for i, nic := range cards {
		queues, err := Plug(Card(fmt.Sprint("web", i), nic, network, Lease{IP4: netip.AddrFrom4([4]byte{192, 168, 100, byte(10 + i)})}, HostBridge{}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeAll(queues) })
	}
	for i, want := range []string{"1", "0", "0", "0"} {
		// What the network was may be forgotten by then.
		if err := Unplug(fmt.Sprint("web", i), Unplugged{cards[i], nil}); err != nil {
			t.Fatal(err)
		}
		if got := read(localnetOf(network.Device())); got != want {
			t.Errorf("without the first %d cards it is %s, want %s", i+1, got, want)
		}
	}
}

package netsetup

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace, for as long as the test.
type namespace struct {
	testing.TB
	calls chan func()
	tid   int
}

// newNamespace makes one, with nothing in it but a loopback interface.
func newNamespace(t testing.TB) namespace {
	t.Helper()
	n := namespace{TB: t, calls: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the namespace
		n.tid = unix.Gettid()
		ready <- unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_FS)
		for f := range n.calls {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.calls) })
	n.run("ip link set lo up") // or Go takes the host for one without IPv6
	return n
}

// in does something in the namespace.
func (n namespace) in(f func()) {
	done := make(chan bool)
	n.calls <- func() { defer close(done); f() }
	<-done
}

// run runs a command in the namespace.
func (n namespace) run(command string) {
	n.Helper()
	n.in(func() {
		args := strings.Fields(command)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			n.Errorf("%s: %v: %s", command, err, out)
		}
	})
}

// connect ties an interface of the test's own namespace to one of n, each with
// its name.
func (n namespace) connect(name, peer string) {
	n.Helper()
	if err := n.tie(name, peer); err != nil {
		n.Fatal(err)
	}
}

// connectTo is connect for a namespace in place of the test's own.
func (n namespace) connectTo(host namespace, name, peer string) {
	n.Helper()
	var err error
	host.in(func() { err = n.tie(name, peer) })
	if err != nil {
		n.Fatal(err)
	}
}

func (n namespace) tie(name, peer string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerNamespace: netlink.NsPid(n.tid)})
}

// serve answers each TCP connection to an address with that of who connected.
func (n namespace) serve(address string) {
	n.Helper()
	var l net.Listener
	var err error
	n.in(func() { l, err = net.Listen("tcp", address) })
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { l.Close() })
	go answer(l)
}

func answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
		c.Close()
	}
}

// ask is what a server answers, "" where it cannot be reached.
func ask(address string) string {
	c, err := net.DialTimeout("tcp", address, 2*time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	// A packet may be lost without a word.
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 64)
	n, _ := c.Read(b)
	return string(b[:n])
}

func (n namespace) ask(address string) (answer string) {
	n.in(func() { answer = ask(address) })
	return answer
}

// settled waits until the kernel has found that its addresses are nobody else's
// (RFC 4862, 5.4): before, it cannot ask for others'.
func settled(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		have, err := netlink.AddrList(nil, netlink.FAMILY_V6)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }) {
			return
		}
		if time.Now().After(end) {
			t.Fatal("addresses are tentative for a minute")
		}
	}
}

// TestTraffic: a guest, the host and somebody outside reach each other as the
// definitions say, and not otherwise.
func TestTraffic(t *testing.T) {
	for _, isolated := range []bool{false, true} {
		t.Run(fmt.Sprintf("isolated=%v", isolated), func(t *testing.T) { traffic(t, isolated) })
	}
}

func traffic(t *testing.T, isolated bool) {
	network, machine := load(t, txtar.Parse(fmt.Appendf(nil, `
-- network.toml --
subnet = "192.168.100.0/24"
subnet6 = "fd00:1::/64"
isolated = %v
-- vm.toml --
memory = "64M"
[nic.net]
network = "lan"
address = "192.168.100.10"
forward = ["2222:22", "127.0.0.1:2223:22", "198.51.100.1:2224:22"]
`, isolated)))
	inNamespace(t)
	if err := Up(Network(network)); err != nil {
		t.Fatal(err)
	}
	nic := machine.NICs[0]
	lease, err := Assign(network, "web", nic, func(netip.Addr) bool { return false })
	if err != nil {
		t.Fatal(err)
	}

	guest, outside := newNamespace(t), newNamespace(t)
	card := Card("web", nic, network, lease, HostBridge{})
	guest.connect(card.Interface, "eth0")
	guest.run("ip link set eth0 address " + string(nic.MAC) + " up")
	guest.run("ip address add 192.168.100.10/24 dev eth0")
	guest.run("ip -6 address add " + lease.IP6.String() + "/64 dev eth0 nodad")
	bridge, err := bridgeOf("vmbr-lan")
	if err != nil {
		t.Fatal(err)
	}
	if err := plug(card, bridge); err != nil {
		t.Fatal(err)
	}
	if !isolated { // else there is no router for it
		guest.run("ip route add default via 192.168.100.1")
		guest.run("ip -6 route add default via fd00:1::1")
	}
	outside.connect("up0", "eth0")
	outside.run("ip address add 198.51.100.2/24 dev eth0")
	outside.run("ip -6 address add 2001:db8::2/64 dev eth0 nodad")
	outside.run("ip link set eth0 up")
	outside.run("ip route add 192.168.100.0/24 via 198.51.100.1") // as a neighbour may
	for _, args := range [][]string{
		{"address", "add", "198.51.100.1/24", "dev", "up0"}, {"-6", "address", "add", "2001:db8::1/64", "dev", "up0", "nodad"}, {"link", "set", "up0", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatal(err, string(out))
		}
	}
	forwardFor(t, network)
	settled(t)
	guest.serve(":22")
	outside.serve(":80")
	here, err := net.Listen("tcp", "127.0.0.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	go answer(here)

	wantSource := func(not, is string) string { // of a connection by a forward
		if isolated {
			return is
		}
		return not
	}
	for _, tt := range []struct {
		what, got, want string
	}{
		{"the host by its loopback address", ask("127.0.0.1:2222"), "192.168.100.1"},
		{"the host by a loopback forward", ask("127.0.0.1:2223"), "192.168.100.1"},
		{"the host by its address", ask("198.51.100.1:2222"), wantSource("198.51.100.1", "192.168.100.1")},
		{"the host by a forward on its address", ask("198.51.100.1:2224"), wantSource("198.51.100.1", "192.168.100.1")},
		{"the host by its IPv6 address", ask("[2001:db8::1]:2222"), wantSource("2001:db8::1", "fd00:1::1")},
		{"outside by a forward", outside.ask("198.51.100.1:2222"), wantSource("198.51.100.2", "192.168.100.1")},
		{"outside by an IPv6 forward", outside.ask("[2001:db8::1]:2222"), wantSource("2001:db8::2", "fd00:1::1")},
		{"outside by the forward of the loopback address", outside.ask("198.51.100.1:2223"), ""},
		{"outside, past the host", outside.ask("192.168.100.10:22"), ""},
		{"the guest to outside", guest.ask("198.51.100.2:80"), wantSource("198.51.100.1", "")},
		{"the guest to outside by IPv6", guest.ask("[2001:db8::2]:80"), wantSource("2001:db8::1", "")},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: answered %q, want %q", tt.what, tt.got, tt.want)
		}
	}
	if _, err := net.Dial("tcp", "[::1]:2222"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("by ::1, which cannot be forwarded: %v", err)
	}

	// A guest that sends to the host's loopback address.
	guest.in(func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0); err != nil {
			t.Error(err)
		}
	})
	guest.run("ip address del 127.0.0.1/8 dev lo")
	guest.run("ip route add 127.0.0.1/32 via 192.168.100.1 dev eth0")
	if got := guest.ask("127.0.0.1:7777"); got != "" {
		t.Errorf("a guest reached the host's loopback address: %q", got)
	}
	var rules []string // the same without what keeps it from there
	for line := range strings.Lines(Network(network).Rules) {
		rules = append(rules, line)
	}
	rules = slices.DeleteFunc(rules, func(line string) bool {
		return strings.Contains(line, "127.0.0.0/8") || isolated && strings.Contains(line, "drop")
	})
	if err := apply(strings.Join(rules, "")); err != nil {
		t.Fatal(err)
	}
	if got := guest.ask("127.0.0.1:7777"); got != "192.168.100.10" {
		t.Errorf("without the filter a guest does not reach the host's loopback address (%q): the test shows nothing", got)
	}
}

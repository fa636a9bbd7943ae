package netsetup

import (
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// TestSeen: what a guest does is found by its card's address behind its bridge
// alone, and counted from its side.
func TestSeen(t *testing.T) {
	inNamespace(t)
	guest := newNamespace(t)
	guest.connect("vmt0", "eth0")
	const mac = config.MAC("52:54:00:00:00:01")
	for _, command := range []string{
		"ip link add br0 type bridge", "ip link set vmt0 master br0 up", "ip address add 10.0.0.1/24 dev br0",
		"ip -6 address add fd00::1/64 dev br0 nodad", "ip link set br0 up",
		"ip link add br1 type bridge", "ip link set br1 up",
		// Of a guest that claims what it likes.
		"ip neighbour add 127.0.0.9 lladdr " + string(mac) + " dev br0 nud stale",
		"ip neighbour add 10.0.0.66 lladdr " + string(mac) + " dev br1 nud reachable",
		"ip neighbour add 10.0.0.67 dev br0 nud failed",
		"ip neighbour add 10.0.0.68 lladdr 52:54:00:00:00:02 dev br0 nud reachable",
	} {
		args := strings.Fields(command)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatal(command, err, string(out))
		}
	}
	guest.run("ip link set eth0 address " + string(mac) + " up")
	guest.run("ip address add 10.0.0.2/24 dev eth0")
	guest.run("ip -6 address add fd00::2/64 dev eth0 nodad")
	guest.serve(":22")
	settled(t)
	before, err := See()
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"10.0.0.2:22", "[fd00::2]:22"} {
		if ask(to) == "" {
			t.Fatalf("%s does not answer", to)
		}
	}
	after, err := See()
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}
	for _, device := range []string{"br0", "vmt0"} {
		if got := after.Addresses(device, mac); !slices.Equal(got, want) {
			t.Errorf("behind %s: got %v, want %v", device, got, want)
		}
	}
	if got := after.Addresses("br9", mac); len(got) > 0 {
		t.Errorf("behind a bridge that is not there: %v", got)
	}
	was, is := before.Traffic("vmt0"), after.Traffic("vmt0")
	if is.RxPackets <= was.RxPackets || is.TxPackets <= was.TxPackets || is.RxBytes <= was.RxBytes || is.TxBytes <= was.TxBytes {
		t.Errorf("before %+v, after %+v", was, is)
	}
	if got := after.Traffic("vmt1"); got != nil {
		t.Errorf("of an interface that is not there: %+v", got)
	}

	// What the guest sends alone, it has sent.
	sent := is.TxPackets
	received := is.RxPackets
	guest.run("ip neighbour replace 10.0.0.9 lladdr 52:54:00:00:00:09 dev eth0 nud permanent")
	guest.in(func() {
		c, err := net.Dial("udp", "10.0.0.9:9")
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for range 5 {
			if _, err := c.Write(nil); err != nil {
				t.Error(err)
			}
		}
	})
	last, err := See()
	if err != nil {
		t.Fatal(err)
	}
	if now := last.Traffic("vmt0"); now.TxPackets-sent < 5 || now.RxPackets-received > now.TxPackets-sent {
		t.Errorf("the guest sent 5 packets that nobody answers: counted %d sent, %d received", now.TxPackets-sent, now.RxPackets-received)
	}

	if err := ForgetNeighbours(mac); err != nil {
		t.Fatal(err)
	}
	if last, err = See(); err != nil {
		t.Fatal(err)
	}
	if got := last.Addresses("br0", mac); len(got) > 0 {
		t.Errorf("not forgotten: %v", got)
	}
	if got := last.Addresses("br0", "52:54:00:00:00:02"); len(got) != 1 {
		t.Errorf("another card is at %v", got)
	}
}

// What comes in by a macvtap interface is for the guest.
func TestTrafficOfMacvtap(t *testing.T) {
	inNamespace(t)
	outside := newNamespace(t)
	outside.connect("up0", "eth0")
	for _, command := range []string{"ip link set up0 up", "ip link add link up0 name vmt0 address 52:54:00:00:00:01 type macvtap mode bridge", "ip link set vmt0 up"} {
		args := strings.Fields(command)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatal(command, err, string(out))
		}
	}
	outside.run("ip link set eth0 up")
	outside.run("ip address add 10.0.0.1/24 dev eth0")
	outside.run("ip neighbour add 10.0.0.2 lladdr 52:54:00:00:00:01 dev eth0 nud permanent")
	before, err := See()
	if err != nil {
		t.Fatal(err)
	}
	outside.in(func() {
		c, err := net.Dial("udp", "10.0.0.2:9")
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for range 5 {
			_, _ = c.Write(make([]byte, 1000))
		}
	})
	after, err := See()
	if err != nil {
		t.Fatal(err)
	}
	was, is := before.Traffic("vmt0"), after.Traffic("vmt0")
	// Nobody has opened it, so that they may be dropped.
	if came := is.RxPackets + is.RxDropped - was.RxPackets - was.RxDropped; came < 5 || is.TxBytes-was.TxBytes >= 5000 {
		t.Errorf("before %+v, after %+v", was, is)
	}
}

func TestPresentable(t *testing.T) {
	var all []netip.Addr
	for _, s := range []string{"fe80::1", "ff02::1", "::1", "127.0.0.1", "169.254.1.1", "0.0.0.0", "224.0.0.1", "fd00::1", "10.0.0.1", "fd00::1", "::"} {
		all = append(all, netip.MustParseAddr(s))
	}
	want := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
	if got := Presentable(append(all, netip.Addr{})); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for a := netip.MustParseAddr("10.1.0.0"); len(all) < 1000; a = a.Next() {
		all = append(all, a)
	}
	if got := Presentable(all); len(got) != maxAddresses {
		t.Errorf("got %d addresses", len(got))
	}
}

package netsetup

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/vishvananda/netlink"

	"github.com/vmctl/vmctl/config"
)

// up brings a network up in a namespace.
func (n namespace) up(network *config.Network) {
	n.Helper()
	var err error
	n.in(func() { err = Up(Network(network)) })
	if err != nil {
		n.Fatal(err)
	}
}

// guest is a namespace on the bridge of a host's, with an address.
func (n namespace) guest(t testing.TB, network *config.Network, address string) namespace {
	t.Helper()
	g := newNamespace(t)
	g.connectTo(n, "guest0", "eth0")
	n.run("ip link set guest0 master " + network.Device() + " mtu " + fmt.Sprint(network.MTU) + " up")
	g.run("ip link set eth0 mtu " + fmt.Sprint(network.MTU) + " up")
	g.run("ip address add " + address + " dev eth0")
	return g
}

// carry sends bytes to an address that serves echoes, and says whether all came
// back.
func (n namespace) carry(address string) error {
	const size = 1 << 20
	var got bytes.Buffer
	var err error
	n.in(func() {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", address, time.Minute); err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		go func() {
			_, _ = c.Write(bytes.Repeat([]byte("x"), size)) // what is missing is seen below
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		_, err = io.Copy(&got, c)
	})
	if err == nil && got.Len() != size {
		err = fmt.Errorf("sent %d bytes, got %d back", size, got.Len())
	}
	return err
}

// echo serves echoes on an address.
func (n namespace) echo(address string) {
	n.Helper()
	var l net.Listener
	var err error
	n.in(func() { l, err = net.Listen("tcp", address) })
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // the other end counts
			}()
		}
	}()
}

// askAgain is ask for a server that nobody has found for a while.
func (n namespace) askAgain(address string) (answer string) {
	for end := time.Now().Add(time.Minute); answer == "" && time.Now().Before(end); {
		answer = n.ask(address)
	}
	return answer
}

// fragments is how many packets a namespace had to cut up.
func (n namespace) fragments() (count string) {
	n.in(func() {
		b4, err4 := os.ReadFile("/proc/thread-self/net/snmp")
		b6, err6 := os.ReadFile("/proc/thread-self/net/snmp6")
		if err4 != nil || err6 != nil {
			n.Error(err4, err6)
		}
		var names, values []string
		for line := range strings.Lines(string(b4)) {
			if fields := strings.Fields(line); fields[0] == "Ip:" {
				names, values = values, fields
			}
		}
		for i, name := range names {
			if name == "FragCreates" {
				count = values[i]
			}
		}
		for line := range strings.Lines(string(b6)) {
			if fields := strings.Fields(line); fields[0] == "Ip6FragCreates" {
				count += " " + fields[1]
			}
		}
	})
	return count
}

// TestVXLAN: guests of two hosts are in one network, over IPv4 and over IPv6. No
// other host is, though it has the number.
func TestVXLAN(t *testing.T) {
	for _, tt := range []struct {
		name      string
		hosts     []string // their addresses
		bits, mtu int
		port      int
	}{
		{name: "IPv4", hosts: []string{"198.51.100.1", "198.51.100.2", "198.51.100.3"}, bits: 24, mtu: 1450, port: 4789},
		{name: "IPv6", hosts: []string{"2001:db8::1", "2001:db8::2", "2001:db8::3"}, bits: 64, mtu: 1430, port: 14789},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			output(t, "ip link add between type bridge")
			output(t, "ip link set between up")
			var hosts, guests []namespace
			var networks []*config.Network
			for i, address := range tt.hosts {
				peers := tt.hosts[[]int{1, 0, 1}[i]] // the second does not know of the third
				network, _ := load(t, txtar.Parse(fmt.Appendf(nil, `
-- network.toml --
subnet = "10.9.0.0/24"
gateway = "10.9.0.%d"
subnet6 = "none"
vxlan = { id = 7, local = %q, peers = [%q], port = %d }
`, i+1, address, peers, tt.port)))
				if network.MTU != tt.mtu {
					t.Errorf("MTU %d, want %d", network.MTU, tt.mtu)
				}
				host := newNamespace(t)
				host.connect(fmt.Sprintf("host%d", i), "eth0")
				output(t, fmt.Sprintf("ip link set host%d master between up", i))
				host.run("ip link set eth0 up")
				nodad := ""
				if tt.bits == 64 {
					nodad = " nodad"
				}
				host.run(fmt.Sprintf("ip address add %s/%d dev eth0", address, tt.bits) + nodad)
				for range 2 { // what is there is taken over
					host.up(network)
				}
				hosts, networks = append(hosts, host), append(networks, network)
				guests = append(guests, host.guest(t, network, fmt.Sprintf("10.9.0.1%d/24", i)))
			}
			guests[1].echo(":7")
			if err := guests[0].carry("10.9.0.11:7"); err != nil {
				t.Errorf("guest of the first host to that of the second: %v", err)
			}
			if got := hosts[0].fragments(); got != "0 0" {
				t.Errorf("the first host had to cut packets up: %s", got)
			}
			guests[2].run("ip link set eth0 down")
			guests[2].run("ip link set eth0 up")
			guests[1].serve(":22")
			if got := guests[2].ask("10.9.0.11:22"); got != "" {
				t.Errorf("a host that is no peer got in: %q", got)
			}
			if got := guests[0].askAgain("10.9.0.11:22"); got != "10.9.0.10" {
				t.Errorf("after that, the first got %q", got)
			}

			// The third becomes a peer, and the first is none any more.
			networks[1].VXLAN.Peers = []netip.Addr{networks[2].VXLAN.Local}
			var index int
			hosts[1].in(func() {
				link, err := netlink.LinkByName("vmvx-lan")
				if err != nil {
					t.Fatal(err)
				}
				index = link.Attrs().Index
			})
			hosts[1].up(networks[1])
			if got := guests[2].askAgain("10.9.0.11:22"); got != "10.9.0.12" {
				t.Errorf("a new peer got %q", got)
			}
			if got := guests[0].ask("10.9.0.11:22"); got != "" {
				t.Errorf("who is no peer any more got %q", got)
			}
			hosts[1].in(func() {
				link, err := netlink.LinkByName("vmvx-lan")
				if err != nil || link.Attrs().Index != index || link.Attrs().MTU != tt.mtu {
					t.Errorf("the interface is another: %v, %v", link, err)
				}
				out, err := exec.Command("bridge", "fdb", "show", "dev", "vmvx-lan").CombinedOutput()
				if err != nil || strings.Contains(string(out), "dst "+tt.hosts[0]) || !strings.Contains(string(out), "00:00:00:00:00:00 dst "+tt.hosts[2]) {
					t.Errorf("peers: %v\n%s", err, out)
				}
				without := *networks[1]
				without.VXLAN = config.VXLAN{}
				if err := Change(Network(networks[1]), Network(&without)); err != nil {
					t.Error(err)
				}
				if _, err := netlink.LinkByName("vmvx-lan"); !notFound(err) {
					t.Errorf("the interface of no VXLAN: %v", err)
				}
				if err := Down(Network(networks[1])); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

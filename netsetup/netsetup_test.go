package netsetup

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

var update = flag.Bool("update", false, "rewrite what the golden files want")

// load reads a network, and a machine beside it where there is one, as they
// would lie in /etc/vmctl.
func load(t testing.TB, a *txtar.Archive) (*config.Network, *config.Machine) {
	t.Helper()
	paths := config.SystemPaths(t.TempDir())
	var network *config.Network
	var machine *config.Machine
	for _, dir := range []string{paths.NetworkDirs[1], paths.VMDirs[1], filepath.Dir(paths.MachineID)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path string, data []byte) {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(paths.MachineID, []byte("0123456789abcdef0123456789abcdef\n"))
	for _, f := range a.Files {
		switch f.Name {
		case "network.toml":
			write(filepath.Join(paths.NetworkDirs[1], "lan.toml"), f.Data)
			n, err := config.LoadNetwork(paths, "lan")
			if err != nil || len(n.Problems) > 0 {
				t.Fatal(err, n.Problems)
			}
			network = n.Network
		case "vm.toml":
			write(filepath.Join(paths.VMDirs[1], "web.toml"), f.Data)
			vm, err := config.LoadVM(paths, "web")
			if err != nil || len(vm.Problems) > 0 {
				t.Fatal(err, vm.Problems)
			}
			machine = vm.Machine
		}
	}
	return network, machine
}

// TestGolden compares the filters and the service's configuration with the
// golden files.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			network, machine := load(t, a)
			got, card := map[string]string{}, CardState{}
			if network != nil {
				got["network.nft"] = Network(network).Rules
				got["dnsmasq.conf"] = Service(network, ServiceDir{"/run/vmctl/network/lan/hosts", "/var/lib/vmctl/networks/lan/leases", "/etc/resolv.conf"})
			}
			if machine != nil {
				nic := machine.NICs[0]
				lease := Lease{}
				if nic.Network == "" {
					network = nil
				} else if lease, err = Assign(network, machine.Name, nic, func(netip.Addr) bool { return false }); err != nil {
					t.Fatal(err)
				}
				card = Card(machine.Name, nic, network, lease, HostBridge{})
				got["card.nft"] = card.Filter + card.Forwards
				if network != nil {
					got["host"] = HostLine(network, nic.MAC, lease, machine.Name)
				}
			}
			for name, text := range got {
				i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == name })
				switch {
				case i < 0 && *update:
					a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(text)})
				case i < 0:
					t.Errorf("no %s in the golden file", name)
				case *update:
					a.Files[i].Data = []byte(text)
				case string(a.Files[i].Data) != text:
					t.Errorf("%s: got\n%s\nwant\n%s", name, text, a.Files[i].Data)
				}
			}
			if *update {
				slices.SortStableFunc(a.Files, func(x, y txtar.File) int { return strings.Compare(filepath.Ext(y.Name), filepath.Ext(x.Name)) })
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			inNamespace(t)
			for name, text := range got {
				if name == "card.nft" {
					text = card.Rules
				}
				if strings.HasSuffix(name, ".nft") {
					if err := apply(text); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
			}
		})
	}
}

// inNamespace moves the test into a network namespace of its own.
func inNamespace(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_FS); err != nil {
		t.Fatal(err)
	}
	// /proc/sys shows the namespace of the process that opens it, the thread's
	// own only by thread-self.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
}

const lan = `
-- network.toml --
subnet = "192.168.100.0/24"
-- vm.toml --
memory = "64M"
[nic.net]
network = "lan"
`

func TestUpAndDown(t *testing.T) {
	network, machine := load(t, txtar.Parse([]byte(lan)))
	inNamespace(t)
	before := everything(t)
	s := Network(network)
	for range 2 { // what is there is taken over
		if err := Up(s); err != nil {
			t.Fatal(err)
		}
	}
	link, err := netlink.LinkByName("vmctl-network-lan")
	if err != nil || link.Attrs().Name != "vmbr-lan" {
		t.Fatalf("by its alternative name: %v, %v", link, err)
	}
	have, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(have) != 1 || have[0].IPNet.String() != "192.168.100.1/24" {
		t.Errorf("addresses: %v, %v", have, err)
	}

	lease, err := Assign(network, "web", machine.NICs[0], func(netip.Addr) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	card := Card("web", machine.NICs[0], network, lease, HostBridge{})
	queues, err := Plug(card)
	if err != nil {
		t.Fatal(err)
	}
	if cards, others, err := Ports(s); err != nil || !slices.Equal(cards, []string{"web-net"}) || others != nil {
		t.Errorf("ports: %v, %v, %v", cards, others, err)
	}
	closeAll(queues)
	if err := Unplug("web", Unplugged{machine.NICs[0], nil}); err != nil {
		t.Error(err)
	}
	if err := Down(s); err != nil {
		t.Error(err)
	}
	if after := everything(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// manyCards are cards on a network, with the machine that each belongs to.
func manyCards(network *config.Network, machine *config.Machine, n int) []CardState {
	var cards []CardState
	for i := range n {
		vm := fmt.Sprintf("web%d", i)
		lease := Lease{IP4: address4(number4(network.Gateway) + 1 + uint32(i))}
		cards = append(cards, Card(vm, machine.NICs[0], network, lease, HostBridge{}))
	}
	return cards
}

// TestManyCards: 200 cards come, are there at the same time, and go, in another
// order; nothing is left of them.
func TestManyCards(t *testing.T) {
	network, machine := load(t, txtar.Parse([]byte(lan)))
	inNamespace(t)
	before := everything(t)
	s := Network(network)
	if err := Up(s); err != nil {
		t.Fatal(err)
	}
	bridge, err := bridgeOf(s.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	rules := output(t, "nft list ruleset")
	n := 200
	if testing.Short() {
		n = 20
	}
	cards := manyCards(network, machine, n)
	var queues [][]*os.File
	for _, card := range cards {
		q, err := Plug(card)
		if err != nil {
			t.Fatal(err)
		}
		queues = append(queues, q)
	}
	names, others, err := Ports(s)
	slices.Sort(names)
	if err != nil || len(slices.Compact(names)) != len(cards) || others != nil {
		t.Errorf("%d cards on the bridge, and %v, %v", len(names), others, err)
	}
	// By which guests know their router.
	if now, err := bridgeOf(s.Bridge); err != nil || now.Attrs().HardwareAddr.String() != bridge.Attrs().HardwareAddr.String() {
		t.Errorf("the bridge's address was %v, is %v, %v", bridge.Attrs().HardwareAddr, now.Attrs().HardwareAddr, err)
	}
	for i := range cards {
		i = (i*7 + 3) % len(cards)
		closeAll(queues[i])
		if err := Unplug(fmt.Sprintf("web%d", i), Unplugged{machine.NICs[0], nil}); err != nil {
			t.Error(err)
		}
	}
	if cards, others, err := Ports(s); cards != nil || others != nil || err != nil {
		t.Errorf("left on the bridge: %v, %v, %v", cards, others, err)
	}
	if after := output(t, "nft list ruleset"); after != rules {
		t.Errorf("left of the rules:\n%s\nbefore:\n%s", after, rules)
	}
	if err := Down(s); err != nil {
		t.Error(err)
	}
	if after := everything(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// BenchmarkCard is what it takes to plug a card in and to take it out again, by
// how many others are on the bridge.
func BenchmarkCard(b *testing.B) {
	for _, others := range []int{0, 20, 200} {
		b.Run(fmt.Sprint(others), func(b *testing.B) { benchmarkCard(b, others) })
	}
}

func benchmarkCard(b *testing.B, others int) {
	network, machine := load(b, txtar.Parse([]byte(lan)))
	inNamespace(b)
	if err := Up(Network(network)); err != nil {
		b.Fatal(err)
	}
	cards := manyCards(network, machine, others+1)
	for _, card := range cards[1:] {
		queues, err := Plug(card)
		if err != nil {
			b.Fatal(err)
		}
		defer closeAll(queues)
	}
	for b.Loop() {
		queues, err := Plug(cards[0])
		if err != nil {
			b.Fatal(err)
		}
		closeAll(queues)
		if err := Unplug("web0", Unplugged{machine.NICs[0], nil}); err != nil {
			b.Fatal(err)
		}
	}
}

// everything is all that is in the namespace.
func everything(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, line := range []string{"ip address", "ip route show table all", "nft list ruleset"} {
		b.WriteString(output(t, line))
	}
	return b.String()
}

// output is what a command says in the test's own namespace.
func output(t testing.TB, line string) string {
	t.Helper()
	args := strings.Fields(line)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// TestUpCutOff: what was made and not marked yet is known again, and goes.
func TestUpCutOff(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte(`
-- network.toml --
subnet = "192.168.100.0/24"
vxlan = { id = 7, local = "127.0.0.1", peers = ["127.0.0.2"] }
`)))
	inNamespace(t)
	before := everything(t)
	s := Network(network)
	for _, again := range []func(State) error{Up, Down} {
		if err := Up(s); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"vmbr-lan", "vmvx-lan"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkSetAlias(link, ""); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Check(s); err != nil {
			t.Error(err)
		}
		if err := again(s); err != nil {
			t.Error(err)
		}
	}
	if after := everything(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func TestUpRefuses(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte(lan)))
	inNamespace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "vmbr-lan"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	s := Network(network)
	if err := Up(s); err == nil || !strings.Contains(err.Error(), "is not vmctl's") {
		t.Errorf("a bridge of somebody else: %v", err)
	}
	if err := Down(s); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName("vmbr-lan"); err != nil {
		t.Errorf("the bridge of somebody else: %v", err)
	}
	if out, err := exec.Command("ip", "link", "add", "vmvx-x", "type", "bridge").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	if _, err := Plug(CardState{Interface: "vmvx-x", Bridge: "vmbr-lan", Queues: 1}); err == nil || !strings.Contains(err.Error(), "make the TAP interface vmvx-x: ") {
		t.Errorf("a TAP whose name is taken: %v", err)
	}
	s.Own = false
	s.Bridge = "lo"
	if err := Up(s); err == nil || err.Error() != "want the bridge lo, it is an interface of type device" {
		t.Errorf("an interface that is no bridge: %v", err)
	}
	s.Bridge = "br9"
	if err := Up(s); err == nil || err.Error() != "want the bridge br9, the host has no such interface" {
		t.Errorf("no bridge: %v", err)
	}
}

// A network does not take traffic from where the host has a route to already.
func TestOverlap(t *testing.T) {
	inNamespace(t)
	for _, args := range []string{
		"link add up0 type bridge", "address add 10.1.0.1/16 dev up0", "link set up0 up", "route add default via 10.1.0.2", "route add 172.16.0.0/12 via 10.1.0.3",
		"-6 address add fd00:9::1/64 dev up0 nodad",
		"route add 0.0.0.0/1 dev up0", "route add 128.0.0.0/1 dev up0", "route add blackhole 192.168.0.0/16", "-6 route add 2000::/3 dev up0",
		"link add vmbr-lan type bridge", "address add 192.168.100.1/24 dev vmbr-lan", "link set vmbr-lan up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatal(args, err, string(out))
		}
	}
	for subnet, want := range map[string]string{
		"10.1.2.0/24":      "10.1.0.0/16 dev up0",
		"10.0.0.0/8":       "10.1.0.0/16 dev up0",
		"172.20.0.0/24":    "172.16.0.0/12 dev up0",
		"10.2.0.0/16":      "",
		"192.168.100.0/24": "", // its own
		"192.168.101.0/24": "",
		"fd00:9::/64":      "fd00:9::/64 dev up0",
		"fd00:8::/64":      "",
		"2001:db8::/64":    "",
	} {
		if got, err := Overlap(netip.MustParsePrefix(subnet), "vmbr-lan"); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", subnet, got, err, want)
		}
	}
	if got, err := Overlap(netip.Prefix{}, "vmbr-lan"); got != "" || err != nil {
		t.Errorf("no subnet: %q, %v", got, err)
	}
}

func TestAssign(t *testing.T) {
	network, machine := load(t, txtar.Parse([]byte(lan)))
	taken := map[netip.Addr]bool{}
	seen := func(a netip.Addr) bool { return taken[a] }
	first, err := Assign(network, "web", machine.NICs[0], seen)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := Assign(network, "web", machine.NICs[0], seen); again != first {
		t.Errorf("asked again: %v, before %v", again, first)
	}
	for range 253 { // all but the network's, the gateway's and the broadcast address
		l, err := Assign(network, "web", machine.NICs[0], seen)
		if err != nil {
			t.Fatalf("after %d: %v", len(taken)/2, err)
		}
		if taken[l.IP4] || taken[l.IP6] || l.IP4 == network.Gateway || !network.Prefix4().Contains(l.IP4) || !network.Prefix6().Contains(l.IP6) {
			t.Fatalf("got %v", l)
		}
		taken[l.IP4], taken[l.IP6] = true, true
	}
	if _, err := Assign(network, "web", machine.NICs[0], seen); err != ErrFull {
		t.Errorf("of a full network: %v", err)
	}
}

package netsetup

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// machines are those of a host: cards that definitions have, and those that machines
// run with, "web/lan".
type machines struct {
	defined, run []string
	fixed        []netip.Addr
}

func (m machines) Runs(vm, nic string) bool { return slices.Contains(m.run, vm+"/"+nic) }
func (m machines) Has(vm, nic string) bool  { return slices.Contains(m.defined, vm+"/"+nic) }
func (m machines) Fixed(ip netip.Addr) bool { return slices.Contains(m.fixed, ip) }
func fixedAt(address string) (n config.NIC) {
	return config.NIC{Name: "lan", Address: netip.MustParseAddr(address)}
}

// with is a machine with cards in the network.
func with(vm string, nics ...config.NIC) *config.Machine {
	m := &config.Machine{Name: vm}
	for _, nic := range nics {
		nic.Network = "lan"
		m.NICs = append(m.NICs, nic)
	}
	return m
}

const small = `
-- network.toml --
subnet = "192.168.100.0/29"
dhcp_range = "192.168.100.2-192.168.100.4"
`

// TestTake: an address that a definition fixes is its card's, whoever asks first.
func TestTake(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte(small)))
	any := config.NIC{Name: "lan"}
	paths := config.SystemPaths(t.TempDir())
	a := AddressesOf(paths, "lan")
	take := func(vm string, nic config.NIC, m machines) Lease {
		t.Helper()
		l, err := a.Take(network, with(vm, nic), nic, m)
		if err != nil {
			t.Fatal(vm, err)
		}
		return l
	}
	chosen := take("web", any, machines{})
	if again := take("web", any, machines{}); again != chosen {
		t.Errorf("again: %v, before %v", again, chosen)
	}

	// Fixed by a definition whose machine has not started.
	own := map[netip.Addr]bool{}
	for _, last := range []byte{2, 3, 4} {
		own[netip.AddrFrom4([4]byte{192, 168, 100, last})] = true
	}
	delete(own, chosen.IP4)
	var free []netip.Addr
	for ip := range own {
		free = append(free, ip)
	}
	if got := take("db", any, machines{fixed: free[:1]}); got.IP4 != free[1] {
		t.Errorf("got %v, where %v is fixed and %v had by web", got.IP4, free[0], chosen.IP4)
	}
	// The range is full, but for the fixed one.
	if got := take("mail", fixedAt(free[0].String()), machines{}); got.IP4 != free[0] || !network.Prefix6().Contains(got.IP6) {
		t.Errorf("fixed to %v: got %v", free[0], got)
	}
	all := func() string {
		t.Helper()
		all, err := a.All()
		if err != nil {
			t.Fatal(err)
		}
		var cards []string
		for card := range all {
			cards = append(cards, card)
		}
		slices.Sort(cards)
		return strings.Join(cards, " ")
	}

	// One that was chosen for another is taken from it, once that has stopped.
	_, err := a.Take(network, with("new"), fixedAt(chosen.IP4.String()), machines{run: []string{"web/lan"}})
	if held, ok := errors.AsType[*HeldError](err); !ok || held.VM != "web" || held.NIC != "lan" || held.Address != chosen.IP4 {
		t.Errorf("of a machine that runs: %v", err)
	}
	if got := take("new", fixedAt(chosen.IP4.String()), machines{}); got.IP4 != chosen.IP4 {
		t.Errorf("fixed to %v: got %v", chosen.IP4, got)
	}
	if got := all(); got != "db/lan mail/lan new/lan" {
		t.Errorf("given to %s", got)
	}

	// A full network forgets cards that nobody has any more.
	if _, err := a.Take(network, with("more"), any, machines{run: []string{"db/lan"}, defined: []string{"mail/lan", "new/lan"}}); err != ErrFull {
		t.Errorf("of a full network: %v", err)
	}
	take("more", any, machines{run: []string{"db/lan"}, defined: []string{"mail/lan"}})
	if got := all(); got != "db/lan mail/lan more/lan" {
		t.Errorf("given to %s", got)
	}

	if err := Forget(paths, "mail", "wan"); err != nil || all() != "db/lan mail/lan more/lan" {
		t.Errorf("another card is forgotten: %v, %v", all(), err)
	}
	if err := errors.Join(Forget(paths, "mail", "lan"), Forget(paths, "db")); err != nil || all() != "more/lan" {
		t.Errorf("forgotten: %v, %v", all(), err)
	}
}

// TestTakeOwn: what a machine's own cards had is in the way of none of them when it
// starts, but of one that is plugged in while it runs.
func TestTakeOwn(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte(small)))
	any := func(name string) config.NIC { return config.NIC{Name: name} }
	fixed := func(name string, last byte) config.NIC {
		return config.NIC{Name: name, Address: netip.AddrFrom4([4]byte{192, 168, 100, last})}
	}
	for name, tt := range map[string]struct{ before, after []config.NIC }{
		"exchanged": {[]config.NIC{fixed("a", 2), fixed("b", 3)}, []config.NIC{fixed("a", 3), fixed("b", 2)}},
		"renamed":   {[]config.NIC{fixed("a", 2), fixed("b", 3)}, []config.NIC{fixed("a", 2), fixed("c", 3)}},
		"chosen":    {[]config.NIC{any("a"), any("b"), any("c")}, []config.NIC{any("a"), fixed("b", 4), fixed("c", 3)}},
		"full":      {[]config.NIC{any("a"), any("b"), any("c")}, []config.NIC{any("d"), any("e"), any("f")}},
		"both":      {[]config.NIC{fixed("a", 2), fixed("b", 3), fixed("c", 4)}, []config.NIC{any("c"), fixed("b", 4), fixed("d", 3)}},
	} {
		t.Run(name, func(t *testing.T) {
			a := AddressesOf(config.SystemPaths(t.TempDir()), "lan")
			var runs machines
			for _, nics := range [][]config.NIC{tt.before, tt.after} {
				m := with("web", nics...)
				runs = machines{}
				for _, nic := range nics {
					runs.run = append(runs.run, "web/"+nic.Name)
				}
				seen := map[netip.Addr]bool{}
				for _, nic := range m.NICs {
					l, err := a.Take(network, m, nic, runs)
					if err != nil || seen[l.IP4] || nic.Address.IsValid() && l.IP4 != nic.Address {
						t.Errorf("%s fixed to %v: got %v, %v, of which others have %v", nic.Name, nic.Address, l, err, seen)
					}
					seen[l.IP4] = true
				}
			}
			all, err := a.All()
			last := tt.after[len(tt.after)-1].Name
			live := config.NIC{Name: "live", Address: all["web/"+last].IP4}
			if err == nil {
				_, err = a.Take(network, with("web", tt.after...), live, runs)
			}
			if held, ok := errors.AsType[*HeldError](err); !ok || held.VM != "web" || held.NIC != last {
				t.Errorf("plugged in with the address of %s: %v", last, err)
			}
		})
	}
}

// TestTakeNone: where a network gives no addresses out, a card has none but fixed
// ones.
func TestTakeNone(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte(small+"dhcp = false\n")))
	a := AddressesOf(config.SystemPaths(t.TempDir()), "lan")
	for _, tt := range []struct {
		nic  config.NIC
		want Lease
	}{
		{config.NIC{Name: "lan"}, Lease{}},
		{fixedAt("192.168.100.3"), Lease{IP4: netip.MustParseAddr("192.168.100.3")}},
		{fixedAt("192.168.100.3"), Lease{IP4: netip.MustParseAddr("192.168.100.3")}},
		{config.NIC{Name: "lan"}, Lease{}},
	} {
		if got, err := a.Take(network, with("web", tt.nic), tt.nic, machines{}); err != nil || got != tt.want {
			t.Errorf("%v: got %v, %v, want %v", tt.nic.Address, got, err, tt.want)
		}
	}
}

// TestGuestsOfOthersAddresses: a guest of a network that gives no addresses out has
// the one that it got elsewhere, and not the host's.
func TestGuestsOfOthersAddresses(t *testing.T) {
	network, machine := load(t, txtar.Parse([]byte(lan)))
	network.DHCP = false
	inNamespace(t)
	if err := Up(Network(network)); err != nil {
		t.Fatal(err)
	}
	nic := machine.NICs[0]
	lease, err := Assign(network, "web", nic, func(netip.Addr) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	card := Card("web", nic, network, lease, HostBridge{})
	web := newNamespace(t)
	web.connect(card.Interface, "eth0")
	web.run("ip link set eth0 address " + string(nic.MAC) + " up")
	bridge, err := bridgeOf(card.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	if err := plug(card, bridge); err != nil {
		t.Fatal(err)
	}
	web.run("ip address add 192.168.100.77/24 dev eth0")
	settled(t)
	web.in(func() { settled(t) })
	web.serve(":22")
	c, err := net.DialTimeout("tcp", "192.168.100.77:22", time.Minute)
	if err != nil {
		t.Fatal("a guest with an address from elsewhere does not answer: ", err)
	}
	c.Close()
	// Under the host's address, it says to nobody that it is that.
	web.run("ip address del 192.168.100.77/24 dev eth0")
	web.run("ip address add 192.168.100.1/24 dev eth0")
	web.in(func() {
		if c, err := net.DialTimeout("tcp", "192.168.100.9:22", time.Second); err == nil { // nobody answers
			c.Close()
		}
	})
	if rules := output(t, "nft list chain bridge vmctl_cards "+guardChain(card.Interface)); !strings.Contains(rules, "192.168.100.1 counter packets ") || strings.Contains(rules, "arp saddr ip 192.168.100.1 counter packets 0 ") {
		t.Errorf("a guest with the host's address asks as that:\n%s", rules)
	}
}

// TestLocksOfOthers: whoever opens what everybody can read keeps nobody waiting.
func TestLocksOfOthers(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte(small)))
	paths := config.SystemPaths(t.TempDir())
	a := AddressesOf(paths, "lan")
	f := Forwarding{File: paths.Forwarding, Lock: paths.Lock(".forwarding")}
	for _, file := range []string{a.File, f.File} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		dir, err := os.Open(filepath.Dir(file))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Take(network, with("web"), config.NIC{Name: "lan"}, machines{}); err != nil {
		t.Error(err)
	}
	inNamespace(t)
	if err := f.Off(); err != nil {
		t.Error(err)
	}
	for _, lock := range []string{a.Lock, f.Lock} {
		if info, err := os.Stat(lock); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the lock: %v, %v", info, err)
		}
	}
}

package main

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/netsetup"
)

// bridgedApp is a machine on a host with a bridge, in a network namespace of its own.
func bridgedApp(t *testing.T) app {
	t.Helper()
	makeBridge(t)
	dir := t.TempDir()
	t.Setenv("NOTIFY_SOCKET", newNotifySocket(t, filepath.Join(dir, "notify")).path)
	a := app{paths: config.SystemPaths(dir), vm: "web", err: t.Output(), notify: func(string) {}}
	for _, dir := range []string{filepath.Dir(a.paths.Record(a.vm)), a.paths.RuntimeDir(a.vm)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// plugged plugs a card in, whose queues stay open until the answer is called.
func (a app) plugged(t *testing.T, nic config.NIC, n *config.Network) (unplug func()) {
	t.Helper()
	m := &config.Machine{Name: a.vm, NICs: []config.NIC{nic}}
	card, err := a.cardIn(t.Context(), m, nic, n)
	if err != nil {
		t.Fatal(err)
	}
	queues, err := netsetup.Plug(card)
	if err != nil {
		t.Fatal(err)
	}
	return func() { closeList(queues) }
}

// TestUnplugOld: a run whose end nobody saw leaves nothing of a card that is elsewhere
// by now, or has other addresses.
func TestUnplugOld(t *testing.T) {
	a := bridgedApp(t)
	command(t, "ip", "link", "add", "br1", "type", "bridge")
	old := config.NIC{Name: "net", Bridge: "br0", MAC: "52:54:00:00:00:0a", Queues: 1, Address: netip.MustParseAddr("192.0.2.20")}
	other := app{paths: a.paths, vm: "other"}
	defer other.plugged(t, config.NIC{Name: "net", Bridge: "br0", MAC: "52:54:00:00:00:0b", Queues: 1}, nil)() // so that the sets stay
	for _, c := range []struct {
		what   string
		change func(*config.NIC)
		stays  bool
	}{
		{"nothing", func(*config.NIC) {}, true},
		{"its address", func(n *config.NIC) { n.Address = netip.MustParseAddr("192.0.2.21") }, false},
		{"its Ethernet address", func(n *config.NIC) { n.MAC = "52:54:00:00:00:0c" }, false},
		{"its bridge", func(n *config.NIC) { n.Bridge = "br1" }, false},
		{"its name", func(n *config.NIC) { n.Name = "lan" }, false},
	} {
		a.plugged(t, old, nil)()
		if err := a.writeRecord(hypervisor.Record{Machine: &config.Machine{Name: a.vm, NICs: []config.NIC{old}}, Plan: &hypervisor.Plan{}}); err != nil {
			t.Fatal(err)
		}
		is := old
		c.change(&is)
		if err := a.unplugOld(&config.Machine{Name: a.vm, NICs: []config.NIC{is}}); err != nil {
			t.Fatal(err)
		}
		if stays := strings.Contains(command(t, "nft", "list", "ruleset"), "192.0.2.20"); stays != c.stays {
			t.Errorf("%s has changed: its old address is taken: %v, want %v", c.what, stays, c.stays)
		}
	}
}

// TestNetworkOnHostBridge: the cards of a network on a bridge of the host's own keep it
// as it is, and up, as those on one of its own do; others' cards on the bridge do not.
func TestNetworkOnHostBridge(t *testing.T) {
	a := bridgedApp(t)
	n := &config.Network{Name: "lan", Bridge: "br0"}
	network := a
	network.vm = "lan"
	if err := network.writeNetwork(n); err != nil {
		t.Fatal(err)
	}
	nics := []config.NIC{
		{Name: "net", Network: "lan", MAC: "52:54:00:00:00:0a", Queues: 1},
		{Name: "own", Bridge: "br0", MAC: "52:54:00:00:00:0b", Queues: 1},
		{Name: "gone", Network: "lan", MAC: "52:54:00:00:00:0c", Queues: 1}, // not plugged in yet
	}
	unplug := a.plugged(t, nics[0], n)
	defer a.plugged(t, nics[1], nil)()
	if err := a.writeClaims(&config.Machine{Name: a.vm, NICs: nics}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.paths.Claimed(a.vm), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	was, cards, err := network.networkAsIs()
	if err != nil || strings.Join(cards, " ") != "web-net" {
		t.Errorf("plugged in are %v, %v, want web-net", cards, err)
	}
	other := &config.Network{Name: "lan", Bridge: "br1", VLAN: 5}
	want := []string{
		`bridge: want no change while machines are plugged in (web-net), got "br1" in place of "br0"`,
		`vlan: want no change while machines are plugged in (web-net), got "5" in place of ""`,
	}
	var got []string
	for _, p := range checkPlugged(was, other, cards) {
		got = append(got, p.Error())
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q, want %q", got, want)
	}

	if err := network.networkDown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !access.IsThere(a.paths.NetworkJSON("lan")) || !access.IsThere(a.paths.NetworkLeft("lan")) {
		t.Error("it has gone while a card is plugged in")
	}
	if err := a.removeLeft(nics); err != nil || !access.IsThere(a.paths.NetworkJSON("lan")) {
		t.Errorf("with another card: %v, or it has gone", err)
	}
	unplug()
	if err := a.removeLeft(nics); err != nil || access.IsThere(a.paths.NetworkDir("lan")) {
		t.Errorf("after the last card: %v, or it is there", err)
	}
}

// TestNetworkOfOthersBridge: what others have on a bridge of the host's own does not keep
// a network there that none of our cards is in.
func TestNetworkOfOthersBridge(t *testing.T) {
	a := bridgedApp(t)
	a.vm = "lan"
	command(t, "ip", "link", "add", "eth7", "master", "br0", "type", "veth", "peer", "name", "eth8")
	n := &config.Network{Name: "lan", Bridge: "br0"}
	if err := a.writeNetwork(n); err != nil {
		t.Fatal(err)
	}
	if cards, others, err := a.ports(n); err != nil || cards != nil || others != nil {
		t.Errorf("got the ports %v and %v, %v", cards, others, err)
	}
	t.Setenv("SERVICE_RESULT", "exit-code") // nobody has wanted the end
	if err := a.networkDown(t.Context()); err != nil || access.IsThere(a.paths.NetworkDir("lan")) {
		t.Errorf("got %v, or the network is up", err)
	}
}

// TestLockToPlug: no two machines at once look whether an address of a definition is
// free on a bridge of the host's own; all else is plugged in side by side.
func TestLockToPlug(t *testing.T) {
	a := app{paths: config.SystemPaths(t.TempDir()), err: t.Output()}
	for _, n := range []*config.Network{{Name: "hosts", Bridge: "br0"}, {Name: "own"}} {
		if err := a.writeNetwork(n); err != nil {
			t.Fatal(err)
		}
	}
	address := netip.MustParseAddr("192.0.2.20")
	for _, c := range []struct {
		nic   config.NIC
		alone bool
	}{
		{config.NIC{Bridge: "br0", Address: address}, true},
		{config.NIC{Network: "hosts", Address: address}, true},
		{config.NIC{Bridge: "br0"}, false},
		{config.NIC{Network: "hosts"}, false},
		{config.NIC{Network: "own", Address: address}, false},
		{config.NIC{Network: "none", Address: address}, false},
	} {
		unlock, err := a.lockToPlug([]config.NIC{{Bridge: "br0"}, c.nic})
		if err != nil {
			t.Fatal(err)
		}
		other, err := a.lockNetworks(unix.LOCK_SH | unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) != c.alone || !c.alone && err != nil {
			t.Errorf("%+v: another gets %v, want it to wait: %v", c.nic, err, c.alone)
		}
		if err == nil {
			other()
		}
		unlock()
	}
}

// TestCheckProxies: a host without what listens on ::1 for guests says so before the
// start, for those cards alone that need it.
func TestCheckProxies(t *testing.T) {
	a := app{paths: config.SystemPaths(t.TempDir()), vm: "web"}
	forward := []config.Forward{
		{Address: "127.0.0.1", HostPort: 8080, GuestPort: 80, Protocol: config.TCP},
		{Address: "::1", HostPort: 8080, GuestPort: 80, Protocol: config.TCP},
	}
	m := &config.Machine{Name: "web", NICs: []config.NIC{{Name: "user", User: true, Forward: forward}, {Name: "lan", Network: "lan", Forward: forward}}}
	problems := a.checkProxies(m)
	if len(problems) != 1 || problems[0].Error() != "nic.lan.forward[1]: it needs systemd-socket-proxyd, which is not there (/usr/lib/systemd/systemd-socket-proxyd)" {
		t.Errorf("got %v", problems)
	}
	program := filepath.Join(a.paths.Root, proxyPrograms[0])
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if problems := a.checkProxies(m); problems != nil {
		t.Errorf("where it is there: %v", problems)
	}
}

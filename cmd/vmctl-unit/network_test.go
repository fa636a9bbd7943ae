package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/netsetup"
)

// lanApp is a host with a network, and the addresses of cards in it.
func lanApp(t *testing.T, cards ...string) (app, *config.Network) {
	t.Helper()
	a := app{paths: config.SystemPaths(t.TempDir()), vm: "lan"}
	n := &config.Network{Name: "lan", Interface: "vmbr-lan", MTU: 1500, Subnet: "192.168.100.0/24", Gateway: netip.MustParseAddr("192.168.100.1"), DHCPRange: "192.168.100.2-192.168.100.254", DHCP: true, Domain: "lan"}
	if err := a.writeNetwork(n); err != nil {
		t.Fatal(err)
	}
	for _, card := range cards {
		vm, nic := netsetup.SplitCard(card)
		if _, err := netsetup.AddressesOf(a.paths, "lan").Take(n, &config.Machine{Name: vm}, config.NIC{Name: nic, MAC: "52:54:00:00:00:0a"}, &neighbours{paths: a.paths, network: "lan"}); err != nil {
			t.Fatal(err)
		}
	}
	return a, n
}

// TestWriteHosts: the service knows the addresses of all cards, whether their
// machines run or not, and of no others.
func TestWriteHosts(t *testing.T) {
	a, n := lanApp(t, "web/lan", "db/lan")
	check := func(want bool, cards ...string) {
		t.Helper()
		if changed, err := a.writeHosts(n); err != nil || changed != want {
			t.Errorf("changed: %v, %v", changed, err)
		}
		there, err := os.ReadDir(a.paths.NetworkHosts("lan"))
		if err != nil || len(there) != len(cards) {
			t.Errorf("there are %v, %v, want those of %v", there, err, cards)
		}
		for _, card := range cards {
			vm, nic := netsetup.SplitCard(card)
			b, err := os.ReadFile(filepath.Join(a.paths.NetworkHosts("lan"), netsetup.TapName(vm, nic)))
			if err != nil || !strings.HasPrefix(string(b), "52:54:00:00:00:0a,192.168.100.") || !strings.HasSuffix(string(b), ","+vm+".lan\n") {
				t.Errorf("%s: %q, %v", card, b, err)
			}
		}
	}
	check(false, "db/lan", "web/lan")
	check(false, "db/lan", "web/lan")
	if err := netsetup.Forget(a.paths, "web"); err != nil {
		t.Fatal(err)
	}
	check(true, "db/lan")
	check(false, "db/lan")
}

// TestWriteHostsBefore: of a card that was noted without its Ethernet address the
// service knows what it was told before.
func TestWriteHostsBefore(t *testing.T) {
	a, n := lanApp(t)
	addresses := a.paths.NetworkAddresses("lan")
	if err := os.MkdirAll(filepath.Dir(addresses), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{
		addresses: `{"web/lan": {"ip4": "192.168.100.7"}, "db/lan": {"ip4": "192.168.100.8"}}`,
		filepath.Join(a.paths.NetworkHosts("lan"), netsetup.TapName("web", "lan")): "52:54:00:00:00:0a,192.168.100.7,web.lan\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if changed, err := a.writeHosts(n); err != nil || changed {
		t.Errorf("changed: %v, %v", changed, err)
	}
	there, err := os.ReadDir(a.paths.NetworkHosts("lan"))
	if err != nil || len(there) != 1 {
		t.Fatalf("there are %v, %v", there, err)
	}
	b, err := os.ReadFile(filepath.Join(a.paths.NetworkHosts("lan"), there[0].Name()))
	if err != nil || string(b) != "52:54:00:00:00:0a,192.168.100.7,web.lan\n" {
		t.Errorf("got %q, %v", b, err)
	}
}

// TestWriteHostsAtOnce: what the service knows is written while nobody changes it.
func TestWriteHostsAtOnce(t *testing.T) {
	a, n := lanApp(t, "web/lan")
	unlock, err := access.LockFile(a.paths.Lock(".addresses"), unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := a.writeHosts(n)
		done <- err
	}()
	// As long as nobody waits for the lock, it is on its way to it, or past it.
	for waits := false; !waits; {
		select {
		case err := <-done:
			t.Fatal("the addresses are another's to change: written, ", err)
		default:
		}
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(a.paths.Lock(".addresses"))
		if err != nil {
			t.Fatal(err)
		}
		inode := fmt.Sprintf(":%d ", info.Sys().(*syscall.Stat_t).Ino)
		waits = slices.ContainsFunc(strings.Split(string(locks), "\n"), func(line string) bool {
			return strings.Contains(line, "-> FLOCK") && strings.Contains(line, inode)
		})
	}
	unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestNeighbourRuns: a machine that runs without a card does not run with its address.
func TestNeighbourRuns(t *testing.T) {
	a, _ := lanApp(t)
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want string) {
		t.Helper()
		var got []string
		for _, nic := range []string{"lan", "old", "other", "gone"} {
			if (&neighbours{paths: a.paths, network: "lan"}).Runs("db", nic) {
				got = append(got, nic)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("runs with %v, want %s", got, want)
		}
	}
	write(a.paths.Record("db"), `{"machine": {"name": "db", "nics": [{"name": "lan", "network": "lan"}, {"name": "other", "network": "dmz"}, {"name": "gone", "network": "lan"}]}, "plan": {}}`)
	write(a.paths.Changes("db"), `{"gone_nics": ["gone"]}`)
	check("")
	if err := os.MkdirAll(a.paths.RuntimeDir("db"), 0o755); err != nil {
		t.Fatal(err)
	}
	check("lan")
	write(a.paths.Record("db"), "{")
	check("lan old other gone")
}

// TestNamesForAll: everybody may read the names of guests, whoever made their
// directory.
func TestNamesForAll(t *testing.T) {
	a, n := lanApp(t)
	a.vm = "web"
	before := unix.Umask(0o077)
	defer unix.Umask(before)
	if err := a.writeNames(n, config.NIC{Name: "lan"}, netsetup.Lease{}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{a.paths.Names: 0o755, a.paths.CardNames("web", "lan"): 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
}

// TestRemoveNetworkCutOff: whoever removed the last network was killed before the
// host's forwarding was put back: the next stop does.
func TestRemoveNetworkCutOff(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_FS); err != nil {
		t.Fatal(err)
	}
	a, n := lanApp(t)
	if err := errors.Join(netsetup.Up(netsetup.Network(n)), a.forward(true, true, []*config.Network{n})); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netsetup.Down(netsetup.Network(n)), os.RemoveAll(a.paths.NetworkDir("lan"))); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.networkDown(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if left := command(t, "nft", "list", "tables"); left != "" {
		t.Errorf("left are %s", left)
	}
	if _, err := os.Stat(a.paths.Forwarding); err == nil {
		t.Error("what was switched is still noted")
	}
}

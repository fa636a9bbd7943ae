package config

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// A name that is none leads to no file, wherever it points.
func TestNetworksOfHostileNames(t *testing.T) {
	p := hostPaths(t)
	write(t, filepath.Join(p.NetworkDirs[1], "lan.toml"), "subnet = \"10.0.0.0/24\"\n")
	write(t, filepath.Join(p.NetworkDirs[1], "masked.toml"), "")
	write(t, filepath.Join(filepath.Dir(p.NetworkDirs[1]), "up.toml"), "subnet = \"10.0.0.0/24\"\n")
	for _, name := range []string{"", ".", "..", "../up", "lan/../lan", "lan.toml", "LAN", "-lan", "lan-", "lan\n", "%i", "lan\x00", strings.Repeat("x", 64), "masked", "none"} {
		if n, err := LoadNetwork(p, name); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, %v", name, n, err)
		}
	}
	if n, err := LoadNetwork(p, "lan"); err != nil || n.Network == nil {
		t.Errorf("lan: %v, %v", n.Problems, err)
	}
}

// Names of interfaces fit, and differ where the names do.
func TestInterfaceNames(t *testing.T) {
	seen := map[string][]string{}
	for _, names := range [][]string{
		{"lan"}, {"abcdefghij"}, {"abcdefghijk"}, {"abcdefghijkl"}, {strings.Repeat("x", 63)}, {"a", "b"}, {"a-b"}, {"a", "b-c"}, {"a-b", "c"}, {"a-b-c"},
	} {
		name := InterfaceName("vmbr", names...)
		if wantInterface(name) != "" {
			t.Errorf("%q: %q is no name of an interface", names, name)
		}
		if other, twice := seen[name]; twice {
			t.Errorf("%q and %q share %q", names, other, name)
		}
		seen[name] = names
	}
}

// Names that mean more than themselves to others are none.
func TestInterfaceNamesRefused(t *testing.T) {
	for _, name := range []string{"lan*", `a"b`, `a\\`, "a,b", "lan%d", "a b", "a/b", "."} {
		if wantInterface(name) == "" {
			t.Errorf("%q passes", name)
		}
	}
	if want := wantInterface("wlan0.100_a-b@c"); want != "" {
		t.Error(want)
	}
}

// What was written by one vmctl is what another reads.
func TestNetworkDraft(t *testing.T) {
	p := hostPaths(t)
	d := NewNetworkDraft()
	for _, set := range [][2]string{{"subnet", "10.0.0.0/24"}, {"dns", "192.0.2.1"}, {"dns", "192.0.2.2"}, {"isolated", "true"}, {"vxlan.id", "7"}, {"vxlan.local", "192.0.2.1"}} {
		if err := d.Set(set[0], set[1]); err != nil {
			t.Fatal(set, err)
		}
	}
	file := filepath.Join(p.NetworkDirs[1], "lan.toml")
	tried := TryNetwork(p, file, d.Text())
	if len(tried.Problems) > 0 {
		t.Fatal(tried.Problems)
	}
	if n := tried.Network; n.Name != "lan" || n.Subnet != "10.0.0.0/24" || len(n.DNS) != 2 || !n.Isolated || n.VXLAN.ID != 7 {
		t.Errorf("got %+v", n)
	}
	if err := d.Set("subnet", "10.0.0.0"); err == nil {
		t.Error("a subnet without length was taken")
	}

	// What two must not share is found before it is written, and what is there is
	// replaced by what is tried.
	write(t, file, d.Text())
	if n := TryNetwork(p, file, d.Text()); len(n.Problems) > 0 {
		t.Errorf("tried over itself: %v", n.Problems)
	}
	for _, name := range []string{"a", "z"} { // before and after it
		n := TryNetwork(p, filepath.Join(p.NetworkDirs[1], name+".toml"), "subnet = \"10.0.0.128/25\"\n")
		if len(n.Problems) != 1 || !strings.Contains(n.Problems[0].Error(), "overlaps") || n.Network != nil {
			t.Errorf("%s: %v", name, n.Problems)
		}
	}
	if n := TryNetwork(p, filepath.Join(p.NetworkDirs[1], "X.toml"), ""); len(n.Problems) != 1 {
		t.Errorf("a bad name: %v", n.Problems)
	}
}

// TestTakesDomain: what is a top-level domain of the Internet, and what others may well have.
func TestTakesDomain(t *testing.T) {
	for domain, want := range map[string]bool{
		"com": true, "dev": true, "App": true, "uk": true, "arpa": true,
		"lan": false, "internal": false, "home.arpa": false, "local": false, "default": false,
		"example.com": false, "dev.internal": false, "vms.dev": false, "github.io": false, // whose owner may well do so
	} {
		if got := (&Network{Name: "x", Domain: domain, DHCP: true}).takesDomain(); got != want {
			t.Errorf("%s: got %v, want %v", domain, got, want)
		}
	}
}

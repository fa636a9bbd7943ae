package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// TestDeleteNeededNetwork: a network that another lets in is not removed, which
// would break that one.
func TestDeleteNeededNetwork(t *testing.T) {
	a := host(t)
	for name, text := range map[string]string{"front": "subnet6 = \"fd00:1::/64\"\n", "back": "subnet6 = \"fd00:2::/64\"\nallow_from = [\"front\"]\n"} {
		file := config.Definition(a.paths.NetworkDirs[1], name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	look := func(name string) networkLook { return networkLook{file: config.NetworkFile{Name: name}} }
	if _, err := a.planNetworkDeletion(look("front")); err == nil || !strings.Contains(err.Error(), "the network back lets its guests in (allow_from)") {
		t.Errorf("front: %v", err)
	}
	if d, err := a.planNetworkDeletion(look("back")); err != nil || len(d.Removed) != 1 {
		t.Errorf("back: %v, %v", d, err)
	}
}

// What is said of a changed definition is what can be done; and of addresses, those
// of cards that are there.
func TestNetworkShownAsItIs(t *testing.T) {
	a := host(t)
	write := func(file, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	up := &config.Network{Name: "lan", Subnet: "10.0.0.0/24", Subnet6: "fd00::/64"}
	pending := func(is *config.Network, running ...string) string {
		l := networkLook{file: config.NetworkFile{Name: "lan", Network: is}, up: up}
		return pendingText(networkShown{networkJSON: networkJSON{Name: "lan", RunningMachines: running}, waits: l.waits()})
	}
	for _, tt := range []struct{ got, want string }{
		{pending(&config.Network{Subnet: "10.0.0.0/24", Subnet6: "fd00::/64", MTU: 1400}, "web"), "the definition has changed; vmctl network reload lan applies it"},
		{pending(&config.Network{Subnet: "10.0.1.0/24", Subnet6: "fd00::/64"}), "the definition has changed; vmctl network reload lan applies it"},
		{pending(&config.Network{Subnet: "10.0.1.0/24"}, "db", "web"), "the definition has changed, in subnet and subnet6 too, which waits until no machine is plugged in (db, web); vmctl network reload lan applies it then"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}

	write(a.paths.NetworkAddresses("lan"), `{"web/lan": {"ip4": "10.0.0.2"}, "web/old": {"ip4": "10.0.0.3"}, "gone/lan": {"ip4": "10.0.0.4"}, "broken/lan": {"ip4": "10.0.0.5"}}`)
	write(a.paths.NetworkLeases("lan"), "1 52:54:00:00:00:01 10.0.0.7 old *\n9999999999 52:54:00:00:00:02 10.0.0.8 * *\n0 52:54:00:00:00:03 10.0.0.9 * *\n")
	l := networkLook{file: config.NetworkFile{Name: "lan"}, cards: []networkCard{{Machine: "web", NIC: "lan"}}, unread: []string{"broken"}}
	var got []string
	for _, row := range a.leasesOf(l) {
		got = append(got, row.Address)
	}
	if want := "10.0.0.5 10.0.0.2 10.0.0.8 10.0.0.9"; strings.Join(got, " ") != want {
		t.Errorf("addresses %v, want %s", got, want)
	}
}

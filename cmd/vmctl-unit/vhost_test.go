package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// TestVhost: the descriptors of a card and the option that names them are both
// there or both not, card by card, and the numbers of what is behind them stay.
func TestVhost(t *testing.T) {
	dir := t.TempDir()
	node := filepath.Join(dir, "vhost-net")
	if err := os.WriteFile(node, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ds := []hypervisor.Descriptor{
		{Use: hypervisor.Queue, Card: "lan"},
		{Use: hypervisor.Vhost, Card: "lan", Option: ",vhostfd=4"},
		{Use: hypervisor.Queue, Card: "wan"},
		{Use: hypervisor.Queue, Card: "wan"},
		{Use: hypervisor.Vhost, Card: "wan", Option: ",vhostfds=7:8"},
		{Use: hypervisor.Vhost, Card: "wan", Option: ",vhostfds=7:8"},
		{Use: hypervisor.Queue, Card: "last"},
	}
	argv := []string{"qemu", "-netdev", "tap,id=net-lan,fd=3,vhostfd=4", "-netdev", "tap,id=net-wan,fds=5:6,vhostfds=7:8", "-netdev", "tap,id=net-last,fd=9"}

	for _, tt := range []struct {
		has  string // the cards for which the host has it
		want string
	}{
		{"lan wan", strings.Join(argv, " ")},
		{"wan", "qemu -netdev tap,id=net-lan,fd=3 -netdev tap,id=net-wan,fds=5:6,vhostfds=7:8 -netdev tap,id=net-last,fd=9"},
		{"", "qemu -netdev tap,id=net-lan,fd=3 -netdev tap,id=net-wan,fds=5:6 -netdev tap,id=net-last,fd=9"},
	} {
		stored := map[string][]int{}
		open := func(path string) int {
			fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			return fd
		}
		for _, d := range ds {
			if d.Use == hypervisor.Queue {
				stored[queueName(d.Card)] = append(stored[queueName(d.Card)], open("/dev/zero"))
			}
		}
		for _, card := range []string{"lan", "wan", "last"} {
			path := node
			if !slices.Contains(strings.Fields(tt.has), card) {
				path = filepath.Join(dir, "none")
			}
			files, err := openVhost(path, ds, card)
			if (err == nil) != (path == node || card == "last") {
				t.Errorf("%q: card %s: %v", tt.has, card, err)
			}
			for _, f := range files {
				fd, err := unix.Dup(int(f.Fd()))
				if err != nil {
					t.Fatal(err)
				}
				stored[vhostName(card)] = append(stored[vhostName(card)], fd)
			}
			closeList(files)
		}
		if got := strings.Join(withoutVhost(argv, ds, stored), " "); got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.has, got, tt.want)
		}
		all, err := openDescriptors(config.SystemPaths(""), ds, stored)
		if err != nil || len(all) != len(ds) {
			t.Fatalf("%q: %v, %v", tt.has, all, err)
		}
		for i, end := range all {
			path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(end.hypervisor))
			want := "/dev/zero"
			if ds[i].Use == hypervisor.Vhost {
				want = "/dev/null"
				if slices.Contains(strings.Fields(tt.has), ds[i].Card) {
					want = node
				}
			}
			if err != nil || path != want {
				t.Errorf("%q: descriptor %d is %s, %v, want %s", tt.has, i, path, err, want)
			}
			unix.Close(end.hypervisor)
		}
	}
	// systemd takes no colon in a name, and drops by its beginning what it keeps for
	// a card.
	if name := vhostName("lan"); strings.Contains(name, ":") || !strings.HasPrefix(name, queuePrefix) {
		t.Errorf("the name %s", name)
	}
}

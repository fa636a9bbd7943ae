//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// everythingOfTheHost is what vmctl's networks could change of the host's:
// interfaces, addresses, routes, packet filters, and who runs.
func everythingOfTheHost(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, command := range [][]string{
		{"ip", "-brief", "address"}, {"ip", "-o", "link"}, {"ip", "rule"}, {"ip", "-6", "rule"},
		{"ip", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
		{"bridge", "fdb"}, {"bridge", "vlan"}, {"nft", "list", "ruleset"},
	} {
		b.WriteString(run(t, command...) + "\n")
	}
	b.WriteString(try("pgrep", "-l", "dnsmasq|vmctl|qemu").stdout)
	return b.String()
}

// TestNetwork: two guests on the default network get addresses, know each other
// and the host by name, and nothing is left of it when all has stopped.
func TestNetwork(t *testing.T) {
	run(t, "systemctl", "stop", "vm-network@default.service")
	before := everythingOfTheHost(t)
	card := "[nic.lan]\nnetwork = \"default\"\n"
	one, two := newVM(t, "net-one", card), newVM(t, "net-two", card)
	one.start()
	two.start()
	for _, v := range []*vm{one, two} {
		v.expectReady()
		v.typeLine("dhcp eth0")
		v.expect(`vmctl-guest: dhcp eth0 address 192\.168\.100\.\d+ router 192\.168\.100\.1 dns 192\.168\.100\.1 domain default`)
		v.expect(`# `)
	}
	one.typeLine("ping -c 3 net-two.default")
	one.expect(`3 packets received`)
	two.typeLine("ping -c 3 net-one")
	two.expect(`3 packets received`)
	two.typeLine("ping -c 1 192.168.100.1")
	two.expect(`1 packets received`)

	// The service is killed: back by itself, and no guest notices.
	pid := one.mainPID()
	service := run(t, "systemctl", "show", "-P", "MainPID", "vm-network@default.service")
	run(t, "kill", "-KILL", service)
	eventually(t, "the DHCP service is back", func() bool {
		again := run(t, "systemctl", "show", "-P", "MainPID", "vm-network@default.service")
		return again != "0" && again != service
	})
	address := regexp.MustCompile(`dhcp eth0 address (\S+)`)
	before1 := address.FindStringSubmatch(one.shown())[1]
	one.typeLine("dhcp eth0")
	one.expect(`vmctl-guest: dhcp eth0 address ` + regexp.QuoteMeta(before1) + ` `)
	one.typeLine("ping -c 3 net-two")
	one.expect(`3 packets received`)
	if now := one.mainPID(); now != pid {
		t.Errorf("net-one was process %d, is %d", pid, now)
	}

	run(t, "systemctl", "stop", one.unit(), two.unit())
	if out, _ := exec.Command("ip", "-brief", "link").CombinedOutput(); strings.Contains(string(out), "vmt") {
		t.Errorf("interfaces are left:\n%s", out)
	}
	run(t, "systemctl", "stop", "vm-network@default.service")
	if after := everythingOfTheHost(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if _, err := os.Stat("/run/vmctl/network/default"); err == nil {
		t.Error("the network's runtime directory is left")
	}
}

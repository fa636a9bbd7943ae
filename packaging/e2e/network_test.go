//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// everythingOfTheHost is what vmctl's networks could change of the host's:
// interfaces, addresses, routes, packet filters, and who runs.
func everythingOfTheHost(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, command := range [][]string{
		{"ip", "-brief", "address"}, {"ip", "-o", "link"}, {"ip", "rule"}, {"ip", "-6", "rule"},
		{"ip", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
		{"bridge", "fdb"}, {"bridge", "vlan"}, {"nft", "--terse", "list", "ruleset"},
	} {
		b.WriteString(run(t, command...) + "\n")
	}
	b.WriteString(try("pgrep", "-l", "dnsmasq|vmctl|qemu").stdout)
	return b.String()
}

// TestNetwork: two guests on the default network get addresses, know each other
// and the host by name, are known to the host and reached by their forwards, and
// nothing is left of it when all has stopped.
func TestNetwork(t *testing.T) {
	run(t, "systemctl", "stop", "vm-network@default.service")
	before := everythingOfTheHost(t)
	card := "[nic.lan]\nnetwork = \"default\"\n"
	one, two := newVM(t, "net-one", card+"forward = [\"2207:7\", \"2207:7/udp\", \"127.0.0.1:2208:7\", \"[::1]:2210:7\"]\n"), newVM(t, "net-two", card)
	one.start()
	two.start()
	var addresses, addresses6 []string // of each
	for _, v := range []*vm{one, two} {
		v.expectReady()
		v.typeLine("dhcp eth0")
		addresses = append(addresses, v.expect(`vmctl-guest: dhcp eth0 address (192\.168\.100\.\d+) router 192\.168\.100\.1 dns 192\.168\.100\.1 domain default`)[0])
		v.expect(`# `)
		v.typeLine("dhcp6 eth0")
		addresses6 = append(addresses6, v.expect(`vmctl-guest: dhcp6 eth0 address (fd\S+)\s`)[0])
		v.expect(`# `)
	}
	one.typeLine("ping -c 3 net-two.default")
	one.expect(`3 packets received`)
	two.typeLine("ping -c 3 net-one")
	two.expect(`3 packets received`)
	two.typeLine("ping -c 1 192.168.100.1")
	two.expect(`1 packets received`)
	for _, name := range []string{"net-two", "net-two.default"} {
		one.typeLine("ping -6 -c 1 " + name)
		one.expect(`PING ` + name + ` \(` + addresses6[1] + `\)`)
		one.expect(`1 packets received`)
	}
	knownAddresses(t, one, addresses[0], addresses6[0])
	knownNames(t, one, addresses[0], addresses6[0])
	reachedFromOutside(t, one)
	takenPorts(t)
	usage(t, one, two)
	metrics(t, one, two)

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
	noForwardUnits(t, "net-one")
	if _, err := os.Stat("/run/vmctl/network/default"); err == nil {
		t.Error("the network's runtime directory is left")
	}
}

// noForwardUnits finds what listens on ::1 for a machine that does not run.
func noForwardUnits(t testing.TB, vm string) {
	t.Helper()
	if left := run(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "vm-forward@"+vm+":*"); left != "" {
		t.Errorf("units are left:\n%s", left)
	}
}

// TestManyCards: 200 cards of eight machines come and go at once; of links, rules,
// processes and leases nothing is left.
func TestManyCards(t *testing.T) {
	newerSuiteOnly(t, "the kernel is the same to both")
	run(t, "systemctl", "stop", "vm-network@default.service")
	leases := func() string {
		reserved, err := os.ReadFile(config.SystemPaths("").NetworkAddresses("default"))
		if err != nil { // none yet
			reserved = []byte("{}")
		}
		return run(t, "vmctl", "network", "leases", "default", "-o", "json") + strings.TrimSpace(string(reserved))
	}
	before, leasesBefore := everythingOfTheHost(t), leases()
	const each = 25
	definition := firmwareOnly + "lifecycle.stop_timeout = \"1s\"\n"
	for card := range each {
		definition += fmt.Sprintf("[nic.n%d]\nnetwork = \"default\"\n", card)
	}
	var names []string
	for i := range 8 {
		names = append(names, newVMFrom(t, fmt.Sprint("crowd-", i), definition).name)
	}
	run(t, "systemctl", "daemon-reload")
	run(t, append([]string{"vmctl", "start"}, names...)...)
	shown := decode[struct {
		Cards []struct{ VM, NIC, Interface string }
	}](t, run(t, "vmctl", "network", "show", "default", "-o", "json"))
	interfaces := map[string]bool{}
	for _, card := range shown.Cards {
		if card.Interface != "" {
			interfaces[card.Interface] = true
		}
	}
	if len(interfaces) != each*len(names) {
		t.Errorf("%d cards have %d interfaces: %+v", len(shown.Cards), len(interfaces), shown.Cards)
	}
	if during := leases(); strings.Count(during, "crowd-") < each*len(names) {
		t.Errorf("reserved are %s", during)
	}
	run(t, append([]string{"vmctl", "stop"}, names...)...)
	run(t, append([]string{"vmctl", "delete", "--yes"}, names...)...)
	run(t, "systemctl", "stop", "vm-network@default.service")
	if after := everythingOfTheHost(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if after := leases(); after != leasesBefore {
		t.Errorf("leases before: %s, after: %s", leasesBefore, after)
	}
}

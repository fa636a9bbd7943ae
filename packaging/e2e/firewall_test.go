//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/netsetup"
)

// dropped is how many frames the rules of a card that have a text in them have
// dropped.
func dropped(t testing.TB, vm, card, rule string) int {
	t.Helper()
	n, own := 0, false
	tap := strings.NewReplacer("-", "_", ".", "_").Replace(netsetup.TapName(vm, card))
	for line := range strings.Lines(run(t, "nft", "list", "table", "bridge", "vmctl_cards")) {
		if chain, begins := strings.CutPrefix(strings.TrimSpace(line), "chain "); begins {
			own = strings.HasSuffix(chain, "_"+tap+" {")
		}
		m := regexp.MustCompile(`counter packets (\d+) .*drop`).FindStringSubmatch(line)
		if own && m != nil && strings.Contains(line, rule) {
			packets, _ := strconv.Atoi(m[1])
			n += packets
		}
	}
	return n
}

// TestFirewall: rules and groups change while a guest has a connection open, which
// goes on; what a hostile guest sends under others' names is counted and dropped.
func TestFirewall(t *testing.T) {
	t.Parallel()
	const group, network = "/etc/vmctl/security-groups/fw-web.toml", "/etc/vmctl/networks/fw.toml"
	writeFile(t, network, "subnet = \"10.77.0.0/24\"\nsubnet6 = \"fd77::/64\"\n")
	writeFile(t, group, "allow_in = [\"tcp/22\"]\n")
	t.Cleanup(func() {
		run(t, "systemctl", "stop", "vm-network@fw.service")
		run(t, "rm", "-f", network, group)
	})
	definition := func(rules string) string {
		return littleGuest("cloud", "") + "[nic.lan]\nnetwork = \"fw\"\naddress = \"10.77.0.10\"\nmac = \"52:54:00:77:00:0a\"\n" + rules
	}

	// A group that is not there, or broken, keeps the machine from starting.
	v := newVMFrom(t, "fw-guest", definition("security_groups = [\"fw-gone\"]\n"))
	run(t, "systemctl", "daemon-reload")
	contains(t, try("vmctl", "start", v.name).all(), `nic.lan.security_groups[0]: want a security group that is defined, got "fw-gone"`)
	v.define(definition("security_groups = [\"fw-web\"]\n"))
	v.boot()
	pid := v.mainPID()
	v.typeLine("dhcp eth0")
	v.expect(`vmctl-guest: dhcp eth0 address 10\.77\.0\.10 `)
	contains(t, run(t, "vmctl", "network", "groups"), "fw-web", "tcp/22", "fw-guest/lan")

	// Port 7 of the guest answers; the group lets 22 through alone.
	reaches := func(address string) bool {
		c, err := net.DialTimeout("tcp", address, 2*time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	if reaches("10.77.0.10:7") {
		t.Error("the guest is reached on a port that no rule allows")
	}
	writeFile(t, group, "allow_in = [\"tcp/22\", \"tcp/7\"]\n")
	contains(t, try("vmctl", "reload").stdout, "fw-guest: its cards are held to the rules as they are now")
	eventually(t, "the guest is reached by the group's new rule", func() bool { return reaches("10.77.0.10:7") })

	// A connection of the guest to the host goes on while rules come and change.
	l, err := net.Listen("tcp", "10.77.0.1:7700")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	v.typeLine("nc 10.77.0.1 7700")
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lines := bufio.NewReader(c)
	said := 0
	talk := func(when string) {
		t.Helper()
		said++
		fmt.Fprintf(c, "host %d\n", said)
		v.expect(fmt.Sprintf("host %d", said))
		v.typeLine(fmt.Sprintf("guest %d", said))
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if line, err := lines.ReadString('\n'); err != nil || line != fmt.Sprintf("guest %d\n", said) {
			t.Errorf("%s: the host read %q, %v", when, line, err)
		}
	}
	talk("before")
	for _, rules := range []string{
		"allow_out = [\"tcp/7700 to 10.77.0.0/24\"]\nsecurity_groups = [\"fw-web\"]\n",
		"allow_out = [\"tcp/7700\", \"icmp\"]\ndeny_in = [\"tcp/7\"]\n",
		"",
		"deny_out = [\"any\"]\n",
	} {
		v.define(definition(rules))
		run(t, "vmctl", "reload", v.name)
		talk(rules)
	}
	if !reaches("10.77.0.10:7") {
		t.Error("deny_out alone keeps others from the guest")
	}
	// What else has changed waits; a broken definition changes nothing.
	v.define(definition("deny_in = [\"any\"]\n") + "[disk.later]\nsize = \"1M\"\n")
	contains(t, run(t, "vmctl", "reload", v.name), "rules as they are now", "vmctl restart fw-guest applies the new one")
	v.define(definition("allow_in = [\"tcp/99999\"]\n"))
	contains(t, fail(t, 6, "vmctl", "reload", v.name), "nic.lan.allow_in: want ports")
	talk("after a broken definition")
	if reaches("10.77.0.10:7") {
		t.Error("a broken definition has opened the card")
	}
	v.define(definition(""))
	run(t, "systemctl", "reload", v.unit())
	c.Close()
	v.expect(`# `)
	if now := v.mainPID(); now != pid {
		t.Errorf("the guest was touched: process %d, now %d", pid, now)
	}

	// A hostile guest.
	const broadcast, own = "ffffffffffff", "52540077000a"
	ip4 := func(source, ports string) string {
		return "0800 45000024 00000000 4011 0000" + source + "0a4d0001" + ports + "00080000 0000000000000000"
	}
	ip6 := func(source, next, payload string) string {
		return fmt.Sprintf("86dd 60000000 %04x%s ff %s ff020000000000000000000000000001 %s", len(strings.ReplaceAll(payload, " ", ""))/2, next, source, payload)
	}
	const ll = "fe80000000000000505400fffe77000a"
	for _, spoofed := range []struct{ what, frame, rule string }{
		{"MAC", broadcast + "525400770099" + ip4("0a4d000a", "00350035"), "ether saddr !="},
		{"IPv4", broadcast + own + ip4("0a4d0063", "00350035"), "ip saddr !="},
		{"IPv6", broadcast + own + ip6("20010db8000000000000000000000001", "3b", "00000000"), "ip6 saddr !="},
		{"ARP", broadcast + own + "0806 0001 0800 06 04 0002" + own + "0a4d0001" + broadcast + "0a4d0063", "arp saddr ip !="},
		{"DHCP server", broadcast + own + ip4("0a4d000a", "00430044"), "udp sport 67"},
		{"router advertisement", broadcast + own + ip6(ll, "3a", "86000000 40000708 00000000 00000000"), "nd-router-advert"},
		{"VLAN tag", broadcast + own + "81000000" + ip4("0a4d0063", "00350035"), "ether type !="},
	} {
		before := dropped(t, v.name, "lan", spoofed.rule)
		v.typeLine("frame eth0 " + strings.ReplaceAll(spoofed.frame, " ", ""))
		v.expect(`vmctl-guest: frame sent`)
		eventually(t, spoofed.what+" is counted as dropped", func() bool { return dropped(t, v.name, "lan", spoofed.rule) > before })
	}
	run(t, "systemctl", "stop", v.unit())
	if r := try("test", "-e", config.SystemPaths("").Filters(v.name)); r.code == 0 {
		t.Error("what the cards were held to is left")
	}
}

// TestNftablesStartsAgain: what nftables.service empties as it starts again is put
// back. Not parallel: for a moment, no machine is held to anything. It is nothing that
// versions of systemd or QEMU do differently.
func TestNftablesStartsAgain(t *testing.T) {
	newNetwork(t, "flushed", "subnet = \"10.78.9.0/24\"\n")
	v := newVMFrom(t, "flushed", hollow+"[nic.lan]\nnetwork = \"flushed\"\nallow_in = [\"tcp/22\"]\nforward = [\"127.0.0.1:7822:22\"]\n")
	v.start()
	rules := func() string {
		return regexp.MustCompile(`counter packets \d+ bytes \d+`).ReplaceAllString(run(t, "nft", "--stateless", "list", "ruleset"), "")
	}
	tap := strings.NewReplacer("-", "_", ".", "_").Replace(netsetup.TapName(v.name, "lan"))
	ours := []string{"guard_" + tap, "list_in_" + tap, "vmctl_card_" + tap, "vmctl_network_flushed"}
	contains(t, rules(), ours...)
	for _, args := range [][]string{{"restart", "nftables"}, {"stop", "nftables"}, {"start", "nftables"}, {"reload", "nftables"}} {
		run(t, append([]string{"systemctl"}, args...)...)
		if args[0] == "stop" {
			continue
		}
		eventually(t, "the rules are back after "+args[0], func() bool {
			now := rules()
			for _, name := range ours {
				if !strings.Contains(now, name) {
					return false
				}
			}
			return true
		})
	}
	run(t, "systemctl", "stop", "nftables")
}

//go:build e2e

package e2e

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
)

// newOutside makes a network namespace for what is outside of the host, with
// 198.51.100.2 and 2001:db8::2 where the host has 198.51.100.1 and 2001:db8::1,
// and with a server on port 80 that says who asks.
func newOutside(t testing.TB) {
	t.Helper()
	ip := func(args string) { run(t, append([]string{"ip"}, strings.Fields(args)...)...) }
	ip("netns add outside")
	t.Cleanup(func() { try("ip", "netns", "delete", "outside"); try("ip", "link", "delete", "up0") })
	ip("link add up0 type veth peer name eth0 netns outside")
	ip("address add 198.51.100.1/24 dev up0")
	ip("-6 address add 2001:db8::1/64 dev up0 nodad")
	ip("link set up0 up")
	ip("-n outside address add 198.51.100.2/24 dev eth0")
	ip("-n outside -6 address add 2001:db8::2/64 dev eth0 nodad")
	ip("-n outside link set lo up")
	ip("-n outside link set eth0 up")
	// Its link-local address comes in a moment (RFC 4862, 5.4), with routes.
	eventually(t, "the host's interface is whole", func() bool {
		return strings.Contains(run(t, "ip", "-6", "route", "show", "table", "local", "dev", "up0"), "local fe80::")
	})
	for _, listen := range []string{"TCP4-LISTEN:80,fork,reuseaddr", "TCP6-LISTEN:80,fork,reuseaddr,ipv6only=1"} {
		server := exec.Command("ip", "netns", "exec", "outside", "socat", listen, "SYSTEM:echo you are $SOCAT_PEERADDR")
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			server.Process.Kill()
			server.Wait() // by that
		})
	}
	eventually(t, "the server outside answers", func() bool { return strings.Contains(askOutside("TCP6:[2001:db8::2]:80"), "you are") })
}

// askOutside is what somebody outside is answered.
func askOutside(address string) string {
	return try("ip", "netns", "exec", "outside", "socat", "-T", "5", "-", address+",connect-timeout=5").stdout
}

// TestNetworkTraffic: guests reach each other and what is outside, by the host's
// addresses; nobody outside, and nobody in another network, reaches them but by
// their forwards. Addresses survive what happens to machine, network and
// service. The host's own things stay as they were.
func TestNetworkTraffic(t *testing.T) {
	newOutside(t)
	run(t, "nft", "add table inet foreign; add chain inet foreign forward { type filter hook forward priority 10; policy accept; }; add rule inet foreign forward ip daddr 203.0.113.7 drop")
	t.Cleanup(func() { try("nft", "delete", "table", "inet", "foreign") })
	// The host forwards already: what it takes for that is not looked at here.
	run(t, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	before := everythingOfTheHost(t)

	newNetwork(t, "tra", "subnet = \"10.51.0.0/24\"\nsubnet6 = \"fd00:51::/64\"\n")
	newNetwork(t, "trb", "subnet = \"10.52.0.0/24\"\nsubnet6 = \"fd00:52::/64\"\n")
	newNetwork(t, "tri", "subnet = \"10.53.0.0/24\"\nisolated = true\n")
	one := newVM(t, "tra-one", "[nic.lan]\nnetwork = \"tra\"\naddress = \"10.51.0.10\"\nforward = [\"2222:7\"]\n")
	two := newVM(t, "tra-two", "[nic.lan]\nnetwork = \"tra\"\n[nic.other]\nnetwork = \"tri\"\n")
	three := newVM(t, "trb-one", "[nic.lan]\nnetwork = \"trb\"\n[nic.other]\nnetwork = \"tri\"\naddress = \"10.53.0.10\"\n")
	machines := []*vm{one, two, three}
	dhcp := func(v *vm, card string) string {
		v.typeLine("dhcp " + card)
		address := v.expect(`dhcp ` + card + ` address (\S+) `)[0]
		v.expect(`# `)
		return address
	}
	for _, v := range machines {
		v.start()
	}
	addresses := map[*vm]string{}
	for _, v := range machines {
		v.expectReady()
		if v != one {
			dhcp(v, "eth1")
		}
		addresses[v] = dhcp(v, "eth0")
	}
	if addresses[one] != "10.51.0.10" {
		t.Errorf("the fixed address is %s", addresses[one])
	}

	reaches := func(v *vm, command, answer string) {
		t.Helper()
		v.typeLine(command)
		v.expect(answer)
		v.expect(`# `)
	}
	reaches(one, "ping -c 2 tra-two", `2 packets received`)
	reaches(two, "nc -w 60 198.51.100.2 80", `you are 198\.51\.100\.1\n`)
	// Until the router has said of itself and the address is known to be free.
	reaches(two, "for i in 1 2 3 4 5 6 7 8 9 10; do ping -6 -c 1 -W 10 2001:db8::2 && break; sleep 3; done", `1 packets received`)
	reaches(two, "nc -w 60 2001:db8::2 80", `you are \[2001:0db8:0000:0000:0000:0000:0000:0001\]`)
	reaches(three, "ping -c 1 198.51.100.2", `1 packets received`)
	reaches(two, "ping -c 1 10.53.0.10", `1 packets received`) // within the isolated network

	// Not from network to network, nor out of the isolated one.
	reaches(three, "nc -w 5 10.51.0.10 7 </dev/null; echo got nothing", `\ngot nothing`)
	reaches(three, "ping -c 1 -W 5 10.51.0.10; echo", `100% packet loss`)
	reaches(two, "ip route replace 198.51.100.0/24 via 10.53.0.1 dev eth1; ping -c 1 -W 5 198.51.100.2; ip route del 198.51.100.0/24 via 10.53.0.1", `100% packet loss`)

	// From outside by the forward alone, though the way is known.
	run(t, "ip", "-n", "outside", "route", "add", "10.51.0.0/24", "via", "198.51.100.1")
	run(t, "ip", "-n", "outside", "-6", "route", "add", "fd00:51::/64", "via", "2001:db8::1")
	if got := askOutside("TCP4:198.51.100.1:2222"); !strings.HasPrefix(got, "hello from ") {
		t.Errorf("by the forward: %q", got)
	}
	if got := askOutside("TCP4:10.51.0.10:7"); got != "" {
		t.Errorf("past the forward: %q", got)
	}
	if got := askOutside("TCP4:10.51.0.10:2222"); got != "" {
		t.Errorf("by the forward's port of the guest: %q", got)
	}
	two.typeLine("ip -6 -o address show dev eth0 scope global")
	if got := askOutside("TCP6:[" + two.expect(`inet6 (fd00:51:[0-9a-f:]+)/64`)[0] + "]:7"); got != "" {
		t.Errorf("past IPv6 forwards: %q", got)
	}

	// The service is killed; machine, network and service start again.
	pid := networkPID(t, "tra")
	leases, err := os.ReadFile(config.SystemPaths("").NetworkLeases("tra"))
	if err != nil || !strings.Contains(string(leases), " 10.51.0.10 tra-one ") {
		t.Errorf("leases: %v\n%s", err, leases)
	}
	main := two.mainPID()
	run(t, "kill", "-KILL", pid)
	waitService(t, "tra", pid)
	if again, err := os.ReadFile(config.SystemPaths("").NetworkLeases("tra")); err != nil || string(again) != string(leases) {
		t.Errorf("leases after a kill: %v\n%s\nbefore:\n%s", err, again, leases)
	}
	if got := dhcp(two, "eth0"); got != addresses[two] || two.mainPID() != main {
		t.Errorf("after a kill of the service: address %s, before %s", got, addresses[two])
	}
	reaches(two, "ping -c 1 tra-one", `1 packets received`)
	for _, v := range machines {
		run(t, "systemctl", "stop", v.unit())
	}
	run(t, "vmctl", "network", "stop", "tra", "trb", "tri")
	if after := everythingOfTheHost(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	one.boot()
	if got := dhcp(one, "eth0"); got != addresses[one] {
		t.Errorf("after all was stopped: address %s, before %s", got, addresses[one])
	}
	run(t, "systemctl", "stop", one.unit())
}

// killHelper kills vmctl-unit, once it does something for somebody, in a moment,
// and says whether it did. It gives up when done is closed.
func killHelper(command, name string, delay time.Duration, done <-chan struct{}) bool {
	for {
		select {
		case <-done:
			return false
		default:
		}
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range files {
			argv, _ := os.ReadFile(file)
			if !strings.HasPrefix(string(argv), "/usr/libexec/vmctl/vmctl-unit\x00"+command+"\x00"+name+"\x00") {
				continue
			}
			time.Sleep(delay)
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			// It may have ended, but nobody else has its number within moments.
			return syscall.Kill(pid, syscall.SIGKILL) == nil
		}
	}
}

// TestNetworkKilled: whenever vmctl-unit is killed while it makes or removes a
// network, or a machine's cards, the next start copes, and the stop after it
// leaves nothing.
func TestNetworkKilled(t *testing.T) {
	newerSuiteOnly(t, "what is cut off is ours, and done undisturbed on both")
	run(t, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	before := everythingOfTheHost(t)
	newNetwork(t, "cut", "subnet = \"10.54.0.0/24\"\nvxlan = { id = 54, local = \"127.0.0.1\", peers = [\"127.0.0.2\"] }\n")
	const cards = "[nic.a]\nnetwork = \"cut\"\nforward = [\"5422:22\", \"[::1]:5423:22\"]\n[nic.b]\nnetwork = \"cut\"\n"
	v := newVMFrom(t, "cut-vm", strings.Replace(firmware, `"no"`, `"on-failure"`, 1)+cards)
	unit := config.NetworkUnit("cut")
	run(t, "systemctl", "daemon-reload")
	kills := 0
	cut := func(command, name string, what ...string) {
		done := make(chan struct{})
		killed := make(chan bool)
		go func() { killed <- killHelper(command, name, time.Duration(rand.IntN(80))*time.Millisecond, done) }()
		try(what...)
		close(done)
		if <-killed {
			kills++
		}
		try("systemctl", "reset-failed", unit, v.unit())
	}
	// What listens on ::1 comes and goes with the machine, however that starts.
	listens := func(what string) {
		t.Helper()
		eventually(t, "the machine runs, and its port is there, after "+what, func() bool {
			return try("systemctl", "is-active", v.unit()).code == 0 && try("systemctl", "is-active", "vm-forward@cut-vm:a:5423.socket").code == 0
		})
	}
	run(t, "systemctl", "start", v.unit())
	listens("a start")
	run(t, "systemctl", "restart", v.unit())
	listens("a restart")
	main := v.mainPID()
	run(t, "systemctl", "kill", "--kill-whom=main", "-s", "KILL", v.unit())
	eventually(t, "the machine is started again", func() bool { return v.mainPID() != main && v.mainPID() != 0 })
	listens("a crash")
	run(t, "systemctl", "stop", v.unit())
	noForwardUnits(t, v.name)
	run(t, "vmctl", "network", "stop", "cut")
	v.define(firmware + cards)
	run(t, "systemctl", "daemon-reload")
	for i := range 12 {
		switch i % 4 {
		case 0:
			cut("network-up", "cut", "systemctl", "start", unit)
		case 1:
			run(t, "systemctl", "start", unit)
			cut("network-down", "cut", "systemctl", "stop", unit)
		case 2:
			cut("prepare", v.name, "systemctl", "start", v.unit())
			try("systemctl", "stop", v.unit())
			// Of a card that there is no more.
			v.define(firmware + strings.ReplaceAll(cards, "nic.b", "nic.c"+strconv.Itoa(i)))
			run(t, "systemctl", "daemon-reload")
		case 3:
			run(t, "systemctl", "start", v.unit())
			cut("cleanup", v.name, "systemctl", "stop", v.unit())
		}
		run(t, "systemctl", "start", v.unit())
		if got := run(t, "systemctl", "show", "-P", "ActiveState", unit); got != "active" {
			t.Errorf("the network is %s with a machine on it", got)
		}
		run(t, "systemctl", "is-active", "vm-forward@cut-vm:a:5423.socket")
		ports := strings.Count(run(t, "ip", "-o", "link", "show", "master", "vmbr-cut"), "\n") + 1
		if ports != 3 {
			t.Errorf("%d ports, want two cards and the VXLAN", ports)
		}
		run(t, "systemctl", "stop", v.unit())
		noForwardUnits(t, v.name)
		run(t, "vmctl", "network", "stop", "cut")
		if after := everythingOfTheHost(t); after != before {
			t.Fatalf("try %d: before:\n%s\nafter:\n%s", i, before, after)
		}
		if left, err := filepath.Glob("/run/vmctl/network/*"); err != nil || slices.Contains(left, "/run/vmctl/network/cut") {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	t.Logf("killed %d times", kills)
	if kills == 0 {
		t.Error("nothing was killed: the test shows nothing")
	}
}

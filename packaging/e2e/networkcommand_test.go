//go:build e2e

package e2e

import (
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// newNetwork defines a network, which is gone at the end of the test with all
// that was made for it.
func newNetwork(t testing.TB, name, definition string) {
	t.Helper()
	file := networkFile(name)
	writeFile(t, file, definition)
	t.Cleanup(func() {
		unit := config.NetworkUnit(name)
		if t.Failed() {
			t.Logf("journal of %s:\n%s", unit, try("journalctl", "-u", unit, "-n", "40", "-o", "short-precise", "--no-pager").all())
		}
		try("systemctl", "stop", unit)
		try("systemctl", "reset-failed", unit)
		paths := config.SystemPaths("")
		for _, path := range []string{file, file + ".d", paths.NetworkAddresses(name), paths.NetworkState + "/" + name, "/var/lib/private/vmctl/networks/" + name} {
			if err := os.RemoveAll(path); err != nil {
				t.Error(err)
			}
		}
		try("systemctl", "daemon-reload")
	})
}

func networkFile(name string) string { return "/etc/vmctl/networks/" + name + ".toml" }

// networkShow is what vmctl network show says, as JSON.
func networkShow(t testing.TB, name string) map[string]any {
	t.Helper()
	return decode[map[string]any](t, run(t, "vmctl", "network", "show", "-o", "json", name))
}

// networkLog is what the journal has of a network's unit.
func networkLog(t testing.TB, name string) string {
	t.Helper()
	return run(t, "journalctl", "-u", config.NetworkUnit(name), "-o", "cat", "--no-pager")
}

// networkPID is the process of a network's service, "0" for none.
func networkPID(t testing.TB, name string) string {
	t.Helper()
	return run(t, "systemctl", "show", "-P", "MainPID", config.NetworkUnit(name))
}

// waitService waits until a network is up with another service process than one
// of before.
func waitService(t testing.TB, name, before string) {
	t.Helper()
	eventually(t, "the service of "+name+" is back", func() bool {
		pid := networkPID(t, name)
		return pid != "0" && pid != before && run(t, "systemctl", "show", "-P", "ActiveState", config.NetworkUnit(name)) == "active"
	})
}

// firmware is a machine that runs, and whose guest does nothing, which it takes
// no time to end.
const firmware = "memory = \"64M\"\nlifecycle.stop_timeout = \"1s\"\nlifecycle.restart = \"no\"\n"

// TestNetworkCommands: every command of a network's life, as a person types them
// and as a program reads them.
func TestNetworkCommands(t *testing.T) {
	newerSuiteOnly(t, "what refuses is ours, and its units and rules work on both")
	before := everythingOfTheHost(t)
	newNetwork(t, "lab", "")
	if err := os.Remove(networkFile("lab")); err != nil {
		t.Fatal(err)
	}
	unit := config.NetworkUnit("lab")

	out := run(t, "vmctl", "network", "create", "lab", "--subnet", "10.41.0.0/24", "--subnet6", "fd00:41::/64", "--description", "A lab")
	contains(t, out, "lab: created /etc/vmctl/networks/lab.toml")
	contains(t, fail(t, 4, "vmctl", "network", "create", "lab", "--subnet", "10.42.0.0/24"), "the name lab is taken")
	contains(t, fail(t, 6, "vmctl", "network", "create", "lab2", "--subnet", "10.41.0.0/25"), "overlaps 10.41.0.0/24 of network lab")
	contains(t, run(t, "vmctl", "network", "check", "lab"), "1 definition checked, no problem")
	list := run(t, "vmctl", "network", "list")
	contains(t, list, "NAME", "default ", "lab ", "stopped", "10.41.0.0/24", "A lab")
	if shown := networkShow(t, "lab"); shown["state"] != "stopped" || shown["subnet"] != "10.41.0.0/24" || shown["interface"] != "vmbr-lab" || shown["mtu_bytes"] != 1500.0 {
		t.Errorf("stopped: %v", shown)
	}
	for _, command := range []string{"show", "start", "stop", "reload", "delete", "leases"} {
		contains(t, fail(t, 3, "vmctl", "network", command, "labb"), "no network is named labb", `did you mean "lab"?`)
	}
	fail(t, 2, "vmctl", "network", "start")
	fail(t, 2, "vmctl", "network", "start", "No/Name")
	contains(t, fail(t, 4, "vmctl", "network", "reload", "lab"), "invalid transition from stopped: the network is not up")
	r := try("vmctl", "network", "reload", "lab", "-o", "json")
	if e := decode[map[string]any](t, r.stderr); r.code != 4 || e["error"] == nil {
		t.Errorf("as JSON: %d, %s", r.code, r.all())
	}

	// Whether it starts with the host is not for a distribution's defaults to say.
	for _, u := range []string{unit, config.Unit("lab")} {
		run(t, "systemctl", "enable", u)
		run(t, "systemctl", "preset", u)
		if state := strings.TrimSpace(try("systemctl", "is-enabled", u).stdout); state != "disabled" {
			t.Errorf("%s is %s by its preset", u, state)
		}
	}

	// Up, and the second start is none.
	contains(t, run(t, "vmctl", "network", "start", "lab"), "lab: started")
	pid := networkPID(t, "lab")
	contains(t, run(t, "vmctl", "network", "start", "lab"), "lab: is up already")
	if again := networkPID(t, "lab"); again != pid || pid == "0" {
		t.Errorf("the service was process %s, is %s", pid, again)
	}
	contains(t, run(t, "systemctl", "status", "--no-pager", unit), "A lab", `Status: "Up: vmbr-lab, 10.41.0.1/24, fd00:41::1/64"`, "dnsmasq")
	contains(t, run(t, "ip", "address", "show", "vmbr-lab"), "altname vmctl-network-lab", "10.41.0.1/24", "fd00:41::1/64")
	contains(t, run(t, "vmctl", "network", "show", "lab"), "State:", "running", "10.41.0.0/24, host 10.41.0.1, NAT", "DHCP:", "10.41.0.2-10.41.0.254")
	if shown := networkShow(t, "lab"); shown["state"] != "running" || shown["pending_changes"] != false || len(shown["cards"].([]any)) != 0 {
		t.Errorf("running: %v", shown)
	}

	// In use: refused by name, unless forced.
	v := newVMFrom(t, "lab-vm", firmware+"[nic.lan]\nnetwork = \"lab\"\naddress = \"10.41.0.10\"\n")
	v.start()
	shown := networkShow(t, "lab")
	card := shown["cards"].([]any)[0].(map[string]any)
	if card["vm"] != "lab-vm" || card["nic"] != "lan" || card["running"] != true || !strings.HasPrefix(card["interface"].(string), "vmt") {
		t.Errorf("card: %v", card)
	}
	leases := decode[[]map[string]any](t, run(t, "vmctl", "network", "leases", "-o", "json", "lab"))
	if len(leases) == 0 || leases[0]["address"] != "10.41.0.10" || leases[0]["kind"] != "fixed" || leases[0]["vm"] != "lab-vm" {
		t.Errorf("leases: %v", leases)
	}
	contains(t, run(t, "vmctl", "network", "leases"), "NETWORK", "10.41.0.10", "lab-vm", "fixed", "not asked for")
	contains(t, fail(t, 4, "vmctl", "network", "stop", "lab"), "machines that run are plugged into it: lab-vm", "--force")
	contains(t, fail(t, 4, "vmctl", "network", "delete", "--yes", "lab"), "lab-vm is plugged into it")
	if now := networkPID(t, "lab"); now != pid {
		t.Errorf("refused, yet the service was process %s, is %s", pid, now)
	}

	// What cannot change while machines run, and what can.
	file := networkFile("lab")
	subnet6 := "subnet6 = \"fd00:41::/64\"\n"
	writeFile(t, file, "subnet = \"10.42.0.0/24\"\n"+subnet6)
	contains(t, fail(t, 1, "vmctl", "network", "reload", "lab"), file+":1: subnet: want no change while machines are plugged in (lab-vm-lan), got \"10.42.0.0/24\" in place of \"10.41.0.0/24\"")
	contains(t, run(t, "ip", "address", "show", "vmbr-lab"), "10.41.0.1/24")
	// The service dies just now: back, as the network was.
	run(t, "kill", "-KILL", pid)
	waitService(t, "lab", pid)
	contains(t, run(t, "ip", "address", "show", "vmbr-lab"), "10.41.0.1/24")
	contains(t, networkLog(t, "lab"), "machines are plugged in (lab-vm-lan), so it goes on as it was, since "+file+":1: subnet: want no change")
	pid = networkPID(t, "lab")
	writeFile(t, file, "subnet = \"10.41.0.0/24\"\n"+subnet6+"dhcp_range = \"10.41.0.50-10.41.0.60\"\nmtu = 1400\n")
	if shown := networkShow(t, "lab"); shown["pending_changes"] != true {
		t.Errorf("pending: %v", shown)
	}
	contains(t, run(t, "vmctl", "network", "reload", "lab"), "lab: reloaded")
	eventually(t, "the service has read its new range", func() bool { return strings.Contains(networkLog(t, "lab"), "IP range 10.41.0.50 -- 10.41.0.60") })
	contains(t, run(t, "ip", "link", "show", "vmbr-lab"), "mtu 1400")
	if v.property("ActiveState") != "active" || run(t, "ip", "-o", "link", "show", "master", "vmbr-lab") == "" {
		t.Error("the machine has lost its network")
	}
	waitService(t, "lab", pid)
	pid = networkPID(t, "lab")
	contains(t, run(t, "vmctl", "network", "reload", "lab"), "lab: reloaded") // nothing has changed
	if now := networkPID(t, "lab"); now != pid {
		t.Errorf("reloaded without a change, yet the service was process %s, is %s", pid, now)
	}

	// By systemctl nobody asks: the network stays for the machine, and goes with it.
	run(t, "systemctl", "stop", unit)
	contains(t, networkLog(t, "lab"), "machines are plugged in, so the network stays until the last of them ends: lab-vm-lan")
	run(t, "ip", "link", "show", "vmbr-lab")
	run(t, "systemctl", "stop", v.unit())
	if r := try("ip", "link", "show", "vmbr-lab"); r.code == 0 {
		t.Errorf("the network has outlived its last machine:\n%s", r.all())
	}

	// Several at once, one of them not there; with force the machines go first.
	v.start()
	r = try("vmctl", "network", "stop", "--force", "lab", "labb")
	if r.code != 3 {
		t.Errorf("stop of two: %d", r.code)
	}
	contains(t, r.all(), "lab-vm: stopped", "lab: stopped", "no network is named labb")
	contains(t, run(t, "vmctl", "network", "list"), "stopped")
	// A deleted machine's address is free.
	run(t, "vmctl", "delete", "--yes", "lab-vm")
	if leases := decode[[]map[string]any](t, run(t, "vmctl", "network", "leases", "-o", "json", "lab")); len(leases) != 0 {
		t.Errorf("after the deletion of the machine: %v", leases)
	}
	v.remove()
	run(t, "vmctl", "network", "delete", "--yes", "lab")
	fail(t, 3, "vmctl", "network", "show", "lab")
	if after := everythingOfTheHost(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	for _, left := range []string{"/run/vmctl/network/lab", "/var/lib/vmctl/networks/lab", "/var/lib/private/vmctl/networks/lab", "/var/lib/vmctl/addresses/lab.json"} {
		if _, err := os.Lstat(left); err == nil {
			t.Errorf("%s is left", left)
		}
	}
}

// TestNetworkStartsByItself: with the first machine that uses it, or with the
// host.
func TestNetworkStartsByItself(t *testing.T) {
	newNetwork(t, "lazy", "subnet = \"10.43.0.0/24\"\n")
	newNetwork(t, "eager", "subnet = \"10.44.0.0/24\"\nautostart = true\n")
	run(t, "systemctl", "daemon-reload")
	wants := run(t, "systemctl", "show", "-P", "Wants", "multi-user.target")
	contains(t, wants, "vm-network@eager.service")
	if strings.Contains(wants, "lazy") || strings.Contains(wants, "default") {
		t.Errorf("multi-user.target wants %s", wants)
	}
	if r := try("ip", "link", "show", "vmbr-lazy"); r.code == 0 {
		t.Errorf("it is up before anything uses it: %s", r.all())
	}
	v := newVMFrom(t, "lazy-vm", firmware+"[nic.lan]\nnetwork = \"lazy\"\n")
	v.start()
	if shown := networkShow(t, "lazy"); shown["state"] != "running" {
		t.Errorf("with its first machine: %v", shown)
	}
}

// TestNetworkErrors: what is in the way is said in one sentence, and nothing is
// left of the try.
func TestNetworkErrors(t *testing.T) {
	newerSuiteOnly(t, "what refuses is ours, and its units and rules work on both")
	const name, good = "bad", "subnet = \"10.45.0.0/24\"\nsubnet6 = \"fd00:45::/64\"\n"
	newNetwork(t, name, good)
	unit, file := config.NetworkUnit(name), networkFile(name)
	run(t, "systemctl", "daemon-reload")
	before := everythingOfTheHost(t)
	ip := func(args string) { run(t, append([]string{"ip"}, strings.Fields(args)...)...) }
	listen := func(network, address string) func() {
		// On an address that the host does not have yet, as one may that listens
		// on all.
		config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_IP, syscall.IP_FREEBIND, 1) })
			return err
		}}
		var c io.Closer
		var err error
		if network == "tcp4" {
			c, err = config.Listen(t.Context(), network, address)
		} else {
			c, err = config.ListenPacket(t.Context(), network, address)
		}
		if err != nil {
			t.Fatal(err)
		}
		return func() { c.Close() }
	}
	hide := func(program string) func() {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.Rename(path+".away", path); err != nil {
				t.Error(err)
			}
		}
	}
	for _, tt := range []struct {
		what, definition, want string
		code                   int
		arrange                func() func()
	}{
		{"no dnsmasq", good, "dnsmasq, which gives out addresses, is not installed (Debian: dnsmasq-base); install it, or write dhcp = false", 1,
			func() func() { return hide("dnsmasq") }},
		{"no nft", good, "nft is not installed (Debian: nftables)", 1, func() func() { return hide("nft") }},
		{"no bridge", "bridge = \"br-none\"\n", file + ":1: bridge: want the bridge br-none, the host has no such interface", 1, nil},
		{"no bridge at all", "bridge = \"lo\"\n", file + ":1: bridge: want the bridge lo, it is an interface of type device", 1, nil},
		{"overlap", good, file + ":1: subnet: want a subnet that the host does not use yet, got 10.45.0.0/24, which overlaps the route 10.44.0.0/15", 1, func() func() {
			ip("link add up0 type bridge")
			ip("address add 10.44.0.1/15 dev up0")
			ip("link set up0 up")
			return func() { ip("link delete up0") }
		}},
		{"overlap v6", good, file + ":2: subnet6: want a subnet that the host does not use yet, got fd00:45::/64, which overlaps the route fd00:40::/26", 1, func() func() {
			ip("link add up0 type bridge")
			ip("-6 address add fd00:40::1/26 dev up0 nodad")
			ip("link set up0 up")
			return func() { ip("link delete up0") }
		}},
		{"clash", good, "the host has an interface vmbr-bad that is not vmctl's: name another by the key interface", 1, func() func() {
			ip("link add vmbr-bad type bridge")
			return func() { ip("link delete vmbr-bad") } // which is there still
		}},
		{"DNS's port", good, "DHCP and DNS for the network need the port 10.45.0.1:53 (udp), but e2e.test (process ", 1, func() func() { return listen("udp4", "10.45.0.1:53") }},
		{"DNS's TCP port", good, "DHCP and DNS for the network need the port 10.45.0.1:53 (tcp), but e2e.test (process ", 1, func() func() { return listen("tcp4", "10.45.0.1:53") }},
		{"DHCP's port", good, "DHCP and DNS for the network need the port 0.0.0.0:67 (udp), but e2e.test (process ", 1, func() func() { return listen("udp4", "0.0.0.0:67") }},
		{"bad subnet", "subnet = \"10.45.0.0\"\n", file + ":1: subnet: want an IPv4 network such as", 6, nil},
		{"garbage", "subnet = [[[\n", file + ":1:", 6, nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			undo := func() {}
			if tt.arrange != nil {
				undo = tt.arrange()
			}
			writeFile(t, file, tt.definition)
			text := fail(t, tt.code, "vmctl", "network", "start", name)
			contains(t, text, tt.want)
			if lines := strings.Count(strings.TrimSpace(text), "\n") + 1; lines > 2 { // the sentence, and where to read on
				t.Errorf("%d lines:\n%s", lines, text)
			}
			// A person who goes by systemctl reads it, too.
			try("systemctl", "start", unit)
			if tt.code == 1 {
				contains(t, try("systemctl", "status", "--no-pager", unit).stdout, tt.want)
			}
			contains(t, networkLog(t, name), tt.want)
			// And so does somebody who starts a machine on it.
			v := newVMFrom(t, "bad-vm", firmware+"[nic.lan]\nnetwork = \"bad\"\n")
			text = fail(t, tt.code, "vmctl", "start", v.name)
			contains(t, text, "bad-vm.toml:5: nic.lan.network: the network bad is not up: ", tt.want)
			v.remove()
			try("systemctl", "stop", unit)
			try("systemctl", "reset-failed", unit)
			undo()
			if after := everythingOfTheHost(t); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			if _, err := os.Stat("/run/vmctl/network/bad"); err == nil {
				t.Error("its runtime directory is left")
			}
		})
	}

	writeFile(t, file, good)
	for _, args := range [][]string{
		{"start", name}, {"create", "mine", "--subnet", "10.46.0.0/24"}, {"delete", "--yes", name},
	} {
		text := fail(t, 7, append([]string{"runuser", "-u", "nobody", "--", "vmctl", "network"}, args...)...)
		if lines := strings.Count(strings.TrimSpace(text), "\n") + 1; lines > 2 {
			t.Errorf("%v as nobody: %s", args, text)
		}
	}
	run(t, "vmctl", "network", "start", name)
	for _, command := range []string{"stop", "reload"} {
		fail(t, 7, "runuser", "-u", "nobody", "--", "vmctl", "network", command, name)
	}
	contains(t, fail(t, 7, "runuser", "-u", "nobody", "--", "vmctl", "network", "leases", name), "permission denied")
	for _, command := range []string{"list", "show", "check"} {
		args := []string{"runuser", "-u", "nobody", "--", "vmctl", "network", command, name}
		if command == "list" {
			args = args[:len(args)-1]
		}
		run(t, args...)
	}
}

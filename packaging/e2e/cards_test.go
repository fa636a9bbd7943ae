//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// background runs a program until the end of the test.
func background(t testing.TB, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	// Open until the end: a VDE switch ends with it.
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
}

// waitFor waits until a file is there.
func waitFor(t testing.TB, path string) {
	t.Helper()
	eventually(t, path+" is there", func() bool {
		_, err := os.Lstat(path)
		return err == nil
	})
}

// hasVhostUser says whether passt can be the peer of a card: Debian 12's cannot.
func hasVhostUser() bool { return strings.Contains(try("passt", "--help").all(), "--vhost-user") }

// TestPlugs: a guest with a card on each kind of plug that is not vmctl's own
// talks to the host and is talked to, before and after a crash, and what was made
// for it goes with it.
func TestPlugs(t *testing.T) {
	run(t, "ip", "tuntap", "add", "dev", "e2eplug0", "mode", "tap", "multi_queue")
	run(t, "ip", "link", "add", "e2eplug1", "type", "veth", "peer", "name", "e2eplug2")
	background(t, "vde_switch", "-s", "/run/e2e.vde", "-tap", "e2eplug3")
	waitFor(t, "/run/e2e.vde/ctl")
	waitFor(t, "/sys/class/net/e2eplug3")
	// A bridge of the host, with an uplink.
	run(t, "ip", "link", "add", "e2eplug4", "type", "bridge")
	run(t, "ip", "link", "add", "e2eplug5", "address", "f8:00:00:00:00:05", "type", "veth", "peer", "name", "e2eplug6")
	run(t, "ip", "link", "set", "e2eplug5", "master", "e2eplug4")
	t.Cleanup(func() {
		for _, link := range []string{"e2eplug0", "e2eplug1", "e2eplug4", "e2eplug5"} {
			try("ip", "link", "del", link)
		}
	})
	cards := `
[nic.tap]
tap = "e2eplug0"
queues = 2
mtu = 1400
[nic.macvtap]
macvtap = "e2eplug1"
queues = 2
[nic.vde]
vde = "/run/e2e.vde"
[nic.bridge]
bridge = "e2eplug4"
[nic.user]
user = true
backend = "passt"
forward = ["127.0.0.1:7107:7", "[::1]:7108:7", "77:7"]
`
	type plug struct{ card, host, guest, echo string }
	plugs := []plug{
		{"eth0", "10.91.0.1", "10.91.0.2", "10.91.0.2:7"},
		{"eth1", "10.92.0.1", "10.92.0.2", "10.92.0.2:7"},
		{"eth2", "10.93.0.1", "10.93.0.2", "10.93.0.2:7"},
		{"eth3", "10.95.0.1", "10.95.0.2", "10.95.0.2:7"},
		{"eth4", "10.0.2.2", "10.0.2.15", "127.0.0.1:7107"},
	}
	for link, address := range map[string]string{"e2eplug0": plugs[0].host, "e2eplug2": plugs[1].host, "e2eplug3": plugs[2].host, "e2eplug4": plugs[3].host} {
		run(t, "ip", "address", "add", address+"/24", "dev", link)
	}
	for i := range 7 {
		run(t, "ip", "link", "set", fmt.Sprint("e2eplug", i), "up")
	}
	if hasVhostUser() {
		if err := os.MkdirAll("/run/e2e.peer", 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll("/run/e2e.peer") })
		background(t, "passt", "--vhost-user", "-f", "-4", "-i", "lo", "-a", "10.94.0.2", "-n", "24", "-g", "10.94.0.1", "-M", "52:55:0a:5e:00:01",
			"-s", "/run/e2e.peer/x.sock", "-t", "127.0.0.1/9494:7", "--runas", "0")
		waitFor(t, "/run/e2e.peer/x.sock")
		cards += "[nic.peer]\nvhost_user = \"/run/e2e.peer/x.sock\"\n"
		plugs = append(plugs, plug{"eth5", "10.94.0.1", "10.94.0.2", "127.0.0.1:9494"})
	}
	background(t, "socat", "TCP-LISTEN:9495,fork,reuseaddr", "SYSTEM:echo the host is here")
	links := func() string {
		return run(t, "sh", "-c", "ip -brief link | sed 's/@.*//;s/ .*//'; ls -A /run/e2e.vde /dev; mkdir -p /run/vmctl/beside; ls /run/vmctl/beside | grep plugs; "+
			"cd /sys/class/net/e2eplug4; cat address mtu flags bridge/vlan_filtering; ls brif; ip -4 -o address show dev e2eplug4; bridge vlan show dev e2eplug4; nft list tables")
	}
	// A host that seems to have vhost-net, and has not.
	run(t, "ln", "-s", "none", "/dev/vhost-net")
	t.Cleanup(func() { os.Remove("/dev/vhost-net") })
	mac := run(t, "cat", "/sys/class/net/e2eplug4/address")
	before := links()

	v := newVM(t, "plugs", cards)
	talk := func() {
		t.Helper()
		v.expectReady()
		// The first card has an address of user-mode networking.
		v.typeLine("ip address flush dev eth0")
		v.expect(`# `)
		// With an end of input, nc would close its half of a connection, after which
		// Debian 12's passt does not tell it of the other's end.
		v.typeLine("mkfifo /tmp/silence; sleep 1000000 >/tmp/silence &")
		v.expect(`# `)
		for _, p := range plugs {
			v.typeLine("ip address add " + p.guest + "/24 dev " + p.card)
			v.expect(`# `)
			v.typeLine("nc " + p.host + " 9495 </tmp/silence")
			v.expect(`the host is here`)
			v.expect(`# `)
			eventually(t, "the guest answers at "+p.echo, func() bool { return strings.HasPrefix(answer(p.echo), "hello from") })
		}
	}
	v.start()
	talk()
	if got := v.exposure(); got > 1.0 {
		t.Errorf("exposure %.1f, want at most 1.0", got)
	}
	contains(t, v.shown(), "mtu 1400")
	contains(t, run(t, "systemctl", "cat", v.unit()), "vhostfds=")
	contains(t, v.journal(), "nic.tap: open /dev/vhost-net", "without it, its packets cost more CPU")
	if got := run(t, "cat", fmt.Sprintf("/proc/%d/cmdline", v.mainPID())); strings.Contains(got, "vhostfd") {
		t.Errorf("QEMU is told of vhost-net: %q", got)
	}
	if got := run(t, "cat", "/sys/class/net/e2eplug4/address"); got != mac {
		t.Errorf("the bridge has the address %s now, had %s", got, mac)
	}
	v.throughPasst(plugs[4].card)
	contains(t, run(t, "ip", "-d", "link", "show", "vmctl-plugs-macvtap"), "macvtap mode bridge")

	pid := v.mainPID()
	run(t, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", v.unit())
	eventually(t, "it is back", func() bool { now := v.mainPID(); return now != 0 && now != pid })
	talk()

	run(t, "systemctl", "stop", v.unit())
	if after := links(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}

	// With all of it the clean-up may be killed; the next start takes over what
	// that has left.
	for range 2 {
		run(t, "systemctl", "start", v.unit())
		try("systemctl", "kill", "--kill-whom=all", "--signal=KILL", v.unit())
		try("systemctl", "stop", v.unit())
	}
	run(t, "systemctl", "start", v.unit())
	run(t, "systemctl", "stop", v.unit())
	if after := links(); after != before {
		t.Errorf("before:\n%s\nafter all was killed:\n%s", before, after)
	}
}

// throughPasst: a card of user-mode networking is passt's, by both protocols, low
// ports too, in a confined unit; another takes its place where it is killed. card is
// the guest's name for it.
func (v *vm) throughPasst(card string) {
	t := v.t
	t.Helper()
	unit := config.PasstUnit(v.name, "user")
	answers := func(ports ...string) {
		t.Helper()
		for _, port := range ports {
			eventually(t, "the guest answers at "+port, func() bool { return strings.HasPrefix(answer(port), "hello from") })
		}
	}
	answers("127.0.0.1:77")
	v.typeLine("ip address add fec0::15/64 dev " + card)
	v.expect(`# `)
	answers("[::1]:7108", "[::1]:77")
	t.Log(run(t, "sh", "-c", "systemd-analyze security --no-pager "+unit+" | tail -1"))
	contains(t, run(t, "vmctl", "show", v.name), "user (passt, serving)")
	// By syslog alone, and not by its standard error too.
	if said := run(t, "journalctl", "--no-pager", "-u", unit); strings.Count(said, "nameserver available") > 1 {
		t.Error(said)
	}
	// Its own passt is no stranger on its ports, whoever asks.
	if said := run(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "vmctl", "check", v.name); strings.Contains(said, "that is free") {
		t.Error(said)
	}
	contains(t, run(t, "vmctl", "render", v.name), unit)

	pid := unitPID(t, unit)
	kill(t, pid)
	eventually(t, "another passt runs", func() bool { now := unitPID(t, unit); return now != 0 && now != pid })
	said := func(text string) {
		t.Helper()
		eventually(t, "it is said: "+text, func() bool { return strings.Contains(run(t, "journalctl", "--no-pager", "-u", unit), text) })
	}
	said("another is started")
	// Somebody who stops it has none started.
	run(t, "systemctl", "stop", unit)
	said("no other is started by itself, as it was stopped: systemctl start " + unit + " does")
	run(t, "systemctl", "start", unit)
	v.typeLine("nc 10.0.2.2 9495 </tmp/silence")
	v.expect(`the host is here`)
	answers("127.0.0.1:7107", "127.0.0.1:77")
	contains(t, run(t, "journalctl", "--no-pager", "-u", unit), "nic.user: passt has ended (killed KILL)")
}

// TestPlugsRefused: what is not there to be plugged into is said before the
// start.
func TestPlugsRefused(t *testing.T) {
	newerSuiteOnly(t, "what refuses is ours, and its units and rules work on both")
	t.Parallel()
	run(t, "ip", "tuntap", "add", "dev", "e2esingle", "mode", "tap")
	t.Cleanup(func() { try("ip", "link", "del", "e2esingle") })
	v := newVMFrom(t, "plugs-refused", hollow)
	for card, want := range map[string]string{
		"tap = \"e2enone\"\n":               "nic.lan.tap: want the TAP interface e2enone, the host has no such interface",
		"tap = \"e2esingle\"\nqueues = 2\n": "nic.lan.tap: want a TAP interface made for several queues",
		"tap = \"lo\"\n":                    "nic.lan.tap: want the TAP interface lo, it is an interface of type",
		"macvtap = \"e2enone\"\n":           "nic.lan.macvtap: want the interface e2enone, the host has no such interface",
		"vde = \"/run/e2e.none\"\n":         "nic.lan.vde: plug into the VDE switch /run/e2e.none: there is none",
		"vhost_user = \"/run/e2e.none\"\n":  "nic.lan.vhost_user: /run/e2e.none does not exist",
		"vhost_user = \"/run/systemd/private\"\nqueues = 2\nmodel = \"e1000\"\n": "nic.lan.queues: want 1 for the model",
		"vhost_user = \"/etc/passwd\"\n":                                         "nic.lan.vhost_user: want a socket, /etc/passwd is a file",
	} {
		v.define(hollow + "[nic.lan]\n" + card)
		run(t, "systemctl", "daemon-reload")
		if r := try("systemctl", "start", v.unit()); r.code == 0 {
			t.Errorf("%s: started", card)
		}
		contains(t, v.journal("-n", "30"), want)
		try("systemctl", "reset-failed", v.unit())
	}
}

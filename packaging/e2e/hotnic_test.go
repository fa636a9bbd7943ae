//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
)

// nic is a row of vmctl nic list.
type nic struct {
	NIC, Link, Interface, MAC string
	RateOut                   int64 `json:"rate_out_bytes_per_second"`
	RateIn                    int64 `json:"rate_in_bytes_per_second"`
}

// nics are a machine's cards by name.
func (v *vm) nics() map[string]nic {
	v.t.Helper()
	all := map[string]nic{}
	for _, n := range decode[[]nic](v.t, run(v.t, "vmctl", "nic", "list", v.name, "-o", "json")) {
		all[n.NIC] = n
	}
	return all
}

// cardNamed is the guest's name of a card, "" where it has none of that address.
func (v *vm) cardNamed(mac string) string {
	v.t.Helper()
	v.typeLine("for f in /sys/class/net/eth*; do grep -qs " + mac + " $f/address && echo it is ${f##*/}; done; echo look''ed")
	return v.expect(`(?s)(?:it is (eth\d+)\n.*?)?looked\n`)[0]
}

// hasCard waits until the guest has a card, and returns its name there.
func (v *vm) hasCard(mac string) (name string) {
	v.t.Helper()
	eventually(v.t, "the guest has "+mac, func() bool { name = v.cardNamed(mac); return name != "" })
	v.typeLine("ip link set " + name + " up")
	return name
}

func (v *vm) hasNoCard(mac string) {
	v.t.Helper()
	eventually(v.t, "the guest has not got "+mac, func() bool { return v.cardNamed(mac) == "" })
}

// carrier waits until the guest sees one, or none: "1" or "0".
func (v *vm) carrier(card, want string) {
	v.t.Helper()
	eventually(v.t, "the carrier of "+card+" is "+want, func() bool {
		v.typeLine("echo carrier''is $(cat /sys/class/net/" + card + "/carrier)")
		return v.expect(`carrieris (.*)\n`)[0] == want
	})
}

// address has the guest get one by DHCP, which begins with prefix.
func (v *vm) address(card, prefix string) {
	v.t.Helper()
	v.typeLine("dhcp " + card)
	v.expect(`vmctl-guest: dhcp ` + card + ` address ` + strings.ReplaceAll(prefix, ".", `\.`))
	v.expect(`# `)
}

// reaches waits until the guest reaches an address, or does not any more.
func (v *vm) reaches(address string, want bool) {
	v.t.Helper()
	eventually(v.t, fmt.Sprintf("the guest reaches %s: %v", address, want), func() bool {
		v.typeLine("ping -c 1 -W 2 " + address)
		return (v.expect(`(\d) packets received`)[0] == "1") == want
	})
}

// interfacesOf are the host's interfaces of a machine, one to a line.
func interfacesOf(t testing.TB, vm string) string {
	t.Helper()
	out := ""
	for line := range strings.Lines(run(t, "ip", "link", "show")) {
		if strings.Contains(line, "altname vmctl-"+vm+"-") {
			out += strings.TrimSpace(line) + "\n"
		}
	}
	return out
}

// Cards are plugged into running guests, get addresses, lose their link and get it
// back, and are taken out, those of the start too.
func TestHotNICs(t *testing.T) {
	t.Parallel()
	newNetwork(t, "hot-one", "subnet = \"10.77.1.0/24\"\n")
	newNetwork(t, "hot-two", "subnet = \"10.77.2.0/24\"\n")
	for _, board := range []string{"q35", "pc"} {
		t.Run(board, func(t *testing.T) {
			t.Parallel()
			v := newVMFrom(t, "hotnic-"+board, littleGuest("generic", "")+fmt.Sprintf("memory_options.shared = true\nmachine = %q\n[nic.first]\nnetwork = \"hot-one\"\n", board))
			v.boot()
			first := v.nics()["first"]
			v.address(v.hasCard(first.MAC), "10.77.1.")

			contains(t, fail(t, 6, "vmctl", "nic", "attach", v.name, "extra", "--network", "nope"), `nic.extra.network: want a network that is defined, got "nope"`)
			contains(t, fail(t, 6, "vmctl", "nic", "attach", v.name, "extra", "--network", "hot-two", "--address", "10.77.1.9", "--persist"), "nic.extra.address: want an address of the network hot-two (10.77.2.0/24")
			contains(t, fail(t, 4, "vmctl", "nic", "attach", v.name, "extra", "--network", "hot-two", "--mac", first.MAC), "nic.extra.mac: want an address of its own")
			if board == "q35" {
				v.otherHotNICs() // they differ on the host alone
			}

			for _, model := range []string{"virtio", "e1000e"} {
				run(t, "vmctl", "nic", "attach", v.name, "extra", "--network", "hot-two", "--model", model, "--forward", "[::1]:"+map[string]string{"q35": "7711", "pc": "7712"}[board]+":7")
				contains(t, run(t, "systemctl", "list-units", "--plain", "--no-legend", "vm-forward@"+v.name+":extra:*"), "listening")
				extra := v.nics()["extra"]
				card := v.hasCard(extra.MAC)
				v.address(card, "10.77.2.")
				v.reaches("10.77.2.1", true)
				contains(t, fail(t, 4, "vmctl", "nic", "attach", v.name, "extra", "--network", "hot-two"), "has a card named extra already")

				// The e1000e of QEMU 7.2 does not tell its driver.
				carrier := func(want string) {
					if model == "virtio" {
						v.carrier(card, want)
					}
				}
				run(t, "vmctl", "nic", "down", v.name, "extra")
				carrier("0")
				v.reaches("10.77.2.1", false)
				if n := v.nics()["extra"]; n.Link != "down" {
					t.Errorf("listed as %+v", n)
				}
				run(t, "vmctl", "nic", "up", v.name, "extra")
				carrier("1")
				v.reaches("10.77.2.1", true)

				run(t, "vmctl", "nic", "set", v.name, "extra", "--rate-in", "1M", "--rate-out", "2M")
				contains(t, run(t, "tc", "qdisc", "show", "dev", extra.Interface), "tbf", "rate 8388Kbit")
				contains(t, run(t, "nft", "list", "ruleset"), "limit rate over 2 mbytes/second")
				v.reaches("10.77.2.1", true)
				contains(t, fail(t, 4, "vmctl", "save", v.name), "nic-extra was plugged in while it ran")

				run(t, "vmctl", "nic", "detach", v.name, "extra")
				v.hasNoCard(extra.MAC)
				noForwardUnits(t, v.name)
				if left := interfacesOf(t, v.name); strings.Count(left, "\n") != 1 {
					t.Errorf("interfaces are %s", left)
				}
			}
			// One that the machine was started with.
			run(t, "vmctl", "nic", "detach", v.name, "first")
			v.hasNoCard(first.MAC)
			if left := interfacesOf(t, v.name); left != "" {
				t.Errorf("interfaces are left: %s", left)
			}
			run(t, "vmctl", "nic", "attach", v.name, "first")
			v.address(v.hasCard(first.MAC), "10.77.1.")
			if v.pending() {
				t.Error("what was attached is pending")
			}
		})
	}
}

// peerSocket is where the peer of startPeer listens, closed to all but root.
const peerSocket = "/run/e2e.hot/peer.sock"

// startPeer starts a vhost-user peer that gives the guest an address of a subnet.
func startPeer(t testing.TB, subnet string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(peerSocket), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(peerSocket)) })
	background(t, "passt", "--vhost-user", "-f", "-4", "-i", "lo", "-a", subnet+".2", "-n", "24", "-g", subnet+".1", "-M", "52:55:0a:5e:00:02",
		"-s", peerSocket, "--runas", "0")
	waitFor(t, peerSocket)
}

// otherHotNICs plugs in what is none of vmctl's networks, and takes it out again.
// A vhost-user peer's socket it is shown then.
func (v *vm) otherHotNICs() {
	t := v.t
	t.Helper()
	for _, line := range []string{
		"link add hot-br type bridge", "address add 10.77.8.1/24 dev hot-br", "link set hot-br up",
		"tuntap add dev hot-tap mode tap", "address add 10.77.9.1/24 dev hot-tap", "link set hot-tap up",
		"link add hot-v0 type veth peer name hot-v1", "address add 10.77.10.1/24 dev hot-v1", "link set hot-v0 up", "link set hot-v1 up",
	} {
		run(t, append([]string{"ip"}, strings.Fields(line)...)...)
	}
	background(t, "vde_switch", "-s", "/run/hot.vde", "-tap", "hot-vde")
	waitFor(t, "/run/hot.vde/ctl")
	run(t, "ip", "address", "add", "10.77.11.1/24", "dev", "hot-vde")
	run(t, "ip", "link", "set", "hot-vde", "up")
	ports := run(t, "ls", "-A", "/run/hot.vde")
	defer func() {
		for _, link := range []string{"hot-br", "hot-tap", "hot-v0"} {
			run(t, "ip", "link", "delete", link)
		}
	}()
	for i, plug := range [][]string{{"--bridge", "hot-br"}, {"--tap", "hot-tap"}, {"--macvtap", "hot-v0"}, {"--vde", "/run/hot.vde"}} {
		run(t, append([]string{"vmctl", "nic", "attach", v.name, "other"}, plug...)...)
		other := v.nics()["other"]
		card := v.hasCard(other.MAC)
		v.typeLine(fmt.Sprintf("ip address add 10.77.%d.2/24 dev %s", 8+i, card))
		v.reaches(fmt.Sprintf("10.77.%d.1", 8+i), true)
		if !strings.Contains(run(t, "vmctl", "diff", v.name), "nic.other") {
			t.Errorf("%v: what a restart would take out is no difference", plug)
		}
		run(t, "vmctl", "nic", "detach", v.name, "other")
		v.hasNoCard(other.MAC)
	}
	if hasVhostUser() {
		startPeer(t, "10.77.12")
		shown := config.SystemPaths("").ShownFile(v.name, "nic.other")
		run(t, "vmctl", "nic", "attach", v.name, "other", "--vhost-user", peerSocket)
		other := v.nics()["other"]
		v.address(v.hasCard(other.MAC), "10.77.12.")
		run(t, "ls", shown)
		contains(t, run(t, "getfacl", "--absolute-names", peerSocket), "user:")
		run(t, "vmctl", "nic", "detach", v.name, "other")
		v.hasNoCard(other.MAC)
		fail(t, 2, "ls", shown)
	}
	if left := interfacesOf(t, v.name); strings.Count(left, "\n") != 1 {
		t.Errorf("interfaces are %s", left)
	}
	if left := run(t, "ls", "-A", "/run/hot.vde"); left != ports {
		t.Errorf("ports of the switch are %s, were %s", left, ports)
	}
	run(t, "ip", "link", "show", "hot-tap") // which is the host's, and stays
}

// What is changed with --persist is so after a restart, and is no pending change
// before; what a definition says otherwise by now is set by a reload.
func TestHotNICsPersist(t *testing.T) {
	t.Parallel()
	newNetwork(t, "hot-kept", "subnet = \"10.77.3.0/24\"\n")
	v := newVM(t, "hotnic-kept", "[nic.first]\nnetwork = \"hot-kept\"\n[nic.second]\nnetwork = \"hot-kept\"\n")
	v.boot()
	before := v.nics()
	dropIn := func(file string) string { return v.file() + ".d/" + file }

	run(t, "vmctl", "nic", "attach", v.name, "extra", "--network", "hot-kept", "--rate-out", "3M", "--persist")
	run(t, "vmctl", "nic", "detach", v.name, "second", "--persist")
	run(t, "vmctl", "nic", "down", v.name, "first", "--persist")
	v.hasNoCard(before["second"].MAC)
	extra := v.nics()["extra"]
	v.hasCard(extra.MAC)
	if v.pending() {
		t.Error("what was persisted is pending")
	}
	contains(t, run(t, "cat", dropIn("60-nic-extra.toml")), "[nic.extra]", `network = "hot-kept"`)
	contains(t, run(t, "cat", dropIn("60-nic-second.toml")), "enabled = false")
	contains(t, run(t, "cat", dropIn("90-nic-first.toml")), `link = "down"`)

	run(t, "systemctl", "restart", v.unit())
	v.expectReady()
	after := v.nics()
	if len(after) != 2 || after["extra"].MAC != extra.MAC || after["extra"].RateOut != 3<<20 || after["first"].Link != "down" || v.pending() {
		t.Errorf("after a restart: %+v", after)
	}
	contains(t, run(t, "nft", "list", "ruleset"), "limit rate over 3 mbytes/second")
	card := v.hasCard(extra.MAC)
	v.address(card, "10.77.3.")
	first := v.hasCard(before["first"].MAC)
	v.carrier(first, "0")
	run(t, "vmctl", "nic", "up", v.name, "first", "--persist")
	v.carrier(first, "1")
	v.address(first, "10.77.3.")
	if _, err := os.Stat(dropIn("90-nic-first.toml")); err == nil {
		t.Error("a drop-in that says nothing is left")
	}

	// By the definition.
	writeFile(t, dropIn("95-mine.toml"), "[nic.first]\nlink = \"down\"\nrate_in = \"5M\"\n")
	contains(t, run(t, "vmctl", "reload", v.name), v.name+" first: set to what is defined")
	v.carrier(first, "0")
	if n := v.nics()["first"]; n.RateIn != 5<<20 || v.pending() {
		t.Errorf("after a reload: %+v, pending %v", n, v.pending())
	}
	os.Remove(dropIn("95-mine.toml"))
	run(t, "vmctl", "reload", v.name)
	v.carrier(first, "1")
	// Also of what it says since it was saved, and what it does not say any more.
	run(t, "vmctl", "save", v.name)
	writeFile(t, dropIn("95-mine.toml"), "[nic.first]\nlink = \"down\"\nrate_in = \"6M\"\n")
	run(t, "vmctl", "start", v.name)
	v.carrier(first, "0")
	if n := v.nics()["first"]; n.RateIn != 6<<20 || v.pending() {
		t.Errorf("after it was saved: %+v, pending %v", n, v.pending())
	}
	run(t, "vmctl", "save", v.name)
	os.Remove(dropIn("95-mine.toml"))
	run(t, "vmctl", "start", v.name)
	v.carrier(first, "1")
	v.reaches("10.77.3.1", true)
	// What somebody wants for now is left alone, and goes on after it was saved.
	run(t, "vmctl", "nic", "down", v.name, "first")
	run(t, "vmctl", "reload", v.name)
	v.carrier(first, "0")
	run(t, "vmctl", "save", v.name)
	run(t, "vmctl", "start", v.name)
	v.carrier(first, "0")
	run(t, "vmctl", "reload", v.name)
	v.carrier(first, "0")
	if !v.pending() {
		t.Error("a link that is down until it stops is not pending")
	}

	run(t, "vmctl", "nic", "detach", v.name, "extra", "--persist")
	run(t, "vmctl", "nic", "attach", v.name, "second", "--persist")
	v.hasCard(before["second"].MAC)
	if left := try("ls", v.file()+".d").stdout; strings.Contains(left, "nic-") {
		t.Errorf("drop-ins are left: %s", left)
	}

	run(t, "vmctl", "stop", v.name)
	contains(t, fail(t, 4, "vmctl", "nic", "attach", v.name, "x", "--user"), "does not run", "--persist")
	contains(t, fail(t, 2, "vmctl", "nic", "attach", v.name, "x"), "want --network, --bridge")
	contains(t, fail(t, 3, "vmctl", "nic", "down", v.name, "none", "--persist"), "none")
	contains(t, fail(t, 6, "vmctl", "nic", "set", v.name, "first", "--rate-in", "10B", "--persist"), "want at least")
	run(t, "vmctl", "nic", "set", v.name, "first", "--rate-in", "4M", "--persist")
	if n := v.nics()["first"]; n.RateIn != 4<<20 {
		t.Errorf("of the machine that does not run: %+v", n)
	}
}

// Whatever is killed in between leaves nothing that the next attempt does not mend.
func TestHotNICsInterrupted(t *testing.T) {
	newerSuiteOnly(t, "what is cut off is ours, and done undisturbed on both")
	t.Parallel()
	newNetwork(t, "hot-killed", "subnet = \"10.77.4.0/24\"\n")
	v := newVM(t, "hotnic-killed", "")
	v.boot()
	attach := []string{"nic", "attach", v.name, "lan", "--network", "hot-killed", "--rate-out", "7M"}
	run(t, append([]string{"vmctl"}, attach...)...)
	mac := v.nics()["lan"].MAC
	v.hasCard(mac)
	run(t, "vmctl", "pause", v.name)
	contains(t, fail(t, 5, "vmctl", "nic", "detach", v.name, "lan", "--timeout", "3s"), "the guest has not let go of lan")
	contains(t, run(t, "vmctl", "show", v.name), "nic.lan is being detached")
	run(t, "vmctl", "resume", v.name)
	run(t, "vmctl", "nic", "detach", v.name, "lan")
	v.hasNoCard(mac)

	unit := "vm-nic@" + v.name + ".service"
	for i := range 12 {
		for _, args := range [][]string{attach, {"nic", "down", v.name, "lan"}, {"nic", "detach", v.name, "lan"}} {
			cmd := exec.Command("vmctl", args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
			if i%2 == 0 {
				try("systemctl", "kill", "--signal=KILL", unit)
			}
			cmd.Process.Kill()
			cmd.Wait()
		}
		eventually(t, "what goes on without vmctl has ended", func() bool {
			return strings.TrimSpace(try("systemctl", "list-units", "--all", "--plain", "--no-legend", unit).stdout) == ""
		})
		if r := try(append([]string{"vmctl"}, attach...)...); r.code != 0 && !strings.Contains(r.stderr, "has a card named lan already") && !strings.Contains(r.stderr, "has not let go of lan yet") {
			t.Fatalf("attach: %s", r.all())
		}
		run(t, "vmctl", "nic", "detach", v.name, "lan")
		v.hasNoCard(mac)
		if left := interfacesOf(t, v.name); left != "" || strings.Contains(run(t, "nft", "list", "ruleset"), "7 mbytes/second") {
			t.Fatalf("left are %s, %s", left, run(t, "nft", "list", "ruleset"))
		}
	}
	// The end of the hypervisor takes all back.
	run(t, append([]string{"vmctl"}, attach...)...)
	run(t, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", v.unit())
	v.expectReady()
	if left := interfacesOf(t, v.name); left != "" || len(v.nics()) != 0 || strings.Contains(run(t, "nft", "list", "ruleset"), "7 mbytes/second") {
		t.Errorf("after a crash there are %s, %v", left, v.nics())
	}
}

package netsetup

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

const vlan = `
-- network.toml --
bridge = "br0"
vlan = 10
-- vm.toml --
memory = "64M"
[nic.net]
network = "lan"
`

// A bridge that keeps no VLANs apart would have a card reach everybody.
func TestVLANNeedsABridgeThatFilters(t *testing.T) {
	network, machine := load(t, txtar.Parse([]byte(vlan)))
	inNamespace(t)
	output(t, "ip link add br0 type bridge")
	can := exec.Command("ip", "link", "set", "br0", "type", "bridge", "vlan_filtering", "1").Run() == nil
	if can {
		output(t, "ip link set br0 type bridge vlan_filtering 0")
	}
	before := everything(t)
	want := "want a bridge that keeps VLANs apart for the VLAN 10, br0 does not: ip link set br0 type bridge vlan_filtering 1"
	if !can {
		want = "want a bridge that keeps VLANs apart for the VLAN 10, br0 cannot: the kernel of this host is built without that (CONFIG_BRIDGE_VLAN_FILTERING)"
	}
	if _, err := Plug(Card("web", machine.NICs[0], network, Lease{}, HostBridge{})); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if after := everything(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// TestVLAN: what a card sends leaves the host with its VLAN's tag, and nothing of
// another VLAN comes in. The network changes nothing of the host's bridge.
func TestVLAN(t *testing.T) {
	network, machine := load(t, txtar.Parse([]byte(vlan)))
	inNamespace(t)
	if out, err := exec.Command("ip", "link", "add", "br0", "type", "bridge", "vlan_filtering", "1").CombinedOutput(); err != nil {
		t.Skipf("the kernel keeps no VLANs apart: %s", out)
	}
	if on, err := FindHostBridge("br0"); err != nil || on.PVID != 1 {
		t.Errorf("cards without a VLAN are in %d, want 1 (%v)", on.PVID, err)
	}
	trunk, guest := newNamespace(t), newNamespace(t)
	trunk.in(func() {
		if out, err := exec.Command("ip", "link", "add", "dummy", "type", "vlan", "id", "10").CombinedOutput(); strings.Contains(string(out), "Unknown device type") {
			t.Skipf("the kernel knows no VLANs: %v", err)
		}
	})
	trunk.connect("trunk0", "eth0")
	output(t, "ip link set trunk0 master br0 up")
	output(t, "bridge vlan add dev trunk0 vid 10")
	output(t, "ip link set br0 up")
	if err := Up(Network(network)); err != nil {
		t.Fatal(err)
	}
	trunk.run("ip link set eth0 up")
	for id, address := range map[string]string{"10": "10.10.0.1/24", "20": "10.20.0.1/24"} {
		trunk.run("ip link add link eth0 name v" + id + " type vlan id " + id)
		trunk.run("ip address add " + address + " dev v" + id)
		trunk.run("ip link set v" + id + " up")
	}
	trunk.run("ip address add 10.1.0.1/24 dev eth0") // without a tag
	trunk.serve(":80")

	card := Card("web", machine.NICs[0], network, Lease{}, HostBridge{})
	guest.connect(card.Interface, "eth0")
	guest.run("ip link set eth0 address " + string(machine.NICs[0].MAC) + " up")
	for _, address := range []string{"10.10.0.2/24", "10.20.0.2/24", "10.1.0.2/24"} {
		guest.run("ip address add " + address + " dev eth0")
	}
	bridge, err := bridgeOf("br0")
	if err != nil {
		t.Fatal(err)
	}
	if err := plug(card, bridge); err != nil {
		t.Fatal(err)
	}
	for server, want := range map[string]string{"10.10.0.1:80": "10.10.0.2", "10.20.0.1:80": "", "10.1.0.1:80": ""} {
		if got := guest.ask(server); got != want {
			t.Errorf("%s answered %q, want %q", server, got, want)
		}
	}
	out, err := exec.Command("bridge", "vlan", "show", "dev", card.Interface).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "10 PVID Egress Untagged") || strings.Contains(string(out), " 1 ") {
		t.Errorf("%v\n%s", err, out)
	}
}

//go:build e2e

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// shownCard is a network card in vmctl show -o json.
type shownCard struct {
	MAC       string
	Addresses []struct{ Address, Source string }
	Traffic   *struct {
		RxBytes   int64 `json:"rx_bytes"`
		RxPackets int64 `json:"rx_packets"`
		TxBytes   int64 `json:"tx_bytes"`
		TxPackets int64 `json:"tx_packets"`
	} `json:"statistics"`
}

// card is the machine's only one.
func (v *vm) card() shownCard {
	v.t.Helper()
	return decode[struct{ NICs []shownCard }](v.t, run(v.t, "vmctl", "show", "-o", "json", v.name)).NICs[0]
}

// source is who knows an address of the card, "" where nobody does.
func (c shownCard) source(address string) string {
	for _, a := range c.Addresses {
		if a.Address == address {
			return a.Source
		}
	}
	return ""
}

// waitSource waits until vmctl show says that the source knows the address.
func (v *vm) waitSource(address, source string) {
	v.t.Helper()
	eventually(v.t, v.name+" has "+address+" by "+source, func() bool { return v.card().source(address) == source })
}

// listed are the addresses of a machine in vmctl list.
func listed(t testing.TB, name string) []string {
	t.Helper()
	type row struct {
		Name      string
		Addresses []string
	}
	rows := decode[[]row](t, run(t, "vmctl", "list", "-o", "json"))
	return rows[slices.IndexFunc(rows, func(r row) bool { return r.Name == name })].Addresses
}

// outsideHost makes a network namespace that is another host, 198.51.100.2 and
// 2001:db8::2 beside 198.51.100.1 and 2001:db8::1, until undone.
func outsideHost(t testing.TB) (undo func()) {
	t.Helper()
	for _, command := range []string{
		"ip netns add outside", "ip link add up0 type veth peer name eth0 netns outside",
		"ip address add 198.51.100.1/24 dev up0", "ip -6 address add 2001:db8::1/64 dev up0 nodad", "ip link set up0 up",
		"ip -n outside link set lo up", "ip -n outside address add 198.51.100.2/24 dev eth0",
		"ip -n outside -6 address add 2001:db8::2/64 dev eth0 nodad", "ip -n outside link set eth0 up",
		// As a neighbour may who knows what is here.
		"ip -n outside route add 192.168.100.0/24 via 198.51.100.1",
	} {
		run(t, strings.Fields(command)...)
	}
	return func() { run(t, "ip", "netns", "delete", "outside"); try("ip", "link", "delete", "up0") }
}

// talk sends a text to an address of socat's, from a namespace where one is
// named, and returns what comes back.
func talk(namespace, to, text string) string {
	if strings.HasPrefix(to, "TCP:") {
		to += ",connect-timeout=10" // not the kernel's two minutes, where nobody is let through
	}
	argv := []string{"socat", "-T", "5", "-", to}
	if namespace != "" {
		argv = append([]string{"ip", "netns", "exec", namespace}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(text)
	// Nobody there is an error as well, and no answer.
	out, _ := cmd.Output()
	return string(out)
}

// echoes says whether the little guest does, which sends everything back after a
// greeting.
func echoes(namespace, to string) bool {
	return strings.Contains(talk(namespace, to, "hi there"), "hi there")
}

// dnsQuery asks for the IPv4 address of net-two.default (RFC 1035, 4).
const dnsQuery = "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07net-two\x07default\x00\x00\x01\x00\x01"

// dnsAnswer is the address that ends an answer of one record.
func dnsAnswer(answer string) string {
	if len(answer) < 16 || binary.BigEndian.Uint16([]byte(answer[6:])) != 1 {
		return ""
	}
	ip, _ := netip.AddrFromSlice([]byte(answer[len(answer)-4:]))
	return ip.String()
}

// knownAddresses: list and show tell at which addresses guests are, and who says
// so.
func knownAddresses(t testing.TB, one *vm, address4, address6 string) {
	t.Helper()
	one.waitSource(address4, "lease")
	one.waitSource(address6, "lease")
	if got := listed(t, one.name); len(got) < 2 || got[0] != address4 || got[1] != address6 {
		t.Errorf("vmctl list has %v, want %s and %s first", got, address4, address6)
	}
	contains(t, run(t, "vmctl", "list"), address4+" +")
	contains(t, run(t, "vmctl", "show", one.name), address4+" (lease), "+address6+" (lease)", "received ", "sent ")

	// By router advertisements the guest gave itself one more (RFC 4291, A).
	mac, err := net.ParseMAC(one.card().MAC)
	if err != nil {
		t.Fatal(err)
	}
	own := netip.MustParseAddr(address6).As16()
	copy(own[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	itself := netip.AddrFrom16(own).String()
	eventually(t, "the guest answers at "+itself, func() bool { return echoes("", "TCP:["+itself+"]:7") })
	one.waitSource(itself, "neighbour")
	if got := listed(t, one.name); !slices.Contains(got, itself) {
		t.Errorf("vmctl list has %v, without %s", got, itself)
	}

	one.typeLine("ip address add 203.0.113.77/32 dev eth0")
	one.expect(`# `)
	one.typeLine("agent")
	one.expect(`guest agent answers`)
	one.waitSource("203.0.113.77", "agent")
	one.typeLine("ip address del 203.0.113.77/32 dev eth0")
	one.expect(`# `)
}

// knownNames: the host knows guests by name, through systemd-resolved and by files
// of hosts(5).
func knownNames(t testing.TB, one *vm, address4, address6 string) {
	t.Helper()
	eventually(t, "systemd-resolved knows net-one.default", func() bool {
		found := try("resolvectl", "query", "net-one.default").stdout
		return strings.Contains(found, address4) && strings.Contains(found, address6)
	})
	// resolved's stub is what programs of the host ask.
	if got := dnsAnswer(talk("", "UDP:127.0.0.53:53", dnsQuery)); !strings.HasPrefix(got, "192.168.100.") {
		t.Errorf("systemd-resolved's stub answers %q for net-two.default", got)
	}
	link := run(t, "resolvectl", "status", "vmbr-default")
	contains(t, link, "192.168.100.1", "~default")

	content, err := os.ReadFile("/run/vmctl/hosts/net-one.lan")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, string(content), address4+" net-one.default\n", address6+" net-one.default\n")
	local := exec.Command("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--port=5399",
		"--listen-address=127.0.0.1", "--bind-interfaces", "--hostsdir=/run/vmctl/hosts", "--user=nobody", "--pid-file=")
	if err := local.Start(); err != nil {
		t.Fatal(err)
	}
	defer local.Wait()
	defer local.Process.Kill()
	eventually(t, "a server with hostsdir= knows net-two.default", func() bool {
		return strings.HasPrefix(dnsAnswer(talk("", "UDP:127.0.0.1:5399", dnsQuery)), "192.168.100.")
	})
}

// reachedFromOutside: forwards lead to the guest from everywhere, and nothing else
// does; nobody outside gets an answer about names.
func reachedFromOutside(t testing.TB, one *vm) {
	t.Helper()
	undo := outsideHost(t)
	defer undo()
	before := one.card().Traffic
	for _, from := range []string{"outside", ""} {
		for _, to := range []string{"TCP:198.51.100.1:2207", "TCP:[2001:db8::1]:2207", "UDP:198.51.100.1:2207", "UDP:[2001:db8::1]:2207"} {
			eventually(t, fmt.Sprintf("%s answers from %q", to, from), func() bool { return echoes(from, to) })
		}
	}
	for _, to := range []string{"TCP:127.0.0.1:2207", "TCP:127.0.0.1:2208"} {
		if !echoes("", to) {
			t.Errorf("%s does not answer from the host", to)
		}
	}
	// Which is started by the first who asks.
	eventually(t, "the guest answers on ::1", func() bool { return echoes("", "TCP:[::1]:2210") })
	after := one.card().Traffic
	if after.RxBytes <= before.RxBytes || after.TxBytes <= before.TxBytes || after.RxPackets <= before.RxPackets || after.TxPackets <= before.TxPackets {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if echoes("outside", "TCP:198.51.100.1:2208") {
		t.Error("a forward on the host's loopback address answers outside")
	}
	proxy := "vm-forward@" + one.name + ":lan:2210"
	if exposure := run(t, "systemd-analyze", "security", "--no-pager", proxy+".service"); !strings.Contains(exposure, "OK") {
		t.Errorf("%s: %s", proxy, exposure)
	}
	// Whoever connects does not start the machine by that.
	contains(t, run(t, "systemctl", "show", "-P", "BindsTo", proxy+".socket"), one.unit())
	if bound := run(t, "systemctl", "show", "-P", "BindsTo", "-P", "Requires", "-P", "Wants", proxy+".service"); strings.Contains(bound, one.unit()) {
		t.Errorf("%s.service starts %s", proxy, bound)
	}
	if got := dnsAnswer(talk("", "UDP:192.168.100.1:53", dnsQuery)); got == "" {
		t.Error("the network's service does not answer the host")
	}
	for _, to := range []string{"UDP:192.168.100.1:53", "UDP:198.51.100.1:53", "TCP:192.168.100.1:53"} {
		if got := talk("outside", to, dnsQuery); got != "" {
			t.Errorf("%s answers somebody outside: %q", to, got)
		}
	}
	type port struct {
		VM      string
		Forward []string
	}
	shown := decode[struct{ Cards []port }](t, run(t, "vmctl", "network", "show", "-o", "json", "default")).Cards
	if want := (port{"net-one", []string{"2207:7/tcp", "2207:7/udp", "127.0.0.1:2208:7/tcp", "[::1]:2210:7/tcp"}}); !slices.ContainsFunc(shown, func(p port) bool {
		return p.VM == want.VM && slices.Equal(p.Forward, want.Forward)
	}) {
		t.Errorf("vmctl network show has %+v, without %+v", shown, want)
	}
	contains(t, run(t, "vmctl", "network", "show", "default"), "2207:7/tcp to net-one, card lan")
}

// takenPorts: a port of the host that another machine has, or that somebody
// listens on, is refused before the start, with who has it.
func takenPorts(t testing.TB) {
	t.Helper()
	v := newVM(t, "net-three", "[nic.lan]\nnetwork = \"default\"\nforward = [\"127.0.0.1:2207:7\"]\n")
	contains(t, try("vmctl", "check", v.name).all(), "net-three.toml:", "nic.lan.forward[0]: want a port of the host of its own",
		"machine net-one (/etc/vmctl/vms/net-one.toml:", `nic.lan.forward[0]: "2207:7/tcp")`)

	l, err := net.Listen("tcp", "127.0.0.1:2209")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	who := fmt.Sprintf("e2e.test (process %d", os.Getpid())
	v.define(littleGuest("cloud", "") + "[nic.lan]\nuser = true\nforward = [\"2209:7\"]\n")
	contains(t, run(t, "vmctl", "check", v.name), "warning: want a port of the host that is free, got \"2209:7/tcp\": "+who, "listens on 127.0.0.1:2209")
	contains(t, try("vmctl", "start", v.name).stderr, who)
	v.waitState("failed")
	contains(t, v.journal(), "nic.lan.forward[0]: want a port of the host that is free", who)
}

// usage: vmctl top tells what machines use, in JSON and as text, and ends.
func usage(t testing.TB, one, two *vm) {
	t.Helper()
	type sample struct {
		Name   string
		CPU    *float64 `json:"cpu_percent"`
		Memory *int64   `json:"memory_used_bytes"`
		Rx     *int64   `json:"rx_bytes"`
		RxRate *float64 `json:"rx_bytes_per_second"`
		NICs   []struct {
			Name string
			Rx   *int64 `json:"rx_bytes"`
		}
		Read *int64 `json:"disk_read_bytes"`
	}
	for _, s := range decode[[]sample](t, run(t, "vmctl", "top", "-o", "json", "--delay", "1s", one.name, two.name)) {
		if s.CPU == nil || s.Rx == nil || *s.Rx == 0 || s.RxRate == nil || s.Read == nil || len(s.NICs) != 1 || s.NICs[0].Rx == nil || *s.NICs[0].Rx != *s.Rx {
			t.Errorf("vmctl top: %+v", s)
		}
	}
	text := run(t, "vmctl", "top", "--delay", "500ms", "--count", "2", "--sort", "name", "--nics")
	if got := strings.Count(text, "RECEIVED/s"); got != 2 {
		t.Errorf("%d tables in:\n%s", got, text)
	}
	contains(t, text, one.name+"  running", two.name+"  running", "\n  lan    ")
	fail(t, 3, "vmctl", "top", "net-none")
}

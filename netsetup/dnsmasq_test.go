package netsetup

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

// lookUp asks a name server for the IPv4 address of a name (RFC 1035, 4): the
// answer is that, "NXDOMAIN", or "" where none comes.
func (n namespace) lookUp(server, name string) string {
	n.Helper()
	var c net.Conn
	var err error
	n.in(func() { c, err = net.Dial("udp", server) })
	if err != nil {
		n.Fatal(err)
	}
	defer c.Close()
	return lookUp(c, name)
}

func lookUp(c net.Conn, name string) string {
	query := []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0} // recursion desired, one question
	for label := range strings.SplitSeq(name, ".") {
		query = append(append(query, byte(len(label))), label...)
	}
	query = append(query, 0, 0, 1, 0, 1) // A, IN
	answer := make([]byte, 512)
	for range 3 { // it may be on its way up
		if _, err := c.Write(query); err != nil {
			continue
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		got, err := c.Read(answer)
		switch {
		case err != nil || got < 12:
			time.Sleep(100 * time.Millisecond)
		case answer[3]&0xf == 3:
			return "NXDOMAIN"
		case binary.BigEndian.Uint16(answer[6:]) == 0 || got < 16:
			return "nothing"
		default: // the only record ends with the address
			a, _ := netip.AddrFromSlice(answer[got-4 : got])
			return a.String()
		}
	}
	return ""
}

// upstream is a name server that knows all names, and remembers which it was
// asked for.
type upstream struct {
	mu    sync.Mutex
	asked []byte
}

func (u *upstream) serve(c net.PacketConn) {
	query := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(query)
		if err != nil {
			return
		}
		u.mu.Lock()
		u.asked = append(u.asked, query[:n]...)
		u.mu.Unlock()
		address := []byte{203, 0, 113, 5}
		if bytes.Contains(query[:n], []byte("rebind")) {
			address = []byte{192, 168, 100, 1}
		}
		end := 12 + bytes.IndexByte(query[12:n], 0) + 5
		answer := append([]byte{}, query[:end]...)
		copy(answer[2:], []byte{0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0})
		// The name of the question, A, IN, a minute, four bytes.
		answer = append(append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4), address...)
		_, _ = c.WriteTo(answer, from)
	}
}

// TestNames: the network's service answers its guests and the host, asks nobody
// else about their names, and takes from nobody else what is in the network.
func TestNames(t *testing.T) {
	dnsmasq, err := exec.LookPath("dnsmasq")
	if err != nil {
		t.Fatal(err)
	}
	network, _ := load(t, txtar.Parse([]byte(`
-- network.toml --
subnet = "192.168.100.0/24"
`)))
	inNamespace(t)
	if err := Up(Network(network)); err != nil {
		t.Fatal(err)
	}
	guest, outside := newNamespace(t), newNamespace(t)
	guest.connect("vmt0", "eth0")
	guest.run("ip link set eth0 up")
	guest.run("ip address add 192.168.100.10/24 dev eth0")
	guest.run("ip route add default via 192.168.100.1")
	outside.connect("up0", "eth0")
	outside.run("ip address add 198.51.100.2/24 dev eth0")
	outside.run("ip link set eth0 up")
	outside.run("ip route add 192.168.100.0/24 via 198.51.100.1")
	for _, command := range []string{"ip link set vmt0 master vmbr-lan up", "ip address add 198.51.100.1/24 dev up0", "ip link set up0 up"} {
		args := strings.Fields(command)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatal(command, err, string(out))
		}
	}
	settled(t)

	var server upstream
	outside.in(func() {
		c, err := net.ListenPacket("udp", "198.51.100.2:53")
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { c.Close() })
		go server.serve(c)
	})
	dir := ServiceDir{
		Hosts: filepath.Join(t.TempDir(), "hosts"), Leases: filepath.Join(t.TempDir(), "leases"), Resolv: filepath.Join(t.TempDir(), "resolv.conf"),
	}
	if err := os.Mkdir(dir.Hosts, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "dnsmasq.conf")
	for file, text := range map[string]string{
		dir.Resolv: "nameserver 198.51.100.2\n",
		dir.Leases: "4102444800 52:54:00:00:00:01 192.168.100.7 web *\n",
		conf:       Service(network, dir) + "user=root\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	service := exec.Command(dnsmasq, "--conf-file="+conf)
	service.Stderr = t.Output()
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	defer service.Wait()
	defer service.Process.Kill()

	host, err := net.Dial("udp", "192.168.100.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	for _, tt := range []struct{ what, got, want string }{
		{"a guest, for a guest", guest.lookUp("192.168.100.1:53", "web.lan"), "192.168.100.7"},
		{"a guest, for no guest", guest.lookUp("192.168.100.1:53", "nobody.lan"), "NXDOMAIN"},
		{"a guest, for what is no domain", guest.lookUp("192.168.100.1:53", "nobody"), "NXDOMAIN"},
		{"a guest, for somebody outside", guest.lookUp("192.168.100.1:53", "good.example"), "203.0.113.5"},
		{"a guest, for somebody outside who would be in the network", guest.lookUp("192.168.100.1:53", "rebind.example"), "NXDOMAIN"},
		{"the host, for a guest", lookUp(host, "web.lan"), "192.168.100.7"},
		{"outside, by the network's address", outside.lookUp("192.168.100.1:53", "web.lan"), ""},
		{"outside, by the host's", outside.lookUp("198.51.100.1:53", "web.lan"), ""},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: answered %q, want %q", tt.what, tt.got, tt.want)
		}
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	if bytes.Contains(server.asked, []byte("\x03lan")) || bytes.Contains(server.asked, []byte("nobody")) {
		t.Errorf("others were asked for names of guests: %q", server.asked)
	}
	if !bytes.Contains(server.asked, []byte("good")) {
		t.Error("others were asked for nothing: the test shows nothing")
	}
}

// Names that are words of dnsmasq's, or times, are names here.
func TestHostLine(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte("-- network.toml --\nsubnet = \"192.168.100.0/24\"\n")))
	lease := Lease{IP4: netip.MustParseAddr("192.168.100.7")}
	for _, name := range []string{"ignore", "infinite", "42", "2h", "7d"} {
		if got, want := HostLine(network, "52:54:00:00:00:01", lease, name), "52:54:00:00:00:01,192.168.100.7,"+name+".lan\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestNameLines(t *testing.T) {
	network, _ := load(t, txtar.Parse([]byte("-- network.toml --\nsubnet = \"192.168.100.0/24\"\ndomain = \"lan.example\"\n")))
	lease := Lease{IP4: netip.MustParseAddr("192.168.100.7"), IP6: netip.MustParseAddr("fd00::7")}
	const want = "192.168.100.7 web.lan.example\nfd00::7 web.lan.example\n"
	if got := NameLines(network, lease, "web"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

package netsetup

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// ip runs ip(8).
func ip(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", command, err, out)
	}
}

// ownSys shows the test the interfaces of its own namespace in /sys.
func ownSys(t *testing.T) {
	t.Helper()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		t.Fatal(err)
	}
}

// header is what precedes a frame in a queue (struct virtio_net_hdr).
const header = 10

// answers says whether the host has 192.0.2.1 behind the queues, by ARP.
func answers(t *testing.T, queues []*os.File, mac string) bool {
	t.Helper()
	own, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	b.Write(make([]byte, header))
	b.Write([]byte{255, 255, 255, 255, 255, 255})
	b.Write(own)
	b.Write([]byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}) // Ethernet, IPv4, request
	b.Write(own)
	b.Write([]byte{192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1})
	var poll []unix.PollFd
	for _, q := range queues {
		fd := int(q.Fd())
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
		poll = append(poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	frame := make([]byte, 4096)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if _, err := unix.Write(int(poll[0].Fd), b.Bytes()); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Poll(poll, 500); err != nil || n == 0 {
			continue
		}
		// The kernel chooses the queue.
		for _, p := range poll {
			n, err := unix.Read(int(p.Fd), frame)
			if err != nil {
				continue
			}
			if f := frame[header:n]; len(f) >= 42 && bytes.Equal(f[:6], own) && bytes.Equal(f[12:14], []byte{8, 6}) && f[21] == 2 {
				return true
			}
		}
	}
	return false
}

func TestPlugTap(t *testing.T) {
	inNamespace(t)
	ip(t, "tuntap add dev tap1 mode tap")
	ip(t, "tuntap add dev tap2 mode tap multi_queue")
	ip(t, "tuntap add tun mode tun")
	ip(t, "link add d0 type veth peer name d1")
	ip(t, "address add 192.0.2.1/24 dev tap2")
	ip(t, "link set tap2 up")
	before := everything(t)
	plug := func(tap string, queues, mtu int) ([]*os.File, error) {
		return Plug(Card("web", config.NIC{Name: "lan", Tap: tap, Queues: queues, MTU: mtu}, nil, Lease{}, HostBridge{}))
	}
	for _, c := range []struct {
		tap         string
		queues, mtu int
		want        string
	}{
		{"none", 1, 0, "want the TAP interface none, the host has no such interface (ip tuntap add dev none mode tap makes one)"},
		{"d0", 1, 0, "want the TAP interface d0, it is an interface of type veth"},
		{"tun", 1, 0, "want the TAP interface tun, it is a TUN interface, which has no Ethernet"},
		{"tap1", 2, 0, "want a TAP interface made for several queues (ip tuntap add dev tap1 mode tap multi_queue) for queues = 2, tap1 has one"},
		{"tap1", 1, 9000, "want an mtu of at most 1500, that of the TAP interface tap1, got 9000"},
	} {
		if _, err := plug(c.tap, c.queues, c.mtu); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	for _, c := range []struct {
		tap    string
		queues int
	}{{"tap1", 1}, {"tap2", 1}, {"tap2", 4}} {
		queues, err := plug(c.tap, c.queues, 1400)
		if err != nil || len(queues) != c.queues {
			t.Fatalf("%s: %v, %v", c.tap, queues, err)
		}
		if c.tap == "tap2" && !answers(t, queues, "52:54:00:12:34:56") {
			t.Errorf("%s with %d queues: the host does not answer", c.tap, c.queues)
		}
		if _, err := plug(c.tap, c.queues, 0); err == nil || err.Error() != "the TAP interface "+c.tap+" is in use by another process" {
			t.Errorf("%s twice: %v", c.tap, err)
		}
		closeAll(queues)
		if err := Unplug("web", Unplugged{config.NIC{Name: "lan", Tap: c.tap}, nil}); err != nil {
			t.Error(err)
		}
	}
	// The host finds out its own neighbours and addresses meanwhile, but the
	// interfaces are as they were.
	if after := everything(t); countLinks(after) != countLinks(before) {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// countLinks is how many interfaces there are.
func countLinks(text string) int { return strings.Count(text, " mtu ") }

func TestPlugMacvtap(t *testing.T) {
	inNamespace(t)
	ownSys(t)
	ip(t, "link add d0 type veth peer name d1")
	ip(t, "link add name down0 type veth peer name down1")
	ip(t, "link add name bridge0 type bridge")
	ip(t, "link add b0 type veth peer name b1")
	ip(t, "link set b0 master bridge0 up")
	ip(t, "address add 192.0.2.1/24 dev d1")
	for _, link := range []string{"d0", "d1"} {
		ip(t, "link set "+link+" up")
	}
	before := everything(t)
	const mac = "52:54:00:12:34:56"
	nic := func(lower string) config.NIC {
		return config.NIC{Name: "lan", Macvtap: lower, MacvtapMode: "bridge", MAC: mac, Queues: 1}
	}
	plug := func(nic config.NIC) ([]*os.File, error) { return Plug(Card("web", nic, nil, Lease{}, HostBridge{})) }
	big := nic("d0")
	big.MTU = 9000
	for _, c := range []struct {
		nic  config.NIC
		want string
	}{
		{nic("none"), "want the interface none, the host has no such interface"},
		{nic("down0"), "down0 is down: ip link set down0 up"},
		{big, "want an mtu of at most 1500, that of d0, got 9000"},
		{nic("b0"), "no macvtap can be put on b0: it is on a bridge or in a bond, or another is on it that wants to be alone"},
	} {
		if _, err := plug(c.nic); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	// The rest changes by itself, while links come up.
	if after := everything(t); countLinks(after) != countLinks(before) {
		t.Errorf("refused, and left behind:\n%s\nbefore:\n%s", after, before)
	}

	for _, queues := range []int{1, 3} {
		n := nic("d0")
		n.Queues, n.MTU = queues, 1400
		for range 2 { // the first is left by a crash
			files, err := plug(n)
			if err != nil || len(files) != queues {
				t.Fatalf("%d queues: %v, %v", queues, files, err)
			}
			link, err := netlink.LinkByName("vmctl-web-lan")
			if err != nil || link.Attrs().Name != TapName("web", "lan") || link.Attrs().MTU != 1400 || link.Attrs().HardwareAddr.String() != mac {
				t.Fatalf("%v, %v", link, err)
			}
			if !answers(t, files, mac) {
				t.Errorf("%d queues: nobody answers", queues)
			}
			closeAll(files)
		}
		if err := Unplug("web", Unplugged{n, nil}); err != nil {
			t.Error(err)
		}
	}
	down := nic("d0")
	down.Link = "down"
	files, err := plug(down)
	if err != nil {
		t.Fatal(err)
	}
	isUp := func() bool {
		link, err := netlink.LinkByName(TapName("web", "lan"))
		return err == nil && link.Attrs().Flags&net.FlagUp != 0
	}
	if isUp() {
		t.Error("plugged in, with its link down, and up")
	}
	for _, link := range []string{"up", "down"} {
		down.Link = link
		if err := Adjust(Card("web", down, nil, Lease{}, HostBridge{})); err != nil || isUp() != (link == "up") {
			t.Errorf("link %s, is up: %v, %v", link, isUp(), err)
		}
		if link == "up" && !answers(t, files, mac) {
			t.Error("set up again: nobody answers")
		}
	}
	closeAll(files)
	for _, mode := range []string{"vepa", "private", "passthru"} {
		n := nic("d0")
		n.MacvtapMode = mode
		files, err := plug(n)
		if err != nil {
			t.Fatalf("%s: %v", mode, err)
		}
		link, err := netlink.LinkByName(TapName("web", "lan"))
		if m, ok := link.(*netlink.Macvtap); err != nil || !ok || m.Mode != macvtapMode(mode) {
			t.Errorf("%s: %v, %v", mode, link, err)
		}
		closeAll(files)
		if err := Unplug("web", Unplugged{n, nil}); err != nil {
			t.Error(err)
		}
	}
	// In containers the kernel's own node is not there.
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if files, err = plug(nic("d0")); err != nil {
		t.Fatal(err)
	}
	if !answers(t, files, mac) {
		t.Error("by a node of ours: nobody answers")
	}
	closeAll(files)
	// A crash in between.
	if err := os.Mkdir(nodeDir(TapName("web", "lan")), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Unplug("web", Unplugged{nic("d0"), nil}); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir("/dev"); err != nil || len(left) > 0 {
		t.Errorf("left in /dev: %v, %v", left, err)
	}
	if err := unix.Unmount("/dev", 0); err != nil {
		t.Fatal(err)
	}
	if err := Unplug("web", Unplugged{nic("d0"), nil}); err != nil {
		t.Error(err)
	}
	if after := everything(t); countLinks(after) != countLinks(before) {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	// What has our name and is none of ours stays.
	ip(t, fmt.Sprintf("link add %s type veth peer name x1", TapName("web", "lan")))
	if _, err := plug(nic("d0")); err == nil || !strings.Contains(err.Error(), "of type veth that is not vmctl's") {
		t.Errorf("got %v", err)
	}
}

func TestPlugVDERefused(t *testing.T) {
	dir := t.TempDir()
	want := "plug into the VDE switch " + dir + ": there is none: no socket " + dir + "/ctl"
	if _, _, err := PlugVDE(dir, "vmt.x", "web"); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/ctl", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	// A switch that names what is not its own.
	private := filepath.Join(t.TempDir(), "private")
	other, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: private, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	port, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/001.5", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func() error{
		private:         func() error { return nil },
		dir + "/link":   func() error { return os.Symlink(private, dir+"/link") },
		dir + "/..":     func() error { return nil },
		dir + "/file":   func() error { return os.WriteFile(dir+"/file", nil, 0o600) },
		dir + "/001.5":  func() error { return os.Chown(dir+"/001.5", 12345, -1) },
		dir + "/absent": func() error { return nil },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if err := connectTo(t, dir, name); err == nil {
			t.Errorf("connected to %s", name)
		}
	}
	if err := os.Chown(dir+"/001.5", 0, -1); err != nil {
		t.Fatal(err)
	}
	if err := connectTo(t, dir, dir+"/001.5"); err != nil {
		t.Error(err)
	}
	port.Close()
	for _, name := range []string{"link", "file", "001.5"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	// A switch that hangs up at once, having no port.
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
	}()
	if _, _, err := PlugVDE(dir, "vmt.x", "web"); err == nil {
		t.Error("plugged into nothing")
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	want = "plug into the VDE switch " + dir + ": it does not run: nobody listens on " + dir + "/ctl"
	if _, _, err := PlugVDE(dir, "vmt.x", "web"); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// connectTo connects to what a switch has named for a port.
func connectTo(t *testing.T, dir, port string) error {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return connectPort(fd, dir, dir+"/ctl", port)
}

// TestPlugKeepsBridgeAddress: a bridge of the host that has the lowest address of
// its ports goes by that of its uplink still.
func TestPlugKeepsBridgeAddress(t *testing.T) {
	inNamespace(t)
	ip(t, "link add br0 type bridge")
	ip(t, "link add up0 address f8:00:00:00:00:05 type veth peer name up1")
	ip(t, "link set up0 master br0")
	for _, mac := range []config.MAC{"52:54:00:00:00:01", "fe:54:00:00:00:01"} {
		nic := config.NIC{Name: "lan", Bridge: "br0", MAC: mac, Queues: 1}
		queues, err := Plug(Card("web", nic, nil, Lease{}, HostBridge{}))
		if err != nil {
			t.Fatal(err)
		}
		bridge, err := bridgeOf("br0")
		if err != nil {
			t.Fatal(err)
		}
		if got := bridge.Attrs().HardwareAddr.String(); got != "f8:00:00:00:00:05" {
			t.Errorf("beside a card %s the bridge has the address %s", mac, got)
		}
		link, err := netlink.LinkByName(Interface("web", nic))
		if err != nil {
			t.Fatal(err)
		}
		if got := link.Attrs().HardwareAddr.String(); got == string(mac) {
			t.Errorf("the host's end has the guest's address %s", got)
		}
		closeAll(queues)
		if err := Unplug("web", Unplugged{nic, nil}); err != nil {
			t.Error(err)
		}
	}
}

// TestCardMTU: a card's MTU is no matter of the bridge, nor of others on it.
func TestCardMTU(t *testing.T) {
	inNamespace(t)
	output(t, "ip link add br0 type bridge")
	output(t, "ip link set br0 up")
	card := CardState{Interface: "vmt-web", AltName: "vmctl-web-net", Bridge: "br0", MAC: "52:54:00:00:00:0a", Queues: 1, MTU: 1400}
	queues, err := Plug(card)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(queues)
	if got := output(t, "ip link show br0"); !strings.Contains(got, "mtu 1500") {
		t.Errorf("the host's bridge is %s", got)
	}
	card.Interface, card.AltName, card.MTU = "vmt-db", "vmctl-db-net", 9000
	if _, err := Plug(card); err == nil || err.Error() != "want an mtu of at most 1500, that of br0, got 9000" {
		t.Errorf("a larger one: %v", err)
	}
}

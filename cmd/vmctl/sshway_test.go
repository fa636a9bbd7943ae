package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/netsetup"
	"github.com/vmctl/vmctl/units/bus"
)

// says is a way to what says a text, and then nothing.
func says(t *testing.T, text string) sshWay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, text)
			conn.Close()
		}
	}()
	return sshWay{"here", func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}}
}

func TestTryWay(t *testing.T) {
	conn, first, err := tryWay(t.Context(), says(t, "SSH-2.0-x\r\nmore"), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if all, _ := io.ReadAll(first); string(all) != "SSH-2.0-x\r\nmore" {
		t.Errorf("got %q", all)
	}
	// A forward of QEMU accepts, and closes where nobody in the guest does.
	for text, want := range map[string]string{"": "EOF", "HTTP/1.1 400\r\n": "what answers is no ssh server"} {
		if _, _, err := tryWay(t.Context(), says(t, text), time.Minute); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// machineWithWays is a machine that runs with a card in a network, which has lent it an
// address, and a card with two forwards, of which one leads to its ssh server.
func machineWithWays(t *testing.T, address netip.Addr, forward int) (*app, look) {
	t.Helper()
	const mac = "52:54:00:00:00:01"
	root := t.TempDir()
	a := &app{root: root, paths: config.SystemPaths(root)}
	m := &config.Machine{Name: "web", Hypervisor: config.CloudHypervisor, NICs: []config.NIC{
		{Name: "out", User: true, Forward: []config.Forward{
			{HostPort: 8080, GuestPort: 80, Protocol: config.TCP},
			{HostPort: forward, GuestPort: sshPort, Protocol: config.TCP},
		}},
		{Name: "lan", Network: "lan", MAC: mac},
	}}
	for path, value := range map[string]any{
		a.paths.NetworkJSON("lan"):      config.Network{Name: "lan"},
		a.paths.NetworkAddresses("lan"): map[string]netsetup.Reserved{"web/lan": {Lease: netsetup.Lease{IP4: address}, MAC: mac}},
	} {
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		writeTestFile(t, path, string(text))
	}
	writeTestFile(t, a.paths.NetworkLeases("lan"), fmt.Sprintf("0 %s %s * *\n", mac, address))
	return a, look{vm: config.VM{Name: "web"}, unit: bus.UnitStatus{Active: "active"}, state: running, record: &hypervisor.Record{Machine: m}}
}

func writeTestFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// By vsock first, then by addresses, then by a forward, of each what there is.
func TestSSHWays(t *testing.T) {
	for _, test := range []struct {
		what   string
		change func(m *config.Machine, l *look)
		want   string
	}{
		{"a socket for vsock", func(*config.Machine, *look) {}, "[vsock 10.20.0.7:22 127.0.0.1:2222]"},
		{"the kernel's vsock", func(m *config.Machine, l *look) {
			m.Hypervisor, m.Vsock.CID = "qemu", 7
			l.record.Plan = &hypervisor.Plan{Devices: []string{"/dev/vhost-vsock"}}
		}, "[vsock 7 10.20.0.7:22 127.0.0.1:2222]"},
		{"no vsock", func(m *config.Machine, _ *look) { m.Vsock.Enabled = "false" }, "[10.20.0.7:22 127.0.0.1:2222]"},
		{"no address", func(m *config.Machine, _ *look) { m.Vsock.Enabled, m.NICs = "false", m.NICs[:1] }, "[127.0.0.1:2222]"},
		{"no forward", func(m *config.Machine, _ *look) { m.Vsock.Enabled, m.NICs = "false", m.NICs[1:] }, "[10.20.0.7:22]"},
		{"a forward at an address", func(m *config.Machine, _ *look) {
			m.Vsock.Enabled, m.NICs = "false", m.NICs[:1]
			m.NICs[0].Forward[1].Address = "[::1]"
		}, "[[::1]:2222]"},
		{"a forward of UDP", func(m *config.Machine, _ *look) {
			m.Vsock.Enabled, m.NICs = "false", m.NICs[:1]
			m.NICs[0].Forward[1].Protocol = config.UDP
		}, "[]"},
	} {
		a, l := machineWithWays(t, netip.MustParseAddr("10.20.0.7"), 2222)
		test.change(l.record.Machine, &l)
		names := []string{}
		for _, way := range a.sshWays(t.Context(), l) {
			names = append(names, way.name)
		}
		if got := fmt.Sprint(names); got != test.want {
			t.Errorf("%s: got %s, want %s", test.what, got, test.want)
		}
	}
}

// The best way on which a server answers is taken, by what is really connected to.
func TestDialSSH(t *testing.T) {
	// Of this thread alone, which ends with the test.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_FS); err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddr("10.20.0.7")
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(32, 32)}}); err != nil {
		t.Fatal(err)
	}
	a, l := machineWithWays(t, address, 2222)

	// greets plays a server; one behind a Unix socket is told of a port first.
	greets := func(network, at, text string) io.Closer {
		listener, err := net.Listen(network, at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				if network == "unix" {
					bufio.NewReader(conn).ReadString('\n')
				}
				io.WriteString(conn, text)
				conn.Close()
			}
		}()
		return listener
	}
	socket := a.paths.VsockSocket("web")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	byVsock := greets("unix", socket, "OK 1073741824\nSSH-2.0-vsock\r\n")
	byAddress := greets("tcp", address.String()+":22", "SSH-2.0-address\r\n")
	byForward := greets("tcp", "127.0.0.1:2222", "SSH-2.0-forward\r\n")
	reached := func(name, says string) {
		t.Helper()
		conn, first, way, err := a.dialSSH(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if text, _ := io.ReadAll(first); way != name || string(text) != "SSH-2.0-"+says+"\r\n" {
			t.Errorf("by %s: %q; want by %s: %s", way, text, name, says)
		}
	}
	reached("vsock", "vsock")
	byVsock.Close()
	reached("10.20.0.7:22", "address")
	byAddress.Close()
	greets("tcp", address.String()+":22", "HTTP/1.1 400\r\n") // what answers is another
	reached("127.0.0.1:2222", "forward")
	byForward.Close()
	_, _, _, err = a.dialSSH(t.Context(), l)
	if err == nil {
		t.Fatal("no error where nothing answers")
	}
	for _, want := range []string{"by vsock: ", "by 10.20.0.7:22: what answers is no ssh server", "by 127.0.0.1:2222: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

func TestSSHPath(t *testing.T) {
	if got, want := sshPath(`/home/a b/100%/"x"`), `"/home/a b/100%%/\"x\""`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

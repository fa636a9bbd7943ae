package netsetup

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// procNet is the files of a host on which somebody listens.
func procNet(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	const rest = " 00000000:00000000 00:00000000 00000000     0        0 "
	for file, text := range map[string]string{
		"thread-self/net/tcp": head +
			"   0: 00000000:0016 00000000:0000 0A" + rest + "1001 1 0000000000000000 100 0 0 10 0\n" + // 0.0.0.0:22
			"   1: 0100007F:0277 00000000:0000 0A" + rest + "1002 1 0000000000000000 100 0 0 10 0\n" + // 127.0.0.1:631
			"   2: 0100007F:1F90 0100007F:0016 01" + rest + "1003 1 0000000000000000 100 0 0 10 0\n" + // a connection by port 8080
			"garbage\n   3: zz:zz 0 0A" + rest + "0\n",
		"thread-self/net/tcp6": head +
			"   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A" + rest + "1004\n" + // [::]:80
			"   1: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A" + rest + "1005\n" + // [::1]:81
			"   2: B80D0120000000000000000001000000:0052 00000000000000000000000000000000:0000 0A" + rest + "1006\n", // [2001:db8::1]:82
		"thread-self/net/udp": head + "   0: 3500007F:0035 00000000:0000 07" + rest + "1007 2 0000000000000000 0\n", // 127.0.0.53:53
		"100/comm":            "sshd\n",
		"100/cgroup":          "0::/system.slice/ssh.service\n",
		"200/comm":            "cupsd\n",
	} {
		path := filepath.Join(root, "proc", file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for file, to := range map[string]string{"100/fd": "socket:[1001]", "200/fd": "socket:[1002]"} {
		dir := filepath.Join(root, "proc", file)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(dir, "3")); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestTakenPorts(t *testing.T) {
	all, err := Listeners(procNet(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		user    bool // by slirp
		forward config.Forward
		want    string
	}{
		{false, config.Forward{HostPort: 22}, "sshd (process 100, ssh.service) listens on 0.0.0.0:22"},
		{true, config.Forward{HostPort: 22}, "sshd (process 100, ssh.service) listens on 0.0.0.0:22"},
		{false, config.Forward{HostPort: 22, Protocol: config.UDP}, ""},
		{false, config.Forward{HostPort: 22, Address: "192.0.2.1"}, "sshd (process 100, ssh.service) listens on 0.0.0.0:22"},
		{false, config.Forward{HostPort: 22, Address: "2001:db8::1"}, ""},
		{false, config.Forward{HostPort: 631}, "cupsd (process 200) listens on 127.0.0.1:631"},
		{false, config.Forward{HostPort: 631, Address: "0.0.0.0"}, "cupsd (process 200) listens on 127.0.0.1:631"},
		{false, config.Forward{HostPort: 631, Address: "127.0.0.2"}, ""},
		{true, config.Forward{HostPort: 8080}, ""},
		{true, config.Forward{HostPort: 80}, "a process listens on [::]:80"},
		{false, config.Forward{HostPort: 80, Address: "127.0.0.1"}, "a process listens on [::]:80"},
		{false, config.Forward{HostPort: 81}, ""},
		{true, config.Forward{HostPort: 81, Address: "::1"}, "a process listens on [::1]:81"},
		{true, config.Forward{HostPort: 82}, ""},
		{false, config.Forward{HostPort: 82}, "a process listens on [2001:db8::1]:82"},
		{false, config.Forward{HostPort: 53, Protocol: config.UDP}, "a process listens on 127.0.0.53:53"},
		{false, config.Forward{HostPort: 53}, ""},
	} {
		if tt.forward.Protocol == "" {
			tt.forward.Protocol = config.TCP
		}
		m := &config.Machine{Name: "web", NICs: []config.NIC{{Name: "lan", User: tt.user, Forward: []config.Forward{{HostPort: 1, Protocol: config.TCP}, tt.forward}}}}
		got := TakenPorts(m, all, func(config.NIC) bool { return false })
		switch {
		case tt.want == "":
			if len(got) > 0 {
				t.Errorf("%s: got %v", tt.forward, got)
			}
		case len(got) != 1 || got[0].Key != "nic.lan.forward[1]" || !strings.HasSuffix(got[0].Text, tt.want):
			t.Errorf("%s: got %v, want %s", tt.forward, got, tt.want)
		}
	}
}

// passt listens on IPv6, too, [::1] among it.
func TestTakenPortsOfPasst(t *testing.T) {
	all, err := Listeners(procNet(t))
	if err != nil {
		t.Fatal(err)
	}
	for port, want := range map[int]string{80: "[::]:80", 81: "[::1]:81", 82: "[2001:db8::1]:82"} {
		m := &config.Machine{Name: "web", NICs: []config.NIC{{Name: "lan", User: true, Forward: []config.Forward{{HostPort: port, Protocol: config.TCP}}}}}
		got := TakenPorts(m, all, func(config.NIC) bool { return true })
		if len(got) != 1 || !strings.HasSuffix(got[0].Text, "listens on "+want) {
			t.Errorf("%d: got %v, want %s", port, got, want)
		}
	}
}

// Those of this host, with the test among them.
func TestListeners(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	all, err := Listeners("")
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range all {
		if found.Protocol == config.TCP && found.Address.String() == l.Addr().String() {
			if want := fmt.Sprintf("process %d", os.Getpid()); !strings.Contains(found.String(), want) {
				t.Errorf("got %s, want %s", found, want)
			}
			return
		}
	}
	t.Errorf("%s is not among %v", l.Addr(), all)
}

// Ports that need privileges are those that the kernel of the host says.
func TestLowPorts(t *testing.T) {
	m := &config.Machine{Name: "web", NICs: []config.NIC{
		{Name: "lan", User: true, Forward: []config.Forward{{HostPort: 80, GuestPort: 80, Protocol: "tcp"}, {HostPort: 1024, GuestPort: 80, Protocol: "tcp"}}},
		{Name: "net", Network: "default", Forward: []config.Forward{{HostPort: 80, GuestPort: 80, Protocol: "tcp"}}},
	}}
	root := t.TempDir()
	none := func(config.NIC) bool { return false }
	if found := LowPorts(m, root, func(n config.NIC) bool { return n.Name == "lan" }); len(found) != 0 {
		t.Errorf("got %v", found)
	}
	found := LowPorts(m, root, none)
	if len(found) != 1 || found[0].Key != "nic.lan.forward[0]" || !strings.Contains(found[0].Text, "from 1024 on") {
		t.Errorf("got %v", found)
	}
	file := root + "/proc/sys/net/ipv4/ip_unprivileged_port_start"
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("80\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if found := LowPorts(m, root, none); len(found) != 0 {
		t.Errorf("got %v", found)
	}
}

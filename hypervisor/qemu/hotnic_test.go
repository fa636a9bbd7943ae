package qemu_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/qemu"
)

func TestPlanNIC(t *testing.T) {
	for _, test := range []struct {
		definition string
		internet   bool
		want       string // part of the problem, "" for none
		queues     int
	}{
		{definition: "[nic.x]\nbridge = \"br0\"\nqueues = 3\n", queues: 2 * 3}, // with vhost-net
		{definition: "[nic.x]\nbridge = \"br0\"\nmodel = \"e1000e\"\n", queues: 1},
		{definition: "machine = \"pc\"\n[nic.x]\nbridge = \"br0\"\nmodel = \"rtl8139\"\n", queues: 1},
		{definition: "[nic.x]\nbridge = \"br0\"\nmodel = \"rtl8139\"\n", want: `nic.x.model: "rtl8139" is conventional PCI`},
		{definition: "machine = \"microvm\"\nboot.kernel = \"/x\"\n[nic.x]\nbridge = \"br0\"\n", want: "machine: \"microvm\" takes no devices while it runs"},
		{definition: "[nic.x]\nuser = true\n", want: "nic.x.user: the machine was started without any way out"},
		{definition: "[nic.x]\nuser = true\n", internet: true},
		{definition: "[nic.x]\nuser = true\nbackend = \"passt\"\n", internet: true, want: "nic.x.backend: passt is started with the machine"},
		{definition: "[nic.x]\nvde = \"/run/vde\"\n", queues: 2}, // with what keeps its port of the switch
		{definition: "[nic.x]\nvhost_user = \"/run/s\"\n", want: "nic.x.vhost_user: vm was started with memory that no other process can map"},
		{definition: "memory_options.shared = true\n[nic.x]\nvhost_user = \"/run/s\"\n"},
		{definition: "[nic.x]\nuser = true\nrate_in = \"1M\"\n", internet: true, want: "nic.x.rate_in: want a card on a bridge"},
	} {
		m := load(t, "vm", test.definition)
		started := *m
		started.NICs = nil
		plan, problems := qemu.QEMU{}.PlanNIC(hypervisor.HotNIC{Machine: m, NIC: m.NICs[0], Host: testHost(), Paths: config.SystemPaths(""), Started: &hypervisor.Plan{Internet: test.internet}, StartedAs: &started})
		text := fmt.Sprint(problems)
		if test.want == "" && problems != nil || !strings.Contains(text, test.want) {
			t.Errorf("%s: got %s, want %s", test.definition, text, test.want)
		}
		if problems == nil && len(plan.Descriptors) != test.queues {
			t.Errorf("%s: %d descriptors, want %d", test.definition, len(plan.Descriptors), test.queues)
		}
	}
}

// A card comes and goes on each board, and what is left of one that was cut off is
// no hindrance.
func TestHotNIC(t *testing.T) {
	for _, board := range []string{"q35", "pc"} {
		t.Run(board, func(t *testing.T) {
			t.Parallel()
			m := start(t, fmt.Sprintf("machine = %q\n[nic.first]\nuser = true\nbackend = \"slirp\"\n", board))
			control := m.control().(hypervisor.NICHotplug)
			other := load(m.t, "vm", m.definition+"\n[nic.x]\nuser = true\nbackend = \"slirp\"\nlink = \"down\"")
			hot := hypervisor.HotNIC{Machine: load(t, "vm", m.definition), NIC: other.NICs[1], Host: hypervisor.Probe(""), Paths: m.paths, Started: &hypervisor.Plan{Internet: true}}
			// As if what attached it had been killed.
			m.query("netdev_add", map[string]any{"type": "user", "id": "net-x"}, nil)
			if err := control.AttachNIC(t.Context(), hot, nil); err != nil {
				t.Fatal(err)
			}
			if err := control.AttachNIC(t.Context(), hot, nil); err != hypervisor.ErrPlugged {
				t.Errorf("twice: %v", err)
			}
			if got, err := control.PluggedNICs(t.Context()); err != nil || !slices.Equal(got, []string{"first", "x"}) {
				t.Errorf("plugged are %v, %v", got, err)
			}
			for _, up := range []bool{true, false} {
				if err := control.SetLink(t.Context(), "x", up); err != nil {
					t.Error(err)
				}
			}
			if err := control.SetLink(t.Context(), "none", true); err == nil {
				t.Error("the link of a card that is not there was set")
			}

			// A port of a VDE switch is a socket, and another that stays open for it.
			hot.NIC = load(m.t, "vm", m.definition+"\n[nic.y]\nvde = \"/run/vde\"\n").NICs[1]
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			keeper := make([]int, 2)
			if err := unix.Pipe2(keeper, unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			defer unix.Close(keeper[0])
			files := []*os.File{os.NewFile(uintptr(pair[0]), "port"), os.NewFile(uintptr(keeper[1]), "keeper")}
			err = errors.Join(control.AttachNIC(t.Context(), hot, files), unix.Close(pair[1]), files[0].Close(), files[1].Close())
			if err != nil {
				t.Fatal(err)
			}
			m.query("query-status", nil, nil) // after which it has closed what it closes
			if n, err := unix.Read(keeper[0], make([]byte, 1)); err != unix.EAGAIN {
				t.Errorf("what keeps the port is closed while the card is plugged in: read %d, %v", n, err)
			}
			// The guest has no driver yet that lets go of it: as if it had been cut off.
			if err := control.AttachNIC(t.Context(), hot, nil); err != hypervisor.ErrPlugged {
				t.Errorf("twice: %v", err)
			}
		})
	}
}

// A card with a vhost-user peer, where the machine is shown its socket, comes whole or
// not at all.
func TestHotPeer(t *testing.T) {
	m := start(t, "memory_options.shared = true\n")
	control := m.control().(hypervisor.NICHotplug)
	started := load(t, "vm", m.definition)
	n := load(t, "vm", m.definition+"\n[nic.x]\nvhost_user = \"/run/s\"\n").NICs[0]
	hot := hypervisor.HotNIC{Machine: started, NIC: n, Host: hypervisor.Probe(""), Paths: m.paths, Started: &hypervisor.Plan{}, StartedAs: started}
	plan, problems := qemu.QEMU{}.PlanNIC(hot)
	if len(problems) > 0 || len(plan.Files) != 1 || plan.Files[0].At != m.paths.ShownFile("vm", "nic.x") {
		t.Fatalf("got %+v, %v", plan, problems)
	}
	if err := control.AttachNIC(t.Context(), hot, nil); err == nil {
		t.Error("a card without its peer is there")
	}
	peer := newPeer(t, plan.Files[0].At)
	// As if what attached it had been killed.
	m.query("chardev-add", map[string]any{"id": "peer-x", "backend": map[string]any{"type": "null", "data": map[string]any{}}}, nil)
	if err := control.AttachNIC(t.Context(), hot, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := control.PluggedNICs(t.Context()); err != nil || !slices.Contains(got, "x") {
		t.Errorf("plugged are %v, %v", got, err)
	}
	select {
	case <-peer:
	case <-time.After(10 * time.Second):
		t.Error("the peer has not been asked for what it can do")
	}
	if err := control.AttachNIC(t.Context(), hot, nil); err != hypervisor.ErrPlugged {
		t.Errorf("twice: %v", err)
	}
}

// newPeer is a vhost-user back end that can do nothing beyond what each can. What it
// returns is closed when it has been asked for that.
func newPeer(t *testing.T, socket string) (asked chan struct{}) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	asked = make(chan struct{})
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		const isReply = 1<<2 | 1 // of version 1
		answers := map[uint32]uint64{
			1:  1<<32 | 1<<30, // VHOST_USER_GET_FEATURES: VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES
			11: 0,             // VHOST_USER_GET_VRING_BASE
			15: 0,             // VHOST_USER_GET_PROTOCOL_FEATURES
		}
		for begun := false; ; begun = true {
			var head struct{ Request, Flags, Size uint32 }
			if binary.Read(conn, binary.LittleEndian, &head) != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, conn, int64(head.Size)); err != nil {
				return
			}
			if answer, wanted := answers[head.Request]; wanted {
				binary.Write(conn, binary.LittleEndian, []uint32{head.Request, isReply, 8, uint32(answer), uint32(answer >> 32)})
			}
			if !begun {
				close(asked)
			}
		}
	}()
	return asked
}

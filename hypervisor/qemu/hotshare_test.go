package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
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

func TestPlanShare(t *testing.T) {
	const noMemory = "share.x: vm was started with memory that no other process can map"
	for _, test := range []struct{ started, share, want string }{
		{started: "memory_options.shared = true\n"},
		{started: "machine = \"pc\"\n[share.first]\npath = \"/srv\"\n"},
		{started: "[nic.x]\nvhost_user = \"/run/s\"\n"},
		{started: "cpus = 1\n", want: noMemory},
		{started: "[memory_options]\nprealloc = true\n", want: noMemory},
		{started: "machine = \"microvm\"\nboot.kernel = \"/x\"\nmemory_options.shared = true\n", want: `machine: "microvm" takes no devices while it runs`},
		{started: "memory_options.shared = true\n", share: "path = \"/proc\"\n", want: "share.x.path: want a directory that a guest may have"},
	} {
		started := load(t, "vm", test.started)
		with := load(t, "vm", "[share.x]\n"+test.share+strings.Repeat("path = \"/srv/x\"\n", 1-min(1, len(test.share))))
		plan, problems := qemu.QEMU{}.PlanShare(hypervisor.HotShare{Machine: started, Share: with.Shares[0], Host: testHost(), Paths: config.SystemPaths(""), Started: started})
		text := fmt.Sprint(problems)
		if test.want == "" && problems != nil || !strings.Contains(text, test.want) {
			t.Errorf("%q: got %s, want %s", test.started, text, test.want)
		}
		if problems == nil && (len(plan.Descriptors) != 1 || len(plan.Sidecars) != 1 || plan.Sidecars[0].Unit != config.ShareUnit("vm", "x")) {
			t.Errorf("%q: %+v, %+v", test.started, plan.Descriptors, plan.Sidecars)
		}
	}
}

// served starts what serves a share, and is a connection to it.
func served(t *testing.T, s hypervisor.Sidecar) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	argv := slices.Clone(s.Argv)
	for i := range argv {
		argv[i] = strings.NewReplacer(hypervisor.SocketArg, "3", hypervisor.SharedDir, s.Share).Replace(argv[i])
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{socket}, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// A share comes and goes on each board, and what is left of one that was cut off is no
// hindrance. There is no guest: a reset lets go of it.
func TestHotShare(t *testing.T) {
	if hypervisor.Probe("").Programs["virtiofsd"] == "" {
		t.Skip("wants a virtiofsd of this host")
	}
	for _, board := range []string{"q35", "pc"} {
		t.Run(board, func(t *testing.T) {
			t.Parallel()
			m := start(t, fmt.Sprintf("machine = %q\nmemory_options.shared = true\n", board))
			m.want(hypervisor.Started, "")
			started := load(t, "vm", m.definition)
			share := load(t, "vm", m.definition+fmt.Sprintf("\n[share.x]\npath = %q\ntag = \"a=b\"\n", t.TempDir())).Shares[0]
			hot := hypervisor.HotShare{Machine: started, Share: share, Host: hypervisor.Probe(""), Paths: m.paths, Started: started}
			plan, problems := qemu.QEMU{}.PlanShare(hot)
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			attach := func() error {
				t.Helper()
				connection := served(t, plan.Sidecars[0])
				defer connection.Close()
				return m.attachShare(hot, connection)
			}
			// As if what attached it had been killed.
			m.query("chardev-add", map[string]any{"id": "share-x", "backend": map[string]any{"type": "null", "data": map[string]any{}}}, nil)
			if err := attach(); err != nil {
				t.Fatal(err)
			}
			if err := attach(); !errors.Is(err, hypervisor.ErrPlugged) {
				t.Errorf("twice: %v", err)
			}
			err := m.shares(func(c hypervisor.ShareHotplug) error {
				got, err := c.PluggedShares(t.Context())
				if !slices.Equal(got, []string{"x"}) {
					t.Errorf("plugged are %v", got)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := m.detachShare(hot); !errors.Is(err, hypervisor.ErrNotReleased) {
				t.Fatalf("without a guest it was let go of: %v", err)
			}
			m.do(m.control().Reset)
			m.want(hypervisor.Rebooted, "")
			if err := m.detachShare(hot); err != nil {
				t.Fatalf("after a reset: %v", err)
			}
			m.noConnection("share-x")

			// A connection that nobody serves is refused, and nothing of it is left.
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(pair[1])
			broken := os.NewFile(uintptr(pair[0]), "broken")
			defer broken.Close()
			if err := m.attachShare(hot, broken); err == nil {
				t.Error("attached without a server")
			}
			m.noConnection("share-x")
			if err := attach(); err != nil {
				t.Errorf("once more: %v", err)
			}
		})
	}
}

// noConnection wants no character device of an id.
func (m *machine) noConnection(id string) {
	m.t.Helper()
	var chardevs []struct{ Label string }
	m.query("query-chardev", nil, &chardevs)
	for _, d := range chardevs {
		if d.Label == id {
			m.t.Errorf("%s is left", id)
		}
	}
}

// shares does something by the control by which shares are changed.
func (m *machine) shares(do func(hypervisor.ShareHotplug) error) error {
	m.t.Helper()
	c, done := m.hot()
	defer done()
	return do(c.(hypervisor.ShareHotplug))
}

func (m *machine) attachShare(s hypervisor.HotShare, connection *os.File) error {
	m.t.Helper()
	return m.shares(func(c hypervisor.ShareHotplug) error { return c.AttachShare(m.t.Context(), s, []*os.File{connection}) })
}

// detachShare waits no longer than it takes where no guest is asked.
func (m *machine) detachShare(s hypervisor.HotShare) error {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 2*time.Second)
	defer cancel()
	return m.shares(func(c hypervisor.ShareHotplug) error { return c.DetachShare(ctx, s) })
}

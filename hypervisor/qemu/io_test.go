package qemu_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/qemu"
)

// rawImage makes an image in dir.
func rawImage(t *testing.T, dir, name string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// flags are those with which QEMU has a file open, by /proc.
func (m *machine) flags(file string) int64 {
	m.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", m.cmd.Process.Pid)
	fds, err := filepath.Glob(proc + "fd/*")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err != nil || target != file {
			continue
		}
		info, err := os.ReadFile(proc + "fdinfo/" + filepath.Base(fd))
		if err != nil {
			m.t.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			if value, ok := strings.CutPrefix(line, "flags:"); ok {
				flags, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
				if err != nil {
					m.t.Fatal(err)
				}
				return flags
			}
		}
	}
	m.t.Fatalf("QEMU does not have %s open", file)
	return 0
}

// namedNode is a node of QEMU's block graph, as far as tests look at it.
type namedNode struct {
	Name  string `json:"node-name"`
	Cache struct {
		Direct  bool
		NoFlush bool `json:"no-flush"`
	}
	Image struct {
		Size int64 `json:"virtual-size"`
	}
}

func (m *machine) node(name string) namedNode {
	m.t.Helper()
	var nodes []namedNode
	m.query("query-named-block-nodes", map[string]bool{"flat": true}, &nodes)
	i := slices.IndexFunc(nodes, func(n namedNode) bool { return n.Name == name })
	if i < 0 {
		m.t.Fatalf("no node %s among %+v", name, nodes)
	}
	return nodes[i]
}

// What is chosen is how QEMU has the files open.
func TestDirectWhereTheFileSystemCan(t *testing.T) {
	can, cannot := t.TempDir(), t.TempDir()
	if err := unix.Mount("vmctl-test", cannot, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(cannot, unix.MNT_DETACH) })
	const size = 1 << 20
	files := map[string]string{}
	definition := ""
	add := func(name, dir, more string) {
		files[name] = rawImage(t, dir, name, size)
		definition += fmt.Sprintf("[disk.%s]\npath = %q\nformat = \"raw\"\n%s\n", name, files[name], more)
	}
	add("a", can, "")
	add("b", cannot, "")
	add("c", can, `cache = "unsafe"`)
	add("d", can, `cache = "writeback"`)
	add("e", can, `readonly = true`)
	add("f", can, `cache = "none"`+"\n"+`aio = "native"`)
	add("g", cannot, `ephemeral = true`)
	add("h", can, "bus = \"sata\"\nmedia = \"cdrom\"\niops = 1000")
	m := start(t, definition)
	m.want(hypervisor.Started, "")
	for name, want := range map[string]bool{"a": true, "b": false, "c": false, "d": false, "e": true, "f": true, "g": false, "h": true} {
		if got := m.flags(files[name])&unix.O_DIRECT != 0; got != want {
			t.Errorf("disk %s: direct: %v, want %v", name, got, want)
		}
		if got := m.node("disk-" + name).Cache.NoFlush; got != (name == "c") {
			t.Errorf("disk %s: flushes are ignored: %v", name, got)
		}
	}
	// What is written to an ephemeral disk goes to a file elsewhere.
	if !m.node("disk-g").Cache.Direct || m.node("base-g").Cache.Direct {
		t.Error("disk g: want its own file opened directly, and the one behind it not")
	}
}

// A filter for limits stands between a disk and its device: what is done to a
// disk while the machine runs has to work all the same.
func TestThrottle(t *testing.T) {
	image := rawImage(t, t.TempDir(), "b.raw", 1<<20)
	m := start(t, fmt.Sprintf(`
[disk.a]
size = "1M"
iops_read = 100
bandwidth = "5M"
[disk.b]
path = %q
bus = "scsi"
[disk.c]
size = "1M"
`, image))
	m.want(hypervisor.Started, "")
	control := m.control()
	c := control.(hypervisor.Throttler)
	limits := func(disk string, want hypervisor.Limits) {
		t.Helper()
		if got, err := c.Limits(t.Context(), disk); got != want || err != nil {
			t.Errorf("limits of %s: got %+v, %v, want %+v", disk, got, err, want)
		}
	}
	limits("a", hypervisor.Limits{IOPSRead: 100, Bandwidth: 5 << 20})
	for _, disk := range []string{"a", "b", "c"} {
		for _, l := range []hypervisor.Limits{
			{IOPS: 7, BandwidthRead: 1000, BandwidthWrite: 2000}, {IOPSRead: 5, IOPSWrite: 6, Bandwidth: 3000}, {}, {Bandwidth: 1e15},
		} {
			if err := c.SetLimits(t.Context(), disk, l); err != nil {
				t.Errorf("disk %s, %+v: %v", disk, l, err)
			}
			limits(disk, l)
		}
	}
	if err := c.SetLimits(t.Context(), "none", hypervisor.Limits{}); err == nil || err.Error() != "the machine has no disk none" {
		t.Errorf("of no disk: got %v", err)
	}
	if err := c.SetLimits(t.Context(), "a", hypervisor.Limits{IOPS: 1, IOPSRead: 1}); err == nil {
		t.Error("limits that exclude each other were taken")
	}

	traffic, err := control.(hypervisor.DiskMeter).DiskTraffic(t.Context())
	if err != nil || len(traffic) != 3 {
		t.Errorf("traffic of three disks: %v, %v", traffic, err)
	}

	// As the device sees it.
	m.query("block_resize", map[string]any{"node-name": "throttle-a", "size": 2 << 20}, nil)
	for _, node := range []string{"throttle-a", "disk-a"} {
		if got := m.node(node).Image.Size; got != 2<<20 {
			t.Errorf("%s has %d bytes after it was resized", node, got)
		}
	}
	if got := m.inserted("disk-a"); got != "throttle-a" {
		t.Errorf("the device reads %s", got)
	}
	m.job("snapshot-save")
	m.do(control.Pause)
	m.job("snapshot-load")
}

// inserted is the node that a device reads.
func (m *machine) inserted(device string) string {
	m.t.Helper()
	var blocks []struct {
		Qdev     string
		Inserted struct {
			Node string `json:"node-name"`
		}
	}
	m.query("query-block", nil, &blocks)
	for _, b := range blocks {
		if slices.Contains(strings.Split(b.Qdev, "/"), device) {
			return b.Inserted.Node
		}
	}
	return ""
}

// job takes or restores a snapshot of the machine that has the disks a and c.
func (m *machine) job(command string) {
	m.t.Helper()
	m.query(command, map[string]any{"job-id": command, "tag": "t", "vmstate": "disk-a", "devices": []string{"disk-a", "disk-c"}}, nil)
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var jobs []struct{ ID, Status, Error string }
		m.query("query-jobs", nil, &jobs)
		if len(jobs) == 1 && jobs[0].Status == "concluded" {
			if jobs[0].Error != "" {
				m.t.Errorf("%s: %s", command, jobs[0].Error)
			}
			m.query("job-dismiss", map[string]string{"id": command}, nil)
			return
		}
	}
	m.t.Errorf("%s never ends", command)
}

// What works for one engine of QEMU's works for all that were tried.
func TestEngines(t *testing.T) {
	image := rawImage(t, t.TempDir(), "a.raw", 1<<20)
	engines := disk.TryEngines(hypervisor.Probe("").Programs["qemu-system-x86_64"], false)
	for engine, works := range map[string]bool{"io_uring": engines.IOURing, "native": engines.Native, "threads": true} {
		if !works {
			t.Logf("%s does not work here", engine)
			continue
		}
		m := start(t, fmt.Sprintf("[disk.a]\npath = %q\ncache = \"none\"\naio = %q\n", image, engine))
		m.want(hypervisor.Started, "")
		m.do(m.control().Quit)
		m.want(hypervisor.ShutDown, "host")
		if <-m.exited; m.stderr.Len() > 0 {
			t.Errorf("%s: %s", engine, m.stderr)
		}
	}
}

// Nothing else is changed in a command line than what was chosen.
func TestWithIO(t *testing.T) {
	argv := []string{"qemu", "-blockdev", "driver=null-co,node-name=disk-a", "-blockdev", `{"driver":"null-co","node-name":"file-a"}`,
		"-append", `{"driver":"raw","node-name":"disk-a","read-only":false,"cache":{"direct":false,"no-flush":true}}`,
		"-blockdev", `{"driver":"raw","node-name":"disk-b","read-only":false,"cache":{"direct":false,"no-flush":true}}`,
		"-blockdev", `{"driver":"raw","node-name":"disk-a","read-only":false,"cache":{"direct":false,"no-flush":true}}`}
	want := slices.Clone(argv)
	want[len(want)-1] = `{"driver":"raw","node-name":"disk-a","read-only":false,"cache":{"direct":true,"no-flush":true}}`
	got := qemu.QEMU{}.WithIO(argv, []hypervisor.FileIO{{Nodes: []string{"file-a", "disk-a"}, Direct: true, AIO: "io_uring"}})
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

package qemu_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/qemu"
)

// machine is a planned machine that runs, by real QEMU.
type machine struct {
	t          *testing.T
	definition string
	paths      config.Paths
	cmd        *exec.Cmd
	stderr     *bytes.Buffer
	exited     chan error
	events     chan hypervisor.Event // closed when Watch returns
}

// start runs the definition as vmctl-unit does: descriptors by number, files
// made before.
func start(t *testing.T, definition string) *machine {
	t.Helper()
	return startFrom(t, definition, nil, hypervisor.StateFormat{}, nil)
}

// startFrom is start from a saved state, unless that is nil, by the command line that
// the state is for.
func startFrom(t *testing.T, definition string, state []byte, format hypervisor.StateFormat, stateArgv func([]string) []string) *machine {
	t.Helper()
	root := t.TempDir()
	paths := config.SystemPaths(root)
	definition = "accel = \"tcg\"\nmemory = \"64M\"\n" + definition
	m := load(t, "vm", definition)
	host := hypervisor.Probe("")
	delete(host.Programs, "passt") // which nothing here starts
	plan, problems := qemu.QEMU{}.Plan(m, host, paths)
	if problems != nil {
		t.Fatal(problems)
	}
	makeFiles(t, paths, plan)
	run := &machine{t: t, definition: definition, paths: paths, stderr: &bytes.Buffer{}, exited: make(chan error, 1), events: make(chan hypervisor.Event, 100)}
	argv := qemu.QEMU{}.WithIO(plan.Argv, chooseIO(t, plan))
	var incoming *os.File
	if state != nil {
		if stateArgv != nil {
			argv = stateArgv(argv)
		}
		argv = qemu.QEMU{}.WithState(argv, 3+len(plan.Descriptors), format)
		incoming = fed(t, state)
	}
	run.cmd = exec.Command(argv[0], argv[1:]...)
	run.cmd.Stderr = run.stderr
	var watched net.Conn
	for _, d := range plan.Descriptors {
		file, ours := descriptor(t, d)
		run.cmd.ExtraFiles = append(run.cmd.ExtraFiles, file)
		if d.Use == hypervisor.Events {
			watched = ours
		}
	}
	if incoming != nil {
		run.cmd.ExtraFiles = append(run.cmd.ExtraFiles, incoming)
	}
	if err := run.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range run.cmd.ExtraFiles {
		f.Close()
	}
	go func() { run.exited <- run.cmd.Wait() }()
	go func() {
		defer close(run.events)
		if err := (qemu.QEMU{}).Watch(context.Background(), watched, func(e hypervisor.Event) { run.events <- e }); err != nil {
			t.Errorf("watching: %v", err)
		}
	}()
	t.Cleanup(func() {
		run.cmd.Process.Kill()
		for range run.events {
		}
	})
	return run
}

// fed is a pipe from which content comes.
func fed(t *testing.T, content []byte) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer w.Close()
		w.Write(content) // QEMU may end before
	}()
	return r
}

// makeFiles makes what prepare would.
func makeFiles(t *testing.T, paths config.Paths, plan *hypervisor.Plan) {
	t.Helper()
	for _, dir := range []string{paths.RuntimeDir("vm"), paths.StateDir("vm")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write := func(path string, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range plan.New {
		if n.Copy != "" {
			content, err := os.ReadFile(n.Copy)
			if err != nil {
				t.Fatal(err)
			}
			write(n.Path, content)
			continue
		}
		args := []string{"create", "-q", "-f", n.Format}
		if n.Backing != "" {
			args = append(args, "-b", n.Backing, "-F", n.BackingFormat)
		}
		args = append(args, n.Path)
		if n.Size > 0 {
			args = append(args, fmt.Sprint(n.Size))
		}
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	}
	if plan.Seed {
		write(paths.Seed("vm"), make([]byte, 1<<20))
	}
	for _, c := range plan.Credentials {
		write(paths.Credential("vm", c.Name), hypervisor.CredentialText(c, []byte(c.Value)))
	}
}

// chooseIO chooses what vmctl-unit would.
func chooseIO(t *testing.T, plan *hypervisor.Plan) []hypervisor.FileIO {
	t.Helper()
	engines := disk.TryEngines(plan.Argv[0], false)
	var all []hypervisor.FileIO
	for _, f := range plan.Disks {
		chosen, err := hypervisor.ChooseIO(f, disk.TryDirect(f.Path, f.Format, f.Chain), engines)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, chosen)
	}
	return all
}

// descriptor opens what d describes: QEMU's file, and our end of a pair.
func descriptor(t *testing.T, d hypervisor.Descriptor) (*os.File, net.Conn) {
	t.Helper()
	if d.Use == hypervisor.Listen {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.Path})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		defer l.Close()
		file, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		return file, nil
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	end := os.NewFile(uintptr(pair[1]), "ours")
	defer end.Close()
	ours, err := net.FileConn(end)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	return os.NewFile(uintptr(pair[0]), "theirs"), ours
}

// want waits for the next event.
func (m *machine) want(kind hypervisor.EventKind, cause string) {
	m.t.Helper()
	select {
	case e, ok := <-m.events:
		if !ok || e.Kind != kind || e.Cause != cause {
			m.t.Fatalf("got event %+v, want %s by %q; QEMU says: %s", e, kind, cause, m.stderr)
		}
	case <-time.After(time.Minute):
		m.t.Fatalf("no event %s", kind)
	}
}

func (m *machine) control() hypervisor.Control {
	m.t.Helper()
	c, err := qemu.QEMU{}.Control(m.t.Context(), m.paths.ControlSocket("vm"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}

func (m *machine) status(c hypervisor.Control, want hypervisor.Status) {
	m.t.Helper()
	if got, err := c.Status(m.t.Context()); got != want || err != nil {
		m.t.Errorf("got status %q, %v, want %q", got, err, want)
	}
}

func (m *machine) do(what func(context.Context) error) {
	m.t.Helper()
	if err := what(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
}

func TestControlOfARunningMachine(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	c := m.control()
	m.status(c, hypervisor.StatusRunning)
	m.do(c.Pause)
	m.want(hypervisor.Paused, "")
	m.status(c, hypervisor.StatusPaused)
	m.do(c.Resume)
	m.want(hypervisor.Resumed, "")
	m.status(c, hypervisor.StatusRunning)
	m.do(c.PowerButton) // nobody there to react
	m.do(func(ctx context.Context) error {
		return c.(hypervisor.KeySender).SendKeys(ctx, 0, "ctrl", "alt", "delete")
	})
	if err := c.(hypervisor.KeySender).SendKeys(t.Context(), 0, "no such key"); err == nil {
		t.Error("an unknown key was accepted")
	}
	m.status(c, hypervisor.StatusRunning) // the connection is still good
	m.do(c.Reset)
	m.want(hypervisor.Rebooted, "")
	m.do(c.Quit)
	m.want(hypervisor.ShutDown, "host")
	if err := <-m.exited; err != nil {
		t.Errorf("QEMU: %v: %s", err, m.stderr)
	}
	if _, ok := <-m.events; ok {
		t.Error("an event after the last")
	}
	// QEMU removes the sockets that it listened at.
	if _, err := (qemu.QEMU{}).Control(t.Context(), m.paths.ControlSocket("vm")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

// A control socket serves one at a time: a second caller waits, not longer
// than its context, and the monitor's and the people's are not concerned.
func TestControlWhileAnotherHasIt(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	first := m.control()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := (qemu.QEMU{}).Control(ctx, m.paths.ControlSocket("vm")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	people, err := qemu.QEMU{}.Control(t.Context(), m.paths.QMPSocket("vm"))
	if err != nil {
		t.Fatal(err)
	}
	defer people.Close()
	first.Close()
	m.status(m.control(), hypervisor.StatusRunning)
}

func TestSignalEndsTheMachine(t *testing.T) {
	m := start(t, "")
	m.want(hypervisor.Started, "")
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.want(hypervisor.ShutDown, "signal")
	if err := <-m.exited; err != nil {
		t.Errorf("QEMU: %v: %s", err, m.stderr)
	}
}

// TestDevices starts machines with everything that can be planned, and looks
// for the drives among QEMU's.
func TestDevices(t *testing.T) {
	dir := t.TempDir()
	image := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 1440<<10); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%q", path)
	}
	disk := func(name, bus string, more ...string) string {
		return fmt.Sprintf("[disk.%s]\npath = %s\nformat = \"raw\"\nbus = %q\n%s\n", name, image(name+`, "x" %n $y ü=,,`), bus, strings.Join(more, "\n"))
	}
	cdrom, long := `media = "cdrom"`, strings.Repeat("x", 63)
	for name, test := range map[string]struct {
		definition string
		drives     []string // device ids
	}{
		"q35": {
			disk("a", "virtio", "queues = 3", "iops = 100") + disk("b", "scsi", `cache = "unsafe"`, "queues = 2", "bandwidth_read = \"1M\"") + disk("c", "sata", `cache = "writethrough"`) + disk("d", "nvme") +
				disk("e", "usb") + disk("f", "floppy") + disk("g", "sata", cdrom) + disk("h", "scsi", cdrom) + disk("i", "usb", cdrom) + disk(long, "virtio", "shareable = true") +
				disk("j", "virtio", "ephemeral = true") + disk("k", "virtio", "readonly = true") + disk("l", "floppy", "readonly = true") + disk("m", "usb", "readonly = true") +
				disk("n", "scsi", "readonly = true") + disk("o", "nvme", "readonly = true") + "[disk.p]\nsize = \"1M\"\n[disk.q]\nsize = \"1M\"\nformat = \"raw\"\ncache = \"none\"\nephemeral = true\n" + devices,
			[]string{"a", "b", "c", "d", "e", "f", "g", "h", "i", long, "j", "k", "l", "m", "n", "o", "p", "q"},
		},
		"q35 with four on IDE": {disk("a", "ide") + disk("b", "ide", cdrom) + disk("c", "ide") + disk("d", "ide"), []string{"a", "b", "c", "d"}},
		"q35 with ten on SATA": {
			func() (s string) {
				for i := range 10 {
					s += disk(fmt.Sprint("s", i), "sata")
				}
				return s
			}(),
			[]string{"s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9"},
		},
		"q35 with forty disks": {
			func() (s string) {
				for i := range 40 {
					s += disk(fmt.Sprint("v", i), "virtio")
				}
				return s
			}(),
			[]string{"v0", "v39"},
		},
		"uefi": {"[boot]\nfirmware = \"uefi\"\norder = [\"nic.n\", \"disk.a\"]\n" + disk("a", "virtio") + "[nic.n]\nuser = true\n", []string{"a"}},
		"pc": {
			"machine = \"pc\"\n" + disk("a", "ide") + disk("b", "ide", cdrom) + disk("c", "ide") + disk("d", "ide") + disk("e", "floppy") + disk("f", "virtio") +
				disk("g", "scsi") + disk("h", "nvme") + disk("i", "usb") + disk("j", "sata") + disk("k", "sata", cdrom) + strings.Replace(devices, "itco", "i6300esb", 1),
			[]string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"},
		},
		"microvm": {
			"machine = \"microvm\"\n[boot]\nkernel = " + image("kernel") + "\n" + disk("a", "virtio") + disk("b", "scsi") + "[nic.n]\nuser = true\n[cloud_init]\n",
			[]string{"a", "b"},
		},
		"memory": {"cpus = 4\n[cpu]\nsockets = 2\nfeatures = [\"+rdrand\", \"-svm\"]\n[memory_options]\nshared = true\nprealloc = true\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := start(t, test.definition)
			m.want(hypervisor.Started, "")
			m.drives(test.drives)
			m.do(m.control().Quit)
			m.want(hypervisor.ShutDown, "host")
			if err := <-m.exited; err != nil || m.stderr.Len() > 0 {
				t.Errorf("QEMU: %v: %s", err, m.stderr)
			}
		})
	}
}

// devices are all the others that a q35 can have.
const devices = `
[watchdog]
enabled = true
model = "itco"
[console]
device = "virtio"
[cloud_init]
hostname = "x"
[credentials]
"a.b" = "s3cret, x"
[nic.a]
user = true
mtu = 1400
[nic.b]
user = true
model = "e1000"
[nic.c]
user = true
model = "e1000e"
[nic.d]
user = true
model = "rtl8139"
`

// drives asks QEMU which drives it has: each of the names must be the id of a
// device that a medium is in.
func (m *machine) drives(names []string) {
	m.t.Helper()
	var blocks []struct {
		Qdev     string
		Inserted *struct {
			NodeName string `json:"node-name"`
		}
	}
	m.query("query-block", nil, &blocks)
	for _, name := range names {
		has := false
		for _, b := range blocks {
			// virtio-blk names itself by the path of its backend.
			has = has || b.Inserted != nil && slices.Contains(strings.Split(b.Qdev, "/"), "disk-"+name)
		}
		if !has {
			m.t.Errorf("no drive disk-%s among %+v", name, blocks)
		}
	}
}

// query runs a command at the people's QMP socket.
func (m *machine) query(command string, arguments, result any) {
	m.t.Helper()
	if err := m.try(command, arguments, result); err != nil {
		m.t.Fatal(err)
	}
}

// try is query where QEMU may refuse.
func (m *machine) try(command string, arguments, result any) error {
	m.t.Helper()
	conn, err := net.Dial("unix", m.paths.QMPSocket("vm"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if arguments == nil {
		arguments = struct{}{}
	}
	text, err := json.Marshal(arguments)
	if err != nil {
		m.t.Fatal(err)
	}
	dec := json.NewDecoder(conn)
	fmt.Fprintf(conn, `{"execute":"qmp_capabilities"}{"execute":%q,"arguments":%s,"id":1}`, command, text)
	for {
		var answer struct {
			ID     int
			Return json.RawMessage
			Error  *qemu.Error
		}
		if err := dec.Decode(&answer); err != nil {
			m.t.Fatal(err)
		}
		switch {
		case answer.ID != 1:
		case answer.Error != nil:
			answer.Error.Command = command
			return answer.Error
		case result == nil:
			return nil
		default:
			return json.Unmarshal(answer.Return, result)
		}
	}
}

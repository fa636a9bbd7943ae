package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// vmUser is the user that systemd would have made for the machine.
const vmUser = 61901

// build makes vmctl-unit as it is installed, where the machine's user can
// execute it.
func build(t testing.TB, dir string) string {
	t.Helper()
	program := filepath.Join(dir, "vmctl-unit")
	cmd := exec.Command("go", "build", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	return program
}

// host is a throw-away tree of files with one machine, and what systemd would
// do for it.
type host struct {
	testing.TB
	paths   config.Paths
	vm      string
	disk    string // that the guest boots from
	program string // vmctl-unit
	notify  *notifySocket
}

func newHost(t testing.TB) host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("machines run as another user: run this as root")
	}
	root, err := os.MkdirTemp("/tmp", "vmctl") // short: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	h := host{TB: t, paths: config.SystemPaths(root), vm: "web", disk: filepath.Join(root, "disks", "boot.img")}
	h.mkdir(root, 0o755)
	h.program = build(t, root)
	h.mkdir(filepath.Dir(h.disk), 0o700)
	writeGuest(t, h.disk)
	h.mkdir(h.paths.VMDirs[1], 0o755)
	h.mkdir(h.paths.State, 0o711)
	h.newRuntimeDir()
	for _, program := range []string{"qemu-system-x86_64", "qemu-img"} {
		path, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		h.write(filepath.Join(root, path), "", 0o755) // is looked for below root, and executed from /
	}
	h.write(filepath.Join(root, "etc/machine-id"), strings.Repeat("0123456789abcdef", 2)+"\n", 0o644)
	h.define(`accel = "tcg"
memory = "64M"

[vsock]
enabled = false

[disk.boot]
path = "` + h.disk + `"

[lifecycle]
stop_timeout = "30s"
`)
	h.notify = newNotifySocket(t, filepath.Join(root, "notify"))
	return h
}

// newRuntimeDir makes what RuntimeDirectory= makes.
func (h host) newRuntimeDir() {
	h.Helper()
	dir := h.paths.RuntimeDir(h.vm)
	h.mkdir(dir, 0o750)
	if err := os.Chown(dir, vmUser, vmUser); err != nil {
		h.Fatal(err)
	}
}

func (h host) mkdir(path string, mode os.FileMode) {
	h.Helper()
	if err := errors.Join(os.MkdirAll(path, 0o755), os.Chmod(path, mode)); err != nil {
		h.Fatal(err)
	}
}

func (h host) write(path, content string, mode os.FileMode) {
	h.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), mode)); err != nil {
		h.Fatal(err)
	}
}

func (h host) define(definition string) {
	h.Helper()
	h.write(filepath.Join(h.paths.VMDirs[1], h.vm+".toml"), definition, 0o644)
}

// command is vmctl-unit as systemd would start it.
func (h host) command(env []string, args ...string) *exec.Cmd {
	args = append([]string{"--root=" + h.paths.Root}, args...)
	cmd := exec.Command(h.program, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "NOTIFY_SOCKET=" + h.notify.path}, env...)
	return cmd
}

// do runs a command of root's and returns its output and exit status.
func (h host) do(env []string, args ...string) (string, int) {
	h.Helper()
	out, err := h.command(env, args...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		h.Fatal(err)
	}
	return string(out), 0
}

// must is do where the command has to succeed.
func (h host) must(env []string, args ...string) string {
	h.Helper()
	out, status := h.do(env, args...)
	if status != 0 {
		h.Fatalf("%v: exit status %d: %s", args, status, out)
	}
	return out
}

func (h host) readJSON(path string, v any) {
	h.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		h.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		h.Fatal(err)
	}
}

// exit is what cleanup has kept.
func (h host) exit() hypervisor.Exit {
	h.Helper()
	var e hypervisor.Exit
	h.readJSON(h.paths.Exit(h.vm), &e)
	return e
}

// main is the machine's main process.
type mainProcess struct {
	*exec.Cmd
	out *bytes.Buffer
}

// run starts what ExecStart= starts, as the machine's user.
func (h host) run() mainProcess {
	h.Helper()
	var record hypervisor.Record
	h.readJSON(h.paths.VMJSON(h.vm), &record)
	cmd := h.command(nil, append([]string{"run", h.vm, "--"}, record.Plan.Argv...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: vmUser, Gid: vmUser}, Unshareflags: syscall.CLONE_NEWNS}
	out := new(bytes.Buffer)
	// A file, not a pipe, which the monitor would hold open.
	log, err := os.Create(filepath.Join(h.paths.Root, "log"))
	if err != nil {
		h.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { cmd.Process.Kill() })
	h.inGroup(cmd.Process.Pid, config.Unit(h.vm))
	return mainProcess{cmd, out}
}

// inGroup has a process be in the control group of a unit, for what is told so.
func (h host) inGroup(pid int, unit string) {
	h.Helper()
	h.write(fmt.Sprintf("%s/proc/%d/cgroup", h.paths.Root, pid), "0::/vm.slice/"+unit+"\n", 0o644)
}

func (h host) log() string {
	b, err := os.ReadFile(filepath.Join(h.paths.Root, "log"))
	if err != nil {
		h.Fatal(err)
	}
	return string(b)
}

// notifySocket takes what services tell systemd.
type notifySocket struct {
	path string
	conn *net.UnixConn

	mu      sync.Mutex
	states  []string
	changed *sync.Cond
}

func newNotifySocket(t testing.TB, path string) *notifySocket {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	n := &notifySocket{path: path, conn: conn}
	n.changed = sync.NewCond(&n.mu)
	go func() {
		for p := make([]byte, 4096); ; {
			k, err := conn.Read(p)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.states = append(n.states, strings.Split(string(p[:k]), "\n")...)
			n.changed.Broadcast()
			n.mu.Unlock()
		}
	}()
	return n
}

// forget forgets what was told so far.
func (n *notifySocket) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.states = nil
}

// wait waits until something was told, once more than it has been awaited
// before, that contains text.
func (n *notifySocket) wait(t testing.TB, text string) {
	t.Helper()
	timer := time.AfterFunc(15*time.Second, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.states = append(n.states, "timeout")
		n.changed.Broadcast()
	})
	defer timer.Stop()
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		for i, s := range n.states {
			if strings.Contains(s, text) {
				n.states = n.states[i+1:]
				return
			}
			if s == "timeout" {
				t.Fatalf("%q was not told; told %q", text, n.states)
			}
		}
		n.changed.Wait()
	}
}

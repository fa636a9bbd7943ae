package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/hypervisor/console"
)

// start prepares and runs the machine and waits until systemd would call it
// active.
func (h host) start() mainProcess {
	h.Helper()
	h.must(nil, "prepare", h.vm)
	p := h.run()
	h.notify.wait(h.TB, "READY=1")
	return p
}

// end waits for the main process and returns what systemd would tell ExecStop=
// and ExecStopPost=.
func (p mainProcess) end() []string {
	p.Wait()
	s := p.ProcessState.Sys().(syscall.WaitStatus)
	if s.Signaled() {
		return []string{"SERVICE_RESULT=signal", "EXIT_CODE=killed", "EXIT_STATUS=" + strings.TrimPrefix(signalName(s.Signal()), "SIG")}
	}
	result := "success"
	if s.ExitStatus() != 0 {
		result = "exit-code"
	}
	return []string{"SERVICE_RESULT=" + result, "EXIT_CODE=exited", fmt.Sprintf("EXIT_STATUS=%d", s.ExitStatus())}
}

func signalName(s syscall.Signal) string {
	if s == syscall.SIGKILL {
		return "SIGKILL"
	}
	return s.String()
}

// cleanup does what systemd does after the end of the main process, and
// returns why the machine ended. more is what else it says of that.
func (h host) cleanup(p mainProcess, more ...string) hypervisor.Exit {
	h.Helper()
	env := append(p.end(), more...)
	h.must(nil, "stop", h.vm) // ExecStop= runs too; there is no $MAINPID any more
	h.must(env, "cleanup", h.vm)
	return h.exit()
}

func (h host) monitorPID() int {
	h.Helper()
	b, err := os.ReadFile(h.paths.MonitorPID(h.vm))
	if err != nil {
		h.Fatal(err)
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		h.Fatal(err)
	}
	return pid
}

// attach connects to the console, as root.
func (h host) attach(mode console.Mode) net.Conn {
	h.Helper()
	conn, err := console.Dial(h.Context(), h.paths.ConsoleSocket(h.vm), mode)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	return conn
}

// expect reads until text has come, and returns all that came.
func (h host) expect(conn net.Conn, text string) string {
	h.Helper()
	var got []byte
	for b := make([]byte, 1); !strings.Contains(string(got), text); got = append(got, b[0]) {
		if _, err := conn.Read(b); err != nil {
			h.Fatalf("%q did not come (%v), but %q; log: %s", text, err, got, h.log())
		}
	}
	return string(got)
}

func (h host) control(call func(context.Context, hypervisor.Control) error) {
	h.Helper()
	var record hypervisor.Record
	h.readJSON(h.paths.VMJSON(h.vm), &record)
	hv, _ := all.ByName(record.Machine.Hypervisor)
	c, err := hv.Control(h.Context(), h.paths.ControlSocket(h.vm))
	if err != nil {
		h.Fatal(err)
	}
	defer c.Close()
	if err := call(h.Context(), c); err != nil {
		h.Fatal(err)
	}
}

func TestMachine(t *testing.T) {
	h := newHost(t)
	p := h.start()
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.Process.Pid)); err != nil || !strings.HasPrefix(string(name), "qemu") {
		t.Errorf("the main process is %q, %v; want the hypervisor", name, err)
	}
	for _, socket := range []string{h.paths.ConsoleSocket(h.vm), h.paths.ControlSocket(h.vm), h.paths.QMPSocket(h.vm)} {
		if uid, mode := h.stat(socket); uid != vmUser || mode != 0o600 {
			t.Errorf("%s: owner %d, mode %o", socket, uid, mode)
		}
	}
	checkDescriptors(h, p.Process.Pid)

	// Two people at the console: the second sees what the first has done.
	first := h.attach(console.ModeAttach)
	h.expect(first, "guest is up")
	fmt.Fprint(first, "hello")
	h.expect(first, "hello")
	second := h.attach(console.ModeFollow)
	h.expect(second, "guest is up\r\nhello")

	// A reboot stays in the process, and the console with it.
	fmt.Fprint(first, "r")
	h.notify.wait(t, "STATUS=Running, guest rebooted at 2")
	h.expect(second, "guest is up")

	h.control(func(ctx context.Context, c hypervisor.Control) error { return c.Pause(ctx) })
	h.notify.wait(t, "STATUS=Paused")
	h.control(func(ctx context.Context, c hypervisor.Control) error { return c.Resume(ctx) })
	h.notify.wait(t, "STATUS=Running, guest rebooted at 2")

	fmt.Fprint(first, "p")
	if e := h.cleanup(p); e.Reason != hypervisor.GuestPowerOff || e.Status != "0" {
		t.Errorf("ended by %+v; log: %s", e, h.log())
	}
	if running(h.monitorPID()) {
		t.Error("the monitor is still there")
	}
}

// checkDescriptors looks for descriptors that the hypervisor should not have
// been given, and for those that the monitor should not keep.
func checkDescriptors(h host, pid int) {
	h.Helper()
	null, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/0", pid))
	if err != nil || null != "/dev/null" {
		h.Errorf("stdin is %q, %v", null, err)
	}
	var record hypervisor.Record
	h.readJSON(h.paths.VMJSON(h.vm), &record)
	for i := range record.Plan.Descriptors {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, firstDescriptor+i))
		if err != nil || !strings.HasPrefix(link, "socket:") {
			h.Errorf("descriptor %d is %q, %v; want a socket", firstDescriptor+i, link, err)
		}
	}
}

// running says whether a process runs; one that has ended and that nobody has
// waited for does not.
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(b), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

func TestStopByButton(t *testing.T) {
	h := newHost(t)
	p := h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	// The definition is of no concern any more.
	h.define("broken")
	out := h.must([]string{fmt.Sprint("MAINPID=", p.Process.Pid)}, "stop", h.vm)
	if !strings.Contains(out, "pressed the power button") {
		t.Errorf("got %s", out)
	}
	// TimeoutStopSec= may be another definition's by now: 30s, and the margin.
	h.notify.wait(t, "EXTEND_TIMEOUT_USEC=45000000")
	if e := h.cleanup(p); e.Reason != hypervisor.StopRequested || !strings.Contains(e.Detail, "power button") {
		t.Errorf("got %+v", e)
	}
}

// What a stop has to know it finds in records of other versions too.
func TestStartedWith(t *testing.T) {
	a := app{paths: config.SystemPaths(t.TempDir()), vm: "web", err: io.Discard}
	if err := os.MkdirAll(a.paths.StateDir("web"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		record  string
		timeout time.Duration
		agent   bool
	}{
		{`{"digest": 1, "plan": [], "machine": {"hypervisor": "qemu", "cpus": "two",
			"lifecycle": {"stop_timeout": 5000000000, "restart": 1}, "guest_agent": {"enabled": false}}}`, 5 * time.Second, false},
		{`{"machine": {"lifecycle": {"stop_timeout": 9223372036854775807}, "guest_agent": {"enabled": true}}}`, forever, true},
		{`{"machine": {"lifecycle": {"stop_timeout": "soon"}}}`, defaultStopTimeout, true},
		{`{"machine"`, defaultStopTimeout, true},
		{`{}`, defaultStopTimeout, true},
		{``, defaultStopTimeout, true},
	} {
		if err := os.WriteFile(a.paths.Record("web"), []byte(test.record), 0o600); err != nil {
			t.Fatal(err)
		}
		if w := a.startedWith(); w.hv.Name() != "qemu" || w.timeout != test.timeout || w.hasAgent != test.agent {
			t.Errorf("%s: got %s, %v, %v", test.record, w.hv.Name(), w.timeout, w.hasAgent)
		}
	}
}

func TestStopPaused(t *testing.T) {
	h := newHost(t)
	p := h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	h.control(func(ctx context.Context, c hypervisor.Control) error { return c.Pause(ctx) })
	h.notify.wait(t, "STATUS=Paused")
	h.must([]string{fmt.Sprint("MAINPID=", p.Process.Pid)}, "stop", h.vm)
	if e := h.cleanup(p); e.Reason != hypervisor.StopRequested {
		t.Errorf("got %+v", e)
	}
}

// A guest that ignores the button (it never comes so far as to listen) is ended
// in stop_timeout.
func TestStopInTime(t *testing.T) {
	h := newHost(t)
	h.define(strings.Replace(h.definition(), `"30s"`, `"6s"`, 1))
	if err := os.Truncate(h.disk, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(h.disk, 1<<20); err != nil {
		t.Fatal(err)
	}
	p := h.start()
	h.must([]string{fmt.Sprint("MAINPID=", p.Process.Pid)}, "stop", h.vm)
	if e := h.cleanup(p); e.Reason != hypervisor.StopTimedOut || !strings.Contains(e.Detail, "ended by quit") {
		t.Errorf("got %+v", e)
	}
}

// With the record gone and somebody hogging the control socket, the machine
// still ends.
func TestStopWithoutHelp(t *testing.T) {
	h := newHost(t)
	p := h.start()
	hog, err := net.Dial("unix", h.paths.ControlSocket(h.vm))
	if err != nil {
		t.Fatal(err)
	}
	defer hog.Close()
	if err := os.Remove(h.paths.Record(h.vm)); err != nil {
		t.Fatal(err)
	}
	out := h.must([]string{fmt.Sprint("MAINPID=", p.Process.Pid)}, "stop", h.vm)
	if !strings.Contains(out, "the guest cannot be asked to shut down") || !strings.Contains(out, "ended by SIGTERM") {
		t.Errorf("got %s", out)
	}
	if e := h.cleanup(p); e.Reason != hypervisor.StopTimedOut {
		t.Errorf("got %+v", e)
	}
}

func TestKilled(t *testing.T) {
	h := newHost(t)
	before := acls(t, h.disk)
	p := h.start()
	p.Process.Kill()
	if e := h.cleanup(p); e.Reason != hypervisor.Killed || e.Detail != "by SIGKILL" {
		t.Errorf("got %+v", e)
	}
	if after := acls(t, h.disk); after != before {
		t.Errorf("access was not taken back: %s", after)
	}
	// And again, as a restart does.
	if err := os.RemoveAll(h.paths.RuntimeDir(h.vm)); err != nil {
		t.Fatal(err)
	}
	h.newRuntimeDir()
	p = h.start()
	p.Process.Kill()
	h.cleanup(p)
}

func acls(t testing.TB, path string) string {
	t.Helper()
	out, err := exec.Command("getfacl", "--absolute-names", path, filepath.Dir(path)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// The machine runs on without its monitor, and its stop works.
func TestMonitorDies(t *testing.T) {
	h := newHost(t)
	p := h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	if err := syscall.Kill(h.monitorPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.must([]string{fmt.Sprint("MAINPID=", p.Process.Pid)}, "stop", h.vm)
	if e := h.cleanup(p); e.Reason != hypervisor.StopRequested {
		t.Errorf("got %+v", e)
	}
}

// machinectl poweroff and reboot signal the monitor; systemd's SIGTERM is not
// for it.
func TestMonitorSignals(t *testing.T) {
	h := newHost(t)
	p := h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, sigPowerOff} {
		if err := syscall.Kill(h.monitorPID(), s); err != nil {
			t.Fatal(err)
		}
	}
	if e := h.cleanup(p); e.Reason != hypervisor.GuestPowerOff {
		t.Errorf("got %+v", e)
	}
}

// What the hypervisor itself refuses ends the main process with its message.
func TestHypervisorFails(t *testing.T) {
	h := newHost(t)
	h.define(h.definition() + "\n[hypervisor_options]\nextra_args = [\"-nonsense\"]\n")
	h.must(nil, "prepare", h.vm)
	p := h.run()
	e := h.cleanup(p)
	if e.Reason != hypervisor.HypervisorError || e.Status != "1" || !strings.Contains(h.log(), "nonsense") {
		t.Errorf("got %+v; log: %s", e, h.log())
	}
}

func TestRunUnprepared(t *testing.T) {
	h := newHost(t)
	out, status := h.do(nil, "run", h.vm, "--", "/bin/true")
	if status != exitFailed || out != "the machine was not prepared\n" {
		t.Errorf("exit status %d: %q", status, out)
	}
}

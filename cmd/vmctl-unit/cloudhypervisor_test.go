package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/cloudhypervisor"
	"github.com/vmctl/vmctl/hypervisor/cloudhypervisor/standin"
	"github.com/vmctl/vmctl/hypervisor/console"
	"github.com/vmctl/vmctl/hypervisor/hypervisortest"
)

// TestMain is cloud-hypervisor where it is called that.
func TestMain(m *testing.M) {
	if standin.Called() {
		standin.Main()
		return
	}
	os.Exit(m.Run())
}

// newCloudHost is a host with a machine of cloud-hypervisor's, or of what stands
// in for it: a real one needs a KVM that works.
func newCloudHost(t *testing.T, more string) host {
	h := newHost(t)
	binary := filepath.Join(h.paths.Root, "cloud-hypervisor")
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	h.write(binary, string(program), 0o755)
	h.write(filepath.Join(h.paths.Root, "srv/kernel"), "", 0o644)
	h.define(fmt.Sprintf(`hypervisor = "cloud-hypervisor"
[boot]
kernel = %q
[disk.root]
path = %q
[hypervisor_options]
binary = %q
%s`, filepath.Join(h.paths.Root, "srv/kernel"), h.disk, binary, more))
	h.write(filepath.Join(h.paths.Root, hypervisor.KVM), "", 0o600) // prepare has it open
	return h
}

// say types a line on the guest's console and waits for what it answers.
func (h host) say(text, answer string) {
	h.Helper()
	conn := h.attach(console.ModeAttach)
	defer conn.Close()
	h.expect(conn, hypervisortest.GuestUp)
	if _, err := conn.Write([]byte(text + "\n")); err != nil {
		h.Fatal(err)
	}
	if answer != "" {
		h.expect(conn, answer)
	}
}

func (h host) cloudControl() hypervisor.Control {
	h.Helper()
	c, err := cloudhypervisor.CloudHypervisor{}.Control(h.Context(), h.paths.ControlSocket(h.vm))
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { c.Close() })
	return c
}

// TestCloudLife: a machine of cloud-hypervisor's has a console that outlives
// clients and reboots, is paused and reset, and ends by its power button.
func TestCloudLife(t *testing.T) {
	h := newCloudHost(t, "")
	p := h.start()
	h.say("hello", "hello")
	h.say("also", "also") // after the scrollback
	h.say("r", hypervisortest.GuestUp)
	h.notify.wait(t, "guest rebooted at")

	c := h.cloudControl()
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.notify.wait(t, "STATUS=Paused")
	if err := c.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.notify.wait(t, "guest rebooted at")
	h.ask("b", "b")
	h.must([]string{fmt.Sprintf("MAINPID=%d", p.Process.Pid)}, "stop", h.vm)
	if e := h.cleanup(p); e.Reason != hypervisor.StopRequested || !strings.Contains(e.Detail, "power button") {
		t.Errorf("got %+v", e)
	}
}

// TestCloudDeaf: a guest that does not hear its power button is ended all the same,
// also where it was paused.
func TestCloudDeaf(t *testing.T) {
	h := newCloudHost(t, "[lifecycle]\nstop_timeout = \"6s\"\n")
	p := h.start()
	h.say("hello", "hello")
	if err := h.cloudControl().Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.must([]string{fmt.Sprintf("MAINPID=%d", p.Process.Pid)}, "stop", h.vm)
	if e := h.cleanup(p); e.Reason != hypervisor.StopTimedOut || !strings.Contains(e.Detail, "ended by quit") {
		t.Errorf("got %+v", e)
	}
}

// TestCloudPanic: what becomes of a guest that panics is the definition's word.
func TestCloudPanic(t *testing.T) {
	for action, status := range map[string]int{"restart": exitFailed, "poweroff": 0} {
		h := newCloudHost(t, "[lifecycle]\non_panic = \""+action+"\"\n")
		p := h.start()
		h.say("n", "")
		env := p.end()
		if out, got := h.do(env, "cleanup", h.vm); got != status || h.exit().Reason != hypervisor.GuestPanic {
			t.Errorf("%s: exit status %d, %+v: %s", action, got, h.exit(), out)
		}
	}
	h := newCloudHost(t, "[lifecycle]\non_panic = \"pause\"\n")
	p := h.start()
	h.say("n", "")
	h.notify.wait(t, "STATUS=Guest panicked")
	for status := hypervisor.Status(""); status != hypervisor.StatusPaused; {
		var err error
		if status, err = h.cloudControl().Status(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// It hears no button, and is not waited for.
	out := h.must([]string{fmt.Sprintf("MAINPID=%d", p.Process.Pid)}, "stop", h.vm)
	if !strings.Contains(out, "the guest has panicked: ending the hypervisor") {
		t.Errorf("got %s", out)
	}
	if e := h.cleanup(p); e.Reason != hypervisor.GuestPanic {
		t.Errorf("got %+v", e)
	}
}

// TestCloudMonitorDies: the machine runs on without its monitor, and stops.
func TestCloudMonitorDies(t *testing.T) {
	h := newCloudHost(t, "")
	p := h.start()
	h.say("b", "b")
	if err := unix.Kill(h.monitorPID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status, err := h.cloudControl().Status(t.Context()); err != nil || status != hypervisor.StatusRunning {
		t.Errorf("got %q, %v", status, err)
	}
	h.must([]string{fmt.Sprintf("MAINPID=%d", p.Process.Pid)}, "stop", h.vm)
	if e := h.cleanup(p); e.Reason != hypervisor.StopRequested {
		t.Errorf("got %+v", e)
	}
}

// TestLocked: a disk that one hypervisor has locked the other does not write to, though
// nobody has seen so before, and what it says of that is understood.
func TestLocked(t *testing.T) {
	for name, test := range map[string]struct {
		host func(*testing.T) host
		lock unix.Flock_t
		says string
	}{
		"cloud-hypervisor after qemu": {func(t *testing.T) host { return newCloudHost(t, "") }, unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 1}, "Failed to get Write lock"},
		"qemu after cloud-hypervisor": {func(t *testing.T) host { return newHost(t) }, unix.Flock_t{Type: unix.F_WRLCK, Len: 1 << 20}, "Failed to lock byte 100"},
	} {
		t.Run(name, func(t *testing.T) {
			h := test.host(t)
			h.must(nil, "prepare", h.vm)
			f, err := os.OpenFile(h.disk, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &test.lock); err != nil {
				t.Fatal(err)
			}
			if e := h.cleanup(h.run()); e.Reason != hypervisor.HypervisorError || e.Status != "1" ||
				!strings.Contains(h.log(), test.says) || !isLocked(strings.Split(h.log(), "\n")) {
				t.Errorf("got %+v: %s", e, h.log())
			}
		})
	}
}

// TestCloudOld: what a version cannot do is said before it is executed.
func TestCloudOld(t *testing.T) {
	h := newCloudHost(t, "")
	h.must(nil, "prepare", h.vm)
	h.write(filepath.Join(h.paths.Root, "cloud-hypervisor"), "#!/bin/sh\necho cloud-hypervisor v40.0\n", 0o755)
	p := h.run()
	p.Wait()
	const want = "disk.root: cloud-hypervisor v40.0 does not lock the disks that it writes to, so that two machines could destroy one: want v46.0 or newer"
	if status := p.ProcessState.Sys().(syscall.WaitStatus).ExitStatus(); status != exitConfig || !strings.Contains(h.log(), want) {
		t.Errorf("exit status %d: %s", status, h.log())
	}
}

// TestHasFailed: an exit status of 0 is no success of itself.
func TestHasFailed(t *testing.T) {
	for _, test := range []struct {
		events []hypervisor.Event
		reason hypervisor.Reason
		failed bool
	}{
		{[]hypervisor.Event{{Kind: hypervisor.Started}, {Kind: hypervisor.ShutDown}}, hypervisor.GuestPowerOff, false},
		{[]hypervisor.Event{{Kind: hypervisor.Started}, {Kind: hypervisor.ShutDown}, {Kind: hypervisor.ShutDown, Cause: "guest"}}, hypervisor.GuestPowerOff, false},
		{[]hypervisor.Event{{Kind: hypervisor.Started}, {Kind: hypervisor.ShutDown}, {Kind: hypervisor.ShutDown, Cause: "error", Detail: "VCPU generated error"}}, hypervisor.HypervisorError, true},
		{[]hypervisor.Event{{Kind: hypervisor.Started}, {Kind: hypervisor.ShutDown}, {Kind: hypervisor.ShutDown, Cause: "signal"}}, hypervisor.Killed, false},
	} {
		e := decide(facts{Result: "success", Code: "exited", Status: "0", Events: test.events})
		if failed := hasFailed(e, config.Lifecycle{OnPanic: "restart"}); e.Reason != test.reason || failed != test.failed {
			t.Errorf("%v: got %+v, failed %v", test.events, e, failed)
		}
	}
}

// A host without KVM runs none of its machines, whatever accel says.
func TestCloudWithoutKVM(t *testing.T) {
	for accel, key := range map[string]string{"auto": ":1: hypervisor: ", "kvm": ":2: accel: "} {
		h := newCloudHost(t, "")
		if err := os.Remove(filepath.Join(h.paths.Root, hypervisor.KVM)); err != nil {
			t.Fatal(err)
		}
		h.define(strings.Replace(h.definition(), "\n", fmt.Sprintf("\naccel = %q\n", accel), 1))
		out := h.must(nil, "prepare", h.vm)
		for _, want := range []string{key, "want KVM, without which cloud-hypervisor does not run this machine; ", hypervisor.KVM + ": does not exist on this host"} {
			if !strings.Contains(out, want) {
				t.Errorf("accel %q: got %s, want %q in it", accel, out, want)
			}
		}
	}
}

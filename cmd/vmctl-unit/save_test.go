package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/console"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/hypervisor/saved"
)

// inside is what the commands are made of.
func (h host) inside() app {
	return app{paths: h.paths, vm: h.vm, err: io.Discard, notify: func(string) {}}
}

// save has the machine saved, and ends it as systemd does then.
func (h host) save(p mainProcess) {
	h.Helper()
	if err := h.inside().saveInStop(h.Context()); err != nil {
		h.Fatal(err)
	}
	out := h.must([]string{fmt.Sprint("MAINPID=", p.Process.Pid)}, "stop", h.vm)
	if !strings.Contains(out, "it is saved: ending the hypervisor") {
		h.Errorf("got %s", out)
	}
	if e := h.cleanup(p); e.Reason != hypervisor.Saved || e.Result != "success" {
		h.Errorf("got %+v", e)
	}
}

// load starts the machine from its saved state.
func (h host) load() mainProcess {
	h.Helper()
	h.anotherRun()
	p := h.start()
	if out, status := h.do(nil, "register", h.vm); status != 0 {
		h.Fatalf("exit status %d: %s; %s", status, out, h.log())
	}
	return p
}

// anotherRun is the runtime directory of another run of the unit.
func (h host) anotherRun() {
	h.Helper()
	if err := os.RemoveAll(h.paths.RuntimeDir(h.vm)); err != nil {
		h.Fatal(err)
	}
	h.newRuntimeDir()
	h.notify.forget()
}

// nothingSaved checks that nothing is left of a saved state.
func (h host) nothingSaved() {
	h.Helper()
	entries, err := os.ReadDir(h.paths.StateDir(h.vm))
	if err != nil {
		h.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), "saved") || strings.Contains(e.Name(), "operation") {
			h.Errorf("%s is left", e.Name())
		}
	}
}

// runs checks that the guest does.
func (h host) runs(text string) {
	h.Helper()
	c := h.attach(console.ModeAttach)
	fmt.Fprint(c, text)
	h.expect(c, text)
	h.control(func(ctx context.Context, c hypervisor.Control) error {
		if s, err := c.Status(ctx); err != nil || s != hypervisor.StatusRunning {
			h.Errorf("the machine is %s, %v", s, err)
		}
		return nil
	})
}

func TestSaveAndLoad(t *testing.T) {
	h := newHost(t)
	b, err := os.ReadFile(filepath.Join(h.paths.VMDirs[1], h.vm+".toml"))
	if err != nil {
		t.Fatal(err)
	}
	h.define(string(b) + "[disk.scratch]\nsize = \"1M\"\nephemeral = true\n[cloud_init]\nhostname = \"x\"\n")
	p := h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	h.save(p)
	if _, err := os.Stat(h.paths.Disk(h.vm, "scratch", "qcow2")); err != nil {
		t.Errorf("a disk that the guest has open is gone: %v", err)
	}

	p = h.load()
	h.runs("hello")
	h.nothingSaved()
	if strings.Contains(h.expect(h.attach(console.ModeFollow), "hello"), "guest is up") {
		t.Error("the guest has booted again")
	}
	checkDescriptors(h, p.Process.Pid)

	// A second time, paused.
	h.control(func(ctx context.Context, c hypervisor.Control) error { return c.Pause(ctx) })
	h.save(p)
	p = h.load()
	h.control(func(ctx context.Context, c hypervisor.Control) error {
		if s, err := c.Status(ctx); err != nil || s != hypervisor.StatusPaused {
			t.Errorf("the machine is %s, %v", s, err)
		}
		return c.Resume(ctx)
	})
	h.runs("again")
	h.nothingSaved()

	fmt.Fprint(h.attach(console.ModeAttach), "p")
	if e := h.cleanup(p); e.Reason != hypervisor.GuestPowerOff {
		t.Errorf("got %+v", e)
	}
	if _, err := os.Stat(h.paths.Disk(h.vm, "scratch", "qcow2")); err == nil {
		t.Error("an ephemeral disk is left")
	}

	// From nothing, by what it ran with then: its definition is broken by now.
	last, err := readRecord(h.paths, h.vm)
	if err != nil {
		t.Fatal(err)
	}
	h.define("broken")
	h.anotherRun()
	h.must(nil, "prepare", h.vm, "--digest", last.Digest)
	p = h.run()
	h.notify.wait(t, "READY=1")
	h.expect(h.attach(console.ModeFollow), "guest is up")
	fmt.Fprint(h.attach(console.ModeAttach), "p")
	if e := h.cleanup(p); e.Reason != hypervisor.GuestPowerOff {
		t.Errorf("got %+v", e)
	}
}

// Without a service manager that could end the machine for good, it runs on.
func TestSaveTakenBack(t *testing.T) {
	h := newHost(t)
	h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	out, status := h.do([]string{"DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nowhere"}, "operate", h.vm, operationSave, "null")
	if status != exitFailed || !strings.Contains(out, "error") {
		t.Errorf("exit status %d: %s", status, out)
	}
	h.runs("hello")
	h.must(nil, "mend", h.vm)
	h.nothingSaved()
}

// mend brings to an end what was cut off at any point.
func TestSaveMended(t *testing.T) {
	h := newHost(t)
	p := h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	a := h.inside()

	// Before the record: the guest goes on.
	if _, err := operation.Begin(h.paths, h.vm, operationSave, saveNote{}); err != nil {
		t.Fatal(err)
	}
	err := a.onJobSocket(t.Context(), func(c hypervisor.Control, ctx context.Context) error {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer w.Close()
		go saved.WriteState(h.paths, h.vm, r)
		return c.(hypervisor.StateSaver).SaveState(ctx, w, nil, nil, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	h.must(nil, "mend", h.vm)
	h.nothingSaved()
	h.runs("hello")

	// With the record, and the guest running by somebody else's doing.
	if _, err := a.saveState(t.Context(), func(operation.Progress) {}, a.warn); err != nil {
		t.Fatal(err)
	}
	h.control(func(ctx context.Context, c hypervisor.Control) error { return c.Resume(ctx) })
	h.must(nil, "mend", h.vm)
	h.nothingSaved()
	h.runs("hello")

	// The host dies with the record there: it is saved.
	if _, err := a.saveState(t.Context(), func(operation.Progress) {}, a.warn); err != nil {
		t.Fatal(err)
	}
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if e := h.cleanup(p); e.Reason != hypervisor.Saved {
		t.Errorf("got %+v", e)
	}
	h.load()
	h.runs("hello")
	h.nothingSaved()
}

// What is damaged is noticed before the guest runs, is told once by a start, and
// stays until it is discarded.
func TestLoadOfDamagedState(t *testing.T) {
	h := newHost(t)
	p := h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	h.save(p)
	whole, err := os.ReadFile(h.paths.SavedState(h.vm))
	if err != nil {
		t.Fatal(err)
	}
	// What cannot be decompressed keeps the hypervisor from loading; a wrong sum at
	// the end does not, and is waited for. 0xff begins no block of a zstd frame.
	garbage, wrongSum := bytes.Clone(whole), bytes.Clone(whole)
	for i := len(whole) / 2; i < len(whole); i++ {
		garbage[i] = 0xff
	}
	wrongSum[len(whole)-2] ^= 0xff
	for _, loads := range []bool{false, true} {
		damaged := garbage
		if loads {
			damaged = wrongSum
		}
		h.write(h.paths.SavedState(h.vm), string(damaged), 0o600)
		h.anotherRun()
		h.must(nil, "prepare", h.vm)
		p = h.run()
		var result []string
		if loads {
			h.notify.wait(t, "READY=1")
			out, status := h.do(nil, "register", h.vm)
			if status != exitFailed {
				t.Fatalf("exit status %d: %s", status, out)
			}
			p.Process.Signal(syscall.SIGTERM) // as systemd does then
			result = []string{"SERVICE_RESULT=exit-code"}
		}
		if e := h.cleanup(p, result...); e.Reason != hypervisor.HypervisorError || !strings.Contains(e.Detail, "the saved state was not loaded: the saved state is damaged") {
			t.Errorf("got %+v", e)
		}
		h.refused("could not be loaded: the saved state is damaged", "vmctl reset web discards")
	}
	h.write(h.paths.SavedState(h.vm), string(whole), 0o600)
	h.load()
	h.runs("hello")
	h.nothingSaved()
}

// refused checks that a start is, with what for a reason, and leaves what is
// saved.
func (h host) refused(what ...string) {
	h.Helper()
	h.anotherRun()
	h.must(nil, "prepare", h.vm)
	out, status := h.do(nil, "run", h.vm, "--", "/nowhere")
	for _, part := range what {
		if status != exitConfig || !strings.Contains(out, part) {
			h.Errorf("exit status %d, no %q in %s", status, part, out)
		}
	}
	h.must([]string{"SERVICE_RESULT=exit-code", "EXIT_CODE=exited", fmt.Sprint("EXIT_STATUS=", exitConfig)}, "cleanup", h.vm)
	if !saved.Exists(h.paths, h.vm) {
		h.Error("nothing is saved any more")
	}
}

// What does not belong together is not loaded.
func TestLoadRefused(t *testing.T) {
	h := newHost(t)
	p := h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	h.save(p)
	file := filepath.Join(h.paths.VMDirs[1], h.vm+".toml")
	definition, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	h.define("cpus = 2\n" + string(definition))
	h.refused("its definition has changed since (cpus, cpu.cores): restore that, or vmctl reset web discards the saved state")
	h.define(string(definition))

	was, err := os.Stat(h.disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(h.disk, time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	h.refused("its memory does not fit its disks any more: " + h.disk + " was written to at ")
	if err := os.Chtimes(h.disk, was.ModTime(), was.ModTime()); err != nil {
		t.Fatal(err)
	}

	h.anotherRun()
	h.must(nil, "prepare", h.vm)
	if out, status := h.do(nil, "operate", h.vm, operationDiscard, "null"); status != exitFailed || !strings.Contains(out, "is being loaded") {
		t.Errorf("discarded while it may be loaded: %s", out)
	}
	if err := os.RemoveAll(h.paths.RuntimeDir(h.vm)); err != nil {
		t.Fatal(err)
	}
	h.must(nil, "operate", h.vm, operationDiscard, "null")
	h.nothingSaved()
	h.anotherRun()
	h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
}

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/console"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/hypervisor/saved"
)

// ask types a line on the guest's console, of a guest that has not booted since
// somebody was last there.
func (h host) ask(text, answer string) {
	h.Helper()
	conn := h.attach(console.ModeAttach)
	defer conn.Close()
	if _, err := conn.Write([]byte(text + "\n")); err != nil {
		h.Fatal(err)
	}
	h.expect(conn, answer)
}

// scratch are the files in the directory where the hypervisor writes its state.
func (h host) scratch() (names []string) {
	h.Helper()
	entries, err := os.ReadDir(h.paths.Scratch(h.vm))
	if err != nil && !os.IsNotExist(err) {
		h.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestCloudSave: what a guest of cloud-hypervisor's has in its memory is there again
// after it was put away.
func TestCloudSave(t *testing.T) {
	h := newCloudHost(t, "")
	p := h.start()
	h.ask("kT", "T")
	h.save(p)
	if _, err := os.Stat(h.paths.Scratch(h.vm)); !os.IsNotExist(err) {
		t.Errorf("the directory of the state is left: %v", err)
	}
	s, err := saved.Read(h.paths, h.vm)
	if err != nil || s.Format != (hypervisor.StateFormat{MachineType: "cloud-hypervisor", Version: "v53.0"}) {
		t.Fatalf("got %+v, %v", s, err)
	}
	p = h.load()
	h.ask("<w>", "<T>")
	h.nothingSaved()
	if left := h.scratch(); left != nil {
		t.Errorf("%q is left", left)
	}

	// A second time, paused.
	h.ask("kM", "M")
	if err := h.cloudControl().Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.save(p)
	h.load()
	c := h.cloudControl()
	if is, err := c.Status(t.Context()); err != nil || is != hypervisor.StatusPaused {
		t.Errorf("the machine is %s, %v", is, err)
	}
	if err := c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.ask("<w>", "<M>")
	h.nothingSaved()
}

// TestCloudSaveMended: a saving that is cut off leaves the guest going on, or the
// machine saved, whatever lies in the directory of the state.
func TestCloudSaveMended(t *testing.T) {
	h := newCloudHost(t, "")
	p := h.start()
	h.ask("kT", "T")
	a := h.inside()
	if _, err := operation.Begin(h.paths, h.vm, operationSave, saveNote{}); err != nil {
		t.Fatal(err)
	}
	c := h.cloudControl()
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.(hypervisor.Commander).Native(t.Context(), `vm.snapshot {"destination_url": "file://`+h.paths.Scratch(h.vm)+`"}`); err != nil {
		t.Fatal(err)
	}
	h.must(nil, "mend", h.vm)
	if left := h.scratch(); left != nil {
		t.Errorf("%q is left", left)
	}
	h.nothingSaved()
	h.ask("<w>", "<T>")

	// What a hypervisor that was taken over puts there is not read, nor removed
	// elsewhere.
	secret := filepath.Join(h.paths.Root, "secret")
	h.write(secret, "secret", 0o600)
	if err := os.Symlink(secret, filepath.Join(h.paths.Scratch(h.vm), "config.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.saveState(t.Context(), func(operation.Progress) {}, a.warn); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(secret); err != nil {
		t.Error(err)
	}
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if e := h.cleanup(p); e.Reason != hypervisor.Saved {
		t.Errorf("got %+v", e)
	}
	h.load()
	h.ask("<w>", "<T>")
}

// TestCloudUnsavable: what was plugged in cannot be put away, and nothing happens.
func TestCloudUnsavable(t *testing.T) {
	h := newCloudHost(t, "")
	h.start()
	c := h.cloudControl()
	if _, err := c.(hypervisor.Commander).Native(t.Context(), `vm.add-net {"id": "nic-lan"}`); err != nil {
		t.Fatal(err)
	}
	out, status := h.do(nil, "operate", h.vm, operationSave, "null")
	if status != exitFailed || !strings.Contains(out, "the device nic-lan was plugged in while it ran: take it out first") {
		t.Errorf("exit status %d: %s", status, out)
	}
	if is, err := c.Status(t.Context()); err != nil || is != hypervisor.StatusRunning {
		t.Errorf("the machine is %s, %v", is, err)
	}
}

// TestCloudLoadRefused: another program's state is not loaded, and stays.
func TestCloudLoadRefused(t *testing.T) {
	h := newCloudHost(t, "")
	definition := h.definition()
	p := h.start()
	h.ask("kT", "T")
	h.save(p)

	binary := filepath.Join(h.paths.Root, "cloud-hypervisor")
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	h.write(binary, "#!/bin/sh\necho cloud-hypervisor v54.0\n", 0o755)
	h.refused("the state was saved by cloud-hypervisor v53.0, and " + binary + " is v54.0, which may not understand it")
	h.write(binary, string(program), 0o755)

	h.define("accel = \"tcg\"\n[disk.root]\npath = \"" + h.disk + "\"\n")
	h.refused("by cloud-hypervisor, whose saved states qemu does not understand: hypervisor = \"cloud-hypervisor\" goes on, or vmctl reset web discards the saved state")
	h.define(definition)

	// One that is damaged is told once.
	whole, err := os.ReadFile(h.paths.SavedState(h.vm))
	if err != nil {
		t.Fatal(err)
	}
	damaged := append([]byte(nil), whole...)
	damaged[len(damaged)-2] ^= 0xff
	h.write(h.paths.SavedState(h.vm), string(damaged), 0o600)
	h.anotherRun()
	h.must(nil, "prepare", h.vm)
	p = h.run()
	if e := h.cleanup(p); e.Reason != hypervisor.HypervisorError || !strings.Contains(e.Detail, "the saved state was not loaded: the saved state is damaged") {
		t.Errorf("got %+v", e)
	}
	h.refused("could not be loaded: the saved state is damaged")
	h.write(h.paths.SavedState(h.vm), string(whole), 0o600)
	h.load()
	h.ask("<w>", "<T>")
}

// TestCloudSaveFails: cloud-hypervisor's own errors end a saving, and the guest
// goes on.
func TestCloudSaveFails(t *testing.T) {
	h := newCloudHost(t, "")
	h.start()
	h.ask("kT", "T")
	if err := os.RemoveAll(h.paths.Scratch(h.vm)); err != nil {
		t.Fatal(err)
	}
	h.mkdir(h.paths.Scratch(h.vm), 0o700) // root's
	a := h.inside()
	_, err := a.saveState(context.Background(), func(operation.Progress) {}, a.warn)
	if err == nil || !strings.Contains(err.Error(), "vm.snapshot") {
		t.Errorf("got %v", err)
	}
	h.nothingSaved()
	h.ask("<w>", "<T>")
}

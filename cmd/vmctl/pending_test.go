package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/units/bus"
)

// definitions is a host of its own with definitions, by name.
func definitions(t *testing.T, texts map[string]string) *app {
	t.Helper()
	root := t.TempDir()
	qemu := filepath.Join(root, "usr/bin/qemu-system-x86_64")
	if err := errors.Join(os.MkdirAll(filepath.Dir(qemu), 0o755), os.WriteFile(qemu, []byte("#!/bin/sh\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	a := &app{ui: &ui{out: new(bytes.Buffer), err: new(bytes.Buffer), format: textFormat}, paths: config.SystemPaths(root), root: root}
	for name, text := range texts {
		define(t, a, name, text)
	}
	return a
}

func define(t *testing.T, a *app, name, text string) config.VM {
	t.Helper()
	file := filepath.Join(a.paths.VMDirs[1], name+".toml")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	vm, err := config.LoadVM(a.paths, name)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// What waits for a restart is what the definition says otherwise than what runs,
// whoever has changed which of the two, and nothing once they are the same again.
func TestPending(t *testing.T) {
	const base = "boot.kernel = \"/k\"\n[nic.lan]\nbridge = \"br0\"\n"
	a := definitions(t, nil)
	host := a.probe()
	vm := define(t, a, "web", base)
	p := a.plan(vm, host)
	if len(p.Problems) > 0 {
		t.Fatal(p.Problems)
	}
	l := look{vm: vm, unit: bus.UnitStatus{Active: "active"}, record: &hypervisor.Record{Digest: p.Digest, Machine: vm.Machine}}
	expect := func(what string, outdated bool, keys ...string) {
		t.Helper()
		d := a.differing(l, host)
		var got []string
		for _, k := range d.Differences {
			got = append(got, k.Key)
		}
		if a.outdated(l, host) != outdated || d.PendingChanges != (len(keys) > 0) || !slices.Equal(got, keys) {
			t.Errorf("%s: outdated %v, pending %v in %v; want %v, %v", what, a.outdated(l, host), d.PendingChanges, got, outdated, keys)
		}
	}
	set := func(rate config.Size, digest string) {
		n, _ := l.machine().NIC("lan")
		n.RateIn = rate
		overridden := ""
		if defined, _ := l.vm.Machine.NIC("lan"); digest == "" {
			overridden = defined.Settings()
		}
		l.changes.SetNIC(n, l.record.Machine, overridden)
		l.changes.Digest = digest
	}
	expect("as started", false)
	set(1<<20, "")
	expect("a limit set by hand", false, "nic.lan.rate_in")
	set(0, "")
	expect("and set back", false)

	l.vm = define(t, a, "web", base+"rate_in = \"2M\"\n")
	expect("defined otherwise", true, "nic.lan.rate_in")
	set(2<<20, "")
	expect("set by hand to what is defined", false)
	set(2<<20, a.plan(l.vm, host).Digest)
	expect("reloaded", false)
	set(3<<20, "")
	expect("another by hand", false, "nic.lan.rate_in")
	set(2<<20, "")
	expect("and set back to what is defined", false)
	l.vm = define(t, a, "web", "cpus = 2\n"+base+"rate_in = \"2M\"\n")
	expect("another key", true, "cpus", "cpu.cores")

	l.vm, l.changes = define(t, a, "web", base), hypervisor.Changes{}
	const disk = "[disk.data]\nsize = \"1G\"\n"
	l.vm = define(t, a, "web", base+disk)
	l.record = &hypervisor.Record{Digest: a.plan(l.vm, host).Digest, Machine: l.vm.Machine}
	throttle := func(iops int64, by *config.DiskLimits) {
		live := l.machine().Live()
		live.Disks["data"] = config.DiskLimits{IOPS: iops}
		l.changes = hypervisor.Changes{Live: &live}
		if by != nil {
			l.changes.Throttled = map[string]config.DiskLimits{"data": *by}
		}
	}
	throttle(5, &config.DiskLimits{})
	expect("a limit of a disk by hand", false, "disk.data.iops")
	if keys, _ := differingSettings(l); len(keys) != 0 {
		t.Errorf("a reload takes back %v", keys)
	}
	if keys, want := differingSettings(l, "disk.data.iops"); len(keys) != 1 || want.Disks["data"].IOPS != 0 {
		t.Errorf("named, it takes back %v: %v", keys, want.Disks)
	}
	l.vm = define(t, a, "web", base+disk+"iops = 6\n")
	expect("and defined otherwise since", true, "disk.data.iops")
	if keys, want := differingSettings(l); len(keys) != 1 || want.Disks["data"].IOPS != 6 {
		t.Errorf("a reload takes %v: %v", keys, want.Disks)
	}
	throttle(6, nil)
	expect("set to what is defined", false)
	l.vm, l.changes = define(t, a, "web", base), hypervisor.Changes{}
	l.record = &hypervisor.Record{Digest: a.plan(l.vm, host).Digest, Machine: l.vm.Machine}

	extra, _ := l.vm.Machine.NIC("lan")
	extra.Name = "extra"
	l.changes.AttachedNIC(extra)
	expect("a card attached by hand", false, "nic.extra")
	l.changes.DetachedNIC("extra", false)
	l.changes.DetachedNIC("lan", true)
	expect("one detached by hand", false, "nic.lan")
}

// A definition that is invalid is told, and hides no other.
func TestDiffOfInvalid(t *testing.T) {
	a := definitions(t, map[string]string{"bad": "cpus = \"many\"\n"})
	host := a.probe()
	vm := define(t, a, "web", "boot.kernel = \"/k\"\n")
	runs := bus.UnitStatus{Active: "active"}
	record := &hypervisor.Record{Digest: a.plan(vm, host).Digest, Machine: vm.Machine}
	bad, err := config.LoadVM(a.paths, "bad")
	if err != nil {
		t.Fatal(err)
	}
	vm = define(t, a, "web", "boot.kernel = \"/k\"\nautostart = true\n")
	looks := []look{{vm: bad, unit: runs, record: record}, {vm: vm, unit: runs, record: record}}
	err = a.diff(looks, 0, false)
	if exitStatus(err) != exitInvalid {
		t.Errorf("exit status %d of %v", exitStatus(err), err)
	}
	if out := a.ui.out.(*bytes.Buffer).String(); !strings.Contains(out, "web   autostart  false      true") {
		t.Errorf("printed %s", out)
	}
	if told := a.ui.err.(*bytes.Buffer).String(); !strings.Contains(told, "bad.toml:1: cpus:") {
		t.Errorf("told %s", told)
	}
}

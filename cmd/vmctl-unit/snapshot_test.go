package main

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/hypervisor/snapshot"
)

// snapshotted makes a disk that has a snapshot, which is known, of a machine that
// does not run.
func (h host) snapshotted(name string, options ...string) snapshotNote {
	h.Helper()
	if err := access.MakeStateDir(h.paths, h.vm); err != nil {
		h.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(h.disk), name+".qcow2")
	s := snapshot.Snapshot{Name: name, Tag: snapshot.NewTag(name), Disks: []snapshot.Disk{{Name: "root", Path: path, Size: 1 << 20}}}
	for _, args := range [][]string{
		append([]string{"create", "-q", "-f", "qcow2", path, "1M"}, options...),
		{"snapshot", "-q", "-c", s.Tag, path},
	} {
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			h.Fatalf("%v: %s", err, out)
		}
	}
	_, err := snapshot.New(h.paths, h.vm, name)
	if err := errors.Join(err, s.Place(h.paths, h.vm, hypervisor.Record{})); err != nil {
		h.Fatal(err)
	}
	return snapshotNote{Name: name, Tag: s.Tag, Disks: s.Disks}
}

// A snapshot whose tag cannot be removed from an image stays known; one whose
// image is gone does not.
func TestDeleteSnapshotThatStays(t *testing.T) {
	h := newHost(t)
	a := h.inside()
	note := h.snapshotted("stays")
	path := note.Disks[0].Path
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h.write(path, string(whole[:4])+"\xff"+string(whole[5:]), 0o600) // of a version that there is not
	err = a.deleteSnapshotWhole(t.Context(), nil, note)
	if err == nil || !strings.Contains(err.Error(), "disk.root: the snapshot is left in its image, which qemu-img snapshot -d "+note.Tag) {
		t.Errorf("got %v", err)
	}
	if _, err := snapshot.Get(h.paths, h.vm, note.Name); err != nil {
		t.Errorf("it is forgotten: %v", err)
	}
	h.write(path, string(whole), 0o600)
	if err := a.deleteSnapshotWhole(t.Context(), nil, note); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("qemu-img", "snapshot", "-l", path).CombinedOutput(); err != nil || strings.Contains(string(out), note.Tag) {
		t.Errorf("%v, the image has %s", err, out)
	}
	for _, gone := range []func(path string) error{
		os.Remove,
		func(path string) error { return os.WriteFile(path, make([]byte, 1<<20), 0o600) },
	} {
		note := h.snapshotted("gone")
		if err := errors.Join(gone(note.Disks[0].Path), a.deleteSnapshotWhole(t.Context(), nil, note)); err != nil {
			t.Error(err)
		}
		if _, err := snapshot.Get(h.paths, h.vm, note.Name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("its image is gone, and it is known: %v", err)
		}
	}
}

// A snapshot whose record cannot be read is not taken for one that is not there.
func TestSettleUnreadable(t *testing.T) {
	h := newHost(t)
	note := h.snapshotted("odd")
	h.write(filepath.Join(h.paths.Snapshot(h.vm, note.Name), "snapshot.json"), "{", 0o644)
	if err := h.inside().settleSnapshot(t.Context(), note); err == nil || !strings.Contains(err.Error(), "snapshot.json") {
		t.Errorf("got %v", err)
	}
	if out, err := exec.Command("qemu-img", "snapshot", "-l", note.Disks[0].Path).CombinedOutput(); err != nil || !strings.Contains(string(out), note.Tag) {
		t.Errorf("%v, the image has %s", err, out)
	}
}

// A restore that cannot be brought to its end says what to do, and another one
// takes its place.
func TestRestoreThatCannotBeMended(t *testing.T) {
	h := newHost(t)
	a, report := h.inside(), operation.NewReporter(io.Discard)
	note := h.snapshotted("half")
	begin := func() operation.Record {
		t.Helper()
		if _, err := operation.Replace(h.paths, h.vm, snapshot.Restore, note); err != nil {
			t.Fatal(err)
		}
		r, err := operation.Unfinished(h.paths, h.vm)
		if err != nil {
			t.Fatal(err)
		}
		return *r
	}
	cannot := func(r operation.Record, why string) {
		t.Helper()
		err := mendRestoreSnapshot(t.Context(), a, r)
		for _, want := range []string{"snapshot half is restored by half", why, "vmctl snapshot restore web OTHER", "removes " + h.paths.Operation(h.vm)} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
	}
	path := note.Disks[0].Path
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	cannot(begin(), path)
	if err := a.checkReplaces(nil, false, report); err == nil || !strings.Contains(err.Error(), "may be restored by half to snapshot half") {
		t.Errorf("the disk is left out: %v", err)
	}
	if err := errors.Join(a.checkReplaces(nil, true, report), a.checkReplaces(note.Disks, false, report)); err != nil {
		t.Error(err)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if err := a.mendUnfinished(t.Context()); err != nil {
		t.Errorf("with its disk it can be: %v", err)
	}
	s, err := snapshot.Get(h.paths, h.vm, note.Name)
	if err := errors.Join(err, snapshot.Remove(h.paths, h.vm, s)); err != nil {
		t.Fatal(err)
	}
	cannot(begin(), "no snapshot of web is named half")
}

// A disk that was attached while the machine runs, and that has no snapshots, keeps
// a schedule from none of the others; people are told.
func TestScheduledSnapshotLeavesOut(t *testing.T) {
	h := newHost(t)
	h.define(strings.Replace(h.definition(), "[lifecycle]", "readonly = true\n\n[lifecycle]", 1) + "[snapshots]\nschedule = \"daily\"\n[disk.data]\nsize = \"1M\"\n")
	h.start()
	extra := h.parseDisk("extra", "size = \"1M\"\nformat = \"raw\"\n")
	if got := h.operate(hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: extra}); got != "" {
		t.Fatal(got)
	}
	take := func(scheduled bool) (made snapshot.Snapshot, warned string, err error) {
		t.Helper()
		b, _ := json.Marshal(snapshot.CreateRequest{Scheduled: scheduled, Quiesce: snapshot.Skip})
		out, _ := h.command(nil, "operate", h.vm, snapshot.Create, string(b)).Output()
		err = operation.Follow(strings.NewReader(string(out)), func(operation.Progress) {}, func(text string) { warned += text }, &made)
		return made, warned, err
	}
	if _, _, err := take(false); err == nil || !strings.Contains(err.Error(), "disk.extra.format: a raw disk cannot take part in snapshots") {
		t.Errorf("by hand: %v", err)
	}
	made, warned, err := take(true)
	if err != nil || len(made.Disks) != 1 || made.Disks[0].Name != "data" || !strings.Contains(warned, "disk extra, which was attached while the machine runs, is left out") {
		t.Errorf("by a schedule: %+v, warned %q, %v", made, warned, err)
	}
}

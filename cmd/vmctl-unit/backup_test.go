package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/backup"
	"github.com/vmctl/vmctl/hypervisor/console"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// What a backup that was cut off has left at its target does not matter to the
// machine: not whether it can be removed, nor whether it can be looked at.
func TestMendBackupWithoutItsTarget(t *testing.T) {
	h := newHost(t)
	broken := filepath.Join(h.paths.Root, "target")
	h.write(broken, "where a directory was", 0o600)
	note := backupNote{Series: broken, ID: "20260102T030405Z", Keys: []string{"disk.boot"}, Bitmap: "b"}
	begin := func() {
		t.Helper()
		if _, err := operation.Begin(h.paths, h.vm, backup.Make, note); err != nil {
			t.Fatal(err)
		}
	}
	mended := func() {
		t.Helper()
		if r, err := operation.Unfinished(h.paths, h.vm); r != nil || err != nil {
			t.Errorf("not mended: %v, %v", r, err)
		}
	}
	begin()
	if out := h.must(nil, "mend", h.vm); !strings.Contains(out, "the next backup removes") {
		t.Errorf("got %s", out)
	}
	mended()

	target := filepath.Join(h.paths.Root, "sound", h.vm)
	half := filepath.Join(target, "."+note.ID+".new")
	h.mkdir(half, 0o700)
	note.Series = target
	begin()
	h.start()
	mended()
	if _, err := os.Stat(half); err != nil {
		t.Errorf("the start has looked at the target: %v", err)
	}
	begin()
	h.must(nil, "mend", h.vm)
	mended()
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// A guest that may still be frozen is not forgotten as long as it runs.
func TestMendBackupOfAFrozenGuest(t *testing.T) {
	h := newHost(t)
	h.start()
	h.expect(h.attach(console.ModeFollow), "guest is up")
	// Whose agent does not answer.
	detail, err := json.Marshal(backupNote{Frozen: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err = mendBackup(ctx, h.inside(), operation.Record{Kind: backup.Make, Detail: detail})
	if err == nil || !strings.Contains(err.Error(), "may still be frozen") {
		t.Errorf("got %v", err)
	}
}

// What an image names is opened with root's rights only where it is a disk.
func TestDisksOfOurs(t *testing.T) {
	a := app{paths: config.SystemPaths("/r"), vm: "web"}
	for path, want := range map[string]bool{
		a.paths.Disk("web", "root", "qcow2"):                  true,
		a.paths.Images + "/debian":                            true,
		a.paths.StateDir("web") + "/definition.json":          false,
		a.paths.StateDir("web") + "/disk-x/definition.json":   false,
		a.paths.StateDir("other") + "/disk-root.qcow2":        false,
		a.paths.StateDir("web") + "/../other/disk-root.qcow2": false,
		"/etc/shadow": false,
	} {
		if got := a.isOurDisk(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}

// What comes to a place of a restoration meanwhile is not replaced.
func TestRestoreReplacesNothingElse(t *testing.T) {
	dir := t.TempDir()
	p := placing{Staged: filepath.Join(dir, ".disk.restored"), Path: filepath.Join(dir, "disk")}
	n := restoreNote{Staged: []placing{p}, Whole: true}
	put := func(path, content string) *os.File {
		t.Helper()
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if _, err := f.WriteString(content); err != nil {
			t.Fatal(err)
		}
		return f
	}
	refused := func(want string) {
		t.Helper()
		done, err := n.keep()
		done()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("keep: %v", err)
		}
		if want == "in use" {
			return // and kept from others by who keeps it
		}
		if err := n.place(); err == nil {
			t.Error("placed")
		}
		if got, err := os.ReadFile(p.Path); err != nil || string(got) != "theirs" {
			t.Errorf("%q, %v", got, err)
		}
	}
	put(p.Staged, "restored")
	theirs := put(p.Path, "theirs")
	refused("made meanwhile")

	first := put(filepath.Join(dir, "first"), "first") // the one that was to be replaced
	number, err := inodeOf(first)
	if err != nil {
		t.Fatal(err)
	}
	n.Staged[0].Old = number
	refused("another file is there")

	if n.Staged[0].Old, err = inodeOf(theirs); err != nil {
		t.Fatal(err)
	}
	user, err := os.OpenFile(p.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// As QEMU does that writes to it.
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 101, Len: 1}
	if err := unix.FcntlFlock(user.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	refused("in use")
	user.Close()

	done, err := n.keep()
	if err != nil {
		t.Fatal(err)
	}
	if who := access.InUse(theirs, true); who == "" {
		t.Error("it is not kept from others")
	}
	if err := n.place(); err != nil {
		t.Error(err)
	}
	done()
	if got, err := os.ReadFile(p.Path); err != nil || string(got) != "restored" {
		t.Errorf("%q, %v", got, err)
	}
	if err := n.place(); err != nil {
		t.Errorf("once more: %v", err)
	}
}

// What cannot be taken back for a reason that is not known is not forgotten.
func TestRemoveStagedThatIsBeingMade(t *testing.T) {
	p := placing{Staged: filepath.Join(t.TempDir(), ".disk.restored")}
	d, err := disk.NewDraft(p.Staged)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	n := restoreNote{Staged: []placing{p}}
	if err := n.removeStaged(); !errors.Is(err, disk.ErrDraft) {
		t.Errorf("got %v", err)
	}
}

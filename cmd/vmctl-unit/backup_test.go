package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/backup"
	"github.com/vmctl/vmctl/hypervisor/console"
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
	silent, err := net.Listen("unix", h.paths.AgentSocket(h.vm))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if err := os.Chown(h.paths.AgentSocket(h.vm), vmUser, vmUser); err != nil {
		t.Fatal(err)
	}
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

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/hypervisor/backup"
)

// writeBackup makes the directory of a backup of web.
func writeBackup(t *testing.T, target, id, parent string) string {
	t.Helper()
	m := backup.Manifest{Version: backup.Version, ID: id, VM: "web",
		Disks: []backup.Disk{{Disk: "root", File: backup.File{Name: backup.DiskFile("root")}, Parent: parent}}}
	content, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(target, "web", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// While it is asked whether to delete a backup, another one is made that stands
// on it.
func TestDeleteBackupThatIsStoodOnMeanwhile(t *testing.T) {
	target := t.TempDir()
	dir := writeBackup(t, target, "20260102T030405Z", "")
	program, person := openTerminal(t)
	a := host(t)
	a.ui = &ui{in: program, out: &bytes.Buffer{}, err: program, format: textFormat}
	go func() {
		question := ""
		for buf := make([]byte, 1000); !strings.Contains(question, "[y/N]"); {
			n, err := person.Read(buf)
			if err != nil {
				return
			}
			question += string(buf[:n])
		}
		writeBackup(t, target, "20260103T030405Z", "20260102T030405Z")
		fmt.Fprintln(person, "y")
	}()
	b, err := backup.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.deleteBackups(false, []backup.Backup{b}); err == nil || !strings.Contains(err.Error(), "20260103T030405Z stands on it") {
		t.Errorf("got %v", err)
	}
	if _, err := backup.Open(dir); err != nil {
		t.Error(err)
	}
}

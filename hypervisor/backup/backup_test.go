package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/hypervisor/disk"
)

// series makes backups of a disk, each of which stands on the one before.
func series(t *testing.T, n int) (Series, []Backup) {
	t.Helper()
	s := SeriesOf(t.TempDir(), "web")
	var all []Backup
	for i := range n {
		id, err := s.NextID(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) // the clock stands still
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Begin(id)
		if err != nil {
			t.Fatal(err)
		}
		root := Disk{Disk: "root", VirtualSize: 1 << 20, Format: "qcow2", File: File{Name: DiskFile("root")}}
		args := []string{"create", "-q", "-f", "qcow2"}
		if i > 0 {
			root.Parent = all[i-1].ID
			args = append(args, "-u", "-b", root.Backing(), "-F", "qcow2")
		}
		path := filepath.Join(d.dir, root.Name)
		command(t, "qemu-img", append(args, path, "1M")...)
		command(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -P %d %dk 64k", i+1, i*64), path)
		if root.File, err = d.Describe(t.Context(), root.Name, func(int) {}); err != nil {
			t.Fatal(err)
		}
		file, err := d.Put("definition/00-web.toml", []byte("memory = \"64M\"\n"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := d.Finish(Manifest{Version: Version, ID: id, VM: "web", Series: "0", Disks: []Disk{root}, Definition: []File{file}})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return s, all
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func verify(b Backup) error {
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		return err
	}
	v := Verifier{Img: disk.Img{Program: path}, On: func(int) {}}
	return v.Verify(context.Background(), b)
}

func TestSeries(t *testing.T) {
	s, all := series(t, 3)
	ids, err := s.IDs()
	if err != nil || strings.Join(ids, " ") != "20260102T030405Z 20260102T030406Z 20260102T030407Z" {
		t.Errorf("got %v, %v", ids, err)
	}
	latest, err := s.Latest()
	if err != nil || latest.ID != ids[2] {
		t.Fatalf("got %+v, %v", latest, err)
	}
	if err := verify(*latest); err != nil {
		t.Error(err)
	}
	if err := latest.Intact(latest.Disks[0]); err != nil {
		t.Error(err)
	}
	if n, err := latest.Depth(latest.Disks[0]); n != 2 || err != nil {
		t.Errorf("it stands on %d, %v", n, err)
	}
	c, err := latest.Chain(latest.Disks[0])
	if err != nil || len(c) != 3 {
		t.Fatalf("chain: %v, %v", c, err)
	}
	c.Close()
	if got := Surplus(all, 1); len(got) != 0 {
		t.Errorf("of a chain %v are not needed", got)
	}
	if _, err := s.Latest(); err != nil {
		t.Error(err)
	}
}

func TestCleanAndDelete(t *testing.T) {
	s, all := series(t, 1)
	if _, err := s.Begin("20260102T030406Z"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".20260101T000000Z.deleted", ".other.new", "20250101T000000Z.new"} {
		if err := os.Mkdir(filepath.Join(s.Dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Clean(); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(all[0].ID); err != nil {
		t.Fatal(err)
	}
	left, _ := filepath.Glob(s.Dir + "/*")
	if want := []string{s.Dir + "/.other.new", s.Dir + "/20250101T000000Z.new"}; !slices.Equal(left, want) {
		t.Errorf("left: %v", left)
	}
	if b, err := s.Latest(); b != nil || err != nil {
		t.Errorf("of none the last is %v, %v", b, err)
	}
	if _, err := Open(s.Dir); !errors.Is(err, ErrNoBackup) {
		t.Errorf("got %v", err)
	}
}

func TestSurplus(t *testing.T) {
	var all []Backup
	for i, parent := range []string{"", "0", "1", "", "3", ""} {
		all = append(all, Backup{Manifest: Manifest{ID: fmt.Sprint(i), Disks: []Disk{{Disk: "a", Parent: parent}}}})
	}
	for keep, want := range map[int]string{1: "01234", 2: "012", 3: "012", 4: "", 5: "", 6: "", 9: ""} {
		got := ""
		for _, b := range Surplus(all, keep) {
			got += b.ID
		}
		if got != want {
			t.Errorf("keeping %d deletes %q, want %q", keep, got, want)
		}
	}
}

func TestVerifyFindsWhatIsWrong(t *testing.T) {
	edit := func(b Backup, change func(m *Manifest)) {
		change(&b.Manifest)
		content, err := json.Marshal(b.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b.Dir, manifestName), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		damage func(first, last Backup)
		want   string
	}{
		"a byte":        {func(first, _ Backup) { writeAt(t, first, "disk-root.qcow2", 4096) }, "disk-root.qcow2 has changed since it was written"},
		"the end":       {func(first, _ Backup) { os.Truncate(filepath.Join(first.Dir, "disk-root.qcow2"), 100) }, "has 100 bytes, not"},
		"a parent":      {func(first, _ Backup) { os.RemoveAll(first.Dir) }, "stands on 20260102T030405Z: "},
		"a file":        {func(_, last Backup) { os.Remove(filepath.Join(last.Dir, "definition/00-web.toml")) }, "no such file"},
		"a link":        {func(_, last Backup) { relink(t, filepath.Join(last.Dir, "disk-root.qcow2")) }, "too many levels of symbolic links"},
		"a version":     {func(_, last Backup) { edit(last, func(m *Manifest) { m.Version = 2 }) }, "want version 1 of the format, got 2"},
		"another name":  {func(_, last Backup) { edit(last, func(m *Manifest) { m.ID = "20260102T030409Z" }) }, "rename the directory back"},
		"a way out":     {func(_, last Backup) { edit(last, func(m *Manifest) { m.Disks[0].Name = "../x" }) }, `want the file disk-root.qcow2, got "../x"`},
		"a way out too": {func(_, last Backup) { edit(last, func(m *Manifest) { m.Definition[0].Name = "definition/../../x" }) }, "want a file in definition/"},
		"itself":        {func(_, last Backup) { edit(last, func(m *Manifest) { m.Disks[0].Parent = m.ID }) }, "want an earlier backup as parent"},
		"no parent":     {func(_, last Backup) { edit(last, func(m *Manifest) { m.Disks[0].Parent = "" }) }, `it stands on "../20260102T030405Z/disk-root.qcow2", not on ""`},
		"a size":        {func(_, last Backup) { edit(last, func(m *Manifest) { m.Disks[0].VirtualSize = 5 }) }, "the disk has 1048576 bytes, not 5"},
		"no JSON":       {func(_, last Backup) { os.WriteFile(filepath.Join(last.Dir, manifestName), []byte("{"), 0o600) }, "unexpected end of JSON"},
	} {
		_, all := series(t, 2)
		test.damage(all[0], all[1])
		b, err := Open(all[1].Dir)
		if err == nil {
			err = verify(b)
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

func writeAt(t *testing.T, b Backup, name string, at int64) {
	f, err := os.OpenFile(filepath.Join(b.Dir, name), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), at); err != nil {
		t.Fatal(err)
	}
}

// relink puts a link to a file in its place.
func relink(t *testing.T, path string) {
	moved := filepath.Join(t.TempDir(), "moved")
	if err := errors.Join(os.Rename(path, moved), os.Symlink(moved, path)); err != nil {
		t.Fatal(err)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"version": 1, "id": "20260102T030405Z", "vm": "web", "disks": [{"disk": "root", "file": "disk-root.qcow2"}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := filepath.Join(t.TempDir(), "20260102T030405Z")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, manifestName), content, 0o600)); err != nil {
			t.Fatal(err)
		}
		b, err := Open(dir)
		if err != nil {
			return
		}
		for _, d := range b.All() {
			if filepath.Base(d.Name) != d.Name {
				t.Errorf("%q names a file elsewhere: %q", content, d.Name)
			}
		}
	})
}

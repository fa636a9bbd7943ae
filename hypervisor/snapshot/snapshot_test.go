package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// place makes a snapshot of the machine vm, n minutes after the first.
func place(t *testing.T, paths config.Paths, name, parent string, n int) Snapshot {
	t.Helper()
	s := Snapshot{Name: name, Parent: parent, Tag: NewTag(name), Created: time.Unix(int64(n)*60, 0), Disks: []Disk{{Name: "root", Path: "/root.qcow2"}}}
	if _, err := New(paths, "vm", name); err != nil {
		t.Fatal(err)
	}
	if _, err := Get(paths, "vm", name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half of %s is there: %v", name, err)
	}
	if err := s.Place(paths, "vm", hypervisor.Record{Digest: name}); err != nil {
		t.Fatal(err)
	}
	if err := SetCurrent(paths, "vm", name); err != nil {
		t.Fatal(err)
	}
	return s
}

// show is a tree on one line.
func show(tree []Branch) string {
	var parts []string
	for _, b := range tree {
		text := b.Name
		if len(b.Children) > 0 {
			text += "(" + show(b.Children) + ")"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, " ")
}

func TestSnapshots(t *testing.T) {
	paths := config.SystemPaths(t.TempDir())
	if err := access.MakeStateDir(paths, "vm"); err != nil {
		t.Fatal(err)
	}
	if all, err := List(paths, "vm"); len(all) > 0 || err != nil {
		t.Errorf("before the first: %v, %v", all, err)
	}
	if current, err := Current(paths, "vm"); current != "" || err != nil {
		t.Errorf("before the first: %q, %v", current, err)
	}
	place(t, paths, "b", "", 1)
	middle := place(t, paths, "a", "b", 2)
	place(t, paths, "d", "a", 4)
	place(t, paths, "c", "a", 3)
	want := func(tree, current string) {
		t.Helper()
		all, err := List(paths, "vm")
		if err != nil {
			t.Fatal(err)
		}
		is, err := Current(paths, "vm")
		if got := show(Tree(all)); got != tree || is != current || err != nil {
			t.Errorf("there is %s, current %s, %v, want %s, current %s", got, is, err, tree, current)
		}
	}
	want("b(a(c d))", "c")
	if err := Remove(paths, "vm", middle); err != nil {
		t.Fatal(err)
	}
	want("b(c d)", "c")
	c, err := Get(paths, "vm", "c")
	if err != nil {
		t.Fatal(err)
	}
	if err := Remove(paths, "vm", c); err != nil {
		t.Fatal(err)
	}
	want("b(d)", "b")
	if s, err := os.Stat(filepath.Join(paths.Snapshot("vm", "d"), definitionFile)); err != nil || s.Mode().Perm() != 0o600 {
		t.Errorf("the definition, which has secrets, has the mode %v, %v", s.Mode(), err)
	}
}

// A parent that is gone, or a circle that somebody made by hand, hides none but
// those of the circle.
func TestTreeOfLies(t *testing.T) {
	all := []Snapshot{{Name: "a", Parent: "gone"}, {Name: "b", Parent: "a"}, {Name: "x", Parent: "y"}, {Name: "y", Parent: "x"}}
	if got := show(Tree(all)); got != "a(b)" {
		t.Errorf("got %s", got)
	}
}

func TestExpired(t *testing.T) {
	var all []Snapshot
	for i := range 6 {
		all = append(all, Snapshot{Name: fmt.Sprint(i), Scheduled: i%3 != 0, Created: time.Unix(int64(i), 0)})
	}
	for keep, want := range []string{"1 2 4 5", "1 2 4", "1 2", "1", "", ""} {
		var names []string
		for _, s := range Expired(all, keep) {
			names = append(names, s.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("to keep %d, %q go, want %q", keep, got, want)
		}
	}
}

func TestFreeName(t *testing.T) {
	at := time.Date(2026, 11, 21, 3, 4, 5, 0, time.UTC)
	if got := FreeName(at, nil); got != "20261121-030405" || config.CheckName(got) != nil {
		t.Errorf("got %s", got)
	}
	if got := FreeName(at, []string{"20261121-030405", "20261121-030405-2"}); got != "20261121-030405-3" {
		t.Errorf("got %s", got)
	}
}

func TestParts(t *testing.T) {
	m := &config.Machine{Name: "web", Disks: []config.Disk{
		{Name: "root", Format: "qcow2", Size: 1 << 20},
		{Name: "given", Format: "qcow2", Path: "/srv/given.qcow2"},
		{Name: "cd", Format: "raw", Path: "/srv/cd.iso", Media: "cdrom"},
		{Name: "base", Format: "raw", Path: "/srv/base.img", Readonly: true},
		{Name: "scratch", Format: "qcow2", Size: 1 << 20, Ephemeral: true},
	}}
	plan := &hypervisor.Plan{New: []hypervisor.NewFile{
		{Key: "disk.root", Path: "/state/disk-root.qcow2", Format: "qcow2"},
		{Key: "boot.firmware", Path: "/state/nvram.fd", Copy: "/usr/share/vars.fd"},
	}}
	parts, problems := Parts(m, config.SystemPaths(""))
	if len(problems) > 0 {
		t.Error(problems)
	}
	var got []string
	for _, p := range parts {
		got = append(got, p.Key+"="+p.Path)
	}
	if want := "disk.root=/var/lib/vmctl/vms/web/disk-root.qcow2 disk.given=/srv/given.qcow2"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if files := StateFiles(plan); !slices.Equal(files, []string{"/state/nvram.fd"}) {
		t.Errorf("files of the state: %q", files)
	}
	m.Disks = append(m.Disks, config.Disk{Name: "raw", Format: "raw", Path: "/dev/sdb"})
	if _, problems := Parts(m, config.SystemPaths("")); len(problems) != 1 || problems[0].Key != "disk.raw.format" {
		t.Errorf("a raw disk: %v", problems)
	}
	m.Hypervisor = config.CloudHypervisor
	if _, problems := Parts(m, config.SystemPaths("")); len(problems) != 1 || strings.Contains(problems[0].Text, "convert") {
		t.Errorf("a disk of a hypervisor that writes to no other: %v", problems)
	}
}

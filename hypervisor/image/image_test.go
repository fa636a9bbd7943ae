package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

func newStore(t *testing.T) Store {
	t.Helper()
	return Store{config.SystemPaths(t.TempDir())}
}

// put stores an image of this content.
func put(t *testing.T, s Store, name, content string) error {
	t.Helper()
	if err := s.makeDir(); err != nil {
		t.Fatal(err)
	}
	temp := s.Paths.ImageTemp(name, "new")
	if err := os.WriteFile(temp, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return s.Put(temp, Image{Name: name, Format: "raw", FileSize: int64(len(content)), VirtualSize: int64(len(content))})
}

func child(t *testing.T, s Store, vm, file, backing string) {
	t.Helper()
	if err := os.MkdirAll(s.Paths.StateDir(vm), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.Paths.StateDir(vm), file)
	if out, err := exec.Command("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", path, "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestStore(t *testing.T) {
	s := newStore(t)
	if names, err := s.Names(); err != nil || len(names) > 0 {
		t.Errorf("of no store: %v, %v", names, err)
	}
	if err := put(t, s, "b", "one"); err != nil {
		t.Fatal(err)
	}
	// Names that look like other files of the store's.
	for _, name := range []string{"b.img", "b.json", "b.part", "b.lock"} {
		if err := put(t, s, name, name); err != nil {
			t.Fatal(err)
		}
	}
	names, err := s.Names()
	if got := strings.Join(names, " "); err != nil || got != "b b.img b.json b.lock b.part" {
		t.Errorf("got %s, %v", got, err)
	}
	for _, name := range names {
		i, err := s.Get(name)
		if err != nil || i.Name != name || s.Check(i) != nil {
			t.Errorf("%s: got %+v, %v", name, i, err)
		}
	}
	for _, name := range []string{"c", "../b", "", ".b"} {
		if _, err := s.Get(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: got %v", name, err)
		}
	}
	if err := put(t, s, "b", "another"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(s.Paths.Image("b")); err != nil || string(b) != "another" {
		t.Errorf("got %q, %v", b, err)
	}
	if err := s.Delete("b"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(s.Paths.Image("b")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("its file is still there")
	}
	if err := s.Delete("b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted again: %v", err)
	}
}

// An image file without a record, as a crash may leave it, is no stored image,
// and in nobody's way.
func TestHalfStored(t *testing.T) {
	s := newStore(t)
	if err := put(t, s, "a", "one"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.Paths.ImageRecord("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := put(t, s, "a", "whole"); err != nil {
		t.Fatal(err)
	}
	i, err := s.Get("a")
	if err != nil || s.Check(i) != nil {
		t.Errorf("got %+v, %v", i, err)
	}
}

func TestChildren(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{"a", "b"} {
		if err := put(t, s, name, "content"); err != nil {
			t.Fatal(err)
		}
	}
	child(t, s, "web", "disk-root.qcow2", s.Paths.Image("a"))
	child(t, s, "web", "disk-data.qcow2", s.Paths.Image("a"))
	child(t, s, "db", "disk-root.qcow2", s.Paths.Image("a"))
	child(t, s, "db", ".disk-x.qcow2.new", s.Paths.Image("b"))
	child(t, s, "db", "disk-y.qcow2", "/elsewhere/a.img")
	child(t, s, "db", "disk-z.qcow2", s.Paths.Images+"/../images/a.img/")
	// What is no disk, and what must not be waited for.
	if err := errors.Join(
		os.WriteFile(filepath.Join(s.Paths.StateDir("db"), "exit.json"), []byte("{}"), 0o600),
		unix.Mkfifo(filepath.Join(s.Paths.StateDir("db"), "fifo"), 0o600),
		os.Symlink(s.Paths.Disk("web", "root", "qcow2"), filepath.Join(s.Paths.StateDir("db"), "link")),
		os.Mkdir(filepath.Join(s.Paths.StateDir("db"), "dir"), 0o700),
		os.WriteFile(filepath.Join(s.Paths.State, "file"), nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	all, err := s.Children()
	if err != nil || len(all["a"]) != 4 || len(all) != 1 {
		t.Errorf("got %v, %v", all, err)
	}
	for _, err := range []error{s.Delete("a"), put(t, s, "a", "new")} {
		used, ok := errors.AsType[*InUseError](err)
		if !ok || used.Error() != "a is what each of the disks of db and web stands on" {
			t.Errorf("got %v", err)
		}
	}
	if err := s.Delete("b"); err != nil {
		t.Error(err)
	}
}

// Disks elsewhere are found by the definitions that name them, and by what their
// machines were last started with, through the whole chain.
func TestChildrenElsewhere(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{"a", "b", "c", "free"} {
		if err := put(t, s, name, "content"); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	overlay := func(name, backing, format string) {
		t.Helper()
		out, err := exec.Command("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, at(name), "1M").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	overlay("one.qcow2", s.Paths.Image("a"), "raw")
	overlay("two.qcow2", "one.qcow2", "qcow2")
	overlay("three.qcow2", "file:"+at("two.qcow2"), "qcow2")
	overlay("ring.qcow2", "ring.qcow2", "qcow2")
	overlay("lost.qcow2", at("gone.qcow2"), "qcow2")
	overlay("guest.raw", s.Paths.Image("free"), "raw") // as a guest can write it
	if err := os.Symlink(s.Paths.Images, at("link")); err != nil {
		t.Fatal(err)
	}
	overlay("linked.qcow2", at("link/b.img"), "raw")

	define := func(vm, text string) {
		t.Helper()
		if err := os.MkdirAll(s.Paths.VMDirs[1], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.Paths.VMDirs[1], vm+".toml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	disk := func(name, path string) string { return fmt.Sprintf("[disk.%s]\npath = %q\n", name, path) }
	define("deep", disk("x", at("three.qcow2"))+disk("ring", at("ring.qcow2"))+disk("lost", at("lost.qcow2"))+disk("none", at("none.qcow2")))
	define("link", disk("x", at("linked.qcow2")))
	define("itself", disk("x", s.Paths.Image("b"))+"readonly = true\n")
	define("raw", disk("x", at("guest.raw")))
	// Its definition is broken, or gone: what it was started with counts.
	define("broken", "cpus = \"many\"\n")
	for _, vm := range []string{"broken", "gone"} {
		record := fmt.Sprintf(`{"machine": {"disks": [{"name": "x", "path": %q, "format": "qcow2"}]}}`, at("late.qcow2"))
		if err := errors.Join(os.MkdirAll(s.Paths.StateDir(vm), 0o755), os.WriteFile(s.Paths.Record(vm), []byte(record), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	overlay("late.qcow2", s.Paths.Image("c"), "raw")
	// A raw disk of a machine's own is its guest's to write.
	child(t, s, "raw", "disk-y.raw", s.Paths.Image("free"))
	// A chain that ends in a disk of the machine's own, and one in a folder there.
	child(t, s, "own", "disk-x.qcow2", at("two.qcow2"))
	if err := os.MkdirAll(filepath.Join(s.Paths.StateDir("own"), "old"), 0o755); err != nil {
		t.Fatal(err)
	}
	child(t, s, "own", "old/disk-x.qcow2", s.Paths.Image("a"))

	all, err := s.Children()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]Child{
		"a": {{"deep", at("three.qcow2")}, {"own", s.Paths.Disk("own", "x", "qcow2")}, {"own", filepath.Join(s.Paths.StateDir("own"), "old/disk-x.qcow2")}},
		"b": {{"itself", s.Paths.Image("b")}, {"link", at("linked.qcow2")}},
		"c": {{"broken", at("late.qcow2")}, {"gone", at("late.qcow2")}},
	} {
		if !slices.Equal(all[name], want) {
			t.Errorf("%s: got  %v\nwant %v", name, all[name], want)
		}
		for _, err := range []error{s.Delete(name), put(t, s, name, "new")} {
			if _, ok := errors.AsType[*InUseError](err); !ok {
				t.Errorf("%s: got %v", name, err)
			}
		}
	}
	if err := s.Delete("free"); err != nil {
		t.Error(err)
	}
}

// Which files other disks stand on, and of which machines, is known through whole
// chains, whatever name the file has; a machine's own former disks do not count.
// Storage that does not answer keeps nobody waiting for long, and hides nothing of
// the machines after it.
func TestBasesOnDeadStorage(t *testing.T) {
	s := newStore(t)
	file := filepath.Join(t.TempDir(), "base")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dead := make(chan bool)
	defer close(dead)
	b := Bases{s, map[inode][]Child{}}
	b.gather([]*config.Machine{{Name: "a"}, {Name: "dead"}, {Name: "dead2"}, {Name: "z"}}, 20*time.Millisecond, func(b Bases, m *config.Machine) {
		if strings.HasPrefix(m.Name, "dead") {
			<-dead
		}
		b.note(file, Child{m.Name, "disk"})
	})
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.disks[inodeOf(info)]; !slices.Equal(got, []Child{{"a", "disk"}, {"z", "disk"}}) {
		t.Errorf("got %v", got)
	}
}

func TestBases(t *testing.T) {
	s := newStore(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	overlay := func(name, backing, format string) {
		t.Helper()
		out, err := exec.Command("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, at(name), "1M").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, name := range []string{"base.raw", "free.raw", "late.raw", "thrown.raw", "saved.raw", "old.raw"} {
		if err := os.WriteFile(at(name), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay("middle.qcow2", at("base.raw"), "raw")
	overlay("top.qcow2", "middle.qcow2", "qcow2")
	overlay("late.qcow2", "late.raw", "raw")
	overlay("old.qcow2", "old.raw", "raw")
	overlay("guest.raw", at("free.raw"), "raw") // as a guest can write it
	overlay("ring.qcow2", "ring.qcow2", "qcow2")
	overlay("url.qcow2", "nbd://host/x", "raw")
	if err := errors.Join(os.Link(at("base.raw"), at("link.raw")), os.Symlink(at("middle.qcow2"), at("link.qcow2")), unix.Mkfifo(at("fifo.qcow2"), 0o600)); err != nil {
		t.Fatal(err)
	}
	define := func(vm, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(s.Paths.VMDirs[1], 0o755), os.WriteFile(filepath.Join(s.Paths.VMDirs[1], vm+".toml"), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	started := func(vm, disk string) {
		t.Helper()
		record := fmt.Sprintf(`{"machine": {"disks": [{"name": "x", "path": %q, "format": "qcow2"}]}}`, disk)
		if err := errors.Join(os.MkdirAll(s.Paths.StateDir(vm), 0o755), os.WriteFile(s.Paths.Record(vm), []byte(record), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	disk := func(name, path string) string { return fmt.Sprintf("[disk.%s]\npath = %q\n", name, path) }
	define("a", disk("x", at("top.qcow2")))
	define("garbage", disk("ring", at("ring.qcow2"))+disk("url", at("url.qcow2"))+disk("fifo", at("fifo.qcow2"))+disk("none", at("none.qcow2"))+disk("raw", at("guest.raw")))
	define("broken", "cpus = \"many\"\n")
	started("broken", at("late.qcow2"))
	define("moved", disk("x", at("free.raw")))
	started("moved", at("old.qcow2"))
	define("thrown", disk("x", at("thrown.raw"))+"ephemeral = true\n")
	define("saved", disk("x", at("saved.raw"))+"ephemeral = true\n")
	started("saved", at("gone.qcow2"))
	if err := errors.Join(os.MkdirAll(s.Paths.StateDir("lies"), 0o755), os.WriteFile(s.Paths.Record("lies"), []byte("garbage"), 0o600),
		os.WriteFile(s.Paths.SavedRecord("saved"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	bases, err := s.Bases()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ path, want string }{
		{at("base.raw"), at("top.qcow2") + " of machine a stands on"},
		{at("link.raw"), at("top.qcow2") + " of machine a stands on"},
		{at("middle.qcow2"), at("top.qcow2") + " of machine a stands on"},
		{at("link.qcow2"), at("top.qcow2") + " of machine a stands on"},
		{at("top.qcow2"), ""},
		{at("late.raw"), at("late.qcow2") + " of machine broken stands on"},
		{at("saved.raw"), s.Paths.Disk("saved", "x", "qcow2") + " of machine saved stands on"},
		{at("thrown.raw"), ""},
		{at("free.raw"), ""},
		{at("old.raw"), ""},
	} {
		info, err := os.Stat(test.path)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := bases.Refuse(&config.Machine{Name: "b", Disks: []config.Disk{{Name: "x", Path: test.path}}}, info, test.path); err != nil {
			got = err.Error()
		}
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.path, got, test.want)
		}
	}
	// What a machine is to have counts in place of what it had.
	info, err := os.Stat(at("base.raw"))
	if err != nil {
		t.Fatal(err)
	}
	base := config.Disk{Name: "x", Path: at("base.raw"), Format: "raw"}
	if err := bases.Refuse(&config.Machine{Name: "a", Disks: []config.Disk{base}}, info, base.Path); err != nil {
		t.Errorf("in place of the disk that stands on it: %v", err)
	}
	both := []config.Disk{base, {Name: "y", Path: at("top.qcow2"), Format: "qcow2"}}
	if err := bases.Refuse(&config.Machine{Name: "a", Disks: both}, info, base.Path); err == nil {
		t.Error("beside the disk that stands on it it is not refused")
	}
}

func TestLockName(t *testing.T) {
	s := newStore(t)
	unlock, err := s.LockName("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.LockName("a"); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v", err)
	}
	other, err := s.LockName("b")
	if err != nil {
		t.Fatal(err)
	}
	other()
	// What is being pulled is not left over.
	part := s.Paths.ImageTemp("a", "part")
	if err := os.WriteFile(part, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if left, err := s.Left(); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	unlock()
	if left, err := s.Left(); err != nil || len(left) != 1 || left[0] != part {
		t.Errorf("left: %v, %v", left, err)
	}
	// What somebody has gone on with is not removed.
	if unlock, err = s.LockName("a"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveLeft([]string{part}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(part); err != nil {
		t.Errorf("removed what is being pulled: %v", err)
	}
	unlock()
	if err := s.RemoveLeft([]string{part}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(part); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("not removed: %v", err)
	}
	if locks, err := filepath.Glob(s.Paths.Images + "/.*.lock"); err != nil || len(locks) > 0 {
		t.Errorf("locks left: %v, %v", locks, err)
	}
}

// FuzzInspect: whatever the bytes, a look ends, and what names a file is refused.
func FuzzInspect(f *testing.F) {
	dir := f.TempDir()
	for i, args := range [][]string{
		{"-f", "qcow2"},
		{"-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw"},
		{"-f", "qcow2", "-o", "compat=0.10"},
		{"-f", "vmdk"},
	} {
		path := filepath.Join(dir, fmt.Sprint(i))
		if out, err := exec.Command("qemu-img", append(append([]string{"create", "-q"}, args...), path, "1M")...).CombinedOutput(); err != nil {
			f.Fatalf("%v: %s", err, out)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:min(len(b), 4096)])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := os.Create(filepath.Join(t.TempDir(), "x"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.Write(b); err != nil {
			t.Fatal(err)
		}
		format, size, err := Inspector{}.Inspect(t.Context(), file, "")
		if err == nil && (size <= 0 || format == "qcow2" && bytes.Contains(b[:min(len(b), 16)], []byte("\xfb\x00\x00\x00\x01"))) {
			t.Errorf("%s of %d bytes", format, size)
		}
	})
}

package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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

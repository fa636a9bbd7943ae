package disk

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func img(t *testing.T) Img { return Img{Program: maker(t).QemuImg} }

// anybody opens what an image names.
func anybody(path string) (*os.File, error) { return os.Open(path) }

func chain(t *testing.T, path, format string) (Chain, error) {
	t.Helper()
	c, err := OpenChain(Layer{Path: path, Format: format, File: open(t, path)}, anybody)
	t.Cleanup(c.Close)
	return c, err
}

func mustChain(t *testing.T, path, format string) Chain {
	t.Helper()
	c, err := chain(t, path, format)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func rebaseUnsafe(t *testing.T, path, backing, format string) {
	t.Helper()
	args := []string{"rebase", "-u", "-f", "qcow2", "-b", backing}
	if format != "" {
		args = append(args, "-F", format)
	}
	if out, err := exec.Command("qemu-img", append(args, path)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestOpenChain(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	base := image(t, in("base.raw"), "-f", "raw")
	middle := image(t, in("middle.qcow2"), "-f", "qcow2", "-b", base, "-F", "raw")
	top := image(t, in("top.qcow2"), "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2") // relative to where it lies
	c := mustChain(t, top, QCOW2)
	if got, want := c.names(), top+" → "+middle+" → "+base; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !c.Has(open(t, base)) || c.Has(open(t, image(t, in("other.raw"), "-f", "raw"))) {
		t.Error("what a chain has")
	}

	for name, test := range map[string]struct{ backing, format, want string }{
		"missing":  {in("gone.qcow2"), "qcow2", "missing.qcow2 stands on " + in("gone.qcow2") + ", which does not exist"},
		"loop":     {in("loop.qcow2"), "qcow2", "circular backing files"},
		"url":      {"nbd://localhost/x", "raw", `stands on "nbd://localhost/x", which is not a file`},
		"json":     {`json:{"driver":"null-co"}`, "raw", "which is not a file"},
		"unknown":  {base, "bochs", `images of the format "bochs" are not supported`},
		"wrong":    {middle, "vmdk", "want a vmdk image, " + middle + " is not one"},
		"disguise": {middle, "raw", ""}, // what it is said to be: the header is its maker's
	} {
		path := image(t, in(name+".qcow2"), "-f", "qcow2")
		rebaseUnsafe(t, path, test.backing, test.format)
		_, err := chain(t, path, QCOW2)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
	data := image(t, in("data.qcow2"), "-f", "qcow2", "-o", "data_file="+in("data"))
	if _, err := chain(t, data, QCOW2); err == nil || !strings.Contains(err.Error(), "content in another file") {
		t.Errorf("got %v", err)
	}
	flat := image(t, in("flat.vmdk"), "-f", "vmdk", "-o", "subformat=monolithicFlat")
	if _, err := chain(t, flat, "vmdk"); err == nil || !strings.Contains(err.Error(), "a description of other files") {
		t.Errorf("got %v", err)
	}
	closed := func(string) (*os.File, error) { return nil, fs.ErrPermission }
	if _, err := OpenChain(Layer{Path: middle, Format: QCOW2, File: open(t, middle)}, closed); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v", err)
	}
}

// A backing file without a format is not guessed at.
func TestOpenChainWithoutFormat(t *testing.T) {
	dir := t.TempDir()
	base := image(t, filepath.Join(dir, "base.raw"), "-f", "raw")
	child := image(t, filepath.Join(dir, "child.qcow2"), "-f", "qcow2", "-b", base, "-F", "raw")
	content, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	// The extension becomes one that nobody knows.
	text := strings.Replace(string(content), "\xe2\x79\x2a\xca", "\x12\x34\x56\x78", 1)
	if err := os.WriteFile(child, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := chain(t, child, QCOW2); err == nil || !strings.Contains(err.Error(), "does not say of which format that is") {
		t.Errorf("got %v", err)
	}
}

func draft(t *testing.T, path string) *Draft {
	t.Helper()
	d, err := NewDraft(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func TestImg(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	i := img(t)
	base := image(t, in("base.qcow2"), "-f", "qcow2")
	write(t, base, QCOW2)

	d := draft(t, in("child.qcow2"))
	if err := i.Create(t.Context(), d.File, QCOW2, 2<<20, base, QCOW2); err != nil {
		t.Fatal(err)
	}
	if err := d.Place(); err != nil {
		t.Fatal(err)
	}
	child := in("child.qcow2")
	if got := info(t, child); got.Backing != base || got.Size != 2<<20 {
		t.Errorf("created: %+v", got)
	}
	written(t, child, QCOW2, true)

	if err := i.Resize(t.Context(), mustChain(t, child, QCOW2), 4<<20); err != nil {
		t.Fatal(err)
	}
	if got := info(t, child); got.Size != 4<<20 {
		t.Errorf("grown: %+v", got)
	}

	// Whatever lies at the name of the base by now, the open file is read.
	c := mustChain(t, child, QCOW2)
	if err := os.Rename(base, in("moved.qcow2")); err != nil {
		t.Fatal(err)
	}
	image(t, base, "-f", "qcow2")
	for _, format := range []string{QCOW2, Raw, "vmdk", "vdi", "vpc", "vhdx"} {
		d := draft(t, in("out."+format))
		last := 0.0
		if err := i.Convert(t.Context(), c, d.File, Conversion{Format: format}, func(done float64) { last = done }); err != nil {
			t.Fatal(err)
		}
		if err := d.Place(); err != nil {
			t.Fatal(err)
		}
		if got := info(t, in("out."+format)); got.Size != 4<<20 || got.Backing != "" {
			t.Errorf("%s: %+v", format, got)
		}
		if last != 1 {
			t.Errorf("%s: the progress ended at %v", format, last)
		}
		written(t, in("out."+format), format, true)
	}
	if n, err := i.Measure(t.Context(), c); err != nil || n < 64<<10 || n > 2<<20 {
		t.Errorf("measured %d, %v", n, err)
	}

	// Rebasing writes what differs, or nothing.
	empty := image(t, in("empty.qcow2"), "-f", "qcow2")
	if err := i.Rebase(t.Context(), c, empty, QCOW2, true, nil); err != nil {
		t.Fatal(err)
	}
	written(t, child, QCOW2, true)
	if err := i.Rebase(t.Context(), mustChain(t, child, QCOW2), in("nowhere.raw"), Raw, false, nil); err != nil {
		t.Fatal(err)
	}
	if h, err := ReadHeader(open(t, child)); err != nil || h.Backing != in("nowhere.raw") || h.BackingFormat != Raw {
		t.Errorf("got %+v, %v", h, err)
	}

	for _, args := range [][]string{{"snapshot", "-c", "before", base}, {"bitmap", "--add", base, "since"}} {
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	got, err := i.Info(t.Context(), Layer{Path: base, Format: QCOW2, File: open(t, base)})
	if err != nil || len(got.Snapshots) != 1 || got.Snapshots[0].Name != "before" || len(got.Bitmaps) != 1 || got.Bitmaps[0].Name != "since" {
		t.Errorf("got %+v, %v", got, err)
	}
	if h, err := ReadHeader(open(t, base)); err != nil || h.Snapshots != 1 {
		t.Errorf("got %+v, %v", h, err)
	}
}

func TestImgErrors(t *testing.T) {
	dir := t.TempDir()
	path := image(t, filepath.Join(dir, "a.qcow2"), "-f", "qcow2")
	c := mustChain(t, path, QCOW2)
	if err := img(t).Resize(t.Context(), c, 1<<10); err == nil || strings.Contains(err.Error(), "/proc/self") {
		t.Errorf("got %v", err)
	}
	if err := (Img{}).Resize(t.Context(), c, 2<<20); err == nil || !strings.Contains(err.Error(), "not installed (Debian: qemu-utils)") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := img(t).Resize(ctx, c, 2<<20); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// As somebody who may not write to it.
	i := img(t)
	i.UID, i.GID = uid, gid
	if err := i.Resize(t.Context(), c, 2<<20); err == nil || !strings.Contains(err.Error(), "Permission denied") || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

func TestDraft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	left := func() []string {
		names, _ := filepath.Glob(filepath.Join(dir, ".*"))
		return names
	}
	d := draft(t, path)
	if _, err := NewDraft(path); !errors.Is(err, ErrDraft) {
		t.Errorf("a second one: %v", err)
	}
	d.Close()
	if len(left()) > 0 {
		t.Errorf("left behind: %v", left())
	}
	// What a crash left.
	if err := os.WriteFile(draftPath(path), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	d = draft(t, path)
	if _, err := d.File.WriteString("whole"); err != nil {
		t.Fatal(err)
	}
	if err := d.Place(); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "whole" {
		t.Errorf("got %q, %v", content, err)
	}
	// A place that is taken.
	d = draft(t, path)
	if err := d.Place(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v", err)
	}
	d.Close()

	// What replaces a file has its owner, mode and access control list.
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(path, "user.note", []byte("kept"), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	acl := []byte("\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x39\x30\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff")
	if err := unix.Setxattr(path, "system.posix_acl_access", acl, 0); err != nil {
		t.Fatal(err)
	}
	d = draft(t, path)
	if err := d.Like(open(t, path)); err != nil {
		t.Fatal(err)
	}
	if err := d.Replace(d.File); !errors.Is(err, ErrReplaced) {
		t.Errorf("in the place of another file: %v", err)
	}
	if err := d.Replace(open(t, path)); err != nil {
		t.Fatal(err)
	}
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil || s.Size != 0 || s.Uid != uid || s.Gid != gid || s.Mode&0o777 != 0o640 {
		t.Errorf("%d bytes, owner %d:%d, mode %o, %v", s.Size, s.Uid, s.Gid, s.Mode, err)
	}
	got := make([]byte, 100)
	if n, err := unix.Getxattr(path, "system.posix_acl_access", got); err != nil || string(got[:n]) != string(acl) {
		t.Errorf("list %q, %v", got[:n], err)
	}
	if len(left()) > 0 {
		t.Errorf("left behind: %v", left())
	}
}

// What reads an image of root's has no capability, and the next that runs has all.
func TestBare(t *testing.T) {
	program := filepath.Join(t.TempDir(), "qemu-img")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nexec cat /proc/self/status\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, bare := range []bool{true, false} {
		out, err := Img{Program: program, Bare: bare}.run(t.Context(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
			if strings.Contains(string(out), want) != bare {
				t.Errorf("bare %v: got %s, want %q", bare, out, want)
			}
		}
	}
}

// The owner of an image can do all of it without capabilities, wherever it lies.
func TestBareOwner(t *testing.T) {
	dir := t.TempDir()
	path := image(t, filepath.Join(dir, "own.qcow2"), "-f", "qcow2")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err := errors.Join(err, os.Chmod(path, 0o600), os.Chmod(dir, 0)); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	i, l := img(t), Layer{Path: path, Format: QCOW2, File: f}
	i.Bare = true
	if err := i.CreateSnapshot(t.Context(), l, "one"); err != nil {
		t.Fatal(err)
	}
	if info, err := i.Info(t.Context(), l); err != nil || len(info.Snapshots) != 1 {
		t.Errorf("got %+v, %v", info, err)
	}
}

// Whoever may write to the directory above puts a link to another directory in the
// place of the one that a draft is made in.
func TestDraftInADirectoryThatIsSwapped(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"mine", "others"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, d, "disk"), []byte(d), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "mine", "disk")
	old := open(t, path)
	swap := func() {
		t.Helper()
		if err := errors.Join(os.Rename(filepath.Join(dir, "mine"), filepath.Join(dir, "kept")), os.Symlink("others", filepath.Join(dir, "mine"))); err != nil {
			t.Fatal(err)
		}
	}
	before := draft(t, path)
	swap()
	after := draft(t, path)
	if err := after.Replace(old); !errors.Is(err, ErrReplaced) {
		t.Errorf("got %v", err)
	}
	if err := before.Replace(old); err != nil {
		t.Error(err)
	}
	after.Close()
	for file, want := range map[string]string{"others/disk": "others", "kept/disk": ""} {
		if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", ".*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

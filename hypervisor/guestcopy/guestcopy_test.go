package guestcopy

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// here is a guest that is this host; its home is a directory.
type here struct {
	home string
	// damage is done to what is read and written.
	damage func([]byte) []byte
	read   *string // the path that was read last
}

func (h here) Run(ctx context.Context, script string, args []string, stdout io.Writer) (int, string, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", script, "vmctl"}, args...)...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = h.home, stdout, &stderr
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = nil
	}
	return cmd.ProcessState.ExitCode(), stderr.String(), err
}

func (h here) WriteFile(_ context.Context, path string, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return os.WriteFile(path, h.damage(b), 0o600)
}

func (h here) ReadFile(_ context.Context, path string, w io.Writer) error {
	*h.read = path
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	_, err = w.Write(h.damage(b))
	return err
}

func sound(b []byte) []byte { return b }

// twoSides are a directory of the host and a guest.
func twoSides(t *testing.T) (string, here) {
	return t.TempDir(), here{t.TempDir(), sound, new(string)}
}

func quiet(int64, int64) {}

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, mode),
		os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0))); err != nil {
		t.Fatal(err)
	}
}

// is checks a file that was written by write, and that nothing else is beside it.
func is(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != text {
		t.Errorf("%s: %q, %v", path, b, err)
		return
	}
	info, _ := os.Stat(path)
	if info.Mode().Perm() != mode || info.ModTime().Unix() != 1e9 {
		t.Errorf("%s: %v, %v", path, info.Mode(), info.ModTime())
	}
	noneLeft(t, filepath.Dir(path))
}

func noneLeft(t *testing.T, dir string) {
	t.Helper()
	if left, _ := filepath.Glob(dir + "/.vmctl-copy-*"); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
}

func TestFile(t *testing.T) {
	host, guest := twoSides(t)
	write(t, host+"/a", "text\x00\xff", 0o750)
	for dst, want := range map[string]string{"": "a", "b": "b", guest.home + "/c": "c", ".": "a"} {
		if r, err := Push(t.Context(), guest, host+"/a", dst, false, quiet); err != nil || r.Bytes != 6 || r.Destination != guest.home+"/"+want && dst != "." && dst != "" {
			t.Fatalf("to %q: %+v, %v", dst, r, err)
		}
		is(t, guest.home+"/"+want, "text\x00\xff", 0o750)
	}
	// And back, also in place of what is there.
	write(t, host+"/back", "before", 0o600)
	for range 2 {
		if _, err := Pull(t.Context(), guest, "b", host+"/back", false, quiet); err != nil {
			t.Fatal(err)
		}
		is(t, host+"/back", "text\x00\xff", 0o750)
	}
	if r, err := Pull(t.Context(), guest, "c", host, false, quiet); err != nil || r.Destination != host+"/c" {
		t.Errorf("%+v, %v", r, err)
	}
	is(t, host+"/c", "text\x00\xff", 0o750)
}

func TestStream(t *testing.T) {
	_, guest := twoSides(t)
	write(t, guest.home+"/kept", "before", 0o640)
	if _, err := PushStream(t.Context(), guest, strings.NewReader("after"), "kept", quiet); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(guest.home + "/kept"); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	var out bytes.Buffer
	if _, err := PullStream(t.Context(), guest, "kept", &out, quiet); err != nil || out.String() != "after" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if _, err := PushStream(t.Context(), guest, strings.NewReader(""), ".", quiet); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("got %v", err)
	}
}

func TestDirectory(t *testing.T) {
	host, guest := twoSides(t)
	write(t, host+"/d/a", "a", 0o600)
	write(t, host+"/d/e/b c", "b", 0o755)
	if err := errors.Join(os.Symlink("a", host+"/d/link"), os.Mkdir(host+"/d/empty", 0o700), os.Chtimes(host+"/d/empty", time.Unix(1e9, 0), time.Unix(1e9, 0))); err != nil {
		t.Fatal(err)
	}
	if _, err := Push(t.Context(), guest, host+"/d", "new", false, quiet); err == nil || !strings.Contains(err.Error(), "want -r") {
		t.Errorf("got %v", err)
	}
	if _, err := Push(t.Context(), guest, host+"/d", "new", true, quiet); err != nil {
		t.Fatal(err)
	}
	if _, err := Push(t.Context(), guest, host+"/d", guest.home, true, quiet); err != nil {
		t.Fatal(err)
	}
	if _, err := Pull(t.Context(), guest, "d", host+"/back", true, quiet); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(*guest.read); !strings.HasPrefix(*guest.read, "/var/tmp/") || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left: %s, %v", *guest.read, err)
	}
	for _, dir := range []string{guest.home + "/new", guest.home + "/d", host + "/back"} {
		is(t, dir+"/a", "a", 0o600)
		is(t, dir+"/e/b c", "b", 0o755)
		if link, err := os.Readlink(dir + "/link"); link != "a" {
			t.Errorf("%q, %v", link, err)
		}
		if info, err := os.Stat(dir + "/empty"); err != nil || info.Mode().Perm() != 0o700 || info.ModTime().Unix() != 1e9 {
			t.Errorf("%v, %v", info, err)
		}
		noneLeft(t, filepath.Dir(dir))
	}
	// A directory replaces nothing.
	if _, err := Push(t.Context(), guest, host+"/d", guest.home, true, quiet); err == nil || !strings.Contains(err.Error(), "/d exists") {
		t.Errorf("got %v", err)
	}
	write(t, host+"/file", "", 0o600)
	if _, err := Pull(t.Context(), guest, "d", host+"/file", true, quiet); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v", err)
	}
}

// What is damaged on the way gets no name, and what has it stays.
func TestDamaged(t *testing.T) {
	host, guest := twoSides(t)
	for name, damage := range map[string]func([]byte) []byte{
		"short":   func(b []byte) []byte { return b[:len(b)-1] },
		"changed": func(b []byte) []byte { return append([]byte{b[0] ^ 1}, b[1:]...) },
	} {
		guest.damage = damage
		write(t, host+"/a", "after", 0o644)
		write(t, guest.home+"/a", "before", 0o644)
		if _, err := Push(t.Context(), guest, host+"/a", "a", false, quiet); err == nil || !strings.Contains(err.Error(), "has another") {
			t.Errorf("%s: got %v", name, err)
		}
		is(t, guest.home+"/a", "before", 0o644)
		if _, err := Pull(t.Context(), guest, "a", host+"/a", false, quiet); err == nil || !strings.Contains(err.Error(), "has another") {
			t.Errorf("%s: got %v", name, err)
		}
		is(t, host+"/a", "after", 0o644)
	}
}

func TestRefused(t *testing.T) {
	host, guest := twoSides(t)
	write(t, host+"/a", "a", 0o644)
	if out, err := exec.Command("mkfifo", guest.home+"/fifo", host+"/fifo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, test := range []struct{ src, dst, want string }{
		{host + "/no", "x", "no such file"},
		{host + "/fifo", "x", "neither a file nor a directory"},
		{host + "/a", "no/x", "no: no such directory"},
		{host + "/a", "x/", "is not a directory"},
		{host + "/a", "fifo", "is not a file"},
		{host + "/a", "x\ny", "without line breaks"},
	} {
		if _, err := Push(t.Context(), guest, test.src, test.dst, false, quiet); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s to %s: %v, want %q", test.src, test.dst, err, test.want)
		}
	}
	for _, test := range []struct{ src, dst, want string }{
		{"no", host, "No such file"},
		{"fifo", host, "neither a file nor a directory"},
		{".", host, "want -r"},
		{"/etc/hostname", host + "/no/x", "no such file"},
		{"/etc/hostname", host + "/x/", "is no directory"},
		{"/etc/hostname", host + "/fifo", "is not a file"},
	} {
		if _, err := Pull(t.Context(), guest, test.src, test.dst, false, quiet); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s to %s: %v, want %q", test.src, test.dst, err, test.want)
		}
	}
	noneLeft(t, guest.home)
	noneLeft(t, host)
}

// Nothing of a guest's archive gets out of the directory.
func TestUnpackIsConfined(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"above":        {{Name: "../evil", Typeflag: tar.TypeReg}},
		"absolute":     {{Name: "/evil", Typeflag: tar.TypeReg}},
		"by a link":    {{Name: "l", Linkname: "..", Typeflag: tar.TypeSymlink}, {Name: "l/evil", Typeflag: tar.TypeReg}},
		"linked to":    {{Name: "evil", Linkname: "../secret", Typeflag: tar.TypeLink}},
		"over a link":  {{Name: "l", Linkname: "../secret", Typeflag: tar.TypeSymlink}, {Name: "l", Typeflag: tar.TypeReg}},
		"mode of link": {{Name: "l", Linkname: "../secret", Typeflag: tar.TypeSymlink}, {Name: "l", Typeflag: tar.TypeDir, Mode: 0o777}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/secret", "secret", 0o600)
			if err := os.Mkdir(dir+"/in", 0o700); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range headers {
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
			}
			w.Close()
			if err := unpack(&b, dir+"/in", int64(b.Len())); err == nil {
				t.Error("no error")
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 2 {
				t.Errorf("outside: %v", entries)
			}
			is(t, dir+"/secret", "secret", 0o600)
		})
	}
	// Bits that lend rights, or let others write, do not come along.
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "suid", Typeflag: tar.TypeReg, Mode: 0o6777}), w.Close()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unpack(&b, dir, int64(b.Len())); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir + "/suid"); err != nil || info.Mode() != 0o755 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// What a guest says of a file gives it no other name here, no more bytes than it
// has said, and no rights to others.
func TestPullFromALiar(t *testing.T) {
	host, guest := twoSides(t)
	write(t, guest.home+"/.bashrc", "evil", 0o666)
	if err := os.Symlink(".bashrc", guest.home+"/report"); err != nil {
		t.Fatal(err)
	}
	if r, err := Pull(t.Context(), guest, "report", host, false, quiet); err != nil || r.Destination != host+"/report" {
		t.Errorf("%+v, %v", r, err)
	}
	is(t, host+"/report", "evil", 0o644)
	for _, src := range []string{".", "..", "/", "a/.."} {
		if err := os.MkdirAll(guest.home+"/a", 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Pull(t.Context(), guest, src, host, true, quiet); err == nil || !strings.Contains(err.Error(), "has no name") {
			t.Errorf("%s: %v", src, err)
		}
	}
	guest.damage = func(b []byte) []byte { return append(b, 'x') }
	if _, err := Pull(t.Context(), guest, "report", host, false, quiet); err == nil || !strings.Contains(err.Error(), "more bytes than it said") {
		t.Errorf("got %v", err)
	}
	is(t, host+"/report", "evil", 0o644)
}

// An archive of holes does not become more than what it is itself.
func TestUnpackIsBounded(t *testing.T) {
	holes := t.TempDir()
	write(t, holes+"/a", "", 0o644)
	if err := os.Truncate(holes+"/a", 1<<30); err != nil {
		t.Fatal(err)
	}
	archive, err := exec.Command("tar", "-c", "-S", "-C", holes, ".").Output()
	if err != nil || len(archive) > 1<<20 {
		t.Fatalf("%d bytes, %v", len(archive), err)
	}
	dir := t.TempDir()
	if err := unpack(bytes.NewReader(archive), dir, int64(len(archive))); err == nil || !strings.Contains(err.Error(), "more bytes than it has itself") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir + "/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

package disk

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

const (
	uid = 61901
	gid = 61902
)

func maker(t *testing.T) Maker {
	t.Helper()
	program, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Fatal(err)
	}
	return Maker{QemuImg: program}
}

// image makes one with qemu-img itself.
func image(t *testing.T, path string, args ...string) string {
	t.Helper()
	args = append([]string{"create", "-q"}, append(args, path, "1M")...)
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
	return path
}

// info is what qemu-img says of an image.
func info(t *testing.T, path string) (i struct {
	Format  string `json:"format"`
	Size    int64  `json:"virtual-size"`
	Backing string `json:"backing-filename"`
}) {
	t.Helper()
	out, err := exec.Command("qemu-img", "info", "--output=json", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &i); err != nil {
		t.Fatal(err)
	}
	return i
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFormat(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		format string
		args   []string
	}{
		{"raw", nil},
		{"qcow2", nil},
		{"qcow2", []string{"-o", "compat=0.10"}},
		{"qed", nil},
		{"vmdk", nil},
		{"vmdk", []string{"-o", "subformat=monolithicFlat"}},
		{"vdi", nil},
		{"vhdx", nil},
		{"vpc", nil},
		{"vpc", []string{"-o", "subformat=fixed"}},
	} {
		path := image(t, filepath.Join(dir, "disk"), append([]string{"-f", test.format}, test.args...)...)
		if got, err := Format(open(t, path)); err != nil || got != test.format {
			t.Errorf("%s %v: got %q, %v", test.format, test.args, got, err)
		}
	}
	// qemu-img times the CPU before it makes one of these, and gives up on a
	// busy machine. The header begins so (LUKS1 On-Disk Format, 2.2.1).
	luks := filepath.Join(dir, "luks")
	if err := os.WriteFile(luks, append([]byte("LUKS\xba\xbe\x00\x01"), make([]byte, 4096)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Format(open(t, luks)); err != nil || got != "luks" {
		t.Errorf("luks: got %q, %v", got, err)
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	raw := image(t, filepath.Join(dir, "raw.img"), "-f", "raw")
	qcow2 := image(t, filepath.Join(dir, "disk.qcow2"), "-f", "qcow2")
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ path, format, want string }{
		{raw, "raw", ""},
		{qcow2, "qcow2", ""},
		{empty, "raw", ""},
		{qcow2, "raw", qcow2 + ` is a qcow2 image, not raw: write format = "qcow2"`},
		{raw, "qcow2", "want a qcow2 image, " + raw + " is not one"},
		{empty, "qcow2", "want a qcow2 image, " + empty + " is not one"},
		{qcow2, "vmdk", "want a vmdk image, " + qcow2 + " is not one"},
	} {
		got := ""
		if err := Check(open(t, test.path), test.format); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s as %s: got %q, want %q", test.path, test.format, got, test.want)
		}
	}
}

func TestHeader(t *testing.T) {
	dir := t.TempDir()
	base := image(t, filepath.Join(dir, "base, of all.img"), "-f", "raw")
	child := image(t, filepath.Join(dir, "child.qcow2"), "-f", "qcow2", "-b", base, "-F", "raw")
	h, err := ReadHeader(open(t, child))
	if err != nil || h != (Header{Version: 3, Size: 1 << 20, Backing: base, BackingFormat: "raw"}) {
		t.Errorf("got %+v, %v", h, err)
	}
	data := image(t, filepath.Join(dir, "data.qcow2"), "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data"))
	if h, err := ReadHeader(open(t, data)); err != nil || !h.DataFile {
		t.Errorf("with a data file: got %+v, %v", h, err)
	}
	if h, err := ReadHeader(open(t, base)); err == nil {
		t.Errorf("of a raw image: got %+v, want an error", h)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x20\x00\x00\x00\x04\x00\x00\x00\x10\x00\x00\x00\x00\x00\x10\x00\x00/etc"))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if h, err := ReadHeader(open(t, path)); err == nil && len(h.Backing) > maxBacking {
			t.Errorf("%q: %+v", content, h)
		}
	})
}

// A raw disk of an image is a copy of it, whatever the image's format: as sparse,
// grown, and independent of it.
func TestMakeCopy(t *testing.T) {
	m, dir := maker(t), searchable(t)
	content := append(make([]byte, 8<<20), bytes.Repeat([]byte("content "), 1<<16)...)
	golden := filepath.Join(dir, "golden.raw")
	if err := os.WriteFile(golden, content, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"raw", "qcow2", "vmdk", "vdi"} {
		base := golden
		if format != Raw {
			base = filepath.Join(dir, "golden."+format)
			if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", format, golden, base).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		if err := os.Chmod(base, 0o444); err != nil {
			t.Fatal(err)
		}
		n := hypervisor.NewFile{Path: filepath.Join(dir, "disk-"+format+".raw"), Format: Raw, Size: 16 << 20, Backing: base, BackingFormat: format}
		if NeedsQemuImg(n) == (format == Raw) {
			t.Errorf("%s: needs qemu-img: %v", format, NeedsQemuImg(n))
		}
		if err := m.Make(t.Context(), n, uid, gid); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(n.Path)
		if err != nil || len(got) != 16<<20 || !bytes.Equal(got[:len(content)], content) || !bytes.Equal(got[len(content):], make([]byte, 16<<20-len(content))) {
			t.Errorf("%s: %d bytes, %v", format, len(got), err)
		}
		var s unix.Stat_t
		if err := unix.Stat(n.Path, &s); err != nil || s.Blocks*512 > 2<<20 || s.Uid != uid || s.Mode&0o777 != 0o600 {
			t.Errorf("%s: %d bytes on the disk, owner %d, mode %o, %v", format, s.Blocks*512, s.Uid, s.Mode, err)
		}
		// What is there already is kept, without the image.
		write(t, n.Path, Raw)
		n.BackingFormat, n.Backing = "", "/no/such/image"
		if err := m.Make(t.Context(), n, uid, gid); err != nil {
			t.Fatal(err)
		}
		written(t, n.Path, Raw, true)
	}
	// A size that is not said, or less, is the image's own.
	n := hypervisor.NewFile{Path: filepath.Join(dir, "same.raw"), Format: Raw, Backing: golden, BackingFormat: Raw}
	if err := m.Make(t.Context(), n, uid, gid); err != nil {
		t.Fatal(err)
	}
	if i := info(t, n.Path); i.Size != int64(len(content)) {
		t.Errorf("got %+v", i)
	}
}

// searchable is a directory that owners of images reach, as they do
// /var/lib/vmctl/vms/NAME.
func searchable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMake(t *testing.T) {
	dir := searchable(t)
	base := image(t, filepath.Join(dir, `base, "of" 100%.img`), "-f", "raw")
	if err := os.Chown(base, uid, gid); err != nil {
		t.Fatal(err)
	}
	vars := filepath.Join(dir, "vars.fd")
	if err := os.WriteFile(vars, []byte("variables"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := maker(t)
	for _, test := range []struct {
		file hypervisor.NewFile
		size int64
	}{
		{hypervisor.NewFile{Path: "new.qcow2", Format: "qcow2", Size: 20 << 30}, 20 << 30},
		{hypervisor.NewFile{Path: "new.raw", Format: "raw", Size: 3 << 20}, 3 << 20},
		{hypervisor.NewFile{Path: "child.qcow2", Format: "qcow2", Backing: base, BackingFormat: "raw", Ephemeral: true}, 1 << 20},
		{hypervisor.NewFile{Path: "nvram.fd", Format: "raw", Copy: vars}, 512},
	} {
		test.file.Path = filepath.Join(dir, test.file.Path)
		if err := m.Make(t.Context(), test.file, uid, gid); err != nil {
			t.Fatal(err)
		}
		if i := info(t, test.file.Path); i.Format != test.file.Format || i.Size != test.size || i.Backing != test.file.Backing {
			t.Errorf("%+v: made %+v", test.file, i)
		}
		var s unix.Stat_t
		if err := unix.Stat(test.file.Path, &s); err != nil || s.Uid != uid || s.Gid != gid || s.Mode&0o777 != 0o600 {
			t.Errorf("%s: owner %d:%d, mode %o, %v", test.file.Path, s.Uid, s.Gid, s.Mode, err)
		}
	}
	if left, _ := filepath.Glob(dir + "/.*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestMakeKeepsAndGrows(t *testing.T) {
	m, dir := maker(t), searchable(t)
	for _, format := range []string{"raw", "qcow2"} {
		n := hypervisor.NewFile{Path: filepath.Join(dir, "disk."+format), Format: format, Size: 2 << 20}
		if err := m.Make(t.Context(), n, uid, gid); err != nil {
			t.Fatal(err)
		}
		write(t, n.Path, format)
		for _, step := range []struct{ wanted, size int64 }{{2 << 20, 2 << 20}, {4 << 20, 4 << 20}, {1 << 20, 4 << 20}} {
			n.Size = step.wanted
			if err := m.Make(t.Context(), n, uid+1, gid); err != nil {
				t.Fatal(err)
			}
			if i := info(t, n.Path); i.Size != step.size || i.Format != format {
				t.Errorf("wanted %d bytes: is %+v", step.wanted, i)
			}
			written(t, n.Path, format, true)
		}
		var s unix.Stat_t
		if err := unix.Stat(n.Path, &s); err != nil || s.Uid != uid+1 {
			t.Errorf("owner %d, %v", s.Uid, err)
		}
		n.Ephemeral = true
		if err := m.Make(t.Context(), n, uid, gid); err != nil {
			t.Fatal(err)
		}
		written(t, n.Path, format, false)
	}
}

// write writes a pattern that [written] looks for.
func write(t *testing.T, path, format string) {
	t.Helper()
	if out, err := exec.Command("qemu-io", "-f", format, "-c", "write -q -P 0xab 0 512", path).CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v: %s", err, out)
	}
}

func written(t *testing.T, path, format string, want bool) {
	t.Helper()
	out, err := exec.Command("qemu-io", "-f", format, "-c", "read -q -P 0xab 0 512", path).CombinedOutput()
	if got := err == nil && !strings.Contains(string(out), "failed"); got != want {
		t.Errorf("%s: content is there: %v, want %v (%s)", path, got, want, out)
	}
}

// An image names the files behind it; those are opened with no more rights than
// its owner has.
func TestMakeAsOwner(t *testing.T) {
	dir := searchable(t)
	secret := image(t, filepath.Join(dir, "secret.raw"), "-f", "raw")
	if err := os.Chmod(secret, 0o600); err != nil {
		t.Fatal(err)
	}
	base := image(t, filepath.Join(dir, "base.qcow2"), "-f", "qcow2", "-b", secret, "-F", "raw")
	if err := os.Chmod(base, 0o644); err != nil {
		t.Fatal(err)
	}
	n := hypervisor.NewFile{Path: filepath.Join(dir, "child.qcow2"), Format: "qcow2", Backing: base, BackingFormat: "qcow2"}
	err := maker(t).Make(t.Context(), n, uid, gid)
	if err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("got %v", err)
	}
}

func TestMakeWithoutSpace(t *testing.T) {
	dir := searchable(t)
	if err := unix.Mount("vmctl-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	elsewhere := searchable(t)
	vars := filepath.Join(elsewhere, "vars.fd")
	golden := filepath.Join(elsewhere, "golden.qcow2")
	if err := os.WriteFile(vars, bytes.Repeat([]byte("variables"), 1<<17), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", vars, golden).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, n := range []hypervisor.NewFile{
		{Path: filepath.Join(dir, "disk.qcow2"), Format: "qcow2", Size: 1 << 30},
		{Path: filepath.Join(dir, "nvram.fd"), Format: "raw", Copy: vars},
		{Path: filepath.Join(dir, "child.qcow2"), Format: "qcow2", Backing: vars, BackingFormat: "raw"},
		{Path: filepath.Join(dir, "copy.raw"), Format: "raw", Backing: vars, BackingFormat: "raw"},
		{Path: filepath.Join(dir, "converted.raw"), Format: "raw", Backing: golden, BackingFormat: "qcow2"},
	} {
		err := maker(t).Make(t.Context(), n, uid, gid)
		if err == nil || !strings.Contains(err.Error(), "make "+n.Path) || !strings.Contains(err.Error(), "o space left on device") {
			t.Errorf("%s: got %v", n.Path, err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("left behind: %v", entries)
		}
	}
}

func TestMakeRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "disk.raw")
	if err := os.Symlink("/etc/passwd", link); err != nil {
		t.Fatal(err)
	}
	err := Maker{}.Make(t.Context(), hypervisor.NewFile{Path: link, Format: "raw", Size: 1 << 20}, uid, gid)
	if err == nil || err.Error() != link+" is not a regular file" {
		t.Errorf("got %v", err)
	}
}

// What is run holds the locks of who runs it.
func TestMakerLocks(t *testing.T) {
	dir := t.TempDir()
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	program := filepath.Join(dir, "qemu-img")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n[ /proc/self/fd/3 -ef "+lock.Name()+" ] || echo it does not hold the lock >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	m := Maker{QemuImg: program, Locks: []*os.File{lock}}
	if err := m.run(t.Context(), os.Getuid(), os.Getgid(), "create"); err == nil || strings.Contains(err.Error(), "lock") {
		t.Error(err)
	}
}

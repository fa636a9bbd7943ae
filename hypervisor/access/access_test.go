package access

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// Users of two machines, of the range that systemd gives to DynamicUser=.
var (
	alice = User{61901, 61901}
	bob   = User{61902, 61902}
)

// host is a throw-away tree in which machines run whose runtime directories
// are made. It needs root: access is given to other users.
type host struct {
	*testing.T
	paths config.Paths
	dir   string // for files
}

func newHost(t *testing.T) host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("access is given to other users: run this as root")
	}
	h := host{t, config.SystemPaths(t.TempDir()), filepath.Join(t.TempDir(), "files")}
	h.mkdir(h.dir, 0o755)
	h.mkdir(h.paths.State, 0o755)
	h.mkdir(h.paths.Runtime, 0o755)
	for _, vm := range []string{"first", "second"} {
		h.mkdir(h.paths.StateDir(vm), 0o755)
		h.mkdir(h.paths.RuntimeDir(vm), 0o750)
	}
	return h
}

func (h host) mkdir(path string, mode os.FileMode) {
	h.Helper()
	if err := os.MkdirAll(path, mode); err != nil {
		h.Fatal(err)
	}
}

func (h host) file(name string, mode os.FileMode) string {
	h.Helper()
	path := filepath.Join(h.dir, name)
	h.mkdir(filepath.Dir(path), 0o700)
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		h.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		h.Fatal(err)
	}
	return path
}

func (h host) take(vm string, u User, files ...hypervisor.File) []Refusal {
	h.Helper()
	refusals, err := Take(h.paths, vm, u, files, inspectNothing)
	if err != nil {
		h.Fatal(err)
	}
	return refusals
}

// mustTake is take where nothing may be refused.
func (h host) mustTake(vm string, u User, files ...hypervisor.File) {
	h.Helper()
	if r := h.take(vm, u, files...); len(r) > 0 {
		h.Fatalf("refused: %v", r)
	}
}

func (h host) giveBack(vm string) {
	h.Helper()
	if err := GiveBack(h.paths, vm); err != nil {
		h.Fatal(err)
	}
}

// state is everything that may not change for good.
func (h host) state(paths ...string) string {
	h.Helper()
	args := append([]string{"--absolute-names", "--numeric"}, paths...)
	out, err := exec.Command("getfacl", args...).CombinedOutput()
	if err != nil {
		h.Fatalf("getfacl: %v: %s", err, out)
	}
	for _, p := range paths {
		s, err := os.Stat(p)
		if err != nil {
			h.Fatal(err)
		}
		out = fmt.Appendf(out, "%v\n", s.Mode())
	}
	return string(out)
}

func inspectNothing(hypervisor.File, *os.File) error { return nil }

// can says whether a process of u can open path, for writing too.
func can(u User, path string, write bool) bool {
	redirection := `exec 3<"$1"`
	if write {
		redirection = `exec 3<>"$1"`
	}
	cmd := exec.Command("/bin/sh", "-c", redirection, "sh", path)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.UID, Gid: u.GID}}
	return cmd.Run() == nil
}

func setfacl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("setfacl", args...).CombinedOutput(); err != nil {
		t.Fatalf("setfacl: %v: %s", err, out)
	}
}

func TestGivenAndTakenBack(t *testing.T) {
	h := newHost(t)
	disk := h.file("private/deep/disk, 100% \"raw\".img", 0o640)
	iso := h.file("private/cd.iso", 0o600)
	all := []string{h.dir, filepath.Dir(iso), filepath.Dir(disk), disk, iso}
	before := h.state(all...)
	if can(alice, disk, false) {
		t.Fatal("the disk can be read before access is given")
	}

	h.mustTake("first", alice,
		hypervisor.File{Key: "disk.root.path", Path: disk, Write: true, Disk: true, Format: "raw"},
		hypervisor.File{Key: "disk.cd.path", Path: iso, Disk: true, Format: "raw"})
	if !can(alice, disk, true) || !can(alice, iso, false) {
		t.Error("the machine's user has not got access")
	}
	if can(alice, iso, true) {
		t.Error("the machine's user may write to a disk that it should only read")
	}
	if can(bob, disk, false) {
		t.Error("another user got access")
	}

	h.giveBack("first")
	if after := h.state(all...); after != before {
		t.Errorf("after: %s\nbefore: %s", after, before)
	}
	if can(alice, disk, false) {
		t.Error("access was not taken back")
	}
	h.giveBack("first") // again is no error
	if _, err := os.Stat(h.paths.Grants("first")); err == nil {
		t.Error("the note is still there")
	}
}

func TestNothingGivenThatIsThere(t *testing.T) {
	h := newHost(t)
	kernel := h.file("vmlinuz", 0o644)
	os.Chmod(filepath.Dir(h.dir), 0o755)
	os.Chmod(filepath.Dir(filepath.Dir(h.dir)), 0o755)
	before := h.state(kernel)
	h.mustTake("first", alice, hypervisor.File{Key: "boot.kernel", Path: kernel})
	if after := h.state(kernel); after != before {
		t.Errorf("after: %s\nbefore: %s", after, before)
	}
}

// Lists that an administrator made mean the same for everybody else while
// access is given, and are restored to the letter.
func TestExistingListIsKept(t *testing.T) {
	h := newHost(t)
	disk := h.file("disk.img", 0o660)
	setfacl(t, "-m", "u:61950:rw,g:61951:rw,m::r", disk) // 61950 may read, because of the mask
	other := User{61950, 61950}
	h.mustTake("second", bob, hypervisor.File{Key: "disk.x.path", Path: h.file("other.img", 0o600), Disk: true})
	before := h.state(h.dir, disk)

	h.mustTake("first", alice, hypervisor.File{Key: "disk.root.path", Path: disk, Write: true, Disk: true})
	if !can(alice, disk, true) {
		t.Error("the machine's user may not write")
	}
	for _, dir := range []string{filepath.Dir(h.dir), filepath.Dir(filepath.Dir(h.dir))} {
		os.Chmod(dir, 0o755)
	}
	if can(other, disk, true) {
		t.Error("somebody else may write who could not before")
	}
	h.giveBack("first")
	if after := h.state(h.dir, disk); after != before {
		t.Errorf("after: %s\nbefore: %s", after, before)
	}
}

// Two machines on the same file do not take away each other's access, in
// whatever order they end.
func TestSharedFile(t *testing.T) {
	users := map[string]User{"first": alice, "second": bob}
	for _, order := range [][]string{{"first", "second"}, {"second", "first"}} {
		t.Run(order[0], func(t *testing.T) {
			h := newHost(t)
			disk := h.file("cluster/disk.img", 0o640)
			before := h.state(h.dir, filepath.Dir(disk), disk)
			f := hypervisor.File{Key: "disk.data.path", Path: disk, Write: true, Disk: true, Shareable: true}
			h.mustTake("first", alice, f)
			h.mustTake("second", bob, f)
			h.giveBack(order[0])
			if can(users[order[0]], disk, false) {
				t.Error("access was not taken back")
			}
			if !can(users[order[1]], disk, true) {
				t.Error("the other machine lost its access")
			}
			h.giveBack(order[1])
			if after := h.state(h.dir, filepath.Dir(disk), disk); after != before {
				t.Errorf("after: %s\nbefore: %s", after, before)
			}
		})
	}
}

// What an administrator changes meanwhile stays.
func TestChangedMeanwhile(t *testing.T) {
	h := newHost(t)
	disk := h.file("disk.img", 0o600)
	h.mustTake("first", alice, hypervisor.File{Key: "disk.root.path", Path: disk, Write: true, Disk: true})
	setfacl(t, "-m", "u:61950:r", disk)
	h.giveBack("first")
	state := h.state(disk)
	if strings.Contains(state, "61901") || !strings.Contains(state, "user:61950:r--") {
		t.Error(state)
	}
}

func TestRefused(t *testing.T) {
	h := newHost(t)
	file := h.file("disk.img", 0o600)
	fifo := filepath.Join(h.dir, "fifo")
	loop := filepath.Join(h.dir, "loop")
	foreign := filepath.Join(h.dir, "foreign")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink(loop, loop), os.Symlink(file, foreign), os.Lchown(foreign, 1000, 1000)); err != nil {
		t.Fatal(err)
	}
	// A link to another user's link, which leads to that user's own file.
	theirs := h.file("theirs.img", 0o600)
	trusted, chain := filepath.Join(h.dir, "trusted"), filepath.Join(h.dir, "chain")
	if err := errors.Join(os.Chown(theirs, 1001, 1001), os.Symlink(theirs, trusted), os.Lchown(trusted, 1001, 1001),
		os.Symlink(trusted, chain), os.Lchown(chain, 1000, 1000)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path string
		disk bool
		want string
	}{
		{chain, true, chain + ": a symbolic link of user 1000 leads to " + theirs + ", which belongs to user 1001"},
		{h.dir + "/missing", true, h.dir + "/missing does not exist"},
		{h.dir + "/no/such/directory/x", true, h.dir + "/no/such/directory/x does not exist"},
		{h.dir, true, "want a file or block device, " + h.dir + " is a directory"},
		{h.dir, false, "want a file, " + h.dir + " is a directory"},
		{fifo, true, "want a file or block device, " + fifo + " is a FIFO"},
		{"/dev/null", true, "want a file or block device, /dev/null is a character device"},
		{loop, true, loop + ": too many levels of symbolic links"},
		{foreign, true, foreign + ": a symbolic link of user 1000 leads to " + file + ", which belongs to user 0"},
		{file + "/x", true, file + "/x: not a directory"},
	} {
		got := h.take("first", alice, hypervisor.File{Key: "the.key", Path: test.path, Disk: test.disk})
		if len(got) != 1 || got[0].Key != "the.key" || got[0].Text != test.want {
			t.Errorf("%s: got %v, want %q", test.path, got, test.want)
		}
	}
	// All at once, and then nothing is given.
	before := h.state(file)
	got := h.take("first", alice, hypervisor.File{Key: "a", Path: file}, hypervisor.File{Key: "b", Path: fifo}, hypervisor.File{Key: "c", Path: loop})
	if len(got) != 2 || h.state(file) != before {
		t.Errorf("got %v", got)
	}
}

// A socket is given as files are, and only where one was asked for.
func TestSocketOfAPeer(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(h.dir, "peer")
	h.mkdir(dir, 0o700)
	socket := filepath.Join(dir, "x.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
	connects := func(u User) bool {
		// The thread alone, whose credentials are not given back.
		result := make(chan error)
		go func() {
			runtime.LockOSThread()
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				defer unix.Close(fd)
				_, _, e1 := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
				_, _, e2 := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID))
				_, _, e3 := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID))
				if e1|e2|e3 != 0 {
					panic("setresuid")
				}
				err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
			}
			result <- err
		}()
		return <-result == nil
	}
	before := h.state(dir, socket)
	h.mustTake("first", alice, hypervisor.File{Key: "nic.lan.vhost_user", Path: socket, Write: true, Socket: true})
	if !connects(alice) || connects(bob) {
		t.Errorf("alice connects: %v, bob: %v", connects(alice), connects(bob))
	}
	h.giveBack("first")
	if connects(alice) {
		t.Error("taken back, and alice connects")
	}
	if after := h.state(dir, socket); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	file := h.file("no.sock", 0o600)
	for path, want := range map[string]string{
		file:                       "want a socket, " + file + " is a file",
		h.dir:                      "want a socket, " + h.dir + " is a directory",
		filepath.Join(dir, "none"): filepath.Join(dir, "none") + " does not exist",
	} {
		got := h.take("first", alice, hypervisor.File{Key: "k", Path: path, Write: true, Socket: true})
		if len(got) != 1 || got[0].Text != want {
			t.Errorf("got %v, want %q", got, want)
		}
	}
	if got := h.take("first", alice, hypervisor.File{Key: "k", Path: socket}); len(got) != 1 || got[0].Text != "want a file, "+socket+" is a socket" {
		t.Errorf("got %v", got)
	}
}

// What a guest is given the content of is held to the same rule.
func TestReadFile(t *testing.T) {
	h := newHost(t)
	file := h.file("user-data", 0o600)
	foreign, fifo := filepath.Join(h.dir, "foreign"), filepath.Join(h.dir, "fifo")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Symlink(file, foreign), os.Lchown(foreign, 1000, 1000)); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadFile(file, 7); err != nil || string(b) != "content" {
		t.Errorf("got %q, %v", b, err)
	}
	for _, test := range []struct {
		path  string
		limit int64
		want  string
	}{
		{file, 6, file + ": want at most 6 bytes"},
		{h.dir, 7, "want a file, " + h.dir + " is a directory"},
		{fifo, 7, "want a file, " + fifo + " is a FIFO"},
		{h.dir + "/missing", 7, h.dir + "/missing does not exist"},
		{foreign, 7, foreign + ": a symbolic link of user 1000 leads to " + file + ", which belongs to user 0"},
	} {
		if _, err := ReadFile(test.path, test.limit); err == nil || err.Error() != test.want {
			t.Errorf("%s: got %v, want %s", test.path, err, test.want)
		}
	}
}

func TestSymbolicLinkOfRoot(t *testing.T) {
	h := newHost(t)
	h.file("behind/disk.img", 0o600)
	link := filepath.Join(h.dir, "links", "disk.img")
	h.mkdir(filepath.Dir(link), 0o700)
	if err := os.Symlink("../behind/../behind/disk.img", link); err != nil {
		t.Fatal(err)
	}
	h.mustTake("first", alice, hypervisor.File{Key: "disk.root.path", Path: link, Write: true, Disk: true})
	if !can(alice, link, true) {
		t.Error("no access through the link")
	}
}

func TestDiskInUse(t *testing.T) {
	h := newHost(t)
	path := h.file("disk.img", 0o600)
	other := filepath.Join(h.dir, "hard link")
	if err := os.Link(path, other); err != nil {
		t.Fatal(err)
	}
	rw := hypervisor.File{Key: "disk.root.path", Path: path, Write: true, Disk: true}
	ro := hypervisor.File{Key: "disk.root.path", Path: other, Disk: true}
	h.mustTake("first", alice, rw)
	for _, f := range []hypervisor.File{rw, ro} {
		got := h.take("second", bob, f)
		if len(got) != 1 || got[0].Text != f.Path+" is in use by vm@first" {
			t.Errorf("%+v: got %v", f, got)
		}
	}
	if can(bob, path, false) {
		t.Error("access was given to the disk that was refused")
	}
	h.mustTake("first", alice, rw) // its own is no conflict
	h.giveBack("first")
	h.mustTake("first", alice, ro)
	h.mustTake("second", bob, ro) // both only read
	if got := h.take("first", alice, rw); len(got) != 1 {
		t.Errorf("a writer beside a reader: got %v", got)
	}
	h.giveBack("second")
	if got := h.take("first", alice, ro, rw); len(got) != 1 || got[0].Text != path+" is another disk of this machine already" {
		t.Errorf("twice in one machine: got %v", got)
	}
	h.mustTake("first", alice, ro, ro)
}

// TestLockedImage: an image that nobody is noted to have is told to be in use by the
// locks on it, QEMU's on single bytes and cloud-hypervisor's on all.
func TestLockedImage(t *testing.T) {
	all := func(kind int16) unix.Flock_t { return unix.Flock_t{Type: kind, Len: 1 << 20} }
	for name, test := range map[string]struct {
		lock        unix.Flock_t
		read, write bool // are refused
	}{
		"written to by QEMU":             {unix.Flock_t{Type: unix.F_RDLCK, Start: lockUses, Len: 2}, true, true},
		"kept from writers by QEMU":      {unix.Flock_t{Type: unix.F_RDLCK, Start: lockForbids + rightWrite, Len: 1}, false, true},
		"written to by cloud-hypervisor": {all(unix.F_WRLCK), true, true},
		"read by cloud-hypervisor":       {all(unix.F_RDLCK), false, true},
		"read by it, of whatever length": {unix.Flock_t{Type: unix.F_RDLCK}, false, true},
	} {
		h := newHost(t)
		f := hypervisor.File{Key: "disk.root.path", Path: h.file("disk.img", 0o600), Disk: true}
		image, err := os.OpenFile(f.Path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		if err := unix.FcntlFlock(image.Fd(), unix.F_OFD_SETLK, &test.lock); err != nil {
			t.Fatal(err)
		}
		for _, write := range []bool{false, true} {
			want := test.read
			if f.Write = write; write {
				want = test.write
			}
			if got := h.take("first", alice, f); (len(got) > 0) != want {
				t.Errorf("%s, to be written to: %v: got %v", name, write, got)
			}
			h.giveBack("first")
		}
	}
}

// A note that a crash of the host left is no machine that runs.
func TestNoteOfCrash(t *testing.T) {
	h := newHost(t)
	f := hypervisor.File{Key: "disk.root.path", Path: h.file("disk.img", 0o600), Write: true, Disk: true}
	before := h.state(h.dir, f.Path)
	h.mustTake("first", alice, f)
	if err := os.Remove(h.paths.RuntimeDir("first")); err != nil {
		t.Fatal(err)
	}
	h.mustTake("second", bob, f)
	h.giveBack("second")
	h.giveBack("first")
	if after := h.state(h.dir, f.Path); after != before {
		t.Errorf("after: %s\nbefore: %s", after, before)
	}
}

// A crash of the host may leave a note without its content.
func TestEmptyNote(t *testing.T) {
	h := newHost(t)
	for _, vm := range []string{"first", "second"} {
		if err := os.WriteFile(h.paths.Grants(vm), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := hypervisor.File{Key: "disk.root.path", Path: h.file("disk.img", 0o600), Write: true, Disk: true}
	h.mustTake("first", alice, f)
	h.giveBack("first")
}

// Of machines that start at the same moment exactly one gets the disk.
func TestOneWinner(t *testing.T) {
	h := newHost(t)
	f := hypervisor.File{Key: "disk.root.path", Path: h.file("disk.img", 0o600), Write: true, Disk: true}
	for i := range 20 {
		h.mkdir(h.paths.StateDir(fmt.Sprint("vm", i)), 0o755)
		h.mkdir(h.paths.RuntimeDir(fmt.Sprint("vm", i)), 0o755)
	}
	var wg sync.WaitGroup
	winners := make(chan int, 20)
	for i := range 20 {
		wg.Go(func() {
			refusals, err := Take(h.paths, fmt.Sprint("vm", i), User{uint32(61910 + i), 61910}, []hypervisor.File{f}, inspectNothing)
			if err != nil {
				t.Error(err)
			}
			if len(refusals) == 0 {
				winners <- i
			}
		})
	}
	wg.Wait()
	if len(winners) != 1 {
		t.Errorf("%d winners", len(winners))
	}
}

// A QEMU that is nobody's machine has the disk.
func TestDiskLockedByQEMU(t *testing.T) {
	h := newHost(t)
	path := filepath.Join(h.dir, "disk.img")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "raw", path, "1M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	qemu := exec.Command("qemu-io", "-f", "raw", path)
	in, err := qemu.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); qemu.Wait() }()
	out.Read(make([]byte, 1)) // its prompt: it has opened the disk

	got := h.take("first", alice, hypervisor.File{Key: "disk.root.path", Path: path, Write: true, Disk: true})
	want := fmt.Sprintf("%s is in use by qemu-io, process %d", path, qemu.Process.Pid)
	if len(got) != 1 || got[0].Text != want {
		t.Errorf("got %v, want %q", got, want)
	}
}

func TestNoListsOnFileSystem(t *testing.T) {
	h := newHost(t)
	// ramfs has no extended attributes of this kind.
	dir := filepath.Join(h.dir, "ram")
	h.mkdir(dir, 0o755)
	if err := unix.Mount("vmctl-test", dir, "ramfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := h.file("ram/disk.img", 0o600)
	got := h.take("first", alice, hypervisor.File{Key: "disk.root.path", Path: path, Write: true, Disk: true})
	want := "the machine's user may not write to " + path + ", and its file system has no access control lists by which to allow it"
	if len(got) != 1 || got[0].Text != want {
		t.Errorf("got %v, want %q", got, want)
	}
	os.Chmod(path, 0o666)
	h.mustTake("first", alice, hypervisor.File{Key: "disk.root.path", Path: path, Write: true, Disk: true})
}

func TestListRoundTrip(t *testing.T) {
	a := fromMode(0o640).with(entry{tagUser, read | write, 7}, entry{tagUser, read, 5})
	b, err := parseACL(a.bytes())
	if err != nil || !slices.Equal(a, b) {
		t.Errorf("got %v, %v; want %v", b, err, a)
	}
	for _, broken := range []string{"", "\x02\x00\x00", "\x01\x00\x00\x00", "\x02\x00\x00\x00\x01"} {
		if a, err := parseACL([]byte(broken)); err == nil {
			t.Errorf("%q: got %v, want an error", broken, a)
		}
	}
}

func TestAllows(t *testing.T) {
	const owner, group = 10, 20
	for _, test := range []struct {
		list     acl
		uid, gid uint32
		p        perm
		want     bool
	}{
		{fromMode(0o600), owner, 1, read | write, true},
		{fromMode(0o060), owner, group, read, false}, // the owner's entry alone counts
		{fromMode(0o060), 1, group, read, true},
		{fromMode(0o006), 1, group, read, false},
		{fromMode(0o006), 1, 1, read, true},
		{fromMode(0o000), 0, 1, read, true},
		{fromMode(0o600).with(entry{tagUser, read, 1}), 1, 1, read, true},
		{fromMode(0o600).with(entry{tagUser, read, 1}), 1, 1, read | write, false},
		{acl{{tagOwner, 6, noID}, {tagUser, 6, 1}, {tagGroup, 0, noID}, {tagMask, read, noID}, {tagOther, 6, noID}}, 1, 1, write, false},
		{acl{{tagOwner, 6, noID}, {tagGroup, 0, noID}, {tagGroups, 6, 30}, {tagMask, 6, noID}, {tagOther, 0, noID}}, 1, 30, write, true},
	} {
		if got := test.list.allows(owner, group, test.uid, test.gid, test.p); got != test.want {
			t.Errorf("%v: user %d, group %d, %v: got %v", test.list, test.uid, test.gid, test.p, got)
		}
	}
}

// A disk that is plugged in while the machine runs is the machine's as the others
// are, without access for its user; and one that is unplugged is not any more.
func TestAddAndDrop(t *testing.T) {
	h := newHost(t)
	boot, data := h.file("a/boot.img", 0o600), h.file("a/b/data.img", 0o600)
	disk := func(name, path string) hypervisor.File {
		return hypervisor.File{Key: "disk." + name + ".path", Path: path, Write: true, Disk: true}
	}
	before := h.state(boot, data, filepath.Dir(boot), filepath.Dir(data))
	h.mustTake("first", alice, disk("boot", boot))
	taken := h.state(data, filepath.Dir(data))
	add := func(vm string, f hypervisor.File) error {
		files, err := Add(h.paths, vm, alice, f, []int{os.O_RDWR, os.O_RDONLY}, inspectNothing)
		closeAll(files)
		if err == nil && len(files) != 2 {
			t.Errorf("%d files are open", len(files))
		}
		return err
	}
	if err := add("first", disk("data", data)); err != nil {
		t.Fatal(err)
	}
	if h.state(data, filepath.Dir(data)) != taken {
		t.Error("the machine's user was given access")
	}
	if err := add("first", disk("more", data)); err == nil || !strings.Contains(err.Error(), "another disk of this machine") {
		t.Errorf("twice: %v", err)
	}
	if err := add("second", disk("data", data)); err == nil || err.Error() != data+" is in use by vm@first" {
		t.Errorf("a second machine: %v", err)
	}
	if err := add("first", disk("dir", h.dir)); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("a directory: %v", err)
	}
	drop := func(device, keep string) {
		t.Helper()
		if err := Drop(h.paths, "first", device, keep); err != nil {
			t.Fatal(err)
		}
	}
	drop("disk.data", "disk.data.path")
	if err := add("second", disk("data", data)); err == nil {
		t.Error("what is kept is not the machine's")
	}
	drop("disk.data", "")
	if err := add("second", disk("data", data)); err != nil {
		t.Error(err)
	}
	if !can(alice, boot, true) {
		t.Error("the other disk is not the machine's any more")
	}
	drop("disk.boot", "")
	if after := h.state(boot, data, filepath.Dir(boot), filepath.Dir(data)); after != before {
		t.Errorf("after: %s\nbefore: %s", after, before)
	}
	h.giveBack("first")
	h.giveBack("second")
}

package access

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A group is let at one socket alone, and at nothing that is there in its place.
func TestAdmit(t *testing.T) {
	const gid = 4242
	path := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(path, "console.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, link := range map[string]func(string, string) error{"link": os.Symlink, "file": os.Link} {
		if err := link(outside, filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o750); err != nil {
		t.Fatal(err)
	}
	dir, err := os.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, name := range []string{"link", "file", "nothing"} {
		if err := Admit(dir, name, gid); err == nil {
			t.Errorf("let at %s", name)
		}
	}
	for range 2 { // as a unit is started again
		if err := Admit(dir, "console.sock", gid); err != nil {
			t.Fatal(err)
		}
	}
	var socket, file, of unix.Stat_t
	if err := unix.Stat(filepath.Join(path, "console.sock"), &socket); err != nil || socket.Gid != gid || socket.Mode&0o777 != 0o660 {
		t.Errorf("the socket: %v, group %d, mode %o", err, socket.Gid, socket.Mode)
	}
	if err := unix.Stat(outside, &file); err != nil || file.Gid == gid || file.Mode&0o777 != 0o600 {
		t.Errorf("a file outside: %v, group %d, mode %o", err, file.Gid, file.Mode)
	}
	self, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	if err := unix.Fstat(int(self.Fd()), &of); err != nil {
		t.Fatal(err)
	}
	a, err := readACL(int(self.Fd()), of.Mode)
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[perm]bool{execute: true, read: false, write: false} {
		if a.allows(0, 0, 1000, gid, p) != want {
			t.Errorf("%s in the directory is %v", p, !want)
		}
	}
	if a.allows(0, 0, 1000, 4243, execute) {
		t.Error("another group is let in")
	}

	// Another in its place, then none.
	list := func() (acl, unix.Stat_t) {
		t.Helper()
		if err := unix.Fstat(int(self.Fd()), &of); err != nil {
			t.Fatal(err)
		}
		a, err := readACL(int(self.Fd()), of.Mode)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(filepath.Join(path, "console.sock"), &socket); err != nil {
			t.Fatal(err)
		}
		return a, socket
	}
	if err := Admit(dir, "console.sock", 4243); err != nil {
		t.Fatal(err)
	}
	if a, s := list(); a.allows(0, 0, 1000, gid, execute) || !a.allows(0, 0, 1000, 4243, execute) || s.Gid != 4243 {
		t.Errorf("after a change: %v, the socket's group %d", a, s.Gid)
	}
	for range 2 {
		if err := Dismiss(dir, "console.sock", 0); err != nil {
			t.Fatal(err)
		}
	}
	if a, s := list(); !slices.Equal(a, fromMode(0o750)) || s.Gid != 0 || s.Mode&0o777 != 0o600 {
		t.Errorf("after the end: %v, the socket's group %d, mode %o", a, s.Gid, s.Mode)
	}
}

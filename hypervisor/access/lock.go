package access

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

// QEMU says what it does with an image, and what it lets others do, by locking
// single bytes of it (block/file-posix.c): byte lockUses+n if it uses right n,
// byte lockForbids+n if nobody else may.
const (
	lockUses    = 100
	lockForbids = 200

	rightRead  = 0 // consistently
	rightWrite = 1
)

// lockElsewhere is the lock by which another QEMU, qemu-img or cloud-hypervisor has the
// image in a way that excludes ours, if that is QEMU too; nil for none. It is a look
// ahead, for a better message: hypervisors make sure themselves.
func lockElsewhere(data *os.File, f hypervisor.File) *unix.Flock_t {
	conflicts := []int64{lockForbids + rightRead}
	if f.Write {
		conflicts = append(conflicts, lockForbids+rightWrite)
	}
	if !f.Shareable {
		conflicts = append(conflicts, lockUses+rightWrite)
	}
	for _, at := range conflicts {
		l := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
		if err := unix.FcntlFlock(data.Fd(), unix.F_OFD_GETLK, &l); err == nil && l.Type != unix.F_UNLCK {
			return &l
		}
	}
	return nil
}

// onlyReads says whether a lock is that of a cloud-hypervisor that reads an image: it
// locks all of it, from the first byte on, which QEMU never locks. That lets others
// read; QEMU does not know, and ends if it is to.
func onlyReads(l *unix.Flock_t) bool { return l.Type == unix.F_RDLCK && l.Start == 0 }

// InUse says who has an image in a way that excludes reading it, or with write
// changing it: "another process" where that cannot be found out, "" for nobody.
func InUse(image *os.File, write bool) string {
	if lockElsewhere(image, hypervisor.File{Write: write}) == nil {
		return ""
	}
	return cmp.Or(Holder(image.Name()), "another process")
}

// Keep keeps others, a machine that starts as well, from writing to an image
// until the file is closed. It says who writes to it already, like [InUse].
func Keep(image *os.File) string {
	l := unix.Flock_t{Type: unix.F_RDLCK, Start: lockForbids + rightWrite, Len: 1}
	// A file system without locks has none for QEMU either.
	_ = unix.FcntlFlock(image.Fd(), unix.F_OFD_SETLK, &l)
	return InUse(image, false)
}

// Holder says who has a file open: a machine's unit, or a process; "" if that
// cannot be found out.
func Holder(path string) string {
	r, err := open(path)
	if err != nil {
		return ""
	}
	defer r.close()
	return holder(r.file().inode())
}

func holder(file inode) string {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		var s unix.Stat_t
		process := filepath.Dir(filepath.Dir(fd))
		if filepath.Base(process) != self && unix.Stat(fd, &s) == nil && s.Dev == file.Dev && s.Ino == file.Ino {
			return processName(process)
		}
	}
	return ""
}

// processName is the unit of a machine, or the command and number of any other
// process; process is its directory in /proc.
func processName(process string) string {
	cgroup, err := os.ReadFile(process + "/cgroup")
	if err != nil {
		return ""
	}
	for name := range strings.FieldsFuncSeq(string(cgroup), func(r rune) bool { return r == '/' || r == '\n' }) {
		if unit, ok := strings.CutSuffix(name, ".service"); ok && strings.HasPrefix(unit, "vm@") {
			return unit
		}
	}
	comm, err := os.ReadFile(process + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(comm)) + ", process " + filepath.Base(process)
}

package access

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

// Connect connects to a hypervisor by a socket in a machine's runtime directory,
// as [Socket] finds it.
func Connect(ctx context.Context, hv hypervisor.Hypervisor, path string) (hypervisor.Control, error) {
	socket, done, err := Socket(path)
	if err != nil {
		return nil, err
	}
	defer done()
	return hv.Control(ctx, socket)
}

// Peer is the process that listens on a socket in a machine's runtime directory: the
// kernel's word, of when it began to.
func Peer(path string) (pid int, err error) {
	socket, done, err := Socket(path)
	if err != nil {
		return 0, err
	}
	defer done()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return 0, &os.PathError{Op: "connect", Path: path, Err: err}
	}
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt", err)
	}
	return int(peer.Pid), nil
}

// Nobody says whether an error of [Connect] means that no hypervisor runs.
func Nobody(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

// Admit lets the members of a group, and of no other any more, connect to a Unix socket
// in a directory, which they may look for files in by name then; for all else there the
// files' modes stand. The directory is a machine's user's, as is all in it.
func Admit(dir *os.Root, name string, gid int) error {
	return admit(dir, name, gid, 0o660, entry{tagGroups, execute, uint32(gid)})
}

// Dismiss takes back what [Admit] gave; gid is the group of the directory. Who is
// connected stays so.
func Dismiss(dir *os.Root, name string, gid int) error {
	return admit(dir, name, gid, 0o600)
}

func admit(dir *os.Root, name string, gid int, mode os.FileMode, given ...entry) error {
	self, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer self.Close()
	socket, done, err := Socket(procPath(int(self.Fd())) + "/" + name)
	if err != nil {
		return err
	}
	defer done()
	if err := errors.Join(os.Chown(socket, -1, gid), os.Chmod(socket, mode)); err != nil {
		return err
	}
	var s unix.Stat_t
	if err := unix.Fstat(int(self.Fd()), &s); err != nil {
		return err
	}
	a, err := readACL(int(self.Fd()), s.Mode)
	if err != nil {
		return err
	}
	// systemd sets owner and mode of a unit's directory for each of its commands anew.
	a = a.withoutGroups()
	if len(given) > 0 {
		a = a.with(given...)
	}
	return writeACL(int(self.Fd()), a)
}

// Socket finds a Unix socket in a machine's runtime directory and returns a
// path to connect by that no symbolic link turns to another: the directory is
// the machine's user's, and who connects may be root. done lets go of it.
func Socket(path string) (safe string, done func(), err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil || s.Mode&unix.S_IFMT != unix.S_IFSOCK {
		unix.Close(fd)
		return "", nil, errors.Join(err, fmt.Errorf("%s is not a socket", path))
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), func() { unix.Close(fd) }, nil
}

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

// Nobody says whether an error of [Connect] means that no hypervisor runs.
func Nobody(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
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

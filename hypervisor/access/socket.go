package access

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

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

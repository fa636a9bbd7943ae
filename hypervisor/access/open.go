package access

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links are followed; the kernel's own number.
const maxLinks = 40

// node is a file or directory that is held by a descriptor (O_PATH), so that
// what was checked is what is changed.
type node struct {
	fd   int
	path string // how it was reached
	stat unix.Stat_t
}

// inode names a file, whatever path leads to it.
type inode struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

func (n node) inode() inode { return inode{n.stat.Dev, n.stat.Ino} }

func (n node) kind() uint32 { return n.stat.Mode & unix.S_IFMT }

// route is the way to a file: every directory that has to be searched for it,
// and last the file.
type route []node

func (r route) file() node { return r[len(r)-1] }

func (r route) close() {
	for _, n := range r {
		unix.Close(n.fd)
	}
}

// open follows an absolute path. A symbolic link that belongs to somebody else
// than root or the caller leads only to what belongs to the same user: else who
// may write a directory could have a machine be given any file of the host.
func open(path string) (route, error) {
	r, err := walk(path)
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func walk(path string) (r route, err error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("not an absolute path")
	}
	todo := split(path)
	root, err := openNode(unix.AT_FDCWD, "/", "/")
	if err != nil {
		return nil, err
	}
	r = route{root}
	links := 0
	var owners []uint32 // of the links
	dir := r[:1:1]      // the directories from the root to where we are
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		here := dir[len(dir)-1]
		if name == ".." {
			dir = dir[:max(1, len(dir)-1)]
			continue
		}
		n, err := openNode(here.fd, name, filepath.Join(here.path, name))
		if err != nil {
			return r, err
		}
		if n.kind() != unix.S_IFLNK {
			r = append(r, n)
			dir = append(dir, n)
			continue
		}
		target, err := readlink(n.fd)
		unix.Close(n.fd)
		if err != nil {
			return r, fmt.Errorf("%s: %w", n.path, err)
		}
		if links++; links > maxLinks {
			return r, unix.ELOOP
		}
		if n.stat.Uid != 0 && n.stat.Uid != uint32(os.Getuid()) {
			owners = append(owners, n.stat.Uid)
		}
		if filepath.IsAbs(target) {
			dir = dir[:1]
		}
		todo = append(split(target), todo...)
	}
	end := dir[len(dir)-1]
	for _, owner := range owners {
		if owner != end.stat.Uid {
			return r, fmt.Errorf("a symbolic link of user %d leads to %s, which belongs to user %d", owner, end.path, end.stat.Uid)
		}
	}
	if end.fd != r.file().fd { // the path ends in ".."
		return r, errors.New("ends in a directory")
	}
	return r, nil
}

// split cuts a path into its names, ".." included.
func split(path string) []string {
	return strings.FieldsFunc(path, func(c rune) bool { return c == '/' })
}

func openNode(dir int, name, path string) (node, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return node{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	n := node{fd: fd, path: path}
	if err := unix.Fstat(fd, &n.stat); err != nil {
		unix.Close(fd)
		return node{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return n, nil
}

func readlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	return string(buf[:n]), err
}

// data opens the file for reading.
func (n node) data(flags int) (*os.File, error) {
	// Not blocking: for a device without a medium.
	fd, err := unix.Open(procPath(n.fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: n.path, Err: err}
	}
	return os.NewFile(uintptr(fd), n.path), nil
}

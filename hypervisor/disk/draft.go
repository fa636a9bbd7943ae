package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor/access"
)

// Draft is a file that is made beside its place, and comes to it once it is
// whole. What a crash leaves of it, the next one for the same place removes.
//
// Its directory is opened once: whoever puts a link in that one's place meanwhile
// does not have a file of another directory replaced.
type Draft struct {
	File *os.File // empty, for reading and writing, of the caller's alone
	path string
	dir  *os.File
	temp string // in dir; "" for none any more
}

// ErrDraft is a place for which somebody else makes a draft.
var ErrDraft = errors.New("another vmctl is making it")

// NewDraft begins a draft for the place path.
func NewDraft(path string) (*Draft, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	d := &Draft{path: path, dir: dir, temp: filepath.Base(draftPath(path))}
	if err := d.open(); err != nil {
		dir.Close()
		return nil, err
	}
	return d, nil
}

func (d *Draft) open() error {
	if err := removeLeft(d.dir, d.temp); err != nil {
		return err
	}
	f, err := openIn(d.dir, d.temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	if err := access.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("make %s: %w", d.path, ErrDraft) // who removes it now
	}
	d.File = f
	return nil
}

// openIn opens a file of a directory; a symbolic link is none.
func openIn(dir *os.File, name string, flags int) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func removeIn(dir *os.File, name string) error {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil {
		return &fs.PathError{Op: "remove", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return nil
}

// draftPath is where a file is made for a place.
func draftPath(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// removeLeft removes a draft that nobody is at.
func removeLeft(dir *os.File, temp string) error {
	f, err := openIn(dir, temp, unix.O_RDONLY|unix.O_NONBLOCK)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := access.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), ErrDraft)
	}
	return removeIn(dir, temp)
}

// Like gives the draft another file's owner, mode, access control list and other
// attributes.
func (d *Draft) Like(old *os.File) error {
	var s unix.Stat_t
	if err := unix.Fstat(int(old.Fd()), &s); err != nil {
		return err
	}
	if err := d.File.Chown(int(s.Uid), int(s.Gid)); err != nil {
		return fmt.Errorf("keep the owner of %s: %w", d.path, err)
	}
	// Before the attributes: the list has its part in the mode.
	if err := d.File.Chmod(os.FileMode(s.Mode & 0o777)); err != nil {
		return err
	}
	return copyAttributes(int(d.File.Fd()), int(old.Fd()))
}

// copyAttributes copies extended attributes. Those that this file system or the
// kernel does not let us set are left out, but for the access control list.
func copyAttributes(to, from int) error {
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(from, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(from, name, value)
		if err == nil {
			err = unix.Fsetxattr(to, name, value[:n], 0)
		}
		if err != nil && name == "system.posix_acl_access" {
			return fmt.Errorf("keep the access control list: %w", err)
		}
	}
	return nil
}

// Place puts the draft to its place, which must be empty, for good.
func (d *Draft) Place() error { return d.finish(unix.RENAME_NOREPLACE) }

// Replace puts the draft in the place of the file old, for good. The error is
// [ErrReplaced] where that is not there any more.
func (d *Draft) Replace(old *os.File) error {
	s, err := old.Stat()
	if err != nil {
		return err
	}
	if err := isIn(d.dir, filepath.Base(d.path), s); err != nil {
		return err
	}
	return d.finish(0)
}

func (d *Draft) finish(flags uint) error {
	if err := d.File.Sync(); err != nil {
		return err
	}
	if err := renameIn(d.dir, d.temp, filepath.Base(d.path), flags); err != nil {
		return err
	}
	d.temp = ""
	return d.dir.Sync()
}

// renameIn renames a file in a directory.
func renameIn(dir *os.File, from, to string, flags uint) error {
	fd := int(dir.Fd())
	err := unix.Renameat2(fd, from, fd, to, flags)
	if errors.Is(err, unix.EINVAL) && flags != 0 {
		// A file system that does not know how: a link does not replace either.
		if err = unix.Linkat(fd, from, fd, to, 0); err == nil {
			err = unix.Unlinkat(fd, from, 0)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: filepath.Join(dir.Name(), from), New: filepath.Join(dir.Name(), to), Err: err}
	}
	return nil
}

// ErrReplaced is a place where another file is by now.
var ErrReplaced = errors.New("another file is there by now")

// isIn says whether a directory has a file by that name.
func isIn(dir *os.File, name string, file fs.FileInfo) error {
	there, err := openIn(dir, name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer there.Close()
	s, err := there.Stat()
	if err == nil && !os.SameFile(s, file) {
		err = fmt.Errorf("%s: %w", there.Name(), ErrReplaced)
	}
	return err
}

// Move gives a file another name in its directory, for good: in the place of the
// file old, of which the error is [ErrReplaced] where it is not there any more, or
// where that is nil, where nothing is.
func Move(from, to string, old fs.FileInfo) error {
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer dir.Close()
	flags := uint(unix.RENAME_NOREPLACE)
	if old != nil {
		flags = 0
		if err := isIn(dir, filepath.Base(to), old); err != nil {
			return err
		}
	}
	if err := renameIn(dir, filepath.Base(from), filepath.Base(to), flags); err != nil {
		return err
	}
	return dir.Sync()
}

// Close ends the draft: where it has not come to its place, nothing is left of
// it.
func (d *Draft) Close() {
	if d.temp != "" {
		// What cannot be removed now, the next one removes.
		_ = removeIn(d.dir, d.temp)
	}
	d.File.Close()
	d.dir.Close()
}

// Copy copies an image or block device to an empty file, without its zeros; blocks
// are shared where the file system can.
func Copy(ctx context.Context, to, from *os.File, progress Progress) error {
	if Clone(to, from) {
		return nil
	}
	size, err := from.Seek(0, io.SeekEnd) // of a block device too
	if err != nil {
		return err
	}
	return CopySparse(to, &counter{ctx: ctx, r: io.NewSectionReader(from, 0, size), size: size, progress: progress})
}

// counter is a reader that tells how far it is, and ends with its context.
type counter struct {
	ctx      context.Context
	r        io.Reader
	at, size int64 // bytes
	progress Progress
}

func (c *counter) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.at += int64(n)
	if c.size > 0 {
		c.progress(float64(c.at) / float64(c.size))
	}
	return n, err
}

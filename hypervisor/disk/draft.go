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
type Draft struct {
	File *os.File // empty, for reading and writing, of the caller's alone
	path string
	temp string
}

// ErrDraft is a place for which somebody else makes a draft.
var ErrDraft = errors.New("another vmctl is making it")

// NewDraft begins a draft for the place path.
func NewDraft(path string) (*Draft, error) {
	d := &Draft{path: path, temp: draftPath(path)}
	if err := removeLeft(d.temp); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.temp, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	d.File = f
	if err := access.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("make %s: %w", path, ErrDraft) // who removes it now
	}
	return d, nil
}

// draftPath is where a file is made for a place.
func draftPath(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// removeLeft removes a draft that nobody is at.
func removeLeft(temp string) error {
	f, err := os.OpenFile(temp, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := access.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s: %w", temp, ErrDraft)
	}
	return os.Remove(temp)
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

// Replace puts the draft in the place of the file that is there, for good.
func (d *Draft) Replace() error { return d.finish(0) }

func (d *Draft) finish(flags uint) error {
	if err := d.File.Sync(); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, d.temp, unix.AT_FDCWD, d.path, flags)
	if errors.Is(err, unix.EINVAL) && flags != 0 {
		// A file system that does not know how: a link does not replace either.
		if err = os.Link(d.temp, d.path); err == nil {
			err = os.Remove(d.temp)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: d.temp, New: d.path, Err: err}
	}
	d.temp = ""
	return access.SyncDir(filepath.Dir(d.path))
}

// Close ends the draft: where it has not come to its place, nothing is left of
// it.
func (d *Draft) Close() {
	if d.temp != "" {
		// What cannot be removed now, the next one removes.
		_ = os.Remove(d.temp)
	}
	d.File.Close()
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

package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// Maker makes images.
type Maker struct {
	QemuImg string     // the program; see [NeedsQemuImg]
	Locks   []*os.File // that it holds for as long as it runs
}

// NeedsQemuImg says whether it takes qemu-img to make a file.
func NeedsQemuImg(n hypervisor.NewFile) bool {
	converted := n.Format == Raw && n.BackingFormat != "" && n.BackingFormat != Raw
	return n.Copy == "" && (n.Format == QCOW2 || converted)
}

// Make sees to it that n is there, for the owner alone: it makes it whole or
// not at all, makes it anew if it is ephemeral, and grows it if it is smaller
// than wanted. The directory must belong to the caller.
func (m Maker) Make(ctx context.Context, n hypervisor.NewFile, uid, gid int) error {
	exists, err := regular(n.Path)
	if err != nil {
		return err
	}
	if !exists || n.Ephemeral {
		err = m.create(ctx, n, uid, gid)
	} else {
		err = m.adopt(ctx, n, uid, gid)
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", n.Path, err)
	}
	return nil
}

// regular says whether the file is there, and refuses anything but a file.
func regular(path string) (bool, error) {
	s, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !s.Mode().IsRegular() {
		return false, fmt.Errorf("%s is not a regular file", path)
	}
	return true, nil
}

// create makes the file beside its place, and moves it there once it is on the
// disk.
func (m Maker) create(ctx context.Context, n hypervisor.NewFile, uid, gid int) (err error) {
	temp := filepath.Join(filepath.Dir(n.Path), "."+filepath.Base(n.Path)+".new")
	// It may be left from a crash: no two are made at once for one machine.
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temp)
		}
	}()
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chown(uid, gid); err != nil {
		return err
	}
	if err := m.fill(ctx, f, n, uid, gid); err != nil {
		return err
	}
	if n.Ephemeral {
		return os.Rename(temp, n.Path) // nothing is lost with it
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(temp, n.Path); err != nil {
		return err
	}
	return access.SyncDir(filepath.Dir(n.Path))
}

// fill makes the content of a new file.
func (m Maker) fill(ctx context.Context, f *os.File, n hypervisor.NewFile, uid, gid int) error {
	switch {
	case n.Copy != "":
		return CopyFile(f, n.Copy)
	case n.Format == Raw && n.Backing != "":
		return m.copyImage(ctx, f, n, uid, gid)
	case n.Format == Raw:
		return f.Truncate(n.Size)
	}
	args := []string{"create", "-q", "-f", n.Format}
	if n.Backing != "" {
		args = append(args, "-b", n.Backing, "-F", n.BackingFormat)
	}
	args = append(args, f.Name())
	if n.Size > 0 {
		args = append(args, strconv.FormatInt(n.Size, 10))
	}
	return m.run(ctx, uid, gid, args...)
}

// copyImage makes f, which is empty, a raw copy of the disk in another image.
func (m Maker) copyImage(ctx context.Context, f *os.File, n hypervisor.NewFile, uid, gid int) error {
	var err error
	if n.BackingFormat == Raw {
		err = CopyFile(f, n.Backing)
	} else {
		err = m.run(ctx, uid, gid, "convert", "-q", "-f", n.BackingFormat, "-O", Raw, n.Backing, f.Name())
	}
	if err != nil {
		return err
	}
	s, err := f.Stat()
	if err != nil || s.Size() >= n.Size {
		return err
	}
	return f.Truncate(n.Size)
}

// adopt gives an existing file to the owner and grows it if need be; it never
// shrinks one.
func (m Maker) adopt(ctx context.Context, n hypervisor.NewFile, uid, gid int) error {
	f, err := os.OpenFile(n.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chown(uid, gid); err != nil {
		return err
	}
	// Only qcow2 and raw files are made here, and a guest can write neither
	// header.
	var size int64
	if n.Format == QCOW2 {
		h, err := ReadHeader(f)
		if err != nil {
			return err
		}
		size = h.Size
	} else {
		s, err := f.Stat()
		if err != nil {
			return err
		}
		size = s.Size()
	}
	if n.Copy == "" && n.Size > size {
		if err := m.grow(ctx, f, n, uid, gid); err != nil {
			return fmt.Errorf("grow from %d to %d bytes: %w", size, n.Size, err)
		}
	}
	return nil
}

// grow grows an image.
func (m Maker) grow(ctx context.Context, f *os.File, n hypervisor.NewFile, uid, gid int) error {
	if n.Format == Raw {
		return f.Truncate(n.Size)
	}
	return m.run(ctx, uid, gid, "resize", "-q", "-f", n.Format, n.Path, strconv.FormatInt(n.Size, 10))
}

// run runs qemu-img as the image's owner. It opens whatever an image names, which
// may come from anywhere or was written by a hypervisor: not for root to follow.
func (m Maker) run(ctx context.Context, uid, gid int, args ...string) error {
	_, err := Img{Program: m.QemuImg, UID: uid, GID: gid, Locks: m.Locks}.run(ctx, nil, nil, args...)
	return err
}

package backup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor/disk"
)

// Verifier verifies backups, each file once.
type Verifier struct {
	Img disk.Img
	// On is told of each part that was read, in bytes.
	On func(n int)

	sound map[string]bool // directories
}

// Verify reads all of a backup and of what it stands on. The error tells of the
// first thing that is not as it was written.
func (v *Verifier) Verify(ctx context.Context, b Backup) error {
	if v.sound == nil {
		v.sound = map[string]bool{}
	}
	if v.sound[b.Dir] {
		return nil
	}
	for _, id := range b.Parents() {
		parent, err := b.parent(id)
		if err != nil {
			return fmt.Errorf("%s stands on %s: %w", b.Dir, id, err)
		}
		if err := v.Verify(ctx, parent); err != nil {
			return err
		}
	}
	for _, f := range b.others() {
		if err := v.file(ctx, b, f, nil); err != nil {
			return err
		}
	}
	for _, d := range b.All() {
		if err := v.file(ctx, b, d.File, &d); err != nil {
			return err
		}
	}
	v.sound[b.Dir] = true
	return nil
}

// parent is a backup that this one stands on.
func (b Backup) parent(id string) (Backup, error) {
	parent, err := Open(filepath.Join(filepath.Dir(b.Dir), id))
	if err != nil {
		return parent, err
	}
	for _, d := range b.Disks {
		if d.Parent != id {
			continue
		}
		if _, ok := parent.Find(d.Disk); !ok {
			return parent, fmt.Errorf("%s has no disk %s", parent.Dir, d.Disk)
		}
	}
	return parent, nil
}

// file compares a file with its description; d is that of a disk's copy, or nil.
func (v *Verifier) file(ctx context.Context, b Backup, want File, d *Disk) error {
	f, err := open(filepath.Join(b.Dir, want.Name))
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := f.Stat()
	if err != nil {
		return err
	}
	if s.Size() != want.Bytes {
		return fmt.Errorf("%s has %d bytes, not %d as when it was written", f.Name(), s.Size(), want.Bytes)
	}
	_, sum, err := hash(ctx, f, v.On)
	if err != nil {
		return err
	}
	if sum != want.SHA256 {
		return fmt.Errorf("%s has changed since it was written: its SHA-256 is %s, not %s", f.Name(), sum, want.SHA256)
	}
	if d == nil {
		return nil
	}
	if err := d.checkHeader(f); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	if err := v.Img.Check(ctx, disk.Layer{Path: f.Name(), Format: disk.QCOW2, File: f}); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return nil
}

// open opens a file of a backup; a symbolic link is none.
func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if s, err := f.Stat(); err != nil || !s.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return f, nil
}

// checkHeader says what an image's header has that is not as the manifest says.
func (d Disk) checkHeader(image *os.File) error {
	h, err := disk.ReadHeader(image)
	switch {
	case err != nil:
		return err
	case h.DataFile:
		return fmt.Errorf("it has its content in another file")
	case h.Backing != d.Backing():
		return fmt.Errorf("it stands on %q, not on %q", h.Backing, d.Backing())
	case h.Backing != "" && h.BackingFormat != disk.QCOW2:
		return fmt.Errorf("it stands on an image of the format %q, not qcow2", h.BackingFormat)
	case h.Size != d.VirtualSize:
		return fmt.Errorf("the disk has %d bytes, not %d", h.Size, d.VirtualSize)
	}
	return nil
}

// Chain opens the copy of a disk with all that it stands on. The caller closes
// it.
func (b Backup) Chain(d Disk) (disk.Chain, error) {
	path := filepath.Join(b.Dir, d.Name)
	top, err := open(path)
	if err != nil {
		return nil, err
	}
	series := filepath.Dir(b.Dir)
	return disk.OpenChain(disk.Layer{Path: path, Format: disk.QCOW2, File: top}, func(path string) (*os.File, error) {
		if filepath.Dir(filepath.Dir(path)) != series || !validID(filepath.Base(filepath.Dir(path))) {
			return nil, fmt.Errorf("it is not in a backup in %s", series)
		}
		return open(path)
	})
}

// Intact says, without reading all, why a copy cannot be what another one stands
// on; nil where it seems that it can.
func (b Backup) Intact(d Disk) error {
	chain, err := b.Chain(d)
	if err != nil {
		return err
	}
	defer chain.Close()
	for b, d := b, d; ; {
		s, err := os.Lstat(filepath.Join(b.Dir, d.Name))
		if err != nil {
			return err
		}
		if s.Size() != d.Bytes {
			return fmt.Errorf("%s has %d bytes, not %d as when it was written", filepath.Join(b.Dir, d.Name), s.Size(), d.Bytes)
		}
		if d.Parent == "" {
			return nil
		}
		parent, err := b.parent(d.Parent)
		if err != nil {
			return err
		}
		b = parent
		d, _ = b.Find(d.Disk)
	}
}

// Depth is on how many others a disk's copy stands.
func (b Backup) Depth(d Disk) (int, error) {
	chain, err := b.Chain(d)
	if err != nil {
		return 0, err
	}
	defer chain.Close()
	return len(chain) - 1, nil
}

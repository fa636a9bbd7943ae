package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// qcow is a qcow2 image that qemu-img works on, as its owner.
type qcow struct {
	img   disk.Img
	layer disk.Layer
	info  disk.Info
}

func (q qcow) close() { q.layer.File.Close() }

// openImage opens a qcow2 image that no machine uses. Nothing that it stands on
// is opened. The error is fs.ErrNotExist where it is not there.
func (a app) openImage(ctx context.Context, path string) (qcow, error) {
	f, err := access.Open(path)
	if err != nil {
		return qcow{}, err
	}
	fail := func(err error) (qcow, error) {
		f.Close()
		return qcow{}, err
	}
	if who := access.InUse(f, true); who != "" {
		return fail(operation.Refuse(operation.WrongState, "%s is in use by %s", path, who))
	}
	q, err := a.lookInto(ctx, path, f)
	if err != nil {
		return fail(err)
	}
	return q, nil
}

// lookInto looks into a qcow2 image, in use or not.
func (a app) lookInto(ctx context.Context, path string, f *os.File) (qcow, error) {
	if err := disk.Check(f, disk.QCOW2); err != nil {
		return qcow{}, err
	}
	h, err := disk.ReadHeader(f)
	if err != nil {
		return qcow{}, fmt.Errorf("%s: %w", path, err)
	}
	if h.DataFile {
		// Whose name in the image would be followed.
		return qcow{}, operation.Refuse(operation.WrongState, "%s has its content in another file, which cannot take part in snapshots", path)
	}
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return qcow{}, err
	}
	q := qcow{
		img:   disk.Img{Program: hypervisor.Probe(a.paths.Root).Programs["qemu-img"], UID: int(s.Uid), GID: int(s.Gid), Bare: true, Locks: a.locks},
		layer: disk.Layer{Path: path, Format: disk.QCOW2, File: f, Header: h},
	}
	q.info, err = q.img.Info(ctx, q.layer)
	return q, err
}

// has says whether the image has a snapshot.
func (q qcow) has(tag string) bool {
	for _, s := range q.info.Snapshots {
		if s.Name == tag {
			return true
		}
	}
	return false
}

// deleteSnapshot removes a snapshot from an image that no machine uses, if it
// has it. An image that is gone has nothing, nor has what is none.
func (a app) deleteSnapshot(ctx context.Context, path, tag string) error {
	f, err := access.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	format, err := disk.Format(f)
	f.Close()
	if err != nil || format != disk.QCOW2 {
		return err
	}
	q, err := a.openImage(ctx, path)
	if err != nil {
		return err
	}
	defer q.close()
	if !q.has(tag) {
		return nil
	}
	return q.img.DeleteSnapshot(ctx, q.layer, tag)
}

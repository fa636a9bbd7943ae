package access

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// Add notes that a machine that runs has one more disk, and opens it, once with
// each of flags (open(2)), for the hypervisor to be handed: its user is given no
// access. It refuses what [Take] would, and inspect is called as by that.
func Add(paths config.Paths, vm string, user User, f hypervisor.File, flags []int, inspect func(hypervisor.File, *os.File) error) ([]*os.File, error) {
	return add(paths, vm, user, f, inspect, func(_ *taking, r route) ([]*os.File, error) { return r.openAll(flags) })
}

// Give is [Add] of any file, for a hypervisor that opens it by itself where it is
// shown it: its user is given access to the file, and to no directory above it. The
// result stands for the file (O_PATH). With an error, what was given may be left:
// [Drop] takes it back.
func Give(paths config.Paths, vm string, user User, f hypervisor.File, inspect func(hypervisor.File, *os.File) error) (*os.File, error) {
	files, err := add(paths, vm, user, f, inspect, func(t *taking, r route) ([]*os.File, error) {
		if err := t.want(f.Key, r.file(), permOf(f)); err != nil {
			return nil, err
		}
		if err := t.prior(); err != nil {
			return nil, err
		}
		fd, err := unix.FcntlInt(uintptr(r.file().fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return []*os.File{os.NewFile(uintptr(fd), f.Path)}, nil
	})
	if err != nil {
		return nil, err
	}
	return files[0], nil
}

// add checks a file, notes what of it the machine has, and gives what has been noted.
// openIt says what that is to be, and opens the file.
func add(paths config.Paths, vm string, user User, f hypervisor.File, inspect func(hypervisor.File, *os.File) error, openIt func(*taking, route) ([]*os.File, error)) ([]*os.File, error) {
	unlock, err := lock(paths)
	if err != nil {
		return nil, err
	}
	defer unlock()
	t := taking{paths: paths, vm: vm, user: user, nodes: map[inode]node{}}
	if t.hold, err = readHold(paths, vm); errors.Is(err, fs.ErrNotExist) {
		t.hold, err = hold{UID: user.UID}, nil
	}
	if err != nil {
		return nil, err
	}
	if t.others, err = runningHolds(paths, vm); err != nil {
		return nil, err
	}
	r, err := open(f.Path)
	if err != nil {
		return nil, describe(f.Path, err)
	}
	defer r.close()
	if err := t.check(f, r.file(), inspect); err != nil {
		return nil, err
	}
	files, err := openIt(&t, r)
	if err != nil {
		return nil, err
	}
	if err = writeHold(paths, vm, t.hold); err == nil {
		err = t.apply()
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

// OpenAll opens a disk image, once with each of flags (open(2)). One that user,
// unless it is nil, may not read is refused.
func OpenAll(path string, flags []int, user *User) ([]*os.File, error) {
	r, err := open(path)
	if err != nil {
		return nil, describe(path, err)
	}
	defer r.close()
	if err := checkKind(hypervisor.File{Path: path, Disk: true}, r.file()); err != nil {
		return nil, err
	}
	if user != nil {
		if err := MayRead(path, *user); err != nil {
			return nil, err
		}
	}
	return r.openAll(flags)
}

func (r route) openAll(flags []int) ([]*os.File, error) {
	var files []*os.File
	for _, flag := range flags {
		// Not blocking: for what is a device by now, without a medium.
		fd, err := unix.Open(procPath(r.file().fd), flag|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			closeAll(files)
			return nil, describe(r.file().path, &os.PathError{Op: "open", Path: r.file().path, Err: err})
		}
		// The hypervisor's block layer does without it.
		if err := unix.SetNonblock(fd, false); err != nil {
			unix.Close(fd)
			closeAll(files)
			return nil, err
		}
		files = append(files, os.NewFile(uintptr(fd), r.file().path))
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Drop takes back what a machine that runs has for a device, "disk.NAME", or for
// one key of it: that it has the disk, and the access that it was given for
// nothing else. What it has by the key keep stays.
func Drop(paths config.Paths, vm, device, keep string) error {
	unlock, err := lock(paths)
	if err != nil {
		return err
	}
	defer unlock()
	h, err := readHold(paths, vm)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	of := func(key string) bool {
		return key != keep && (key == device || strings.HasPrefix(key, device+"."))
	}
	h.Disks = slices.DeleteFunc(h.Disks, func(d disk) bool { return of(d.Key) })
	var errs []error
	var left []grant
	for _, g := range h.Grants {
		needed := slices.DeleteFunc(slices.Clone(g.Keys), of)
		if len(g.Keys) > 0 && len(needed) == 0 {
			err := g.revoke(paths, vm, h.UID)
			if err == nil {
				continue
			}
			errs = append(errs, fmt.Errorf("take back access to %s: %w", g.Path, err))
			needed = g.Keys
		}
		g.Keys = needed
		left = append(left, g)
	}
	h.Grants = left
	return errors.Join(append(errs, writeHold(paths, vm, h))...)
}

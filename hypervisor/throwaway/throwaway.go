// Package throwaway is about machines that are removed when they end
// (lifecycle.remove_on_stop): what is theirs alone, how it is removed, and what
// a crash left of it.
//
// A mark in the machine's state directory says that the directory was made for
// such a machine, and may be removed with all that is in it. It is made before
// anything else and removed after everything else, so that wherever somebody was
// killed, the mark tells. Whoever makes or removes has it locked.
package throwaway

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/netsetup"
)

// Reserve makes the state directory of a machine that is going to be written,
// with the mark; the error is fs.ErrExist where there is such a directory. Until
// release is called or the process ends, nobody takes it for a left one.
func Reserve(paths config.Paths, vm string) (release func(), err error) {
	if access.IsThere(paths.StateDir(vm)) {
		return nil, &fs.PathError{Op: "mkdir", Path: paths.StateDir(vm), Err: fs.ErrExist}
	}
	if err := access.MakeStateDir(paths, vm); err != nil {
		return nil, err
	}
	mark, err := os.OpenFile(paths.ThrowAway(vm), os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err // another has been faster
	}
	if err := access.Flock(mark, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		mark.Close()
		return nil, err
	}
	return func() { mark.Close() }, nil
}

// Mark marks the state directory of a machine that starts for the first time,
// where it is new. One with anything in it was there before.
func Mark(paths config.Paths, vm string) error {
	entries, err := os.ReadDir(paths.StateDir(vm))
	if err != nil || len(entries) > 0 {
		return err
	}
	return os.WriteFile(paths.ThrowAway(vm), nil, 0o600)
}

// Remove removes a machine that does not run: its definition in the first of
// paths.VMDirs, what systemd was told of it, the addresses of its cards, and its
// state directory where that has the mark. Nothing that it was only given is in
// there. A machine that has another definition keeps addresses and state directory.
func Remove(paths config.Paths, vm string) error {
	run := config.Definition(paths.VMDirs[0], vm)
	files := []string{run, run + ".d", paths.Generated(vm)}
	// What was being written when its writer was killed.
	drafts, _ := filepath.Glob(filepath.Join(paths.VMDirs[0], "."+vm+".toml.*"))
	for _, units := range []string{config.ShareUnit(vm, "*"), config.PasstUnit(vm, "*"), config.TPMUnit(vm)} {
		beside, _ := filepath.Glob(filepath.Join(paths.GeneratorDir, units+".d"))
		files = append(files, beside...)
	}
	for _, path := range append(files, drafts...) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	for _, dir := range paths.VMDirs[1:] {
		if access.IsThere(config.Definition(dir, vm)) {
			return nil
		}
	}
	if err := netsetup.Forget(paths, vm); err != nil {
		return err
	}
	return removeState(paths, vm)
}

// removeState removes a state directory, the mark last.
func removeState(paths config.Paths, vm string) error {
	mark := paths.ThrowAway(vm)
	if !access.IsThere(mark) {
		return nil
	}
	dir := paths.StateDir(vm)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); path != mark {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what is left: %w", err)
	}
	return nil
}

// Left calls on for each marked machine that does not run, as far as files tell,
// and that nobody is about to start: the host crashed, or who would have started
// or removed it was killed. on is called with the mark locked.
func Left(paths config.Paths, on func(vm string)) {
	// Before the first machine is started, there is no directory.
	entries, _ := os.ReadDir(paths.State)
	for _, e := range entries {
		vm := e.Name()
		mark, err := os.OpenFile(paths.ThrowAway(vm), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if access.Flock(mark, unix.LOCK_EX|unix.LOCK_NB) == nil && !access.IsThere(paths.RuntimeDir(vm)) {
			on(vm)
		}
		mark.Close()
	}
}

package main

import (
	"errors"
	"io/fs"
	"os"

	"github.com/vmctl/vmctl/hypervisor"
)

// makeScratch makes the directory in which the hypervisor writes and reads the files
// of its saved state, if the plan has one. Of a run whose end was cut off, nothing
// stays.
func (a app) makeScratch(dir runtimeDir, plan *hypervisor.Plan) error {
	if plan.Scratch == "" {
		return nil
	}
	if err := os.RemoveAll(plan.Scratch); err != nil { // follows no link
		return err
	}
	if err := os.Mkdir(plan.Scratch, 0o700); err != nil {
		return err
	}
	return os.Chown(plan.Scratch, dir.uid, dir.gid)
}

// openScratch opens that directory, until done; it is nil where the machine was
// started without any.
func (a app) openScratch(plan *hypervisor.Plan) (scratch *os.Root, done func(), err error) {
	if plan.Scratch == "" {
		return nil, func() {}, nil
	}
	scratch, err = os.OpenRoot(a.paths.Scratch(a.vm)) // whose parent is root's
	return scratch, func() { scratch.Close() }, err
}

// emptyScratch removes what a saving or loading has left there.
func (a app) emptyScratch() error {
	scratch, err := os.OpenRoot(a.paths.Scratch(a.vm))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer scratch.Close()
	return hypervisor.EmptyScratch(scratch)
}

package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/hostdevice"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/hypervisor/throwaway"
	"github.com/vmctl/vmctl/units/bus"
)

// askTime is how long systemd may take to answer.
const askTime = 5 * time.Second

// removedAtEnd removes the machine that has just ended, where it is to be: not
// where it is about to be started again.
func (a app) removedAtEnd(ctx context.Context) (bool, error) {
	if !a.isThrowAway(a.vm) || a.hasJob(ctx, config.Unit(a.vm), "restart") {
		return false, nil
	}
	return a.throwAway(a.vm, func() bool { return true })
}

// isThrowAway says whether a machine is to be removed now that it has ended: one
// with the mark and without a saved state, by its definition, which somebody may have changed in order to
// keep it, or where that is gone or broken, by what it was started with.
func (a app) isThrowAway(vm string) bool {
	if _, err := os.Lstat(a.paths.ThrowAway(vm)); err != nil {
		return false
	}
	if _, err := os.Lstat(a.paths.SavedRecord(vm)); err == nil {
		return false // it goes on from there
	}
	found, err := config.LoadVM(a.paths, vm)
	if err == nil && found.Machine != nil {
		return found.Machine.Lifecycle.RemoveOnStop
	}
	if record, err := readRecord(a.paths, vm); err == nil {
		return record.Machine.Lifecycle.RemoveOnStop
	}
	return errors.Is(err, fs.ErrNotExist)
}

// throwAway removes a machine that has ended, if that is still so once nobody
// else can do anything to it.
func (a app) throwAway(vm string, still func() bool) (removed bool, err error) {
	_, unlock, err := operation.Lock(a.paths, vm, "its removal")
	if err != nil {
		return false, err
	}
	defer unlock()
	if !still() {
		return false, nil
	}
	if err := errors.Join(access.GiveBack(a.paths, vm), hostdevice.New(a.paths).GiveBack(vm)); err != nil {
		return false, err
	}
	err = throwaway.Remove(a.paths, vm)
	return err == nil, err
}

// sweep removes machines whose end nobody saw, or whose start: the host crashed,
// or who would have removed or started them was killed. What fails is tried again
// with the next start of any machine.
func (a app) sweep(ctx context.Context) {
	throwaway.Left(a.paths, func(vm string) {
		if config.CheckName(vm) != nil || !a.isLeft(ctx, vm) {
			return
		}
		removed, err := a.throwAway(vm, func() bool { return a.isLeft(ctx, vm) })
		if err != nil {
			a.warn("remove what is left of %s: %v", vm, err)
		} else if removed {
			a.info("removed %s, which was to be removed when it ended", vm)
		}
	})
}

// isLeft says whether a machine that is to be removed neither runs nor is about
// to be started.
func (a app) isLeft(ctx context.Context, vm string) bool {
	return !access.IsThere(a.paths.RuntimeDir(vm)) && a.isThrowAway(vm) && !a.hasJob(ctx, config.Unit(vm))
}

// hasJob says whether systemd is about to do one of verbs to a unit; without
// any, whether it does anything with it. It is true too where that cannot be
// told.
func (a app) hasJob(ctx context.Context, unit string, verbs ...string) bool {
	has, err := a.askJob(ctx, unit, verbs...)
	if err != nil {
		a.warn("%v", err)
	}
	return has || err != nil
}

// askJob is [app.hasJob] for who has to know where that cannot be told.
func (a app) askJob(ctx context.Context, unit string, verbs ...string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	units, err := conn.Units(ctx, unit)
	for _, u := range units {
		idle := u.Active == "inactive" || u.Active == "failed"
		if slices.Contains(verbs, u.Job) || verbs == nil && !(idle && u.Job == "") {
			return true, nil
		}
	}
	return false, err
}

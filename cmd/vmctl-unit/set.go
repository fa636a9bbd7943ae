package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// setMachine has a machine that runs be what its definition says by now, as far as
// its hypervisor can and its guest agrees.
func setMachine(ctx context.Context, a app, request json.RawMessage, _ *operation.Reporter) (any, error) {
	var q hypervisor.SetRequest
	if err := json.Unmarshal(request, &q); err != nil {
		return nil, err
	}
	r, err := a.openRunning(ctx)
	if err != nil {
		return nil, err
	}
	defer r.close()
	o, err := operation.Begin(a.paths, a.vm, hypervisor.MachineSet, q)
	if err != nil {
		return nil, err
	}
	result, err := r.set(ctx, q)
	if err != nil {
		_, undo := r.settle(ctx, o, func(ctx context.Context) (bool, error) { return true, a.noteSizes(ctx, q) })
		return nil, asOperation(errors.Join(err, undo))
	}
	return result, o.End()
}

// set changes the machine, and notes what it is then.
func (r *live) set(ctx context.Context, q hypervisor.SetRequest) (result hypervisor.SetResult, err error) {
	now := r.machine().Live()
	if q.Settings.Disks, err = r.setLimits(ctx, now.Disks, q.Settings.Disks); err != nil {
		return result, err
	}
	resizer, ok := r.control.(hypervisor.Resizer)
	if !ok {
		return result, r.noteLive(q, now, nil)
	}
	guest, cancel := context.WithTimeout(ctx, q.Timeout)
	defer cancel()
	if q.Settings.CPUs != now.CPUs {
		if err := result.Waits("cpus", resizer.SetCPUs(guest, q.Settings.CPUs)); err != nil {
			return result, err
		}
	}
	if q.Settings.Memory != now.Memory {
		if err := result.Waits("memory", resizer.SetMemory(ctx, int64(q.Settings.Memory))); err != nil {
			return result, err
		}
	}
	sizes, err := resizer.Sizes(ctx)
	if err != nil {
		return result, err
	}
	result.CPUs, result.Memory, result.Taken = sizes.CPUs, sizes.Memory, sizes.TakenMemory
	return result, r.noteLive(q, now, &sizes)
}

// setLimits gives disks other limits, and returns those that they have then, as far
// as is known.
func (r *live) setLimits(ctx context.Context, now, wanted map[string]config.DiskLimits) (map[string]config.DiskLimits, error) {
	throttler, ok := r.control.(hypervisor.Throttler)
	is := maps.Clone(now)
	for name, limits := range wanted {
		noted, known := now[name]
		if !known || !ok || slices.Contains(r.changes.Empty, name) {
			continue
		}
		// What is noted may not be so any more: they can be set past us.
		has, err := throttler.Limits(ctx, name)
		if err != nil {
			has = noted // of a disk that is just going
		}
		if has != limits {
			if err := throttler.SetLimits(ctx, name, limits); err != nil {
				return nil, fmt.Errorf("disk.%s: %w", name, err)
			}
		}
		is[name] = limits
	}
	return is, nil
}

// agreeOnLimits finds out which limits disks have that were to be given others.
func (r *live) agreeOnLimits(ctx context.Context, now, wanted map[string]config.DiskLimits) map[string]config.DiskLimits {
	throttler, ok := r.control.(hypervisor.Throttler)
	is := maps.Clone(now)
	for name, limits := range wanted {
		if _, has := now[name]; !has || !ok || now[name] == limits {
			continue
		}
		// A disk that is just going has none that matter.
		if has, err := throttler.Limits(ctx, name); err == nil {
			is[name] = has
		}
	}
	return is
}

// noteLive notes what the machine is after a change of what it was.
func (r *live) noteLive(q hypervisor.SetRequest, was config.LiveSettings, sizes *hypervisor.Sizes) error {
	is := q.Settings
	is.CPUs, is.Memory = was.CPUs, was.Memory
	if sizes != nil {
		is.CPUs, is.Memory = sizes.CPUs, config.Size(sizes.Memory)
	}
	r.changes.Live = &is
	if err := r.save(); err != nil {
		return fmt.Errorf("it is set, which could not be noted: %w", err)
	}
	return nil
}

// noteSizes notes what a change has come to that was cut off.
func (a app) noteSizes(ctx context.Context, q hypervisor.SetRequest) error {
	r, err := a.openRunning(ctx)
	if refused, ok := errors.AsType[*operation.Error](err); ok {
		a.info("%s, so nothing is to mend", refused.Text)
		return nil
	}
	if err != nil {
		return err
	}
	defer r.close()
	now := r.machine().Live()
	q.Settings.Disks = r.agreeOnLimits(ctx, now.Disks, q.Settings.Disks)
	resizer, ok := r.control.(hypervisor.Resizer)
	if !ok {
		return nil
	}
	sizes, err := resizer.Sizes(ctx)
	if err != nil {
		return err
	}
	return r.noteLive(q, now, &sizes)
}

func mendSet(ctx context.Context, a app, record operation.Record) error {
	var q hypervisor.SetRequest
	if err := json.Unmarshal(record.Detail, &q); err != nil {
		return err
	}
	return a.noteSizes(ctx, q)
}

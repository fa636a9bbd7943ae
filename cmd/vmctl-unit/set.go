package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/units/bus"
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
	var conn *bus.Conn
	if q.Limits = !reflect.DeepEqual(q.Settings.Resources, r.machine().Live().Resources); q.Limits {
		if conn, err = bus.Dial(ctx, a.paths.User); err != nil {
			return nil, err
		}
		defer conn.Close()
		if q.Overrides, err = conn.Overrides(config.Unit(a.vm)); err != nil {
			return nil, err
		}
	}
	o, err := operation.Begin(a.paths, a.vm, hypervisor.MachineSet, q)
	if err != nil {
		return nil, err
	}
	result, err := r.set(ctx, conn, q)
	if err != nil {
		_, undo := r.settle(ctx, o, func(ctx context.Context) (bool, error) { return true, a.settleSet(ctx, q) })
		return nil, asOperation(errors.Join(err, undo))
	}
	return result, o.End()
}

// set changes the machine, and notes what it is then. conn is for limits of the unit.
func (r *live) set(ctx context.Context, conn *bus.Conn, q hypervisor.SetRequest) (result hypervisor.SetResult, err error) {
	now := r.machine().Live()
	if q.Limits {
		if err := r.holdToLimits(ctx, conn, &q, now, &result); err != nil {
			return result, err
		}
	}
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

// holdToLimits has the unit be held to its limits, unless those of memory are below
// what the guest has: the kernel would end the machine, and all of them wait.
func (r *live) holdToLimits(ctx context.Context, conn *bus.Conn, q *hypervisor.SetRequest, now config.LiveSettings, result *hypervisor.SetResult) error {
	memory := int64(now.Memory)
	if resizer, ok := r.control.(hypervisor.Resizer); ok {
		sizes, err := resizer.Sizes(ctx)
		if err != nil {
			return err
		}
		memory = max(sizes.Memory, sizes.TakenMemory)
	}
	tooSmall, err := conn.HoldToLimits(ctx, config.Unit(r.vm), q.Overrides, noLongerLimited(now.Resources, q.Settings.Resources), memory)
	if err != nil {
		return err
	}
	for _, setting := range tooSmall {
		key := map[string]string{"MemoryMax": "resources.memory_max", "MemoryHigh": "resources.memory_high"}[setting]
		if err := result.Waits(key, &hypervisor.RestartError{Reason: fmt.Sprintf("the guest has %s", config.Size(memory))}); err != nil {
			return err
		}
	}
	if len(tooSmall) > 0 {
		q.Settings.Resources = now.Resources
	}
	return nil
}

// noLongerLimited are the disks of the host whose limits of I/O are gone, by systemd's
// setting.
func noLongerLimited(was, is config.Resources) map[string][]string {
	paths := func(limits []string) (paths []string) {
		for _, l := range limits {
			if path, _, ok := strings.Cut(strings.TrimSpace(l), " "); ok {
				paths = append(paths, path)
			}
		}
		return paths
	}
	gone := map[string][]string{}
	for setting, lists := range map[string][2][]string{
		"IOReadBandwidthMax":  {was.IOReadMax, is.IOReadMax},
		"IOWriteBandwidthMax": {was.IOWriteMax, is.IOWriteMax},
		"IOReadIOPSMax":       {was.IOReadIOPSMax, is.IOReadIOPSMax},
		"IOWriteIOPSMax":      {was.IOWriteIOPSMax, is.IOWriteIOPSMax},
	} {
		now := paths(lists[1])
		gone[setting] = slices.DeleteFunc(paths(lists[0]), func(path string) bool { return slices.Contains(now, path) })
	}
	return gone
}

// setLimits gives disks other limits, and returns those that they have then, as far
// as is known, also with an error: that says which disks have theirs all the same.
func (r *live) setLimits(ctx context.Context, now, wanted map[string]config.DiskLimits) (map[string]config.DiskLimits, error) {
	throttler, ok := r.control.(hypervisor.Throttler)
	is := maps.Clone(now)
	var failed, set []string
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		limits := wanted[name]
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
				failed = append(failed, fmt.Sprintf("disk.%s has its limits as before: %v", name, err))
				is[name] = has
				continue
			}
			set = append(set, "disk."+name)
		}
		is[name] = limits
		delete(r.changes.Throttled, name)
	}
	if len(failed) == 0 {
		return is, nil
	}
	if len(set) > 0 {
		failed = append(failed, "set are those of "+strings.Join(set, ", "))
	}
	return is, errors.New(strings.Join(failed, "; "))
}

// throttleDisk gives a disk other limits, until the machine stops or as its definition
// says.
func throttleDisk(ctx context.Context, a app, request json.RawMessage, _ *operation.Reporter) (any, error) {
	var q hypervisor.ThrottleRequest
	if err := json.Unmarshal(request, &q); err != nil {
		return nil, err
	}
	r, err := a.openRunning(ctx)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if _, ok := r.control.(hypervisor.Throttler); !ok {
		return nil, operation.Refuse(operation.WrongState, "%v", hypervisor.Impossible("changing the limits of a disk while the machine runs", r.started.Hypervisor))
	}
	now := r.machine().Live()
	if _, has := now.Disks[q.Disk]; !has {
		return nil, &operation.Error{Status: operation.NotFound, Text: fmt.Sprintf("%s runs without a disk named %s", r.vm, q.Disk),
			Hint: fmt.Sprintf("vmctl disk list %s shows those that it has", r.vm)}
	}
	if slices.Contains(r.changes.Empty, q.Disk) {
		return nil, operation.Refuse(operation.WrongState, "the drive %s of %s is empty, and has no limits", q.Disk, r.vm)
	}
	set := hypervisor.SetRequest{Settings: now}
	if q.Throttled != nil {
		set.Throttled = map[string]config.DiskLimits{q.Disk: *q.Throttled}
	}
	set.Settings.Disks = map[string]config.DiskLimits{q.Disk: q.Limits}
	// Cut off, it is mended like one that sets more.
	o, err := operation.Begin(a.paths, a.vm, hypervisor.MachineSet, set)
	if err != nil {
		return nil, err
	}
	if set.Settings.Disks, err = r.setLimits(ctx, now.Disks, set.Settings.Disks); err == nil {
		err = r.noteLive(set, now, nil)
	}
	if err != nil {
		_, undo := r.settle(ctx, o, func(ctx context.Context) (bool, error) { return true, a.noteSizes(ctx, set) })
		return nil, asOperation(errors.Join(err, undo))
	}
	return nil, o.End()
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
	if len(q.Throttled) > 0 && r.changes.Throttled == nil {
		r.changes.Throttled = map[string]config.DiskLimits{}
	}
	maps.Copy(r.changes.Throttled, q.Throttled)
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
	// Whether the unit is held to its limits nobody knows, and to set them again is safe.
	q.Settings.Resources = now.Resources
	wanted := q.Settings.Disks
	q.Settings.Disks = r.agreeOnLimits(ctx, now.Disks, wanted)
	maps.DeleteFunc(q.Throttled, func(name string, _ config.DiskLimits) bool { return q.Settings.Disks[name] != wanted[name] })
	resizer, ok := r.control.(hypervisor.Resizer)
	if !ok {
		return r.noteLive(q, now, nil)
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
	return a.settleSet(ctx, q)
}

// settleSet ends a change that was cut off, or has failed half-way.
func (a app) settleSet(ctx context.Context, q hypervisor.SetRequest) error {
	var err error
	if q.Limits {
		err = a.removeOverrides(ctx, q.Overrides)
	}
	return errors.Join(err, a.noteSizes(ctx, q))
}

// removeOverrides takes back what holds against the definition, but for keep.
func (a app) removeOverrides(ctx context.Context, keep []string) error {
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.RemoveOverrides(ctx, config.Unit(a.vm), keep)
}

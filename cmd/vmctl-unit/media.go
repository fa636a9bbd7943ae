package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// drive finds the CD-ROM drive that a request names.
func (r *live) drive(name string) (config.Disk, error) {
	d, has := r.find(name)
	switch {
	case !has:
		return d, operation.Refuse(operation.NotFound, "%s runs without a drive named %s", r.vm, name)
	case d.Media != "cdrom":
		return d, operation.Refuse(operation.WrongState, "%s of %s is a disk: only CD-ROM drives change their medium", name, r.vm)
	}
	return d, nil
}

// insertMedium puts the file of the request's disk into a drive.
func insertMedium(ctx context.Context, a app, request json.RawMessage, _ *operation.Reporter) (any, error) {
	return changeMedium(ctx, a, hypervisor.DiskInsert, request, func(ctx context.Context, r *live, d config.Disk, q hypervisor.DiskRequest) (bool, error) {
		d.Path, d.Image, d.Size, d.Format, d.Ephemeral = q.Disk.Path, "", 0, q.Disk.Format, false
		// By a key of its own: the old medium is the machine's until it is out.
		key := fmt.Sprintf("%s.path.%d", d.Key(), time.Now().UnixNano())
		hot, files, err := r.open(ctx, r.hot(d), key)
		if err == nil {
			defer closeFiles(files)
			err = r.control.InsertMedium(ctx, hot, files, q.Force)
			if err != nil && !errors.Is(err, hypervisor.ErrNotReleased) {
				return true, err
			}
		}
		if err != nil {
			return false, errors.Join(err, access.Drop(r.paths, r.vm, key, ""))
		}
		r.changes.Attached(d, hot.Backing)
		return true, errors.Join(access.Drop(r.paths, r.vm, d.Key(), key), r.save())
	})
}

// ejectMedium takes the medium out of a drive.
func ejectMedium(ctx context.Context, a app, request json.RawMessage, _ *operation.Reporter) (any, error) {
	return changeMedium(ctx, a, hypervisor.DiskEject, request, func(ctx context.Context, r *live, d config.Disk, q hypervisor.DiskRequest) (bool, error) {
		if err := r.control.EjectMedium(ctx, r.hot(d), q.Force); err != nil {
			return !errors.Is(err, hypervisor.ErrNotReleased), err
		}
		return true, r.ejected(d)
	})
}

// ejected notes that a drive is empty.
func (r *live) ejected(d config.Disk) error {
	if !slices.Contains(r.changes.Empty, d.Name) {
		r.changes.Empty = append(r.changes.Empty, d.Name)
	}
	return errors.Join(access.Drop(r.paths, r.vm, d.Key(), ""), r.save())
}

// changeMedium has change change what is in a drive. touched says of an error
// that the drive may not be as it was before.
func changeMedium(ctx context.Context, a app, kind string, request json.RawMessage, change func(context.Context, *live, config.Disk, hypervisor.DiskRequest) (touched bool, err error)) (any, error) {
	q, r, err := a.diskRequest(ctx, request)
	if err != nil {
		return nil, err
	}
	defer r.close()
	d, err := r.drive(q.Disk.Name)
	if err != nil {
		return nil, err
	}
	detail := diskOperation{Disk: d}
	o, err := operation.Begin(a.paths, a.vm, kind, detail)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, q.Timeout)
	defer cancel()
	touched, err := change(ctx, r, d, q)
	if err != nil && touched {
		return nil, asOperation(errors.Join(err, r.settleMedium(ctx, o, detail)))
	}
	if errors.Is(err, hypervisor.ErrNotReleased) {
		err = &operation.Error{Status: operation.TimedOut, Text: fmt.Sprintf("the guest has locked %s, and has not opened it in %s", d.Name, q.Timeout),
			Hint: "--force opens it all the same"}
	}
	return hypervisor.DiskResult{}, asOperation(errors.Join(err, o.End()))
}

// settleMedium ends a change that failed half-way, on a connection of its own as
// [live.settleDisk] does.
func (r *live) settleMedium(ctx context.Context, o *operation.Operation, detail diskOperation) error {
	r.close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	if err := r.emptyDrive(ctx, detail); err != nil {
		return fmt.Errorf("what is in the drive is still to be found out: %w", err)
	}
	return errors.Join(errors.New("the drive is empty now"), o.End())
}

func mendMedium(ctx context.Context, a app, record operation.Record) error {
	var detail diskOperation
	if err := json.Unmarshal(record.Detail, &detail); err != nil {
		return err
	}
	return a.emptyDrive(ctx, detail)
}

// emptyDrive makes a drive empty of which nobody knows what is in it.
func (a app) emptyDrive(ctx context.Context, detail diskOperation) error {
	r, err := a.openRunning(ctx)
	if _, refused := errors.AsType[*operation.Error](err); refused {
		return nil
	}
	if err != nil {
		return err
	}
	defer r.close()
	plugged, err := r.control.PluggedDisks(ctx)
	if err != nil {
		return err
	}
	if _, there := plugged[detail.Disk.Name]; !there {
		return nil
	}
	if err := r.control.EjectMedium(ctx, r.hot(detail.Disk), true); err != nil {
		return err
	}
	return r.ejected(detail.Disk)
}

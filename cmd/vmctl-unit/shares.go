package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/units"
	"github.com/vmctl/vmctl/units/bus"
)

// What serves a share that is plugged in runs in a unit of the same packaged template,
// under the same sandbox, as of one that the machine was started with. What is
// particular to it is in a drop-in that no reload takes away, and the end of the share
// or of the machine does.

// endServerTime is for the unit of a share's server to stop, whose connection is closed.
const endServerTime = 15 * time.Second

// shareOperation is what is needed to mend an operation on a share.
type shareOperation struct {
	Share config.Share `json:"share"`
	// Server is what serves it.
	Server hypervisor.Sidecar `json:"server"`
	// Digest is that of the request.
	Digest string `json:"digest,omitempty"`
}

// shareRequest reads what is asked for, and connects to the machine.
func (a app) shareRequest(ctx context.Context, request json.RawMessage) (q hypervisor.ShareRequest, r *live, err error) {
	if err := json.Unmarshal(request, &q); err != nil {
		return q, nil, err
	}
	r, err = a.openRunning(ctx)
	return q, r, err
}

// hotShare is a share of the machine.
func (r *live) hotShare(s config.Share) hypervisor.HotShare {
	return hypervisor.HotShare{Machine: r.machine(), Share: s, Host: hypervisor.Probe(r.paths.Root), Paths: r.paths, Started: r.started}
}

func attachShare(ctx context.Context, a app, request json.RawMessage, report *operation.Reporter) (any, error) {
	q, r, err := a.shareRequest(ctx, request)
	if err != nil {
		return nil, err
	}
	defer r.close()
	plan, err := r.checkNewShare(ctx, q.Share)
	if err != nil {
		return nil, err
	}
	detail := shareOperation{Share: q.Share, Server: plan.Sidecars[0], Digest: q.Digest}
	o, err := operation.Begin(a.paths, a.vm, hypervisor.ShareAttach, detail)
	if err != nil {
		return nil, err
	}
	if err := r.attachShare(ctx, q.Share, plan); err != nil {
		there, undo := r.settle(ctx, o, func(ctx context.Context) (bool, error) { return r.agreeOnShare(ctx, detail) })
		if !there {
			return nil, asOperation(errors.Join(err, undo))
		}
		report.Warn("%v; the machine has the share all the same", err)
		return nil, undo
	}
	r.changes.AttachedShare(q.Share, detail.Server)
	r.changes.Digest = q.Digest
	if err := r.save(); err != nil {
		return nil, fmt.Errorf("the share is attached, which could not be noted yet: %w", err)
	}
	return nil, o.End()
}

// checkNewShare refuses a share that cannot be plugged in, before anything is done, and
// plans one that can.
func (r *live) checkNewShare(ctx context.Context, s config.Share) (*hypervisor.Plan, error) {
	if _, has := r.machine().Share(s.Name); has {
		text := "%s has a share named %s already"
		if slices.Contains(r.changes.LeavingShares, s.Name) {
			text = "the guest of %s has not let go of %s yet"
		}
		return nil, &operation.Error{Status: operation.WrongState, Text: fmt.Sprintf(text, r.vm, s.Name),
			Hint: fmt.Sprintf("vmctl share detach %s %s takes it out", r.vm, s.Name)}
	}
	plugged, err := r.control.PluggedShares(ctx)
	if err != nil {
		return nil, err
	}
	if slices.Contains(plugged, s.Name) {
		return nil, operation.Refuse(operation.WrongState, "%s has a share named %s that was plugged in without vmctl", r.vm, s.Name)
	}
	for _, other := range r.machine().Shares {
		if other.Tag == s.Tag {
			return nil, operation.Refuse(operation.WrongState, "%s: want a tag of its own, got %q as %s has", s.Key()+".tag", s.Tag, other.Key())
		}
	}
	hot := r.hotShare(s)
	plan, problems := r.planner.PlanShare(hot)
	if len(problems) == 0 {
		problems = r.checkShares(&config.Machine{Name: r.vm, Shares: []config.Share{s}})
	}
	if len(problems) > 0 {
		return nil, refuseHot(problems)
	}
	return plan, nil
}

// attachShare has a share served, and plugs it in. With an error, its server may be
// left, and all that the hypervisor was asked for.
func (r *live) attachShare(ctx context.Context, s config.Share, plan *hypervisor.Plan) error {
	if err := r.placeServer(ctx, plan.Sidecars[0]); err != nil {
		return err
	}
	if err := r.startSidecars(ctx, r.dir, r.machine(), plan.Sidecars); err != nil {
		return err
	}
	var files []*os.File
	defer func() { closeList(files) }()
	for _, d := range plan.Descriptors {
		fd, err := connectSidecar(r.paths, d.Unit)
		if err != nil {
			return err
		}
		files = append(files, os.NewFile(uintptr(fd), d.Unit))
	}
	return r.control.AttachShare(ctx, r.hotShare(s), files)
}

// placeServer tells systemd of a share's server, where a reload is seldom needed for.
func (r *live) placeServer(ctx context.Context, s hypervisor.Sidecar) error {
	file, problems := units.PluggedSidecar(r.machine(), s, units.Env{Paths: r.paths})
	if len(problems) > 0 {
		return refuseHot(problems)
	}
	path := r.serverDropIn(s.Unit)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := access.WriteFile(path, []byte(file.Text), 0o644, false); err != nil {
		return err
	}
	// By which systemd sees that there may be a directory that it does not know.
	now := time.Now()
	if err := os.Chtimes(r.paths.DropInDir, now, now); err != nil {
		return err
	}
	conn, err := bus.Dial(ctx, r.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	has, err := conn.Properties(ctx, s.Unit)
	if err != nil {
		return err
	}
	if has.NeedDaemonReload || r.staleServer(has, s.Unit) {
		return conn.Reload(ctx)
	}
	return nil
}

// staleServer says whether what systemd has loaded of a unit, which it keeps while that
// ends, is from before a share was plugged in, or from while it was.
func (a app) staleServer(has bus.Properties, unit string) bool {
	path := a.serverDropIn(unit)
	return slices.Contains(has.DropInPaths, path) != access.IsThere(path)
}

// endServer ends what serves a share that is gone, and has systemd forget what is
// particular to it. A unit that is to end after the machine, which ends too, is not
// waited for.
func (a app) endServer(ctx context.Context, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, endServerTime)
	defer cancel()
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Stop(ctx, unit); err != nil && !errors.Is(err, bus.ErrNoSuchUnit) && ctx.Err() == nil {
		return err
	}
	return a.forgetServer(unit)
}

// serverDropIn is the file with what is particular to the unit of a share that is
// plugged in.
func (a app) serverDropIn(unit string) string {
	return filepath.Join(a.paths.DropInDir, units.DropInOf(unit))
}

// forgetServer removes what is particular to the unit of a share that was plugged in,
// and leaves what an administrator has put beside it (systemctl edit --runtime).
func (a app) forgetServer(unit string) error {
	path := a.serverDropIn(unit)
	if err := removeFile(path); err != nil {
		return err
	}
	err := unix.Rmdir(filepath.Dir(path))
	if err == nil || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &os.PathError{Op: "rmdir", Path: filepath.Dir(path), Err: err}
}

// pluggedServers are the units of the shares that were plugged in and not ended yet.
func (a app) pluggedServers() (servers []string, err error) {
	entries, err := os.ReadDir(a.paths.DropInDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	prefix, suffix, _ := strings.Cut(config.ShareUnit(a.vm, "*"), "*")
	for _, entry := range entries {
		unit, isDropIn := strings.CutSuffix(entry.Name(), ".d")
		if isDropIn && strings.HasPrefix(unit, prefix) && strings.HasSuffix(unit, suffix) && access.IsThere(a.serverDropIn(unit)) {
			servers = append(servers, unit)
		}
	}
	return servers, err
}

// endShares ends what serves the shares that were plugged in while the machine ran,
// which has ended.
func (a app) endShares(ctx context.Context) error {
	plugged, err := a.pluggedServers()
	if err != nil {
		return err
	}
	var servers []hypervisor.Sidecar
	for _, unit := range plugged {
		servers = append(servers, hypervisor.Sidecar{Unit: unit})
	}
	errs := []error{a.stopSidecars(ctx, servers)}
	for _, unit := range plugged {
		errs = append(errs, a.forgetServer(unit))
	}
	return errors.Join(errs...)
}

func detachShare(ctx context.Context, a app, request json.RawMessage, _ *operation.Reporter) (any, error) {
	q, r, err := a.shareRequest(ctx, request)
	if err != nil {
		return nil, err
	}
	defer r.close()
	s, has := r.machine().Share(q.Share.Name)
	if !has {
		return nil, &operation.Error{Status: operation.NotFound, Text: fmt.Sprintf("%s runs without a share named %s", r.vm, q.Share.Name),
			Hint: fmt.Sprintf("vmctl share list %s shows those that it has", r.vm)}
	}
	server, _ := r.changes.Sidecar(r.plan, config.ShareUnit(r.vm, s.Name))
	detail := shareOperation{Share: s, Server: server, Digest: q.Digest}
	o, err := operation.Begin(a.paths, a.vm, hypervisor.ShareDetach, detail)
	if err != nil {
		return nil, err
	}
	err = asOperation(r.detachShare(ctx, s, q))
	if _, stays := errors.AsType[*operation.Error](err); err == nil || stays {
		return nil, errors.Join(err, o.End())
	}
	_, undo := r.settle(ctx, o, func(ctx context.Context) (bool, error) { return r.agreeOnShare(ctx, detail) })
	return nil, errors.Join(err, undo)
}

// detachShare takes a share out. With an error that is an [operation.Error], or will be
// one, the machine has it as before.
func (r *live) detachShare(ctx context.Context, s config.Share, q hypervisor.ShareRequest) error {
	ctx, cancel := context.WithTimeout(ctx, q.Timeout)
	defer cancel()
	// First, since its server ends with its connection, which nobody is to miss then.
	r.changes.LeavingShare(s.Name)
	if err := r.save(); err != nil {
		return err
	}
	err := r.control.DetachShare(ctx, r.hotShare(s))
	switch {
	case errors.Is(err, hypervisor.ErrNotReleased):
		return r.notReleased("share", s.Name, q.Timeout)
	case errors.Is(err, hypervisor.ErrReleaseRefused):
		r.changes.StayingShare(s.Name)
		if err := r.save(); err != nil {
			return err
		}
		return operation.Refuse(operation.WrongState, "%s: %v", s.Name, err)
	case err != nil:
		return err
	}
	r.changes.Digest = q.Digest
	return r.detachedShare(context.WithoutCancel(ctx), s)
}

// detachedShare notes that a share is gone, and ends what served it.
func (r *live) detachedShare(ctx context.Context, s config.Share) error {
	_, started := r.started.Share(s.Name)
	r.changes.DetachedShare(s.Name, started)
	return errors.Join(r.save(), r.endServer(ctx, config.ShareUnit(r.vm, s.Name)))
}

func mendShare(ctx context.Context, a app, record operation.Record) error {
	var detail shareOperation
	if err := json.Unmarshal(record.Detail, &detail); err != nil {
		return err
	}
	_, err := a.agreeOnShare(ctx, detail)
	return err
}

// agreeOnShare has what is noted, and what is served, agree with what the machine has,
// and says whether it has the share. A share that the guest has seen stays with it; of
// one that it has not, or not any more, nothing is left.
func (a app) agreeOnShare(ctx context.Context, detail shareOperation) (there bool, err error) {
	r, err := a.openRunning(ctx)
	if refused, ok := errors.AsType[*operation.Error](err); ok {
		a.info("%s, so only the host's part is to mend", refused.Text)
		return false, a.endServer(ctx, config.ShareUnit(a.vm, detail.Share.Name))
	}
	if err != nil {
		return false, err
	}
	defer r.close()
	return r.notePlugged(ctx, detail)
}

// notePlugged is agreeOnShare of a machine that runs. A share that the guest was asked
// to let go of, and has, it may still let go of: it stays one that leaves.
func (r *live) notePlugged(ctx context.Context, detail shareOperation) (there bool, err error) {
	plugged, err := r.control.PluggedShares(ctx)
	if err != nil {
		return false, err
	}
	_, known := r.machine().Share(detail.Share.Name)
	there = slices.Contains(plugged, detail.Share.Name)
	if there != known {
		r.changes.Digest = detail.Digest
	}
	if !there {
		if err := r.control.DetachShare(ctx, r.hotShare(detail.Share)); err != nil {
			return false, err
		}
		return false, r.detachedShare(ctx, detail.Share)
	}
	if !known {
		r.changes.AttachedShare(detail.Share, detail.Server)
	}
	return true, r.save()
}

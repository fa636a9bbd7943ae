package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// hotPlanner plans what is plugged into a machine that runs, and hotControl plugs
// it in.
type (
	hotPlanner interface {
		hypervisor.DiskPlanner
		hypervisor.NICPlanner
		hypervisor.SharePlanner
	}
	hotControl interface {
		hypervisor.DiskHotplug
		hypervisor.NICHotplug
		hypervisor.ShareHotplug
	}
)

// live is a machine that runs, whose disks, cards and shares are changed.
type live struct {
	app
	dir     runtimeDir
	started *config.Machine  // as it was started
	plan    *hypervisor.Plan // of the start
	changes hypervisor.Changes
	planner hotPlanner
	control hotControl
	engines hypervisor.Engines
	close   func()
}

// machine is the machine with the disks, cards and shares that it has now.
func (r *live) machine() *config.Machine { return r.changes.Apply(r.started) }

// openRunning connects to the machine. The error is an [operation.Error] where
// it does not run.
func (a app) openRunning(ctx context.Context) (r *live, err error) {
	refuse := operation.Refuse(operation.WrongState, "%s does not run", a.vm)
	dir, err := openRuntimeDir(a.paths, a.vm)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dir.Close()
		}
	}()
	record, err := readRecord(a.paths, a.vm)
	if err != nil {
		return nil, err
	}
	r = &live{app: a, dir: dir, started: record.Machine, plan: record.Plan}
	// What its own process has found to work. It could lie, to its own harm.
	var own hypervisor.Record
	if err := dir.getJSON(a.paths.VMJSON(a.vm), &own); err == nil {
		r.engines = own.Engines
	}
	if r.changes, err = hypervisor.ReadChanges(a.paths, a.vm); err != nil {
		return nil, err
	}
	hv, _ := all.ByName(record.Machine.Hypervisor)
	planner, ok := hv.(hotPlanner)
	if !ok {
		return nil, operation.Refuse(operation.WrongState, "%v: stop it first", hypervisor.Impossible("changing the disks, cards or shares of a machine that runs", record.Machine.Hypervisor))
	}
	r.planner = planner
	control, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	if control == nil {
		return nil, refuse
	}
	r.control = control.(hotControl) // as a hotPlanner's is
	r.close = func() {
		control.Close()
		dir.Close()
	}
	return r, nil
}

// hot is a disk of the machine.
func (r *live) hot(d config.Disk) hypervisor.HotDisk {
	return hypervisor.HotDisk{
		Machine: r.machine(), Disk: d, Host: hypervisor.Probe(r.paths.Root), Paths: r.paths, Backing: r.changes.Backing[d.Name],
	}
}

// find is a disk that the machine has by now, as it was plugged in.
func (r *live) find(name string) (config.Disk, bool) { return r.changes.Plugged(r.started, name) }

// wasStarted says whether the machine was started with a disk of this name.
func (r *live) wasStarted(name string) bool {
	return slices.ContainsFunc(r.started.Disks, func(d config.Disk) bool { return d.Name == name })
}

// save keeps what has changed.
func (r *live) save() error {
	b, err := json.Marshal(r.changes)
	if err != nil {
		return err
	}
	return access.WriteFile(r.paths.Changes(r.vm), b, 0o644, false)
}

// diskOperation is what is needed to mend an operation on a disk.
type diskOperation struct {
	Disk config.Disk `json:"disk"`
	// Backing are the files that it stands on.
	Backing []hypervisor.Layer `json:"backing,omitempty"`
	// New is the file that was made for it, "" for none.
	New string `json:"new,omitempty"`
	// Digest is that of the request.
	Digest string `json:"digest,omitempty"`
}

// diskRequest reads what is asked for, and connects to the machine.
func (a app) diskRequest(ctx context.Context, request json.RawMessage) (q hypervisor.DiskRequest, r *live, err error) {
	if err := json.Unmarshal(request, &q); err != nil {
		return q, nil, err
	}
	r, err = a.openRunning(ctx)
	return q, r, err
}

func attachDisk(ctx context.Context, a app, request json.RawMessage, report *operation.Reporter) (any, error) {
	q, r, err := a.diskRequest(ctx, request)
	if err != nil {
		return nil, err
	}
	defer r.close()
	if _, has := r.find(q.Disk.Name); has {
		text := "%s has a disk named %s already"
		if slices.Contains(r.changes.Leaving, q.Disk.Name) {
			text = "the guest of %s has not let go of %s yet"
		}
		return nil, &operation.Error{Status: operation.WrongState, Text: fmt.Sprintf(text, a.vm, q.Disk.Name),
			Hint: fmt.Sprintf("vmctl disk detach %s %s takes it out", a.vm, q.Disk.Name)}
	}
	plugged, err := r.control.PluggedDisks(ctx)
	if err != nil {
		return nil, err
	}
	if _, there := plugged[q.Disk.Name]; there {
		return nil, operation.Refuse(operation.WrongState, "%s has a disk named %s that was plugged in without vmctl", a.vm, q.Disk.Name)
	}
	hot := r.hot(q.Disk)
	if _, problems := r.planner.PlanDisk(hot); len(problems) > 0 {
		return nil, refuseHot(problems)
	}
	own := ownFile(a.paths, a.vm, q.Disk)
	existed := own == "" || access.IsThere(own)
	detail := diskOperation{Disk: q.Disk, Digest: q.Digest}
	if !existed {
		detail.New = own
	}
	o, err := operation.Begin(a.paths, a.vm, hypervisor.DiskAttach, detail)
	if err != nil {
		return nil, err
	}
	result := hypervisor.DiskResult{Existed: own != "" && existed}
	if err := r.attach(ctx, o, &detail, hot); err != nil {
		there, undo := r.settle(ctx, o, func(ctx context.Context) (bool, error) { return r.agreeOnDisk(ctx, detail) })
		if !there {
			return nil, asOperation(errors.Join(err, undo))
		}
		report.Warn("%v; the machine has the disk all the same", err)
		return result, undo
	}
	r.changes.Attached(q.Disk, detail.Backing)
	r.changes.Digest = q.Digest
	if err := r.save(); err != nil {
		return nil, fmt.Errorf("the disk is attached, which could not be noted yet: %w", err)
	}
	return result, o.End()
}

// settleTime is less than an operation has to end.
const settleTime = 45 * time.Second

// settle ends an operation that failed half-way, and says whether the machine has
// the disk, card or share. What the hypervisor was asked to do last it may have done, or
// be about to do: it is asked again by agree, on a connection of its own, which it
// answers after that. Where it does not, the operation stays to be mended.
func (r *live) settle(ctx context.Context, o *operation.Operation, agree func(context.Context) (bool, error)) (there bool, err error) {
	r.close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	there, err = agree(ctx)
	if err != nil {
		return there, fmt.Errorf("what is left of it is still to be mended: %w", err)
	}
	return there, o.End()
}

// attach plugs a disk in. With an error, the file that was made may be left, what
// the machine holds, and all that the hypervisor was asked for.
func (r *live) attach(ctx context.Context, o *operation.Operation, detail *diskOperation, hot hypervisor.HotDisk) error {
	hot, files, err := r.open(ctx, hot, hot.Disk.Key()+".path")
	if err != nil {
		return err
	}
	defer closeFiles(files)
	detail.Backing = hot.Backing
	if err := o.Note(detail); err != nil {
		return err
	}
	return r.control.AttachDisk(ctx, hot, files)
}

// open makes what is new of a disk, notes that the machine has it by the key,
// and opens all its files for the hypervisor.
func (r *live) open(ctx context.Context, hot hypervisor.HotDisk, key string) (hypervisor.HotDisk, map[string][]*os.File, error) {
	user := access.User{UID: uint32(r.dir.uid), GID: uint32(r.dir.gid)}
	plan, problems := r.planner.PlanDisk(hot)
	if len(problems) > 0 {
		return hot, nil, refuseHot(problems)
	}
	whole := &hypervisor.Plan{Files: plan.Files, New: plan.New}
	children, release, err := r.images(ctx, hot.Machine, whole)
	if err != nil {
		return hot, nil, err
	}
	defer release()
	if err := r.makeFiles(ctx, hot.Machine, hot.Host, plan.New, children, r.dir); err != nil {
		return hot, nil, err
	}
	if hot.Backing, err = chain(plan.Open[len(plan.Open)-1].Path, hot.Disk.Format, user, children); err != nil {
		return hot, nil, err
	}
	if plan, problems = r.planner.PlanDisk(hot); len(problems) > 0 {
		return hot, nil, refuseHot(problems)
	}
	for _, f := range plan.Disks {
		chosen, err := hypervisor.ChooseIO(f, disk.TryDirect(f.Path, f.Format, f.Chain), r.engines)
		if err != nil {
			return hot, nil, operation.Refuse(operation.Invalid, "%v", err)
		}
		hot.IO = append(hot.IO, chosen)
	}
	if plan, problems = r.planner.PlanDisk(hot); len(problems) > 0 {
		return hot, nil, refuseHot(problems)
	}
	files, err := r.openFiles(ctx, plan, needed(whole, children), key, user)
	return hot, files, err
}

// openFiles opens the files of a plan. Those that are held, since other machines
// could have them, are checked against that.
func (r *live) openFiles(ctx context.Context, plan *hypervisor.DiskPlan, held []hypervisor.File, key string, user access.User) (map[string][]*os.File, error) {
	files := map[string][]*os.File{}
	checkWritten := r.writtenCheck(r.machine())
	fail := func(err error) (map[string][]*os.File, error) {
		closeFiles(files)
		return nil, err
	}
	for _, o := range plan.Open {
		var err error
		i := slices.IndexFunc(held, func(f hypervisor.File) bool { return f.Path == o.Path })
		if i < 0 {
			files[o.Path], err = access.OpenAll(o.Path, o.Flags(), nil)
		} else {
			f := held[i]
			if f.Format != "" {
				f.Key = key
			}
			inspect := func(f hypervisor.File, data *os.File) error {
				if f.Format == "" { // a stored image was looked at when it was stored
					return nil
				}
				if err := checkWritten(f, data); err != nil {
					return err
				}
				return disk.Check(data, f.Format)
			}
			if f.At == "" {
				files[o.Path], err = access.Add(r.paths, r.vm, user, f, o.Flags(), inspect)
			} else {
				var shown *os.File
				shown, err = r.show(ctx, f, user, inspect)
				files[o.Path] = []*os.File{shown}
			}
		}
		if err != nil {
			delete(files, o.Path)
			if _, ok := errors.AsType[*operation.Error](err); !ok {
				err = operation.Refuse(operation.Failed, "%v", err)
			}
			return fail(err)
		}
	}
	return files, nil
}

func closeFiles(files map[string][]*os.File) {
	for _, list := range files {
		closeList(list)
	}
}

// chain are the files that a disk stands on, nearest first: each of a format
// that is written down, and one that the machine's user could have read itself,
// or a stored image.
func chain(path, format string, user access.User, children []hypervisor.NewFile) ([]hypervisor.Layer, error) {
	if format != disk.QCOW2 {
		return nil, nil
	}
	top, err := access.OpenAll(path, []int{os.O_RDONLY}, nil)
	if err != nil {
		return nil, err
	}
	defer top[0].Close()
	opened, err := disk.OpenChain(disk.Layer{Path: path, Format: format, File: top[0]}, func(name string) (*os.File, error) {
		who := &user
		if slices.ContainsFunc(children, func(n hypervisor.NewFile) bool { return n.Backing == name }) {
			who = nil
		}
		f, err := access.OpenAll(name, []int{os.O_RDONLY}, who)
		if err != nil {
			return nil, err
		}
		return f[0], nil
	})
	if err != nil {
		return nil, operation.Refuse(operation.Failed, "%v", err)
	}
	defer opened.Close()
	var layers []hypervisor.Layer
	for _, l := range opened[1:] {
		layers = append(layers, hypervisor.Layer{Path: l.Path, Format: l.Format})
	}
	return layers, nil
}

func detachDisk(ctx context.Context, a app, request json.RawMessage, _ *operation.Reporter) (any, error) {
	q, r, err := a.diskRequest(ctx, request)
	if err != nil {
		return nil, err
	}
	defer r.close()
	d, has := r.find(q.Disk.Name)
	if !has {
		return nil, &operation.Error{Status: operation.NotFound, Text: fmt.Sprintf("%s runs without a disk named %s", a.vm, q.Disk.Name),
			Hint: fmt.Sprintf("vmctl disk list %s shows those that it has", a.vm)}
	}
	detail := diskOperation{Disk: d, Backing: r.changes.Backing[d.Name], Digest: q.Digest}
	o, err := operation.Begin(a.paths, a.vm, hypervisor.DiskDetach, detail)
	if err != nil {
		return nil, err
	}
	err = asOperation(r.detach(ctx, d, q))
	if _, stays := errors.AsType[*operation.Error](err); err == nil || stays {
		return hypervisor.DiskResult{}, errors.Join(err, o.End())
	}
	_, undo := r.settle(ctx, o, func(ctx context.Context) (bool, error) { return r.agreeOnDisk(ctx, detail) })
	return nil, errors.Join(err, undo)
}

// detach takes a disk out. With an error that is an [operation.Error], or will be
// one, the machine has it as before.
func (r *live) detach(ctx context.Context, d config.Disk, q hypervisor.DiskRequest) error {
	ctx, cancel := context.WithTimeout(ctx, q.Timeout)
	defer cancel()
	err := r.control.DetachDisk(ctx, r.hot(d))
	switch {
	case errors.Is(err, hypervisor.ErrNotReleased):
		r.changes.Leaving = append(slices.DeleteFunc(r.changes.Leaving, func(name string) bool { return name == d.Name }), d.Name)
		if err := r.save(); err != nil {
			return err
		}
		return r.notReleased("disk", d.Name, q.Timeout)
	case errors.Is(err, hypervisor.ErrReleaseRefused):
		return operation.Refuse(operation.WrongState, "%s: %v: something in it uses the disk", d.Name, err)
	case err != nil:
		return err
	}
	r.changes.Digest = q.Digest
	return r.detached(ctx, d)
}

// notReleased is the error of a guest that has kept a device for as long as it was
// waited for; command is "disk", "nic" or "share".
func (r *live) notReleased(command, name string, waited time.Duration) *operation.Error {
	return &operation.Error{
		Status: operation.TimedOut,
		Text:   fmt.Sprintf("the guest has not let go of %s in %s; it may still do so", name, waited),
		Hint:   fmt.Sprintf("vmctl %s detach %s %s waits again, and finishes it", command, r.vm, name),
	}
}

// detached notes that a disk is gone.
func (r *live) detached(ctx context.Context, d config.Disk) error {
	r.changes.Detached(d.Name, r.wasStarted(d.Name))
	return errors.Join(r.hide(context.WithoutCancel(ctx), d.Key(), d.Path), r.save())
}

func mendDisk(ctx context.Context, a app, record operation.Record) error {
	var detail diskOperation
	if err := json.Unmarshal(record.Detail, &detail); err != nil {
		return err
	}
	_, err := a.agreeOnDisk(ctx, detail)
	return err
}

// agreeOnDisk has what is noted agree with what the machine has, and says whether
// it has the disk. A disk that the guest has seen stays with it; of one that it
// has not, or not any more, nothing is left.
func (a app) agreeOnDisk(ctx context.Context, detail diskOperation) (there bool, err error) {
	r, err := a.openRunning(ctx)
	if refused, ok := errors.AsType[*operation.Error](err); ok {
		a.info("%s, so only the host's part is to mend", refused.Text)
		// A file that was made stays: nobody knows what is on it.
		return false, a.hide(ctx, detail.Disk.Key(), detail.Disk.Path)
	}
	if err != nil {
		return false, err
	}
	defer r.close()
	plugged, err := r.control.PluggedDisks(ctx)
	if err != nil {
		return false, err
	}
	_, known := r.find(detail.Disk.Name)
	_, there = plugged[detail.Disk.Name]
	if there != known {
		r.changes.Digest = detail.Digest
	}
	if there {
		if !known {
			r.changes.Attached(detail.Disk, detail.Backing)
		}
		return true, r.save()
	}
	hot := r.hot(detail.Disk)
	if len(detail.Backing) > 0 {
		hot.Backing = detail.Backing
	}
	if err := r.control.DetachDisk(ctx, hot); err != nil {
		return false, err
	}
	if !known { // else the guest has had it, and may have written to it
		if err := removeFile(detail.New); err != nil {
			return false, err
		}
	}
	return false, r.detached(ctx, detail.Disk)
}

// ownFile is the file of a disk that vmctl makes, "" for one by path.
func ownFile(paths config.Paths, vm string, d config.Disk) string {
	if d.Path != "" {
		return ""
	}
	return paths.Disk(vm, d.Name, d.Format)
}

// refuseHot is why a disk or card cannot be changed while the machine runs.
func refuseHot(problems []config.Problem) error {
	return operation.Refuse(operation.WrongState, "%s: %s", problems[0].Key, problems[0].Text)
}

// asOperation gives an error of what is shared with a start its status.
func asOperation(err error) error {
	if refused, ok := errors.AsType[refusal](err); ok {
		return operation.Refuse(operation.Invalid, "%s", refused.problems[0])
	}
	if p, ok := errors.AsType[config.Problem](err); ok {
		return refuseHot([]config.Problem{p})
	}
	return err
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/hypervisor/snapshot"
)

// snapshotNote is what it takes to mend an operation on a snapshot.
type snapshotNote struct {
	Name  string          `json:"name"`
	Tag   string          `json:"tag"`
	Disks []snapshot.Disk `json:"disks"`
	// Frozen are the guest's file systems, and Halted its CPUs by us, or both
	// are about to be.
	Frozen bool `json:"frozen,omitempty"`
	Halted bool `json:"halted,omitempty"`
	// Saving is that of the memory, of a guest that was Paused or ran.
	Saving bool `json:"saving,omitempty"`
	Paused bool `json:"paused,omitempty"`
	Memory bool `json:"memory,omitempty"` // is restored too
}

// snapshotting is a snapshot that is being taken.
type snapshotting struct {
	app
	request snapshot.CreateRequest
	report  *operation.Reporter
	op      *operation.Operation
	note    snapshotNote
	made    snapshot.Snapshot
	record  hypervisor.Record
	dir     string
}

// createSnapshot takes a snapshot of the machine, running or not.
func createSnapshot(ctx context.Context, a app, request json.RawMessage, report *operation.Reporter) (any, error) {
	s := &snapshotting{app: a, report: report}
	if err := json.Unmarshal(request, &s.request); err != nil {
		return nil, err
	}
	c, err := a.settled(ctx)
	if err != nil {
		return nil, err
	}
	if c != nil {
		defer c.Close()
	}
	if err := s.plan(c != nil); err != nil {
		return nil, err
	}
	if s.op, err = operation.Begin(a.paths, a.vm, snapshot.Create, s.note); err != nil {
		return nil, err
	}
	if err := s.take(ctx, c); err != nil {
		// On a connection of its own: this one may be where it failed.
		if c != nil {
			c.Close()
		}
		back := a.settleSnapshot(context.WithoutCancel(ctx), s.note)
		if back == nil {
			back = s.op.End()
		}
		return nil, errors.Join(err, back)
	}
	return s.made, s.op.End()
}

// plan decides what the snapshot will be.
func (s *snapshotting) plan(live bool) (err error) {
	names, err := snapshot.Names(s.paths, s.vm)
	if err != nil {
		return err
	}
	now := time.Now()
	if s.request.Name == "" {
		s.request.Name = snapshot.FreeName(now, names)
	}
	if err := config.CheckName(s.request.Name); err != nil {
		return operation.Refuse(operation.Usage, "name of a snapshot: %v", err)
	}
	if _, err := os.Lstat(s.paths.Snapshot(s.vm, s.request.Name)); err == nil {
		return operation.Refuse(operation.WrongState, "a snapshot is named %s already", s.request.Name)
	}
	if s.record, err = s.definition(live); err != nil {
		return err
	}
	machine := s.record.Machine
	if live && s.request.Scheduled {
		if machine, err = s.withoutGuests(machine); err != nil {
			return err
		}
	}
	parts, problems := snapshot.Parts(machine, s.paths)
	if s.request.Memory {
		problems = append(problems, forgetful(s.record.Machine)...)
	}
	if len(problems) > 0 {
		config.SortProblems(problems)
		return refused(operation.WrongState, problems)
	}
	if len(parts) == 0 {
		return operation.Refuse(operation.WrongState, "%s has no disk that could take part in a snapshot", s.vm)
	}
	parent, err := snapshot.Current(s.paths, s.vm)
	if err != nil {
		return err
	}
	s.made = snapshot.Snapshot{
		Name: s.request.Name, Description: s.request.Description, Created: now, Parent: parent,
		Scheduled: s.request.Scheduled, Tag: snapshot.NewTag(s.request.Name), State: snapshot.Stopped, Files: []string{},
	}
	for _, p := range parts {
		if p.Size, err = imageSize(p.Path); err != nil {
			return fmt.Errorf("%s: %w", p.Key, err)
		}
		s.made.Disks = append(s.made.Disks, p.Disk)
	}
	s.note = snapshotNote{Name: s.made.Name, Tag: s.made.Tag, Disks: s.made.Disks}
	return nil
}

// withoutGuests is a machine without the disks that were attached while it runs and
// that cannot take part: its definition, which says that there is a schedule, does
// not have them, and nobody is there to take them out.
func (s *snapshotting) withoutGuests(m *config.Machine) (*config.Machine, error) {
	changes, err := hypervisor.ReadChanges(s.paths, s.vm)
	if err != nil {
		return nil, err
	}
	out := *m
	out.Disks = slices.DeleteFunc(slices.Clone(m.Disks), func(d config.Disk) bool {
		attached := slices.ContainsFunc(changes.Disks, func(c config.Disk) bool { return c.Name == d.Name })
		if attached && d.LacksSnapshots() {
			s.report.Warn("disk %s, which was attached while the machine runs, is left out: it is %s, and snapshots are of qcow2 disks", d.Name, d.Format)
			return true
		}
		return false
	})
	return &out, nil
}

// definition is what the machine runs with, with the disks that it has now, or
// would be started with.
func (a app) definition(live bool) (hypervisor.Record, error) {
	if live {
		r, err := readRecord(a.paths, a.vm)
		if err != nil {
			return r, err
		}
		changes, err := hypervisor.ReadChanges(a.paths, a.vm)
		if err == nil {
			r.Machine = changes.Apply(r.Machine)
		}
		return r, err
	}
	r, err := a.resolve("", hypervisor.Probe(a.paths.Root))
	if invalid, ok := errors.AsType[refusal](err); ok {
		return r, operation.Refuse(operation.Invalid, "%s", strings.Join(invalid.problems, "\n"))
	}
	return r, err
}

// refused is the refusal of what problems keep from being done.
func refused(status operation.Status, problems []config.Problem) error {
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.Error())
	}
	return operation.Refuse(status, "%s", strings.Join(lines, "\n"))
}

// forgetful are the disks that are made anew at each start, which a machine that
// goes on would find empty.
func forgetful(m *config.Machine) []config.Problem {
	var problems []config.Problem
	for _, d := range m.Disks {
		if d.Ephemeral {
			problems = append(problems, m.Problem(d.Key()+".ephemeral", "the disk is made anew at each start, so a machine restored with its memory would find another one"))
		}
	}
	return problems
}

// imageSize is the size of the disk in a qcow2 image, in bytes.
func imageSize(path string) (int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, operation.Refuse(operation.WrongState, "%s does not exist: the machine has not been started with it yet", path)
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h, err := disk.ReadHeader(f)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return h.Size, nil
}

// take makes all parts of the snapshot.
func (s *snapshotting) take(ctx context.Context, c hypervisor.Control) (err error) {
	if s.dir, err = snapshot.New(s.paths, s.vm, s.made.Name); err != nil {
		return err
	}
	if c == nil {
		err = s.takeStopped(ctx)
	} else {
		err = s.takeLive(ctx, c)
	}
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.note.Frozen, s.note.Halted, s.note.Saving = false, false, false
	if err := s.made.Place(s.paths, s.vm, s.record); err != nil {
		return err
	}
	return snapshot.SetCurrent(s.paths, s.vm, s.made.Name)
}

// takeStopped is for a machine that does not run.
func (s *snapshotting) takeStopped(ctx context.Context) error {
	if s.request.Memory {
		return operation.Refuse(operation.WrongState, "%s does not run, so there is no memory of it", s.vm)
	}
	s.made.Quiesced = true // there is no guest that had anything to write
	for _, d := range s.made.Disks {
		s.report.Progress(operation.Progress{Phase: "snapshot of disk " + d.Name})
		q, err := s.openImage(ctx, d.Path)
		if err != nil {
			return fmt.Errorf("disk.%s: %w", d.Name, err)
		}
		err = q.img.CreateSnapshot(ctx, q.layer, s.made.Tag)
		q.close()
		if err != nil {
			return fmt.Errorf("disk.%s: %w", d.Name, err)
		}
	}
	return s.copyStateFiles()
}

// takeLive is for a machine that runs. Its guest is let go on whatever happens.
func (s *snapshotting) takeLive(ctx context.Context, c hypervisor.Control) error {
	d, ok := c.(hypervisor.DiskSnapshotter)
	if !ok {
		return operation.Refuse(operation.WrongState, "%v: stop it first", hypervisor.Impossible("a snapshot of a machine that runs", s.record.Machine.Hypervisor))
	}
	status, err := c.Status(ctx)
	if err != nil {
		return err
	}
	switch status {
	case hypervisor.StatusStopping:
		return operation.Refuse(operation.WrongState, "%s is just ending: wait until it is down", s.vm)
	case hypervisor.StatusRunning:
		s.made.State = snapshot.Running
	default:
		s.made.State = snapshot.Paused
	}
	if s.request.Memory {
		return s.takeMemory(ctx, c)
	}
	// From here on it is short, and comes to its end.
	ctx = context.WithoutCancel(ctx)
	if err := s.quiesce(ctx, c); err != nil {
		return err
	}
	if s.made.State == snapshot.Running {
		s.note.Halted = true
		if err := s.op.Note(s.note); err != nil {
			return err
		}
		if err := c.Pause(ctx); err != nil {
			return err
		}
	}
	if err := s.takeMoment(ctx, d); err != nil {
		return err // who takes it back lets the guest go on
	}
	return s.release(ctx, c, s.note)
}

// takeMoment takes what has to be of one moment, in which the CPUs stand still.
func (s *snapshotting) takeMoment(ctx context.Context, d hypervisor.DiskSnapshotter) error {
	var disks []string
	for _, d := range s.made.Disks {
		disks = append(disks, d.Name)
	}
	if err := d.SnapshotDisks(ctx, s.made.Tag, disks); err != nil {
		return err
	}
	return s.copyStateFiles()
}

// quiesce has the guest write out its file systems, as far as that was asked
// for.
func (s *snapshotting) quiesce(ctx context.Context, c hypervisor.Control) error {
	if s.request.Quiesce == snapshot.Skip {
		return nil
	}
	err := error(errors.New("the machine is paused, so its guest agent does not answer"))
	if s.made.State == snapshot.Running {
		s.report.Progress(operation.Progress{Phase: "the guest writes out its file systems"})
		err = s.freeze(ctx, c, func() error {
			s.note.Frozen = true
			return s.op.Note(s.note)
		})
	}
	switch {
	case err == nil:
		s.made.Quiesced = true
		return nil
	case s.request.Quiesce == snapshot.Require:
		return operation.Refuse(operation.WrongState, "the guest's file systems cannot be made quiet: %v", err)
	}
	s.report.Warn("the snapshot is as after a loss of power: %v", err)
	if s.note.Frozen { // or may become so later
		return s.thaw(ctx)
	}
	return nil
}

// release lets the guest go on that was held for a snapshot.
func (a app) release(ctx context.Context, c hypervisor.Control, note snapshotNote) error {
	var errs []error
	if note.Halted {
		// Not what a panic or a full disk has stopped.
		status, err := c.Status(ctx)
		if err == nil && status == hypervisor.StatusPaused {
			err = c.Resume(ctx)
		}
		errs = append(errs, err)
	}
	if saver, ok := c.(hypervisor.StateSaver); ok && note.Saving {
		errs = append(errs, saver.EndSave(ctx, note.Paused))
	}
	if note.Frozen {
		errs = append(errs, a.thaw(ctx))
	}
	return errors.Join(errs...)
}

// maxStateFile is how large a file of a machine's state may be, in bytes: the
// machine itself writes it.
const maxStateFile = 256 << 20

// copyStateFiles copies the files of the machine's state into the snapshot.
func (s *snapshotting) copyStateFiles() error {
	for _, path := range snapshot.StateFiles(s.record.Plan) {
		name := filepath.Base(path)
		err := copyStateFile(path, filepath.Join(s.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // never started yet
		}
		if err != nil {
			return err
		}
		s.made.Files = append(s.made.Files, name)
	}
	return nil
}

// restoreStateFile copies a file of a snapshot back to where it was.
func (a app) restoreStateFile(from, name string) error {
	to := filepath.Join(a.paths.StateDir(a.vm), name)
	if tpm := a.paths.TPMState(a.vm); name == filepath.Base(tpm) {
		if err := os.Mkdir(filepath.Dir(tpm), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		to = tpm
	}
	return copyStateFile(from, to)
}

// openStateFile opens a file of the machine's state for reading.
func openStateFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() > maxStateFile {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s: want a file of at most %d bytes", path, maxStateFile))
	}
	return f, nil
}

// copyStateFile copies a file of the machine's state, whole or not at all, for
// root alone.
func copyStateFile(from, to string) error {
	in, err := openStateFile(from)
	if err != nil {
		return err
	}
	defer in.Close()
	temp := filepath.Join(filepath.Dir(to), "."+filepath.Base(to)+".new")
	if err := removeFile(temp); err != nil {
		return err
	}
	out, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err = io.Copy(out, io.LimitReader(in, maxStateFile)); err == nil {
		err = out.Sync()
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return os.Rename(temp, to)
}

// mendCreateSnapshot is for after a snapshot was cut off: it is there, or
// nothing is left of it.
func mendCreateSnapshot(ctx context.Context, a app, r operation.Record) error {
	var note snapshotNote
	if err := json.Unmarshal(r.Detail, &note); err != nil {
		return err
	}
	return a.settleSnapshot(ctx, note)
}

func (a app) settleSnapshot(ctx context.Context, note snapshotNote) error {
	_, err := snapshot.Get(a.paths, a.vm, note.Name)
	switch {
	case err == nil:
		return snapshot.SetCurrent(a.paths, a.vm, note.Name)
	case errors.Is(err, fs.ErrNotExist):
		return a.takeBackSnapshot(ctx, note)
	}
	// It may be there: only the guest is let go on.
	c, failed := a.connect(ctx)
	if c != nil {
		defer c.Close()
		failed = a.release(ctx, c, note)
	}
	return errors.Join(err, failed)
}

// takeBackSnapshot lets the guest go on, and removes what there is of a snapshot.
func (a app) takeBackSnapshot(ctx context.Context, note snapshotNote) error {
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	var errs []error
	if c != nil {
		defer c.Close()
		errs = append(errs, a.release(ctx, c, note))
	}
	left, err := a.deleteTags(ctx, c, note)
	// It takes room there, which is no reason to keep the machine from starting.
	for _, e := range left {
		a.warn("%v", e)
	}
	errs = append(errs, err, os.RemoveAll(snapshot.Draft(a.paths, a.vm, note.Name)))
	return errors.Join(errs...)
}

// deleteTags removes a snapshot from the images that have it. c is nil where the
// machine does not run. left are the images that have it still and that the
// machine does not use.
func (a app) deleteTags(ctx context.Context, c hypervisor.Control, note snapshotNote) (left []error, err error) {
	live := map[string]string{} // path of each disk that the machine runs with
	if c != nil {
		r, err := a.definition(true)
		if err != nil {
			return nil, err
		}
		parts, _ := snapshot.Parts(r.Machine, a.paths)
		for _, p := range parts {
			live[p.Name] = p.Path
		}
	}
	var errs []error
	for _, d := range note.Disks {
		if s, ok := c.(hypervisor.DiskSnapshotter); ok && live[d.Name] == d.Path {
			errs = append(errs, s.DeleteDiskSnapshot(ctx, note.Tag, d.Name))
			continue
		}
		if err := a.deleteSnapshot(ctx, d.Path, note.Tag); err != nil {
			left = append(left, fmt.Errorf("disk.%s: the snapshot is left in its image, which qemu-img snapshot -d %s %s would remove: %w", d.Name, note.Tag, d.Path, err))
		}
	}
	return left, errors.Join(errs...)
}

// deleteSnapshots removes snapshots.
func deleteSnapshots(ctx context.Context, a app, request json.RawMessage, report *operation.Reporter) (any, error) {
	var r snapshot.DeleteRequest
	if err := json.Unmarshal(request, &r); err != nil {
		return nil, err
	}
	var all []snapshot.Snapshot
	for _, name := range r.Names {
		s, err := a.findSnapshot(name)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	c, err := a.settled(ctx)
	if err != nil {
		return nil, err
	}
	if c != nil {
		defer c.Close()
	}
	removed := []string{}
	for _, s := range all {
		if ctx.Err() != nil {
			return removed, ctx.Err()
		}
		report.Progress(operation.Progress{Phase: "deleting snapshot " + s.Name})
		note := snapshotNote{Name: s.Name, Tag: s.Tag, Disks: s.Disks}
		op, err := operation.Begin(a.paths, a.vm, snapshot.Delete, note)
		if err != nil {
			return removed, err
		}
		if err := errors.Join(a.deleteSnapshotWhole(context.WithoutCancel(ctx), c, note), op.End()); err != nil {
			return removed, err
		}
		removed = append(removed, s.Name)
	}
	return removed, nil
}

// findSnapshot reads the record of a snapshot.
func (a app) findSnapshot(name string) (snapshot.Snapshot, error) {
	if err := config.CheckName(name); err != nil {
		return snapshot.Snapshot{}, operation.Refuse(operation.Usage, "name of a snapshot: %v", err)
	}
	s, err := snapshot.Get(a.paths, a.vm, name)
	if errors.Is(err, fs.ErrNotExist) {
		return s, operation.Refuse(operation.NotFound, "no snapshot of %s is named %s", a.vm, name)
	}
	return s, err
}

// deleteSnapshotWhole removes all of a snapshot; c is nil where the machine does
// not run.
func (a app) deleteSnapshotWhole(ctx context.Context, c hypervisor.Control, note snapshotNote) error {
	left, err := a.deleteTags(ctx, c, note)
	if err := errors.Join(append(left, err)...); err != nil {
		return err // without its record nobody knew of what is left
	}
	s, err := snapshot.Get(a.paths, a.vm, note.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(snapshot.Draft(a.paths, a.vm, note.Name))
	}
	if err != nil {
		return err
	}
	return snapshot.Remove(a.paths, a.vm, s)
}

// mendDeleteSnapshot brings a deletion to its end. Where that cannot be, the
// snapshot is still known, and can be deleted again.
func mendDeleteSnapshot(ctx context.Context, a app, r operation.Record) error {
	var note snapshotNote
	if err := json.Unmarshal(r.Detail, &note); err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	if c != nil {
		defer c.Close()
	}
	if err := a.deleteSnapshotWhole(ctx, c, note); err != nil {
		a.warn("delete snapshot %s: %v", note.Name, err)
	}
	return nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/hypervisor/saved"
	"github.com/vmctl/vmctl/units/bus"
)

const (
	operationSave    = "save" // and the kind of its record
	operationDiscard = "discard"
)

// saveNote is what has to be known of a saving that was cut off.
type saveNote struct {
	Paused bool `json:"paused"` // the guest was before
}

// savedResult is what vmctl is told.
type savedResult struct {
	Bytes  int64 `json:"bytes"`
	Memory int64 `json:"memory_bytes"`
	Paused bool  `json:"paused"`
}

// saveMachine puts a running machine away: its state on the disk, its hypervisor
// ended.
func saveMachine(ctx context.Context, a app, _ json.RawMessage, report *operation.Reporter) (any, error) {
	s, err := a.saveState(ctx, report.Progress, report.Warn)
	if err != nil {
		return nil, err
	}
	result := savedResult{Bytes: s.Bytes, Memory: s.Memory, Paused: s.Paused}
	conn, job, err := a.beginStop(ctx)
	if err != nil {
		// Nothing that would end it: then it goes on.
		return nil, errors.Join(err, a.onJobSocket(ctx, func(c hypervisor.Control, ctx context.Context) error {
			return a.takeBackSave(ctx, c, s.Paused)
		}))
	}
	defer conn.Close()
	if err := job.Wait(ctx); err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("it is saved, but its hypervisor does not end: %w", err)
	}
	return result, operation.Forget(a.paths, a.vm)
}

// beginStop has systemd stop the machine's unit, whose stop finds that it is
// saved. Without systemd it might be started again.
func (a app) beginStop(ctx context.Context) (*bus.Conn, *bus.Job, error) {
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return nil, nil, err
	}
	job, err := conn.Begin(ctx, bus.Stop, config.Unit(a.vm))
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, job, nil
}

// saveState makes a saved machine of a running one. After an error the guest
// goes on as before; otherwise its CPUs stand still, for good, and the operation
// has not ended. The caller has the machine's lock.
func (a app) saveState(ctx context.Context, progress func(operation.Progress), warn func(string, ...any)) (*saved.Record, error) {
	started, err := readRecord(a.paths, a.vm)
	if err != nil {
		return nil, err
	}
	var s *saved.Record
	err = a.onJobSocket(ctx, func(c hypervisor.Control, ctx context.Context) error {
		s, err = a.saveBy(ctx, c, started, progress, warn)
		return err
	})
	if access.Nobody(err) {
		return nil, operation.Refuse(operation.WrongState, "the hypervisor does not answer: the machine does not run")
	}
	if e, ok := errors.AsType[*hypervisor.UnsavableError](err); ok {
		return nil, operation.Refuse(operation.WrongState, "%v", e)
	}
	return s, err
}

// savedMachine has the record of a start tell of the machine as it is by now: what
// can change while it runs may be other than at the start, its disks and its cards
// themselves may not ([hypervisor.StateSaver]). overridden is [saved.Record.Overridden].
func (a app) savedMachine(ctx context.Context, saver hypervisor.StateSaver, r *hypervisor.Record) (overridden map[string]string, err error) {
	changes, err := hypervisor.ReadChanges(a.paths, a.vm)
	if err != nil {
		return nil, err
	}
	plan := *r.Plan
	if plan.Argv, err = saver.StateArgv(ctx, plan.Argv); err != nil {
		return nil, err
	}
	r.Plan = &plan
	if len(changes.SetNICs) == 0 && changes.Live == nil {
		return changes.Overridden, nil
	}
	machine := *r.Machine
	if changes.Live != nil {
		// Limits of disks are those of the command line again, once it is loaded.
		live := *changes.Live
		live.Disks = nil
		machine = *machine.WithLive(live)
	}
	machine.NICs = changes.Apply(&machine).NICs
	r.Machine = &machine
	if changes.Digest != "" {
		r.Digest = changes.Digest
	}
	if changes.Live != nil {
		// The definition that says the same has another digest than that of the start.
		if planned, problems := all.Plan(r.Machine, hypervisor.Probe(a.paths.Root), a.paths); len(problems) == 0 {
			r.Digest = hypervisor.Digest(r.Machine, planned)
		}
	}
	return changes.Overridden, nil
}

func (a app) saveBy(ctx context.Context, c hypervisor.Control, started hypervisor.Record, progress func(operation.Progress), warn func(string, ...any)) (*saved.Record, error) {
	saver, ok := c.(hypervisor.StateSaver)
	if !ok {
		return nil, operation.Refuse(operation.WrongState, "%v", hypervisor.Impossible("saving", started.Machine.Hypervisor))
	}
	status, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	if status != hypervisor.StatusRunning && status != hypervisor.StatusPaused {
		return nil, operation.Refuse(operation.WrongState, "invalid transition from %s: only a machine that runs or is paused can be saved", status)
	}
	format, err := saver.StateFormat(ctx)
	if err != nil {
		return nil, err
	}
	overridden, err := a.savedMachine(ctx, saver, &started)
	if err != nil {
		return nil, err
	}
	if err := saver.CheckState(ctx, started.Plan.Argv); err != nil {
		return nil, err
	}
	s := &saved.Record{ID: saved.NewID(), Started: started, Format: format, Paused: status == hypervisor.StatusPaused, Overridden: overridden}
	s.Started.Incoming = nil
	if seed, err := os.ReadFile(a.paths.Seed(a.vm)); err == nil {
		s.Seed = saved.SeedHash(seed)
	}
	if free := freeBytes(a.paths.StateDir(a.vm)); free < int64(started.Machine.Memory) {
		warn("%s has %s free for %s of memory, which may not be enough", a.paths.StateDir(a.vm), config.Size(free), started.Machine.Memory)
	}

	op, err := operation.Begin(a.paths, a.vm, operationSave, saveNote{Paused: s.Paused})
	if err != nil {
		return nil, err
	}
	err = a.writeState(ctx, saver, s, progress)
	if err != nil {
		back := a.takeBackSave(context.WithoutCancel(ctx), c, s.Paused)
		if back == nil {
			back = op.End()
		}
		return nil, errors.Join(err, back)
	}
	return s, nil
}

// writeState writes the state, and the record last. After an error something of
// both may be there, and the CPUs may stand still.
func (a app) writeState(ctx context.Context, saver hypervisor.StateSaver, s *saved.Record, progress func(operation.Progress)) error {
	scratch, done, err := a.openScratch(s.Started.Plan)
	if err != nil {
		return err
	}
	defer done()
	state, err := readState(func(r io.ReadCloser) (int64, error) { return saved.WriteState(a.paths, a.vm, r) })
	if err != nil {
		return err
	}
	told := time.Time{}
	err = saver.SaveState(ctx, state.w, scratch, func(part, total int64) {
		s.Memory = total
		if time.Since(told) > time.Second/4 {
			told = time.Now()
			progress(operation.Progress{Phase: "saving memory", Done: part, Total: total})
		}
	}, nil)
	if s.Bytes, err = state.end(err); err != nil {
		return err
	}
	if s.Memory == 0 {
		s.Memory = int64(s.Started.Machine.Memory)
	}
	for _, path := range saved.Written(s.Started.Plan) {
		f, err := saved.Look(path)
		if err != nil {
			return err
		}
		s.Files = append(s.Files, f)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.Saved = time.Now()
	return s.Keep(a.paths, a.vm)
}

// stateReader takes what a hypervisor writes of its state.
type stateReader struct {
	r, w  *os.File
	ended chan struct{} // closed when n and err are known
	n     int64
	err   error
}

// readState has read take it, which closes what it is given.
func readState(read func(io.ReadCloser) (int64, error)) (*stateReader, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// Fewer turns; less than asked for does as well.
	_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	s := &stateReader{r: r, w: w, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		s.n, s.err = read(r)
	}()
	return s, nil
}

// lastOfState is how long what a hypervisor has written of its state is read after it
// has failed: it may hold its end for ever.
const lastOfState = 10 * time.Second

// end returns how many bytes are written, or why not all is: err is how the
// hypervisor fared, which may be because of who reads.
func (s *stateReader) end(err error) (int64, error) {
	s.w.Close()
	if err != nil {
		_ = s.r.SetReadDeadline(time.Now().Add(lastOfState))
	}
	<-s.ended
	if s.err != nil && !errors.Is(s.err, os.ErrDeadlineExceeded) {
		return 0, s.err
	}
	return s.n, err
}

// takeBackSave has the guest go on that was being saved, or was saved, once
// nothing is there any more that could be started.
func (a app) takeBackSave(ctx context.Context, c hypervisor.Control, paused bool) error {
	if err := errors.Join(saved.Discard(a.paths, a.vm), a.emptyScratch()); err != nil {
		return err
	}
	saver, ok := c.(hypervisor.StateSaver)
	if !ok {
		return nil
	}
	err := saver.EndSave(ctx, paused)
	if gone(err) {
		return nil
	}
	return err
}

// mendSave brings a saving to its end that was cut off: with the record, that of
// the hypervisor, without, the machine's going on.
func mendSave(ctx context.Context, a app, r operation.Record) error {
	var note saveNote
	if err := json.Unmarshal(r.Detail, &note); err != nil {
		return err
	}
	err := a.onJobSocket(ctx, func(c hypervisor.Control, ctx context.Context) error {
		if !saved.Exists(a.paths, a.vm) {
			return a.takeBackSave(ctx, c, note.Paused)
		}
		status, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if status == hypervisor.StatusRunning {
			// Somebody has let it run, by a way of their own.
			return saved.Discard(a.paths, a.vm)
		}
		conn, _, err := a.beginStop(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		return c.Quit(ctx)
	})
	switch {
	case !gone(err):
		return err
	case saved.Exists(a.paths, a.vm):
		return nil
	}
	return saved.Discard(a.paths, a.vm)
}

// gone says whether an error means that there is no hypervisor.
func gone(err error) bool {
	return access.Nobody(err) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
}

// discardSaved removes a saved state that nobody wants to go on from.
func discardSaved(_ context.Context, a app, _ json.RawMessage, _ *operation.Reporter) (any, error) {
	if !saved.Exists(a.paths, a.vm) {
		return nil, operation.Refuse(operation.WrongState, "it is not saved")
	}
	if _, err := os.Lstat(a.paths.VMJSON(a.vm)); err == nil {
		return nil, operation.Refuse(operation.WrongState, "its saved state is being loaded")
	}
	return nil, saved.Discard(a.paths, a.vm)
}

// onJobSocket does something on the control socket for what takes long.
func (a app) onJobSocket(ctx context.Context, call func(hypervisor.Control, context.Context) error) error {
	hv := a.startedWith().hv
	c, err := access.Connect(ctx, hv, a.paths.JobSocket(a.vm))
	if err != nil {
		return err
	}
	defer c.Close()
	return call(c, ctx)
}

// freeBytes is what is free in the file system of a directory.
func freeBytes(dir string) int64 {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0
	}
	return int64(s.Bavail) * s.Bsize
}

// standsSaved says whether the machine is saved and only has to be ended. One
// that somebody has let run since, by a way of their own, is not.
func (a app) standsSaved(ctx context.Context) bool {
	if !saved.Exists(a.paths, a.vm) {
		return false
	}
	var status hypervisor.Status
	err := a.onJobSocket(ctx, func(c hypervisor.Control, ctx context.Context) (err error) {
		status, err = c.Status(ctx)
		return err
	})
	if err == nil && status == hypervisor.StatusRunning {
		err := saved.Discard(a.paths, a.vm)
		a.warn("it was saved, but runs: what was saved is of no use: %v", err)
		return err != nil
	}
	return true
}

// endSaving has a saving that is under way taken back: the machine is stopped,
// and will not be there for long enough.
func (a app) endSaving(ctx context.Context) {
	r, err := operation.Unfinished(a.paths, a.vm)
	if err != nil || r == nil || r.Kind != operationSave || saved.Exists(a.paths, a.vm) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, endSavingTime)
	defer cancel()
	conn, err := bus.Dial(ctx, a.paths.User)
	if err == nil {
		defer conn.Close()
		err = conn.Stop(ctx, config.OperationUnit(operationSave, a.vm))
	}
	if err != nil && !errors.Is(err, bus.ErrNoSuchUnit) {
		a.warn("end the saving: %v", err)
	}
}

// endSavingTime is for what is being saved to be taken back.
const endSavingTime = 30 * time.Second

// saveInStop saves the machine for the time in which the host is down. No unit
// can be started any more that would do it.
func (a app) saveInStop(ctx context.Context) error {
	_, unlock, err := a.lockPatiently("a save")
	if err != nil {
		return err
	}
	defer unlock()
	if err := a.mendUnfinished(ctx); err != nil {
		return err
	}
	a.notify("STATUS=Saving")
	s, err := a.saveState(ctx, func(p operation.Progress) {
		a.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=Saving: %d %% of %s", loadGrace.Microseconds(), p.Done*100/max(p.Total, 1), config.Size(p.Total)))
	}, a.warn)
	if err != nil {
		return err
	}
	a.info("saved: %s of memory in %s", config.Size(s.Memory), config.Size(s.Bytes))
	return operation.Forget(a.paths, a.vm)
}

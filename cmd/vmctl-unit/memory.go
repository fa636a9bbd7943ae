package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/hypervisor/saved"
	"github.com/vmctl/vmctl/hypervisor/snapshot"
)

// takeMemory takes a snapshot with the machine's memory, which is written while
// the guest runs; the disks are taken once its CPUs stand still.
func (s *snapshotting) takeMemory(ctx context.Context, c hypervisor.Control) error {
	saver, ok := c.(hypervisor.StateSaver)
	if !ok {
		return operation.Refuse(operation.WrongState, "%v", hypervisor.Impossible("a snapshot with memory", s.record.Machine.Hypervisor))
	}
	started, err := readRecord(s.paths, s.vm)
	if err != nil {
		return err
	}
	overridden, err := s.savedMachine(ctx, saver, &started)
	if err != nil {
		return err
	}
	err = saver.CheckState(ctx, started.Plan.Argv)
	if e, ok := errors.AsType[*hypervisor.UnsavableError](err); ok {
		return operation.Refuse(operation.WrongState, "%v", e)
	}
	if err != nil {
		return err
	}
	format, err := saver.StateFormat(ctx)
	if err != nil {
		return err
	}
	started.Incoming = nil
	record := &saved.Record{Started: started, Format: format, Saved: s.made.Created, Paused: s.made.State != snapshot.Running, Overridden: overridden}
	if seed, err := os.ReadFile(s.paths.Seed(s.vm)); err == nil {
		record.Seed = saved.SeedHash(seed)
	}
	s.note.Saving, s.note.Paused = true, record.Paused
	if err := s.op.Note(s.note); err != nil {
		return err
	}
	if err := s.writeMemory(ctx, c, saver, record); err != nil {
		return err // who takes it back lets the guest go on
	}
	s.made.MemoryBytes = record.Bytes
	b, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return access.WriteFile(snapshot.MemoryRecord(s.dir), b, 0o600, true)
}

// writeMemory writes the memory and, at its end, all else. The guest goes on as
// soon as that is done.
func (s *snapshotting) writeMemory(ctx context.Context, c hypervisor.Control, saver hypervisor.StateSaver, record *saved.Record) error {
	scratch, done, err := s.openScratch(record.Started.Plan)
	if err != nil {
		return err
	}
	defer done()
	state, err := readState(func(r io.ReadCloser) (int64, error) { return saved.Compress(snapshot.Memory(s.dir), r) })
	if err != nil {
		return err
	}
	err = saver.SaveState(ctx, state.w, scratch, func(part, total int64) {
		record.Memory = total
		s.report.Progress(operation.Progress{Phase: "writing memory", Done: part, Total: total})
	}, func(ctx context.Context) error {
		return s.takeMoment(context.WithoutCancel(ctx), c.(hypervisor.DiskSnapshotter))
	})
	if err == nil {
		err = saver.EndSave(context.WithoutCancel(ctx), record.Paused)
	}
	record.Bytes, err = state.end(err)
	return err
}

// memoryRecord is what a snapshot's memory is of.
func (a app) memoryRecord(s snapshot.Snapshot) (*saved.Record, error) {
	b, err := os.ReadFile(snapshot.MemoryRecord(a.paths.Snapshot(a.vm, s.Name)))
	if err != nil {
		return nil, err
	}
	record := new(saved.Record)
	return record, json.Unmarshal(b, record)
}

// checkMemory refuses a snapshot whose memory would not be loaded.
func (a app) checkMemory(s snapshot.Snapshot) error {
	if s.MemoryBytes == 0 {
		return nil
	}
	record, err := a.memoryRecord(s)
	if err != nil {
		return err
	}
	now, err := a.definition(false)
	if err != nil {
		return err
	}
	if !saved.SameMachine(record.Started.Machine, now.Machine) {
		return &operation.Error{Status: operation.WrongState,
			Text: "the definition has changed since, and the memory in the snapshot fits to no other",
			Hint: "--disks-only leaves the memory out"}
	}
	return nil
}

// placeMemory makes the machine one that is saved, as it was in the snapshot:
// the disks are restored, and the state is beside its place.
func (a app) placeMemory(s snapshot.Snapshot) error {
	record, err := a.memoryRecord(s)
	if err != nil {
		return err
	}
	record.ID, record.Files = saved.NewID(), nil
	for _, path := range saved.Written(record.Started.Plan) {
		f, err := saved.Look(path)
		if err != nil {
			return err
		}
		record.Files = append(record.Files, f)
	}
	return record.Keep(a.paths, a.vm)
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/hypervisor/saved"
	"github.com/vmctl/vmctl/hypervisor/snapshot"
)

// restoreSnapshot makes the disks and the state of a machine that does not run
// what they were. Once begun it is brought to its end, by whoever comes after
// where we are killed: with half of the disks restored nothing could be started.
func restoreSnapshot(ctx context.Context, a app, request json.RawMessage, report *operation.Reporter) (any, error) {
	var r snapshot.RestoreRequest
	if err := json.Unmarshal(request, &r); err != nil {
		return nil, err
	}
	s, err := a.findSnapshot(r.Name)
	if err != nil {
		return nil, err
	}
	c, err := a.settled(ctx)
	if err != nil {
		return nil, err
	}
	if c != nil {
		c.Close()
		if !r.Check {
			return nil, operation.Refuse(operation.WrongState, "%s runs: stop it first", a.vm)
		}
	}
	if r.DisksOnly {
		s.MemoryBytes = 0
	}
	if err := a.checkMemory(s); err != nil {
		return nil, err
	}
	disks, err := a.restorable(ctx, s, r.Force, report)
	if err != nil {
		return nil, err
	}
	if err := a.checkReplaces(disks, r.Force, report); err != nil {
		return nil, err
	}
	result := snapshot.Restored{Name: s.Name, Memory: s.MemoryBytes > 0}
	for _, d := range disks {
		result.Disks = append(result.Disks, d.Name)
	}
	if r.Check {
		return result, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	note := snapshotNote{Name: s.Name, Tag: s.Tag, Disks: disks, Memory: s.MemoryBytes > 0}
	op, err := operation.Replace(a.paths, a.vm, snapshot.Restore, note)
	if err != nil {
		return nil, err
	}
	if err := a.applySnapshot(context.WithoutCancel(ctx), note, report.Progress); err != nil {
		return nil, fmt.Errorf("%w (it is tried again before %s is started)", err, a.vm)
	}
	return result, op.End()
}

// checkReplaces refuses to leave a disk as a restore has left it that was cut off
// and could not be mended, unless that is forced.
func (a app) checkReplaces(disks []snapshot.Disk, force bool, report *operation.Reporter) error {
	old, err := operation.Unfinished(a.paths, a.vm)
	if err != nil || old == nil {
		return err
	}
	var note snapshotNote
	if err := json.Unmarshal(old.Detail, &note); err != nil {
		return err
	}
	for _, d := range note.Disks {
		switch restored := slices.ContainsFunc(disks, func(o snapshot.Disk) bool { return o.Path == d.Path }); {
		case restored:
		case !force:
			return &operation.Error{Status: operation.WrongState,
				Text: fmt.Sprintf("disk.%s: %s may be restored by half to snapshot %s, and would stay so", d.Name, d.Path, note.Name),
				Hint: "--force leaves it as it is"}
		default:
			report.Warn("disk.%s: %s may be restored by half, and stays so", d.Name, d.Path)
		}
	}
	return nil
}

// restorable are the disks that a snapshot can be restored to: all that it has,
// and all that the machine has now, unless force leaves out what differs.
func (a app) restorable(ctx context.Context, s snapshot.Snapshot, force bool, report *operation.Reporter) ([]snapshot.Disk, error) {
	now, err := a.definition(false)
	if err != nil {
		return nil, err
	}
	differences := added(now, s)
	var disks []snapshot.Disk
	for _, d := range s.Disks {
		why, err := a.cannotRestore(ctx, now, s, d)
		if err != nil {
			return nil, fmt.Errorf("disk.%s: %w", d.Name, err)
		}
		if why != "" {
			differences = append(differences, fmt.Sprintf("disk.%s: %s", d.Name, why))
			continue
		}
		disks = append(disks, d)
	}
	switch {
	case len(disks) == 0:
		return nil, operation.Refuse(operation.WrongState, "none of the disks of snapshot %s is there any more:\n%s", s.Name, strings.Join(differences, "\n"))
	case len(differences) > 0 && !force:
		return nil, &operation.Error{Status: operation.WrongState,
			Text: fmt.Sprintf("%s is another machine than when snapshot %s was taken:\n%s", a.vm, s.Name, strings.Join(differences, "\n")),
			Hint: "--force restores the other disks, whether they fit to these or not"}
	case len(differences) > 0 && s.MemoryBytes > 0:
		return nil, operation.Refuse(operation.WrongState, "snapshot %s has the machine's memory, which fits to no other disks:\n%s", s.Name, strings.Join(differences, "\n"))
	}
	for _, d := range differences {
		report.Warn("%s", d)
	}
	return disks, nil
}

// added are the disks that the machine has now and the snapshot has not.
func added(now hypervisor.Record, s snapshot.Snapshot) []string {
	var lines []string
	for _, d := range now.Machine.Disks {
		known := slices.ContainsFunc(s.Disks, func(o snapshot.Disk) bool { return o.Name == d.Name })
		if !known && d.Keeps() {
			lines = append(lines, fmt.Sprintf("disk.%s: it was added since, and would stay as it is", d.Name))
		}
	}
	return lines
}

// cannotRestore is why one of a snapshot's disks cannot be restored, "" where it
// can.
func (a app) cannotRestore(ctx context.Context, now hypervisor.Record, s snapshot.Snapshot, d snapshot.Disk) (string, error) {
	parts, _ := snapshot.Parts(now.Machine, a.paths)
	i := slices.IndexFunc(parts, func(p snapshot.Part) bool { return p.Name == d.Name })
	switch {
	case i < 0:
		return "the definition has no such disk any more, or none that takes part in snapshots", nil
	case parts[i].Path != d.Path:
		return fmt.Sprintf("it is %s by now, and was %s", parts[i].Path, d.Path), nil
	}
	f, err := access.Open(d.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return d.Path + " does not exist any more", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	q, err := a.lookInto(ctx, d.Path, f)
	if err != nil {
		return "", err
	}
	if !q.has(s.Tag) {
		return d.Path + " does not have this snapshot any more", nil
	}
	for _, b := range q.info.Bitmaps {
		if !isOurs(b.Name) {
			return "", operation.Refuse(operation.WrongState,
				"%s has the dirty bitmap %s, which would be wrong afterwards: qemu-img bitmap --remove %s %s removes it", d.Path, b.Name, d.Path, b.Name)
		}
	}
	return "", nil
}

// isOurs says whether a bitmap in an image is vmctl's own.
func isOurs(bitmap string) bool { return strings.HasPrefix(bitmap, "vmctl") }

// applySnapshot makes the disks and the state what they were. It may be done
// again after it was cut off.
func (a app) applySnapshot(ctx context.Context, note snapshotNote, progress func(operation.Progress)) error {
	s, err := a.findSnapshot(note.Name)
	if err != nil {
		return err
	}
	// What was saved fits to the disks as they were until now.
	if err := saved.Discard(a.paths, a.vm); err != nil {
		return err
	}
	if note.Memory {
		progress(operation.Progress{Phase: "copying memory"})
		if err := saved.CopyState(a.paths, a.vm, snapshot.Memory(a.paths.Snapshot(a.vm, s.Name))); err != nil {
			return err
		}
	}
	for _, d := range note.Disks {
		progress(operation.Progress{Phase: "restoring disk " + d.Name})
		if err := a.applyToDisk(ctx, d.Path, note.Tag); err != nil {
			return fmt.Errorf("disk.%s: %w", d.Name, err)
		}
	}
	for _, name := range s.Files {
		from := filepath.Join(a.paths.Snapshot(a.vm, s.Name), name)
		if err := a.restoreStateFile(from, name); err != nil {
			return err
		}
	}
	if note.Memory {
		if err := a.placeMemory(s); err != nil {
			return err
		}
	}
	return snapshot.SetCurrent(a.paths, a.vm, s.Name)
}

// applyToDisk makes what is on a disk what it was.
func (a app) applyToDisk(ctx context.Context, path, tag string) error {
	q, err := a.openImage(ctx, path)
	if err != nil {
		return err
	}
	defer q.close()
	// They tell what was written since a backup, which is not true any more.
	for _, b := range q.info.Bitmaps {
		if !isOurs(b.Name) {
			continue // there was none when it was looked for
		}
		if err := q.img.RemoveBitmap(ctx, q.layer, b.Name); err != nil {
			return err
		}
	}
	return q.img.ApplySnapshot(ctx, q.layer, tag)
}

// mendRestoreSnapshot brings a restore to its end.
func mendRestoreSnapshot(ctx context.Context, a app, r operation.Record) error {
	var note snapshotNote
	if err := json.Unmarshal(r.Detail, &note); err != nil {
		return err
	}
	for _, d := range note.Disks {
		// Only room is lost where it fails; and it also fails of an image that
		// is damaged where the snapshot does not matter.
		if err := a.freeLeaks(ctx, d.Path); err != nil {
			a.warn("disk.%s: free what is left of the restore that was cut off: %v", d.Name, err)
		}
	}
	err := a.applySnapshot(ctx, note, func(operation.Progress) {})
	if err != nil {
		return fmt.Errorf("snapshot %s is restored by half and cannot be as a whole: %w (vmctl snapshot restore %s OTHER restores another in its place; who takes the disks as they are removes %s)",
			note.Name, err, a.vm, a.paths.Operation(a.vm))
	}
	return nil
}

// freeLeaks gives back what an image takes for nothing since it was changed
// half-way.
func (a app) freeLeaks(ctx context.Context, path string) error {
	q, err := a.openImage(ctx, path)
	if err != nil {
		return err
	}
	defer q.close()
	return q.img.FreeLeaks(ctx, q.layer)
}

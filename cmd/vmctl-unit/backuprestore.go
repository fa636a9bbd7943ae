package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/backup"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// restoreNote is what it takes to mend a restoration that was cut off.
type restoreNote struct {
	Staged []placing `json:"staged"`
	// Whole says that all of them are, and are to come to their places: all or
	// none.
	Whole bool `json:"whole"`
}

// placing is a file that is made beside its place.
type placing struct {
	Staged string `json:"staged"`
	Path   string `json:"path"`
	// Old is the inode of what is at Path before; 0 for nothing.
	Old uint64 `json:"old,omitempty"`
}

// restoring is one restoration.
type restoring struct {
	app
	from   backup.Backup
	report *operation.Reporter

	machine *config.Machine
	text    string // of the definition that is to be written; "" where there is one
	file    string // for it
	parts   []part
	note    restoreNote
}

// part is one disk that is restored, or the UEFI variables.
type part struct {
	copy   backup.Disk
	place  placing
	format string
	old    *os.File // what is there; nil for nothing
}

// restoreBackup makes the disks of a machine that does not run what they were,
// all or none of them.
func restoreBackup(ctx context.Context, a app, request json.RawMessage, report *operation.Reporter) (any, error) {
	var r backup.RestoreRequest
	if err := json.Unmarshal(request, &r); err != nil {
		return nil, err
	}
	b, err := backup.Open(r.Dir)
	if errors.Is(err, backup.ErrNoBackup) {
		return nil, operation.Refuse(operation.NotFound, "%v", err)
	}
	if err != nil {
		return nil, err
	}
	s := &restoring{app: a, from: b, report: report}
	defer s.close()
	if err := s.plan(ctx, r.New); err != nil {
		return nil, err
	}
	if err := s.verify(ctx); err != nil {
		return nil, err
	}
	if err := s.restore(ctx); err != nil {
		return nil, err
	}
	result := backup.Restored{VM: a.vm, Backup: b.Dir, Disks: map[string]string{}}
	for _, p := range s.parts {
		if p.copy.Disk != "" {
			result.Disks[p.copy.Disk] = p.place.Path
		}
	}
	if s.text != "" {
		result.Definition = s.file
	}
	return result, nil
}

func (s *restoring) close() {
	for _, p := range s.parts {
		if p.old != nil {
			p.old.Close()
		}
	}
}

// plan decides what comes where, and refuses what cannot be.
func (s *restoring) plan(ctx context.Context, anew bool) error {
	c, err := s.settled(ctx)
	if err != nil {
		return err
	}
	if c != nil {
		c.Close()
		return &operation.Error{Status: operation.WrongState, Text: s.vm + " runs: its disks cannot be replaced", Hint: "vmctl stop " + s.vm}
	}
	if _, err := os.Lstat(s.paths.SavedRecord(s.vm)); err == nil {
		return &operation.Error{Status: operation.WrongState,
			Text: s.vm + " is saved: what it remembers of its disks would be wrong", Hint: "vmctl reset " + s.vm + " gives up what was saved"}
	}
	if err := s.define(anew); err != nil {
		return err
	}
	if anew {
		if left, _ := filepath.Glob(s.paths.StateDir(s.vm) + "/disk-*"); len(left) > 0 {
			return operation.Refuse(operation.WrongState, "there are disks of an earlier %s: %s", s.vm, strings.Join(left, ", "))
		}
	}
	for _, d := range s.from.Disks {
		i := slices.IndexFunc(s.machine.Disks, func(m config.Disk) bool { return m.Name == d.Disk })
		if i < 0 {
			return operation.Refuse(operation.WrongState, "the definition of %s has no disk %s, which the backup has", s.vm, d.Disk)
		}
		if m := s.machine.Disks[i]; !m.Keeps() {
			return operation.Refuse(operation.WrongState, "disk %s of %s is read-only or ephemeral", d.Disk, s.vm)
		}
		if err := s.add(ctx, d, s.diskFile(s.machine.Disks[i])); err != nil {
			return fmt.Errorf("disk.%s: %w", d.Disk, err)
		}
	}
	for _, m := range s.machine.Disks {
		if _, ok := s.from.Find(m.Name); !ok && m.Keeps() {
			s.report.Warn("disk %s is not in the backup, and stays as it is", m.Name)
		}
	}
	if n := s.from.NVRAM; n != nil {
		f := s.nvram(s.machine)
		if f.File == "" {
			if n.Format != disk.Raw && n.Format != disk.QCOW2 {
				return fmt.Errorf("UEFI variables of the format %q", n.Format)
			}
			f = fileOf{s.paths.NVRAM(s.machine, n.Format), n.Format}
		}
		return s.add(ctx, *n, f)
	}
	return nil
}

// define finds the machine's definition, or makes it of that in the backup.
func (s *restoring) define(anew bool) error {
	var files []string
	for _, f := range s.from.Definition {
		files = append(files, filepath.Join(s.from.Dir, f.Name))
	}
	draft, problems := config.ReadDraft(s.vm, files)
	vm, err := config.LoadVM(s.paths, s.vm)
	switch {
	case err == nil && anew:
		return operation.Refuse(operation.WrongState, "%s exists already: %s", s.vm, vm.File)
	case err == nil && vm.Machine == nil:
		return operation.Refuse(operation.Invalid, "%v", errors.Join(problemErrors(vm.Problems)...))
	case err == nil:
		s.machine = vm.Machine
		if now, _ := config.ReadDraft(s.vm, vm.Files); len(problems) == 0 && now.Text() != draft.Text() {
			s.report.Warn("the definition is not the one of the backup, and stays as it is")
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case len(files) == 0:
		return operation.Refuse(operation.WrongState, "the backup has no definition, and %s has none: write one first", s.vm)
	case len(problems) > 0:
		return operation.Refuse(operation.Invalid, "%v", errors.Join(problemErrors(problems)...))
	}
	if anew {
		draft.Rename()
		for _, d := range s.from.Disks {
			if err := ownDisk(draft, d); err != nil {
				return err
			}
		}
	}
	s.file = config.Definition(s.paths.VMDirs[1], s.vm)
	s.text = fmt.Sprintf("# Restored from %s\n%s", s.from.Dir, draft.Text())
	vm = config.Try(s.paths, s.file, s.text)
	if vm.Machine == nil {
		return operation.Refuse(operation.Invalid, "the definition in the backup: %v", errors.Join(problemErrors(vm.Problems)...))
	}
	s.machine = vm.Machine
	return nil
}

// ownDisk makes a disk of a definition one that vmctl makes.
func ownDisk(draft *config.Draft, d backup.Disk) error {
	key := "disk." + d.Disk
	format := d.Format
	if format != disk.Raw {
		format = disk.QCOW2
	}
	draft.Remove(key + ".path")
	draft.Remove(key + ".image")
	draft.Remove(key + ".shareable")
	// Definitions know no single bytes.
	const kilobyte = 1024
	size := config.Size((d.VirtualSize + kilobyte - 1) / kilobyte * kilobyte)
	return cmp.Or(draft.Set(key+".size", size.String()), draft.Set(key+".format", format))
}

// add adds a disk that comes to a file.
func (s *restoring) add(ctx context.Context, d backup.Disk, f fileOf) error {
	p := part{copy: d, format: f.Format}
	old, err := access.Open(f.File)
	path, number := f.File, uint64(0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		p.old, path = old, old.Name() // where it lies, whatever links led there
		s.parts = append(s.parts, p)  // and is closed
		if err := s.replaceable(ctx, old, f.Format); err != nil {
			return err
		}
		if number, err = inodeOf(old); err != nil {
			return err
		}
		s.parts = s.parts[:len(s.parts)-1]
	}
	p.place = placing{filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".restored"), path, number}
	s.parts = append(s.parts, p)
	return nil
}

// replaceable refuses to replace what is in use, what is no file, and what has
// more than its content.
func (s *restoring) replaceable(ctx context.Context, old *os.File, format string) error {
	info, err := old.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return &operation.Error{Status: operation.WrongState, Text: old.Name() + " is a block device, which cannot be replaced whole",
			Hint: "qemu-img convert -n -O raw copies an image of the backup to it; or restore it --as another VM"}
	}
	if who := access.InUse(old, true); who != "" {
		return operation.Refuse(operation.WrongState, "%s is in use by %s", old.Name(), who)
	}
	if format != disk.QCOW2 {
		return nil
	}
	h, err := disk.ReadHeader(old)
	if err == nil && h.Snapshots > 0 {
		return &operation.Error{Status: operation.WrongState, Text: fmt.Sprintf("%s holds %d snapshots, which would be lost", old.Name(), h.Snapshots),
			Hint: "delete them first; or restore it --as another VM"}
	}
	return nil // what is broken is what is restored
}

// verify reads all of the backup before anything is touched.
func (s *restoring) verify(ctx context.Context) error {
	var done int64
	v := backup.Verifier{Img: s.img(), On: func(n int) {
		done += int64(n)
		s.report.Progress(operation.Progress{Phase: "verifying", Done: done})
	}}
	return v.Verify(ctx, s.from)
}

func (s *restoring) img() disk.Img {
	return disk.Img{Program: hypervisor.Probe(s.paths.Root).Programs["qemu-img"], Locks: s.locks}
}

// restore makes all files beside their places, and puts them there.
func (s *restoring) restore(ctx context.Context) (err error) {
	for _, p := range s.parts {
		s.note.Staged = append(s.note.Staged, p.place)
	}
	if err := s.placeTPM(); err != nil {
		return err
	}
	if s.text != "" {
		if err := os.MkdirAll(filepath.Dir(s.file), 0o755); err != nil {
			return err
		}
		// Hidden, so nobody's definition yet. It is the last to come.
		s.note.Staged = append(s.note.Staged, placing{Staged: filepath.Join(filepath.Dir(s.file), "."+s.vm+".toml.restored"), Path: s.file})
	}
	op, err := operation.Begin(s.paths, s.vm, backup.Restore, s.note)
	if err != nil {
		return err
	}
	err = s.stageAll(ctx)
	done := func() {}
	if err == nil { // hours may have passed
		done, err = s.note.keep()
	}
	defer done()
	if err != nil {
		if undone := s.note.removeStaged(); undone != nil {
			return errors.Join(err, undone) // and is mended
		}
		err = errors.Join(err, op.End())
		// Of a machine that is not to be, nothing is left.
		_ = os.Remove(s.paths.TPM(s.vm))
		_ = os.Remove(s.paths.StateDir(s.vm))
		return err
	}
	s.note.Whole = true
	if err := op.Note(s.note); err != nil {
		return err // and is mended, the one way or the other
	}
	if err := s.note.place(); err != nil {
		return err
	}
	return op.End()
}

// placeTPM says where the state of the TPM comes to. What is there is the
// machine's user's, and no image.
func (s *restoring) placeTPM() error {
	if s.from.TPM == nil {
		return nil
	}
	path := s.paths.TPMState(s.vm)
	p := placing{Staged: filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".restored"), Path: path}
	old, err := access.Open(path)
	if err == nil {
		defer old.Close()
		p.Old, err = inodeOf(old)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.note.Staged = append(s.note.Staged, p)
	return nil
}

// stageTPM makes the state of the TPM beside its place.
func (s *restoring) stageTPM() error {
	if s.from.TPM == nil {
		return nil
	}
	if err := os.Mkdir(s.paths.TPM(s.vm), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return copyStateFile(filepath.Join(s.from.Dir, backup.TPMFile), s.note.Staged[len(s.parts)].Staged)
}

// stageAll makes all files beside their places.
func (s *restoring) stageAll(ctx context.Context) error {
	for _, p := range s.parts {
		if err := s.stage(ctx, p); err != nil {
			return fmt.Errorf("restore %s: %w", p.place.Path, err)
		}
	}
	if err := s.stageTPM(); err != nil {
		return fmt.Errorf("restore the TPM's state: %w", err)
	}
	if s.text == "" {
		return nil
	}
	return access.WriteFile(s.note.Staged[len(s.note.Staged)-1].Staged, []byte(s.text), 0o600, true)
}

// stage makes one file beside its place.
func (s *restoring) stage(ctx context.Context, p part) error {
	chain, err := s.from.Chain(p.copy)
	if err != nil {
		return err
	}
	defer chain.Close()
	if err := removeFile(p.place.Staged); err != nil {
		return err
	}
	draft, err := disk.NewDraft(p.place.Staged)
	if err != nil {
		return err
	}
	defer draft.Close()
	phase := "restoring disk " + p.copy.Disk
	err = s.img().Convert(ctx, chain, draft.File, disk.Conversion{Format: p.format}, func(done float64) {
		s.report.Progress(operation.Progress{Phase: phase, Done: int64(done * float64(p.copy.VirtualSize)), Total: p.copy.VirtualSize})
	})
	if err == nil && p.old != nil {
		err = draft.Like(p.old)
	}
	if err != nil {
		return err
	}
	return draft.Place()
}

// removeStaged removes what has been made beside its place.
func (n restoreNote) removeStaged() error {
	var errs []error
	for _, p := range n.Staged {
		// Of one that was cut off half-way there is a draft.
		if d, err := disk.NewDraft(p.Staged); err == nil {
			d.Close()
		} else if !errors.Is(err, fs.ErrNotExist) { // with its directory
			errs = append(errs, err)
		}
		errs = append(errs, removeFile(p.Staged))
	}
	return errors.Join(errs...)
}

// inodeOf is the number of a file's inode.
func inodeOf(f *os.File) (uint64, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return s.Ino, nil
}

// keep refuses places where another file is by now than at first, or one that
// somebody has begun to use, and keeps everybody from it until done is called.
func (n restoreNote) keep() (done func(), err error) {
	var kept []*os.File
	done = func() {
		for _, f := range kept {
			f.Close()
		}
	}
	for _, p := range n.Staged {
		if _, err := os.Lstat(p.Staged); errors.Is(err, fs.ErrNotExist) {
			continue // has come to its place
		}
		f, err := p.old()
		if f != nil {
			kept = append(kept, f)
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// old opens what is to be replaced, and keeps others from it; nil for nothing.
func (p placing) old() (*os.File, error) {
	if p.Old == 0 {
		if _, err := os.Lstat(p.Path); !errors.Is(err, fs.ErrNotExist) {
			return nil, cmp.Or(err, error(operation.Refuse(operation.WrongState, "%s was made meanwhile, by somebody else", p.Path)))
		}
		return nil, nil
	}
	f, err := access.Open(p.Path)
	if err != nil {
		return nil, err
	}
	number, err := inodeOf(f)
	if err != nil {
		return f, err
	}
	if number != p.Old || f.Name() != p.Path {
		return f, operation.Refuse(operation.WrongState, "%s: %v", p.Path, disk.ErrReplaced)
	}
	if who := cmp.Or(access.InUse(f, true), access.Keep(f)); who != "" {
		return f, operation.Refuse(operation.WrongState, "%s is in use by %s", p.Path, who)
	}
	return f, nil
}

// place puts all files to their places, those that are not there already.
func (n restoreNote) place() error {
	for _, p := range n.Staged {
		if err := p.place(); err != nil {
			return err
		}
	}
	return nil
}

func (p placing) place() error {
	if _, err := os.Lstat(p.Staged); errors.Is(err, fs.ErrNotExist) {
		_, err = os.Lstat(p.Path) // else what it lies on is not there just now
		return err
	}
	var old fs.FileInfo
	if p.Old != 0 {
		f, err := access.Open(p.Path)
		if err != nil {
			return err
		}
		defer f.Close()
		if number, err := inodeOf(f); err != nil || number != p.Old {
			return fmt.Errorf("%s: %w", p.Path, cmp.Or(err, disk.ErrReplaced))
		}
		if old, err = f.Stat(); err != nil {
			return err
		}
	}
	return disk.Move(p.Staged, p.Path, old)
}

// mendRestore brings a restoration to its end, or takes it back where not all is
// whole.
func mendRestore(_ context.Context, _ app, r operation.Record) error {
	var note restoreNote
	if err := json.Unmarshal(r.Detail, &note); err != nil {
		return err
	}
	if note.Whole {
		done, err := note.keep()
		defer done()
		if err != nil {
			return err
		}
		return note.place()
	}
	return note.removeStaged()
}

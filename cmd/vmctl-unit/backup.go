package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
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
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/hypervisor/backup"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// firmware is the key of the UEFI variables among disks.
const firmware = "boot.firmware"

// backupNote is what it takes to mend a backup that was cut off.
type backupNote struct {
	Series string   `json:"series"` // directory
	ID     string   `json:"id"`
	Keys   []string `json:"keys"`   // of the disks
	Bitmap string   `json:"bitmap"` // that was made on each
	Frozen bool     `json:"frozen"` // the guest may be
}

// backing is one backup that is being made.
type backing struct {
	app
	request backup.Request
	report  *operation.Reporter

	machine *config.Machine
	control hypervisor.Control // nil where the machine does not run
	copier  hypervisor.DiskCopier
	series  backup.Series
	latest  *backup.Backup
	// unreadable is why latest is nil though there is an earlier backup.
	unreadable error

	op        *operation.Operation
	note      backupNote
	draft     *backup.Draft
	manifest  backup.Manifest
	copies    []hypervisor.DiskCopy
	unfrozen  string // why the guest is not
	committed bool
}

// makeBackup makes one. All that it has changed it takes back where it fails.
func makeBackup(ctx context.Context, a app, request json.RawMessage, report *operation.Reporter) (any, error) {
	b := &backing{app: a, report: report}
	if err := json.Unmarshal(request, &b.request); err != nil {
		return nil, err
	}
	if err := b.checkTarget(); err != nil {
		return nil, err
	}
	leftOut, done, err := b.open(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	made, err := b.make(ctx)
	if err != nil {
		return nil, err
	}
	return backup.Result{Backup: made, NotQuiesced: b.unfrozen, LeftOut: leftOut}, nil
}

// checkTarget refuses what is no directory to write to.
func (b *backing) checkTarget() error {
	target := b.request.Target
	s, err := os.Stat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return operation.Refuse(operation.NotFound, "the directory %s does not exist", target)
	case err != nil:
		return err
	case !s.IsDir():
		return operation.Refuse(operation.Usage, "want a directory, %s is none", target)
	}
	if err := unix.Access(target, unix.W_OK|unix.X_OK); err != nil {
		return operation.Refuse(operation.NotPermitted, "%s cannot be written to: %v", target, err)
	}
	if real, err := filepath.EvalSymlinks(target); err == nil {
		if rel, err := filepath.Rel(b.paths.State, real); err == nil && !strings.HasPrefix(rel, "..") {
			b.report.Warn("%s is where the disks are: what destroys them destroys the backup too", target)
		}
	}
	b.series = backup.SeriesOf(target, b.vm)
	return nil
}

// open finds the disks and has them opened. leftOut are those that are not
// copied.
func (b *backing) open(ctx context.Context) (leftOut []string, done func(), err error) {
	if b.control, err = b.settled(ctx); err != nil {
		return nil, nil, err
	}
	done = func() {}
	if b.control != nil {
		done = func() { b.control.Close() }
	}
	if leftOut, err = b.find(); err == nil && b.control == nil {
		done, err = b.openDisks(ctx)
	} else if err == nil {
		copier, ok := b.control.(hypervisor.DiskCopier)
		if _, stopped := b.opener(); !ok && !stopped {
			err = b.noBackup()
		} else if b.copier = copier; !ok {
			err = operation.Refuse(operation.WrongState, "%v: stop it first", hypervisor.Impossible("backup of a machine that runs", b.machine.Hypervisor))
		}
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	return leftOut, done, nil
}

// find finds the machine, and its disks' keys.
func (b *backing) find() (leftOut []string, err error) {
	var plan *hypervisor.Plan
	if b.control != nil {
		record, err := readRecord(b.paths, b.vm)
		if err != nil {
			return nil, fmt.Errorf("what %s was started with: %w", b.vm, err)
		}
		changes, err := hypervisor.ReadChanges(b.paths, b.vm)
		if err != nil {
			return nil, err
		}
		b.machine, plan = changes.Apply(record.Machine), record.Plan
	} else {
		vm, err := config.LoadVM(b.paths, b.vm)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, operation.Refuse(operation.NotFound, "no VM is named %s", b.vm)
		}
		if err != nil {
			return nil, err
		}
		if vm.Machine == nil {
			return nil, operation.Refuse(operation.Invalid, "%v", errors.Join(problemErrors(vm.Problems)...))
		}
		b.machine = vm.Machine
	}
	leftOut = []string{}
	for _, d := range b.machine.Disks {
		switch {
		case d.Keeps():
			b.note.Keys = append(b.note.Keys, d.Key())
		case d.Ephemeral:
			leftOut = append(leftOut, d.Name+" (ephemeral)")
		default:
			leftOut = append(leftOut, d.Name+" (read-only)")
		}
	}
	if len(b.note.Keys) == 0 {
		return nil, operation.Refuse(operation.WrongState, "%s has no disk that keeps what is written to it: there is nothing to back up", b.vm)
	}
	if plan != nil && slices.ContainsFunc(plan.New, func(n hypervisor.NewFile) bool { return n.Key == firmware }) ||
		b.control == nil && b.nvram(b.machine).File != "" {
		b.note.Keys = append(b.note.Keys, firmware)
	}
	return leftOut, nil
}

func problemErrors(problems []config.Problem) []error {
	var errs []error
	for _, p := range problems {
		errs = append(errs, p)
	}
	return errs
}

// fileOf is the file of a disk.
type fileOf struct{ File, Format string }

// nvram is the file of a machine's UEFI variables; none where there is none yet.
func (a app) nvram(m *config.Machine) fileOf {
	for _, format := range []string{disk.QCOW2, disk.Raw} {
		if file := a.paths.NVRAM(m, format); access.IsThere(file) {
			return fileOf{file, format}
		}
	}
	return fileOf{}
}

// diskFile is the file of a disk of a definition.
func (a app) diskFile(d config.Disk) fileOf {
	return fileOf{a.paths.DiskFile(a.vm, d), d.Format}
}

// opener is what opens the disks of the machine while it does not run.
func (b *backing) opener() (hypervisor.DiskOpener, bool) {
	hv, _ := all.ByName(b.machine.Hypervisor)
	opener, ok := hv.(hypervisor.DiskOpener)
	return opener, ok
}

// noBackup is the error where its hypervisor has no [hypervisor.DiskOpener].
func (b *backing) noBackup() error {
	return operation.Refuse(operation.WrongState, "%v: vmctl disk clone copies a disk of a VM that is stopped", hypervisor.Impossible("backup", b.machine.Hypervisor))
}

// openDisks opens the disks of a machine that does not run.
func (b *backing) openDisks(ctx context.Context) (done func(), err error) {
	host := hypervisor.Probe(b.paths.Root)
	opener, ok := b.opener()
	if !ok {
		return func() {}, b.noBackup()
	}
	files := map[string]fileOf{firmware: b.nvram(b.machine)}
	for _, d := range b.machine.Disks {
		files[d.Key()] = b.diskFile(d)
	}
	var disks []hypervisor.OpenDisk
	var chains []disk.Chain
	defer func() {
		for _, c := range chains {
			c.Close()
		}
	}()
	for _, key := range b.note.Keys {
		chain, err := b.openChain(files[key])
		if errors.Is(err, fs.ErrNotExist) {
			return func() {}, operation.Refuse(operation.WrongState, "%s: %s does not exist: it is made at the first start", key, files[key].File)
		}
		if err != nil {
			return func() {}, fmt.Errorf("%s: %w", key, err)
		}
		chains = append(chains, chain)
		d := hypervisor.OpenDisk{Key: key}
		for i, l := range chain {
			d.Images = append(d.Images, hypervisor.OpenImage{File: l.File, Format: l.Format, Write: i == 0 && l.Format == disk.QCOW2})
		}
		disks = append(disks, d)
	}
	opened, err := opener.OpenDisks(ctx, host, disks)
	if err != nil {
		return func() {}, operation.Refuse(operation.WrongState, "open the disks of %s: %v", b.vm, err)
	}
	b.copier = opened
	return func() {
		if err := opened.Close(); err != nil {
			b.warn("close the disks: %v", err)
		}
	}, nil
}

// openChain opens a disk with all that it stands on. What an image names is
// opened where it is ours, or anybody may read it.
func (a app) openChain(f fileOf) (disk.Chain, error) {
	top, err := access.Open(f.File)
	if err != nil {
		return nil, err
	}
	if f.Format == disk.QCOW2 { // QEMU keeps bitmaps in it
		path := fmt.Sprintf("/proc/self/fd/%d", top.Fd())
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		top.Close()
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: f.File, Err: err}
		}
		top = os.NewFile(uintptr(fd), f.File)
	}
	return disk.OpenChain(disk.Layer{Path: f.File, Format: f.Format, File: top}, func(path string) (*os.File, error) {
		if a.paths.User || a.isOurDisk(path) {
			return access.Open(path)
		}
		return access.OpenAs(path, access.User{UID: hypervisor.Nobody, GID: hypervisor.Nobody})
	})
}

// isOurDisk says whether a path is that of a stored image, or of a disk of the
// machine: no other file of its state, which has secrets.
func (a app) isOurDisk(path string) bool {
	dir := filepath.Dir(path)
	return dir == a.paths.Images || dir == a.paths.StateDir(a.vm) && strings.HasPrefix(filepath.Base(path), "disk-")
}

// make makes the backup of what is open.
func (b *backing) make(ctx context.Context) (made backup.Backup, err error) {
	calm := context.WithoutCancel(ctx) // for what cannot be left half-way
	if err := b.series.Clean(); err != nil {
		return made, err
	}
	if b.latest, err = b.series.Latest(); err != nil {
		b.latest, b.unreadable = nil, err
	}
	if err := b.begin(calm); err != nil {
		return made, err
	}
	defer func() { err = cmp.Or(err, b.end(calm, err)) }()
	if err := b.prepareCopies(calm); err != nil {
		return made, err
	}
	defer func() {
		for _, c := range b.copies {
			c.Target.Close()
		}
	}()
	if err := b.beginCopy(ctx, calm); err != nil {
		return made, err
	}
	if err := b.follow(ctx, calm); err != nil {
		return made, fmt.Errorf("copy to %s: %w", b.series.Dir, err)
	}
	if err := b.copier.EndCopy(calm); err != nil {
		return made, err
	}
	if err := b.describe(ctx); err != nil {
		return made, err
	}
	if made, err = b.draft.Finish(b.manifest); err != nil {
		return made, err
	}
	b.committed = true
	b.removeStale(calm, &made)
	return made, nil
}

// begin notes that a backup begins, and makes its directory.
func (b *backing) begin(ctx context.Context) (err error) {
	now := time.Now()
	m := backup.Manifest{Version: backup.Version, VM: b.vm, Running: b.control != nil}
	if m.ID, err = b.series.NextID(now); err != nil {
		return err
	}
	if b.latest != nil {
		m.Series = b.latest.Series
	} else {
		random := make([]byte, 4)
		rand.Read(random)
		m.Series = hex.EncodeToString(random)
	}
	b.manifest = m
	b.removeStale(ctx, b.latest)
	b.note.Series, b.note.ID, b.note.Bitmap = b.series.Dir, m.ID, bitmapPrefix(m.Series)+m.ID
	if b.op, err = operation.Begin(b.paths, b.vm, backup.Make, b.note); err != nil {
		return err
	}
	b.draft, err = b.series.Begin(m.ID)
	if err != nil {
		return cmp.Or(b.op.End(), err)
	}
	return nil
}

// Bitmaps are named after the series of backups and the backup since which they
// know what was written.
const bitmapsOfOurs = "vmctl-"

func bitmapPrefix(series string) string { return bitmapsOfOurs + series + "-" }

// maxSeries is of how many series a disk keeps bitmaps, for as many targets.
const maxSeries = 8

// removeStale removes the bitmaps that no backup can use: those of this series
// that are not of its last backup, and those of the series that have not been
// used for longest, beyond maxSeries. What cannot be removed now, the next backup
// removes.
func (b *backing) removeStale(ctx context.Context, latest *backup.Backup) {
	for _, key := range b.note.Keys {
		state, err := b.copier.InspectDisk(ctx, key)
		if err != nil {
			b.warn("%s: %v", key, err)
			continue
		}
		current := ""
		if latest != nil {
			d, _ := latest.Find(strings.TrimPrefix(key, "disk."))
			current = d.Bitmap
		}
		var others []string
		var stale []string
		for _, m := range state.Bitmaps {
			switch {
			case m.Name == current || !strings.HasPrefix(m.Name, bitmapsOfOurs):
			case strings.HasPrefix(m.Name, bitmapPrefix(b.manifest.Series)):
				stale = append(stale, m.Name)
			default:
				others = append(others, m.Name)
			}
		}
		id := func(bitmap string) string { return bitmap[strings.LastIndex(bitmap, "-")+1:] }
		slices.SortFunc(others, func(x, y string) int { return strings.Compare(id(y), id(x)) })
		stale = append(stale, others[min(len(others), maxSeries-1):]...)
		for _, name := range stale {
			if err := b.copier.RemoveBitmap(ctx, key, name); err != nil {
				b.warn("%s: remove the bitmap %s: %v", key, name, err)
			}
		}
	}
}

// prepareCopies makes the images that are copied to, and has the space for them.
func (b *backing) prepareCopies(ctx context.Context) error {
	img := disk.Img{Program: hypervisor.Probe(b.paths.Root).Programs["qemu-img"], Locks: b.locks}
	for _, key := range b.note.Keys {
		state, err := b.copier.InspectDisk(ctx, key)
		if err != nil {
			return err
		}
		d := backup.Disk{VirtualSize: state.VirtualSize, Format: state.Format}
		c := hypervisor.DiskCopy{Key: key}
		space := state.Allocated
		if key != firmware {
			d.Disk = strings.TrimPrefix(key, "disk.")
			var since *hypervisor.Bitmap
			doubt := b.doubt(d.Disk)
			if since, d.Reason = b.since(d.Disk, state); doubt != "" {
				since, d.Reason = nil, doubt
			}
			if since != nil {
				d.Parent, c.Since, space = b.latest.ID, since.Name, since.Dirty
			}
			// Of a disk that cannot keep it, it ends with the hypervisor: of use
			// only where that goes on.
			if doubt == "" && (state.KeepsBitmaps || b.control != nil) {
				c.Bitmap, d.Bitmap = b.note.Bitmap, b.note.Bitmap
			}
		}
		d.Name = backup.DiskFile(d.Disk)
		if c.Target, err = b.draft.Create(d.Name); err != nil {
			return err
		}
		b.copies = append(b.copies, c)
		format := disk.QCOW2
		if d.Parent == "" {
			format = ""
		}
		if err := img.Create(ctx, c.Target, disk.QCOW2, state.VirtualSize, d.Backing(), format); err != nil {
			return err
		}
		if err := reserve(c.Target, space); err != nil {
			return operation.Refuse(operation.Failed, "no space for up to %s of %s in %s: %v", config.Size(space), key, b.request.Target, err)
		}
		if key == firmware {
			b.manifest.NVRAM = &d
		} else {
			b.manifest.Disks = append(b.manifest.Disks, d)
		}
	}
	return nil
}

// reserve takes the space that a copy of so many bytes needs, where the file
// system can: were it missing later, a write of the guest's, before which what is
// overwritten has to be copied, would fail.
func reserve(image *os.File, bytes int64) error {
	s, err := image.Stat()
	if err != nil {
		return err
	}
	tables := bytes/2048 + 1<<20
	err = unix.Fallocate(int(image.Fd()), unix.FALLOC_FL_KEEP_SIZE, s.Size(), bytes+tables)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// doubt is why no bitmap can know all that is written to a disk; "" where one
// can.
func (b *backing) doubt(name string) string {
	i := slices.IndexFunc(b.machine.Disks, func(d config.Disk) bool { return d.Name == name })
	switch d := b.machine.Disks[i]; {
	case d.Shareable:
		return "other machines may write to it"
	case d.Cache == "unsafe":
		return "with cache = \"unsafe\", a crash of the host may take back what was noted and not what was written"
	}
	return ""
}

// since is the bitmap of what was written to a disk since the last backup; nil
// where all has to be copied, and why.
func (b *backing) since(name string, state hypervisor.DiskState) (*hypervisor.Bitmap, string) {
	switch {
	case b.request.Full:
		return nil, "asked for"
	case b.unreadable != nil:
		return nil, fmt.Sprintf("the last backup cannot be read: %v", b.unreadable)
	case b.latest == nil:
		return nil, "the first"
	}
	last, ok := b.latest.Find(name)
	if !ok {
		return nil, "the last backup does not have it"
	}
	if last.VirtualSize != state.VirtualSize {
		return nil, fmt.Sprintf("it had %s, and has %s now", config.Size(last.VirtualSize), config.Size(state.VirtualSize))
	}
	i := slices.IndexFunc(state.Bitmaps, func(m hypervisor.Bitmap) bool { return last.Bitmap != "" && m.Name == last.Bitmap })
	switch {
	case last.Bitmap == "" && state.KeepsBitmaps:
		return nil, "with the last backup it was not begun to note what is written"
	case i < 0 && !state.KeepsBitmaps:
		return nil, fmt.Sprintf("%s keeps in mind what was written only as long as the machine runs", state.Format)
	case i < 0:
		return nil, "what was written since is not known: the machine was killed, or the disk replaced or restored"
	case !state.Bitmaps[i].Sound:
		return nil, "what was written since is not known for sure: the machine was killed"
	case state.Bitmaps[i].Granularity != hypervisor.BitmapGranularity:
		return nil, "what was written since was kept by another version"
	}
	if err := b.latest.Intact(last); err != nil {
		return nil, fmt.Sprintf("the last backup is not whole: %v", err)
	}
	if n, err := b.latest.Depth(last); err != nil || n >= b.request.Incrementals {
		return nil, fmt.Sprintf("%d stand on the last one already", n)
	}
	return &state.Bitmaps[i], ""
}

// beginCopy has the moment pass that the backup is as of, while the guest is
// frozen where it can be.
func (b *backing) beginCopy(ctx, calm context.Context) error {
	frozen, err := b.freezeGuest(ctx)
	if b.note.Frozen {
		defer func() {
			if err := b.thaw(calm); err != nil {
				b.report.Warn("%v", err) // and it is tried again at the end
				return
			}
			b.note.Frozen = false
		}()
	}
	if err != nil {
		return err
	}
	b.manifest.Quiesced = frozen || b.control == nil
	b.manifest.Created = time.Now().UTC()
	if err := b.copyTPM(); err != nil {
		return err
	}
	return b.copier.BeginCopy(calm, b.copies, b.request.BytesPerSecond)
}

// copyTPM adds the state of the TPM, where the machine has one and it has any.
func (b *backing) copyTPM() error {
	if !b.machine.TPM.Enabled {
		return nil
	}
	f, err := openStateFile(b.paths.TPMState(b.vm))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // never started yet
	}
	if err != nil {
		return err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxStateFile))
	if err != nil {
		return err
	}
	copied, err := b.draft.Put(backup.TPMFile, content)
	b.manifest.TPM = &copied
	return err
}

// freezeGuest freezes the guest where it runs, can and should be. Where it may
// be frozen, the note says so.
func (b *backing) freezeGuest(ctx context.Context) (frozen bool, err error) {
	if b.control == nil {
		return false, nil
	}
	if b.request.Quiesce == backup.QuiesceSkip {
		b.unfrozen = "asked for"
		return false, nil
	}
	err = b.freeze(ctx, b.control, func() error {
		b.note.Frozen = true
		return b.op.Note(b.note)
	})
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case b.request.Quiesce == backup.QuiesceRequire:
		return false, operation.Refuse(operation.WrongState, "the guest's file systems cannot be frozen: %v", err)
	}
	b.unfrozen = err.Error()
	return false, nil
}

// progressStep is how often it is looked how far the copies are.
const progressStep = 200 * time.Millisecond

// follow waits for the end of the copies.
func (b *backing) follow(ctx, calm context.Context) error {
	for {
		done, total, ended, err := b.copier.Copying(calm)
		if err != nil || ended {
			return err
		}
		b.report.Progress(operation.Progress{Phase: "copying", Done: done, Total: total})
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(progressStep):
		}
	}
}

// describe finds out what is in the files, and adds the definition's.
func (b *backing) describe(ctx context.Context) error {
	var total, done int64
	for _, c := range b.copies {
		s, err := c.Target.Stat()
		if err != nil {
			return err
		}
		total += s.Size()
		// Gives back what was reserved and not needed.
		if err := c.Target.Truncate(s.Size()); err != nil {
			return err
		}
	}
	on := func(n int) {
		done += int64(n)
		b.report.Progress(operation.Progress{Phase: "reading the copies", Done: done, Total: total})
	}
	for i := range b.manifest.Disks {
		d := &b.manifest.Disks[i]
		file, err := b.draft.Describe(ctx, d.Name, on)
		if err != nil {
			return err
		}
		d.File = file
	}
	if d := b.manifest.NVRAM; d != nil {
		file, err := b.draft.Describe(ctx, d.Name, on)
		if err != nil {
			return err
		}
		d.File = file
	}
	return b.copyDefinition()
}

// copyDefinition adds the files of the definition. One that is broken or gone,
// under a machine that runs, is left out.
func (b *backing) copyDefinition() error {
	vm, err := config.LoadVM(b.paths, b.vm)
	if err != nil || vm.Machine == nil {
		b.report.Warn("the definition is not part of the backup: %v", cmp.Or(err, errors.Join(problemErrors(vm.Problems)...)))
		return nil
	}
	for i, path := range vm.Files {
		content, err := access.ReadFile(path, 1<<20)
		if err != nil {
			return err
		}
		f, err := b.draft.Put(fmt.Sprintf("%s/%02d-%s", backup.DefinitionDir, i, filepath.Base(path)), content)
		if err != nil {
			return err
		}
		b.manifest.Definition = append(b.manifest.Definition, f)
	}
	return nil
}

// end takes back what was done for a backup that has failed, and notes that
// nothing is left to be mended; why is its error.
func (b *backing) end(ctx context.Context, why error) error {
	if !b.committed {
		err := b.copier.EndCopy(ctx)
		for _, c := range b.copies {
			if c.Bitmap != "" {
				err = cmp.Or(err, b.copier.RemoveBitmap(ctx, c.Key, c.Bitmap))
			}
		}
		// A hypervisor that has ended has nothing left of it but the bitmaps,
		// which the next backup removes.
		if err != nil {
			b.warn("take back: %v", err)
		}
		if err := b.draft.Abandon(); err != nil {
			return err
		}
		if err != nil && b.alive(ctx) {
			return why // and is mended
		}
	}
	if b.note.Frozen {
		if err := b.thaw(ctx); err != nil {
			return err // and is mended
		}
	}
	return b.op.End()
}

// alive says whether the hypervisor that was copied from still answers.
func (b *backing) alive(ctx context.Context) bool {
	if b.control == nil {
		return false
	}
	_, err := b.control.Status(ctx)
	return err == nil
}

// mendBackup takes back what was left in the machine of a backup that was cut off.
// What is left at the target, which may be broken or hang and must not keep the
// machine from starting, is for [app.cleanTarget] and the next backup.
func mendBackup(ctx context.Context, a app, r operation.Record) error {
	var note backupNote
	if err := json.Unmarshal(r.Detail, &note); err != nil {
		return err
	}
	var errs []error
	if note.Frozen {
		errs = append(errs, a.thaw(ctx))
	}
	c, err := a.connect(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	if c == nil {
		return nil // nor is any guest frozen
	}
	defer c.Close()
	if copier, ok := c.(hypervisor.DiskCopier); ok {
		errs = append(errs, mendCopies(ctx, copier, note))
	}
	return errors.Join(errs...)
}

// cleanTarget removes what a backup that was cut off has left at its target.
func (a app) cleanTarget(r operation.Record) {
	var note backupNote
	err := json.Unmarshal(r.Detail, &note)
	if err == nil {
		err = backup.Series{Dir: note.Series}.Clean()
	}
	if err != nil {
		a.warn("the next backup removes what this one has left in %s: %v", note.Series, err)
	}
}

// mendCopies ends the copies that a running hypervisor may still be at.
func mendCopies(ctx context.Context, c hypervisor.DiskCopier, note backupNote) error {
	if err := c.EndCopy(ctx); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(note.Series, note.ID)); err == nil {
		return nil // it was cut off at the very end: the bitmap is of use
	}
	for _, key := range note.Keys {
		if err := c.RemoveBitmap(ctx, key, note.Bitmap); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

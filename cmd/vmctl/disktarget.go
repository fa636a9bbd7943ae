package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// reading are the flags of commands that read an image.
type reading struct {
	format string // as the command line says
	follow bool
}

func (r *reading) addFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&r.follow, "follow", false, "read the files that the image stands on even where its owner, or for an image of root's everybody, may not")
}

// target is a file that a disk command is about.
type target struct {
	place
	format string
	file   *os.File    // open for reading; its name is where it lies, links resolved
	chain  disk.Chain  // once it is opened
	follow bool        // files in it that its owner may not read
	disk   *knownDisk  // of a machine's own; nil for others
	known  []knownDisk // the disks of machines that are this file
	all    []knownDisk // of all machines
}

// close lets go of the file.
func (t *target) close() {
	t.chain.Close()
	t.file.Close()
}

// vms are the machines that have the file as a disk.
func (t *target) vms() []string {
	var vms []string
	for _, k := range t.known {
		vms = append(vms, k.vm)
	}
	slices.Sort(vms)
	return slices.Compact(vms)
}

// target opens the file of a place. Its format is that of the definition that
// names it, or else what the command line says, or its name's ending: never what
// its content looks like.
func (a *app) target(p place, format string) (*target, error) {
	t := &target{place: p}
	path := p.path
	if path == "" {
		d, err := a.findDisk(p, format)
		if err != nil {
			return nil, err
		}
		path = d.file
		if d.own && !access.IsThere(path) {
			return nil, &stateError{fmt.Errorf("%s: the disk has no file yet: the first start makes it", p)}
		}
	}
	f, err := access.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &notFoundError{Kind: "file", Name: path}
	}
	if err != nil {
		return nil, err
	}
	t.file = f
	if err := a.recognize(t, path, format); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// recognize finds out which disks a file is, and which format it has.
func (a *app) recognize(t *target, path, format string) error {
	info, err := t.file.Stat()
	if err != nil {
		return err
	}
	if t.all, err = a.knownDisks(); err != nil {
		return err
	}
	for _, k := range t.all {
		if s, err := os.Stat(k.file); err == nil && os.SameFile(s, info) {
			t.known = append(t.known, k)
		}
	}
	if len(t.known) > 0 {
		k := t.known[0]
		if format != "" && format != k.Format {
			return usageError{fmt.Errorf("--format: %s is %s by the definition of %s, got %s", path, k.Format, k.vm, format)}
		}
		format = k.Format
		if k.own {
			t.disk = &t.known[0]
		}
	}
	if name := a.imageOf(t.file.Name()); name != "" {
		i, err := a.store().Get(name)
		if err != nil {
			return err
		}
		format = i.Format
	}
	t.format = cmp.Or(format, config.FormatOf(path))
	// What an own raw disk begins with is its guest's alone to know.
	if t.disk != nil && t.format == disk.Raw {
		return nil
	}
	if err := disk.Check(t.file, t.format); err != nil {
		// Only the command line, or nothing at all, has said it.
		if len(t.known) == 0 {
			if is, _ := disk.Format(t.file); is != t.format {
				return withHint(fmt.Errorf("%s is not %s but looks like %s", path, t.format, is), "--format "+is+" reads it as that, if you know where it comes from")
			}
		}
		return err
	}
	return nil
}

// chain opens all that the file stands on.
func (a *app) chain(t *target, follow bool) (disk.Chain, error) {
	t.follow = follow
	c, err := disk.OpenChain(disk.Layer{Path: cmp.Or(t.path, t.file.Name()), Format: t.format, File: t.file}, a.opener(t.file, follow))
	if missing, ok := errors.AsType[*disk.MissingError](err); ok {
		return nil, withHint(&stateError{missing}, "where it has moved, vmctl disk rebase --unsafe --backing FILE names its new place")
	}
	if errors.Is(err, disk.ErrLoop) {
		return nil, &stateError{err}
	}
	t.chain = c
	return c, err
}

// opener opens what an image names. The image may come from anywhere, and
// whoever reads it then gets what it names: so it is opened with the rights of
// the image's owner, and those of nobody for one of root's.
func (a *app) opener(image *os.File, follow bool) disk.Opener {
	if follow || os.Getuid() != 0 {
		return access.Open
	}
	uid, gid := ownerOf(image)
	if uid == 0 {
		uid, gid = hypervisor.Nobody, hypervisor.Nobody
	}
	return func(path string) (*os.File, error) {
		f, err := access.OpenAs(path, access.User{UID: uint32(uid), GID: uint32(gid)})
		if refused, ok := errors.AsType[*access.NotReadableError](err); ok {
			if uid == hypervisor.Nobody {
				err = fmt.Errorf("not everybody may %s %s", refused.What, refused.Path)
			}
			err = withHint(&stateError{err}, "--follow reads it all the same: only for an image of which you know where it comes from")
		}
		return f, err
	}
}

func ownerOf(f *os.File) (uid, gid int) {
	info, err := f.Stat()
	if err != nil {
		return 0, 0
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0
	}
	return int(s.Uid), int(s.Gid)
}

// img is qemu-img as the caller.
func (a *app) img() disk.Img {
	return disk.Img{Program: a.probe().Programs["qemu-img"], Locks: a.locks}
}

// imgAs is qemu-img as the owner of an image that it writes to, or looks into.
func (a *app) imgAs(f *os.File) disk.Img {
	i := a.img()
	i.Bare = true
	if os.Getuid() == 0 {
		i.UID, i.GID = ownerOf(f)
	}
	return i
}

// imgOf is qemu-img as the owner of a target; what its owner may not read is for
// the caller to read.
func (a *app) imgOf(t *target) disk.Img {
	if t.follow {
		return a.img()
	}
	return a.imgAs(t.file)
}

// lockVMs makes the caller the only one that does something to the disks of
// machines; what is for whoever is refused meanwhile.
func (a *app) lockVMs(what string, vms ...string) (unlock func(), err error) {
	var unlocks []func()
	unlock = func() {
		for _, u := range unlocks {
			u()
		}
		a.locks = nil
	}
	slices.Sort(vms)
	for _, vm := range slices.Compact(vms) {
		f, u, err := lockVM(a.paths, vm, what)
		if err != nil {
			unlock()
			return nil, err
		}
		unlocks, a.locks = append(unlocks, u), append(a.locks, f)
	}
	return unlock, nil
}

// lockVM is lockVMs for one machine, of which no program is told that it may use
// its disks.
func lockVM(paths config.Paths, vm, what string) (lock *os.File, unlock func(), err error) {
	lock, unlock, err = operation.Lock(paths, vm, what)
	if err != nil {
		return nil, nil, operationError(err)
	}
	r, err := operation.Unfinished(paths, vm)
	if err == nil && r != nil {
		err = withHint(&stateError{fmt.Errorf("%s of %s was cut off, and not mended yet", r.Kind, vm)}, "the next start of "+vm+" mends it")
	}
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return lock, unlock, nil
}

// isStill says whether a target lies where it was found.
func (t *target) isStill() error {
	a, err := t.file.Stat()
	if err != nil {
		return err
	}
	b, err := os.Lstat(t.file.Name())
	if err != nil || !os.SameFile(a, b) {
		return &stateError{fmt.Errorf("%s was replaced meanwhile", t.file.Name())}
	}
	return nil
}

// checkReadable refuses to read a file while a machine, or anybody else, writes
// to it: what is read would be torn. Until it is closed, nobody can.
func (a *app) checkReadable(t *target) error {
	if err := t.isStill(); err != nil {
		return err
	}
	for _, k := range t.known {
		if k.writable() && a.isRunning(k.vm) {
			return inUseBy(t, k.vm)
		}
	}
	if holder := access.Keep(t.file); holder != "" {
		return &stateError{fmt.Errorf("%s is in use by %s", t.file.Name(), holder)}
	}
	return nil
}

func inUseBy(t *target, vm string) error {
	return withHint(&stateError{fmt.Errorf("%s is in use by %s", t.file.Name(), strings.TrimSuffix(config.Unit(vm), ".service"))}, "vmctl stop "+vm)
}

// checkChangeable refuses to change a file on which others depend.
func (a *app) checkChangeable(t *target) error {
	name := t.file.Name()
	if err := t.isStill(); err != nil {
		return err
	}
	if image := a.imageOf(name); image != "" {
		return withHint(&stateError{fmt.Errorf("%s is the stored image %s, which is never changed", name, image)}, "vmctl image export "+image+" FILE makes a copy of your own")
	}
	s, err := t.file.Stat()
	switch {
	case err != nil:
		return err
	case !s.Mode().IsRegular():
		return &stateError{fmt.Errorf("%s is a block device, which is changed by what made it", name)}
	}
	for _, k := range t.known {
		switch {
		case a.isRunning(k.vm):
			return inUseBy(t, k.vm)
		case access.IsThere(a.paths.SavedRecord(k.vm)):
			return withHint(&stateError{fmt.Errorf("%s is a disk of %s, which is saved: what it remembers of the disk would be wrong", name, k.vm)},
				"vmctl start "+k.vm+", then stop it; or vmctl reset "+k.vm+" gives up what was saved")
		case k.own && k.Ephemeral:
			return &stateError{fmt.Errorf("disk %s of %s is ephemeral: it is made anew at each start", k.Name, k.vm)}
		}
	}
	if err := a.checkNotBelow(t); err != nil {
		return err
	}
	if holder := access.InUse(t.file, true); holder != "" {
		return &stateError{fmt.Errorf("%s is in use by %s", name, holder)}
	}
	return nil
}

// checkNotBelow refuses a file that others stand on.
func (a *app) checkNotBelow(t *target) error {
	if children := a.standing(t.file, t.all); len(children) > 0 {
		return withHint(&stateError{fmt.Errorf("%s is what %s stands on: a change would break that", t.file.Name(), strings.Join(children, ", "))},
			"vmctl disk flatten "+children[0]+" makes it stand on nothing")
	}
	return nil
}

// checkReplaceable refuses to put another file in the place of one that has other
// names too.
func (a *app) checkReplaceable(t *target) error {
	s, err := t.file.Stat()
	if err != nil {
		return err
	}
	if st, ok := s.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
		return &stateError{fmt.Errorf("%s has %d names (hard links), of which only this one would change", t.file.Name(), st.Nlink)}
	}
	return nil
}

// checkNoSnapshots refuses what would lose the snapshots that an image holds, or
// change what they are of.
func checkNoSnapshots(t *target) error {
	if t.format != disk.QCOW2 {
		return nil
	}
	h, err := disk.ReadHeader(t.file)
	if err != nil || h.Snapshots == 0 {
		return err
	}
	err = &stateError{fmt.Errorf("%s holds %d snapshots, which would be lost", t.file.Name(), h.Snapshots)}
	return withHint(err, "vmctl disk show tells which; vmctl disk clone copies what is on the disk now")
}

// checkFits refuses what does not fit into the file system of a directory.
func checkFits(dir string, need int64) error {
	if free := freeBytes(dir); free < need {
		return &stateError{fmt.Errorf("not enough space in %s: want %s, there is %s", dir, sizeText(need), sizeText(free))}
	}
	return nil
}

// virtualSize is the size of the disk in an image, in bytes.
func (a *app) virtualSize(ctx context.Context, t *target) (int64, error) {
	return a.layerSize(ctx, disk.Layer{Path: t.file.Name(), Format: t.format, File: t.file})
}

func (a *app) layerSize(ctx context.Context, l disk.Layer) (int64, error) {
	switch l.Format {
	case disk.Raw:
		return l.File.Seek(0, io.SeekEnd)
	case disk.QCOW2:
		h, err := disk.ReadHeader(l.File)
		return h.Size, err
	}
	i, err := a.imgAs(l.File).Info(ctx, l)
	return i.VirtualSize, err
}

// progressStep is how often a line says how far something is, where there is no
// terminal.
const progressStep = 30 * time.Second

// diskProgress shows how far something is.
func (a *app) diskProgress(p place, doing string) disk.Progress {
	terminal, last := isTerminal(a.ui.err), time.Now()
	return func(done float64) {
		line := fmt.Sprintf("%s: %s %d %%", p, doing, int(done*100))
		switch {
		case a.ui.format != textFormat:
		case terminal:
			a.ui.drawLine(line)
		case time.Since(last) >= progressStep:
			last = time.Now()
			a.ui.notef("%s", line)
		}
	}
}

// changed is a disk after a command has changed or made it, in JSON.
type changed struct {
	VM          string `json:"vm"` // "" for a file that is not of a machine
	Disk        string `json:"disk"`
	File        string `json:"file"`
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual_size_bytes"`
	RealSize    int64  `json:"real_size_bytes"`
	Backing     string `json:"backing"` // the file that it stands on; "" for none
}

// tellChanged says what has become of a disk.
func (a *app) tellChanged(ctx context.Context, p place, file, format, text string) error {
	a.ui.clearLine()
	if a.ui.format != jsonFormat {
		a.ui.printf("%s: %s", p, text)
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	c := changed{VM: p.vm, Disk: p.disk, File: file, Format: format, RealSize: realSize(f), Backing: backingOf(file)}
	if format == disk.Raw {
		c.Backing = ""
	}
	if c.VirtualSize, err = a.layerSize(ctx, disk.Layer{Path: file, Format: format, File: f}); err != nil {
		return err
	}
	return a.ui.json(c)
}

// realSize is the space that a file takes, in bytes.
func realSize(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512
	}
	return info.Size()
}

// inDir is the directory that a new file is to lie in.
func inDir(path string) (string, error) {
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no directory %s", dir)
	}
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory", dir)
	}
	return dir, err
}

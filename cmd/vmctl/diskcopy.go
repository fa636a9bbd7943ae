package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/disk"
)

// copyOptions are the flags of vmctl disk clone, convert and import.
type copyOptions struct {
	reading
	to       string // format of the new image; "" for that which fits
	compress bool
	replace  bool
	verbatim bool // byte for byte, where that is all of it
}

func newDiskCloneCommand(a *app) *cobra.Command {
	opts := copyOptions{verbatim: true}
	cmd := &cobra.Command{
		Use:   "clone {VM DISK | PATH} {VM DISK | PATH}",
		Short: "Copy a disk to a new one that stands on nothing",
		Long: `Copy a disk: to a new file, or as the disk of a machine that has none yet. The
copy has all of the content, also what the original has from a file that it
stands on; blocks are shared where the file system can. A disk that a machine
writes to at the time is refused.`,
		Example: `  vmctl disk clone web root /srv/web.qcow2
  vmctl disk clone web root web2 root`,
		ValidArgsFunction: a.completePlaces(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			places, _, err := takePlaces(args, 2)
			if err != nil {
				return err
			}
			return a.runCopy(cmd.Context(), opts, "clone", places[0], places[1])
		},
	}
	cmd.Flags().StringVar(&opts.format, "format", "", "`FORMAT` of the first file, where neither a definition nor its name's ending says it")
	opts.addFlags(cmd.Flags())
	completeFormats(cmd, "format")
	return cmd
}

func newDiskConvertCommand(a *app) *cobra.Command {
	var opts copyOptions
	cmd := &cobra.Command{
		Use:   "convert {VM DISK | PATH} PATH [--format FORMAT]\n  vmctl disk convert VM DISK [--format FORMAT]",
		Short: "Write a disk in another format, or anew",
		Long: `Write all of a disk's content to a new file, in another format or compressed. Of
a machine's own disk, without a file, to its own place: where the definition then
names the new format, which has to be written there before. Written anew, a disk
takes no space for what was deleted in it.`,
		Example: `  vmctl disk convert ./appliance.vmdk ./appliance.qcow2
  vmctl disk convert web root /srv/archive/web.qcow2 --compress
  vmctl disk convert web root --format raw`,
		ValidArgsFunction: a.completePlaces(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 && !isPath(args[0]) && !isPath(args[1]) {
				return a.runConvertInPlace(cmd.Context(), opts, args)
			}
			places, _, err := takePlaces(args, 2)
			if err != nil {
				return err
			}
			if err := newFilePlace(places[1]); err != nil {
				return err
			}
			return a.runCopy(cmd.Context(), opts, "convert", places[0], places[1])
		},
	}
	cmd.Flags().StringVar(&opts.to, "format", "", "`FORMAT` to write: qcow2, raw, vmdk, vdi, vpc or vhdx; default: by the new name's ending")
	cmd.Flags().StringVar(&opts.format, "from", "", "`FORMAT` of the first file, where neither a definition nor its name's ending says it")
	cmd.Flags().BoolVar(&opts.compress, "compress", false, "compress the content (qcow2)")
	opts.addFlags(cmd.Flags())
	completeFormats(cmd, "format")
	completeFormats(cmd, "from")
	return cmd
}

func newDiskImportCommand(a *app) *cobra.Command {
	var opts copyOptions
	cmd := &cobra.Command{
		Use:   "import PATH VM DISK",
		Short: "Make a machine's disk of an image file of any format",
		Long: `Make a machine's disk of an image file: qcow2, raw, vmdk, vdi, vpc or vhdx. The
definition has the disk with a size or an image, in whose place it comes. A disk
that is there already is kept, unless --replace is given, and then until the new
one is whole.`,
		Example: `  vmctl disk import ./appliance.vmdk web root
  vmctl disk import ./dump.img web data --format raw --replace`,
		ValidArgsFunction: a.completePlaces(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			places, _, err := takePlaces(args, 2)
			if err != nil {
				return err
			}
			if places[0].path == "" || places[1].path != "" {
				return usageError{errors.New("want the path of a file, then VM DISK")}
			}
			return a.runCopy(cmd.Context(), opts, "import", places[0], places[1])
		},
	}
	cmd.Flags().StringVar(&opts.format, "format", "", "`FORMAT` of the file; default: by its name's ending")
	cmd.Flags().BoolVar(&opts.replace, "replace", false, "replace the disk that is there")
	opts.addFlags(cmd.Flags())
	completeFormats(cmd, "format")
	return cmd
}

// destination is where a copy is to be.
type destination struct {
	place
	file   string
	format string
	old    *target // the file that it replaces; nil for none
}

// runCopy copies a disk.
func (a *app) runCopy(ctx context.Context, opts copyOptions, verb string, from, to place) error {
	if err := checkFormat("from", opts.format); err != nil {
		return err
	}
	if err := checkFormat("format", opts.to); err != nil {
		return err
	}
	d, err := a.copy(ctx, opts, verb, from, to)
	if err != nil {
		return inPlace(verb, from, err)
	}
	f, err := os.Open(d.file)
	if err != nil {
		return err
	}
	defer f.Close()
	return a.tellChanged(ctx, to, d.file, d.format, fmt.Sprintf("written, %s, takes %s", d.format, sizeText(realSize(f))))
}

func (a *app) copy(ctx context.Context, opts copyOptions, verb string, from, to place) (destination, error) {
	t, err := a.target(from, opts.format)
	if err != nil {
		return destination{}, err
	}
	defer t.close()
	vms := t.vms()
	if to.vm != "" {
		vms = append(vms, to.vm)
	}
	unlock, err := a.lockVMs("vmctl disk "+verb, vms...)
	if err != nil {
		return destination{}, err
	}
	defer unlock()
	d, err := a.destination(opts, t, to)
	if err != nil {
		return d, err
	}
	if d.old != nil {
		defer d.old.close()
	}
	if opts.compress && d.format != disk.QCOW2 {
		return d, usageError{fmt.Errorf("--compress: only qcow2 images can be, not %s", d.format)}
	}
	if err := a.checkReadable(t); err != nil {
		return d, err
	}
	c, err := a.chain(t, opts.follow)
	if err != nil {
		return d, err
	}
	return d, a.fillDestination(ctx, opts, t, c, d)
}

// fillDestination writes a copy of a chain.
func (a *app) fillDestination(ctx context.Context, opts copyOptions, t *target, c disk.Chain, d destination) error {
	dir, err := inDir(d.file)
	if err != nil {
		return err
	}
	draft, err := disk.NewDraft(d.file)
	if err != nil {
		return err
	}
	defer draft.Close()
	defer a.ui.clearLine()
	progress := a.diskProgress(t.place, "copying")
	// Snapshots in the image stay with the original.
	plain := opts.verbatim && d.format == t.format && len(c) == 1 && c[0].Header.Snapshots == 0 ||
		d.format == disk.Raw && t.format == disk.Raw
	if !plain || !disk.Clone(draft.File, t.file) {
		need, err := a.needed(ctx, c, plain)
		if err == nil && !opts.compress {
			err = checkFits(dir, need)
		}
		if err == nil && plain {
			err = disk.Copy(ctx, draft.File, t.file, progress)
		} else if err == nil {
			err = a.img().Convert(ctx, c, draft.File, disk.Conversion{Format: d.format, Compress: opts.compress}, progress)
		}
		if err != nil {
			return err
		}
	}
	if d.old == nil {
		return draft.Place()
	}
	if err := d.old.isStill(); err != nil {
		return err
	}
	if err := draft.Like(d.old.file); err != nil {
		return err
	}
	return draft.Replace(d.old.file)
}

// needed is how many bytes a copy takes.
func (a *app) needed(ctx context.Context, c disk.Chain, plain bool) (int64, error) {
	if plain {
		s, err := c[0].File.Stat()
		if err != nil || s.Mode().IsRegular() {
			return min(realSize(c[0].File), s.Size()), err
		}
	}
	return a.img().Measure(ctx, c)
}

// destination decides where a copy is to be, and refuses what is there already.
func (a *app) destination(opts copyOptions, t *target, p place) (destination, error) {
	if p.path != "" {
		format := cmp.Or(opts.to, config.FormatOf(p.path))
		if opts.verbatim { // a clone
			format = t.format
		}
		return destination{place: p, file: p.path, format: format}, newFilePlace(p)
	}
	k, err := a.ownDisk(p)
	if err != nil {
		return destination{}, err
	}
	d := destination{place: p, file: k.file, format: k.Format}
	if other := a.otherFile(k); other != "" {
		return d, &stateError{fmt.Errorf("%s is there already, in another format than the definition has", other)}
	}
	if a.isRunning(p.vm) {
		return d, withHint(&stateError{fmt.Errorf("%s runs", p.vm)}, "vmctl stop "+p.vm)
	}
	if access.IsThere(a.paths.SavedRecord(p.vm)) {
		return d, withHint(&stateError{fmt.Errorf("%s is saved: what it remembers of the disk would be wrong", p.vm)}, "vmctl reset "+p.vm+" gives up what was saved")
	}
	if !access.IsThere(k.file) {
		return d, access.MakeStateDir(a.paths, p.vm)
	}
	if !opts.replace {
		return d, withHint(&stateError{fmt.Errorf("%s has a disk already, %s", p, k.file)}, "vmctl disk import --replace replaces it; vmctl disk delete "+p.String()+" removes it")
	}
	old, err := a.target(p, "")
	if err != nil {
		return d, err
	}
	d.old = old
	if err := cmp.Or(a.checkChangeable(old), a.checkReplaceable(old), checkNoSnapshots(old)); err != nil {
		old.close()
		return d, err
	}
	return d, nil
}

// ownDisk is the disk of a definition that vmctl makes.
func (a *app) ownDisk(p place) (knownDisk, error) {
	k, err := a.findDisk(p, "")
	switch {
	case err != nil:
		return k, err
	case !k.defined:
		return k, &stateError{fmt.Errorf("no definition has the disk %s", p)}
	case !k.own:
		return k, withHint(&stateError{fmt.Errorf("%s is %s, which belongs to its owner", p, k.file)}, "name that file by its path")
	case k.Ephemeral:
		return k, &stateError{fmt.Errorf("%s is ephemeral: it is made anew at each start", p)}
	}
	return k, nil
}

// otherFile is the file of a machine's own disk in the other format, "" where
// there is none.
func (a *app) otherFile(k knownDisk) string {
	for _, format := range []string{disk.QCOW2, disk.Raw} {
		if file := a.paths.Disk(k.vm, k.Name, format); format != k.Format && access.IsThere(file) {
			return file
		}
	}
	return ""
}

// runConvertInPlace writes a machine's own disk anew, in the format that its
// definition has.
func (a *app) runConvertInPlace(ctx context.Context, opts copyOptions, args []string) error {
	if err := checkFormat("format", opts.to); err != nil {
		return err
	}
	places, _, err := takePlaces(args, 1)
	if err != nil {
		return err
	}
	p := places[0]
	k, err := a.ownDisk(p)
	if err != nil {
		return inPlace("convert", p, err)
	}
	to := cmp.Or(opts.to, k.Format)
	if to != k.Format {
		return withHint(inPlace("convert", p, &stateError{fmt.Errorf("the definition has format = %q", k.Format)}),
			fmt.Sprintf("write format = %q for disk.%s first; vmctl disk convert then makes the disk fit", to, k.Name))
	}
	if opts.compress && to != disk.QCOW2 {
		return usageError{fmt.Errorf("--compress: only qcow2 images can be, not %s", to)}
	}
	from := k.Format
	if a.otherFile(k) != "" {
		if access.IsThere(k.file) {
			return inPlace("convert", p, &stateError{fmt.Errorf("%s and %s are both there", k.file, a.otherFile(k))})
		}
		from = map[string]string{disk.QCOW2: disk.Raw, disk.Raw: disk.QCOW2}[k.Format]
	}
	err = a.remake(ctx, opts.reading, "convert", p, from, func(t *target, c disk.Chain, draft *disk.Draft) error {
		return a.writeAnew(ctx, t, c, draft, disk.Conversion{Format: to, Compress: opts.compress})
	})
	if err != nil {
		return inPlace("convert", p, err)
	}
	return a.tellChanged(ctx, p, k.file, to, "written anew, "+to)
}

// remake makes a file anew beside its place: fill writes what it is to have. For
// a machine's own disk of another format than its definition has, the place is
// that of the definition's, and the old file goes once the new one is there.
func (a *app) remake(ctx context.Context, opts reading, verb string, p place, format string, fill func(*target, disk.Chain, *disk.Draft) error) error {
	t, err := a.target(p, format)
	if err != nil {
		return err
	}
	defer t.close()
	unlock, err := a.lockVMs("vmctl disk "+verb, append(t.vms(), slices.DeleteFunc([]string{p.vm}, func(s string) bool { return s == "" })...)...)
	if err != nil {
		return err
	}
	defer unlock()
	if err := cmp.Or(a.checkChangeable(t), a.checkReplaceable(t), a.checkReadable(t)); err != nil {
		return err
	}
	c, err := a.chain(t, opts.follow)
	if err != nil {
		return err
	}
	path, old := t.file.Name(), ""
	if k, err := a.findDisk(p, ""); p.vm != "" && err == nil && k.own && k.defined && k.Format != t.format {
		path, old = filepath.Join(filepath.Dir(path), filepath.Base(k.file)), path
	}
	draft, err := disk.NewDraft(path)
	if err != nil {
		return err
	}
	defer draft.Close()
	defer a.ui.clearLine()
	if err := draft.Like(t.file); err != nil {
		return err
	}
	if err := fill(t, c, draft); err != nil {
		return err
	}
	if err := t.isStill(); err != nil {
		return err
	}
	if old == "" {
		return draft.Replace(t.file)
	}
	if err := draft.Place(); err != nil {
		return err
	}
	return os.Remove(old)
}

// writeAnew writes all that a chain holds into a draft.
func (a *app) writeAnew(ctx context.Context, t *target, c disk.Chain, draft *disk.Draft, to disk.Conversion) error {
	if err := checkNoSnapshots(t); err != nil {
		return err
	}
	i := a.imgOf(t)
	if t.format == disk.QCOW2 {
		info, err := i.Info(ctx, c[0])
		if err != nil {
			return err
		}
		to.Bitmaps = len(info.Bitmaps) > 0 && to.Format == disk.QCOW2
		if len(info.Bitmaps) > 0 && !to.Bitmaps {
			a.ui.warnf("%s: its dirty bitmaps are lost: the next backup is a full one", t.place)
		}
	}
	need, err := i.Measure(ctx, c)
	if err == nil && !to.Compress {
		err = checkFits(filepath.Dir(t.file.Name()), need)
	}
	if err != nil {
		return err
	}
	return i.Convert(ctx, c, draft.File, to, a.diskProgress(t.place, "writing"))
}

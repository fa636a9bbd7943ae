package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/hypervisor/disk"
)

func newDiskFlattenCommand(a *app) *cobra.Command {
	var opts reading
	cmd := &cobra.Command{
		Use:   "flatten {VM DISK | PATH}",
		Short: "Make a disk stand on nothing, with all content its own",
		Long: `Write into a disk all that it has from the files that it stands on: a stored
image, or the base of an overlay. These are not needed by it any more.`,
		Example:           "  vmctl disk flatten web root",
		ValidArgsFunction: a.completePlaces(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDiskFlatten(cmd.Context(), a, opts, args)
		},
	}
	opts.addFlags(cmd.Flags())
	return cmd
}

// errFlat is an image that stands on nothing already.
var errFlat = errors.New("stands on nothing already")

func runDiskFlatten(ctx context.Context, a *app, opts reading, args []string) error {
	places, _, err := takePlaces(args, 1)
	if err != nil {
		return err
	}
	p := places[0]
	var file, format string
	err = a.remake(ctx, opts, "flatten", p, "", func(t *target, c disk.Chain, draft *disk.Draft) error {
		file, format = t.file.Name(), t.format
		if len(c) == 1 {
			return errFlat
		}
		return a.writeAnew(ctx, t, c, draft, disk.Conversion{Format: disk.QCOW2})
	})
	if errors.Is(err, errFlat) {
		return a.tellChanged(ctx, p, file, format, errFlat.Error())
	}
	if err != nil {
		return inPlace("flatten", p, err)
	}
	return a.tellChanged(ctx, p, file, format, "stands on nothing any more")
}

// rebaseOptions are the flags of vmctl disk rebase.
type rebaseOptions struct {
	reading
	backing       string
	backingFormat string
	image         string
	unsafe        bool
}

func newDiskRebaseCommand(a *app) *cobra.Command {
	var opts rebaseOptions
	cmd := &cobra.Command{
		Use:   "rebase {VM DISK --image NAME | PATH --backing FILE}",
		Short: "Make a disk stand on another file, with the same content",
		Long: `Make a disk stand on another file: a machine's own disk on another stored image,
which its definition has to name already, or an image file on another one. The
content stays the same: what differs between the two is written into the disk.

With --unsafe only the name is changed, and neither file is looked at: for one
that has moved. The content changes where the two differ.`,
		Example: `  vmctl disk rebase web root --image debian-13-new
  vmctl disk rebase /srv/test1.qcow2 --backing /srv/golden2.qcow2
  vmctl disk rebase /srv/test1.qcow2 --backing /mnt/golden.qcow2 --unsafe`,
		ValidArgsFunction: a.completePlaces(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDiskRebase(cmd.Context(), a, opts, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.backing, "backing", "", "`FILE` to stand on")
	flags.StringVar(&opts.backingFormat, "backing-format", "", "`FORMAT` of that; default: by the definitions that name it, or its name's ending")
	flags.StringVar(&opts.image, "image", "", "stored image, by `NAME`, to stand on")
	flags.BoolVar(&opts.unsafe, "unsafe", false, "only change the name, look at nothing")
	opts.addFlags(flags)
	completeFormats(cmd, "backing-format")
	// Only an unknown flag fails here.
	_ = cmd.RegisterFlagCompletionFunc("image", a.completeImages)
	return cmd
}

func runDiskRebase(ctx context.Context, a *app, opts rebaseOptions, args []string) error {
	places, _, err := takePlaces(args, 1)
	if err != nil {
		return err
	}
	if err := checkFormat("backing-format", opts.backingFormat); err != nil {
		return err
	}
	if (opts.backing == "") == (opts.image == "") {
		return usageError{errors.New("want --backing FILE or --image NAME; vmctl disk flatten makes a disk stand on nothing")}
	}
	p := places[0]
	file, on, err := a.rebase(ctx, opts, p)
	if err != nil {
		return inPlace("rebase", p, err)
	}
	return a.tellChanged(ctx, p, file, disk.QCOW2, "stands on "+on)
}

// rebase returns the file of the disk, and what it now stands on.
func (a *app) rebase(ctx context.Context, opts rebaseOptions, p place) (file, on string, err error) {
	t, err := a.target(p, "")
	if err != nil {
		return "", "", err
	}
	defer t.close()
	if t.format != disk.QCOW2 {
		return "", "", &stateError{fmt.Errorf("only a qcow2 image can stand on another, not %s", t.format)}
	}
	if opts.image != "" { // which stays until the disk stands on it
		release, err := a.store().Hold()
		if err != nil {
			return "", "", err
		}
		defer release()
	}
	base, err := a.newBase(opts, t)
	if err != nil {
		return "", "", err
	}
	defer base.close()
	unlock, err := a.lockVMs("vmctl disk rebase", append(t.vms(), base.vms()...)...)
	if err != nil {
		return "", "", err
	}
	defer unlock()
	if opts.image == "" {
		if err := a.checkBase(base); err != nil {
			return "", "", err
		}
	}
	below, err := a.chain(base, opts.follow)
	if err != nil {
		return "", "", err
	}
	if below.Has(t.file) {
		return "", "", &stateError{fmt.Errorf("%w: %s stands on %s already", disk.ErrLoop, base.file.Name(), t.file.Name())}
	}
	if err := a.checkChangeable(t); err != nil {
		return "", "", err
	}
	if err := a.checkReplaceable(t); err != nil {
		return "", "", err
	}
	if err := a.checkReadable(t); err != nil {
		return "", "", err
	}
	return t.file.Name(), base.file.Name(), a.rebaseTo(ctx, opts, t, base)
}

// newBase is the file that a disk is to stand on.
func (a *app) newBase(opts rebaseOptions, t *target) (*target, error) {
	if opts.image == "" {
		if t.disk != nil {
			return nil, &stateError{fmt.Errorf("a machine's own disk stands on a stored image, or on nothing: want --image, got --backing")}
		}
		path, err := pathFlag("backing", opts.backing)
		if err != nil {
			return nil, err
		}
		return a.target(place{path: path}, opts.backingFormat)
	}
	if t.disk == nil {
		return nil, &stateError{fmt.Errorf("only a machine's own disk stands on a stored image: want --backing, got --image")}
	}
	i, err := a.image(opts.image)
	if err != nil {
		return nil, err
	}
	if err := a.store().Check(i); err != nil {
		return nil, err
	}
	if t.disk.Image != i.Name {
		return nil, withHint(&stateError{fmt.Errorf("the definition of %s does not have image = %q for disk.%s", t.disk.vm, i.Name, t.disk.Name)},
			"write that first; vmctl disk rebase then makes the disk fit")
	}
	return a.target(place{path: a.paths.Image(i.Name)}, "")
}

// rebaseTo changes a copy of the disk, which then takes its place.
func (a *app) rebaseTo(ctx context.Context, opts rebaseOptions, t, base *target) error {
	c := disk.Chain{{Path: t.file.Name(), Format: t.format, File: t.file}}
	if !opts.unsafe {
		var err error
		if c, err = a.chain(t, opts.follow); err != nil {
			return err
		}
		if err := checkNoSnapshots(t); err != nil {
			return err
		}
	}
	draft, err := disk.NewDraft(t.file.Name())
	if err != nil {
		return err
	}
	defer draft.Close()
	defer a.ui.clearLine()
	if err := draft.Like(t.file); err != nil {
		return err
	}
	if err := checkFits(filepath.Dir(t.file.Name()), realSize(t.file)); err != nil {
		return err
	}
	if err := disk.Copy(ctx, draft.File, t.file, a.diskProgress(t.place, "copying")); err != nil {
		return err
	}
	top := disk.Layer{Path: c[0].Path, Format: c[0].Format, File: draft.File}
	c = append(disk.Chain{top}, c[1:]...)
	err = a.imgOf(t).Rebase(ctx, c, base.file.Name(), base.format, !opts.unsafe, a.diskProgress(t.place, "rebasing"))
	if err != nil {
		return err
	}
	if err := t.isStill(); err != nil {
		return err
	}
	return draft.Replace(t.file)
}

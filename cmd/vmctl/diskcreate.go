package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/disk"
)

// createOptions are the flags of vmctl disk create and overlay.
type createOptions struct {
	reading
	size          sizeFlag
	backing       string
	backingFormat string
}

func newDiskCreateCommand(a *app) *cobra.Command {
	var opts createOptions
	cmd := &cobra.Command{
		Use:   "create PATH --size SIZE [--format FORMAT]",
		Short: "Make a new, empty image file",
		Long: `Make a new, empty image file for a disk with path = "PATH". (A disk of a
definition that has only a size is made by the first start.) With --backing it is
a qcow2 image that begins with the content of another file, as by vmctl disk
overlay. The file is its owner's alone to read: a machine that has it as a disk is
given access while it runs.`,
		Example: `  vmctl disk create /srv/data.qcow2 --size 100G
  vmctl disk create /srv/data.raw --size 100G --format raw`,
		ValidArgsFunction: a.completePlaces(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDiskCreate(cmd.Context(), a, opts, args)
		},
	}
	flags := cmd.Flags()
	flags.Var(&opts.size, "size", "size of the disk, e.g. 20G")
	flags.StringVar(&opts.format, "format", "", "qcow2, raw, vmdk, vdi, vpc or vhdx; default: by the name's ending")
	flags.StringVar(&opts.backing, "backing", "", "`FILE` that it stands on")
	flags.StringVar(&opts.backingFormat, "backing-format", "", "`FORMAT` of that; default: by the definitions that name it, or its name's ending")
	flags.BoolVar(&opts.follow, "follow", false, "allow that file to stand on others that not everybody may read")
	completeFormats(cmd, "format")
	completeFormats(cmd, "backing-format")
	return cmd
}

func runDiskCreate(ctx context.Context, a *app, opts createOptions, args []string) error {
	places, _, err := takePlaces(args, 1)
	if err != nil {
		return err
	}
	p := places[0]
	if err := newFilePlace(p); err != nil {
		return err
	}
	if err := checkFormat("format", opts.format); err != nil {
		return err
	}
	if err := checkFormat("backing-format", opts.backingFormat); err != nil {
		return err
	}
	format := cmp.Or(opts.format, config.FormatOf(p.path))
	if opts.backing != "" {
		if opts.format != "" && format != disk.QCOW2 {
			return usageError{fmt.Errorf("--backing: only a qcow2 image can stand on another, not %s", format)}
		}
		base, err := pathFlag("backing", opts.backing)
		if err != nil {
			return err
		}
		return a.overlay(ctx, opts, place{path: base}, p)
	}
	if opts.size == 0 {
		return usageError{errors.New("want --size, e.g. --size 20G")}
	}
	if err := a.makeImage(ctx, p.path, format, int64(opts.size), "", ""); err != nil {
		return inPlace("create", p, err)
	}
	return a.tellChanged(ctx, p, p.path, format, fmt.Sprintf("created, %s of %s", format, config.Size(opts.size)))
}

// newFilePlace refuses what is not the path of a file that is not there yet.
func newFilePlace(p place) error {
	if p.path == "" {
		return withHint(usageError{fmt.Errorf("want the path of a new file, got the disk %s", p)}, "the disks of a machine are made by its first start, or by vmctl disk import")
	}
	if access.IsThere(p.path) {
		return &stateError{fmt.Errorf("%s is there already", p.path)}
	}
	return nil
}

// pathFlag reads a flag that names a file.
func pathFlag(flag, text string) (string, error) {
	if !isPath(text) {
		return "", withHint(usageError{fmt.Errorf("--%s: want the path of a file with a slash in it, got %s", flag, text)}, "a file of the working directory is ./"+text)
	}
	p, _, err := takePlace([]string{text})
	return p.path, err
}

// makeImage makes a new image, whole or not at all. Its size is in bytes.
func (a *app) makeImage(ctx context.Context, path, format string, size int64, backing, backingFormat string) error {
	if _, err := inDir(path); err != nil {
		return err
	}
	draft, err := disk.NewDraft(path)
	if err != nil {
		return err
	}
	defer draft.Close()
	if format == disk.Raw {
		err = draft.File.Truncate(size)
	} else {
		err = a.img().Create(ctx, draft.File, format, size, backing, backingFormat)
	}
	if err != nil {
		return err
	}
	return draft.Place()
}

func newDiskOverlayCommand(a *app) *cobra.Command {
	var opts createOptions
	cmd := &cobra.Command{
		Use:   "overlay BASE PATH",
		Short: "Make a new image file that begins with the content of another",
		Long: `Make a qcow2 image that begins with the content of another file, BASE, and keeps
what is written in a file of its own. BASE must not change any more: it may be the
disk of machines only where they have it read-only. For disks that begin with a
stored image, image = "NAME" in a definition does that.

A machine that has the new file as a disk has to be able to read BASE as any user
could: it is given access to the files that its definition names, and no others.`,
		Example:           "  vmctl disk overlay /srv/golden.qcow2 /srv/test1.qcow2",
		ValidArgsFunction: a.completePlaces(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			places, _, err := takePlaces(args, 2)
			if err != nil {
				return err
			}
			if err := checkFormat("backing-format", opts.backingFormat); err != nil {
				return err
			}
			if err := newFilePlace(places[1]); err != nil {
				return err
			}
			if f := config.FormatOf(places[1].path); f != disk.QCOW2 {
				return usageError{fmt.Errorf("want a new file whose name ends with .qcow2, which it is: %s would be taken for %s", places[1], f)}
			}
			return a.overlay(cmd.Context(), opts, places[0], places[1])
		},
	}
	cmd.Flags().Var(&opts.size, "size", "size of the disk; default: that of BASE")
	cmd.Flags().StringVar(&opts.backingFormat, "backing-format", "", "`FORMAT` of BASE; default: by the definitions that name it, or its name's ending")
	cmd.Flags().BoolVar(&opts.follow, "follow", false, "allow BASE to stand on files that not everybody may read")
	completeFormats(cmd, "backing-format")
	return cmd
}

// overlay makes a new image that stands on another.
func (a *app) overlay(ctx context.Context, opts createOptions, on, p place) error {
	fail := func(err error) error { return inPlace("create", p, err) }
	base, err := a.target(on, opts.backingFormat)
	if err != nil {
		return fail(err)
	}
	defer base.close()
	unlock, err := a.lockVMs("vmctl disk overlay", base.vms()...)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if err := a.checkBase(base); err != nil {
		return fail(err)
	}
	if _, err := a.chain(base, opts.follow); err != nil {
		return fail(err)
	}
	size, err := a.virtualSize(ctx, base)
	if err != nil {
		return fail(err)
	}
	if opts.size != 0 && int64(opts.size) < size {
		return fail(usageError{fmt.Errorf("--size: want at least %s, the size of %s, got %s", config.Size(size), base.file.Name(), config.Size(opts.size))})
	}
	size = max(size, int64(opts.size))
	if err := a.makeImage(ctx, p.path, disk.QCOW2, size, base.file.Name(), base.format); err != nil {
		return fail(err)
	}
	return a.tellChanged(ctx, p, p.path, disk.QCOW2, fmt.Sprintf("created, qcow2 of %s on %s", config.Size(size), base.file.Name()))
}

// checkBase refuses what no image of a path can stand on: a file that somebody
// writes to, and a stored image, which only knows of children that definitions
// name.
func (a *app) checkBase(base *target) error {
	name := base.file.Name()
	if image := a.imageOf(name); image != "" {
		return withHint(&stateError{fmt.Errorf("%s is the stored image %s, which would not know of it", name, image)},
			fmt.Sprintf("image = %q in a definition makes a disk that stands on it; vmctl image export makes a copy of your own", image))
	}
	for _, k := range base.known {
		if k.writable() {
			return withHint(&stateError{fmt.Errorf("%s is disk %s of %s, which writes to it: what stands on it would break", name, k.Name, k.vm)},
				"vmctl disk clone makes a copy; or readonly = true for that disk")
		}
	}
	return a.checkReadable(base)
}

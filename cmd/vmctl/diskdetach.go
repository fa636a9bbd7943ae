package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

func newDiskDetachCommand(a *app) *cobra.Command {
	var persist bool
	timeout := span(releaseTime)
	cmd := &cobra.Command{
		Use:   "detach VM DISK",
		Short: "Take a disk out of a machine, while it runs too",
		Long: `Take a disk out of a machine. Where that runs, its guest is asked to let go of the
disk, and may take its time, or refuse: what it uses, it should have unmounted.
What it has written is on the disk then. With --persist the machine has not got the
disk after a restart either, by a drop-in of its definition. Where it does not run,
only --persist makes sense.

No file is removed. That of a disk that vmctl has made can be attached again, or
removed by vmctl disk delete.`,
		Example:           "  vmctl disk detach web data\n  vmctl disk detach web scratch --persist",
		Args:              vmAndDisk,
		ValidArgsFunction: a.completeVMDisk,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.plug(ctx, "detach", args[0], args[1], func(p *plugging) (string, error) { return p.detach(ctx, persist, time.Duration(timeout)) })
		},
	}
	cmd.Flags().BoolVar(&persist, "persist", false, "take it out of the definition too, by a drop-in")
	cmd.Flags().Var(&timeout, "timeout", "wait no longer than this for the guest")
	return cmd
}

// detach takes the disk out.
func (p *plugging) detach(ctx context.Context, persist bool, timeout time.Duration) (string, error) {
	var kept deviceDropIn
	digest := ""
	defined := p.defined()
	switch {
	case !persist && !p.look.active():
		return "", withHint(&stateError{errors.New("the machine does not run")}, "--persist detaches it from the next start on")
	case persist && !p.look.active() && !defined:
		_, err := p.findDisk(p.place, "")
		if err == nil {
			err = &stateError{errors.New("the definition has not got it")}
		}
		return "", err
	case persist && p.look.vm.File != "" && p.look.vm.Machine == nil:
		return "", invalid(p.look.vm, p.look.vm.Problems)
	case persist && defined:
		var err error
		if kept, digest, err = p.keep("detach", nil); err != nil {
			return "", err
		}
	}
	if p.look.active() {
		q := hypervisor.DiskRequest{Disk: config.Disk{Name: p.disk}, Timeout: timeout, Digest: digest}
		if err := p.request(ctx, hypervisor.DiskDetach, q); err != nil {
			return "", err
		}
	}
	text := "detached"
	if persist {
		p.result.Persisted = true
		if err := p.persist(ctx, kept); err != nil {
			return "", err
		}
	}
	switch {
	case !p.look.active():
		text = "is detached from the next start on"
	case defined && !persist:
		text += " until the machine is started again"
	}
	if found, err := p.findDisk(p.place, ""); err == nil && found.own {
		p.result.File = found.file
		text += "; its file " + found.file + " is kept"
	}
	return text, nil
}

func newDiskEjectCommand(a *app) *cobra.Command {
	var force bool
	timeout := span(releaseTime)
	cmd := &cobra.Command{
		Use:   "eject VM DRIVE",
		Short: "Take the medium out of a CD-ROM drive",
		Long: `Take the medium out of a CD-ROM drive of a machine that runs. A guest that has
locked the drive is asked; --force does not ask it. The next start has the medium of
the definition again.`,
		Example:           "  vmctl disk eject web cd",
		Args:              vmAndDisk,
		ValidArgsFunction: a.completeVMDisk,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.medium(cmd.Context(), "eject", hypervisor.DiskEject, args, hypervisor.DiskRequest{Timeout: time.Duration(timeout), Force: force})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "open the drive though the guest has locked it")
	cmd.Flags().Var(&timeout, "timeout", "wait no longer than this for the guest")
	return cmd
}

func newDiskInsertCommand(a *app) *cobra.Command {
	var force bool
	var format string
	timeout := span(releaseTime)
	cmd := &cobra.Command{
		Use:   "insert VM DRIVE PATH",
		Short: "Put a medium into a CD-ROM drive",
		Long: `Put an image file into a CD-ROM drive of a machine that runs, in place of what is
in it, which is taken out as by vmctl disk eject. The next start has the medium of
the definition again.`,
		Example: "  vmctl disk insert web cd ./debian.iso",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 3 {
				return usageError{errors.New("want VM DRIVE PATH")}
			}
			return vmAndDisk(cmd, args[:2])
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 2 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return a.completeVMDisk(cmd, args, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[2])
			if err != nil {
				return err
			}
			if err := checkFormat("format", format); err != nil {
				return err
			}
			if format == "" {
				format = config.FormatOf(path)
			}
			q := hypervisor.DiskRequest{Timeout: time.Duration(timeout), Force: force}
			q.Disk.Path, q.Disk.Format = path, format
			return a.medium(cmd.Context(), "insert", hypervisor.DiskInsert, args, q)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "open the drive though the guest has locked it")
	cmd.Flags().StringVar(&format, "format", "", "`FORMAT` of the file; default: by its name's ending")
	cmd.Flags().Var(&timeout, "timeout", "wait no longer than this for the guest")
	completeFormats(cmd, "format")
	return cmd
}

// medium changes the medium of a drive.
func (a *app) medium(ctx context.Context, verb, what string, args []string, q hypervisor.DiskRequest) error {
	return a.plug(ctx, verb, args[0], args[1], func(p *plugging) (string, error) {
		if !p.look.active() {
			return "", &stateError{errors.New("the machine does not run")}
		}
		q.Disk.Name = p.disk
		p.result.File = q.Disk.Path
		return verb + "ed", p.request(ctx, what, q)
	})
}

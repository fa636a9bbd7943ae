package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/hypervisor/disk"
)

func newDiskDeleteCommand(a *app) *cobra.Command {
	var yes bool
	var format string
	cmd := &cobra.Command{
		Use:   "delete VM DISK",
		Short: "Remove the file of a disk that vmctl made",
		Long: `Remove the file of a disk that vmctl made. Where the definition still has the
disk, the next start makes a new one. A file that a definition names by its path
belongs to its owner, and is refused.`,
		Example:           "  vmctl disk delete web old-data",
		ValidArgsFunction: a.completePlaces(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDiskDelete(cmd.Context(), a, yes, format, args)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().StringVar(&format, "format", "", "`FORMAT` of the file, where there are two of the disk")
	completeFormats(cmd, "format")
	return cmd
}

func runDiskDelete(_ context.Context, a *app, yes bool, format string, args []string) error {
	places, _, err := takePlaces(args, 1)
	if err != nil {
		return err
	}
	if err := checkFormat("format", format); err != nil {
		return err
	}
	p := places[0]
	file, err := a.deleteDisk(p, format, yes)
	if err != nil {
		return inPlace("delete", p, err)
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(map[string]string{"vm": p.vm, "disk": p.disk, "file": file})
	}
	a.ui.printf("%s: removed %s", p, file)
	return nil
}

func (a *app) deleteDisk(p place, format string, yes bool) (string, error) {
	if p.path != "" {
		return "", withHint(&stateError{fmt.Errorf("a file belongs to its owner")}, "rm removes it; vmctl disk delete VM DISK removes what vmctl made")
	}
	k, err := a.findDisk(p, format)
	if err != nil {
		return "", err
	}
	if !k.own {
		return "", &stateError{fmt.Errorf("%s belongs to its owner", k.file)}
	}
	t, err := a.target(p, k.Format)
	if err != nil {
		return "", err
	}
	defer t.close()
	if !yes {
		if err := a.ui.confirm("remove "+t.file.Name(), "--yes"); err != nil {
			return "", err
		}
	}
	unlock, err := a.lockVMs("vmctl disk delete", p.vm)
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := a.checkChangeable(t); err != nil {
		return "", err
	}
	if !k.orphan {
		if err := checkNoSnapshots(t); err != nil {
			return "", err
		}
	}
	// Its draft, too, where one was left.
	draft, err := disk.NewDraft(t.file.Name())
	if err != nil {
		return "", err
	}
	draft.Close()
	return t.file.Name(), os.Remove(t.file.Name())
}

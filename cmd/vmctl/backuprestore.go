package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/hypervisor/backup"
	"github.com/vmctl/vmctl/units/bus"
)

func newBackupRestoreCommand(a *app) *cobra.Command {
	var as string
	var yes bool
	cmd := &cobra.Command{
		Use:   "restore BACKUP",
		Short: "Make the disks of a VM what they were, or a new VM of a backup",
		Long: `Make the disks of a VM what they were when the backup was made, all or none of
them; the VM must not run. The backup is verified first. What was written since is
lost, and so it is asked for. The definition stays as it is; where there is none any
more, that of the backup is written. A disk by path keeps its owner and mode.

With --as the backup becomes a new VM, with disks of its own and addresses of its
own, which does not start with the host.`,
		Example: `  vmctl backup restore /srv/backups/web/20260102T030405Z
  vmctl backup restore /srv/backups/web/20260102T030405Z --as web-test`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("want the directory of one backup, got %d arguments", len(args))}
			}
			return nil
		},
		ValidArgsFunction: completeDirectories,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBackupRestore(cmd.Context(), a, as, yes, args[0])
		},
	}
	cmd.Flags().StringVar(&as, "as", "", "as a new VM with this `NAME`")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	_ = cmd.RegisterFlagCompletionFunc("as", cobra.NoFileCompletions)
	return cmd
}

func runBackupRestore(ctx context.Context, a *app, as string, yes bool, dir string) error {
	b, err := backup.Open(dir)
	if errors.Is(err, backup.ErrNoBackup) {
		return withHint(&notFoundError{Kind: "backup", Name: dir}, "vmctl backup list shows those in a directory")
	}
	if err != nil {
		return err
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	name := b.VM
	if as != "" {
		name = as
		err = a.restorableAs(name)
	} else {
		err = a.restorable(ctx, conn, b, yes)
	}
	if err != nil {
		return inName("restore", name, err)
	}
	var result backup.Restored
	request := backup.RestoreRequest{Dir: b.Dir, New: as != ""}
	if err := a.operate(ctx, conn, name, backup.Restore, backup.Restore, request, &result); err != nil {
		return inName("restore", name, err)
	}
	if result.Definition != "" {
		if err := conn.Reload(ctx); err != nil {
			return err
		}
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(result)
	}
	a.ui.printf("%s: restored from %s", name, b.Dir)
	for _, disk := range slices.Sorted(maps.Keys(result.Disks)) {
		a.ui.printf("  disk %s: %s", disk, result.Disks[disk])
	}
	if result.Definition != "" {
		a.ui.printf("  definition: %s", result.Definition)
	}
	return nil
}

// restorableAs refuses a name that is none for a new machine.
func (a *app) restorableAs(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := a.definitionFree(name); err != nil {
		return &stateError{err}
	}
	return nil
}

// restorable refuses to replace disks that cannot be replaced, and asks.
func (a *app) restorable(ctx context.Context, conn *bus.Conn, b backup.Backup, yes bool) error {
	l, err := a.lookAt(ctx, conn, b.VM)
	if exitStatus(err) == exitNotFound {
		return a.askToReplace(yes, b, "the disks that the definition in the backup names")
	}
	if err != nil {
		return err
	}
	if l.state != stopped && l.state != failed {
		return withHint(&transitionError{From: l.state, Reason: "cannot replace the disks of a VM that runs"}, "vmctl stop "+b.VM)
	}
	if l.vm.File == "" {
		return a.askToReplace(yes, b, "what is left of "+b.VM+" in "+a.paths.StateDir(b.VM))
	}
	if l.vm.Machine == nil {
		return invalid(l.vm, l.vm.Problems)
	}
	var files []string
	for _, d := range b.Disks {
		t, err := a.target(place{vm: b.VM, disk: d.Disk}, "")
		if _, ok := errors.AsType[*stateError](err); ok || exitStatus(err) == exitNotFound {
			continue // it has no file, or is not there any more: what that means is said later
		}
		if err != nil {
			return err
		}
		err = a.checkChangeable(t)
		if err == nil {
			err = a.checkReplaceable(t)
		}
		files = append(files, t.file.Name())
		t.file.Close()
		if err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return nil
	}
	return a.askToReplace(yes, b, strings.Join(files, ", "))
}

func (a *app) askToReplace(yes bool, b backup.Backup, what string) error {
	if yes {
		return nil
	}
	return a.ui.confirm(fmt.Sprintf("replace %s by what it was at %s", what, filepath.Base(b.Dir)), "--yes")
}

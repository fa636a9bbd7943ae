package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/backup"
)

// backupOptions are the flags of vmctl backup.
type backupOptions struct {
	quiesce      string
	full         bool
	limit        string
	incrementals int
}

// defaultIncrementals is how many backups may stand on each other.
const defaultIncrementals = 30

func (o *backupOptions) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.quiesce, "quiesce", backup.QuiesceAuto, "have the guest agent freeze the file systems for the moment of the backup: auto, require or skip")
	flags.BoolVar(&o.full, "full", false, "copy all, not only what has changed since the last backup")
	flags.StringVar(&o.limit, "limit", "", "read no more than `SIZE` per second, e.g. 50M")
	flags.IntVar(&o.incrementals, "incrementals", defaultIncrementals, "make a full one after so many that stand on each other")
	// Only an unknown flag fails here.
	_ = cmd.RegisterFlagCompletionFunc("quiesce", cobra.FixedCompletions(quiesceModes, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("limit", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("incrementals", cobra.NoFileCompletions)
}

var quiesceModes = []string{backup.QuiesceAuto, backup.QuiesceRequire, backup.QuiesceSkip}

// request is what the flags ask for.
func (o backupOptions) request(target string) (backup.Request, error) {
	r := backup.Request{Quiesce: o.quiesce, Full: o.full, Incrementals: o.incrementals}
	if !slices.Contains(quiesceModes, o.quiesce) {
		return r, usageError{fmt.Errorf("--quiesce: want one of %s, got %s", strings.Join(quiesceModes, ", "), o.quiesce)}
	}
	if o.incrementals < 0 {
		return r, usageError{fmt.Errorf("--incrementals: want 0 or more, got %d", o.incrementals)}
	}
	if o.limit != "" {
		size, err := config.ParseSize(o.limit)
		if err != nil {
			return r, usageError{fmt.Errorf("--limit: %w", err)}
		}
		r.BytesPerSecond = int64(size)
	}
	var err error
	r.Target, err = filepath.Abs(target)
	return r, err
}

func newBackupCommand(a *app) *cobra.Command {
	var opts backupOptions
	cmd := &cobra.Command{
		Use:   "backup NAME DIRECTORY",
		Short: "Back up VMs, running or not, and restore them",
		Long: `Back up a VM to a directory, while it runs or not: its disks, all as of one moment,
its UEFI variables and its definition. The first backup has all; each further one
in the same directory only what was written since, where that is known for sure,
and else all again. A guest agent, where one answers, has the file systems in
order at that moment.

Each backup is a directory of its own, DIRECTORY/NAME/TIME, with qcow2 images that
qemu-img and others can read: those of later ones stand on those of earlier ones,
so that they are only to be moved together, and deleted by vmctl backup prune.

The work is done by the unit vm-backup@NAME.service: systemctl stop cancels it and
leaves nothing behind, systemctl set-property limits it.`,
		Example: `  vmctl backup web /srv/backups
  vmctl backup list /srv/backups
  vmctl backup verify /srv/backups/web/20260102T030405Z
  vmctl backup restore /srv/backups/web/20260102T030405Z --as web-test
  vmctl backup prune --keep 14 /srv/backups`,
		GroupID:           groupParts,
		Args:              backupArguments,
		ValidArgsFunction: a.completeNameThenDirectory,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBackup(cmd.Context(), a, opts, args[0], args[1])
		},
	}
	opts.addFlags(cmd)
	cmd.AddCommand(
		newBackupCreateCommand(a),
		newBackupDeleteCommand(a),
		newBackupListCommand(a),
		newBackupPruneCommand(a),
		newBackupRestoreCommand(a),
		newBackupVerifyCommand(a),
	)
	return cmd
}

// newBackupCreateCommand is for machines that are named like a command.
func newBackupCreateCommand(a *app) *cobra.Command {
	var opts backupOptions
	cmd := &cobra.Command{
		Use:               "create NAME DIRECTORY",
		Short:             "The same as vmctl backup NAME DIRECTORY",
		Example:           "  vmctl backup create list /srv/backups     # of a VM with the name list",
		Args:              backupArguments,
		ValidArgsFunction: a.completeNameThenDirectory,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBackup(cmd.Context(), a, opts, args[0], args[1])
		},
	}
	opts.addFlags(cmd)
	return cmd
}

func backupArguments(_ *cobra.Command, args []string) error {
	if len(args) != 2 {
		return usageError{fmt.Errorf("want the name of a VM and a directory, got %d arguments", len(args))}
	}
	return nil
}

// completeNameThenDirectory completes the name of one machine, then a directory.
func (a *app) completeNameThenDirectory(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeNames(cmd, args, prefix)
	case 1:
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func runBackup(ctx context.Context, a *app, opts backupOptions, name, target string) error {
	request, err := opts.request(target)
	if err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return err
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := a.lookAt(ctx, conn, name); err != nil {
		return err
	}
	var result backup.Result
	if err := a.operate(ctx, conn, name, backup.Make, backup.Make, request, &result); err != nil {
		return fmt.Errorf("back up %s: %w", name, err)
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(struct {
			backupRow
			NotQuiesced string   `json:"not_quiesced,omitempty"`
			LeftOut     []string `json:"left_out"`
		}{newBackupRow(result.Backup), result.NotQuiesced, result.LeftOut})
	}
	a.tellBackup(result)
	return nil
}

// tellBackup says what was backed up.
func (a *app) tellBackup(r backup.Result) {
	a.ui.printf("%s: backed up to %s, %s", r.VM, r.Dir, sizeText(r.Bytes()))
	for _, d := range r.Disks {
		if d.Parent != "" {
			a.ui.printf("  disk %s: %s, what has changed since %s", d.Disk, sizeText(d.Bytes), d.Parent)
		} else {
			a.ui.printf("  disk %s: %s, all of it (%s)", d.Disk, sizeText(d.Bytes), d.Reason)
		}
	}
	if len(r.LeftOut) > 0 {
		a.ui.printf("  left out: %s", strings.Join(r.LeftOut, ", "))
	}
	if r.NotQuiesced != "" {
		a.ui.printf("  file systems not frozen: %s", r.NotQuiesced)
	}
}

// backupRow is one backup in JSON.
type backupRow struct {
	VM        string        `json:"vm"`
	ID        string        `json:"id"`
	Directory string        `json:"directory"`
	Created   time.Time     `json:"created"`
	Bytes     int64         `json:"bytes"`
	Full      bool          `json:"full"`
	Parents   []string      `json:"parents"`
	Running   bool          `json:"running"`
	Quiesced  bool          `json:"quiesced"`
	Disks     []backup.Disk `json:"disks"`
}

func newBackupRow(b backup.Backup) backupRow {
	parents := append([]string{}, b.Parents()...)
	return backupRow{b.VM, b.ID, b.Dir, b.Created, b.Bytes(), len(parents) == 0, parents, b.Running, b.Quiesced, b.Disks}
}

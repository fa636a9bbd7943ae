package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/backup"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// backupsIn finds the backups that a directory is or has: one, those of one
// machine, or those of all below a target; by machine and time. With an error,
// those that can be read are returned too.
func backupsIn(dir string) ([]backup.Backup, error) {
	if _, err := os.ReadDir(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &notFoundError{Kind: "directory", Name: dir}
		}
		return nil, err
	}
	b, err := backup.Open(dir)
	if err == nil {
		return []backup.Backup{b}, nil
	}
	if !errors.Is(err, backup.ErrNoBackup) {
		return nil, err
	}
	all, err := backupsOf(backup.Series{Dir: dir})
	if len(all) > 0 || err != nil {
		return all, err
	}
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		if e.IsDir() && config.CheckName(e.Name()) == nil {
			found, err := backupsOf(backup.SeriesOf(dir, e.Name()))
			all, errs = append(all, found...), append(errs, err)
		}
	}
	return all, errors.Join(errs...)
}

// backupsOf are those of one machine.
func backupsOf(s backup.Series) ([]backup.Backup, error) {
	ids, err := s.IDs()
	var all []backup.Backup
	errs := []error{err}
	for _, id := range ids {
		b, err := backup.Open(filepath.Join(s.Dir, id))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, b)
	}
	return all, errors.Join(errs...)
}

func oneDirectory(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("want one directory, got %d arguments", len(args))}
	}
	return nil
}

func completeDirectories(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

func newBackupListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "list DIRECTORY",
		Aliases:           []string{"ls"},
		Short:             "List the backups in a directory",
		Example:           "  vmctl backup list /srv/backups\n  vmctl backup list /srv/backups/web -o json | jq -r '.[-1].directory'",
		Args:              oneDirectory,
		ValidArgsFunction: completeDirectories,
		RunE:              func(_ *cobra.Command, args []string) error { return runBackupList(a, args[0]) },
	}
}

func runBackupList(a *app, dir string) error {
	all, err := backupsIn(dir)
	rows := []backupRow{}
	table := [][]string{{"VM", "BACKUP", "TIME", "SIZE", "KIND", "FROZEN", "DISKS"}}
	for _, b := range all {
		row := newBackupRow(b)
		rows = append(rows, row)
		kind := "full"
		if !row.Full {
			kind = "on " + strings.Join(row.Parents, ", ")
		}
		var disks []string
		for _, d := range b.Disks {
			disks = append(disks, d.Disk)
		}
		table = append(table, []string{b.VM, b.ID, b.Created.Local().Format(time.DateTime), sizeText(row.Bytes), kind, yesNo(b.Quiesced), strings.Join(disks, ", ")})
	}
	if a.ui.format == jsonFormat {
		return errors.Join(a.ui.json(rows), err)
	}
	return errors.Join(writeTable(a.ui.out, table), err)
}

func newBackupVerifyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify DIRECTORY...",
		Short: "Read backups, and compare them with what was written",
		Long: `Read backups, each file of them and of those that they stand on, and compare them
with the checksums that were noted when they were made. A directory is a backup,
or has some. The exit status is 1 where one is not as it was.`,
		Example: `  vmctl backup verify /srv/backups
  vmctl backup verify /srv/backups/web/20260102T030405Z`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("want the directory of a backup, or of several")}
			}
			return nil
		},
		ValidArgsFunction: completeDirectories,
		RunE:              func(cmd *cobra.Command, args []string) error { return runBackupVerify(cmd.Context(), a, args) },
	}
}

// verifiedBackup is one backup in vmctl backup verify -o json.
type verifiedBackup struct {
	VM        string     `json:"vm"`
	ID        string     `json:"id"`
	Directory string     `json:"directory"`
	Sound     bool       `json:"sound"`
	Error     *errorJSON `json:"error"`
}

func runBackupVerify(ctx context.Context, a *app, dirs []string) error {
	results := []verifiedBackup{}
	var errs []error
	fail := func(err error) {
		a.ui.errorf(err)
		errs = append(errs, err)
	}
	v := a.verifier("")
	for _, dir := range dirs {
		all, err := backupsIn(dir)
		if err != nil {
			fail(err)
		} else if len(all) == 0 {
			fail(withHint(fmt.Errorf("%s: %w, and has none", dir, backup.ErrNoBackup), "vmctl backup list shows those in a directory"))
		}
		for _, b := range all {
			result := verifiedBackup{VM: b.VM, ID: b.ID, Directory: b.Dir}
			err := v.Verify(ctx, b)
			a.ui.clearLine()
			if err != nil {
				err = fmt.Errorf("%s/%s: %w", b.VM, b.ID, err)
				fail(err)
				result.Error = new(newErrorJSON(err))
			} else {
				result.Sound = true
				a.ui.printf("%s/%s: sound", b.VM, b.ID)
			}
			results = append(results, result)
		}
	}
	if a.ui.format == jsonFormat {
		if err := a.ui.json(results); err != nil {
			return err
		}
	}
	return worst(errs)
}

// verifier reads backups, and shows that it does.
func (a *app) verifier(of string) *backup.Verifier {
	var done int64
	return &backup.Verifier{
		Img: disk.Img{Program: a.probe().Programs["qemu-img"]},
		On: func(n int) {
			done += int64(n)
			if isTerminal(a.ui.err) {
				a.ui.drawLine("reading " + of + sizeText(done))
			}
		},
	}
}

func newBackupDeleteCommand(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:               "delete DIRECTORY...",
		Short:             "Delete backups that no other stands on",
		Example:           "  vmctl backup delete /srv/backups/web/20260102T030405Z",
		Args:              newBackupVerifyCommand(a).Args,
		ValidArgsFunction: completeDirectories,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBackupDelete(a, yes, args)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func runBackupDelete(a *app, yes bool, dirs []string) error {
	deleted := []backupRow{}
	var errs []error
	for _, dir := range dirs {
		b, err := backup.Open(dir)
		if errors.Is(err, backup.ErrNoBackup) && !access.IsThere(dir) {
			err = &notFoundError{Kind: "backup", Name: dir}
		}
		if err == nil {
			err = a.deleteBackups(yes, []backup.Backup{b})
		}
		if err != nil {
			a.ui.errorf(err)
			errs = append(errs, err)
			continue
		}
		deleted = append(deleted, newBackupRow(b))
	}
	if a.ui.format == jsonFormat {
		if err := a.ui.json(deleted); err != nil {
			return err
		}
	}
	return worst(errs)
}

// deletable refuses backups of one machine that others stand on.
func deletable(series backup.Series, ids []string) error {
	all, err := backupsOf(series)
	if err != nil {
		return err // which may stand on those
	}
	for _, b := range all {
		if slices.Contains(ids, b.ID) {
			continue
		}
		for _, id := range b.Parents() {
			if slices.Contains(ids, id) {
				return withHint(&stateError{fmt.Errorf("%s: the backup %s stands on it", filepath.Join(series.Dir, id), b.ID)}, "delete that first")
			}
		}
	}
	return nil
}

// deleteBackups deletes some of the backups of one machine.
func (a *app) deleteBackups(yes bool, doomed []backup.Backup) error {
	vm, series := doomed[0].VM, backup.Series{Dir: filepath.Dir(doomed[0].Dir)}
	var ids []string
	for _, b := range doomed {
		ids = append(ids, b.ID)
	}
	if err := deletable(series, ids); err != nil {
		return err
	}
	if !yes {
		if err := a.ui.confirm("delete of "+series.Dir+" "+strings.Join(ids, ", "), "--yes"); err != nil {
			return err
		}
	}
	_, unlock, err := operation.Lock(a.paths, vm, "deleting backups")
	if err != nil {
		return operationError(err)
	}
	defer unlock()
	// Once more: nobody has waited while we asked.
	if err := deletable(series, ids); err != nil {
		return err
	}
	// The last first: what is cut off leaves none without what it stands on.
	for _, id := range slices.Backward(ids) {
		if err := series.Delete(id); err != nil {
			return err
		}
		a.ui.printf("%s/%s: deleted", vm, id)
	}
	return nil
}

func newBackupPruneCommand(a *app) *cobra.Command {
	var yes bool
	var keep int
	cmd := &cobra.Command{
		Use:   "prune --keep N DIRECTORY",
		Short: "Delete all but the last backups of each VM",
		Long: `Delete all but the last backups of each VM in a directory. What those stand on
stays too: of backups of which each stands on the one before, nothing goes until
the last of them are not needed any more (see vmctl backup --incrementals).`,
		Example:           "  vmctl backup prune --keep 14 --yes /srv/backups",
		Args:              oneDirectory,
		ValidArgsFunction: completeDirectories,
		RunE: func(cmd *cobra.Command, args []string) error {
			if keep < 1 {
				return usageError{errors.New("--keep: want how many backups of each VM to keep, 1 or more")}
			}
			return runBackupPrune(a, yes, keep, args[0])
		},
	}
	cmd.Flags().IntVar(&keep, "keep", 0, "how many to keep of each VM")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	_ = cmd.RegisterFlagCompletionFunc("keep", cobra.NoFileCompletions)
	return cmd
}

func runBackupPrune(a *app, yes bool, keep int, dir string) error {
	all, err := backupsIn(dir)
	if err != nil {
		return err
	}
	bySeries := map[string][]backup.Backup{}
	var order []string
	for _, b := range all {
		series := filepath.Dir(b.Dir)
		if bySeries[series] == nil {
			order = append(order, series)
		}
		bySeries[series] = append(bySeries[series], b)
	}
	deleted := []backupRow{}
	var errs []error
	for _, series := range order {
		surplus := backup.Surplus(bySeries[series], keep)
		if len(surplus) == 0 {
			continue
		}
		if err := a.deleteBackups(yes, surplus); err != nil {
			a.ui.errorf(err)
			errs = append(errs, err)
			continue
		}
		for _, b := range surplus {
			deleted = append(deleted, newBackupRow(b))
		}
	}
	if a.ui.format == jsonFormat {
		if err := a.ui.json(deleted); err != nil {
			return err
		}
	}
	return worst(errs)
}

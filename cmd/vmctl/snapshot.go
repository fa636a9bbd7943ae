package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/snapshot"
	"github.com/vmctl/vmctl/units/bus"
)

// snapshotUnit is the kind of the units that do something with snapshots (see
// [config.OperationUnit]).
const snapshotUnit = "snapshot"

func newSnapshotCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Snapshots of VMs: create, list, restore, delete …",
		Long: `A snapshot is what a VM was at one moment: all its disks at once, and its UEFI
variables. It is taken while the VM runs or not, and kept inside of the disks'
own images, which have to be qcow2 for that. CD-ROMs and disks that are read-only
or ephemeral take no part. [snapshots] in a definition has them taken by a timer.`,
		Example: `  vmctl snapshot create web before-upgrade --description "Debian 12"
  vmctl snapshot list web
  vmctl snapshot restore web before-upgrade
  vmctl snapshot delete web before-upgrade`,
		GroupID: groupParts,
		Args:    noCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newSnapshotCreateCommand(a),
		newSnapshotDeleteCommand(a),
		newSnapshotListCommand(a),
		newSnapshotRestoreCommand(a),
		newSnapshotShowCommand(a),
		newSnapshotTreeCommand(a),
	)
	return cmd
}

// quiesce is the value of --quiesce.
type quiesce snapshot.Quiesce

// String, Set and Type make it a pflag.Value.
func (q *quiesce) String() string { return string(*q) }

func (q *quiesce) Set(s string) error {
	switch snapshot.Quiesce(s) {
	case snapshot.Auto, snapshot.Require, snapshot.Skip:
		*q = quiesce(s)
		return nil
	}
	return errors.New("want auto, require or skip")
}

func (q *quiesce) Type() string { return "HOW" }

func newSnapshotCreateCommand(a *app) *cobra.Command {
	request := snapshot.CreateRequest{Quiesce: snapshot.Auto}
	cmd := &cobra.Command{
		Use:   "create VM [NAME]",
		Short: "Take a snapshot of a VM, running or not",
		Long: `Take a snapshot of a VM, running or not; without a name it is named by the time.
Of a VM that runs, the guest agent is asked first to have the file systems written
out and held still, for as long as it takes: a moment. With --memory it is not, since
what it has not written yet is in its memory, which the snapshot then has too. --quiesce says what to do
where none answers: auto takes the snapshot all the same, as after a loss of power,
and says so; require refuses; skip does not ask at all.`,
		Example: `  vmctl snapshot create web
  vmctl snapshot create web before-upgrade --description "Debian 12" --quiesce require`,
		Args:              vmAndPerhaps("a snapshot"),
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				request.Name = args[1]
			}
			return runSnapshotCreate(cmd.Context(), a, args[0], request)
		},
	}
	cmd.Flags().StringVarP(&request.Description, "description", "d", "", "one line for people")
	cmd.Flags().BoolVar(&request.Memory, "memory", false, "the VM's memory too: restored, it goes on where it was")
	cmd.Flags().Var((*quiesce)(&request.Quiesce), "quiesce", "have the guest write out its file systems: auto, require or skip")
	cmd.Flags().BoolVar(&request.Scheduled, "scheduled", false, "for timers: remove what is more than keep in the definition's [snapshots]")
	// Only an unknown flag fails here.
	_ = cmd.RegisterFlagCompletionFunc("quiesce", cobra.FixedCompletions([]cobra.Completion{"auto", "require", "skip"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// vmAndPerhaps takes the name of a machine and, if wanted, one more.
func vmAndPerhaps(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < 1 || len(args) > 2 {
			return usageError{fmt.Errorf("want the name of a VM and perhaps of %s, got %d arguments", what, len(args))}
		}
		return nil
	}
}

func runSnapshotCreate(ctx context.Context, a *app, name string, request snapshot.CreateRequest) error {
	if request.Memory && request.Quiesce == snapshot.Require {
		return usageError{errors.New("want either --memory or --quiesce=require: what the guest has not written yet is in its memory, and a frozen guest would be restored frozen")}
	}
	if request.Name != "" {
		if err := config.CheckName(request.Name); err != nil {
			return usageError{fmt.Errorf("name of a snapshot: %w", err)}
		}
	}
	return a.onMachine(ctx, "snapshot", name, func(conn *bus.Conn, l look) error {
		if request.Scheduled && (l.vm.Machine == nil || !l.vm.Machine.Snapshots.Scheduled()) {
			return &stateError{errors.New("the definition has no [snapshots] schedule")}
		}
		var made snapshot.Snapshot
		if err := a.operate(ctx, conn, name, snapshotUnit, snapshot.Create, request, &made); err != nil {
			return err
		}
		a.ui.printf("%s: snapshot %s created", name, made.Name)
		if request.Scheduled {
			if err := a.pruneSnapshots(ctx, conn, name); err != nil {
				return err
			}
		}
		if a.ui.format == jsonFormat {
			return a.ui.json(made)
		}
		return nil
	})
}

// onMachine does something to a machine that is there; verb is for the error.
func (a *app) onMachine(ctx context.Context, verb, name string, do func(*bus.Conn, look) error) error {
	if err := checkName(name); err != nil {
		return err
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	l, err := a.lookAt(ctx, conn, name)
	if err == nil {
		err = do(conn, l)
	}
	if err != nil {
		return inName(verb, name, err)
	}
	return nil
}

// pruneSnapshots removes what a schedule took and does not keep any more.
func (a *app) pruneSnapshots(ctx context.Context, conn *bus.Conn, name string) error {
	m, err := a.load(name)
	if err != nil {
		return err
	}
	all, err := snapshot.List(a.paths, name)
	if err != nil {
		return err
	}
	var request snapshot.DeleteRequest
	for _, s := range snapshot.Expired(all, m.Snapshots.Keep) {
		request.Names = append(request.Names, s.Name)
	}
	if len(request.Names) == 0 {
		return nil
	}
	var removed []string
	if err := a.operate(ctx, conn, name, snapshotUnit, snapshot.Delete, request, &removed); err != nil {
		return fmt.Errorf("delete what is more than %d: %w", m.Snapshots.Keep, err)
	}
	for _, s := range removed {
		a.ui.printf("%s: snapshot %s deleted", name, s)
	}
	return nil
}

// snapshotDeleteOptions are the flags of vmctl snapshot delete.
type snapshotDeleteOptions struct {
	yes bool
	all bool
}

func newSnapshotDeleteCommand(a *app) *cobra.Command {
	var opts snapshotDeleteOptions
	cmd := &cobra.Command{
		Use:   "delete VM NAME...",
		Short: "Delete snapshots of a VM, running or not",
		Long: `Delete snapshots of a VM, running or not. What the VM is now does not change, nor do
other snapshots: each is whole by itself.`,
		Example:           "  vmctl snapshot delete web before-upgrade\n  vmctl snapshot delete web --all",
		Args:              snapshotsOrAll,
		ValidArgsFunction: a.completeSnapshots,
		RunE:              func(cmd *cobra.Command, args []string) error { return runSnapshotDelete(cmd.Context(), a, opts, args) },
	}
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&opts.all, "all", "a", false, "delete all snapshots of the VM")
	return cmd
}

// snapshotsOrAll accepts a machine with either names or --all.
func snapshotsOrAll(cmd *cobra.Command, args []string) error {
	all, err := cmd.Flags().GetBool("all")
	switch {
	case err != nil:
		return err
	case all && len(args) != 1:
		return usageError{fmt.Errorf("want the name of a VM alone with --all, got %d arguments", len(args))}
	case !all && len(args) < 2:
		return usageError{errors.New("want the name of a VM and of a snapshot, or --all")}
	}
	return nil
}

func runSnapshotDelete(ctx context.Context, a *app, opts snapshotDeleteOptions, args []string) error {
	name := args[0]
	return a.onMachine(ctx, "snapshot", name, func(conn *bus.Conn, _ look) error {
		names := slices.Compact(slices.Sorted(slices.Values(args[1:])))
		if opts.all {
			var err error
			if names, err = snapshot.Names(a.paths, name); err != nil {
				return err
			}
		}
		for _, s := range names {
			if _, err := a.snapshot(name, s); err != nil {
				return err
			}
		}
		removed := []string{}
		if len(names) > 0 {
			if !opts.yes {
				if err := a.ui.confirm(fmt.Sprintf("delete %s of %s", strings.Join(names, ", "), name), "--yes"); err != nil {
					return err
				}
			}
			if err := a.operate(ctx, conn, name, snapshotUnit, snapshot.Delete, snapshot.DeleteRequest{Names: names}, &removed); err != nil {
				return err
			}
		}
		for _, s := range removed {
			a.ui.printf("%s: snapshot %s deleted", name, s)
		}
		if a.ui.format == jsonFormat {
			return a.ui.json(removed)
		}
		return nil
	})
}

// snapshotRestoreOptions are the flags of vmctl snapshot restore.
type snapshotRestoreOptions struct {
	yes   bool
	force bool
	start bool
	stop  bool
	disks bool
}

func newSnapshotRestoreCommand(a *app) *cobra.Command {
	var opts snapshotRestoreOptions
	cmd := &cobra.Command{
		Use:   "restore VM NAME",
		Short: "Make a VM what it was when a snapshot was taken",
		Long: `Make the disks and UEFI variables of a VM what they were when a snapshot was taken.
What they hold now is lost, unless another snapshot has it. A VM that runs is ended
at once, as if its power were cut, and started again afterwards. Its definition
stays as it is; where the VM has other disks by now, that is refused, or with
--force done for the disks that are the same.`,
		Example:           "  vmctl snapshot restore web before-upgrade\n  vmctl snapshot restore --yes --no-start web before-upgrade",
		Args:              vmAndSnapshot,
		ValidArgsFunction: a.completeSnapshot,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSnapshotRestore(cmd.Context(), a, opts, args[0], args[1])
		},
	}
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&opts.force, "force", "f", false, "also where disks were added, removed or replaced since")
	cmd.Flags().BoolVar(&opts.start, "start", false, "start the VM afterwards, also where it did not run")
	cmd.Flags().BoolVar(&opts.stop, "no-start", false, "do not start the VM afterwards")
	cmd.Flags().BoolVar(&opts.disks, "disks-only", false, "leave the memory out, where the snapshot has it")
	cmd.MarkFlagsMutuallyExclusive("start", "no-start")
	return cmd
}

func vmAndSnapshot(_ *cobra.Command, args []string) error {
	if len(args) != 2 {
		return usageError{fmt.Errorf("want the name of a VM and of a snapshot, got %d arguments", len(args))}
	}
	return nil
}

// restored is vmctl snapshot restore -o json.
type restored struct {
	snapshot.Restored
	Started bool `json:"started"`
}

func runSnapshotRestore(ctx context.Context, a *app, opts snapshotRestoreOptions, name, from string) error {
	return a.onMachine(ctx, "restore", name, func(conn *bus.Conn, l look) error {
		s, err := a.snapshot(name, from)
		if err != nil {
			return err
		}
		request := snapshot.RestoreRequest{Name: from, Check: true, Force: opts.force, DisksOnly: opts.disks}
		restore := func(result *snapshot.Restored) error {
			return a.operate(ctx, conn, name, snapshotUnit, snapshot.Restore, request, result)
		}
		// Before anything is ended or asked.
		var done restored
		if err := restore(&done.Restored); err != nil {
			return err
		}
		ran := l.active() || l.state == starting
		if !opts.yes {
			question := "what the disks of " + name + " hold now is lost"
			if ran {
				question = "it runs and is ended at once, and " + question
			}
			if err := a.ui.confirm(question+": restore snapshot "+from, "--yes"); err != nil {
				return err
			}
		}
		if ran {
			if _, err := a.kill(ctx, conn, waitOptions{}, l); err != nil {
				return err
			}
		}
		request.Check = false
		if err := restore(&done.Restored); err != nil {
			return err
		}
		a.ui.printf("%s: restored to snapshot %s", name, from)
		goesOn := done.Memory && s.State == snapshot.Running
		// One that somebody is stopping stays off.
		if (ran && l.state != stopping || goesOn || opts.start) && !opts.stop {
			if err := a.startAgain(ctx, conn, name); err != nil {
				return err
			}
			done.Started = true
		}
		if a.ui.format == jsonFormat {
			return a.ui.json(done)
		}
		return nil
	})
}

// startAgain starts a machine that was ended for something.
func (a *app) startAgain(ctx context.Context, conn *bus.Conn, name string) error {
	f := &freshener{app: a, conn: conn, host: a.probe()}
	f.freshen(ctx, []string{name})
	what, err := a.start(ctx, conn, f, waitOptions{}, name)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	a.ui.printf("%s: %s", name, what)
	return nil
}

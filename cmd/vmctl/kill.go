package main

import (
	"context"
	"errors"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/bus"
)

func newKillCommand(a *app) *cobra.Command {
	var opts waitOptions
	cmd := &cobra.Command{
		Use:   "kill NAME...",
		Short: "End VMs at once, as if their power were cut",
		Long: `End VMs at once, as if their power were cut: the guest is not asked, and what it
has not written is lost. Unlike after systemctl kill, the VM is not started
again, and its unit is not left as failed.`,
		Example:           "  vmctl kill web",
		GroupID:           groupRun,
		Args:              namesOrAll,
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runKill(cmd.Context(), a, opts, args) },
	}
	opts.addFlags(cmd.Flags(), "kill all that run")
	return cmd
}

func runKill(ctx context.Context, a *app, opts waitOptions, names []string) error {
	names, err := a.targets(ctx, opKill, opts.all, names)
	if err != nil {
		return err
	}
	ctx, cancel := opts.context(ctx)
	defer cancel()
	return a.each(ctx, opKill, names, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		l, err := a.lookAt(ctx, conn, name)
		if err != nil {
			return "", err
		}
		if err := allowed(opKill, l.state); err != nil {
			return "", err
		}
		return a.kill(ctx, conn, opts, l)
	})
}

// kill ends one machine at once and for good. The stop comes first: with it
// pending, systemd does not start again what it sees die.
func (a *app) kill(ctx context.Context, conn *bus.Conn, opts waitOptions, l look) (string, error) {
	unit := config.Unit(l.vm.Name)
	switch l.state {
	case stopped:
		return "did not run", nil
	case failed:
		return "cleared", forget(ctx, conn, l.vm.Name)
	}
	job, err := conn.Begin(ctx, bus.Stop, unit)
	if err != nil {
		return "", err
	}
	err = conn.Kill(ctx, unit, bus.Main, int(syscall.SIGKILL))
	// What waits to be started again, or has ended by now, has no process.
	if err != nil && !errors.Is(err, bus.ErrNoSuchProcess) && !errors.Is(err, bus.ErrNoSuchUnit) {
		return "", err
	}
	if opts.noWait {
		return "killed", nil
	}
	if err := job.Wait(ctx); err != nil {
		if ctx.Err() != nil {
			return "", a.waitError(ctx, l.vm.Name, stopped)
		}
		return "", err
	}
	return "killed", forget(ctx, conn, l.vm.Name)
}

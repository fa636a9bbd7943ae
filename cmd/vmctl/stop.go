package main

import (
	"context"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/bus"
)

// stopOptions are the flags of vmctl stop.
type stopOptions struct {
	waitOptions
	grace    span
	hasGrace bool
}

func newStopCommand(a *app) *cobra.Command {
	var opts stopOptions
	cmd := &cobra.Command{
		Use:   "stop NAME...",
		Short: "Shut VMs down, and wait until they have ended",
		Long: `Shut VMs down: the guest is asked, by its agent or the power button, and ended
by force where it has not shut down after stop_timeout of its definition, or
after --grace. A paused VM is resumed for it. It is not started again.`,
		Example: `  vmctl stop web
  vmctl stop --all --grace 30s`,
		GroupID:           groupRun,
		Args:              namesOrAll,
		ValidArgsFunction: a.completeByRunning(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.hasGrace = cmd.Flags().Changed("grace")
			return runStop(cmd.Context(), a, opts, args)
		},
	}
	opts.addFlags(cmd.Flags(), "stop all that run")
	cmd.Flags().Var(&opts.grace, "grace", "give the guest no longer than this, then kill it, e.g. 90s")
	cmd.MarkFlagsMutuallyExclusive("grace", "no-wait")
	return cmd
}

func runStop(ctx context.Context, a *app, opts stopOptions, names []string) error {
	names, err := a.targets(ctx, opStop, opts.all, names)
	if err != nil {
		return err
	}
	ctx, cancel := opts.context(ctx)
	defer cancel()
	return a.each(ctx, opStop, names, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		l, err := a.lookAt(ctx, conn, name)
		if err != nil {
			return "", err
		}
		if err := allowed(opStop, l.state); err != nil {
			return "", err
		}
		return a.stop(ctx, conn, opts, name)
	})
}

// stop stops one machine, whatever its state.
func (a *app) stop(ctx context.Context, conn *bus.Conn, opts stopOptions, name string) (string, error) {
	if opts.noWait {
		_, err := conn.Begin(ctx, bus.Stop, config.Unit(name))
		return "is stopping", err
	}
	if opts.hasGrace {
		timer := time.AfterFunc(time.Duration(opts.grace), func() {
			// The wait below tells how it ended.
			_ = conn.Kill(ctx, config.Unit(name), bus.Main, int(syscall.SIGKILL))
		})
		defer timer.Stop()
	}
	begun := time.Now()
	if err := conn.Stop(ctx, config.Unit(name)); err != nil {
		if ctx.Err() != nil {
			return "", a.waitError(ctx, name, stopped)
		}
		return "", err
	}
	// What was killed on our behalf, before it was up or after its time was
	// over, has not failed.
	return a.ended(name, begun, "stopped"), forget(ctx, conn, name)
}

// ended is how a machine ended that ended after begun, in a few words.
func (a *app) ended(name string, begun time.Time, word string) string {
	// Where the record is older, nothing ran that could have ended.
	if e := a.readExit(name); e != nil && e.Time.After(begun) {
		return word + " (" + exitText(e) + ")"
	}
	return word
}

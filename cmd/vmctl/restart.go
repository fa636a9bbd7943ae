package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/bus"
)

func newRestartCommand(a *app) *cobra.Command {
	var opts waitOptions
	cmd := &cobra.Command{
		Use:   "restart NAME...",
		Short: "Shut VMs down and start them again",
		Long: `Shut VMs down as vmctl stop does, and start them again with the definition as it
is now. One that does not run is started. (vmctl reset presses the reset button
instead.)`,
		GroupID:           groupRun,
		Args:              namesOrAll,
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runRestart(cmd.Context(), a, opts, args) },
	}
	opts.addFlags(cmd.Flags(), "restart all that run")
	return cmd
}

func runRestart(ctx context.Context, a *app, opts waitOptions, names []string) error {
	return a.eachFresh(ctx, opRestart, opts, names, a.restart)
}

// restart restarts one machine. Where it could not be started again, it is not
// stopped either.
func (a *app) restart(ctx context.Context, conn *bus.Conn, f *freshener, opts waitOptions, name string) (string, error) {
	l, err := a.lookAt(ctx, conn, name)
	if err != nil {
		return "", err
	}
	if err := allowed(opRestart, l.state); err != nil {
		return "", err
	}
	if l.vm.File == "" {
		return "", &notFoundError{Kind: "definition", Name: name, Hint: "the machine runs on without; vmctl stop " + name + " ends it"}
	}
	if err := f.errs[name]; err != nil {
		return "", err
	}
	if l.masked {
		return "", a.maskedError(l)
	}
	unit := config.Unit(name)
	if l.unit.Active == "failed" {
		if err := forget(ctx, conn, name); err != nil {
			return "", err
		}
	}
	if opts.noWait {
		_, err := conn.Begin(ctx, bus.Restart, unit)
		return "is restarting", err
	}
	begun := time.Now()
	if err := conn.Restart(ctx, unit); err != nil {
		return "", a.startError(ctx, conn, name, begun, err)
	}
	if err := a.awaitReady(ctx, conn, l.vm); err != nil {
		return "", err
	}
	return "restarted", nil
}

package main

import (
	"context"
	"errors"
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
		Example: `  vmctl restart web db
  vmctl restart --all --timeout 5min`,
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
	on := a.lookups()
	if p := a.plan(l.vm, on.host); l.active() && p.Plan != nil {
		refused, _ := checkFit(l.vm.Machine, p.Plan, on)
		if missing := append(refused, a.checkHost(l.vm.Machine, p.Plan, on.host)...); len(missing) > 0 {
			return "", withHint(&invalidError{missing}, "it could not start again, and runs on; vmctl stop "+name+" ends it")
		}
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
		return "", restartFailed(err, a.startError(ctx, conn, name, begun, err))
	}
	if err := a.awaitReady(ctx, conn, l.vm); err != nil {
		return "", err
	}
	return "restarted", nil
}

// restartError is a restart that systemd has carried out and that failed: what ran was
// ended for it. After any other error nothing was restarted.
type restartError struct{ error }

func (e *restartError) Unwrap() error { return e.error }

// restartFailed is told, as a restartError where err is of a job that has run.
func restartFailed(err, told error) error {
	if job, ok := errors.AsType[*bus.JobError](err); ok {
		switch job.Result {
		case "failed", "timeout", "dependency": // not where somebody else has stopped it meanwhile
			return &restartError{told}
		}
	}
	return told
}

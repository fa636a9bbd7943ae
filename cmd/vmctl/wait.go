package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/units/bus"
)

// pollInterval is how often a wait looks again. systemd tells of a unit's
// changes by itself, but not of a machine that is paused or resumed.
const pollInterval = 100 * time.Millisecond

// opWait is for messages: no state refuses it.
const opWait transition = "wait for"

func newWaitCommand(a *app) *cobra.Command {
	var want []string
	var timeout span
	cmd := &cobra.Command{
		Use:   "wait NAME...",
		Short: "Wait until VMs are in a state",
		Long: `Wait until VMs are in a state, or one of several. A VM that has failed and is not
started again ends the wait with exit status 1, unless failed is waited for.`,
		Example: `  vmctl wait --for stopped --timeout 5min web
  vmctl start --no-wait web && vmctl wait web`,
		GroupID:           groupRun,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runWait(cmd.Context(), a, want, timeout, args)
		},
	}
	cmd.Flags().StringSliceVar(&want, "for", []string{string(running)}, "the `STATES`, one of which is waited for")
	cmd.Flags().Var(&timeout, "timeout", "wait no longer than this, e.g. 30s")
	completeStates(cmd, "for")
	return cmd
}

func runWait(ctx context.Context, a *app, want []string, timeout span, names []string) error {
	wanted, err := parseStates(want)
	if err != nil {
		return err
	}
	if len(wanted) == 0 {
		return usageError{errors.New("--for: want a state")}
	}
	ctx, cancel := waitOptions{timeout: timeout}.context(ctx)
	defer cancel()
	return a.each(ctx, opWait, names, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		return a.waitFor(ctx, conn, name, wanted)
	})
}

// waitFor waits until a machine is in one of the wanted states.
func (a *app) waitFor(ctx context.Context, conn *bus.Conn, name string, wanted []state) (string, error) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for previous := state(""); ; {
		l, err := a.lookAt(ctx, conn, name)
		switch {
		case ctx.Err() != nil:
			return "", a.waitError(ctx, name, wanted[0])
		case exitStatus(err) == exitNotFound && previous != "" && slices.Contains(wanted, stopped):
			return "stopped, and removed", nil // lifecycle.remove_on_stop
		case err != nil:
			return "", err
		case slices.Contains(wanted, l.state):
			return string(l.state), nil
		// systemd shows a failure for a moment before it starts a unit again.
		case l.state == failed && previous == failed:
			return "", withHint(errors.New(failureText(l)), logsHint(a, name))
		}
		previous = l.state
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// failureText is why a machine failed.
func failureText(l look) string {
	if l.exit == nil {
		return "it has failed"
	}
	return "it has failed: " + exitText(l.exit)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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
		Short: "Wait until VMs are in a state, or can be reached",
		Long: `Wait until VMs are in a state, or one of several: agent, address and ssh wait until
a guest that runs has an agent that answers, an address, or an ssh server that
does, and ready until it is as lifecycle.ready in its definition asks. A VM that has failed and is not started again ends the wait with exit status
1, unless failed is waited for.`,
		Example: `  vmctl wait --for stopped --timeout 5min web
  vmctl start --no-wait web && vmctl wait --for ssh web`,
		GroupID:           groupRun,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runWait(cmd.Context(), a, want, timeout, args)
		},
	}
	cmd.Flags().StringSliceVar(&want, "for", []string{string(running)}, "the `STATES`, one of which is waited for")
	cmd.Flags().Var(&timeout, "timeout", "wait no longer than this, e.g. 30s")
	// Only an unknown flag fails here.
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(append(stateNames(), reachNames...), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runWait(ctx context.Context, a *app, want []string, timeout span, names []string) error {
	wanted, err := parseWanted(want)
	if err != nil {
		return err
	}
	ctx, cancel := waitOptions{timeout: timeout}.context(ctx)
	defer cancel()
	ctx, stop := untilUnread(ctx, a.ui.out)
	defer stop()
	return a.each(ctx, opWait, names, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		return a.waitFor(ctx, conn, name, wanted)
	})
}

// The ways in which a guest that runs is reached, that can be waited for.
const (
	reachAgent   state = "agent"
	reachAddress state = "address"
	reachSSH     state = "ssh"
	// reachReady is whichever the definition asks for (lifecycle.ready).
	reachReady state = "ready"
)

// reachNames are those.
var reachNames = []string{string(reachAgent), string(reachAddress), string(reachSSH), string(reachReady)}

// parseWanted reads what is waited for: states, and ways to be reached.
func parseWanted(names []string) ([]state, error) {
	if len(names) == 0 {
		return nil, usageError{errors.New("--for: want a state")}
	}
	all := append(stateNames(), reachNames...)
	var wanted []state
	for _, name := range names {
		if !slices.Contains(all, name) {
			return nil, usageError{fmt.Errorf("--for: want %s, got %q", strings.Join(all, ", "), name)}
		}
		wanted = append(wanted, state(name))
	}
	return wanted, nil
}

// reachedBy is the first of the ways in wanted by which a guest is reached, ""
// for none.
func (a *app) reachedBy(ctx context.Context, l look, wanted []state) state {
	if l.state != running {
		return ""
	}
	for _, way := range wanted {
		switch way {
		case reachReady:
			if a.isReady(ctx, l) {
				return way
			}
		case reachAgent:
			if a.agentAnswers(ctx, l) {
				return way
			}
		case reachAddress:
			for _, n := range a.see([]look{l}).nics(l, a.askAgent(ctx, l, false).interfaces) {
				if len(n.Addresses) > 0 {
					return way
				}
			}
		case reachSSH:
			if conn, _, _, err := a.dialSSH(ctx, l); err == nil {
				conn.Close()
				return way
			}
		}
	}
	return ""
}

// isReady says whether the guest of a machine that runs is ready: also one that
// was not in the time that it had.
func (a *app) isReady(ctx context.Context, l look) bool {
	if l.unready == "" {
		return true
	}
	return l.record.Machine.Lifecycle.Ready == "agent" && a.agentAnswers(ctx, l)
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
		if way := a.reachedBy(ctx, l, wanted); way != "" {
			return string(way), nil
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

package main

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/units/bus"
)

func newPauseCommand(a *app) *cobra.Command {
	return newControlCommand(a, opPause, "pause all that run", &cobra.Command{
		Use:   "pause NAME...",
		Short: "Stop the CPUs of VMs; memory and devices stay",
		Example: `  vmctl pause web
  vmctl pause --all`,
	})
}

func newResumeCommand(a *app) *cobra.Command {
	return newControlCommand(a, opResume, "resume all that are paused", &cobra.Command{
		Use:   "resume NAME...",
		Short: "Let paused VMs go on",
		Example: `  vmctl resume web
  vmctl resume --all`,
	})
}

func newResetCommand(a *app) *cobra.Command {
	return newControlCommand(a, opReset, "reset all that run", &cobra.Command{
		Use:   "reset NAME...",
		Short: "Press the reset button of VMs",
		Long: `Press the reset button of VMs: the guest is not asked, and begins anew in the same
hypervisor. Of a VM that has failed, the mark of the failure is cleared. What
vmctl save has kept is discarded: the VM is stopped then.`,
		Example: "  vmctl reset web",
	})
}

// newControlCommand fills in what the commands share that speak to the
// hypervisor and not to systemd.
func newControlCommand(a *app, op transition, all string, cmd *cobra.Command) *cobra.Command {
	var opts waitOptions
	cmd.GroupID = groupRun
	cmd.Args = namesOrAll
	cmd.ValidArgsFunction = a.completeNames
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return runControl(cmd.Context(), a, op, opts, args)
	}
	cmd.Flags().Var(&opts.timeout, "timeout", "wait no longer than this for the hypervisor, e.g. 10s")
	cmd.Flags().BoolVarP(&opts.all, "all", "a", false, all)
	return cmd
}

func runControl(ctx context.Context, a *app, op transition, opts waitOptions, names []string) error {
	names, err := a.targets(ctx, op, opts.all, names)
	if err != nil {
		return err
	}
	ctx, cancel := opts.context(ctx)
	defer cancel()
	return a.each(ctx, op, names, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		l, err := a.lookAt(ctx, conn, name)
		if err != nil {
			return "", err
		}
		if err := allowed(op, l.state); err != nil {
			return "", err
		}
		switch op {
		case opPause:
			return "paused", a.do(ctx, l, hypervisor.Control.Pause)
		case opResume:
			return a.resume(ctx, l)
		}
		return a.reset(ctx, conn, l)
	})
}

// resume lets a paused machine go on.
func (a *app) resume(ctx context.Context, l look) (string, error) {
	if err := a.do(ctx, l, hypervisor.Control.Resume); err != nil {
		return "", err
	}
	if a.setClock(ctx, l) {
		return "resumed, and its clock set", nil
	}
	return "resumed", nil
}

// reset presses the reset button of what runs, and clears the failure of what
// does not.
func (a *app) reset(ctx context.Context, conn *bus.Conn, l look) (string, error) {
	switch l.state {
	case stopped:
		return "does not run", nil
	case saved:
		return a.discardSaved(ctx, conn, l)
	case failed:
		return "cleared", forget(ctx, conn, l.vm.Name)
	}
	return "reset", a.do(ctx, l, func(c hypervisor.Control, ctx context.Context) error {
		if err := c.Reset(ctx); err != nil || l.status != hypervisor.StatusPanicked {
			return err
		}
		// It is the panic that has stopped the CPUs, and that is over.
		return c.Resume(ctx)
	})
}

// do has the hypervisor of a machine do something.
func (a *app) do(ctx context.Context, l look, what func(hypervisor.Control, context.Context) error) error {
	c, err := a.control(ctx, l)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return &transitionError{From: l.state, Reason: "the hypervisor does not answer"}
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return what(c, ctx)
}

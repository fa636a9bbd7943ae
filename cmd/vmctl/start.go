package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/units/bus"
)

func newStartCommand(a *app) *cobra.Command {
	var opts waitOptions
	cmd := &cobra.Command{
		Use:   "start NAME...",
		Short: "Start VMs, and wait until they run",
		Long: `Start VMs, and wait until the hypervisor answers (or what "ready" in the
definition's [lifecycle] asks for). A paused VM is resumed. Where the definition
has changed since systemd read it, systemd is reloaded first.`,
		Example: `  vmctl start web db
  vmctl start --all --timeout 2min`,
		GroupID:           groupRun,
		Args:              namesOrAll,
		ValidArgsFunction: a.completeByRunning(false),
		RunE:              func(cmd *cobra.Command, args []string) error { return runStart(cmd.Context(), a, opts, args) },
	}
	opts.addFlags(cmd.Flags(), "start all that do not run")
	return cmd
}

func runStart(ctx context.Context, a *app, opts waitOptions, names []string) error {
	return a.eachFresh(ctx, opStart, opts, names, a.start)
}

// starter starts one machine, which may have been started before.
type starter func(ctx context.Context, conn *bus.Conn, f *freshener, opts waitOptions, name string) (string, error)

// eachFresh has systemd know the definitions as they are now, and then calls
// do for each machine.
func (a *app) eachFresh(ctx context.Context, op transition, opts waitOptions, names []string, do starter) error {
	names, err := a.targets(ctx, op, opts.all, names)
	if err != nil {
		return err
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := opts.context(ctx)
	defer cancel()
	f := &freshener{app: a, conn: conn, host: a.probe()}
	f.freshen(ctx, names)
	return a.eachOn(ctx, conn, op, names, a.noted(op, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		return do(ctx, conn, f, opts, name)
	}))
}

// start starts one machine.
func (a *app) start(ctx context.Context, conn *bus.Conn, f *freshener, opts waitOptions, name string) (string, error) {
	l, err := a.lookAt(ctx, conn, name)
	if err != nil {
		return "", err
	}
	if err := allowed(opStart, l.state); err != nil {
		return "", err
	}
	if l.state == paused {
		return a.resume(ctx, l)
	}
	if err := f.errs[name]; err != nil {
		return "", err
	}
	if l.masked {
		return "", a.maskedError(l)
	}
	if l.unit.Active == "failed" {
		// It may have reached the limit of starts; a person asks now.
		if err := forget(ctx, conn, name); err != nil {
			return "", err
		}
	}
	begun := time.Now()
	if opts.noWait {
		_, err := conn.Begin(ctx, bus.Start, config.Unit(name))
		return "is starting", err
	}
	if err := conn.Start(ctx, config.Unit(name)); err != nil {
		return "", a.startError(ctx, conn, name, begun, err)
	}
	if err := a.awaitReady(ctx, conn, l.vm); err != nil {
		return "", err
	}
	return "started", nil
}

// readyTries is how often the unit that waits for a guest may be ended by a signal.
const readyTries = 5

// awaitReady waits until the guest of a machine that was started is ready, where
// its definition asks for that.
func (a *app) awaitReady(ctx context.Context, conn *bus.Conn, vm config.VM) error {
	if vm.Machine == nil || vm.Machine.Lifecycle.Ready == "started" {
		return nil
	}
	var err error
	for range readyTries {
		if err = conn.Start(ctx, config.ReadyUnit(vm.Name)); err == nil {
			break // which a stop meanwhile also brings about
		}
		if ctx.Err() != nil {
			return a.waitError(ctx, vm.Name, reachReady)
		}
		// Ended by a signal, it is started again.
		p, perr := conn.Properties(ctx, config.ReadyUnit(vm.Name))
		if perr != nil || p.ActiveState != "activating" {
			break
		}
	}
	l, lookErr := a.lookAt(ctx, conn, vm.Name)
	switch {
	case lookErr != nil:
		return lookErr
	case l.state != running && l.state != paused:
		return &transitionError{From: l.state, Reason: "it ended before its guest was ready"}
	case l.unready != "":
		return withHint(&statusedError{fmt.Errorf("it runs, but its guest is not ready: %s", l.unready), exitTimeout},
			"vmctl wait --for ready "+vm.Name+" waits on, vmctl console "+vm.Name+" shows what it does")
	}
	return err
}

// maskedError is why a machine whose unit is masked cannot be started.
func (a *app) maskedError(l look) error {
	command := "systemctl unmask "
	if a.user {
		command = "systemctl --user unmask "
	}
	return withHint(&transitionError{From: l.state, Reason: "its unit is masked"},
		command+strings.TrimSuffix(config.Unit(l.vm.Name), ".service")+" lets it start")
}

// startError adds to a failed job what the hypervisor said last, and where to
// read on.
func (a *app) startError(ctx context.Context, conn *bus.Conn, name string, begun time.Time, err error) error {
	if ctx.Err() != nil {
		return a.waitError(ctx, name, running)
	}
	job, ok := errors.AsType[*bus.JobError](err)
	if !ok {
		return err
	}
	if job.Result == "dependency" {
		if err := a.dependencyError(ctx, conn, name); err != nil {
			return err
		}
	}
	text := err.Error()
	// An older record is of an earlier end.
	if e := a.readExit(name); e != nil && e.Time.After(begun) {
		text = exitText(e)
		for _, line := range furtherLines(e) {
			text += "\n  " + line
		}
	} else if p, err := conn.Properties(ctx, config.Unit(name)); err == nil && p.StatusText != "" {
		// On a full disk, for one, there is no record.
		text += "; its last status: " + printable(p.StatusText)
	}
	hint := logsHint(a, name)
	if l, err := a.lookAt(ctx, conn, name); err == nil && l.waiting() {
		hint += "\nsystemd starts it again; vmctl stop " + name + " ends that"
	}
	if a.networksInvalid(name) {
		return withHint(&statusedError{errors.New(text), exitInvalid}, hint)
	}
	return withHint(errors.New(text), hint)
}

// networksInvalid says whether the definition of a network that a machine is plugged
// into is.
func (a *app) networksInvalid(name string) bool {
	m, err := a.load(name)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(m.NICs, func(n config.NIC) bool {
		if n.Network == "" {
			return false
		}
		file, err := a.findNetwork(n.Network)
		return err == nil && len(file.Problems) > 0
	})
}

// dependencyError is why a network that a machine is plugged into did not come
// up, or why a machine that it requires is not there for it; nil where all did.
func (a *app) dependencyError(ctx context.Context, conn *bus.Conn, name string) error {
	m, err := a.load(name)
	if err != nil {
		return nil // it has changed meanwhile
	}
	for _, n := range m.NICs {
		if n.Network == "" {
			continue
		}
		if p, err := conn.Properties(ctx, config.NetworkUnit(n.Network)); err == nil && p.ActiveState != "active" {
			err := networkJobError(ctx, conn, n.Network, &bus.JobError{Unit: config.NetworkUnit(n.Network), Result: p.Result})
			return withHint(fmt.Errorf("the network %s did not come up: %w", n.Network, err), hintOf(err))
		}
	}
	for _, required := range m.Requires {
		l, err := a.lookAt(ctx, conn, required)
		switch {
		case err != nil:
			return fmt.Errorf("%s, which it requires: %w", required, err)
		case l.state == running && l.unready != "":
			return withHint(fmt.Errorf("%s, which it requires, is not ready: %s", required, l.unready), "vmctl console "+required+" shows what it does")
		case l.state != running && l.state != paused:
			return withHint(fmt.Errorf("%s, which it requires, is %s", required, l.state), logsHint(a, required))
		}
	}
	return nil
}

// furtherLines are the hypervisor's last lines, but for one that the detail of
// the exit has already told.
func furtherLines(e *hypervisor.Exit) []string {
	var lines []string
	for _, line := range e.Lines {
		if line != e.Detail {
			lines = append(lines, printable(line))
		}
	}
	return lines
}

// forget clears the mark of a failure, and the count towards the limit of
// starts.
func forget(ctx context.Context, conn *bus.Conn, name string) error {
	err := conn.ResetFailed(ctx, config.Unit(name))
	if errors.Is(err, bus.ErrNoSuchUnit) {
		// systemd keeps no unit in mind that has not failed.
		return nil
	}
	return err
}

// logsHint is the command that shows a machine's journal.
func logsHint(a *app, name string) string {
	if a.user {
		return "journalctl --user-unit " + strings.TrimSuffix(config.Unit(name), ".service") + " has more"
	}
	return "journalctl -u " + strings.TrimSuffix(config.Unit(name), ".service") + " has more"
}

// waitError is the error of a wait that ended too early: by its timeout, or
// because vmctl was interrupted.
func (a *app) waitError(ctx context.Context, name string, want state) error {
	hint := fmt.Sprintf("vmctl wait --for %s %s waits on", want, name)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return withHint(&timeoutError{want}, hint)
	}
	return withHint(fmt.Errorf("interrupted, not yet %s", want), hint)
}

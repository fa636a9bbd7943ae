package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/units/bus"
)

// operateStopTime is how long an operation has to take back what it did.
const operateStopTime = time.Minute

// operate has something done to a machine's disks or state by a unit of its own,
// which systemd shows, limits and stops, and after which systemd has mended what
// was cut off. unitKind is that of [config.OperationUnit], what and request are
// for vmctl-unit. It returns at the end of it; where ctx ends before, the unit is
// stopped. The journal keeps who had it done.
func (a *app) operate(ctx context.Context, conn *bus.Conn, name, unitKind, what string, request, result any) error {
	begun := time.Now()
	err := a.runOperation(ctx, conn, name, unitKind, what, request, result)
	if what != "save" { // of which the command keeps more
		device := ""
		if of, has := request.(interface{ Device() string }); has {
			device = of.Device()
		}
		a.note(what, device, name, begun, err)
	}
	return err
}

func (a *app) runOperation(ctx context.Context, conn *bus.Conn, name, unitKind, what string, request, result any) error {
	argument, err := json.Marshal(request)
	if err != nil {
		return err
	}
	report, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	program := []string{a.paths.Libexec + "/vmctl-unit"}
	if a.user {
		program = append(program, "--user")
	}
	command := func(args ...string) []string { return append(program[:len(program):len(program)], args...) }
	unit := config.OperationUnit(unitKind, name)
	err = conn.RunTransient(ctx, bus.Transient{
		Unit:        unit,
		Description: fmt.Sprintf("Virtual machine %s: %s", name, what),
		Argv:        command("operate", name, what, string(argument)),
		StopPost:    command("mend", name),
		Stdout:      stdout,
		TimeoutStop: uint64(operateStopTime.Microseconds()),
	})
	stdout.Close()
	if errors.Is(err, bus.ErrUnitExists) {
		return &stateError{fmt.Errorf("another %s of %s is under way: systemctl status %s", unitKind, name, unit)}
	}
	ended := context.AfterFunc(ctx, func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), operateStopTime)
		defer cancel()
		if err := conn.Stop(stop, unit); err != nil {
			a.ui.warnf("stop %s: %v", unit, err)
		}
	})
	defer ended()
	defer a.ui.clearLine()
	notStarted := err
	err = operation.Follow(report, a.operateProgress(name), func(text string) { a.ui.warnf("%s: %s", name, text) }, result)
	switch {
	case err != nil && ctx.Err() != nil:
		return interrupted(ctx.Err(), err, unit)
	case errors.Is(err, operation.ErrCutOff) && notStarted != nil:
		// Else it was: one that ends at once systemd 252 calls not started.
		return notStarted
	case errors.Is(err, operation.ErrCutOff):
		return withHint(err, "journalctl -u "+unit+" has more")
	}
	return operationError(err)
}

// interrupted is the error of an operation that was ended before its end: why,
// and with what its report ended.
func interrupted(why, err error, unit string) error {
	own, ok := errors.AsType[*operation.Error](err)
	switch {
	case !ok:
		return withHint(fmt.Errorf("interrupted: %w", why), "systemctl status "+unit+" tells how it goes on; the next start finishes it")
	case strings.HasSuffix(own.Text, context.Canceled.Error()):
		return fmt.Errorf("interrupted, and taken back: %w", why)
	}
	return operationError(err) // of another reason, or not all was taken back
}

// operateProgress shows how far an operation is, where there is a terminal.
func (a *app) operateProgress(name string) func(operation.Progress) {
	if a.ui.format != textFormat || !isTerminal(a.ui.err) {
		return func(operation.Progress) {}
	}
	return func(p operation.Progress) {
		line := name + ": " + p.Phase
		if p.Total > 0 {
			line += fmt.Sprintf(" %d %% of %s", p.Done*100/p.Total, config.Size(p.Total))
		}
		a.ui.drawLine(line)
	}
}

// operationError gives an operation's error its exit status and hint.
func operationError(err error) error {
	e, ok := errors.AsType[*operation.Error](err)
	if !ok {
		return err
	}
	if e.Hint != "" {
		return &statusedError{withHint(err, e.Hint), int(e.Status)}
	}
	return &statusedError{err, int(e.Status)}
}

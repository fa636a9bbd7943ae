package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"syscall"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/jsonline"
)

// commandTimeout bounds every command, whatever its context says. A QEMU whose
// main loop hangs (a disk that does not answer) takes commands and never
// answers them.
const commandTimeout = 30 * time.Second

// turnPoll is how often somebody who was sent away comes back.
const turnPoll = 20 * time.Millisecond

// control is a running QEMU.
type control struct {
	session *session
	seen    []message // events that came while an answer was waited for, the last maxSeen

	stall time.Duration // how long the state may stand still; 0: stateStall
}

// maxSeen is how many events are kept for [control.wait].
const maxSeen = 256

var (
	_ hypervisor.Throttler      = (*control)(nil)
	_ hypervisor.KeySender      = (*control)(nil)
	_ hypervisor.DisplayControl = (*control)(nil)
	_ hypervisor.Commander      = (*control)(nil)
	_ hypervisor.Converser      = QEMU{}
	_ hypervisor.Keyboard       = QEMU{}
)

// Control implements [hypervisor.Hypervisor].
func (QEMU) Control(ctx context.Context, socket string) (hypervisor.Control, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	conn, err := connect(ctx, socket)
	if err != nil {
		return nil, err
	}
	c := new(control)
	c.session, err = newSession(ctx, conn, c.note)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", socket, err), conn.Close())
	}
	return c, nil
}

// ControlType implements [hypervisor.Hypervisor].
func (QEMU) ControlType() reflect.Type { return reflect.TypeFor[*control]() }

// connect waits for its turn. QEMU lets two wait at a socket that serves one at a
// time; the kernel sends others away.
func connect(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			return conn, nil
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, fmt.Errorf("connecting to QEMU: %w", err)
		}
		select {
		case <-time.After(turnPoll):
		case <-ctx.Done():
			return nil, fmt.Errorf("connecting to QEMU: %w", ctx.Err())
		}
	}
}

func (c *control) note(event message) {
	if c.seen = append(c.seen, event); len(c.seen) > maxSeen {
		c.seen = c.seen[1:]
	}
}

func (c *control) run(ctx context.Context, command string, arguments, result any) error {
	return c.runFor(ctx, commandTimeout, command, arguments, result)
}

// runFor is run for a command that may take longer.
func (c *control) runFor(ctx context.Context, timeout time.Duration, command string, arguments, result any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.session.execute(ctx, command, arguments, result, c.note)
}

// runWith is run for a command that takes an open file with it (add-fd, getfd).
func (c *control) runWith(ctx context.Context, file *os.File, command string, arguments, result any) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return c.session.executeWith(ctx, file, command, arguments, result, c.note)
}

// wait returns the next event that match says yes to, of those that came since
// the last wait. It ends with its context alone.
func (c *control) wait(ctx context.Context, match func(message) bool) (message, error) {
	for len(c.seen) > 0 {
		m := c.seen[0]
		c.seen = c.seen[1:]
		if match(m) {
			return m, nil
		}
	}
	defer jsonline.Until(ctx, c.session.conn)()
	for {
		m, err := c.session.read()
		if err != nil {
			return m, c.session.fail(ctx, "waiting for QEMU", err)
		}
		if m.Event != "" && match(m) {
			return m, nil
		}
	}
}

// statuses are the run states of QEMU (RunState in qapi/run-state.json) that
// are not a kind of pause.
var statuses = map[string]hypervisor.Status{
	"running":        hypervisor.StatusRunning,
	"guest-panicked": hypervisor.StatusPanicked,
	"shutdown":       hypervisor.StatusStopping,
	"inmigrate":      hypervisor.StatusLoading,
}

// Status is "paused" for every state in which the CPUs do not run and could be
// made to: after an I/O error, a watchdog that fired, a debugger.
func (c *control) Status(ctx context.Context) (hypervisor.Status, error) {
	var answer struct{ Status string }
	if err := c.run(ctx, "query-status", nil, &answer); err != nil {
		return "", err
	}
	if s, ok := statuses[answer.Status]; ok {
		return s, nil
	}
	return hypervisor.StatusPaused, nil
}

func (c *control) PowerButton(ctx context.Context) error {
	return c.run(ctx, "system_powerdown", nil, nil)
}

func (c *control) Pause(ctx context.Context) error  { return c.run(ctx, "stop", nil, nil) }
func (c *control) Resume(ctx context.Context) error { return c.run(ctx, "cont", nil, nil) }
func (c *control) Reset(ctx context.Context) error  { return c.run(ctx, "system_reset", nil, nil) }

// Quit may lose the race for QEMU's answer to its end, which is as good.
func (c *control) Quit(ctx context.Context) error {
	err := c.run(ctx, "quit", nil, nil)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

func (c *control) Close() error { return c.session.conn.Close() }

package guestagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"
)

const (
	// turn is for how long a Channel holds the connection, between two calls,
	// before it lets others in.
	turn = 300 * time.Millisecond
	// frozenTime is how long the guest's file systems may be frozen before a
	// call that does not go then fails.
	frozenTime  = 2 * time.Minute
	frozenPause = 200 * time.Millisecond
)

// ErrRestarted is an agent that does not know any more what it was asked to do:
// it, or the guest, has been started again since.
var ErrRestarted = errors.New("the guest agent has been started again meanwhile")

// SilentError is an agent that did not answer in time. It is a
// context.DeadlineExceeded.
type SilentError struct {
	Command string // "" where it never answered at all
	After   time.Duration
}

func (e *SilentError) Error() string {
	if e.Command == "" {
		return fmt.Sprintf("the guest agent does not answer: waited %s", e.After)
	}
	return fmt.Sprintf("the guest agent does not answer any more: waited %s for %s", e.After, e.Command)
}

func (e *SilentError) Unwrap() error { return context.DeadlineExceeded }

// Channel is the way to an agent for work that takes more than a moment. The
// hypervisor serves one client of the agent at a time, and lets the others wait in
// the order in which they came. So a Channel holds a connection for one turn and
// then makes another, behind those who wait: who wants to freeze the guest or to
// shut it down gets in, whatever else is being done, and also while a reader or
// writer of the caller's blocks.
//
// It is used from one goroutine at a time.
type Channel struct {
	connect func(context.Context) (*Agent, error)
	agent   *Agent // nil between two turns
	since   time.Time
	info    *Info
	// endTime is how long the guest may take to end what is not waited for any
	// more, and to clear up.
	endTime time.Duration
	// tempDirs are where the guest keeps the output of commands, first first: on a
	// disk rather than in memory.
	tempDirs []string
}

// NewChannel returns a channel of which connect makes the connections.
func NewChannel(connect func(context.Context) (*Agent, error)) *Channel {
	return &Channel{connect: connect, endTime: 10 * time.Second, tempDirs: []string{"/var/tmp", "/tmp", "/run"}}
}

// Release lets go of the connection, until the next call.
func (c *Channel) Release() error {
	if c.agent == nil {
		return nil
	}
	err := c.agent.Close()
	c.agent = nil
	return err
}

// call runs one command, in a turn. While the guest's file systems are frozen,
// most commands are refused: it waits for the end of that.
func (c *Channel) call(ctx context.Context, command string, arguments, result any, limit int) error {
	for begin := time.Now(); ; {
		err := c.callOnce(ctx, command, arguments, result, limit)
		if !frozen(err) || time.Since(begin) > frozenTime {
			return err
		}
		if err := c.pause(ctx, frozenPause); err != nil {
			return err
		}
	}
}

func (c *Channel) callOnce(ctx context.Context, command string, arguments, result any, limit int) error {
	if c.agent != nil && time.Since(c.since) > turn {
		// Nothing was left to be said on it.
		_ = c.Release()
	}
	begin := time.Now()
	bounded, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if c.agent == nil {
		agent, err := c.connect(bounded)
		if err != nil {
			return silent(ctx, err, "", begin)
		}
		c.agent, c.since = agent, time.Now()
	}
	err := c.agent.callLong(bounded, command, arguments, result, limit)
	if _, refused := errors.AsType[*Error](err); err != nil && !refused {
		// Its answer may come yet, or half of it has.
		_ = c.Release()
	}
	return silent(ctx, err, command, begin)
}

// pause lets others in for d.
func (c *Channel) pause(ctx context.Context, d time.Duration) error {
	if err := c.Release(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// LocalError is one of a reader or writer of the caller's, not of the guest.
type LocalError struct{ Err error }

func (e *LocalError) Error() string { return e.Err.Error() }

func (e *LocalError) Unwrap() error { return e.Err }

// local reads or writes on this side, which may block: it lets others in when that
// takes longer than a turn, and comes back when ctx ends. Then do may go on, so
// what it works with is its own by then.
func (c *Channel) local(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	late := time.After(turn)
	for {
		select {
		case err := <-done:
			if err != nil {
				return &LocalError{err}
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			// Nothing was left to be said on it.
			_ = c.Release()
		}
	}
}

// read fills p from a reader of the caller's; end says that there is no more.
func (c *Channel) read(ctx context.Context, r io.Reader, p []byte) (n int, end bool, err error) {
	var filled int
	var last bool
	if err := c.local(ctx, func() (err error) {
		filled, err = io.ReadFull(r, p)
		if last = err == io.EOF || err == io.ErrUnexpectedEOF; last {
			return nil
		}
		return err
	}); err != nil {
		return 0, false, err
	}
	return filled, last, nil
}

// write writes p to a writer of the caller's.
func (c *Channel) write(ctx context.Context, w io.Writer, p []byte) error {
	return c.local(ctx, func() error {
		_, err := w.Write(p)
		return err
	})
}

// silent is err in better words, where it means that the agent took longer than
// it may and ctx has not ended.
func silent(ctx context.Context, err error, command string, begin time.Time) error {
	if _, told := errors.AsType[*SilentError](err); told || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &SilentError{command, time.Since(begin).Round(time.Second)}
}

// frozen says whether err is the agent's refusal to do what could write to a
// file system that is frozen (qapi/qmp-dispatch.c and qga/main.c of QEMU).
func frozen(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && strings.Contains(e.Desc, "frozen state")
}

// Gone says whether err means that the connection has ended: the machine has.
func Gone(err error) bool {
	if _, local := errors.AsType[*LocalError](err); local {
		return false
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Info is what an agent says of itself.
type Info struct {
	Version  string    `json:"version"`
	Commands []Support `json:"supported_commands"`
}

// Support is a command that an agent knows.
type Support struct {
	Name    string `json:"name"`
	Enabled bool   `json:"enabled"`
}

// Info asks once, and keeps the answer.
func (c *Channel) Info(ctx context.Context) (Info, error) {
	if c.info == nil {
		var info Info
		if err := c.call(ctx, "guest-info", nil, &info, maxAnswer); err != nil {
			return Info{}, err
		}
		c.info = &info
	}
	return *c.info, nil
}

// DisabledError is a command that the agent's configuration, or its version, does
// not allow.
type DisabledError struct {
	Command string
	Known   bool
}

func (e *DisabledError) Error() string {
	if e.Known {
		return "the guest agent's configuration does not allow " + e.Command
	}
	return "the guest agent does not know " + e.Command
}

// allowed says whether the agent carries out commands: a [*DisabledError] names
// the first that it does not.
func (c *Channel) allowed(ctx context.Context, commands ...string) error {
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	enabled, known := map[string]bool{}, map[string]bool{}
	for _, s := range info.Commands {
		enabled[s.Name], known[s.Name] = s.Enabled, true
	}
	for _, command := range commands {
		if !enabled[command] {
			return &DisabledError{command, known[command]}
		}
	}
	return nil
}

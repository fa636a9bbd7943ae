// Package guestagent speaks to qemu-guest-agent through the Unix socket that
// the hypervisor serves.
//
// The agent is part of the guest, so nothing that it sends is trusted: every
// call ends in time, whatever arrives, and what is kept of an answer is
// bounded. The package knows no hypervisor and no machine.
package guestagent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/vmctl/vmctl/hypervisor/jsonline"
)

const (
	// maxAnswer is how long one answer may be, in bytes.
	maxAnswer = 1 << 20
	// maxStale is how much may lie in the channel before the first answer:
	// answers to those who went away before they came.
	maxStale = 4 << 20
	// callTimeout bounds every call, whatever its context says.
	callTimeout = 60 * time.Second
	// refusal is how long the agent has to refuse to shut down. It answers
	// nothing when it does shut down.
	refusal = 2 * time.Second
)

// delimiter is a byte that is in no JSON text: it makes the agent drop half a
// command, and marks the beginning of its answer.
const delimiter = 0xff

// Agent is a connection to an agent that has answered. It is used from one
// goroutine at a time.
type Agent struct {
	conn net.Conn
	r    *bufio.Reader
}

// Error is the agent's refusal of a command.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *Error) Error() string { return "guest agent: " + e.Command + ": " + e.Desc }

// Dial connects to the channel at socket and waits until the agent answers.
// Where there is no agent in the guest, that takes until ctx ends, at most a
// minute; the error is then [context.DeadlineExceeded].
func Dial(ctx context.Context, socket string) (*Agent, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connecting to the guest agent: %w", err)
	}
	a := &Agent{conn, bufio.NewReader(conn)}
	if err := a.sync(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("waiting for the guest agent: %w", err), conn.Close())
	}
	return a, nil
}

// Close ends the connection.
func (a *Agent) Close() error { return a.conn.Close() }

// Ping returns nil when the agent answers.
func (a *Agent) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return a.call(ctx, "guest-ping", nil, nil)
}

// Shutdown has the guest shut itself down. It returns nil once the agent has
// taken the command; the guest then needs its time.
func (a *Agent) Shutdown(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, refusal)
	defer cancel()
	err := a.call(wait, "guest-shutdown", map[string]string{"mode": "powerdown"}, nil)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, context.DeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

// sync finds the beginning of the agent's answers (guest-sync-delimited in
// QEMU's qga/qapi-schema.json).
func (a *Agent) sync(ctx context.Context) error {
	defer jsonline.Until(ctx, a.conn)()
	id := rand.Int64N(1 << 53)
	if err := a.send("guest-sync-delimited", map[string]int64{"id": id}, delimiter); err != nil {
		return cause(ctx, err)
	}
	for stale := 0; stale < maxStale; {
		dropped, err := a.r.ReadSlice(delimiter)
		stale += len(dropped)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return cause(ctx, err)
		}
		line, err := jsonline.Read(a.r, maxAnswer)
		stale += len(line)
		if err != nil {
			return cause(ctx, err)
		}
		var answer struct{ Return *int64 }
		if json.Unmarshal(line, &answer) == nil && answer.Return != nil && *answer.Return == id {
			return nil
		}
	}
	return fmt.Errorf("%d bytes without an answer", maxStale)
}

// call runs one command and stores what it returns, unless result is nil.
func (a *Agent) call(ctx context.Context, command string, arguments, result any) error {
	return a.callLong(ctx, command, arguments, result, maxAnswer)
}

// callLong is call for an answer of at most limit bytes.
func (a *Agent) callLong(ctx context.Context, command string, arguments, result any, limit int) error {
	defer jsonline.Until(ctx, a.conn)()
	if err := a.send(command, arguments); err != nil {
		return fmt.Errorf("guest agent: %s: %w", command, cause(ctx, err))
	}
	line, err := jsonline.Read(a.r, limit)
	if err != nil {
		return fmt.Errorf("guest agent: %s: %w", command, cause(ctx, err))
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *Error          `json:"error"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("guest agent: %s: want an answer, got %.60q: %w", command, line, err)
	}
	switch {
	case answer.Error != nil:
		answer.Error.Command = command
		return answer.Error
	case answer.Return == nil:
		return fmt.Errorf("guest agent: %s: want an answer, got %.60q", command, line)
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(answer.Return, result); err != nil {
		return fmt.Errorf("guest agent: %s: %w", command, err)
	}
	return nil
}

// send writes one command, after the bytes of prefix.
func (a *Agent) send(command string, arguments any, prefix ...byte) error {
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	_, err = a.conn.Write(append(append(prefix, request...), '\n'))
	return err
}

// cause is the context's error where that is why err happened.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

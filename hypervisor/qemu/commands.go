package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/vmctl/vmctl/hypervisor/jsonline"
)

const (
	// humanTimeout is for commands of people, which may be to write all of the
	// memory to a disk.
	humanTimeout = time.Hour
	// greetingTimeout is how long somebody else may have the socket.
	greetingTimeout = 3 * time.Second
	// maxAnswer is how long a line may be that is passed on, in bytes.
	maxAnswer = 64 << 20
)

// Human implements [hypervisor.Commander], with the notation of QEMU's HMP.
func (c *control) Human(ctx context.Context, command string) (answer string, err error) {
	return answer, c.runFor(ctx, humanTimeout, "human-monitor-command", map[string]string{"command-line": command}, &answer)
}

// Native implements [hypervisor.Commander], with that of QMP.
func (c *control) Native(ctx context.Context, command string) (string, error) {
	var request struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	d := json.NewDecoder(bytes.NewReader([]byte(command)))
	d.DisallowUnknownFields()
	if err := d.Decode(&request); err != nil || request.Execute == "" || d.More() {
		return "", fmt.Errorf(`want a QMP command such as {"execute": "query-status"}, got %q`, command)
	}
	var arguments any
	if request.Arguments != nil {
		arguments = request.Arguments
	}
	var answer json.RawMessage
	err := c.runFor(ctx, humanTimeout, request.Execute, arguments, &answer)
	return string(answer), err
}

// Converse implements [hypervisor.Converser].
func (QEMU) Converse(ctx context.Context, socket string, in io.Reader, out io.Writer) error {
	greeted, stop := context.WithTimeout(ctx, greetingTimeout)
	defer stop()
	conn, err := connect(greeted, socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if err := awaitGreeting(greeted, conn, r); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := &talk{done: cancel}
	go t.send(in, conn)
	defer jsonline.Until(ctx, conn)()
	err = t.receive(r, out)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, errAnswered) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// awaitGreeting waits until QEMU speaks, to one at a time.
func awaitGreeting(ctx context.Context, conn net.Conn, r *bufio.Reader) error {
	defer jsonline.Until(ctx, conn)()
	if _, err := r.Peek(1); ctx.Err() != nil {
		return fmt.Errorf("reading the QMP greeting: %w", ctx.Err())
	} else if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the QMP greeting: %w", err)
	}
	return nil
}

// errAnswered is the end of a talk in which all is said.
var errAnswered = errors.New("every command is answered")

// talk counts the commands of a conversation, and the answers to them.
type talk struct {
	done context.CancelCauseFunc

	mu       sync.Mutex
	sent     int
	answered int
	ended    bool // there are no more commands
}

// note changes the counts, and ends the talk once all is said.
func (t *talk) note(change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
	if t.ended && t.answered >= t.sent {
		t.done(errAnswered)
	}
}

// send passes commands on, each on a line of its own.
func (t *talk) send(in io.Reader, conn io.Writer) {
	commands := json.NewDecoder(in)
	for {
		var command json.RawMessage
		switch err := commands.Decode(&command); {
		case errors.Is(err, io.EOF):
			t.note(func() { t.ended = true })
			return
		case err != nil:
			t.done(fmt.Errorf("want commands in JSON: %w", err))
			return
		}
		var line bytes.Buffer
		// It was decoded, so it is JSON.
		_ = json.Compact(&line, command)
		line.WriteByte('\n')
		t.note(func() { t.sent++ })
		if _, err := conn.Write(line.Bytes()); err != nil {
			return // the other side says why
		}
	}
}

// receive passes on what QEMU sends, until that or the talk ends.
func (t *talk) receive(r *bufio.Reader, out io.Writer) error {
	for {
		line, err := jsonline.Read(r, maxAnswer)
		if err != nil {
			return err
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
		var m message
		if json.Unmarshal(line, &m) == nil && (m.Return != nil || m.Error != nil) {
			t.note(func() { t.answered++ })
		}
	}
}

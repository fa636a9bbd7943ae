package qemu

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor/jsonline"
)

// maxMessage is how long one QMP message may be, in bytes. The longest of
// those asked for here, query-block of a hundred disks, has a twentieth of it.
const maxMessage = 4 << 20

// session is one QMP connection. It is used from one goroutine at a time.
type session struct {
	conn   net.Conn
	r      *bufio.Reader
	name   string // makes its ids differ from those of other sessions
	asked  int    // how many commands were sent
	broken error  // what ended the session; it is of no use after that
}

// message is whatever QEMU sends: greeting, answer or event.
type message struct {
	QMP    json.RawMessage `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
	ID     any             `json:"id"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// Error is QEMU's refusal of a command.
type Error struct {
	Command string `json:"-"`
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *Error) Error() string { return e.Command + ": " + e.Desc }

// newSession speaks the beginning of QMP on conn: greeting and capabilities.
// The caller still owns conn.
func newSession(ctx context.Context, conn net.Conn, events func(message)) (*session, error) {
	s := &session{conn: conn, r: bufio.NewReader(conn), name: rand.Text()}
	defer jsonline.Until(ctx, s.conn)()
	if err := s.greeted(); err != nil {
		return nil, s.fail(ctx, "reading the QMP greeting", err)
	}
	return s, s.execute(ctx, "qmp_capabilities", nil, nil, events)
}

// greeted reads up to the greeting. Before it may come what a client before
// this one asked for or was to be told, but did not stay to read.
func (s *session) greeted() error {
	for {
		m, err := s.read()
		switch {
		case err != nil:
			return err
		case m.QMP != nil:
			return nil
		case m.Return == nil && m.Error == nil && m.Event == "":
			return errors.New("this is not QMP")
		}
	}
}

// execute runs one command and stores what it returns, unless result is nil.
// Events that arrive meanwhile are given to events, unless that is nil. Answers
// to others are passed over: QEMU sends those whose client has gone to whoever
// comes next.
func (s *session) execute(ctx context.Context, command string, arguments, result any, events func(message)) error {
	return s.executeWith(ctx, nil, command, arguments, result, events)
}

// executeWith is execute with an open file that QEMU gets along with the
// command, unless it is nil. The caller still owns its own.
func (s *session) executeWith(ctx context.Context, file *os.File, command string, arguments, result any, events func(message)) error {
	if s.broken != nil {
		return fmt.Errorf("%s: %w", command, s.broken)
	}
	defer jsonline.Until(ctx, s.conn)()
	s.asked++
	id := fmt.Sprintf("%s-%d", s.name, s.asked)
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	if err := s.send(append(request, '\n'), file); err != nil {
		return s.fail(ctx, command, err)
	}
	for {
		m, err := s.read()
		switch {
		case err != nil:
			return s.fail(ctx, command, err)
		case m.Event != "":
			if events != nil {
				events(m)
			}
		case m.Error != nil && (m.ID == nil || m.ID == id):
			m.Error.Command = command
			return m.Error
		case m.ID != id:
		case m.Return == nil:
			return s.fail(ctx, command, errors.New("the answer is neither a result nor an error"))
		case result == nil:
			return nil
		default:
			if err := json.Unmarshal(m.Return, result); err != nil {
				return fmt.Errorf("%s: %w", command, err)
			}
			return nil
		}
	}
}

func (s *session) send(request []byte, file *os.File) error {
	if file == nil {
		_, err := s.conn.Write(request)
		return err
	}
	conn, ok := s.conn.(*net.UnixConn)
	if !ok {
		return errors.New("no file can be passed on this connection")
	}
	_, _, err := conn.WriteMsgUnix(request, unix.UnixRights(int(file.Fd())), nil)
	return err
}

// read returns the next message.
func (s *session) read() (message, error) {
	var m message
	line, err := jsonline.Read(s.r, maxMessage)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("want a QMP message, got %.60q: %w", line, err)
	}
	return m, nil
}

// fail ends the session: with part of a message read, nothing that follows
// can be trusted.
func (s *session) fail(ctx context.Context, doing string, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	s.broken = err
	return fmt.Errorf("%s: %w", doing, err)
}

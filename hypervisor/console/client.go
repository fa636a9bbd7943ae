package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Mode is what a client wants of a console; see the package's comment.
type Mode string

const (
	ModeAttach Mode = "attach"
	ModeFollow Mode = "follow"
	ModeLog    Mode = "log"
)

// Conn is a client's connection. What it reads is the console's alone, without
// the mark that ends what was written so far.
type Conn struct {
	net.Conn
	// Live is called, where it is set, once all of what was written so far has
	// been read. In [ModeAttach] only.
	Live func()

	replay bool   // the mark is still to come
	ahead  []byte // read already, from behind the mark
}

// Read reads what the server sends. What is behind the mark is left to the
// next call, so that Live is called between the two.
func (c *Conn) Read(p []byte) (int, error) {
	if c.ahead != nil {
		if c.Live != nil {
			c.Live()
			c.Live = nil
		}
		n := copy(p, c.ahead)
		if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
			c.ahead = nil
		}
		if n > 0 {
			return n, nil
		}
	}
	n, err := c.Conn.Read(p)
	if i := bytes.IndexByte(p[:n], nul); c.replay && i >= 0 {
		c.replay = false
		c.ahead = append([]byte{}, p[i+1:n]...)
		n = i
	}
	return n, err
}

// Dial connects to the console served at socket. The error is fs.ErrNotExist
// or ECONNREFUSED where nothing runs.
func Dial(ctx context.Context, socket string, mode Mode) (*Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, string(mode)+"\n"); err != nil {
		conn.Close()
		return nil, fmt.Errorf("speak to %s: %w", socket, err)
	}
	return &Conn{Conn: conn, replay: mode == ModeAttach}, nil
}

// Copy writes what conn sends to out until the server closes or ctx ends.
func Copy(ctx context.Context, conn net.Conn, out io.Writer) error {
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })
	defer stop()
	_, err := io.Copy(out, conn)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, syscall.ECONNRESET) {
		return nil // closed while something that we sent was not read yet
	}
	return err
}

// ErrDetached is how a [Session] ends when its user asked for that.
var ErrDetached = errors.New("detached")

// escapeKey begins a command to the session itself: Ctrl-].
const escapeKey = 0x1d

const help = "\r\nCtrl-] q  leave                  Ctrl-] d  press Ctrl-Alt-Del\r\n" +
	"Ctrl-] ?  this help              Ctrl-] Ctrl-]  type Ctrl-]\r\n"

// Session is a person at a console. The terminal has to be in raw mode.
type Session struct {
	In  io.Reader
	Out io.Writer
	// CtrlAltDel is called for Ctrl-] d; its error is shown.
	CtrlAltDel func() error
}

// Run passes bytes between the person and conn, until the person leaves
// ([ErrDetached]), In ends (nil), the machine ends (nil), or ctx does. In may
// still be read once after Run has returned.
func (s Session) Run(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if err := s.typed(conn); err != nil {
			cancel(err)
		}
	}()
	err := Copy(ctx, conn, s.Out)
	if cause := context.Cause(ctx); cause != nil && cause != io.EOF {
		return cause
	} else if cause == nil {
		return err
	}
	return nil
}

// typed passes on what is typed, and does what is commanded by the escape key.
// Its error is why the person's side ended; nil where conn's did.
func (s Session) typed(conn io.Writer) error {
	p := make([]byte, 1<<10)
	escaped := false
	for {
		n, err := s.In.Read(p)
		out := p[:0]
		for _, b := range p[:n] {
			switch {
			case !escaped && b == escapeKey:
				escaped = true
				continue
			case !escaped || b == escapeKey:
				out = append(out, b)
			case b == 'q' || b == 'Q':
				return ErrDetached
			case b == 'd':
				s.ctrlAltDel()
			default:
				io.WriteString(s.Out, help)
			}
			escaped = false
		}
		if _, err := conn.Write(out); err != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s Session) ctrlAltDel() {
	if err := s.CtrlAltDel(); err != nil {
		io.WriteString(s.Out, note("Ctrl-Alt-Del: "+err.Error()))
	}
}

package console

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	maxClients = 64
	chunkSize  = 8 << 10 // bytes, of what a client is sent at once

	helloTimeout = 10 * time.Second // for a client to say what it wants
	// inputTimeout is how long a guest may take to accept what a client typed
	// before that is dropped, as a serial line drops it.
	inputTimeout = 10 * time.Second
	// drainTimeout is how long clients have after the machine's end to take
	// the rest.
	drainTimeout = 2 * time.Second
)

// Input is the way to the guest: a net.Conn, for example.
type Input interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}

// Server remembers what the guest wrote and serves it to clients. What the
// guest writes is given to Write, which never waits for a client.
type Server struct {
	mu      sync.Mutex
	changed *sync.Cond // more in the ring, ended, or a client went away
	ring    *ring
	ended   bool

	inputMu sync.Mutex
	input   Input

	clients sync.WaitGroup
	conns   map[net.Conn]bool // guarded by mu
}

// NewServer makes a server that keeps the last scrollback bytes and gives what
// clients type to input, which may be nil.
func NewServer(scrollback int, input Input) *Server {
	s := &Server{ring: newRing(scrollback), input: input, conns: map[net.Conn]bool{}}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// Write takes what the guest wrote. It never fails.
func (s *Server) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ring.write(p)
	s.changed.Broadcast()
	return len(p), nil
}

// Serve accepts clients until l is closed.
func (s *Server) Serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			// Out of descriptors, most likely: clients can wait, the guest not.
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if !s.add(conn) {
			io.WriteString(conn, note("too many clients of this console"))
			conn.Close()
			continue
		}
		go s.serve(conn)
	}
}

// Close says that the guest will write no more, and waits, for a short time,
// until every client was sent what there is.
func (s *Server) Close() {
	deadline := time.Now().Add(drainTimeout)
	s.mu.Lock()
	s.ended = true
	for conn := range s.conns {
		conn.SetDeadline(deadline)
	}
	s.changed.Broadcast()
	s.mu.Unlock()

	sent := make(chan struct{})
	go func() { s.clients.Wait(); close(sent) }()
	select {
	case <-sent:
	case <-time.After(drainTimeout):
	}
}

func (s *Server) add(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxClients || s.ended {
		return false
	}
	s.conns[conn] = true
	s.clients.Add(1)
	return true
}

func (s *Server) remove(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	s.clients.Done()
}

// serve speaks with one client until either side has enough.
func (s *Server) serve(conn net.Conn) {
	defer s.remove(conn)
	mode, err := hello(conn)
	if err != nil {
		io.WriteString(conn, note(err.Error()))
		return
	}
	c := s.newClient(conn, mode)
	received := make(chan struct{})
	go func() {
		defer close(received)
		if mode != ModeLog { // which ends by itself
			s.receive(c)
		}
	}()
	if err := s.send(c); err != nil {
		// What the client typed before it left is for the guest all the same.
		conn.SetReadDeadline(time.Now().Add(drainTimeout))
		<-received
	}
}

// client is one connection, once it has said what it wants.
type client struct {
	conn net.Conn
	mode Mode
	at   int64 // offset of the first byte that it is sent
	live int64 // offset of the end of what was written before it came
	gone bool  // closed its sending end; guarded by Server.mu
}

// newClient is before anything that the client types: the answer to that is not
// among what was written so far.
func (s *Server) newClient(conn net.Conn, mode Mode) *client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &client{conn: conn, mode: mode, at: s.ring.replayFrom(), live: s.ring.end}
}

// hello reads the client's first line. It reads byte by byte, because what
// follows the line is for the guest.
func hello(conn net.Conn) (Mode, error) {
	conn.SetReadDeadline(time.Now().Add(helloTimeout))
	defer conn.SetReadDeadline(time.Time{})
	var line []byte
	for b := make([]byte, 1); len(line) < 16; {
		if _, err := conn.Read(b); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return "", errors.New(`send "attach", "follow" or "log" and a newline first`)
			}
			return "", err
		}
		if b[0] == '\n' {
			break
		}
		line = append(line, b[0])
	}
	switch mode := Mode(strings.TrimSuffix(string(line), "\r")); mode {
	case ModeAttach, ModeFollow, ModeLog:
		return mode, nil
	default:
		return "", fmt.Errorf(`want "attach", "follow" or "log", got %q`, line)
	}
}

// receive gives what the client types to the guest, until it closes its end.
func (s *Server) receive(c *client) {
	p := make([]byte, 1<<10)
	for {
		n, err := c.conn.Read(p)
		if n > 0 && c.mode == ModeAttach {
			s.toGuest(p[:n])
		}
		if err != nil {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.gone = true
	s.changed.Broadcast()
}

// toGuest gives what a client typed to the guest.
func (s *Server) toGuest(p []byte) {
	if s.input == nil {
		return
	}
	s.inputMu.Lock()
	defer s.inputMu.Unlock()
	s.input.SetWriteDeadline(time.Now().Add(inputTimeout))
	s.input.Write(p) // a guest that does not read, or has ended: dropped
}

// send sends what is in the ring and, if the client wants that, what comes. It
// returns an error where the client takes nothing any more.
func (s *Server) send(c *client) error {
	at, live := c.at, c.live
	until := int64(-1) // for ever
	if c.mode == ModeLog {
		until = live
	}

	clean := cleaner{history: true}
	marked := c.mode != ModeAttach
	p, out := make([]byte, chunkSize), make([]byte, 0, chunkSize)
	for {
		room := p
		if clean.history = at < live; clean.history {
			room = p[:min(int64(len(p)), live-at)]
		} else if !marked {
			marked = true
			if _, err := c.conn.Write(append(clean.flush(out), nul)); err != nil {
				return err
			}
		}
		chunk, missed, more := s.next(c, at, until, room)
		if missed > 0 {
			out = append(out, note(fmt.Sprintf("%d bytes of the console were missed here", missed))...)
			at += missed
		}
		if c.mode == ModeAttach && !clean.history {
			out = append(out, chunk...)
		} else {
			out = clean.appendTo(out, chunk)
		}
		if !more {
			out = clean.flush(out)
		}
		at += int64(len(chunk))
		if _, err := c.conn.Write(out); err != nil || !more {
			return err
		}
		out = out[:0]
	}
}

// next waits for bytes from offset at on, and returns them in p, how many
// before them were overwritten meanwhile, and whether there can be more.
func (s *Server) next(c *client, at, until int64, p []byte) (chunk []byte, missed int64, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at == s.ring.end && !s.ended && !c.gone && until < 0 {
		s.changed.Wait()
	}
	if c.gone {
		return nil, 0, false
	}
	if oldest := s.ring.start(); at < oldest {
		missed = oldest - at
		at = oldest
	}
	if until >= 0 {
		p = p[:max(0, min(int64(len(p)), until-at))]
	}
	chunk = p[:s.ring.read(at, p)]
	at += int64(len(chunk))
	if until >= 0 {
		return chunk, missed, at < until
	}
	return chunk, missed, at < s.ring.end || !s.ended
}

// note is a line of our own in what a client is sent.
func note(text string) string { return "\r\n[vmctl: " + text + "]\r\n" }

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"sync"

	"github.com/coreos/go-systemd/v22/activation"
	"google.golang.org/grpc/credentials"

	"github.com/vmctl/vmctl/cmd/vmctl-api/certificates"
	"github.com/vmctl/vmctl/config"
)

// gate decides who comes in by a listener.
type gate interface {
	// enter makes of a new connection one that can be read, and says who is at
	// its other end.
	enter(conn net.Conn) (net.Conn, *caller, error)
}

// gatedListener marks its connections with the gate that they have to pass.
type gatedListener struct {
	net.Listener
	gate gate
	open *counts
}

func (l *gatedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := origin(conn)
		err = l.open.add(from)
		if err == nil {
			return &gatedConn{Conn: conn, gate: l.gate, left: func() { l.open.remove(from) }}, nil
		}
		log.Printf("%s: refused: %v", l.Addr(), err)
		conn.Close()
	}
}

// gatedConn is a connection before its gate.
type gatedConn struct {
	net.Conn
	gate gate
	left func() // says that it is closed
	once sync.Once
}

func (c *gatedConn) Close() error {
	c.once.Do(c.left)
	return c.Conn.Close()
}

// counts are how many there are at once of something, of all and of each origin.
type counts struct {
	what        string // "connections are open"
	limit, each int

	mu   sync.Mutex
	n    int
	from map[string]int
}

func newCounts(what string, limit, each int) *counts {
	return &counts{what: what, limit: limit, each: each, from: map[string]int{}}
}

// newConnections counts the connections of a listener: who fills one shuts nobody out
// of another.
func newConnections(limit, each int) *counts { return newCounts("connections are open", limit, each) }

// add counts one more, where it is not one too many.
func (c *counts) add(from string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n >= c.limit {
		return fmt.Errorf("%d %s already", c.n, c.what)
	}
	if c.from[from] >= c.each {
		return fmt.Errorf("%d %s already of %s", c.each, c.what, from)
	}
	c.n++
	c.from[from]++
	return nil
}

func (c *counts) remove(from string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n--
	if c.from[from]--; c.from[from] == 0 {
		delete(c.from, from)
	}
}

// origin is whom a connection counts for before its gate: a user, or a host.
func origin(conn net.Conn) string {
	switch c := conn.(type) {
	case *net.UnixConn:
		if who, err := unixCaller(c, viewer); err == nil {
			return "uid " + strconv.FormatUint(uint64(who.uid), 10)
		}
	case *net.TCPConn:
		if address, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			return address.IP.String()
		}
	}
	return "an unknown origin"
}

// gates is the [credentials.TransportCredentials] of a server whose listeners
// are gated.
type gates struct{}

func (gates) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	gated, ok := conn.(*gatedConn)
	if !ok {
		return nil, nil, errors.New("a connection without a gate")
	}
	in, who, err := gated.gate.enter(gated.Conn)
	if err != nil {
		log.Printf("%s: refused %s: %v", conn.LocalAddr(), conn.RemoteAddr(), err)
		return nil, nil, err
	}
	return &enteredConn{Conn: in, gated: gated}, who, nil
}

// enteredConn is a connection behind its gate; closing it closes both.
type enteredConn struct {
	net.Conn
	gated *gatedConn
}

func (c *enteredConn) Close() error { return errors.Join(c.Conn.Close(), closed(c.gated.Close())) }

// closed is err, but that it is closed already.
func closed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (gates) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for servers")
}

func (gates) Info() credentials.ProtocolInfo            { return credentials.ProtocolInfo{} }
func (g gates) Clone() credentials.TransportCredentials { return g }
func (gates) OverrideServerName(string) error           { return nil }

// unixGate lets in whoever the socket's mode has let connect.
type unixGate struct{ most role }

func (g unixGate) enter(conn net.Conn) (net.Conn, *caller, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.New("want a Unix socket")
	}
	who, err := unixCaller(c, g.most)
	return conn, who, err
}

// Names of the sockets that systemd passes (FileDescriptorName=).
const (
	operatorSocket = "operators"
	viewerSocket   = "viewers"
	tlsSocket      = "tls"
	loopbackSocket = "loopback"
)

// passedListeners are the sockets that systemd has passed.
func passedListeners(paths config.Paths) ([]net.Listener, error) {
	byName, err := activation.ListenersWithNames()
	if err != nil {
		return nil, err
	}
	var out []net.Listener
	for name, listeners := range byName {
		g, err := gateOf(paths, name)
		if err != nil {
			return nil, err
		}
		for _, l := range listeners {
			if l == nil {
				return nil, fmt.Errorf("the socket %s is none that listens", name)
			}
			out = append(out, &gatedListener{Listener: l, gate: g, open: newConnections(maxConnections, maxOfEach)})
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no socket was passed: it is started by systemctl start vmctl-api.socket")
	}
	return out, nil
}

func gateOf(paths config.Paths, name string) (gate, error) {
	switch name {
	case tlsSocket:
		return newTLSGate(certificates.Dir{Path: paths.API, Credentials: os.Getenv("CREDENTIALS_DIRECTORY")}), nil
	case loopbackSocket:
		return loopbackGate{}, nil
	case operatorSocket:
		return unixGate{operator}, nil
	case viewerSocket:
		return unixGate{viewer}, nil
	}
	return nil, fmt.Errorf("do not know what the socket %q is for", name)
}

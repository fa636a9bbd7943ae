package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

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
	// rights finds out what those who came in may do by now.
	rights() rights
}

// rights tell what a caller may do; the error is why that is nothing.
type rights func(*caller) (role, error)

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

// recheckTime is how often it is looked, while there are connections, whether those
// who made them may still do what they could.
const recheckTime = time.Second

// gates is the [credentials.TransportCredentials] of a server whose listeners
// are gated. It closes connections of those who may less than before.
type gates struct {
	mu       sync.Mutex
	entered  map[*enteredConn]bool
	watching bool
}

func newGates() *gates { return &gates{entered: map[*enteredConn]bool{}} }

func (g *gates) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	gated, ok := conn.(*gatedConn)
	if !ok {
		return nil, nil, errors.New("a connection without a gate")
	}
	in, who, err := gated.gate.enter(gated.Conn)
	if err != nil {
		log.Printf("%s: refused %s: %v", conn.LocalAddr(), conn.RemoteAddr(), err)
		return nil, nil, err
	}
	who.gate = gated.gate
	entered := &enteredConn{Conn: in, gates: g, gated: gated, who: who, seen: who.Role}
	g.add(entered)
	return entered, who, nil
}

// add has a connection watched.
func (g *gates) add(c *enteredConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.entered[c] = true
	if !g.watching {
		g.watching = true
		go g.watch()
	}
}

// watch looks at connections until there are none.
func (g *gates) watch() {
	for tick := time.Tick(recheckTime); ; <-tick {
		g.mu.Lock()
		conns := slices.Collect(maps.Keys(g.entered))
		g.watching = len(conns) > 0
		g.mu.Unlock()
		if len(conns) == 0 {
			return
		}
		now := map[gate]rights{}
		for _, c := range conns {
			if now[c.who.gate] == nil {
				now[c.who.gate] = c.who.gate.rights()
			}
			c.recheck(now[c.who.gate])
		}
	}
}

// enteredConn is a connection behind its gate; closing it closes both.
type enteredConn struct {
	net.Conn
	gates *gates
	gated *gatedConn
	who   *caller
	// Of the watch alone:
	seen    role // that it was found to have last
	unknown bool // it could not be told then what it may
}

// Close closes the connection, which is looked at no more.
func (c *enteredConn) Close() error {
	c.gates.mu.Lock()
	delete(c.gates.entered, c)
	c.gates.mu.Unlock()
	return errors.Join(c.Conn.Close(), closed(c.gated.Close()))
}

// recheck closes the connection where its caller may less than before, or has no rights
// by its gate. A lookup that fails closes nobody: that is no sign of anything about the
// caller, and a call that is new is refused until it succeeds.
func (c *enteredConn) recheck(now rights) {
	may, err := now(c.who)
	before := c.unknown
	if _, c.unknown = errors.AsType[*unknownError](err); c.unknown {
		if !before { // and not each second
			log.Printf("the connection of %s stays as it is: %v", c.who.Peer, err)
		}
		return
	}
	if err == nil && may < c.seen {
		err = fmt.Errorf("%s is a %s by now", c.who.Name, may)
	}
	c.seen = may
	if err == nil {
		return
	}
	log.Printf("closed the connection of %s: %v", c.who.Peer, err)
	// Before its gate: the end of TLS would wait for a client that does not read.
	c.gated.Conn.Close()
}

// closed is err, but that it is closed already.
func closed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (*gates) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for servers")
}

func (*gates) Info() credentials.ProtocolInfo            { return credentials.ProtocolInfo{} }
func (g *gates) Clone() credentials.TransportCredentials { return g }
func (*gates) OverrideServerName(string) error           { return nil }

// unixGate lets in whoever the socket's mode has let connect.
type unixGate struct{ most role }

func (g unixGate) enter(conn net.Conn) (net.Conn, *caller, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.New("want a Unix socket")
	}
	who, err := unixCaller(c, g.most)
	if err != nil {
		return nil, nil, err
	}
	if who.uid == 0 {
		return conn, who, nil
	}
	by := groupOf(g.most)
	in, err := isMember(who.uid, by)
	if err != nil {
		return nil, nil, err
	}
	if in {
		who.memberOf = by
	}
	return conn, who, nil
}

func (unixGate) rights() rights { return whileMember(isMember) }

// whileMember are the rights of users of this host.
func whileMember(isMember memberLookup) rights {
	isMember = isMember.once()
	return func(c *caller) (role, error) { return memberRights(c, isMember) }
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

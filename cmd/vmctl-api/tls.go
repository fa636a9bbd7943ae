package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/vmctl/vmctl/cmd/vmctl-api/certificates"
)

// recheckTime is how often it is looked, while there are connections, whether those
// who made them may still come in.
const recheckTime = time.Second

// tlsGate lets in clients with a certificate that has a role, and closes connections
// of those whose certificate was revoked or has expired meanwhile, or whose role has
// become less.
type tlsGate struct {
	dir    certificates.Dir
	within time.Duration // which the handshake has to be over

	mu       sync.Mutex
	peers    map[*tlsPeer]bool
	watching bool
}

func newTLSGate(dir certificates.Dir) *tlsGate {
	return &tlsGate{dir: dir, within: handshakeTime, peers: map[*tlsPeer]bool{}}
}

// tlsPeer is a connection with who has made it.
type tlsPeer struct {
	*tls.Conn
	gate *tlsGate
	who  *caller
	seen role // that it was found to have last; the gate's watch alone uses it
}

// Close closes the connection, which is looked at no more.
func (p *tlsPeer) Close() error {
	p.gate.mu.Lock()
	delete(p.gate.peers, p)
	p.gate.mu.Unlock()
	return p.Conn.Close()
}

func (g *tlsGate) enter(conn net.Conn) (net.Conn, *caller, error) {
	settings, err := g.dir.Config()
	if err != nil {
		return nil, nil, err
	}
	in := &tlsPeer{Conn: tls.Server(conn, settings), gate: g}
	ctx, cancel := context.WithTimeout(context.Background(), g.within)
	defer cancel()
	if err := in.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	name := in.name()
	may, err := g.role(name)
	if err != nil {
		return nil, nil, errors.Join(err, in.Conn.Close())
	}
	in.seen = may
	in.who = &caller{
		// What it does is not to look like what a user of this host did.
		Name: "certificate:" + name, Role: may, Peer: fmt.Sprintf("%s (certificate, %s)", name, conn.RemoteAddr()),
		roleNow: func() (role, error) {
			trust, err := g.dir.Trust()
			if err != nil {
				return nobody, err
			}
			return in.roleNow(trust)
		},
	}
	in.who.SecurityLevel = credentials.PrivacyAndIntegrity
	g.add(in)
	return in, in.who, nil
}

func (p *tlsPeer) name() string { return p.ConnectionState().PeerCertificates[0].Subject.CommonName }

// roleNow is what the client may do by now.
func (p *tlsPeer) roleNow(trust *certificates.Trust) (role, error) {
	if err := trust.Check(p.ConnectionState().PeerCertificates); err != nil {
		return nobody, err
	}
	return p.gate.role(p.name())
}

func (g *tlsGate) role(name string) (role, error) {
	text, err := g.dir.Role(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nobody, fmt.Errorf("the certificate %q has no role", name)
	case err != nil:
		return nobody, err
	case text == certificates.Operator:
		return operator, nil
	}
	return viewer, nil
}

// add has the gate watch a connection.
func (g *tlsGate) add(p *tlsPeer) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.peers[p] = true
	if !g.watching {
		g.watching = true
		go g.watch()
	}
}

// watch looks at connections until there are none.
func (g *tlsGate) watch() {
	for tick := time.Tick(recheckTime); ; <-tick {
		g.mu.Lock()
		peers := slices.Collect(maps.Keys(g.peers))
		g.watching = len(peers) > 0
		g.mu.Unlock()
		if len(peers) == 0 {
			return
		}
		trust, err := g.dir.Trust()
		for _, p := range peers {
			p.recheck(trust, err)
		}
	}
}

// recheck closes the connection where its client may less than before, or where that
// cannot be told.
func (p *tlsPeer) recheck(trust *certificates.Trust, err error) {
	may := nobody
	if err == nil {
		may, err = p.roleNow(trust)
	}
	if err == nil && may < p.seen {
		err = fmt.Errorf("the certificate %q is a %s's by now", p.name(), may)
	}
	p.seen = may
	if err == nil {
		return
	}
	log.Printf("closed the connection of %s: %v", p.who.Peer, err)
	// Below TLS, whose own end would wait for a client that does not read.
	p.NetConn().Close()
}

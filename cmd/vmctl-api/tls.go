package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/vmctl/vmctl/cmd/vmctl-api/certificates"
)

// tlsGate lets in clients with a certificate that has a role.
type tlsGate struct {
	dir    certificates.Dir
	within time.Duration // which the handshake has to be over
}

func newTLSGate(dir certificates.Dir) *tlsGate { return &tlsGate{dir: dir, within: handshakeTime} }

func (g *tlsGate) enter(conn net.Conn) (net.Conn, *caller, error) {
	settings, err := g.dir.Config()
	if err != nil {
		return nil, nil, err
	}
	in := tls.Server(conn, settings)
	ctx, cancel := context.WithTimeout(context.Background(), g.within)
	defer cancel()
	if err := in.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	chain := in.ConnectionState().PeerCertificates
	name := chain[0].Subject.CommonName
	may, err := g.role(name)
	if err != nil {
		return nil, nil, errors.Join(err, in.Close())
	}
	who := &caller{
		// What it does is not to look like what a user of this host did.
		Name: "certificate:" + name, Role: may, Peer: fmt.Sprintf("%s (certificate, %s)", name, conn.RemoteAddr()),
		chain: chain,
	}
	who.SecurityLevel = credentials.PrivacyAndIntegrity
	return in, who, nil
}

// rights are what certificates have, that were not revoked and have not expired.
func (g *tlsGate) rights() rights {
	trust, err := g.dir.Trust()
	return func(c *caller) (role, error) {
		if err != nil {
			return nobody, err
		}
		if err := trust.Check(c.chain); err != nil {
			return nobody, err
		}
		return g.role(c.chain[0].Subject.CommonName)
	}
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

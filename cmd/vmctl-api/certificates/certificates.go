// Package certificates keeps the certificates by which programs on other hosts
// reach vmctl-api(8): a certificate authority of this host's own, the server's
// certificate, those of clients with their roles, and the list of those that were
// revoked. Files of an administrator's own authority may stand in their place.
//
// A directory (/etc/vmctl/api) has
//
//	ca.pem ca.key          the authority; the key only where it is ours
//	server.pem server.key  the server's certificate
//	crl.pem                what was revoked, by the authority; may be missing
//	clients/NAME           "operator" or "viewer": what the certificate NAME may do
//	issued/NAME.pem        certificates of ours, to revoke them by name
//
// They are read whenever somebody comes in or is looked at again, so that what has
// changed holds at once.
package certificates

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor/access"
)

// Dir is such a directory. Credentials is where systemd's credentials of the
// service are, which come before its files; "" for none.
type Dir struct {
	Path        string
	Credentials string
}

// Roles that a client can have.
const (
	Operator = "operator"
	Viewer   = "viewer"
)

const (
	caFile, caKeyFile         = "ca.pem", "ca.key"
	serverFile, serverKeyFile = "server.pem", "server.key"
	crlFile                   = "crl.pem"
	lockFile                  = ".lock"
	clientsDir, issuedDir     = "clients", "issued"
)

// authorityTime is how long an authority of ours holds, and a list of what it has
// revoked: the list is written anew with each revocation, and never gets old.
const authorityTime = 20 * 365 * 24 * time.Hour

func (d Dir) file(name ...string) string { return filepath.Join(append([]string{d.Path}, name...)...) }

// read reads a file, or the credential of its name.
func (d Dir) read(name string) ([]byte, error) {
	if d.Credentials != "" {
		// One that is there and cannot be read, such as a list of what was revoked, is
		// not taken for none.
		if b, err := os.ReadFile(filepath.Join(d.Credentials, name)); !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	return os.ReadFile(d.file(name))
}

// CheckName says what is wrong with the name of a client, nil where it is legal.
func CheckName(name string) error {
	const legal = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@-"
	if name == "" || len(name) > 64 || name[0] == '.' || strings.Trim(name, legal) != "" {
		return fmt.Errorf("want a name of at most 64 letters, digits and ._@-, got %q", name)
	}
	return nil
}

// Role is what a client may do; the error is fs.ErrNotExist where it is not known.
func (d Dir) Role(name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	b, err := os.ReadFile(d.file(clientsDir, name))
	if err != nil {
		return "", err
	}
	role := strings.TrimSpace(string(b))
	if role != Operator && role != Viewer {
		return "", fmt.Errorf("%s: want %s or %s, got %q", d.file(clientsDir, name), Operator, Viewer, role)
	}
	return role, nil
}

// Clients are the names that have a role, sorted, with it; "" for one that cannot
// be read.
func (d Dir) Clients() (names []string, roles map[string]string) {
	entries, _ := os.ReadDir(d.file(clientsDir))
	roles = map[string]string{}
	for _, e := range entries {
		if CheckName(e.Name()) == nil {
			roles[e.Name()], _ = d.Role(e.Name())
			names = append(names, e.Name())
		}
	}
	return names, roles
}

// Config is what a server speaks TLS by: version 1.3 alone, with clients whose
// certificate the authority has signed and not revoked.
func (d Dir) Config() (*tls.Config, error) {
	own, err := d.server()
	if err != nil {
		return nil, err
	}
	trust, err := d.Trust()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{own},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    trust.authority,
		NextProtos:   []string{"h2"},
		// A session that is taken up again would not be looked at again.
		SessionTicketsDisabled: true,
		VerifyConnection:       func(s tls.ConnectionState) error { return trust.notRevoked(s.PeerCertificates) },
	}, nil
}

// Trust is by which authority certificates of clients have to be, and which of those
// were revoked.
type Trust struct {
	authority *x509.CertPool
	revoked   []x509.RevocationListEntry
}

// Trust reads it as it is now.
func (d Dir) Trust() (*Trust, error) {
	authority, err := d.ca()
	if err != nil {
		return nil, err
	}
	revoked, err := d.revoked(authority)
	if err != nil {
		return nil, err
	}
	t := &Trust{authority: x509.NewCertPool(), revoked: revoked}
	t.authority.AddCert(authority)
	return t, nil
}

// Check says why a client that has come in by certificates, its own first, could not
// come in by them any more; nil where it could.
func (t *Trust) Check(chain []*x509.Certificate) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: t.authority, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return err
	}
	return t.notRevoked(chain)
}

func (t *Trust) notRevoked(chain []*x509.Certificate) error {
	for _, c := range chain {
		if slices.ContainsFunc(t.revoked, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(c.SerialNumber) == 0 }) {
			return fmt.Errorf("the certificate %s (serial %x) was revoked", c.Subject.CommonName, c.SerialNumber)
		}
	}
	return nil
}

// server is the server's certificate with its key.
func (d Dir) server() (tls.Certificate, error) {
	chain, err := d.read(serverFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := d.read(serverKeyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return pair, fmt.Errorf("%s: %w", d.file(serverFile), err)
	}
	return pair, nil
}

// ServerCertificate is the server's certificate.
func (d Dir) ServerCertificate() (*x509.Certificate, error) { return d.certificate(serverFile) }

// certificate reads the first certificate of a file.
func (d Dir) certificate(name string) (*x509.Certificate, error) {
	b, err := d.read(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s: want a certificate in PEM", d.file(name))
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.file(name), err)
	}
	return c, nil
}

// ca is the authority's certificate: one, since one list says what was revoked.
func (d Dir) ca() (*x509.Certificate, error) {
	c, err := d.certificate(caFile)
	if err != nil {
		return nil, err
	}
	b, err := d.read(caFile)
	if err != nil {
		return nil, err
	}
	_, rest := pem.Decode(b)
	if more, _ := pem.Decode(rest); more != nil {
		return nil, fmt.Errorf("%s: want the certificate of one authority, got several", d.file(caFile))
	}
	return c, nil
}

// revoked is what the list of the authority has. A list that cannot be believed
// any more is an error: nobody comes in by it.
func (d Dir) revoked(authority *x509.Certificate) ([]x509.RevocationListEntry, error) {
	list, err := d.revocations()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := list.CheckSignatureFrom(authority); err != nil {
		return nil, fmt.Errorf("%s: %w", d.file(crlFile), err)
	}
	if !list.NextUpdate.IsZero() && time.Now().After(list.NextUpdate) {
		return nil, fmt.Errorf("%s: it has expired on %s", d.file(crlFile), list.NextUpdate.Format(time.DateOnly))
	}
	return list.RevokedCertificateEntries, nil
}

func (d Dir) revocations() (*x509.RevocationList, error) {
	b, err := d.read(crlFile)
	if err != nil {
		return nil, err
	}
	der := b
	if block, _ := pem.Decode(b); block != nil {
		der = block.Bytes
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.file(crlFile), err)
	}
	return list, nil
}

// Prepare sees to it that there are an authority and a server's certificate for
// these names and addresses; what is there stays.
func (d Dir) Prepare(host string, names []string, addresses []net.IP) error {
	for _, dir := range []string{d.Path, d.file(clientsDir), d.file(issuedDir)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if _, err := d.ca(); errors.Is(err, fs.ErrNotExist) {
		if err := d.makeAuthority(host); err != nil {
			return fmt.Errorf("making a certificate authority: %w", err)
		}
	} else if err != nil {
		return err
	}
	if _, err := d.certificate(serverFile); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.IssueServer(host, names, addresses)
}

func (d Dir) makeAuthority(host string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "vmctl on " + host},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(authorityTime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	return d.writePair(caFile, caKeyFile, der, key)
}

// IssueServer makes a new certificate for the server.
func (d Dir) IssueServer(host string, names []string, addresses []net.IP) error {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: host},
		DNSNames:    names,
		IPAddresses: addresses,
		NotAfter:    time.Now().Add(authorityTime - time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, key, err := d.issue(template)
	if err != nil {
		return fmt.Errorf("making the server's certificate: %w", err)
	}
	return d.writePair(serverFile, serverKeyFile, der, key)
}

// Issue makes a certificate for a client, which has a role by it until it ends or
// is revoked. It returns certificate and key in PEM; the key is kept nowhere.
func (d Dir) Issue(name, role string, holds time.Duration) (certificate, key []byte, err error) {
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	unlock, err := d.lock()
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		NotAfter:    time.Now().Add(holds),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, private, err := d.issue(template)
	if err != nil {
		return nil, nil, fmt.Errorf("making a certificate for %s: %w", name, err)
	}
	if key, err = keyPEM(private); err != nil {
		return nil, nil, err
	}
	certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	// Those of before under this name stay valid, and are revoked with it.
	issued, err := os.OpenFile(d.file(issuedDir, name+".pem"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, nil, err
	}
	_, err = issued.Write(certificate)
	if err = errors.Join(err, issued.Close()); err != nil {
		return nil, nil, err
	}
	return certificate, key, write(d.file(clientsDir, name), []byte(role+"\n"), 0o644)
}

// issue has the authority sign a certificate for a new key.
func (d Dir) issue(template *x509.Certificate) (der []byte, key *ecdsa.PrivateKey, err error) {
	authority, signer, err := d.authority()
	if err != nil {
		return nil, nil, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	template.SerialNumber = serial()
	template.NotBefore = time.Now().Add(-time.Hour)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err = x509.CreateCertificate(rand.Reader, template, authority, key.Public(), signer)
	return der, key, err
}

// authority is the authority with its key; without that it is another's.
func (d Dir) authority() (*x509.Certificate, crypto.Signer, error) {
	authority, err := d.ca()
	if err != nil {
		return nil, nil, err
	}
	b, err := os.ReadFile(d.file(caKeyFile))
	if err != nil {
		return nil, nil, fmt.Errorf("the authority's key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, nil, fmt.Errorf("%s: want a key in PEM", d.file(caKeyFile))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", d.file(caKeyFile), err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("%s: want a key that signs", d.file(caKeyFile))
	}
	return authority, signer, nil
}

// Revoke takes from a client its role, and revokes all certificates that were made
// for it; it returns how many: none of those by another authority, which has a list of
// its own. The error is fs.ErrNotExist where neither is known.
func (d Dir) Revoke(name string) (int, error) {
	if err := CheckName(name); err != nil {
		return 0, err
	}
	unlock, err := d.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	// Without a role nobody comes in, whatever becomes of the rest.
	roleErr := os.Remove(d.file(clientsDir, name))
	issued, err := os.ReadFile(d.file(issuedDir, name+".pem"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, roleErr
	case err == nil:
		err = ifThere(roleErr)
	}
	if err != nil {
		return 0, err
	}
	n, err := d.revoke(issued)
	if err != nil {
		return 0, fmt.Errorf("%s has no role any more; revoking its certificates: %w", name, err)
	}
	return n, os.Remove(d.file(issuedDir, name+".pem"))
}

// revoke adds certificates to the list of those that were revoked; it returns how many
// they are.
func (d Dir) revoke(issued []byte) (int, error) {
	authority, signer, err := d.authority()
	if err != nil {
		return 0, err
	}
	entries, err := d.revoked(authority)
	if err != nil {
		return 0, err
	}
	number := big.NewInt(1)
	if list, err := d.revocations(); err == nil {
		number = new(big.Int).Add(list.Number, number)
	}
	now, n := time.Now(), 0
	for block, rest := pem.Decode(issued); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return 0, err
		}
		entries, n = append(entries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: now}), n+1
	}
	list := &x509.RevocationList{Number: number, ThisUpdate: now, NextUpdate: now.Add(authorityTime), RevokedCertificateEntries: entries}
	der, err := x509.CreateRevocationList(rand.Reader, list, authority, signer)
	if err != nil {
		return 0, err
	}
	return n, write(d.file(crlFile), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o644)
}

// lock keeps others from issuing and revoking: what one adds, another would overwrite.
func (d Dir) lock() (unlock func(), err error) {
	if _, err := os.Stat(d.Path); err != nil {
		return nil, err
	}
	return access.LockFile(d.file(lockFile), unix.LOCK_EX)
}

// ifThere is err, but that there was nothing.
func ifThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (d Dir) writePair(certificate, key string, der []byte, private *ecdsa.PrivateKey) error {
	text, err := keyPEM(private)
	if err != nil {
		return err
	}
	if err := write(d.file(key), text, 0o600); err != nil {
		return err
	}
	return write(d.file(certificate), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// serial is a random serial number of 127 bits.
func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// write replaces a file at once.
func write(path string, content []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already if all went well
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

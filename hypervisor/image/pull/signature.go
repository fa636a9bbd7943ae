package pull

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	openpgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// Keys are OpenPGP public keys, by any of which something has to be signed. Nil
// keys ask for no signature.
type Keys struct {
	from string // where they are from, for messages
	list openpgp.EntityList
}

// armored is what text begins with that has a key or a signature, and publicKey
// a key.
const (
	armored   = "-----BEGIN PGP "
	publicKey = armored + "PUBLIC KEY BLOCK-----"
)

// ParseKeys reads public keys, in text or binary, one or more. from is where they
// are from, for messages.
func ParseKeys(from string, b []byte) (*Keys, error) {
	keys := &Keys{from: from}
	blocks := [][]byte{b}
	if bytes.Contains(b, []byte(armored)) {
		blocks = nil
		for _, text := range strings.Split(string(b), publicKey)[1:] {
			block, err := armor.Decode(strings.NewReader(publicKey + text))
			if err != nil {
				return nil, fmt.Errorf("%s: want OpenPGP public keys: %w", from, err)
			}
			body, err := io.ReadAll(block.Body)
			if err != nil {
				return nil, fmt.Errorf("%s: want OpenPGP public keys: %w", from, err)
			}
			blocks = append(blocks, body)
		}
	}
	for _, block := range blocks {
		list, err := openpgp.ReadKeyRing(bytes.NewReader(block))
		if err != nil {
			return nil, fmt.Errorf("%s: want OpenPGP public keys: %w", from, err)
		}
		keys.list = append(keys.list, list...)
	}
	if len(keys.list) == 0 {
		return nil, fmt.Errorf("%s: want OpenPGP public keys, got none", from)
	}
	return keys, nil
}

// String names the keys by their fingerprints, and says where they are from.
func (k *Keys) String() string {
	var all []string
	for _, e := range k.list {
		all = append(all, fingerprint(e))
	}
	const few = 3
	if len(all) > few {
		all = append(all[:few], fmt.Sprintf("%d more", len(all)-few))
	}
	return strings.Join(all, ", ") + " (" + k.from + ")"
}

// have says whether a key of this fingerprint is among them.
func (k *Keys) have(want string) bool {
	return slices.ContainsFunc(k.list, func(e *openpgp.Entity) bool { return fingerprint(e) == want })
}

// fingerprint is the full one of a primary key, in upper case as gpg shows it.
func fingerprint(e *openpgp.Entity) string { return fmt.Sprintf("%X", e.PrimaryKey.Fingerprint) }

// SignatureError is what is not signed as it should be.
type SignatureError struct {
	What string // URL
	Err  error
}

func (e *SignatureError) Error() string { return e.What + ": " + e.Err.Error() }
func (e *SignatureError) Unwrap() error { return e.Err }

// detached checks a detached signature, in text or binary, of what signed reads,
// and returns the fingerprint of the key.
func (k *Keys) detached(signed io.Reader, signature []byte, config *packet.Config) (string, error) {
	body := io.Reader(bytes.NewReader(signature))
	if bytes.HasPrefix(bytes.TrimSpace(signature), []byte(armored)) {
		block, err := armor.Decode(bytes.NewReader(signature))
		if err != nil {
			return "", fmt.Errorf("the signature cannot be read: %w", err)
		}
		body = block.Body
	}
	return k.verify(signed, body, config)
}

// clear checks a list that has its signature around it, and returns the part of
// it that is signed.
func (k *Keys) clear(list []byte, config *packet.Config) (signed []byte, by string, err error) {
	block, _ := clearsign.Decode(list)
	if block == nil {
		return nil, "", errors.New("it has no signature in it, and no other is named")
	}
	by, err = k.verify(bytes.NewReader(block.Bytes), block.ArmoredSignature.Body, config)
	return block.Plaintext, by, err
}

func (k *Keys) verify(signed, signature io.Reader, config *packet.Config) (string, error) {
	md, err := openpgp.VerifyDetachedSignatureReader(k.list, signed, signature, config)
	if errors.Is(err, openpgperrors.ErrUnknownIssuer) {
		return "", errors.New("there is no signature in it")
	}
	if err != nil {
		return "", fmt.Errorf("the signature cannot be read: %w", err)
	}
	if _, err := io.Copy(io.Discard, md.UnverifiedBody); err != nil {
		return "", err
	}
	switch {
	case errors.Is(md.SignatureError, openpgperrors.ErrUnknownIssuer):
		var by []string
		for _, c := range md.SignatureCandidates {
			by = append(by, fmt.Sprintf("%016X", c.IssuerKeyId))
		}
		return "", fmt.Errorf("want a signature by %s, got one by %s", k, strings.Join(slices.Compact(by), ", "))
	case md.SignatureError != nil:
		return "", fmt.Errorf("wrong signature: %w", md.SignatureError)
	case md.SignedBy == nil: // never without an error
		return "", errors.New("wrong signature")
	}
	return fingerprint(md.SignedBy.Entity), nil
}

// maxSignature is how long a signature may be, in bytes.
const maxSignature = 1 << 20

// signature fetches one.
func (p Puller) signature(ctx context.Context, r Request) ([]byte, error) {
	b, err := p.fetch(ctx, r.Signature, maxSignature)
	if err != nil {
		return nil, fmt.Errorf("the publisher's signature: %w", err)
	}
	return b, nil
}

// signedList checks the publisher's list of checksums, and returns the part of it
// that is signed, and by which key.
func (p Puller) signedList(ctx context.Context, r Request, list []byte) (signed []byte, by string, err error) {
	config := &packet.Config{Time: p.Now}
	if r.Signature == "" {
		signed, by, err = r.Keys.clear(list, config)
	} else {
		var signature []byte
		if signature, err = p.signature(ctx, r); err != nil {
			return nil, "", err
		}
		signed = list
		by, err = r.Keys.detached(bytes.NewReader(list), signature, config)
	}
	if err != nil {
		return nil, "", &SignatureError{Redacted(r.Checksums), err}
	}
	return signed, by, nil
}

// signedImage checks a signature of the image itself, and returns by which key it
// is.
func (p Puller) signedImage(ctx context.Context, r Request, f *os.File, signature []byte) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	m := p.meter(Checking, 0, st.Size())
	by, err := r.Keys.detached(m.reader(ctx, f), signature, &packet.Config{Time: p.Now})
	if err != nil {
		return "", &SignatureError{Redacted(r.URL), err}
	}
	return by, nil
}

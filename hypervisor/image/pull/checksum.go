package pull

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/url"
	"path"
	"strings"
)

// Sum is a checksum. The zero value is none.
type Sum struct {
	Algorithm string // "sha256" or "sha512"
	Hex       string // in lower case
}

func (s Sum) zero() bool { return s.Hex == "" }

// String is the notation of ParseSum; "" for none.
func (s Sum) String() string {
	if s.zero() {
		return ""
	}
	return s.Algorithm + ":" + s.Hex
}

func (s Sum) hash() hash.Hash {
	if s.Algorithm == "sha512" {
		return sha512.New()
	}
	return sha256.New()
}

// ParseSum reads "sha256:HEX", "sha512:HEX", or the digits alone, whose number
// tells the algorithm.
func ParseSum(text string) (Sum, error) {
	algorithm, digits, found := strings.Cut(text, ":")
	if !found {
		algorithm, digits = "", text
	}
	s, ok := newSum(algorithm, digits)
	if !ok {
		return Sum{}, fmt.Errorf("want a checksum such as sha256:… with 64 or sha512:… with 128 hexadecimal digits, got %q", text)
	}
	return s, nil
}

// newSum checks the digits; algorithm may be "".
func newSum(algorithm, digits string) (Sum, bool) {
	digits = strings.ToLower(digits)
	by := map[int]string{64: "sha256", 128: "sha512"}[len(digits)]
	if _, err := hex.DecodeString(digits); err != nil || by == "" || algorithm != "" && algorithm != by {
		return Sum{}, false
	}
	return Sum{by, digits}, true
}

// ChecksumError is an image that is not what it should be.
type ChecksumError struct {
	Want Sum
	Got  string
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("wrong checksum: want %s, got %s", e.Want, e.Got)
}

// maxList is how long a list of checksums may be, in bytes.
const maxList = 4 << 20

// published is the checksum that the publisher's list has for an image, and the
// fingerprint of the key that the list is signed by, "" where none was asked for.
func (p Puller) published(ctx context.Context, r Request) (s Sum, signedBy string, err error) {
	list, err := p.fetch(ctx, r.Checksums, maxList)
	if err != nil {
		return Sum{}, "", fmt.Errorf("the publisher's checksums: %w", err)
	}
	if r.Keys != nil {
		if list, signedBy, err = p.signedList(ctx, r, list); err != nil {
			return Sum{}, "", err
		}
	}
	s, err = findSum(list, baseName(r.URL))
	if err == nil && !r.Checksum.zero() && s != r.Checksum {
		err = fmt.Errorf("want the checksum %s, got %s", r.Checksum, s)
	}
	if err != nil {
		return Sum{}, "", fmt.Errorf("%s: %w", Redacted(r.Checksums), err)
	}
	return s, signedBy, nil
}

// baseName is the last part of a URL's path.
func baseName(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return path.Base(u.Path)
}

// findSum finds the checksum of a file in a list: lines of sha256sum(1), with
// or without --tag (BSD's notation); others, such as those of a signature, mean
// nothing here. A list of one is that of the file, whatever it is called there:
// publishers link names to builds.
func findSum(list []byte, name string) (Sum, error) {
	var all []Sum
	var found []Sum
	lines := bufio.NewScanner(bytes.NewReader(list))
	lines.Buffer(nil, maxList)
	for lines.Scan() {
		s, of, ok := parseLine(lines.Text())
		if !ok {
			continue
		}
		all = append(all, s)
		if path.Base(of) == name {
			found = append(found, s)
		}
	}
	if err := lines.Err(); err != nil {
		return Sum{}, err
	}
	if len(all) == 1 {
		return all[0], nil
	}
	if len(found) == 0 {
		return Sum{}, fmt.Errorf("no checksum of %s in it", name)
	}
	for _, s := range found {
		if s.Algorithm == "sha512" {
			return s, nil
		}
	}
	for _, s := range found[1:] {
		if s != found[0] {
			return Sum{}, errors.New("two checksums of " + name + " in it")
		}
	}
	return found[0], nil
}

// parseLine reads "HEX  NAME", "HEX *NAME", "HEX" or "SHA256 (NAME) = HEX".
func parseLine(line string) (s Sum, name string, ok bool) {
	line = strings.TrimSpace(line)
	if before, digits, isBSD := strings.Cut(line, ") = "); isBSD {
		algorithm, name, _ := strings.Cut(before, " (")
		s, ok := newSum(strings.ToLower(algorithm), digits)
		return s, name, ok
	}
	digits, name, _ := strings.Cut(line, " ")
	s, ok = newSum("", digits)
	return s, strings.TrimPrefix(strings.TrimSpace(name), "*"), ok
}

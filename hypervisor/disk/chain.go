package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Layer is one image of a [Chain].
type Layer struct {
	Path   string // by which it was named
	Format string
	File   *os.File // open for reading
	Header Header   // of a qcow2 image
}

// Chain is an image and all that it stands on, from the top down. Its files are
// open, and none is opened again by what an image says: what was checked is what
// is read.
type Chain []Layer

// Close closes the files below the top, which is its opener's.
func (c Chain) Close() {
	for _, l := range c[min(1, len(c)):] {
		l.File.Close()
	}
}

// Opener opens a file that an image names, or says why it may not be read.
type Opener func(path string) (*os.File, error)

// ErrLoop is a chain without an end.
var ErrLoop = errors.New("circular backing files")

// MaxChain is how many images may stand on each other; a longer chain goes in
// circles, or is nothing that anybody wants to read.
const MaxChain = 200

// MissingError is a backing file that is not there.
type MissingError struct{ Child, Backing string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s stands on %s, which does not exist", e.Child, e.Backing)
}

// OpenChain follows an image, opened already, to its end. It refuses what cannot
// be what it is said to be, and what has its content elsewhere.
func OpenChain(top Layer, open Opener) (Chain, error) {
	c := Chain{top}
	fail := func(err error) (Chain, error) {
		c.Close()
		return nil, err
	}
	for {
		l := &c[len(c)-1]
		if err := l.check(); err != nil {
			return fail(err)
		}
		if l.Header.Backing == "" {
			return c, nil
		}
		path, err := Backing(l.Path, l.Header)
		if err != nil {
			return fail(err)
		}
		if l.Header.BackingFormat == "" {
			return fail(fmt.Errorf("%s stands on %s, but does not say of which format that is", l.Path, path))
		}
		f, err := open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return fail(&MissingError{l.Path, path})
		}
		if err != nil {
			return fail(fmt.Errorf("%s stands on %s: %w", l.Path, path, err))
		}
		loop := c.Has(f)
		c = append(c, Layer{Path: path, Format: l.Header.BackingFormat, File: f})
		if loop || len(c) > MaxChain {
			return fail(fmt.Errorf("%w: %s", ErrLoop, c.names()))
		}
	}
}

// check reads the header, where there is one.
func (l *Layer) check() (err error) {
	switch l.Format {
	case QCOW2:
		if l.Header, err = ReadHeader(l.File); err != nil {
			return Check(l.File, l.Format)
		}
		if l.Header.DataFile {
			return fmt.Errorf("%s has its content in another file, which is not supported", l.Path)
		}
		if l.Header.Encrypted {
			return fmt.Errorf("%s is encrypted by qcow2's own means, for which no key can be given", l.Path)
		}
		return nil
	case "vmdk":
		if err := CheckVMDK(l.File); err != nil {
			return fmt.Errorf("%s: %w", l.Path, err)
		}
	case "vdi", "vpc", "vhdx":
	case Raw:
		return nil
	default:
		return fmt.Errorf("%s: images of the format %q are not supported", l.Path, l.Format)
	}
	return Check(l.File, l.Format)
}

// Backing is the path of the file that a qcow2 image, named path, stands on, ""
// where it stands on none. QEMU allows whole descriptions of what to open in its
// place, and URLs: those are an error.
func Backing(path string, h Header) (string, error) {
	name := h.Backing
	if name == "" {
		return "", nil
	}
	before, _, _ := strings.Cut(name, "/")
	if strings.Contains(before, ":") || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("%s stands on %q, which is not a file", path, name)
	}
	if filepath.IsAbs(name) {
		return filepath.Clean(name), nil
	}
	return filepath.Join(filepath.Dir(path), name), nil
}

// Has says whether a file is one of the chain's.
func (c Chain) Has(f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	for _, l := range c {
		if b, err := l.File.Stat(); err == nil && os.SameFile(a, b) {
			return true
		}
	}
	return false
}

func (c Chain) names() string {
	var names []string
	for _, l := range c {
		names = append(names, l.Path)
	}
	return strings.Join(names, " → ")
}

// Package image is the store of images that disks begin with. A stored image is
// a file that is never written again, and beside it a record of what it is,
// which alone makes it a stored one: no half of an image is ever seen.
//
// It knows no network, how images get here is package pull's, and nothing of
// machines but that their disks may stand on an image.
package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// Image is the record of a stored image.
type Image struct {
	Name        string    `json:"name"`
	Format      string    `json:"format"`             // found out once, when it was stored; never again
	VirtualSize int64     `json:"virtual_size_bytes"` // that a guest sees
	FileSize    int64     `json:"file_size_bytes"`
	SHA256      string    `json:"sha256"`    // of the stored file, 64 hexadecimal digits
	Source      string    `json:"source"`    // URL, or path of the file that was imported
	Checksum    string    `json:"checksum"`  // of what came from the source, which it was compared with: "sha512:…"; "" for nothing
	SignedBy    string    `json:"signed_by"` // fingerprint of the OpenPGP key by which it, or the publisher's list of checksums, is signed; "": not asked for
	StoredAt    time.Time `json:"stored_at"`
}

// Store is the images in paths.Images.
type Store struct{ Paths config.Paths }

// Lock keeps images from being stored, replaced and deleted by others, until
// unlock is called or the process ends. It is for moments: what takes long is
// done before, under [Store.LockName].
func (s Store) Lock() (unlock func(), err error) { return s.lock(unix.LOCK_EX) }

// Hold keeps images from being replaced and deleted while a disk is made of
// one. Several may hold.
func (s Store) Hold() (release func(), err error) { return s.lock(unix.LOCK_SH) }

func (s Store) lock(how int) (func(), error) {
	if err := s.makeDir(); err != nil {
		return nil, err
	}
	dir, err := os.Open(s.Paths.Images)
	if err != nil {
		return nil, err
	}
	if err := access.Flock(dir, how); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", s.Paths.Images, err)
	}
	return func() { dir.Close() }, nil
}

// makeDir makes the store's directory, which everybody may search: it is
// machines' users that read images.
func (s Store) makeDir() error {
	err := os.MkdirAll(filepath.Dir(s.Paths.Images), 0o755)
	if err != nil {
		return err
	}
	err = os.Mkdir(s.Paths.Images, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(s.Paths.Images, 0o755) // whatever the umask
}

// ErrLocked is a lock that somebody else has.
var ErrLocked = errors.New("somebody else is at it")

// LockName makes the caller the only one that stores an image by this name; the
// error is [ErrLocked] where another is at it.
func (s Store) LockName(name string) (unlock func(), err error) {
	if err := s.makeDir(); err != nil {
		return nil, err
	}
	path := s.Paths.ImageTemp(name, "lock")
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := access.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if err == unix.EWOULDBLOCK {
				err = ErrLocked
			}
			return nil, err
		}
		// Who had it before has removed it.
		if same(f, path) {
			return func() {
				// Left behind it would do no harm.
				_ = os.Remove(path)
				f.Close()
			}, nil
		}
		f.Close()
	}
}

// same says whether path still is the file f.
func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// Get returns the record of a stored image; the error is fs.ErrNotExist where
// there is none of that name.
func (s Store) Get(name string) (Image, error) {
	var i Image
	if err := config.CheckImageName(name); err != nil {
		return i, fmt.Errorf("image %q: %w", name, fs.ErrNotExist)
	}
	b, err := os.ReadFile(s.Paths.ImageRecord(name))
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(b, &i); err != nil {
		return i, fmt.Errorf("%s: %w", s.Paths.ImageRecord(name), err)
	}
	i.Name = name
	return i, nil
}

// Check says whether the file of a stored image is there as it was stored, by
// what can be seen without reading it.
func (s Store) Check(i Image) error {
	path := s.Paths.Image(i.Name)
	st, err := os.Lstat(path)
	switch {
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", path)
	case st.Size() != i.FileSize:
		return fmt.Errorf("%s has changed: it was stored with %d bytes and has %d", path, i.FileSize, st.Size())
	}
	return nil
}

// Verify reads the whole file of a stored image and compares it with the record;
// done is told how many bytes were read.
func (s Store) Verify(i Image, done func(int64)) error {
	if err := s.Check(i); err != nil {
		return err
	}
	f, err := os.Open(s.Paths.Image(i.Name))
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.TeeReader(f, counter(done))); err != nil {
		return err
	}
	if is := hex.EncodeToString(h.Sum(nil)); is != i.SHA256 {
		return fmt.Errorf("%s has changed: it was stored with sha256 %s and has %s", f.Name(), i.SHA256, is)
	}
	return nil
}

// counter is a Writer that only says how much was written.
type counter func(int64)

func (c counter) Write(p []byte) (int, error) {
	c(int64(len(p)))
	return len(p), nil
}

// Names are those of the stored images, sorted, by a look at the directory
// alone.
func (s Store) Names() ([]string, error) {
	entries, err := os.ReadDir(s.Paths.Images)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(filepath.Base(e.Name()), ".json")
		if ok && config.CheckImageName(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, err
}

// Left are the files of pulls that were broken off and that nobody is at now:
// the next pull of the image would go on with them.
func (s Store) Left() ([]string, error) {
	var files []string
	err := s.eachLeft(func(path string) error {
		files = append(files, path)
		return nil
	})
	return files, err
}

// RemoveLeft removes those of the files that nobody has gone on with meanwhile.
func (s Store) RemoveLeft(files []string) error {
	return s.eachLeft(func(path string) error {
		if !slices.Contains(files, path) {
			return nil
		}
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // somebody has gone on with it, and has done
		}
		return err
	})
}

// eachLeft calls f for each file that a pull has left, while no other can begin.
func (s Store) eachLeft(f func(path string) error) error {
	entries, err := os.ReadDir(s.Paths.Images)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		for _, kind := range []string{"part", "part.json", "new", "record"} {
			name, ok := strings.CutSuffix(strings.TrimPrefix(e.Name(), "."), "."+kind)
			if !ok || config.CheckImageName(name) != nil || e.Name() != filepath.Base(s.Paths.ImageTemp(name, kind)) {
				continue
			}
			if unlock, err := s.LockName(name); err == nil {
				errs = append(errs, f(filepath.Join(s.Paths.Images, e.Name())))
				unlock()
			}
			break
		}
	}
	return errors.Join(errs...)
}

// InUseError is an image that disks stand on, so that it can be neither
// replaced nor deleted.
type InUseError struct {
	Image    string
	Children []Child
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s is what %s stands on", e.Image, describe(e.Children))
}

// describe names disks by their machines: "the disk of web", "the disks of db
// and web".
func describe(children []Child) string {
	vms := Machines(children)
	noun := "the disk of "
	if len(children) > 1 {
		noun = "the disks of "
	}
	if last := len(vms) - 1; last > 0 {
		return "each of " + noun + strings.Join(vms[:last], ", ") + " and " + vms[last]
	}
	return noun + strings.Join(vms, "")
}

// Put stores what lies at temp, a file of the store's directory, by the image's
// name, whole or not at all, also through a crash of the host. An image of that
// name is replaced, unless disks stand on it (an [*InUseError]).
func (s Store) Put(temp string, i Image) error {
	unlock, err := s.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	check := s.free
	if _, err := os.Lstat(s.Paths.ImageRecord(i.Name)); errors.Is(err, fs.ErrNotExist) {
		check = s.vacant
	}
	if err := check(i.Name); err != nil {
		return err
	}
	if err := syncFile(temp); err != nil {
		return err
	}
	record, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	if err := s.forget(i.Name); err != nil {
		return err
	}
	if err := os.Rename(temp, s.Paths.Image(i.Name)); err != nil {
		return err
	}
	// Not before: who is killed in between leaves a file that can be gone on
	// with, also by a root without its capabilities.
	if err := seal(s.Paths.Image(i.Name)); err != nil {
		return err
	}
	return s.writeRecord(i.Name, append(record, '\n'))
}

// writeRecord makes an image a stored one, for good. The store is locked: no
// other writes to the same file aside.
func (s Store) writeRecord(name string, record []byte) error {
	temp := s.Paths.ImageTemp(name, "record")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(temp, record, 0o600); err != nil {
		return err
	}
	if err := seal(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, s.Paths.ImageRecord(name)); err != nil {
		return err
	}
	return s.sync()
}

// sync makes the names in the store's directory survive a crash of the host.
func (s Store) sync() error {
	dir, err := os.Open(s.Paths.Images)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// seal makes a file one that everybody reads and nobody writes, and that
// survives a crash of the host.
func seal(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	return f.Sync()
}

// syncFile makes the content of a file survive a crash of the host.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Delete removes an image, unless disks stand on it (an [*InUseError]).
func (s Store) Delete(name string) error {
	unlock, err := s.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Lstat(s.Paths.ImageRecord(name)); err != nil {
		return err
	}
	if err := s.free(name); err != nil {
		return err
	}
	if err := s.forget(name); err != nil {
		return err
	}
	err = os.Remove(s.Paths.Image(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// forget removes a record for good: from then on the file is no stored image.
func (s Store) forget(name string) error {
	err := os.Remove(s.Paths.ImageRecord(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.sync()
}

// free is an [*InUseError] where disks stand on an image. The store is locked,
// so that none is being made.
func (s Store) free(name string) error {
	all, err := s.Children()
	if err != nil {
		return err
	}
	return inUse(name, all)
}

// vacant is an [*InUseError] where machines have disks that stand on an image
// that is not stored: somebody has removed its file. Elsewhere it is not looked,
// so that nothing that any definition names is in the way of a first pull.
func (s Store) vacant(name string) error {
	own, err := s.ownChildren()
	if err != nil {
		return err
	}
	return inUse(name, group(own))
}

func inUse(name string, all map[string][]Child) error {
	if children := all[name]; len(children) > 0 {
		return &InUseError{name, children}
	}
	return nil
}

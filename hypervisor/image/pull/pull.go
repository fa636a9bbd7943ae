// Package pull brings images into the store: from a publisher's server, or from
// a file of the host. It downloads, goes on with what broke off, compares
// checksums, unpacks, looks at what it has got, and hands that to the store.
package pull

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor/image"
)

// Puller brings images into a store.
type Puller struct {
	Store     image.Store
	Inspector image.Inspector
	Client    *http.Client                         // [NewClient] makes one
	Progress  func(Progress)                       // called from one goroutine, often
	Now       func() time.Time                     // for records and rates
	Sleep     func(context.Context, time.Duration) // between attempts
}

// New returns a Puller that tells nobody of its progress. qemuImg is the
// program, "" where there is none.
func New(store image.Store, qemuImg, userAgent string) Puller {
	return Puller{
		Store:     store,
		Inspector: image.Inspector{QemuImg: qemuImg},
		Client:    NewClient(userAgent),
		Progress:  func(Progress) {},
		Now:       time.Now,
		Sleep: func(ctx context.Context, d time.Duration) {
			select {
			case <-ctx.Done():
			case <-time.After(d):
			}
		},
	}
}

// Request is an image to be stored.
type Request struct {
	Name      string // that it is stored by
	URL       string // where it is: http or https
	File      string // or: a file of the host
	Checksum  Sum    // of what is there, as it is there; none where zero
	Checksums string // or: URL of a list of checksums
	Format    string // of what it unpacks to; found out where ""
	Update    bool   // replace an image of that name

	// Keys, where not nil, ask for a signature by one of them: of the list of
	// checksums, by the detached one at the URL Signature or, where that is "",
	// by the one around the list itself. Without a list it is the image that is
	// signed.
	Keys      *Keys
	Signature string

	signedBy string // fingerprint of the key that the list of checksums is signed by
}

// imageSigned says whether it is the image itself that has to be signed.
func (r Request) imageSigned() bool { return r.Keys != nil && r.Checksums == "" }

// Pull stores an image. Where one of that name is stored already, or another
// process stores it meanwhile, it is taken, and fresh is false; with
// Request.Update it is replaced by what the publisher has now, if that differs.
func (p Puller) Pull(ctx context.Context, r Request) (stored image.Image, fresh bool, err error) {
	before, err := p.Store.Get(r.Name)
	if err == nil && !r.Update {
		return before, false, errors.Join(r.suits(before), p.Store.Check(before))
	}
	unlock, err := p.lock(ctx, r.Name)
	if err != nil {
		return image.Image{}, false, err
	}
	defer unlock()
	now, err := p.Store.Get(r.Name)
	switch {
	case err == nil && (!r.Update || now.SHA256 != before.SHA256):
		return now, false, errors.Join(r.suits(now), p.Store.Check(now)) // somebody else's pull, while we waited
	case err == nil:
		if children, err := p.Store.Children(); err != nil {
			return image.Image{}, false, err
		} else if len(children[r.Name]) > 0 {
			return image.Image{}, false, &image.InUseError{Image: r.Name, Children: children[r.Name]}
		}
	case !errors.Is(err, fs.ErrNotExist):
		return image.Image{}, false, err
	}
	if r.File != "" {
		stored, err = p.fromFile(ctx, r)
		return stored, err == nil, err
	}
	if r.Checksums != "" && (r.Checksum.zero() || r.Keys != nil) {
		if r.Checksum, r.signedBy, err = p.published(ctx, r); err != nil {
			return image.Image{}, false, err
		}
	}
	same := !r.Checksum.zero() && now.Checksum == r.Checksum.String() && now.SignedBy == r.signedBy && !r.imageSigned()
	if same && p.Store.Check(now) == nil {
		return now, false, nil // the publisher has nothing newer
	}
	stored, err = p.fromURL(ctx, r)
	return stored, err == nil, err
}

// StoredError is an image that is stored already and is not what was asked for.
type StoredError struct{ Why string }

func (e *StoredError) Error() string { return "it is stored already, " + e.Why }

// suits is a [*StoredError] where a stored image is not known to have the checksum
// or the signature that is asked for.
func (r Request) suits(i image.Image) error {
	switch {
	case !r.Checksum.zero() && i.Checksum != r.Checksum.String() && "sha256:"+i.SHA256 != r.Checksum.String():
		return &StoredError{fmt.Sprintf("and was not compared with %s but with %q", r.Checksum, i.Checksum)}
	case r.Keys != nil && !r.Keys.have(i.SignedBy):
		return &StoredError{fmt.Sprintf("and not signed by %s", r.Keys)}
	}
	return nil
}

// waitStep is how often it is looked whether another process has done.
const waitStep = 200 * time.Millisecond

// lock waits until nobody else stores an image by this name.
func (p Puller) lock(ctx context.Context, name string) (func(), error) {
	for {
		unlock, err := p.Store.LockName(name)
		if !errors.Is(err, image.ErrLocked) {
			return unlock, err
		}
		p.Progress(Progress{Phase: Waiting})
		p.Sleep(ctx, waitStep)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("waiting for another process that stores %s: %w", name, err)
		}
	}
}

// fromURL downloads an image and stores it.
func (p Puller) fromURL(ctx context.Context, r Request) (image.Image, error) {
	var signature []byte
	if r.imageSigned() {
		var err error
		if signature, err = p.signature(ctx, r); err != nil {
			return image.Image{}, err
		}
	}
	f, err := p.download(ctx, r)
	if err != nil {
		return image.Image{}, err
	}
	defer f.Close()
	if r.imageSigned() {
		if r.signedBy, err = p.signedImage(ctx, r, f, signature); err != nil {
			if _, wrong := errors.AsType[*SignatureError](err); wrong {
				err = errors.Join(err, p.forget(r.Name))
			}
			return image.Image{}, err
		}
	}
	stored, err := p.store(ctx, r, f, Redacted(r.URL))
	if _, rejected := errors.AsType[*RejectedError](err); err == nil || rejected {
		err = errors.Join(err, p.forget(r.Name))
	}
	return stored, err
}

// Redacted is a URL without the password that may be in it.
func Redacted(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	return u.Redacted()
}

// RejectedError is an image that came well but cannot be stored.
type RejectedError struct {
	Source string
	Err    error
}

func (e *RejectedError) Error() string { return e.Source + ": " + e.Err.Error() }
func (e *RejectedError) Unwrap() error { return e.Err }

// fromFile stores a copy of a file.
func (p Puller) fromFile(ctx context.Context, r Request) (image.Image, error) {
	f, err := os.OpenFile(r.File, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return image.Image{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return image.Image{}, err
	}
	if !st.Mode().IsRegular() {
		return image.Image{}, fmt.Errorf("%s is not a regular file", r.File)
	}
	if !r.Checksum.zero() {
		if err := p.compare(ctx, f, r.Checksum); err != nil {
			return image.Image{}, fmt.Errorf("%s: %w", r.File, err)
		}
	}
	source, err := filepath.Abs(r.File)
	if err != nil {
		return image.Image{}, err
	}
	return p.store(ctx, r, f, source)
}

// store unpacks or takes what is in f, looks at it and stores it. Where f is
// the download itself and is no archive, it becomes the image.
func (p Puller) store(ctx context.Context, r Request, f *os.File, source string) (image.Image, error) {
	temp := p.Store.Paths.ImageTemp(r.Name, "new")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return image.Image{}, err // of a process that was killed: we have the lock
	}
	kind, err := archive(f)
	if err != nil {
		return image.Image{}, err
	}
	if f.Name() == p.part(r.Name) && kind == "" {
		temp = f.Name()
	} else {
		out, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return image.Image{}, err
		}
		defer os.Remove(temp) // gone already if all went well
		defer out.Close()
		if err := p.unpack(ctx, out, f, kind); err != nil {
			return image.Image{}, fmt.Errorf("unpack %s: %w", source, describe(err))
		}
		f = out
	}
	format, size, err := p.Inspector.Inspect(ctx, f, r.Format)
	if err != nil {
		return image.Image{}, &RejectedError{source, err}
	}
	sum, n, err := p.sum(ctx, f)
	if err != nil {
		return image.Image{}, err
	}
	i := image.Image{
		Name: r.Name, Format: format, VirtualSize: size, FileSize: n, SHA256: sum,
		Source: source, Checksum: r.Checksum.String(), SignedBy: r.signedBy, StoredAt: p.Now().UTC().Truncate(time.Second),
	}
	if err := p.Store.Put(temp, i); err != nil {
		return image.Image{}, err
	}
	return i, nil
}

// sum is the sha256 and length of a file.
func (p Puller) sum(ctx context.Context, f *os.File) (string, int64, error) {
	st, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", 0, err
	}
	h := sha256.New()
	m := p.meter(Checking, 0, st.Size())
	n, err := io.Copy(h, m.reader(ctx, f))
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// compare reads a file and compares it with a checksum.
func (p Puller) compare(ctx context.Context, f *os.File, want Sum) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	h := want.hash()
	m := p.meter(Checking, 0, st.Size())
	if _, err := io.Copy(h, m.reader(ctx, f)); err != nil {
		return err
	}
	if is := hex.EncodeToString(h.Sum(nil)); is != want.Hex {
		return &ChecksumError{Want: want, Got: is}
	}
	return nil
}

// describe makes a full disk known by more than its errno.
func describe(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("the store has no room for it: %w", err)
	}
	return err
}

// Package guestcopy copies files and directories into guests and out of them, by
// whatever runs scripts there: a guest agent, or ssh. What arrives is checked by
// size and SHA-256, and only then gets the name that it is to have: whoever looks
// finds what was there before, or all that is new.
//
// Guests are not trusted: nothing that one sends is written outside of the
// destination, and no FIFO or device of one is opened.
package guestcopy

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Guest is a way into a guest.
type Guest interface {
	// Run runs a script of a POSIX shell there, with arguments, in the home of
	// whoever it runs as, and returns its exit status and what it wrote to
	// stderr. Its output is short.
	Run(ctx context.Context, script string, args []string, stdout io.Writer) (code int, stderr string, err error)
	// WriteFile replaces what a file there has; it exists.
	WriteFile(ctx context.Context, path string, r io.Reader) error
	// ReadFile reads a regular file there.
	ReadFile(ctx context.Context, path string, w io.Writer) error
}

// Result is what was copied.
type Result struct {
	Destination string // the path that it has
	Bytes       int64  // that went through; of a directory those of an archive of it
	SHA256      string // of those
}

// Progress is called as bytes go through; total is 0 where it is not known.
type Progress func(done, total int64)

const (
	// clearTime is how long it may take to remove what an attempt has left.
	clearTime = 10 * time.Second
	// maxReply bounds what a script says, in bytes.
	maxReply = 64 << 10
)

// The steps in the guest: sh -c THESE vmctl STEP ARGUMENT...
//
//go:embed steps.sh
var steps string

// step runs one of steps.sh and returns what it prints.
func step(ctx context.Context, g Guest, args ...string) (string, error) {
	var out reply
	code, stderr, err := g.Run(ctx, steps, args, &out)
	if err != nil {
		return "", err
	}
	if code != 0 {
		text := strings.TrimSpace(stderr)
		if text == "" {
			text = fmt.Sprintf("exit status %d", code)
		}
		return "", fmt.Errorf("in the guest: %s", text)
	}
	return strings.TrimSuffix(out.String(), "\n"), nil
}

// reply is what a script says.
type reply struct{ bytes.Buffer }

func (r *reply) Write(p []byte) (int, error) {
	if r.Len()+len(p) > maxReply {
		return 0, fmt.Errorf("the guest says more than %d bytes", maxReply)
	}
	return r.Buffer.Write(p)
}

// clear removes what an attempt has left in the guest, also where ctx has ended.
func clear(ctx context.Context, g Guest, paths ...string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTime)
	defer cancel()
	if _, err := step(ctx, g, append([]string{"clear"}, paths...)...); err != nil {
		return fmt.Errorf("%s may be left in the guest: %w", strings.Join(paths, " and "), err)
	}
	return nil
}

// meter counts and sums what goes through it.
type meter struct {
	sum      hash.Hash
	done     int64
	total    int64
	progress Progress
}

func newMeter(total int64, progress Progress) *meter {
	return &meter{sum: sha256.New(), total: total, progress: progress}
}

func (m *meter) Write(p []byte) (int, error) {
	m.sum.Write(p)
	m.done += int64(len(p))
	m.progress(m.done, m.total)
	return len(p), nil
}

func (m *meter) hex() string { return hex.EncodeToString(m.sum.Sum(nil)) }

// temporary is a name that nobody else has.
func temporary() string {
	b := make([]byte, 8)
	rand.Read(b)
	return ".vmctl-copy-" + hex.EncodeToString(b)
}

// Push copies a file or, with recursive, a directory of the host to dst in the
// guest: what it becomes, or a directory that it goes into.
func Push(ctx context.Context, g Guest, src, dst string, recursive bool, progress Progress) (Result, error) {
	// Not opened before it is known what it is: a FIFO would wait for a writer.
	info, err := os.Stat(src)
	if err != nil {
		return Result{}, err
	}
	base := filepath.Base(src)
	if abs, err := filepath.Abs(src); err == nil {
		base = filepath.Base(abs)
	}
	switch {
	case info.IsDir() && !recursive:
		return Result{}, fmt.Errorf("%s is a directory: want -r", src)
	case info.IsDir():
		r, w := io.Pipe()
		go func() { w.CloseWithError(pack(src, w)) }()
		defer r.Close()
		return push(ctx, g, r, dst, upload{kind: "dir", base: base}, progress)
	case !info.Mode().IsRegular():
		return Result{}, fmt.Errorf("%s is neither a file nor a directory", src)
	}
	f, err := os.Open(src)
	if err != nil {
		return Result{}, err
	}
	defer f.Close()
	return push(ctx, g, f, dst, upload{"file", base, octal(info), strconv.FormatInt(info.ModTime().Unix(), 10), info.Size()}, progress)
}

// PushStream makes a file in the guest of what r gives.
func PushStream(ctx context.Context, g Guest, r io.Reader, dst string, progress Progress) (Result, error) {
	return push(ctx, g, r, dst, upload{kind: "file"}, progress)
}

// upload is what is known beforehand of what goes into the guest.
type upload struct {
	kind  string // "file" or "dir", which comes as an archive
	base  string // its name where dst is a directory; "" for a stream, which has none
	mode  string // "" for that of a new file
	mtime string // seconds since 1970; "" for now
	total int64
}

func push(ctx context.Context, g Guest, r io.Reader, dst string, u upload, progress Progress) (_ Result, err error) {
	// The paths come one a line, so none has a line break in it.
	if strings.ContainsAny(dst+u.base, "\n\x00") {
		return Result{}, fmt.Errorf("%q: want a path without line breaks", dst)
	}
	said, err := step(ctx, g, "push", u.kind, dst, u.base, temporary())
	if err != nil {
		return Result{}, err
	}
	final, temp, ok := strings.Cut(said, "\n")
	if !ok || !path.IsAbs(final) || !path.IsAbs(temp) {
		return Result{}, fmt.Errorf("in the guest: want two paths, got %.200q", said)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, clear(ctx, g, temp, temp+".dir"))
		}
	}()
	m := newMeter(u.total, progress)
	if err := g.WriteFile(ctx, temp, io.TeeReader(r, m)); err != nil {
		return Result{}, err
	}
	if _, err := step(ctx, g, "pushed", u.kind, temp, final, strconv.FormatInt(m.done, 10), m.hex(), u.mode, u.mtime); err != nil {
		return Result{}, err
	}
	return Result{final, m.done, m.hex()}, nil
}

// octal are a file's permission bits.
func octal(info fs.FileInfo) string { return strconv.FormatUint(uint64(info.Mode().Perm()), 8) }

// Pull copies a file or, with recursive, a directory of the guest to dst on the
// host: what it becomes, or a directory that it goes into.
func Pull(ctx context.Context, g Guest, src, dst string, recursive bool, progress Progress) (Result, error) {
	found, err := stat(ctx, g, src)
	if err != nil {
		return Result{}, err
	}
	if found.dir && !recursive {
		return Result{}, fmt.Errorf("%s is a directory: want -r", src)
	}
	final := dst
	if info, err := os.Stat(dst); err == nil && info.IsDir() {
		// Of what was asked for, not of what the guest says that it is.
		base := path.Base(path.Clean(src))
		if base == "." || base == ".." || base == "/" {
			return Result{}, fmt.Errorf("%s is a directory, and %s has no name to get there: want a destination that is not there yet", dst, src)
		}
		final = filepath.Join(dst, base)
	} else if strings.HasSuffix(dst, "/") {
		return Result{}, fmt.Errorf("%s is no directory", dst)
	}
	if found.dir {
		return pullDir(ctx, g, found, final, progress)
	}
	if info, err := os.Stat(final); err == nil && !info.Mode().IsRegular() {
		return Result{}, fmt.Errorf("%s exists, and is not a file", final)
	}
	temp, err := os.OpenFile(filepath.Join(filepath.Dir(final), temporary()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Result{}, err
	}
	// Gone under this name once it has the other.
	defer os.Remove(temp.Name())
	defer temp.Close()
	r, err := pull(ctx, g, found, temp, progress)
	if err != nil {
		return r, err
	}
	if err := errors.Join(temp.Chmod(hostMode(found.mode)), temp.Sync(), temp.Close()); err != nil {
		return r, err
	}
	if err := os.Chtimes(temp.Name(), found.mtime, found.mtime); err != nil {
		return r, err
	}
	r.Destination = final
	return r, os.Rename(temp.Name(), final)
}

// hostMode is what is left here of a mode of the guest: no bits that lend rights,
// none that let others write, and what the umask allows.
func hostMode(mode fs.FileMode) fs.FileMode {
	// It can be asked for only by setting it, so to what is safe meanwhile.
	umask := syscall.Umask(0o077)
	syscall.Umask(umask)
	return mode.Perm() &^ 0o022 &^ fs.FileMode(umask)
}

// PullStream writes a file of the guest to w.
func PullStream(ctx context.Context, g Guest, src string, w io.Writer, progress Progress) (Result, error) {
	found, err := stat(ctx, g, src)
	if err != nil {
		return Result{}, err
	}
	if found.dir {
		return Result{}, fmt.Errorf("%s is a directory", src)
	}
	return pull(ctx, g, found, w, progress)
}

// entry is a file or directory of the guest.
type entry struct {
	path  string // absolute
	dir   bool
	mode  fs.FileMode
	size  int64
	mtime time.Time
}

func stat(ctx context.Context, g Guest, src string) (entry, error) {
	if strings.ContainsAny(src, "\n\x00") {
		return entry{}, fmt.Errorf("%q: want a path without line breaks", src)
	}
	said, err := step(ctx, g, "stat", src)
	if err != nil {
		return entry{}, err
	}
	wrong := fmt.Errorf("in the guest: want what %s is, got %.200q", src, said)
	numbers, name, ok := strings.Cut(said, "\n")
	fields := strings.Fields(numbers)
	if !ok || len(fields) != 3 || !path.IsAbs(name) {
		return entry{}, wrong
	}
	mode, err1 := strconv.ParseUint(fields[0], 16, 32)
	size, err2 := strconv.ParseInt(fields[1], 10, 64)
	mtime, err3 := strconv.ParseInt(fields[2], 10, 64)
	if errors.Join(err1, err2, err3) != nil || size < 0 {
		return entry{}, wrong
	}
	e := entry{path: name, mode: fs.FileMode(mode & 0o777), size: size, mtime: time.Unix(mtime, 0)}
	switch mode & 0o170000 {
	case 0o100000:
	case 0o040000:
		e.dir = true
	default:
		return entry{}, fmt.Errorf("in the guest: %s is neither a file nor a directory", src)
	}
	return e, nil
}

// bounded passes on as much of a file of the guest as it is said to have.
type bounded struct {
	w io.Writer
	e entry // size: what is left
}

func (b *bounded) Write(p []byte) (int, error) {
	if int64(len(p)) > b.e.size {
		return 0, fmt.Errorf("in the guest: %s has more bytes than it said: it is changing", b.e.path)
	}
	n, err := b.w.Write(p)
	b.e.size -= int64(n)
	return n, err
}

// pull copies the bytes of a file of the guest and compares them.
func pull(ctx context.Context, g Guest, e entry, w io.Writer, progress Progress) (Result, error) {
	m := newMeter(e.size, progress)
	if err := g.ReadFile(ctx, e.path, &bounded{io.MultiWriter(w, m), e}); err != nil {
		return Result{}, err
	}
	if _, err := step(ctx, g, "pulled", e.path, strconv.FormatInt(m.done, 10), m.hex()); err != nil {
		return Result{}, err
	}
	return Result{"-", m.done, m.hex()}, nil
}

// pullDir copies a directory, as an archive that is made in the guest and
// unpacked as it arrives.
func pullDir(ctx context.Context, g Guest, e entry, final string, progress Progress) (_ Result, err error) {
	if _, err := os.Lstat(final); err == nil {
		return Result{}, fmt.Errorf("%s: %w", final, fs.ErrExist)
	}
	said, err := step(ctx, g, "archive", e.path, temporary())
	if err != nil {
		return Result{}, err
	}
	bytes, archive, ok := strings.Cut(said, "\n")
	size, sizeErr := strconv.ParseInt(bytes, 10, 64)
	if !ok || sizeErr != nil || !path.IsAbs(archive) {
		return Result{}, fmt.Errorf("in the guest: want a size and a path, got %.200q", said)
	}
	defer func() { err = errors.Join(err, clear(ctx, g, archive)) }()

	temp := filepath.Join(filepath.Dir(final), temporary())
	if err := os.Mkdir(temp, 0o700); err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(temp)
	r, w := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := unpack(r, temp, size)
		r.CloseWithError(err)
		unpacked <- err
	}()
	result, err := pull(ctx, g, entry{path: archive, size: size}, w, progress)
	w.CloseWithError(err)
	if unpackErr := <-unpacked; err == nil {
		err = unpackErr
	}
	if err != nil {
		return Result{}, err
	}
	result.Destination = final
	return result, os.Rename(temp, final)
}

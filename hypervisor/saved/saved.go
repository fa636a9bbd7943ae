// Package saved keeps machines that were put away while they ran: memory and
// devices in one file, compressed, and a record of what they are of.
//
// The record decides: with it the machine is saved, without it what else lies
// there is rest of a saving or loading that was cut off. It is written last,
// while the CPUs stand still, and removed before they run again, so that memory
// never meets disks that have changed since.
package saved

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// Record is what is known of a saved machine: the content of paths.SavedRecord.
type Record struct {
	ID      string                 `json:"id"`      // of this one among all
	Started hypervisor.Record      `json:"started"` // what the machine ran with
	Format  hypervisor.StateFormat `json:"format"`
	Saved   time.Time              `json:"saved"`
	Paused  bool                   `json:"paused,omitempty"`
	Memory  int64                  `json:"memory_bytes"`
	Bytes   int64                  `json:"bytes"` // of paths.SavedState

	// Files are those that the machine writes to, as they were left.
	Files []File `json:"files"`
	// Overridden is what the definition said of the link and limits of cards for which
	// they were set until the machine stops ([hypervisor.Changes.Overridden]).
	Overridden map[string]string `json:"overridden_nics,omitempty"`
	// Seed is a SHA-256 hash of the cloud-init seed; "" without one.
	Seed string `json:"seed,omitempty"`

	// LoadError is why loading it failed the last time; "" if that has not
	// been tried, or been told.
	LoadError string `json:"load_error,omitempty"`
}

// File is a file as it was at one time.
type File struct {
	Path     string    `json:"path"`
	Size     int64     `json:"size"` // bytes
	Modified time.Time `json:"modified"`
}

// NewID names a saved machine.
func NewID() string { return rand.Text() }

// Look is a file as it is now. A device has neither size nor time.
func Look(path string) (File, error) {
	s, err := os.Stat(path)
	if err != nil {
		return File{}, err
	}
	f := File{Path: path}
	if s.Mode().IsRegular() {
		f.Size, f.Modified = s.Size(), s.ModTime().UTC()
	}
	return f, nil
}

// Written are the files that a plan's machine writes to.
func Written(plan *hypervisor.Plan) (paths []string) {
	for _, f := range plan.Files {
		if f.Disk && f.Write {
			paths = append(paths, f.Path)
		}
	}
	for _, n := range plan.New {
		paths = append(paths, n.Path)
	}
	return paths
}

// Changed says which of the files that the machine writes to is not as it was
// left, and in what; "" for none.
func (r *Record) Changed() string {
	for _, was := range r.Files {
		is, err := Look(was.Path)
		switch {
		case err != nil:
			return err.Error()
		case is.Size != was.Size:
			return fmt.Sprintf("%s had %d bytes, and has %d", was.Path, was.Size, is.Size)
		case !is.Modified.Equal(was.Modified):
			return fmt.Sprintf("%s was written to at %s", was.Path, is.Modified.Local().Format(time.DateTime))
		}
	}
	return ""
}

// SeedHash is what [Record.Seed] is of a seed.
func SeedHash(seed []byte) string {
	sum := sha256.Sum256(seed)
	return hex.EncodeToString(sum[:])
}

// SameMachine says whether two definitions are the same, secrets left out, and
// what can be changed while a machine runs.
func SameMachine(a, b *config.Machine) bool {
	one, err := json.Marshal(lasting(a))
	if err != nil {
		return false
	}
	other, err := json.Marshal(lasting(b))
	return err == nil && string(one) == string(other)
}

// Differing are the keys in which two definitions are not the same machine to a saved
// state, as far as that can be told.
func Differing(a, b *config.Machine) []string {
	var keys []string
	for _, d := range config.Differences(lasting(a), lasting(b)) {
		keys = append(keys, d.Key)
	}
	return keys
}

// lasting is a machine without secrets and what can be changed while it runs.
func lasting(m *config.Machine) *config.Machine {
	unlimited := map[string]config.DiskLimits{}
	for _, d := range m.Disks {
		unlimited[d.Name] = config.DiskLimits{}
	}
	out := m.Redacted().WithoutReloaded().WithLive(config.LiveSettings{CPUs: m.CPUs, Memory: m.Memory, Disks: unlimited})
	for i := range out.NICs {
		out.NICs[i] = out.NICs[i].WithSettings(config.NIC{})
	}
	return out
}

// Exists says whether a machine is saved.
func Exists(paths config.Paths, vm string) bool {
	return access.IsThere(paths.SavedRecord(vm))
}

// Read returns the record of a saved machine, nil where it is not saved.
func Read(paths config.Paths, vm string) (*Record, error) {
	b, err := os.ReadFile(paths.SavedRecord(vm))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(Record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", paths.SavedRecord(vm), err)
	}
	if r.Started.Machine == nil || r.Started.Plan == nil {
		return nil, fmt.Errorf("%s: no machine or no plan in it", paths.SavedRecord(vm))
	}
	r.Started.Plan.Credentials = r.Started.Machine.Credentials // which no plan is written with
	return r, nil
}

// Write replaces the record, for good.
func (r *Record) Write(paths config.Paths, vm string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return access.WriteFile(paths.SavedRecord(vm), b, 0o600, true)
}

// newState is a state that is not whole yet.
func newState(paths config.Paths, vm string) string {
	path := paths.SavedState(vm)
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// WriteState compresses r to the end and puts it on the disk, not yet in its
// place. It returns the number of bytes there. After an error it has read r to
// its end all the same, or closed it, as the writer of a pipe has to know.
func WriteState(paths config.Paths, vm string, r io.ReadCloser) (n int64, err error) {
	return Compress(newState(paths, vm), r)
}

// CopyState is WriteState of what [Compress] has written elsewhere.
func CopyState(paths config.Paths, vm, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(newState(paths, vm), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil { // shares the blocks where the file system can
		return err
	}
	return out.Sync()
}

// Compress is WriteState for a file of any place.
func Compress(path string, r io.ReadCloser) (n int64, err error) {
	defer r.Close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// Half of a guest's memory is soon found to be the same; the rest is not
	// worth the time.
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(z, r)
	if err := errors.Join(err, z.Close(), f.Sync()); err != nil {
		return 0, err
	}
	return f.Seek(0, io.SeekCurrent)
}

// Keep makes what [WriteState] wrote the saved machine of r. With an error,
// there is none.
func (r *Record) Keep(paths config.Paths, vm string) error {
	err := os.Rename(newState(paths, vm), paths.SavedState(vm))
	if err == nil {
		err = access.SyncDir(paths.StateDir(vm))
	}
	if err == nil {
		err = r.Write(paths, vm)
	}
	if err != nil {
		return errors.Join(err, Discard(paths, vm))
	}
	return nil
}

// Forget removes the record, for good. Nothing will be loaded any more; what is
// being loaded has its state.
func Forget(paths config.Paths, vm string) error {
	err := os.Remove(paths.SavedRecord(vm))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return access.SyncDir(paths.StateDir(vm))
}

// Discard removes a saved machine, or the rest of one.
func Discard(paths config.Paths, vm string) error {
	if err := Forget(paths, vm); err != nil {
		return err
	}
	errs := []error{access.RemoveUnwritten(paths.SavedRecord(vm))}
	for _, path := range []string{paths.SavedState(vm), newState(paths, vm)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ReadState writes the state in f, decompressed, to w, and tells with each part
// how many bytes of f have been read. The state has been whole where it returns
// nil, also where w has ended before.
func ReadState(f io.Reader, w io.Writer, progress func(read int64)) error {
	count := &counter{r: f, progress: progress}
	z, err := zstd.NewReader(count, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30))
	if err != nil {
		return err
	}
	defer z.Close()
	_, err = io.Copy(&toItsEnd{w: w}, z)
	return err
}

// toItsEnd writes as long as there is a reader, and is content without: whether
// what is written was whole is only known at its end.
type toItsEnd struct {
	w     io.Writer
	ended bool
}

func (t *toItsEnd) Write(p []byte) (int, error) {
	if t.ended {
		return len(p), nil
	}
	n, err := t.w.Write(p)
	if errors.Is(err, unix.EPIPE) {
		t.ended = true
		return len(p), nil
	}
	return n, err
}

// counter counts what is read.
type counter struct {
	r        io.Reader
	n        int64
	progress func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.progress(c.n)
	return n, err
}

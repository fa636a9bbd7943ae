package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor/access"
)

// Draft is a backup that is being made.
type Draft struct {
	series Series
	id     string
	dir    string
}

// Begin makes the directory of a new backup, for the caller alone.
func (s Series) Begin(id string) (*Draft, error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, err
	}
	d := &Draft{s, id, filepath.Join(s.Dir, "."+id+newSuffix)}
	return d, os.Mkdir(d.dir, 0o700)
}

// Create makes an empty file in the backup.
func (d *Draft) Create(name string) (*os.File, error) {
	path := filepath.Join(d.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
}

// Put writes a file of the backup.
func (d *Draft) Put(name string, content []byte) (File, error) {
	f, err := d.Create(name)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return File{}, err
	}
	sum := sha256.Sum256(content)
	return File{name, int64(len(content)), hex.EncodeToString(sum[:])}, f.Sync()
}

// Describe has a file of the backup survive a crash of the host, and says what is
// in it. on is told of each part that was read, in bytes.
func (d *Draft) Describe(ctx context.Context, name string, on func(n int)) (File, error) {
	f, err := os.Open(filepath.Join(d.dir, name))
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return File{}, err
	}
	n, sum, err := hash(ctx, f, on)
	return File{name, n, sum}, err
}

// Finish writes the manifest and gives the backup its name: from then on it is
// there, and stays.
func (d *Draft) Finish(m Manifest) (Backup, error) {
	content, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return Backup{}, err
	}
	if _, err := d.Put(manifestName, append(content, '\n')); err != nil {
		return Backup{}, err
	}
	for _, dir := range []string{filepath.Join(d.dir, DefinitionDir), d.dir} {
		if err := access.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Backup{}, err
		}
	}
	b := Backup{filepath.Join(d.series.Dir, d.id), m}
	if err := os.Rename(d.dir, b.Dir); err != nil {
		return Backup{}, err
	}
	return b, errors.Join(access.SyncDir(d.series.Dir), access.SyncDir(filepath.Dir(d.series.Dir)))
}

// Abandon removes what there is of a backup that is not made. It does nothing
// once that is finished.
func (d *Draft) Abandon() error { return os.RemoveAll(d.dir) }

// chunk is how much is read at once, in bytes.
const chunk = 4 << 20

// hash reads a file to its end.
func hash(ctx context.Context, f io.Reader, on func(n int)) (bytes int64, sum string, err error) {
	h := sha256.New()
	buf := make([]byte, chunk)
	for {
		if ctx.Err() != nil {
			return bytes, "", ctx.Err()
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		bytes += int64(n)
		on(n)
		if err == io.EOF {
			return bytes, hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return bytes, "", err
		}
	}
}

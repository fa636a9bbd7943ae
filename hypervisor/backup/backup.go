// Package backup knows backups of machines as they lie on a disk: a directory
// for each, in one for each machine, in the directory that a person names.
//
//	TARGET/NAME/20260102T030405Z/manifest.json   what the rest is; written last
//	                             root.qcow2      a disk: all of it, or what has
//	                                             changed since the one it stands on
//	                             nvram.qcow2     UEFI variables
//	                             tpm.state       state of the TPM
//	                             definition/     its files, in the order of merging
//
// A backup is there whole or not at all: it is made as ".ID.new" and gets its
// name at the end. The package knows no hypervisor, and nothing that runs.
package backup

import (
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
)

// Version is that of the manifest's format.
const Version = 1

const (
	manifestName = "manifest.json"
	maxManifest  = 4 << 20 // bytes
	idForm       = "20060102T150405Z"
	newSuffix    = ".new"
	goneSuffix   = ".deleted"
)

// DefinitionDir is the directory of the definition's files in a backup.
const DefinitionDir = "definition"

// TPMFile is the file with the state of the TPM in a backup.
const TPMFile = "tpm.state"

// Manifest says what is in a backup.
type Manifest struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	VM      string    `json:"vm"`
	Created time.Time `json:"created"` // the moment that the disks are as of
	// Series is the same in all backups of a machine below one directory, and
	// part of the names of their bitmaps.
	Series     string `json:"series"`
	Running    bool   `json:"running"`  // the guest ran
	Quiesced   bool   `json:"quiesced"` // the guest's agent had frozen its file systems, or it did not run
	Definition []File `json:"definition,omitempty"`
	NVRAM      *Disk  `json:"nvram,omitempty"`
	TPM        *File  `json:"tpm,omitempty"`
	Disks      []Disk `json:"disks"`
}

// File is one file of a backup.
type File struct {
	Name   string `json:"file"` // below the backup's directory
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Disk is the copy of one disk, a qcow2 image.
type Disk struct {
	Disk string `json:"disk"` // its name in the definition; "" for the UEFI variables
	File
	VirtualSize int64  `json:"virtual_size_bytes"`
	Format      string `json:"format"` // of the disk itself
	// Parent is the backup whose copy of the disk this one stands on; "" where
	// it is whole.
	Parent string `json:"parent,omitempty"`
	// Bitmap is where the disk keeps what was written since; "" for none.
	Bitmap string `json:"bitmap,omitempty"`
	Reason string `json:"reason,omitempty"` // why it is whole and not what has changed
}

// DiskFile is the name of the file of a disk in a backup.
func DiskFile(disk string) string {
	if disk == "" {
		return "nvram.qcow2"
	}
	return "disk-" + disk + ".qcow2"
}

// Backing is the name of the file that an incremental copy stands on, as it is
// written into it; "" for a whole one.
func (d Disk) Backing() string {
	if d.Parent == "" {
		return ""
	}
	return "../" + d.Parent + "/" + d.Name
}

// All are the copies of disks, that of the UEFI variables among them.
func (m Manifest) All() []Disk {
	all := slices.Clone(m.Disks)
	if m.NVRAM != nil {
		all = append(all, *m.NVRAM)
	}
	return all
}

// others are the files that are no disks.
func (m Manifest) others() []File {
	others := slices.Clone(m.Definition)
	if m.TPM != nil {
		others = append(others, *m.TPM)
	}
	return others
}

// Find is the copy of a disk.
func (m Manifest) Find(disk string) (Disk, bool) {
	for _, d := range m.All() {
		if d.Disk == disk {
			return d, true
		}
	}
	return Disk{}, false
}

// Parents are the backups that this one stands on directly.
func (m Manifest) Parents() []string {
	var ids []string
	for _, d := range m.Disks {
		if d.Parent != "" && !slices.Contains(ids, d.Parent) {
			ids = append(ids, d.Parent)
		}
	}
	return ids
}

// Bytes is what all files of the backup have.
func (m Manifest) Bytes() int64 {
	var n int64
	for _, d := range m.All() {
		n += d.Bytes
	}
	for _, f := range m.others() {
		n += f.Bytes
	}
	return n
}

// Backup is one that is there.
type Backup struct {
	Dir string
	Manifest
}

// ErrNoBackup is a directory that is no backup.
var ErrNoBackup = errors.New("not a backup")

// Open reads what is in a backup. That it is whole, [Backup.Verify] tells.
func Open(dir string) (Backup, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Backup{}, err
	}
	b := Backup{Dir: dir}
	path := filepath.Join(dir, manifestName)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return b, fmt.Errorf("%s: %w: it has no %s", dir, ErrNoBackup, manifestName)
	}
	if err != nil {
		return b, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return b, err
	}
	if len(content) > maxManifest {
		return b, fmt.Errorf("%s: want at most %d bytes", path, maxManifest)
	}
	if err := json.Unmarshal(content, &b.Manifest); err != nil {
		return b, fmt.Errorf("%s: %w", path, err)
	}
	if err := b.check(filepath.Base(dir)); err != nil {
		return b, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// check says what is wrong with a manifest in a directory of that name.
func (m Manifest) check(dir string) error {
	if m.Version != Version {
		return fmt.Errorf("want version %d of the format, got %d: made by another version of vmctl", Version, m.Version)
	}
	if !validID(m.ID) {
		return fmt.Errorf("id: want a time such as %s, got %q", idForm, m.ID)
	}
	if m.ID != dir {
		return fmt.Errorf("it is of the backup %s, not %s: rename the directory back", m.ID, dir)
	}
	if err := config.CheckName(m.VM); err != nil {
		return fmt.Errorf("vm: %w", err)
	}
	if m.NVRAM != nil && (m.NVRAM.Disk != "" || m.NVRAM.Parent != "") {
		return errors.New("nvram: it is no disk")
	}
	if m.TPM != nil && m.TPM.Name != TPMFile {
		return fmt.Errorf("tpm: want the file %s, got %q", TPMFile, m.TPM.Name)
	}
	names := map[string]bool{}
	for _, d := range m.Disks {
		if err := config.CheckName(d.Disk); err != nil {
			return fmt.Errorf("disk: %w", err)
		}
		if names[d.Disk] {
			return fmt.Errorf("disk %s is there twice", d.Disk)
		}
		names[d.Disk] = true
		if d.Parent != "" && (!validID(d.Parent) || d.Parent >= m.ID) {
			return fmt.Errorf("disk %s: want an earlier backup as parent, got %q", d.Disk, d.Parent)
		}
	}
	for _, d := range m.All() {
		if d.Name != DiskFile(d.Disk) {
			return fmt.Errorf("disk %s: want the file %s, got %q", d.Disk, DiskFile(d.Disk), d.Name)
		}
	}
	for _, f := range m.Definition {
		if filepath.Dir(f.Name) != DefinitionDir || strings.HasPrefix(filepath.Base(f.Name), ".") {
			return fmt.Errorf("want a file in %s/, got %q", DefinitionDir, f.Name)
		}
	}
	return nil
}

func validID(id string) bool {
	t, err := time.Parse(idForm, id)
	return err == nil && t.Format(idForm) == id
}

// Series are the backups of one machine.
type Series struct{ Dir string }

// SeriesOf are those of a machine below the directory that a person names.
func SeriesOf(target, vm string) Series { return Series{filepath.Join(target, vm)} }

// IDs are the backups that are there, oldest first.
func (s Series) IDs() ([]string, error) {
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []string
	for _, e := range entries { // sorted
		if e.IsDir() && validID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Latest is the last backup; nil where there is none. The error may be of one
// that cannot be read.
func (s Series) Latest() (*Backup, error) {
	ids, err := s.IDs()
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	b, err := Open(filepath.Join(s.Dir, ids[len(ids)-1]))
	if err != nil {
		return nil, err
	}
	return &b, nil
}

// NextID is a name for a backup that is made now: later than all that are there,
// whatever the clock says.
func (s Series) NextID(now time.Time) (string, error) {
	ids, err := s.IDs()
	if err != nil {
		return "", err
	}
	id := now.UTC().Format(idForm)
	if len(ids) == 0 || id > ids[len(ids)-1] {
		return id, nil
	}
	last, err := time.Parse(idForm, ids[len(ids)-1])
	return last.Add(time.Second).Format(idForm), err
}

// Clean removes what was left by who was killed: backups half made or half
// deleted. Nobody may be at one.
func (s Series) Clean() error {
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		name, hidden := strings.CutPrefix(e.Name(), ".")
		id, half := strings.CutSuffix(name, newSuffix)
		if !half {
			id, half = strings.CutSuffix(name, goneSuffix)
		}
		if hidden && half && validID(id) {
			errs = append(errs, os.RemoveAll(filepath.Join(s.Dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Delete removes a backup, at once as far as anybody can see.
func (s Series) Delete(id string) error {
	gone := filepath.Join(s.Dir, "."+id+goneSuffix)
	if err := os.Rename(filepath.Join(s.Dir, id), gone); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// Surplus are the backups that are not needed to have the last keep, oldest
// first: what those stand on is needed.
func Surplus(all []Backup, keep int) []Backup {
	needed := map[string]bool{}
	var surplus []Backup
	for i, b := range slices.Backward(all) {
		if i < len(all)-keep && !needed[b.ID] {
			surplus = append(surplus, b)
			continue
		}
		for _, id := range b.Parents() {
			needed[id] = true
		}
	}
	slices.Reverse(surplus)
	return surplus
}

// Package snapshot keeps the records of a machine's snapshots, and knows what
// belongs to one.
//
// What the disks held lies inside of their own images (qcow2's internal
// snapshots), under a tag that no two snapshots share. All else is in the
// snapshot's directory: this record, the definition that the machine had, the
// files of its state such as UEFI variables, and its memory. A snapshot is there
// when its directory is, which comes to its name last.
//
// How a snapshot is taken and restored is others' to know.
package snapshot

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// Snapshot is what is known of one. The names of its fields in JSON stay.
type Snapshot struct {
	Name        string    `json:"name"`
	Description string    `json:"description"`
	Created     time.Time `json:"created_at"`
	// Parent is the snapshot that was taken or restored last before, "" for
	// none.
	Parent    string `json:"parent"`
	State     State  `json:"state"`     // of the machine
	Quiesced  bool   `json:"quiesced"`  // the guest had written out its file systems
	Scheduled bool   `json:"scheduled"` // taken by a timer
	Tag       string `json:"tag"`       // by which it is known in the images
	Disks     []Disk `json:"disks"`
	// Files are those of the machine's state: names in the snapshot's
	// directory.
	Files []string `json:"files"`
	// MemoryBytes is the size of the file with the memory, 0 for a snapshot of
	// the disks alone.
	MemoryBytes int64 `json:"memory_bytes"`
}

// State is what a machine did when a snapshot of it was taken.
type State string

const (
	Running State = "running"
	Paused  State = "paused"
	Stopped State = "stopped"
)

// Disk is a disk that a snapshot has.
type Disk struct {
	Name string `json:"name"`
	Path string `json:"path"`
	Size int64  `json:"size_bytes"` // of the disk; 0 where that is not known
}

// NewTag makes a tag for a snapshot. Images are copied, and machines deleted and
// defined anew: with the random part, nothing that is left of another snapshot
// can be taken for this one.
func NewTag(name string) string {
	b := make([]byte, 4)
	_, _ = rand.Read(b) // never fails
	return TagPrefix + name + "-" + hex.EncodeToString(b)
}

// TagPrefix is what the tags of all snapshots begin with: others in an image are
// somebody else's.
const TagPrefix = "vmctl-"

// The files in a snapshot's directory.
const (
	recordFile     = "snapshot.json"
	definitionFile = "definition.json" // root's alone: it has secrets
	memoryFile     = "memory.zst"
	memoryRecord   = "memory.json"
	currentFile    = "current" // beside the directories: the parent of the next
)

// New makes the directory of a snapshot that is not there yet. [Snapshot.Place]
// brings it to its name.
func New(paths config.Paths, vm, name string) (dir string, err error) {
	if err := os.Mkdir(paths.Snapshots(vm), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	dir = Draft(paths, vm, name)
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	// The unit's UMask= holds here too.
	return dir, errors.Join(os.Chmod(paths.Snapshots(vm), 0o755), os.Chmod(dir, 0o755))
}

// Draft is where a snapshot's directory is until it is whole.
func Draft(paths config.Paths, vm, name string) string {
	return filepath.Join(paths.Snapshots(vm), "."+name+".new")
}

// Place writes the record and the definition, and brings the directory to its
// name.
func (s Snapshot) Place(paths config.Paths, vm string, definition hypervisor.Record) error {
	dir := Draft(paths, vm, s.Name)
	for file, content := range map[string]struct {
		v    any
		mode os.FileMode
	}{
		definitionFile: {definition, 0o600},
		recordFile:     {s, 0o644},
	} {
		b, err := json.Marshal(content.v)
		if err != nil {
			return err
		}
		if err := access.WriteFile(filepath.Join(dir, file), b, content.mode, true); err != nil {
			return err
		}
	}
	if err := os.Rename(dir, paths.Snapshot(vm, s.Name)); err != nil {
		return err
	}
	return access.SyncDir(paths.Snapshots(vm))
}

// Get reads the record of a snapshot. The error is fs.ErrNotExist where there is
// none of that name.
func Get(paths config.Paths, vm, name string) (Snapshot, error) {
	var s Snapshot
	return s, read(filepath.Join(paths.Snapshot(vm, name), recordFile), &s)
}

func read(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Names are those of a machine's snapshots, sorted.
func Names(paths config.Paths, vm string) ([]string, error) {
	entries, err := os.ReadDir(paths.Snapshots(vm))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && config.CheckName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// List reads the records of all of a machine's snapshots, the oldest first.
func List(paths config.Paths, vm string) ([]Snapshot, error) {
	names, err := Names(paths, vm)
	if err != nil {
		return nil, err
	}
	var all []Snapshot
	for _, name := range names {
		s, err := Get(paths, vm, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	slices.SortStableFunc(all, func(a, b Snapshot) int { return a.Created.Compare(b.Created) })
	return all, nil
}

// Current is the snapshot that was taken or restored last, "" for none.
func Current(paths config.Paths, vm string) (string, error) {
	b, err := os.ReadFile(filepath.Join(paths.Snapshots(vm), currentFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// SetCurrent says which snapshot was taken or restored last.
func SetCurrent(paths config.Paths, vm, name string) error {
	return access.WriteFile(filepath.Join(paths.Snapshots(vm), currentFile), []byte(name+"\n"), 0o644, true)
}

// Remove removes the record of a snapshot. What was taken after it has its
// parent as parent from then on.
func Remove(paths config.Paths, vm string, s Snapshot) error {
	all, err := List(paths, vm)
	if err != nil {
		return err
	}
	for _, child := range all {
		if child.Parent == s.Name {
			child.Parent = s.Parent
			b, err := json.Marshal(child)
			if err != nil {
				return err
			}
			if err := access.WriteFile(filepath.Join(paths.Snapshot(vm, child.Name), recordFile), b, 0o644, true); err != nil {
				return err
			}
		}
	}
	current, err := Current(paths, vm)
	if err != nil {
		return err
	}
	if current == s.Name {
		if err := SetCurrent(paths, vm, s.Parent); err != nil {
			return err
		}
	}
	// First out of sight: half of one is none.
	gone := Draft(paths, vm, s.Name)
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	if err := os.Rename(paths.Snapshot(vm, s.Name), gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := access.SyncDir(paths.Snapshots(vm)); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// Memory is the file with a snapshot's memory, and MemoryRecord what it is of.
func Memory(dir string) string       { return filepath.Join(dir, memoryFile) }
func MemoryRecord(dir string) string { return filepath.Join(dir, memoryRecord) }

// Expired are those of a machine's snapshots that a schedule took and that are
// more than it keeps, the oldest first. Those that people took are not counted.
func Expired(all []Snapshot, keep int) []Snapshot {
	scheduled := slices.DeleteFunc(slices.Clone(all), func(s Snapshot) bool { return !s.Scheduled })
	slices.SortStableFunc(scheduled, func(a, b Snapshot) int { return a.Created.Compare(b.Created) })
	return scheduled[:max(0, len(scheduled)-keep)]
}

// FreeName is a name for a snapshot by the time it is taken at, that none of
// names is.
func FreeName(now time.Time, names []string) string {
	name := now.Format("20060102-150405")
	for n := 2; slices.Contains(names, name); n++ {
		name = now.Format("20060102-150405") + fmt.Sprintf("-%d", n)
	}
	return name
}

// Branch is a snapshot with those that were taken after it.
type Branch struct {
	Snapshot
	Children []Branch
}

// Tree are the snapshots without a parent, with what was taken after them, the
// oldest first.
func Tree(all []Snapshot) []Branch { return branches(all, "", map[string]bool{}) }

func branches(all []Snapshot, parent string, seen map[string]bool) []Branch {
	has := func(name string) bool {
		return slices.ContainsFunc(all, func(s Snapshot) bool { return s.Name == name })
	}
	var out []Branch
	for _, s := range all {
		above := s.Parent
		if !has(above) {
			above = ""
		}
		if above != parent || seen[s.Name] {
			continue
		}
		seen[s.Name] = true
		out = append(out, Branch{s, branches(all, s.Name, seen)})
	}
	slices.SortStableFunc(out, func(a, b Branch) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	return out
}

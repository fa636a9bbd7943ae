// Package operation makes sure that one thing at a time is done to a machine's
// disks and state, that one which was cut off half-way is known and can be
// mended, and that whoever asked for it learns how it goes.
//
// What is done, and how it is mended, is others' to know.
package operation

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// Lock makes the caller the only one that changes a machine's disks and state,
// until unlock is called or the process ends. what is for whoever is refused
// meanwhile, who gets an [*Error] of status [WrongState]: "a backup", "starting".
//
// Programs that the caller runs inherit file, which holds the lock too: one that
// outlives its caller for a moment must not meet whoever comes next.
func Lock(paths config.Paths, vm, what string) (file *os.File, unlock func(), err error) {
	if err := os.MkdirAll(paths.Locks, 0o700); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(paths.Lock(vm), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if err := access.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			err = busy(paths, vm)
		}
		return nil, nil, err
	}
	// The file stays: to remove it would let two have the lock.
	text := fmt.Sprintf("%s, process %d\n", what, os.Getpid())
	if err := errors.Join(f.Truncate(0), write(f, text)); err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("lock %s: %w", vm, err)
	}
	return f, func() { f.Close() }, nil
}

func write(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// busy is the refusal of who comes second.
func busy(paths config.Paths, vm string) error {
	who := "something else"
	if b, err := os.ReadFile(paths.Lock(vm)); err == nil && len(b) > 0 {
		who = strings.TrimSpace(string(b))
	}
	return &Error{Status: WrongState, Text: fmt.Sprintf("%s is under way for %s: wait for its end", who, vm)}
}

// Record is an operation that is under way, or was cut off.
type Record struct {
	Kind    string          `json:"kind"` // of what it is: "snapshot create"
	Started time.Time       `json:"started"`
	Detail  json.RawMessage `json:"detail"` // what is needed to mend it
}

// Operation is one that is under way.
type Operation struct {
	paths  config.Paths
	vm     string
	record Record
}

// Begin notes on the disk that an operation begins. The caller has the lock,
// and has mended what [Unfinished] tells of.
func Begin(paths config.Paths, vm, kind string, detail any) (*Operation, error) {
	old, err := Unfinished(paths, vm)
	if err != nil {
		return nil, err
	}
	if old != nil {
		return nil, fmt.Errorf("an earlier %s of %s has not been mended", old.Kind, vm)
	}
	return begin(paths, vm, kind, detail)
}

// Replace is Begin for what does anew, as a whole, what an operation of the same
// kind has left by half, which is not mended any more then.
func Replace(paths config.Paths, vm, kind string, detail any) (*Operation, error) {
	old, err := Unfinished(paths, vm)
	if err != nil {
		return nil, err
	}
	if old == nil || old.Kind != kind {
		return Begin(paths, vm, kind, detail)
	}
	return begin(paths, vm, kind, detail)
}

func begin(paths config.Paths, vm, kind string, detail any) (*Operation, error) {
	if err := access.MakeStateDir(paths, vm); err != nil {
		return nil, err
	}
	o := &Operation{paths: paths, vm: vm, record: Record{Kind: kind, Started: time.Now()}}
	return o, o.Note(detail)
}

// Note replaces what is needed to mend the operation, on the disk, before what
// it tells of is done.
func (o *Operation) Note(detail any) error {
	b, err := json.Marshal(detail)
	if err != nil {
		return err
	}
	o.record.Detail = b
	b, err = json.Marshal(o.record)
	if err != nil {
		return err
	}
	if err := access.WriteFile(o.paths.Operation(o.vm), b, 0o600, true); err != nil {
		return fmt.Errorf("note the %s: %w", o.record.Kind, err)
	}
	return nil
}

// End notes that nothing has to be mended.
func (o *Operation) End() error { return Forget(o.paths, o.vm) }

// Unfinished is the operation that was cut off, nil where none was. Without the
// machine's lock it may also be one that is under way.
func Unfinished(paths config.Paths, vm string) (*Record, error) {
	b, err := os.ReadFile(paths.Operation(vm))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(Record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", paths.Operation(vm), err)
	}
	return r, nil
}

// Forget notes that an operation that was cut off has been mended.
func Forget(paths config.Paths, vm string) error {
	err := os.Remove(paths.Operation(vm))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return access.SyncDir(filepath.Dir(paths.Operation(vm)))
}

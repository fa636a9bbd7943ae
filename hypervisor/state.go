package hypervisor

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
)

// StateSaver is a Control that can write a running machine's memory and devices
// to a stream, from which another start of the machine goes on.
type StateSaver interface {
	// StateFormat is what the stream of SaveState is of.
	StateFormat(ctx context.Context) (StateFormat, error)

	// CheckState says, as an [*UnsavableError], why the state of the machine
	// that was started with a plan's argv could not be loaded by the same argv,
	// or not be saved.
	CheckState(ctx context.Context, argv []string) error

	// StateArgv is the command line by which the machine as it is by now can be
	// started again, of the one by which it was: with the CPUs that were plugged in.
	StateArgv(ctx context.Context, argv []string) ([]string, error)

	// SaveState writes memory and devices to w, a pipe. The guest runs while
	// its memory is written; then its CPUs are stopped. At that point, with the
	// disks still open for writing, atStop is called (nil: nothing); its error,
	// as any, ends the saving, and the guest goes on as before. After nil the
	// CPUs are stopped and the disks flushed and let go of: EndSave goes on,
	// Quit ends.
	//
	// scratch is the plan's directory of that name, nil where it has none: what
	// is in it is removed, before and after.
	//
	// done and total are bytes of memory. Whoever reads from w has to go on
	// until its end, also once ctx has ended. The error is an [*UnsavableError]
	// where the machine is none of which that can be done.
	SaveState(ctx context.Context, w *os.File, scratch *os.Root, progress func(done, total int64), atStop func(context.Context) error) error

	// EndSave has the guest do again what it did before a SaveState, whether
	// that has ended well or who did it was killed: run, or with paused stand
	// still. It does nothing where there was none.
	EndSave(ctx context.Context, paused bool) error
}

// StateFormat is what a stream of memory and devices is of. Another format may
// not be loaded.
type StateFormat struct {
	// MachineType is the board with its version, e.g. "pc-q35-10.0": one
	// without means another in each version of the hypervisor.
	MachineType string `json:"machine_type"`
	Version     string `json:"version"` // of the hypervisor
}

// StateLoader is a Hypervisor that can go on from what a [StateSaver] wrote.
type StateLoader interface {
	// WithState is a plan's command line that has the state read from the
	// descriptor fd. The CPUs do not run once it is loaded: Resume has them.
	// It is pure.
	WithState(argv []string, fd int, format StateFormat) []string
}

// StateUnpacker is a Hypervisor that goes on from files, and not from what a
// [StateSaver] wrote as it is.
type StateUnpacker interface {
	// CheckFormat says, in one sentence, why the program of a command line cannot
	// load a state of a format.
	CheckFormat(ctx context.Context, argv []string, format StateFormat) error

	// UnpackState makes those files of the stream, in the plan's Scratch.
	UnpackState(r io.Reader, scratch *os.Root) error

	// WithUnpacked is a plan's command line that has the state read from there. The
	// CPUs do not run once it is loaded: Resume has them. It is pure.
	WithUnpacked(argv []string, scratch string) []string
}

// EmptyScratch removes all that is in the directory of Plan.Scratch.
func EmptyScratch(scratch *os.Root) error {
	dir, err := scratch.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	for _, name := range names {
		err = errors.Join(err, scratch.RemoveAll(name))
	}
	return err
}

// UnsavableError is a machine whose state cannot be written, because of what it
// is made of.
type UnsavableError struct{ Reasons []string }

func (e *UnsavableError) Error() string {
	return "the state of this machine cannot be saved: " + strings.Join(e.Reasons, "; ")
}

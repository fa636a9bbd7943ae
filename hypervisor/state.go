package hypervisor

import (
	"context"
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
	// done and total are bytes of memory. Whoever reads from w has to go on
	// until its end, also once ctx has ended. The error is an [*UnsavableError]
	// where the machine is none of which that can be done.
	SaveState(ctx context.Context, w *os.File, progress func(done, total int64), atStop func(context.Context) error) error

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

// UnsavableError is a machine whose state cannot be written, because of what it
// is made of.
type UnsavableError struct{ Reasons []string }

func (e *UnsavableError) Error() string {
	return "the state of this machine cannot be saved: " + strings.Join(e.Reasons, "; ")
}

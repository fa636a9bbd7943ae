package hypervisor

import (
	"context"
	"errors"
	"time"

	"github.com/vmctl/vmctl/config"
)

// Sizes are the CPUs and the memory of a machine that runs. Memory is in bytes.
type Sizes struct {
	CPUs, MaxCPUs int // that it has, and that it can have while it runs

	// Memory is what the guest is offered, of which it has taken TakenMemory; while
	// it runs, that is from StartMemory to MaxMemory, in steps of Step from the
	// former (0: they are the same).
	Memory, TakenMemory, StartMemory, MaxMemory, Step int64

	// Balloon is how much of StartMemory the balloon leaves to the guest, 0 where
	// the machine has none.
	Balloon int64
}

// Resizer is a Control that changes the CPUs and the memory of a machine that
// runs. Where that takes a restart, the error is a [RestartError].
type Resizer interface {
	Sizes(ctx context.Context) (Sizes, error)

	// SetCPUs plugs CPUs in, or asks the guest to let go of those that were. The
	// error is [ErrNotReleased] where ctx ends before it does, or
	// [ErrReleaseRefused].
	SetCPUs(ctx context.Context, n int) error

	// SetMemory offers the guest that many bytes. It takes, or gives, in its own
	// time, which is not waited for.
	SetMemory(ctx context.Context, bytes int64) error

	// SetBalloon leaves the guest that many bytes of what it was started with, in
	// its own time.
	SetBalloon(ctx context.Context, bytes int64) error
}

// RestartError is what cannot be changed while the machine runs.
type RestartError struct{ Reason string }

func (e *RestartError) Error() string { return e.Reason }

// MachineSet is what vmctl-unit operate does by a [SetRequest].
const MachineSet = "set"

// SetRequest is what a machine that runs is to be by now. What systemd alone has to
// know of it has been told to it.
type SetRequest struct {
	Settings config.LiveSettings `json:"settings"`
	Timeout  time.Duration       `json:"timeout"` // how long the guest may take

	// Limits says that those of its unit change, and Overrides are the files of such that
	// somebody has set by systemctl set-property, which stay. The operation itself
	// notes both.
	Limits    bool     `json:"limits,omitempty"`
	Overrides []string `json:"overrides,omitempty"`

	// Throttled are the limits that definitions gave to disks that are given others by
	// hand.
	Throttled map[string]config.DiskLimits `json:"throttled,omitempty"`
}

// SetResult is what came of it.
type SetResult struct {
	CPUs   int   `json:"cpus"`
	Memory int64 `json:"memory_bytes"` // that the guest is offered
	Taken  int64 `json:"taken_bytes"`  // that it has taken of that
	// Waiting are the keys of the settings that wait for a restart, and why.
	Waiting map[string]string `json:"waiting,omitempty"`
}

// Waits notes that a key waits for a restart, where that is what an error of a
// [Resizer] means; others it returns.
func (r *SetResult) Waits(key string, err error) error {
	reason := ""
	if restart, ok := errors.AsType[*RestartError](err); ok {
		reason = restart.Reason
	} else if errors.Is(err, ErrNotReleased) || errors.Is(err, ErrReleaseRefused) {
		reason = err.Error()
	} else {
		return err
	}
	if r.Waiting == nil {
		r.Waiting = map[string]string{}
	}
	r.Waiting[key] = reason
	return nil
}

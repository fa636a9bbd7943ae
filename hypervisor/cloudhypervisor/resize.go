package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
)

var _ hypervisor.Resizer = control{}

// memoryStep is by how much virtio-mem grows and shrinks (its block), memoryAlign
// what the room for it is a multiple of, both in bytes.
const (
	memoryStep  = 2 << 20
	memoryAlign = 128 << 20
)

// sizes is what vm.info says of CPUs and memory, in bytes.
type sizes struct {
	Config struct {
		CPUs struct {
			Boot int `json:"boot_vcpus"`
			Max  int `json:"max_vcpus"`
		} `json:"cpus"`
		Memory struct {
			Size       int64 `json:"size"`
			Hotplug    int64 `json:"hotplug_size"`
			Hotplugged int64 `json:"hotplugged_size"`
		} `json:"memory"`
		Balloon *struct {
			Size int64 `json:"size"`
		} `json:"balloon"`
	} `json:"config"`
	Actual int64 `json:"memory_actual_size"` // without what the balloon holds
}

// Sizes implements [hypervisor.Resizer]. The number of CPUs is what was asked for
// last, which it will be at the guest's next boot.
func (c control) Sizes(ctx context.Context) (s hypervisor.Sizes, err error) {
	var is sizes
	if err := c.get(ctx, "vm.info", &is); err != nil {
		return s, err
	}
	m := is.Config.Memory
	s.CPUs, s.MaxCPUs = is.Config.CPUs.Boot, is.Config.CPUs.Max
	s.StartMemory, s.Memory = m.Size, m.Size+m.Hotplugged
	s.MaxMemory = m.Size + m.Hotplug
	if m.Hotplug > 0 {
		s.Step = memoryStep
	}
	// What it tells is both together: what virtio-mem has, and the balloon has not.
	s.TakenMemory = is.Actual
	if is.Config.Balloon != nil {
		s.Balloon = m.Size
		if is.Config.Balloon.Size > 0 {
			s.TakenMemory = s.Memory
			s.Balloon = max(0, min(is.Actual-m.Hotplugged, m.Size))
		}
	}
	return s, nil
}

// SetCPUs implements [hypervisor.Resizer]. That a guest has let go of CPUs is told by
// the answer to another request for the same number: it is refused until then.
func (c control) SetCPUs(ctx context.Context, n int) error {
	s, err := c.Sizes(ctx)
	if err != nil {
		return err
	}
	if n > s.MaxCPUs {
		return &hypervisor.RestartError{Reason: fmt.Sprintf("it was started with room for %d CPUs (cpu.max)", s.MaxCPUs)}
	}
	requests := context.WithoutCancel(ctx)
	resize := func() error { return c.put(requests, "vm.resize", map[string]int{"desired_vcpus": n}, nil) }
	for step := releaseStep; ; step = min(2*step, maxReleaseStep) {
		err := resize()
		if err == nil && n < s.CPUs {
			err = resize() // the first was the request
		}
		if err == nil || !pending(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return hypervisor.ErrNotReleased
		case <-time.After(step):
		}
	}
}

// pending says whether a refusal is of a guest that has not let go of a CPU yet.
func pending(err error) bool {
	const tooManyRequests = 429 // before it had a status of its own, its words tell
	refused, ok := errors.AsType[*Error](err)
	return ok && (refused.Status == tooManyRequests || strings.Contains(strings.ToLower(refused.Error()), "pending"))
}

// SetMemory implements [hypervisor.Resizer].
func (c control) SetMemory(ctx context.Context, bytes int64) error {
	s, err := c.Sizes(ctx)
	if err != nil {
		return err
	}
	switch {
	case bytes == s.Memory:
		return nil
	case bytes < s.StartMemory:
		return &hypervisor.RestartError{Reason: fmt.Sprintf("it was started with %d MiB; vmctl balloon takes of that", s.StartMemory/mebibyte)}
	case bytes > s.MaxMemory:
		return &hypervisor.RestartError{Reason: fmt.Sprintf("it was started with room for %d MiB (memory_options.max)", s.MaxMemory/mebibyte)}
	case (bytes-s.StartMemory)%s.Step != 0:
		return &hypervisor.RestartError{Reason: fmt.Sprintf("it grows in steps of %d MiB from %d MiB", s.Step/mebibyte, s.StartMemory/mebibyte)}
	}
	return c.put(ctx, "vm.resize", map[string]int64{"desired_ram": bytes}, nil)
}

// SetBalloon implements [hypervisor.Resizer]: the balloon takes what is not left.
func (c control) SetBalloon(ctx context.Context, bytes int64) error {
	s, err := c.Sizes(ctx)
	if err != nil {
		return err
	}
	return c.put(ctx, "vm.resize", map[string]int64{"desired_balloon": max(0, s.StartMemory-bytes)}, nil)
}

package hypervisor

import (
	"context"
	"os"
	"slices"
	"time"

	"github.com/vmctl/vmctl/config"
)

// HotShare is one shared directory of a machine that runs: to be plugged in, or there
// already.
type HotShare struct {
	Machine *config.Machine // as it runs
	Share   config.Share
	Host    Host
	Paths   config.Paths

	// Started is the machine as it was started: whether others can map its memory was
	// decided then.
	Started *config.Machine
}

// SharePlanner is a Hypervisor that can plug shared directories into a machine that
// runs.
type SharePlanner interface {
	// PlanShare says what it takes to plug a share in, or why it cannot be: of the
	// plan, Sidecars is the one that serves it, and Descriptors are what
	// [ShareHotplug.AttachShare] gets. It is pure.
	PlanShare(s HotShare) (*Plan, []config.Problem)
}

// ShareHotplug is a Control that changes the shared directories of a machine that runs.
type ShareHotplug interface {
	// AttachShare plugs a share in, whose server listens. files are the plan's
	// Descriptors, in their order; the caller still owns them. What an attempt that
	// was cut off has left is removed first. Where it fails, nothing is left, unless
	// the connection broke or ctx ended: then the share may be there, or be plugged in
	// yet. [ShareHotplug.PluggedShares] on another connection tells.
	AttachShare(ctx context.Context, s HotShare, files []*os.File) error

	// DetachShare asks the guest to let go of a share, waits until it has, and closes
	// the connection to its server. What is of it already gone is no error. The error
	// is [ErrNotReleased] where ctx ends before the guest lets go: the request stands.
	DetachShare(ctx context.Context, s HotShare) error

	// PluggedShares are the names of the shares whose device the guest has.
	PluggedShares(ctx context.Context) ([]string, error)
}

// ShareRequest is what is to be done to a share of a machine that runs.
type ShareRequest struct {
	Share   config.Share  `json:"share"`             // to detach it, the name alone counts
	Timeout time.Duration `json:"timeout,omitempty"` // how long the guest may take to let go
	Digest  string        `json:"digest,omitempty"`  // of the definition that is to say what the machine has then; "" for none
}

// Device is the key of the share.
func (q ShareRequest) Device() string { return q.Share.Key() }

// What vmctl-unit operate does to shares, by a [ShareRequest].
const (
	ShareAttach = "share attach"
	ShareDetach = "share detach"
)

// PluggedShare is a share that was plugged in, and what serves it.
type PluggedShare struct {
	config.Share
	Server Sidecar `json:"server"`
}

// NoSharedMemory is what is in the way of a device, "share" or "card", where a machine's
// memory is its own and another process, peer, would map it.
func NoSharedMemory(m *config.Machine, key, device, peer string) config.Problem {
	return m.Problem(key, "%[1]s was started with memory that no other process can map, as %[2]s does: it has this %[3]s by a restart with it in its definition, or takes such while it runs after one with memory_options.shared = true", m.Name, peer, device)
}

// AttachedShare notes that a share is there, and what serves it.
func (c *Changes) AttachedShare(s config.Share, server Sidecar) {
	c.forgetShare(s.Name)
	c.Shares = append(c.Shares, PluggedShare{s, server})
}

// DetachedShare notes that a share is gone; started says whether the machine was
// started with one of that name.
func (c *Changes) DetachedShare(share string, started bool) {
	c.forgetShare(share)
	if started {
		c.GoneShares = append(c.GoneShares, share)
	}
}

// LeavingShare notes that the guest is asked to let go of a share, and StayingShare
// that it is not any more: what serves one that leaves may end.
func (c *Changes) LeavingShare(share string) {
	c.StayingShare(share)
	c.LeavingShares = append(c.LeavingShares, share)
}

// StayingShare is the opposite of LeavingShare.
func (c *Changes) StayingShare(share string) {
	c.LeavingShares = slices.DeleteFunc(c.LeavingShares, func(name string) bool { return name == share })
}

// forgetShare removes a share from all that is noted.
func (c *Changes) forgetShare(share string) {
	c.StayingShare(share)
	c.Shares = slices.DeleteFunc(c.Shares, func(s PluggedShare) bool { return s.Name == share })
	c.GoneShares = slices.DeleteFunc(c.GoneShares, func(name string) bool { return name == share })
}

// Sidecar is what runs beside the machine by now in a unit, of those that plan, that
// of the start, has, or what serves a share that was plugged in since; false where
// that is nothing, or what is about to end.
func (c Changes) Sidecar(plan *Plan, unit string) (Sidecar, bool) {
	for _, s := range c.Shares {
		if s.Server.Unit == unit {
			return s.Server, !slices.Contains(c.LeavingShares, s.Name)
		}
	}
	for _, s := range plan.Sidecars {
		is := func(share string) bool { return s.Key == config.Share{Name: share}.Key() }
		if s.Unit == unit {
			return s, !slices.ContainsFunc(c.GoneShares, is) && !slices.ContainsFunc(c.LeavingShares, is)
		}
	}
	return Sidecar{}, false
}

// applyShares returns the shares of a machine after the changes.
func (c Changes) applyShares(m *config.Machine) []config.Share {
	shares := []config.Share{} // none are written as those of a definition are
	for _, s := range m.Shares {
		if i := c.indexShare(s.Name); i >= 0 {
			shares = append(shares, c.Shares[i].Share)
		} else if !slices.Contains(c.GoneShares, s.Name) {
			shares = append(shares, s)
		}
	}
	for _, s := range c.Shares {
		if _, has := m.Share(s.Name); !has {
			shares = append(shares, s.Share)
		}
	}
	return shares
}

func (c Changes) indexShare(share string) int {
	return slices.IndexFunc(c.Shares, func(s PluggedShare) bool { return s.Name == share })
}

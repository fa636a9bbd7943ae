package hypervisor

import (
	"context"
	"os"
	"time"

	"github.com/vmctl/vmctl/config"
)

// HotNIC is one card of a machine that runs: to be plugged in, or there already.
type HotNIC struct {
	Machine *config.Machine // as it runs
	NIC     config.NIC
	Host    Host
	Paths   config.Paths

	// Started is the plan of the start, what its sandbox was made for, and StartedAs the
	// machine of then.
	Started   *Plan
	StartedAs *config.Machine
}

// AsPlugged is a card as it is when it is plugged into a machine that runs: a passt
// is started with the machine, so what does the user-mode networking of a card that
// does not ask for that is slirp.
func AsPlugged(n config.NIC) config.NIC {
	if n.User && n.Backend != Passt {
		n.Backend = Slirp
	}
	return n
}

// NICPlanner is a Hypervisor that can plug cards into a machine that runs.
type NICPlanner interface {
	// PlanNIC says what it takes to plug a card in, or why it cannot be: of the
	// plan, Descriptors are what [NICHotplug.AttachNIC] gets. It is pure.
	PlanNIC(n HotNIC) (*Plan, []config.Problem)
}

// NICHotplug is a Control that changes the cards of a machine that runs.
type NICHotplug interface {
	// AttachNIC plugs a card in, with its link as the card says. files are the
	// plan's Descriptors, in their order; the caller still owns them. What an
	// attempt that was cut off has left is removed first. Where it fails, nothing
	// is left, unless its link could not be set, the connection broke or ctx ended: then the card may be
	// there, or be plugged in yet. [NICHotplug.PluggedNICs] on another connection
	// tells.
	AttachNIC(ctx context.Context, n HotNIC, files []*os.File) error

	// DetachNIC asks the guest to let go of a card, waits until it has, and closes
	// what it was plugged into. What is of it already gone is no error. The error
	// is [ErrNotReleased] where ctx ends before the guest lets go: the request
	// stands.
	DetachNIC(ctx context.Context, n HotNIC) error

	// SetLink plugs a card's cable in, or out.
	SetLink(ctx context.Context, nic string, up bool) error

	// PluggedNICs are the names of the cards that the guest has.
	PluggedNICs(ctx context.Context) ([]string, error)
}

// NICRequest is what is to be done to a card of a machine that runs.
type NICRequest struct {
	NIC     config.NIC    `json:"nic"`               // to detach it, the name alone counts; to set it, name, link and limits
	Timeout time.Duration `json:"timeout,omitempty"` // how long the guest may take to let go
	// Overridden is what the definition says of the card's link and limits, where
	// they are set until the machine stops ([Changes.Overridden]).
	Overridden string `json:"overridden,omitempty"`
	Digest     string `json:"digest,omitempty"` // of the definition that is to say what the machine has then; "" for none
}

// Device is the key of the card.
func (q NICRequest) Device() string { return q.NIC.Key() }

// What vmctl-unit operate does to cards, by a [NICRequest].
const (
	NICAttach = "nic attach"
	NICDetach = "nic detach"
	NICSet    = "nic set"
)

package hypervisor

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"github.com/vmctl/vmctl/config"
)

// Record is what a machine was started with. It is written by prepare, to
// paths.Record whole (root only) and to paths.VMJSON without secrets.
type Record struct {
	// Digest names the definition and plan; the unit's ExecStartPre carries
	// the same, so that a start uses what systemd has read and not what lies
	// on disk by now.
	Digest  string          `json:"digest"`
	Machine *config.Machine `json:"machine"`
	Plan    *Plan           `json:"plan"`
	Started time.Time       `json:"started"`

	// Chosen, by the machine's own process as it starts, and so in paths.VMJSON
	// alone: what works of the ways to do I/O, and how each file of its disks
	// is read and written.
	Engines Engines  `json:"engines,omitzero"`
	IO      []FileIO `json:"io,omitempty"`

	// Incoming is the saved state that the start goes on from; nil for a start
	// from nothing.
	Incoming *Incoming `json:"incoming,omitempty"`
}

// VsockCID is the vsock address of the machine's guest; 0 where it was started
// without any.
func (r *Record) VsockCID() uint32 {
	if r.Machine == nil || r.Plan == nil || !slices.Contains(r.Plan.Devices, "/dev/vhost-vsock") {
		return 0
	}
	return r.Machine.Vsock.CID
}

// Incoming is a saved state that a machine is started with.
type Incoming struct {
	ID     string      `json:"id"`
	Format StateFormat `json:"format"`
	Bytes  int64       `json:"bytes"` // as it lies on the disk
	Paused bool        `json:"paused,omitempty"`
	Seed   string      `json:"seed,omitempty"` // a hash of the cloud-init seed
}

// Digest names a definition and its plan: 16 hexadecimal digits of a hash of
// both, secrets left out, since it stands in the unit for all to read, and so is
// what can be changed while the machine runs.
func Digest(m *config.Machine, p *Plan) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, v := range []any{m.Redacted().WithoutReloaded(), p} {
		// Only unsupported types and cyclic values fail; neither has any.
		if err := enc.Encode(v); err != nil {
			panic(err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Reason is why a machine ended.
type Reason string

const (
	GuestPowerOff   Reason = "guest power-off"
	GuestPanic      Reason = "guest panic"
	GuestHung       Reason = "guest hung"       // its watchdog ended it
	StopRequested   Reason = "stop requested"   // and the guest shut down
	Saved           Reason = "saved"            // by vmctl save, and goes on from there
	StopTimedOut    Reason = "stop timed out"   // the guest did not, and was ended
	Killed          Reason = "killed"           // by a signal that we did not send
	HypervisorError Reason = "hypervisor error" // exited with an error, or could not start
	NotStarted      Reason = "not started"      // something before the hypervisor failed
)

// Exit is why and when a machine last ended.
type Exit struct {
	Reason Reason    `json:"reason"`
	Detail string    `json:"detail,omitempty"` // one line for people
	Time   time.Time `json:"time"`
	Result string    `json:"result"`           // systemd's SERVICE_RESULT
	Code   string    `json:"code,omitempty"`   // "exited", "killed", "dumped"
	Status string    `json:"status,omitempty"` // exit status or signal name
	Lines  []string  `json:"lines,omitempty"`  // the hypervisor's own last lines
}

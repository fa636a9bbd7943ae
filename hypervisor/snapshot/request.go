package snapshot

// Quiesce says whether the guest is asked to write out its file systems before
// a snapshot.
type Quiesce string

const (
	Auto    Quiesce = "auto" // where its agent answers
	Require Quiesce = "require"
	Skip    Quiesce = "skip"
)

// The operations on snapshots, and what is asked of them.
const (
	Create  = "snapshot create"
	Restore = "snapshot restore"
	Delete  = "snapshot delete"
)

// CreateRequest asks for a snapshot.
type CreateRequest struct {
	Name        string  `json:"name"` // "" for one by the time
	Description string  `json:"description,omitempty"`
	Quiesce     Quiesce `json:"quiesce"`
	Memory      bool    `json:"memory,omitempty"`
	Scheduled   bool    `json:"scheduled,omitempty"`
}

// RestoreRequest asks to make a machine what it was.
type RestoreRequest struct {
	Name  string `json:"name"`
	Check bool   `json:"check,omitempty"` // only say whether it can be done
	Force bool   `json:"force,omitempty"` // also where the machine's disks are others by now
	// DisksOnly leaves out the memory.
	DisksOnly bool `json:"disks_only,omitempty"`
}

// Restored is what has come of it.
type Restored struct {
	Name   string   `json:"name"`
	Disks  []string `json:"disks"`
	Memory bool     `json:"memory"` // the machine goes on where it was once it is started
}

// DeleteRequest asks to remove snapshots.
type DeleteRequest struct {
	Names []string `json:"names"`
}

package backup

// Kinds of operations, and of their units.
const (
	Make    = "backup"
	Restore = "restore"
)

// How the guest's file systems are frozen, while the moment passes that a backup
// is as of.
const (
	QuiesceAuto    = "auto"    // where a guest agent answers
	QuiesceRequire = "require" // or there is no backup
	QuiesceSkip    = "skip"
)

// Request is what a backup is made by.
type Request struct {
	Target  string `json:"target"` // directory, absolute
	Quiesce string `json:"quiesce"`
	Full    bool   `json:"full"`
	// BytesPerSecond is how fast disks are read at most; 0: as fast as can be.
	BytesPerSecond int64 `json:"bytes_per_second"`
	// Incrementals is how many backups may stand on each other.
	Incrementals int `json:"incrementals"`
}

// Result is a backup that was made.
type Result struct {
	Backup
	// NotQuiesced is why the guest's file systems were not frozen; "" where
	// they were, or no guest ran.
	NotQuiesced string   `json:"not_quiesced,omitempty"`
	LeftOut     []string `json:"left_out"` // disks that keep nothing, or that nobody writes to
}

// RestoreRequest is what a backup is restored by, by the operator of the machine
// that it is restored to.
type RestoreRequest struct {
	Dir string `json:"dir"` // of the backup, absolute
	New bool   `json:"new"` // the machine must not exist yet
}

// Restored is what a backup was restored to.
type Restored struct {
	VM         string            `json:"vm"`
	Backup     string            `json:"backup"`               // its directory
	Disks      map[string]string `json:"disks"`                // file of each
	Definition string            `json:"definition,omitempty"` // that was written; "" where there was one
}

package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/vmctl/vmctl/config"
)

// HotDisk is one disk of a machine that runs: to be plugged in, or there
// already.
type HotDisk struct {
	Machine *config.Machine // as it runs
	Disk    config.Disk
	Host    Host
	Paths   config.Paths

	// Backing are the files that the disk's own stands on, nearest first. The
	// hypervisor follows no name that an image has in its header.
	Backing []Layer

	// IO is how its files are read and written, where that has been chosen.
	IO []FileIO
}

// Layer is a file that a disk stands on.
type Layer struct {
	Path   string `json:"path"`
	Format string `json:"format"`
}

// DiskPlan is what it takes to plug a disk in.
type DiskPlan struct {
	Files []File     // as those of a Plan
	New   []NewFile  // as those of a Plan
	Disks []DiskFile // as those of a Plan: HotDisk.IO is chosen by them
	Open  []Open     // what is opened for the hypervisor
}

// Open is a file that is opened for the hypervisor: its sandbox could not.
type Open struct {
	Path   string
	Write  bool // opened for reading and writing, and once more for reading
	Direct bool // with O_DIRECT
}

// Flags are the modes in which the file is opened (open(2)), each once.
func (o Open) Flags() []int {
	flags := []int{os.O_RDONLY}
	if o.Write {
		flags = []int{os.O_RDWR, os.O_RDONLY}
	}
	for i := range flags {
		if o.Direct {
			flags[i] |= syscall.O_DIRECT
		}
	}
	return flags
}

// DiskPlanner is a Hypervisor that can plug disks into a machine that runs.
type DiskPlanner interface {
	// PlanDisk says what it takes, or why it cannot be. It is pure.
	PlanDisk(d HotDisk) (*DiskPlan, []config.Problem)
}

// DiskHotplug is a Control that changes the disks of a machine that runs.
type DiskHotplug interface {
	// AttachDisk plugs a disk in. files are what DiskPlan.Open says, by path;
	// the caller still owns them. What an attempt that was cut off has left is
	// removed first. Where it fails, nothing is left, unless the connection
	// broke or ctx ended: then the disk may be there, or be plugged in yet.
	// [DiskHotplug.PluggedDisks] on another connection tells.
	AttachDisk(ctx context.Context, d HotDisk, files map[string][]*os.File) error

	// DetachDisk asks the guest to let go of a disk, waits until it has, and
	// closes the disk's files. What is of it already gone is no error. The
	// error is [ErrNotReleased] where ctx ends before the guest lets go: the
	// request stands.
	DetachDisk(ctx context.Context, d HotDisk) error

	// ResizeDisk grows a disk to a size in bytes. The error is [ErrFixedSize]
	// for one on a bus where that cannot be.
	ResizeDisk(ctx context.Context, d HotDisk, bytes int64) error

	// InsertMedium puts a medium into a CD-ROM drive, after it has taken out
	// what is in it; EjectMedium only does that. With force the guest is not
	// asked.
	InsertMedium(ctx context.Context, d HotDisk, files map[string][]*os.File, force bool) error
	EjectMedium(ctx context.Context, d HotDisk, force bool) error

	// PluggedDisks are the names of the disks whose device the guest has, and
	// the sizes of their content in bytes, 0 for none.
	PluggedDisks(ctx context.Context) (map[string]int64, error)
}

// ErrNotReleased is a guest that has not let go of a device in time.
var ErrNotReleased = errors.New("the guest has not let go of it")

// ErrReleaseRefused is a guest that says that it does not let go of a device.
var ErrReleaseRefused = errors.New("the guest refuses to let go of it")

// ErrFixedSize is a disk on a bus that lets none grow.
var ErrFixedSize = errors.New("it does not grow while the machine runs")

// ErrPlugged is a device that is there already.
var ErrPlugged = errors.New("the machine has a device of this name")

// Changes are what has changed of a machine since it was started: disks, cards, shared
// directories and settings. They are kept beside the record of the start, and gone with the end of
// the machine.
type Changes struct {
	// Disks are those that the machine has beside, or otherwise than, those of
	// the record.
	Disks []config.Disk `json:"disks,omitempty"`
	// Backing are the files below each of them, by disk.
	Backing map[string][]Layer `json:"backing,omitempty"`
	// Gone are the names of those that it was started with and does not have
	// any more.
	Gone []string `json:"gone,omitempty"`
	// Leaving are the names of those that the guest was asked to let go of and
	// has not.
	Leaving []string `json:"leaving,omitempty"`
	// Empty are the names of the CD-ROM drives without a medium.
	Empty []string `json:"empty,omitempty"`
	// NICs are the cards that the machine has beside, or otherwise than, those of
	// the record. GoneNICs and LeavingNICs are what Gone and Leaving are of disks.
	NICs        []config.NIC `json:"nics,omitempty"`
	GoneNICs    []string     `json:"gone_nics,omitempty"`
	LeavingNICs []string     `json:"leaving_nics,omitempty"`
	// SetNICs are the names of those in NICs that it was started with, whose link
	// or limits are others by now.
	SetNICs []string `json:"set_nics,omitempty"`
	// Overridden is what the definition said of the link and limits of cards for
	// which they were set until the machine stops: they stay as long as it says so.
	Overridden map[string]string `json:"overridden_nics,omitempty"`
	// Shares are those that the machine has beside those of the record. GoneShares and
	// LeavingShares are what Gone and Leaving are of disks.
	Shares        []PluggedShare `json:"shares,omitempty"`
	GoneShares    []string       `json:"gone_shares,omitempty"`
	LeavingShares []string       `json:"leaving_shares,omitempty"`
	// Throttled are the limits that the definition gave to disks for which others were
	// set until the machine stops: those stay as long as it says so.
	Throttled map[string]Limits `json:"throttled,omitempty"`
	// Live are the settings that were changed, nil for none.
	Live *config.LiveSettings `json:"live,omitempty"`
	// Digest is that of a definition that says what the machine has now; ""
	// where none has been written since the start.
	Digest string `json:"digest,omitempty"`
}

// None says whether the machine is that of the record, but for what cards are set to.
func (c Changes) None() bool {
	return len(c.Disks) == 0 && len(c.Gone) == 0 && len(c.Leaving) == 0 && len(c.Empty) == 0 &&
		len(c.NICs) == 0 && len(c.GoneNICs) == 0 && len(c.LeavingNICs) == 0 &&
		len(c.Shares) == 0 && len(c.GoneShares) == 0 && len(c.LeavingShares) == 0 && c.Live == nil
}

// String names them for people: "beside those it was started with, it has data".
func (c Changes) String() string {
	var s string
	add := func(format string, names []string) {
		for _, name := range names {
			if s != "" {
				s += ", "
			}
			s += fmt.Sprintf(format, name)
		}
	}
	var has []string
	for _, d := range c.Disks {
		has = append(has, d.Name)
	}
	add("disk.%s was attached", has)
	add("disk.%s was detached", c.Gone)
	add("disk.%s is being detached", c.Leaving)
	add("disk.%s has no medium", c.Empty)
	var cards []string
	for _, n := range c.NICs {
		if !slices.Contains(c.SetNICs, n.Name) {
			cards = append(cards, n.Name)
		}
	}
	add("nic.%s was attached", cards)
	add("nic.%s was set otherwise", c.SetNICs)
	add("nic.%s was detached", c.GoneNICs)
	add("nic.%s is being detached", c.LeavingNICs)
	var shares []string
	for _, d := range c.Shares {
		shares = append(shares, d.Name)
	}
	add("share.%s was attached", shares)
	add("share.%s was detached", c.GoneShares)
	add("share.%s is being detached", c.LeavingShares)
	if c.Live != nil {
		add("it was set to %s", []string{fmt.Sprintf("cpus = %d, memory = %q", c.Live.CPUs, c.Live.Memory)})
	}
	return s
}

// DiskRequest is what is to be done to a disk of a machine that runs.
type DiskRequest struct {
	Disk    config.Disk   `json:"disk"`              // of which the name alone counts to detach or eject
	Timeout time.Duration `json:"timeout,omitempty"` // how long the guest may take to let go
	Force   bool          `json:"force,omitempty"`   // a drive is opened though the guest has locked it
	Digest  string        `json:"digest,omitempty"`  // of the definition that is to say what the machine has then; "" for none
}

// Device is the key of the disk.
func (q DiskRequest) Device() string { return q.Disk.Key() }

// What vmctl-unit operate does to disks, by a [DiskRequest].
const (
	DiskAttach = "disk attach"
	DiskDetach = "disk detach"
	DiskInsert = "disk insert"
	DiskEject  = "disk eject"
)

// DiskThrottle is what vmctl-unit operate does by a [ThrottleRequest].
const DiskThrottle = "disk throttle"

// ThrottleRequest gives a disk other limits.
type ThrottleRequest struct {
	Disk   string `json:"disk"`
	Limits Limits `json:"limits"`
	// Throttled are those that the definition gives it, where these hold until the
	// machine stops ([Changes.Throttled]).
	Throttled *Limits `json:"throttled,omitempty"`
}

// Device is what history says it was done to.
func (q ThrottleRequest) Device() string { return config.Disk{Name: q.Disk}.Key() }

// DiskResult is what came of a [DiskRequest].
type DiskResult struct {
	Existed bool `json:"existed,omitempty"` // the disk's file was there already
}

// Package hypervisor knows what it takes to run a machine, whatever runs it:
// the Plan (command line, descriptors, files, devices), the facts about a host
// that a plan depends on, the control of a running machine, and the records of
// its start and its end. Each hypervisor is a folder below; hypervisor/all is
// the table of them, and hypervisor/hypervisortest what each must hold to.
//
// It knows nothing of units, D-Bus or networks.
package hypervisor

import (
	"context"
	"fmt"
	"net"
	"reflect"
	"strings"

	"github.com/vmctl/vmctl/config"
)

// Nobody is the user, and group, who owns no file and may read what everybody
// may (nobody and nogroup of Debian).
const Nobody = 65534

// Hypervisor turns a machine into a plan and controls what runs by it.
type Hypervisor interface {
	// Name is what a definition says in "hypervisor".
	Name() string

	// Plan says how to run m on host, or what of m this hypervisor cannot do,
	// every key of it. It is pure: the same arguments give the same plan, and
	// nothing is read.
	Plan(m *config.Machine, host Host, paths config.Paths) (*Plan, []config.Problem)

	// WithIO is a plan's command line with what was chosen for the files of
	// its disks (Plan.Disks). It is pure.
	WithIO(argv []string, chosen []FileIO) []string

	// Control connects to the machine's control socket (paths.ControlSocket).
	// The error is fs.ErrNotExist or ECONNREFUSED where nothing runs.
	Control(ctx context.Context, socket string) (Control, error)

	// ControlType is the type of what Control returns, which says without a
	// machine what can be done to one: [DiskHotplug], [Resizer] and so on are
	// interfaces that it has or has not.
	ControlType() reflect.Type

	// Watch speaks on the monitor's private connection to the hypervisor
	// until it is closed (nil), and calls on for each event, in order, from
	// one goroutine. The first event is Started, once the hypervisor answers
	// and its CPUs run, or Loading, once it answers and they wait for that.
	Watch(ctx context.Context, conn net.Conn, on func(Event)) error
}

// Fitter is a Hypervisor whose command line depends on the program that is there
// when the machine starts, and on what its sandbox lets it do.
type Fitter interface {
	// Release asks a program for its version, e.g. "v53.0", by running it.
	Release(ctx context.Context, binary string) (string, error)

	// Fit is a plan's command line as a program of that release takes it, where
	// it may do what this process may, with notes for people on what it does
	// without. The error is an [Unfit] where something of the machine is not
	// possible so. Of notes and of that, keys and texts are set.
	Fit(argv []string, release string) (fitted []string, notes []config.Problem, err error)
}

// Unfit is what of a machine the program that is there cannot do.
type Unfit []config.Problem

// Error has a line for each.
func (u Unfit) Error() string {
	var lines []string
	for _, p := range u {
		lines = append(lines, p.Error())
	}
	return strings.Join(lines, "\n")
}

// EndReader is a Hypervisor whose exit status does not say how it ended.
type EndReader interface {
	// ReadEnd finds that in the last lines that it wrote: a ShutDown event, and
	// those lines that are worth keeping. ok is false where they do not say it.
	ReadEnd(lines []string) (end Event, kept []string, ok bool)
}

// VsockDialer is a Hypervisor whose guests' vsock is a Unix socket on the host
// (paths.VsockSocket), and not the kernel's.
type VsockDialer interface {
	// DialVsock connects to a port of the guest by that socket.
	DialVsock(ctx context.Context, socket string, port uint32) (net.Conn, error)
}

// PanicWatcher is a Hypervisor that tells of a guest's panic, and leaves it to who
// watches what becomes of the machine (lifecycle.on_panic).
type PanicWatcher interface {
	LeavesPanics()
}

// EngineBuilder is a Hypervisor whose program makes the system calls of io_uring and
// Linux AIO itself: it is linked to no library of theirs.
type EngineBuilder interface {
	HasEngines()
}

// Plan is how to run a machine.
type Plan struct {
	Argv []string `json:"argv"` // Argv[0] is absolute

	// Descriptors that the hypervisor inherits, numbered from 3 in this
	// order. Argv refers to the numbers.
	Descriptors []Descriptor `json:"descriptors,omitempty"`

	// Files of the host that the hypervisor opens by path: the machine's
	// user is given access to them for its lifetime.
	Files []File `json:"files,omitempty"`

	// New are files in the state directory that are made before the first
	// start, and given to the machine's user before each.
	New []NewFile `json:"new,omitempty"`

	// Disks are the files of disks of which it is chosen at the start how they
	// are read and written.
	Disks []DiskFile `json:"disks,omitempty"`

	// Env is added to the hypervisor's environment, "NAME=value" each.
	Env []string `json:"env,omitempty"`

	// Terminal says that the hypervisor has a terminal as its standard input and
	// output, which is the text console. The monitor holds the other end.
	Terminal bool `json:"terminal,omitempty"`

	// Scratch is a directory of the machine's user in the state directory, in which
	// the hypervisor writes the files of its saved state, and from which it reads
	// them; "" for none. It is made empty before the start, and removed at the end.
	Scratch string `json:"scratch,omitempty"`

	// Noise matches the lines of its log that are of no use to anybody, as an
	// extended regular expression; "" for none. The journal leaves them out where it
	// can (systemd 253).
	Noise string `json:"noise,omitempty"`

	Seed        bool                `json:"seed,omitempty"` // a cloud-init seed at paths.Seed
	Credentials []config.Credential `json:"-"`              // written to paths.Credential, in the form of CredentialText; secret

	// Sidecars run beside the hypervisor, each in a unit of its own, from before
	// the start until it has ended.
	Sidecars []Sidecar `json:"sidecars,omitempty"`

	// PCI and USB are devices of the host, found and taken at the start.
	PCI []HostPCI `json:"pci,omitempty"`
	USB []HostUSB `json:"usb,omitempty"`

	Devices      []string `json:"devices,omitempty"`       // device nodes to open beside Files, for reading and writing, e.g. /dev/kvm
	Groups       []string `json:"groups,omitempty"`        // groups of the host that those nodes belong to, e.g. "kvm"
	Internet     bool     `json:"internet,omitempty"`      // opens AF_INET sockets itself (user-mode networking)
	NeedsKVM     bool     `json:"needs_kvm,omitempty"`     // /dev/kvm is among Devices, and without it the machine does not run
	LockMemory   bool     `json:"lock_memory,omitempty"`   // pins memory (VFIO)
	PlaceMemory  bool     `json:"place_memory,omitempty"`  // binds memory or threads to nodes or CPUs
	Landlock     bool     `json:"landlock,omitempty"`      // confines itself by it
	HugepageSize int64    `json:"hugepage_size,omitempty"` // bytes; 0: none; the pages must be free before start

	// NotifyPort is the vsock port of the host at which the monitor hears from the
	// guest's service manager; 0 for none.
	NotifyPort uint32 `json:"notify_port,omitempty"`
	// NotifySocket is, in the place of that, the Unix socket behind such a port of a
	// guest whose vsock is not the kernel's; "" for none.
	NotifySocket string `json:"notify_socket,omitempty"`

	// Warnings are for people: what runs, but not as well as it could.
	Warnings []string `json:"warnings,omitempty"`
}

// Use is what a descriptor is for.
type Use string

const (
	// Listen is a Unix stream socket listening at Path.
	Listen Use = "listen"
	// Events is one end of a socket pair; the monitor holds the other and
	// hands it to Watch.
	Events Use = "events"
	// State is the reading end of a pipe with a saved state.
	State Use = "state"
	// Console is one end of a socket pair; the monitor holds the other: the
	// bytes of the text console.
	Console Use = "console"
	// Connect is a connection to the socket of the sidecar whose unit is Unit.
	Connect Use = "connect"
	// Queue is a queue of what Card is plugged into on the host, opened before
	// the start: of its interface there, or the socket of its port of a VDE
	// switch. Of a card with several there is one descriptor for each. Of one
	// whose network is a sidecar it is the socket on which that is listened for.
	Queue Use = "queue"
	// Kept is what has to stay open for as long as Card is plugged in, of one that is
	// while the machine runs: the hypervisor does nothing with it.
	Kept Use = "kept"
	// Vhost is what has the host's kernel do the work for a queue of the interface
	// of Card: one for each queue. Where the host turns out not to have it, Option
	// is left out of Argv.
	Vhost Use = "vhost"
)

// Descriptor is one file descriptor that is open when the hypervisor is
// executed.
type Descriptor struct {
	Use  Use    `json:"use"`
	Path string `json:"path,omitempty"` // for Listen
	// Links are further names of the socket at Path.
	Links []string `json:"links,omitempty"`
	Card  string   `json:"card,omitempty"` // for Queue, Kept and Vhost: the card's name
	Unit  string   `json:"unit,omitempty"` // for Connect

	// Option is the part of Argv, from a comma on, that refers to it, for Vhost.
	Option string `json:"option,omitempty"`
}

// Sidecar is a process beside the hypervisor, which is connected to its socket,
// or, for that of a card, connects to the hypervisor. It ends when the connection
// does, or is ended by systemd.
type Sidecar struct {
	Unit string `json:"unit"` // its unit, an instance of a packaged template
	Key  string `json:"key"`  // TOML key of what asks for it
	Name string `json:"name"` // what it is, for people: "virtiofsd"

	// Argv is its command line, in which [SocketArg], [UIDArg], [GIDArg] and
	// [InterfaceArg] stand for what is known at its start.
	Argv []string `json:"argv"`

	// Share is the directory of the host that it serves, "" for none: Path, in
	// its own mounts at [SharedDir] where the service manager is the system's.
	// User is the user of the host as whom it does, "" for root, or whoever
	// runs the service manager.
	Share string `json:"share,omitempty"`
	Write bool   `json:"write,omitempty"`
	User  string `json:"user,omitempty"`

	// Reconnects says that the hypervisor connects by itself, by the path of the
	// socket, and does so again when the guest reboots: one that has ended is
	// started again while the machine runs.
	Reconnects bool `json:"reconnects,omitempty"`

	// State is the file in which it keeps what the guest does not forget when it
	// is off, in a directory of its own in the state directory; "" for none. The
	// machine's user runs it then.
	State string `json:"state,omitempty"`

	// Card is the name of the card whose network it is, "" for none. The
	// hypervisor then listens for it ([Queue]), so that one that has ended is
	// started again while the machine runs. The machine's user runs it.
	Card string `json:"card,omitempty"`
	// LowPorts says that it listens on ports below 1024.
	LowPorts bool `json:"low_ports,omitempty"`
}

// What stands in a sidecar's command line for numbers: of the descriptor of the
// socket that it listens on, or of its connection, of its user and of its group;
// and for the name of an interface of the host, of those that have a link-local
// address of IPv6 where there are any.
const (
	SocketArg    = "{socket}"
	UIDArg       = "{uid}"
	GIDArg       = "{gid}"
	InterfaceArg = "{interface}"
)

// SharedDir is where a sidecar sees the directory that it serves.
const SharedDir = "/mnt/share"

// File is a file, block device or directory of the host that the hypervisor
// opens.
type File struct {
	Key   string `json:"key"` // TOML key that names it, e.g. "disk.root.path"
	Path  string `json:"path"`
	Write bool   `json:"write,omitempty"`
	Disk  bool   `json:"disk,omitempty"` // a disk image or block device: may not be a directory, may not be in use elsewhere
	// Format is the disk's format as the definition says, "" where Disk is
	// false, and for a stored image, which has a record of it.
	Format    string `json:"format,omitempty"`
	Shareable bool   `json:"shareable,omitempty"` // may be in use by other machines that say so too
	Socket    bool   `json:"socket,omitempty"`    // a Unix socket on which somebody listens
	Device    bool   `json:"device,omitempty"`    // a character device
	// At is where a machine that runs is shown the file, since its sandbox was made
	// without it; "" for the file's own path.
	At string `json:"at,omitempty"`
}

// HostPCI is a PCI device of the host that the machine is given.
type HostPCI struct {
	Key     string `json:"key"` // e.g. "pci.gpu.address"
	Address string `json:"address"`
}

// HostUSB is a USB device of the host that the machine is given: by vendor and
// product, or by bus and port.
type HostUSB struct {
	Key     string `json:"key"` // e.g. "usb.key"
	Vendor  string `json:"vendor,omitempty"`
	Product string `json:"product,omitempty"`
	Bus     int    `json:"bus,omitempty"`
	Port    string `json:"port,omitempty"`
}

// NewFile is a file made by vmctl in the machine's state directory.
type NewFile struct {
	Key       string `json:"key"`
	Path      string `json:"path"`
	Size      int64  `json:"size,omitempty"`      // bytes, of an empty disk
	Format    string `json:"format"`              // "raw" or "qcow2"
	Copy      string `json:"copy,omitempty"`      // file to copy instead (UEFI variables)
	Ephemeral bool   `json:"ephemeral,omitempty"` // made anew at each start, removed at stop

	// Backing is the absolute path of the file whose content the new one begins
	// with: a qcow2 stands on it from then on (qemu-img create -b), a raw one is
	// a copy. BackingFormat is its format. Size 0 is then that of the disk in
	// it. Image is the name of the stored image that Backing is; its format is
	// then in its record, and BackingFormat "".
	Backing       string `json:"backing,omitempty"`
	BackingFormat string `json:"backing_format,omitempty"`
	Image         string `json:"image,omitempty"`
}

// EventKind is what happened to a running machine.
type EventKind string

const (
	Started  EventKind = "started"  // answers, CPUs run
	Loading  EventKind = "loading"  // answers, and loads a saved state, or has: its CPUs do not run
	Paused   EventKind = "paused"   // CPUs stopped
	Resumed  EventKind = "resumed"  // CPUs run again
	Rebooted EventKind = "rebooted" // reset, by guest or by us
	Panicked EventKind = "panicked" // guest reported a panic
	Watchdog EventKind = "watchdog" // guest did not feed its watchdog
	ShutDown EventKind = "shutdown" // going to exit; Cause says why
	IOError  EventKind = "io-error" // a disk failed; Detail says which

	// The guest's end of the agent's channel was opened or closed.
	AgentConnected    EventKind = "agent-connected"
	AgentDisconnected EventKind = "agent-disconnected"
)

// Event is one thing that happened to a running machine.
type Event struct {
	Kind   EventKind `json:"kind"`
	Cause  string    `json:"cause,omitempty"`  // of ShutDown: "guest", "host", "signal", "panic", "error"
	Detail string    `json:"detail,omitempty"` // one line for people
}

// Status is what a running machine does.
type Status string

const (
	StatusRunning  Status = "running"
	StatusPaused   Status = "paused"
	StatusPanicked Status = "panicked" // stopped by its own panic
	StatusLoading  Status = "loading"  // memory and devices come from a saved state
	StatusStopping Status = "stopping" // guest has shut down, the process is about to end
)

// Control acts on one running machine. Each call ends with its context.
type Control interface {
	Status(ctx context.Context) (Status, error)
	PowerButton(ctx context.Context) error // asks the guest to shut down
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Reset(ctx context.Context) error
	Quit(ctx context.Context) error // ends the process, flushing disks, not asking the guest
	Close() error
}

// Limits are those of a disk.
type Limits = config.DiskLimits

// Impossible is the error where a hypervisor cannot do what was asked for, e.g.
// "saving".
func Impossible(what, hypervisor string) error {
	return fmt.Errorf("%s is not possible with %s", what, hypervisor)
}

// Throttler is a Control that can limit disks.
type Throttler interface {
	// Limits are those that a disk has now. SetLimits replaces them all.
	Limits(ctx context.Context, disk string) (Limits, error)
	SetLimits(ctx context.Context, disk string, limits Limits) error
}

// DiskTraffic is what a guest has read from a disk and written to it since its
// hypervisor was started.
type DiskTraffic struct {
	ReadBytes, WriteBytes uint64
	Reads, Writes         uint64 // operations
}

// DiskMeter is a Control that knows what guests do with their disks.
type DiskMeter interface {
	// DiskTraffic is that of each disk, by its name in the definition.
	DiskTraffic(ctx context.Context) (map[string]DiskTraffic, error)
}

// GuestMemory is the memory of a guest, in bytes. nil is what the guest does not
// tell: one without a driver for its balloon, or not yet.
type GuestMemory struct {
	Actual    uint64  // what it was given, without what its balloon holds
	Total     *uint64 // what its kernel manages
	Free      *uint64 // what nothing in it uses
	Available *uint64 // what it could use without swapping
}

// MemoryMeter is a Control that knows what guests do with their memory.
type MemoryMeter interface {
	// GuestMemory is what the guest told last. It is asked to go on telling, so
	// that the next answer is of seconds ago.
	GuestMemory(ctx context.Context) (GuestMemory, error)
}

// DiskSnapshotter is a Control that can take snapshots of a running machine's
// disks, inside the disks' own images. Disks are named as in the definition.
type DiskSnapshotter interface {
	Control
	// SnapshotDisks takes a snapshot of each of the disks, all or none.
	SnapshotDisks(ctx context.Context, tag string, disks []string) error
	// DeleteDiskSnapshot removes a snapshot from a disk. It is no error where
	// the disk has none of that tag.
	DeleteDiskSnapshot(ctx context.Context, tag, disk string) error
}

// AgentWatcher is a Control that knows whether anything in the guest listens
// where a guest agent would, so that nobody waits in vain for one.
type AgentWatcher interface {
	AgentListens(ctx context.Context) (bool, error)
}

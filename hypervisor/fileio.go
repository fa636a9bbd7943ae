package hypervisor

import (
	"fmt"
	"strings"
)

// DiskFile is a file or block device of a disk. How it is read and written is
// chosen where the machine starts: what its file system and the kernel can do is
// not known when the plan is made. The command line has what works everywhere
// until then.
type DiskFile struct {
	Disk  string   `json:"disk"`  // name of the disk
	Nodes []string `json:"nodes"` // the hypervisor's own names for what reads the file
	Path  string   `json:"path"`

	// Format is the file's. With Chain, the files that a qcow2 image names
	// behind it are opened as it is.
	Format string `json:"format"`
	Chain  bool   `json:"chain,omitempty"`

	Cache string `json:"cache"` // as the definition says: "auto", "none", …
	AIO   string `json:"aio"`   // the same: "auto", "io_uring", "native", "threads"
}

// The ways in which a hypervisor waits for the kernel's reading and writing.
const (
	IOURing = "io_uring"
	Native  = "native" // Linux AIO: only with direct I/O
	Threads = "threads"
)

// FileIO is how a disk's file is read and written.
type FileIO struct {
	Disk   string   `json:"disk"`
	Nodes  []string `json:"nodes"`
	Path   string   `json:"path"`
	Direct bool     `json:"direct"` // past the host's page cache (O_DIRECT)
	AIO    string   `json:"aio"`    // "io_uring", "native" or "threads"

	// Why says for people why it is not direct, where the definition leaves
	// that open.
	Why string `json:"why,omitempty"`
}

// String is for people: "direct I/O by io_uring".
func (f FileIO) String() string {
	s := "the host's page cache by " + f.AIO
	if f.Direct {
		s = "direct I/O by " + f.AIO
	}
	if f.Why != "" {
		s += " (" + f.Why + ")"
	}
	return s
}

// Engines are the ways of waiting that were tried and work, beside threads,
// which always do.
type Engines struct {
	IOURing bool `json:"io_uring"`
	Native  bool `json:"native"`
}

// DirectIO is what came of trying direct I/O on a file, and on those behind it.
type DirectIO struct {
	Works bool
	// Unwise says why it is better left alone, though it may work; with Works
	// false, why it does not.
	Unwise string
}

// ChooseIO chooses how a file is read and written, by what was tried. The error
// is that the definition asks for what cannot be: a sentence that begins with
// its key.
func ChooseIO(f DiskFile, direct DirectIO, engines Engines) (FileIO, error) {
	chosen := FileIO{Disk: f.Disk, Nodes: f.Nodes, Path: f.Path, AIO: f.AIO}
	switch f.Cache {
	case "auto":
		chosen.Direct = direct.Works && direct.Unwise == ""
		chosen.Why = direct.Unwise
	case "none", "directsync":
		if !direct.Works {
			return chosen, fmt.Errorf("disk.%s.cache: %q needs direct I/O, %s: %s; use \"auto\" or \"writeback\"", f.Disk, f.Cache, f.Path, direct.Unwise)
		}
		chosen.Direct = true
	}
	works := map[string]bool{IOURing: engines.IOURing, Native: engines.Native && chosen.Direct, Threads: true}
	switch {
	case f.AIO == "auto" && !chosen.Direct:
		// Where most requests end in the page cache, there is little to wait
		// for, and threads are what every file system is used to.
		chosen.AIO = Threads
	case f.AIO == "auto":
		for _, chosen.AIO = range []string{IOURing, Native, Threads} {
			if works[chosen.AIO] {
				break
			}
		}
	case !works[f.AIO]:
		var others []string
		for _, aio := range []string{IOURing, Native, Threads} {
			if works[aio] {
				others = append(others, fmt.Sprintf("%q", aio))
			}
		}
		return chosen, fmt.Errorf("disk.%s.aio: %q does not work here; use \"auto\" or %s", f.Disk, f.AIO, strings.Join(others, " or "))
	}
	return chosen, nil
}

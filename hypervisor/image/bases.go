package image

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/disk"
)

// Bases are the files that disks of machines stand on, directly or by a chain of
// qcow2 images, each with those disks: a guest that wrote to one would break them.
type Bases struct {
	store Store
	disks map[inode][]Child
}

type inode struct{ dev, ino uint64 }

// Bases finds out what the disks of all machines stand on: of those that run, are
// saved, or have no definition that holds, by what they were started with. What
// cannot be read is left out: it keeps no other machine from its start.
func (s Store) Bases() (Bases, error) {
	b := Bases{s, map[inode][]Child{}}
	set, err := config.Load(s.Paths)
	if err != nil {
		return b, err
	}
	whole := map[string]bool{}
	var machines []*config.Machine
	for _, vm := range set.VMs {
		if vm.Machine != nil {
			whole[vm.Name] = true
			machines = append(machines, vm.Machine)
		}
	}
	dirs, _ := os.ReadDir(s.Paths.State) // not there: no machine was started yet
	for _, dir := range dirs {
		vm := dir.Name()
		if whole[vm] && !access.IsThere(s.Paths.RuntimeDir(vm)) && !access.IsThere(s.Paths.SavedRecord(vm)) {
			continue
		}
		m, err := s.startedAs(vm)
		if err != nil || m == nil {
			continue
		}
		if changes, err := hypervisor.ReadChanges(s.Paths, vm); err == nil {
			m = changes.Apply(m)
		}
		machines = append(machines, m)
	}
	b.gather(machines, answerTime, Bases.add)
	return b, nil
}

// answerTime is how long the storage of other machines may keep one from its start:
// that of some may not answer, since the server that it is on is gone.
const answerTime = 5 * time.Second

// gather adds all machines but those whose storage does not answer within a time
// that all share; a machine later than that still has a moment.
func (b Bases) gather(machines []*config.Machine, within time.Duration, add func(Bases, *config.Machine)) {
	const moment = 50 * time.Millisecond
	end := time.Now().Add(within)
	for _, m := range machines {
		found := make(chan map[inode][]Child, 1)
		go func() {
			own := Bases{b.store, map[inode][]Child{}}
			add(own, m)
			found <- own.disks
		}()
		select {
		case disks := <-found:
			for id, children := range disks {
				for _, c := range children {
					b.put(id, c)
				}
			}
		case <-time.After(max(time.Until(end), moment)):
		}
	}
}

// add notes what the disks of a machine stand on.
func (b Bases) add(m *config.Machine) {
	for _, d := range m.Disks {
		path := b.store.Paths.DiskFile(m.Name, d)
		child := Child{m.Name, path}
		if d.Ephemeral && d.Path != "" && access.IsThere(b.store.Paths.SavedRecord(m.Name)) {
			b.note(d.Path, Child{m.Name, b.store.Paths.Disk(m.Name, d.Name, disk.QCOW2)}) // which it goes on with
		}
		if d.Format != disk.QCOW2 {
			continue
		}
		for range disk.MaxChain {
			backing, err := backingOf(path, 0)
			if err != nil || !filepath.IsAbs(backing) {
				break // it is "", or no file
			}
			b.note(backing, child)
			path = backing
		}
	}
}

// note notes that a disk stands on a file, once.
func (b Bases) note(path string, child Child) {
	info, err := os.Stat(path)
	if err != nil {
		return
	}
	b.put(inodeOf(info), child)
}

func (b Bases) put(id inode, child Child) {
	if !slices.Contains(b.disks[id], child) {
		b.disks[id] = append(b.disks[id], child)
	}
}

// inodeOf tells a file from others; of a block device there may be several nodes.
func inodeOf(info os.FileInfo) inode {
	st := info.Sys().(*syscall.Stat_t)
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return inode{0, st.Rdev}
	}
	return inode{st.Dev, st.Ino}
}

// Refuse is why a machine must not write to a file that it has as a disk; nil
// where nothing stands on it. m is the machine as it is to be.
func (b Bases) Refuse(m *config.Machine, file os.FileInfo, path string) error {
	own := Bases{b.store, map[inode][]Child{}}
	own.add(m)
	children := own.disks[inodeOf(file)]
	for _, c := range b.disks[inodeOf(file)] {
		if c.VM != m.Name {
			children = append(children, c)
		}
	}
	if len(children) == 0 {
		return nil
	}
	others := ""
	if n := len(children) - 1; n > 0 {
		others = fmt.Sprintf(" (and %d more)", n)
	}
	return fmt.Errorf("want a file that no other disk stands on, or readonly = true or ephemeral = true: %s is what the disk %s of machine %s%s stands on, which any write would break",
		path, children[0].Path, children[0].VM, others)
}

// WrittenError refuses to have a stored image written to, which path is.
func WrittenError(path, name string) error {
	return fmt.Errorf("%s is the stored image %s, which is never written to: want image = %q for a disk that begins with it", path, name, name)
}

package image

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/disk"
)

// Child is a disk that stands on an image, directly or by a chain of files, or is
// one.
type Child struct {
	VM   string `json:"vm"`
	Path string `json:"path"`
}

// Machines are the machines that children belong to, each once, sorted.
func Machines(children []Child) []string {
	var vms []string
	for _, c := range children {
		vms = append(vms, c.VM)
	}
	slices.Sort(vms)
	return slices.Compact(vms)
}

// Children finds, for each image, the disks that stand on it, by what the disks
// themselves say: those in the machines' state directories, and those that
// definitions name, or did when their machines were last started. Whoever made
// others by hand has to know.
func (s Store) Children() (map[string][]Child, error) {
	own, err := s.ownChildren()
	if err != nil {
		return nil, err
	}
	given, err := s.givenChildren()
	if err != nil {
		return nil, err
	}
	return group(append(own, given...)), nil
}

// found is a child of an image.
type found struct {
	image string
	child Child
}

// group sorts children by their images, each once.
func group(all []found) map[string][]Child {
	images := map[string][]Child{}
	for _, f := range all {
		images[f.image] = append(images[f.image], f.child)
	}
	for name, children := range images {
		slices.SortFunc(children, func(a, b Child) int { return cmp.Or(strings.Compare(a.VM, b.VM), strings.Compare(a.Path, b.Path)) })
		images[name] = slices.Compact(children)
	}
	return images
}

// ownChildren are those in state directories.
func (s Store) ownChildren() ([]found, error) {
	var all []found
	err := filepath.WalkDir(s.Paths.State, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile
		}
		name := filepath.Base(path)
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(name, "."):
			return nil // what a crash left: who makes a disk holds the store
		case !e.Type().IsRegular() || strings.HasSuffix(name, ".raw"):
			return nil // what a raw disk begins with is its guest's
		}
		image, err := s.standsOn(path, unix.O_NOFOLLOW)
		if err != nil || image == "" {
			return err
		}
		inside, _ := filepath.Rel(s.Paths.State, path)
		vm, _, _ := strings.Cut(inside, string(filepath.Separator))
		all = append(all, found{image, Child{vm, path}})
		return nil
	})
	return all, err
}

// givenChildren are those that definitions name by path.
func (s Store) givenChildren() ([]found, error) {
	set, err := config.Load(s.Paths)
	if err != nil {
		return nil, err
	}
	var machines []*config.Machine
	for _, vm := range set.VMs {
		if vm.Machine != nil {
			machines = append(machines, vm.Machine)
		}
	}
	started, err := s.started()
	if err != nil {
		return nil, err
	}
	var all []found
	for _, m := range append(machines, started...) {
		for _, d := range m.Disks {
			if d.Path == "" {
				continue
			}
			image := s.NameOf(d.Path)
			if image == "" && d.Format == disk.QCOW2 {
				if image, err = s.standsOn(d.Path, 0); err != nil {
					return nil, err
				}
			}
			if image != "" {
				all = append(all, found{image, Child{m.Name, d.Path}})
			}
		}
	}
	return all, nil
}

// started are the machines as they were last started: their definitions may be
// broken or gone by now.
func (s Store) started() ([]*config.Machine, error) {
	vms, err := os.ReadDir(s.Paths.State)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var machines []*config.Machine
	for _, vm := range vms {
		m, err := s.startedAs(vm.Name())
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m != nil {
			machines = append(machines, m)
		}
	}
	return machines, err
}

// startedAs is a machine as it was last started.
func (s Store) startedAs(vm string) (*config.Machine, error) {
	b, err := os.ReadFile(s.Paths.Record(vm))
	if err != nil {
		return nil, err
	}
	var record struct {
		Machine *config.Machine `json:"machine"`
	}
	if err := json.Unmarshal(b, &record); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Paths.Record(vm), err)
	}
	if record.Machine != nil {
		record.Machine.Name = vm
	}
	return record.Machine, nil
}

// NameOf is the name of the image that a path is the file of, "" for none.
func (s Store) NameOf(path string) string {
	if path == "" {
		return ""
	}
	path = filepath.Clean(path)
	dir := s.Paths.Images
	if filepath.Dir(path) != dir {
		// By other names: where a directory is a link. One that is not there has
		// no other.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
	}
	name, ok := strings.CutSuffix(filepath.Base(path), ".img")
	if !ok || filepath.Dir(path) != dir || config.CheckImageName(name) != nil {
		return ""
	}
	return name
}

// standsOn is the name of the image that a qcow2 file stands on, directly or by a
// chain of such files; "" for none. flags are for opening the first.
func (s Store) standsOn(path string, flags int) (string, error) {
	for range disk.MaxChain {
		backing, err := backingOf(path, flags)
		if err != nil || !filepath.IsAbs(backing) {
			return "", err // it is "", or no file
		}
		if name := s.NameOf(backing); name != "" {
			return name, nil
		}
		path, flags = backing, 0
	}
	return "", nil
}

// backingOf is the file that another stands on, as its header says; "" for none,
// or where it is no qcow2 file or not there. It may be anything: it is not waited
// for.
func backingOf(path string, flags int) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|flags, 0)
	for _, none := range []error{fs.ErrNotExist, unix.ENOTDIR, unix.ELOOP, unix.ENXIO, unix.ENAMETOOLONG} {
		if errors.Is(err, none) {
			return "", nil
		}
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	device := st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0
	if !st.Mode().IsRegular() && !device {
		return "", nil
	}
	h, err := disk.ReadHeader(f)
	if err != nil {
		return "", nil // not qcow2
	}
	backing, err := disk.Backing(path, h)
	if err != nil {
		return strings.TrimPrefix(h.Backing, "file:"), nil // which QEMU would open
	}
	return backing, nil
}

package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor/disk"
)

// Child is a disk whose content begins with an image's.
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
// themselves say: those in the machines' state directories. Whoever made others
// by hand has to know.
func (s Store) Children() (map[string][]Child, error) {
	all := map[string][]Child{}
	vms, err := os.ReadDir(s.Paths.State)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	for _, vm := range vms {
		if !vm.IsDir() {
			continue
		}
		files, err := os.ReadDir(s.Paths.StateDir(vm.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if strings.HasPrefix(file.Name(), ".") {
				continue // what a crash left: who makes a disk holds the store
			}
			path := filepath.Join(s.Paths.StateDir(vm.Name()), file.Name())
			image, err := s.parent(path)
			if err != nil {
				return nil, err
			}
			if image != "" {
				all[image] = append(all[image], Child{vm.Name(), path})
			}
		}
	}
	return all, nil
}

// parent is the name of the image that a file stands on, "" for none. The file
// belongs to a machine: it is not waited for, and no link is followed.
func (s Store) parent(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", err
	}
	h, err := disk.ReadHeader(f)
	if err != nil {
		return "", nil // not qcow2
	}
	name, ok := strings.CutSuffix(filepath.Base(h.Backing), ".img")
	if !ok || s.Paths.Image(name) != filepath.Clean(h.Backing) {
		return "", nil
	}
	return name, nil
}

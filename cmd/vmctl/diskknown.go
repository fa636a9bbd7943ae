package main

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/disk"
)

// knownDisk is a disk that a machine has: by its definition, by what it runs
// with, or because its file lies in the state directory.
type knownDisk struct {
	config.Disk // of an orphan only name and format
	vm          string
	file        string // where its content is
	own         bool   // made by vmctl, in the state directory
	orphan      bool   // its file is there, but no definition has it
	defined     bool   // by the definition, not only by what runs
}

// writable says whether the machine writes to the file.
func (d knownDisk) writable() bool {
	return !d.Readonly && !(d.Ephemeral && d.Path != "")
}

// knownDisks are the disks of all machines, by machine and name.
func (a *app) knownDisks() ([]knownDisk, error) {
	set, err := config.Load(a.paths)
	if err != nil {
		return nil, err
	}
	var all []knownDisk
	seen := map[string]bool{}
	for _, vm := range set.VMs {
		all = append(all, a.disksOf(vm)...)
		seen[vm.Name] = true
	}
	for _, dir := range []string{a.paths.State, a.paths.Runtime} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return nil, err
		}
		for _, e := range entries {
			if config.CheckName(e.Name()) == nil && !seen[e.Name()] {
				seen[e.Name()] = true
				all = append(all, a.disksOf(config.VM{Name: e.Name()})...)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b knownDisk) int { return strings.Compare(a.vm, b.vm) })
	return all, nil
}

// disksOf are the disks of one machine: those of the definition in its order,
// then those that it runs with, then what else lies in its state directory.
func (a *app) disksOf(vm config.VM) []knownDisk {
	var all []knownDisk
	files := map[string]bool{}
	add := func(d config.Disk, defined bool) {
		k := knownDisk{Disk: d, vm: vm.Name, file: a.paths.DiskFile(vm.Name, d), own: d.Path == "", defined: defined}
		if !k.own && d.Ephemeral {
			files[a.paths.Disk(vm.Name, d.Name, disk.QCOW2)] = true // what it forgets
		}
		if !files[k.file] {
			files[k.file] = true
			all = append(all, k)
		}
	}
	if vm.Machine != nil {
		for _, d := range vm.Machine.Disks {
			add(d, true)
		}
	}
	if a.isRunning(vm.Name) {
		if r := a.readRecord(vm.Name); r != nil && r.Machine != nil {
			for _, d := range a.changes(vm.Name).Apply(r.Machine).Disks {
				add(d, false)
			}
		}
	}
	for _, format := range []string{disk.QCOW2, disk.Raw} {
		found, _ := filepath.Glob(a.paths.Disk(vm.Name, "*", format))
		for _, file := range found {
			name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "disk-"), "."+format)
			if config.CheckName(name) == nil && !files[file] {
				all = append(all, knownDisk{Disk: config.Disk{Name: name, Format: format}, vm: vm.Name, file: file, own: true, orphan: true})
			}
		}
	}
	return all
}

// isRunning says whether a machine's unit is active, or about to be: exactly then
// it has a runtime directory.
func (a *app) isRunning(vm string) bool { return access.IsThere(a.paths.RuntimeDir(vm)) }

// imageOf is the name of the stored image that a path is, "" where it is none.
func (a *app) imageOf(path string) string {
	name, ok := strings.CutSuffix(filepath.Base(path), ".img")
	if !ok || filepath.Clean(path) != a.paths.Image(name) || !access.IsThere(a.paths.ImageRecord(name)) {
		return ""
	}
	return name
}

// standing are the files that stand on another, by what is known of disks: those
// that definitions name, those in state directories, and all below these; and
// those beside it.
func (a *app) standing(on *os.File, known []knownDisk) []string {
	info, err := on.Stat()
	if err != nil {
		return nil
	}
	var children []string
	visited := map[string]bool{}
	var follow func(path string)
	follow = func(path string) {
		if visited[path] {
			return
		}
		visited[path] = true
		backing := backingOf(path)
		if backing == "" {
			return
		}
		if b, err := os.Stat(backing); err == nil && os.SameFile(b, info) {
			children = append(children, path)
			return
		}
		follow(backing)
	}
	for _, k := range known {
		if k.Format == disk.QCOW2 {
			follow(k.file)
		}
	}
	// Snapshots, too, may stand on something.
	_ = filepath.WalkDir(a.paths.State, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".") && !strings.HasSuffix(path, "."+disk.Raw) {
			follow(path)
		}
		return nil
	})
	beside, _ := os.ReadDir(filepath.Dir(on.Name()))
	for _, e := range beside {
		if e.Type().IsRegular() && config.FormatOf(e.Name()) == disk.QCOW2 && !strings.HasPrefix(e.Name(), ".") {
			follow(filepath.Join(filepath.Dir(on.Name()), e.Name()))
		}
	}
	slices.Sort(children)
	return children
}

// backingOf is the file that an image names as what it stands on, "" for none.
func backingOf(path string) string {
	// Not waited for: it may be a FIFO.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if s, err := f.Stat(); err != nil || s.IsDir() {
		return ""
	}
	h, err := disk.ReadHeader(f)
	if err != nil {
		return "" // not qcow2
	}
	backing, err := disk.Backing(path, h)
	if err != nil {
		return h.Backing // what is no file is shown as it is
	}
	return backing
}

// findDisk finds the disk of a machine that a place names. Where there are two
// files of it, the definition's is meant, or that of a format that is given.
func (a *app) findDisk(p place, format string) (knownDisk, error) {
	vm, err := a.find(p.vm)
	if err != nil && (exitStatus(err) != exitNotFound || !a.isLeftBehind(p.vm)) {
		return knownDisk{}, err
	}
	vm.Name = p.vm
	if err == nil && vm.Machine == nil {
		return knownDisk{}, invalid(vm, vm.Problems)
	}
	var names []string
	for _, d := range a.disksOf(vm) {
		if d.Name == p.disk && (format == "" || format == d.Format || !d.own) {
			return d, nil
		}
		if !slices.Contains(names, d.Name) {
			names = append(names, d.Name)
		}
	}
	hint := p.vm + " has no disk"
	if len(names) > 0 {
		hint = p.vm + " has " + strings.Join(names, ", ")
	}
	return knownDisk{}, &notFoundError{Kind: "disk of " + p.vm, Name: p.disk, Hint: cmp.Or(hintNear(p.disk, names), hint)}
}

// hintNear asks for what may have been meant, "" where nothing is near.
func hintNear(name string, candidates []string) string {
	if near := nearest(name, candidates); near != "" && near != name {
		return didYouMean(near)
	}
	return ""
}

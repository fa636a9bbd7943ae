package config

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// Parse reads a definition that is in no file; file is for messages, and its name
// that of the machine. Drop-ins are left out, templates are not.
func Parse(p Paths, file, text string) VM {
	main := &source{file: file, tree: newTree(0)}
	main.parse(text)
	return newLoader(p).build(main.name(), []*source{main})
}

// LoadVMWith is [LoadVM] as if a drop-in file of the machine had a text, or with
// "" were not there.
func LoadVMWith(p Paths, name, file, text string) (VM, error) {
	at := find(p.VMDirs, name)
	if at.file == "" {
		return VM{}, fmt.Errorf("machine %s: %w", show(name), fs.ErrNotExist)
	}
	l := newLoader(p)
	main := readSource(at.file, false)
	if main.masked {
		return VM{}, fmt.Errorf("machine %s: %w: masked by %s", name, fs.ErrNotExist, at.file)
	}
	own := dropIns(at.dropIns)
	base := func(s *source) string { return filepath.Base(s.file) }
	own = slices.DeleteFunc(own, func(s *source) bool { return base(s) == filepath.Base(file) })
	if text != "" {
		s := &source{file: file, dropIn: true, tree: newTree(0)}
		s.parse(text)
		i, _ := slices.BinarySearchFunc(own, s, func(a, b *source) int { return strings.Compare(base(a), base(b)) })
		own = slices.Insert(own, i, s)
	}
	return l.build(name, slices.Concat([]*source{main}, l.common, own)), nil
}

// DiskDropIn is where vmctl keeps what it has changed of a machine's disk: beside
// the definition where that is gone with the host's end, else in the
// administrator's directory.
func (p Paths) DiskDropIn(vm VM, disk string) string {
	dir := p.VMDirs[1]
	if filepath.Dir(vm.File) == p.VMDirs[0] {
		dir = p.VMDirs[0]
	}
	return filepath.Join(Definition(dir, vm.Name)+".d", "60-disk-"+disk+suffix)
}

// dropDisabled leaves out the disks that are not enabled, and their places in the
// boot order.
func (m *Machine) dropDisabled() {
	var off []string
	for _, d := range m.Disks {
		if !d.Enabled {
			off = append(off, d.Key())
		}
	}
	if len(off) == 0 {
		return
	}
	m.Disks = slices.DeleteFunc(m.Disks, func(d Disk) bool { return !d.Enabled })
	m.Boot.Order = slices.DeleteFunc(slices.Clone(m.Boot.Order), func(key string) bool { return slices.Contains(off, key) })
}

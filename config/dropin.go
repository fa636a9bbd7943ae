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
	at := p.find(p.VMDirs, name)
	if at.file == "" {
		return VM{}, fmt.Errorf("machine %s: %w", show(name), fs.ErrNotExist)
	}
	l := newLoader(p)
	main := p.source(at.file, false)
	if main.masked {
		return VM{}, fmt.Errorf("machine %s: %w: masked by %s", name, fs.ErrNotExist, at.file)
	}
	own := p.dropIns(at.dropIns)
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

// DeviceDropIn is where vmctl keeps what it has changed of a machine's disk or
// card, by its key ("disk.data"): beside the definition where that is gone with
// the host's end, else in the administrator's directory.
func (p Paths) DeviceDropIn(vm VM, key string) string {
	dir := p.VMDirs[1]
	if filepath.Dir(vm.File) == p.VMDirs[0] {
		dir = p.VMDirs[0]
	}
	return filepath.Join(Definition(dir, vm.Name)+".d", "60-"+strings.ReplaceAll(key, ".", "-")+suffix)
}

// SetDropIn is where vmctl keeps what it has set of a machine beside its devices. It
// goes after most other drop-ins.
func (p Paths) SetDropIn(vm VM) string {
	return filepath.Join(filepath.Dir(p.DeviceDropIn(vm, "disk.x")), "95-set"+suffix)
}

// WrittenIn is the file, and the line in it, that says what a key is: the last of
// those that do, "" where none does.
func (m *Machine) WrittenIn(key string) (file string, line int) {
	if m.origin == nil {
		return "", 0
	}
	p := m.origin.problem(key, key, "")
	return p.File, p.Line
}

// dropDisabled leaves out the disks and cards that are not enabled, and their
// places in the boot order.
func (m *Machine) dropDisabled() {
	var off []string
	for _, d := range m.Disks {
		if !d.Enabled {
			off = append(off, d.Key())
		}
	}
	for _, n := range m.NICs {
		if !n.Enabled {
			off = append(off, n.Key())
		}
	}
	if len(off) == 0 {
		return
	}
	m.Disks = slices.DeleteFunc(m.Disks, func(d Disk) bool { return !d.Enabled })
	m.NICs = slices.DeleteFunc(m.NICs, func(n NIC) bool { return !n.Enabled })
	m.Boot.Order = slices.DeleteFunc(slices.Clone(m.Boot.Order), func(key string) bool { return slices.Contains(off, key) })
}

package hypervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/vmctl/vmctl/config"
)

// ReadChanges reads what has changed of the disks of a machine that runs. Of
// one that does not, it means nothing.
func ReadChanges(paths config.Paths, vm string) (Changes, error) {
	var c Changes
	b, err := os.ReadFile(paths.Changes(vm))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%s: %w", paths.Changes(vm), err)
	}
	return c, nil
}

// Apply returns a machine as it is after the changes: m as it was started, with
// the disks that it has now.
func (c Changes) Apply(m *config.Machine) *config.Machine {
	out := *m
	out.Disks = nil
	for _, d := range m.Disks {
		if !slices.Contains(c.Gone, d.Name) && c.index(d.Name) < 0 {
			out.Disks = append(out.Disks, d)
		}
	}
	out.Disks = append(out.Disks, c.Disks...)
	return &out
}

func (c Changes) index(disk string) int {
	return slices.IndexFunc(c.Disks, func(d config.Disk) bool { return d.Name == disk })
}

// Attached notes that a disk is there.
func (c *Changes) Attached(d config.Disk, backing []Layer) {
	c.Forget(d.Name)
	c.Disks = append(c.Disks, d)
	if c.Backing == nil {
		c.Backing = map[string][]Layer{}
	}
	c.Backing[d.Name] = backing
}

// Detached notes that a disk is gone; started says whether the machine was
// started with one of that name.
func (c *Changes) Detached(disk string, started bool) {
	c.Forget(disk)
	if started {
		c.Gone = append(c.Gone, disk)
	}
}

// Forget removes a disk from all that is noted.
func (c *Changes) Forget(disk string) {
	is := func(name string) bool { return name == disk }
	c.Disks = slices.DeleteFunc(c.Disks, func(d config.Disk) bool { return d.Name == disk })
	delete(c.Backing, disk)
	c.Gone = slices.DeleteFunc(c.Gone, is)
	c.Leaving = slices.DeleteFunc(c.Leaving, is)
	c.Empty = slices.DeleteFunc(c.Empty, is)
}

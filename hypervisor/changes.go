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

// ReadChanges reads what has changed of the devices and settings of a machine that
// runs. Of one that does not, it means nothing.
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
// the disks, cards, shares and settings that it has now.
func (c Changes) Apply(m *config.Machine) *config.Machine {
	out := *m
	if c.Live != nil {
		out = *m.WithLive(*c.Live)
	}
	out.Disks = []config.Disk{} // none are written as those of a definition are
	for _, d := range m.Disks {
		if !slices.Contains(c.Gone, d.Name) && c.index(d.Name) < 0 {
			out.Disks = append(out.Disks, d)
		}
	}
	out.Disks = append(out.Disks, c.Disks...)
	if c.Live != nil {
		out.Disks = out.WithLive(*c.Live).Disks
	}
	out.NICs = []config.NIC{}
	for _, n := range m.NICs {
		if i := c.indexNIC(n.Name); i >= 0 {
			out.NICs = append(out.NICs, c.NICs[i])
		} else if !slices.Contains(c.GoneNICs, n.Name) {
			out.NICs = append(out.NICs, n)
		}
	}
	for _, n := range c.NICs {
		if !slices.ContainsFunc(m.NICs, func(old config.NIC) bool { return old.Name == n.Name }) {
			out.NICs = append(out.NICs, n)
		}
	}
	out.Shares = c.applyShares(m)
	return &out
}

// Plugged is a disk that a machine has by now, as it was plugged in: what its limits
// are since then changes nothing of what there is of it. m is the machine as it was
// started.
func (c Changes) Plugged(m *config.Machine, disk string) (config.Disk, bool) {
	c.Live = nil
	disks := c.Apply(m).Disks
	i := slices.IndexFunc(disks, func(d config.Disk) bool { return d.Name == disk })
	if i < 0 {
		return config.Disk{}, false
	}
	return disks[i], true
}

func (c Changes) indexNIC(nic string) int {
	return slices.IndexFunc(c.NICs, func(n config.NIC) bool { return n.Name == nic })
}

// AttachedNIC notes that a card is there.
func (c *Changes) AttachedNIC(n config.NIC) {
	c.forgetNIC(n.Name)
	c.NICs = append(c.NICs, n)
}

// DetachedNIC notes that a card is gone; started says whether the machine was
// started with one of that name.
func (c *Changes) DetachedNIC(nic string, started bool) {
	c.forgetNIC(nic)
	if started {
		c.GoneNICs = append(c.GoneNICs, nic)
	}
}

// SetNIC notes the link and the limits of a card of m, the machine as it was
// started; overridden is what the definition says otherwise, "" where they are its.
func (c *Changes) SetNIC(n config.NIC, m *config.Machine, overridden string) {
	delete(c.Overridden, n.Name)
	if overridden != "" {
		if c.Overridden == nil {
			c.Overridden = map[string]string{}
		}
		c.Overridden[n.Name] = overridden
	}
	if i := c.indexNIC(n.Name); i >= 0 {
		c.NICs[i] = n
		return
	}
	c.NICs = append(c.NICs, n)
	if slices.ContainsFunc(m.NICs, func(old config.NIC) bool { return old.Name == n.Name }) {
		c.SetNICs = append(c.SetNICs, n.Name)
	}
}

// forgetNIC removes a card from all that is noted.
func (c *Changes) forgetNIC(nic string) {
	is := func(name string) bool { return name == nic }
	c.NICs = slices.DeleteFunc(c.NICs, func(n config.NIC) bool { return n.Name == nic })
	c.GoneNICs = slices.DeleteFunc(c.GoneNICs, is)
	c.LeavingNICs = slices.DeleteFunc(c.LeavingNICs, is)
	c.SetNICs = slices.DeleteFunc(c.SetNICs, is)
	delete(c.Overridden, nic)
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
	if c.Live != nil {
		delete(c.Live.Disks, disk)
	}
	delete(c.Throttled, disk)
	c.Empty = slices.DeleteFunc(c.Empty, is)
}

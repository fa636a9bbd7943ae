package main

import (
	"maps"
	"slices"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// pending says whether a restart would change what a machine that runs runs with:
// its definition is another by now, or somebody has changed its disks, cards or
// shares until it stops.
func (a *app) pending(l look, host hypervisor.Host) bool {
	return a.outdated(l, host) || len(changedByHand(l)) > 0
}

// outdated says whether the definition that a machine runs with is another than
// the one it has now.
func (a *app) outdated(l look, host hypervisor.Host) bool {
	if l.record == nil {
		return false
	}
	digest := a.plan(l.vm, host).Digest
	switch {
	case digest == "":
		return true
	case l.changes.Live == nil && (digest == l.record.Digest || digest == l.changes.Digest):
		return false
	case l.record.Machine == nil || l.changes.None():
		return true
	}
	// What was changed while it runs may be what the definition says by now.
	return digest != a.plan(config.VM{Name: l.vm.Name, File: l.vm.File, Machine: asDefined(l)}, host).Digest
}

// asDefined is what a machine runs with, but that the link and limits of cards, and
// the limits of disks, that were set until it stops are those of its definition.
func asDefined(l look) *config.Machine {
	m := l.machine()
	m.NICs = slices.Clone(m.NICs)
	for i, n := range m.NICs {
		defined, has := l.vm.Machine.NIC(n.Name)
		if has && l.changes.Overridden[n.Name] == defined.Settings() {
			m.NICs[i] = n.WithSettings(defined)
		}
	}
	live := m.Live()
	maps.Copy(live.Disks, throttledDisks(l))
	return m.WithLive(live)
}

// changedByHand are the keys of disks, cards and shares of a machine that runs in which
// they are not those of its definition, since somebody has changed them.
func changedByHand(l look) []config.Difference {
	if l.record == nil || l.record.Machine == nil || l.vm.Machine == nil || l.changes.None() {
		return nil
	}
	touched := map[string]bool{}
	for _, d := range l.changes.Disks {
		touched[d.Key()] = true
	}
	for _, name := range l.changes.Gone {
		touched[config.Disk{Name: name}.Key()] = true
	}
	for _, n := range l.changes.NICs {
		touched[n.Key()] = true
	}
	for name := range throttledDisks(l) {
		touched[config.Disk{Name: name}.Key()] = true
	}
	for _, name := range l.changes.GoneNICs {
		touched[config.NIC{Name: name}.Key()] = true
	}
	for _, d := range l.changes.Shares {
		touched[d.Key()] = true
	}
	for _, name := range l.changes.GoneShares {
		touched[config.Share{Name: name}.Key()] = true
	}
	var found []config.Difference
	for _, d := range config.Differences(l.machine().WithReloadedOf(l.vm.Machine), l.vm.Machine) {
		if touched[d.Device()] {
			found = append(found, d)
		}
	}
	return found
}

// Package all is the table of hypervisors: one line each.
package all

import (
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/qemu"
)

// Table returns every hypervisor.
func Table() []hypervisor.Hypervisor {
	return []hypervisor.Hypervisor{
		qemu.QEMU{},
	}
}

// ByName returns the hypervisor that a definition calls name, and whether
// there is one.
func ByName(name string) (hypervisor.Hypervisor, bool) {
	for _, h := range Table() {
		if h.Name() == name {
			return h, true
		}
	}
	return nil, false
}

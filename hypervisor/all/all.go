// Package all is the table of hypervisors: one line each.
package all

import (
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/cloudhypervisor"
	"github.com/vmctl/vmctl/hypervisor/qemu"
)

// Table returns every hypervisor.
func Table() []hypervisor.Hypervisor {
	return []hypervisor.Hypervisor{
		qemu.QEMU{},
		cloudhypervisor.CloudHypervisor{},
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

// Plan says how to run m by the hypervisor that it names, or what of m cannot be
// done; see [hypervisor.Hypervisor].
func Plan(m *config.Machine, host hypervisor.Host, paths config.Paths) (*hypervisor.Plan, []config.Problem) {
	h, ok := ByName(m.Hypervisor)
	if !ok {
		return nil, []config.Problem{m.Problem("hypervisor", "not supported yet: %s", m.Hypervisor)}
	}
	return h.Plan(m, host, paths)
}

package snapshot

import (
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// Part is a disk that takes part in a machine's snapshots.
type Part struct {
	Disk
	Key string // of the definition
}

// Parts are the disks that take part in a machine's snapshots: all that keep
// what is written to them. The problems are those that cannot, which no snapshot
// may leave out.
func Parts(m *config.Machine, paths config.Paths) ([]Part, []config.Problem) {
	var parts []Part
	var problems []config.Problem
	for _, d := range m.Disks {
		if !d.Keeps() {
			continue
		}
		if d.LacksSnapshots() {
			instead := "convert it to qcow2, or make it read-only or ephemeral"
			if m.Hypervisor == config.CloudHypervisor {
				instead = "cloud-hypervisor writes to no others; stop the machine and keep a copy of the disk (vmctl disk clone)"
			}
			problems = append(problems, m.Problem(d.Key()+".format", "a %s disk cannot take part in snapshots: %s", d.Format, instead))
			continue
		}
		parts = append(parts, Part{Disk{Name: d.Name, Path: paths.DiskFile(m.Name, d), Size: int64(d.Size)}, d.Key()})
	}
	return parts, problems
}

// StateFiles are the files, beside disks, in which a machine keeps what its guest
// does not forget when it is off. They belong to every snapshot.
func StateFiles(plan *hypervisor.Plan) []string {
	var files []string
	for _, n := range plan.New {
		if n.Copy != "" { // UEFI variables
			files = append(files, n.Path)
		}
	}
	for _, s := range plan.Sidecars {
		if s.State != "" { // TPM
			files = append(files, s.State)
		}
	}
	return files
}

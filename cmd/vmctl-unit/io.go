package main

import (
	"encoding/json"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/disk"
)

// chooseIO chooses how the files of the disks are read and written, notes that
// in the record, and returns the command line with it. It is done here, as the
// machine's user and in its sandbox, since what works for root outside of it
// need not work for the hypervisor.
func (a app) chooseIO(record *hypervisor.Record, argv []string) ([]string, error) {
	hv, err := hypervisorOf(*record)
	if err != nil {
		return nil, err
	}
	if len(record.Plan.Disks) == 0 {
		return argv, nil
	}
	_, builtIn := hv.(hypervisor.EngineBuilder)
	record.Engines = disk.TryEngines(argv[0], builtIn)
	record.IO = nil
	var problems []string
	for _, f := range record.Plan.Disks {
		chosen, err := hypervisor.ChooseIO(f, disk.TryDirect(f.Path, f.Format, f.Chain), record.Engines)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		a.info("disk %s: %s: %s", f.Disk, f.Path, chosen)
		record.IO = append(record.IO, chosen)
	}
	if len(problems) > 0 {
		return nil, refusal{problems}
	}
	b, err := json.Marshal(record)
	if err != nil {
		return nil, err
	}
	return hv.WithIO(argv, record.IO), replace(a.paths.VMJSON(a.vm), b, 0o600)
}

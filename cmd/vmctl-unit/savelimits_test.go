package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// sameArgv is a hypervisor that goes on by the command line of its start.
type sameArgv struct{ hypervisor.StateSaver }

func (sameArgv) StateArgv(_ context.Context, argv []string) ([]string, error) { return argv, nil }

// The command line that a saved machine goes on by has the limits of its start:
// what is saved of it says no other.
func TestSavedMachineHasTheLimitsOfItsStart(t *testing.T) {
	a := app{paths: config.SystemPaths(t.TempDir()), vm: "web"}
	b, err := json.Marshal(hypervisor.Changes{Live: &config.LiveSettings{CPUs: 2, Memory: 64 << 20,
		Disks: map[string]config.DiskLimits{"root": {IOPS: 500}, "data": {}}}})
	if err != nil {
		t.Fatal(err)
	}
	file := a.paths.Changes(a.vm)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	started := config.Machine{Name: "web", CPUs: 1, Memory: 64 << 20, Disks: []config.Disk{{Name: "root"}, {Name: "data", IOPS: 7}}}
	r := hypervisor.Record{Machine: &started, Plan: &hypervisor.Plan{}}
	if _, err := a.savedMachine(t.Context(), sameArgv{}, &r); err != nil {
		t.Fatal(err)
	}
	if m := r.Machine; m.CPUs != 2 || m.Disks[0].IOPS != 0 || m.Disks[1].IOPS != 7 {
		t.Errorf("saved is %+v", m)
	}
}

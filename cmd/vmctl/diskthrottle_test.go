package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

func TestLimitsText(t *testing.T) {
	for want, l := range map[string]hypervisor.Limits{
		"no limits":                              {},
		"500 operations/s, 20M/s":                {IOPS: 500, Bandwidth: 20 << 20},
		"1 reads/s, 2 writes/s, 1000B/s written": {IOPSRead: 1, IOPSWrite: 2, BandwidthWrite: 1000},
	} {
		if got := limitsText(l); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// What is kept for later starts replaces all limits of the definition, and lies
// where the definition does, unless that is a package's.
func TestPersistLimits(t *testing.T) {
	a := &app{paths: config.SystemPaths(t.TempDir())}
	a.paths.MachineID = filepath.Join(a.paths.Root, "machine-id")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(a.paths.MachineID, "0123456789abcdef0123456789abcdef\n")
	for i, name := range []string{"run", "etc", "usr"} {
		write(filepath.Join(a.paths.VMDirs[i], name+".toml"), "[disk.root]\nsize = \"1G\"\niops_read = 5\nbandwidth = \"5M\"\n")
	}
	for name, dir := range map[string]string{"run": a.paths.VMDirs[0], "etc": a.paths.VMDirs[1], "usr": a.paths.VMDirs[1]} {
		p := place{vm: name, disk: "root"}
		for _, want := range []hypervisor.Limits{{IOPS: 7, BandwidthRead: 1 << 20}, {}} {
			kept, err := a.limitsDropIn(p, want)
			if err == nil {
				err = kept.write()
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := filepath.Dir(filepath.Dir(kept.file)); got != dir {
				t.Errorf("%s: written in %s, want %s", name, got, dir)
			}
			m, err := a.load(name)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.Disks[0].Limits(); got != want || m.Disks[0].Size != 1<<30 {
				t.Errorf("%s: got %+v, want %+v", name, got, want)
			}
		}
	}
	// A file of a person's stays, and so does a definition that would be broken.
	own := filepath.Join(a.paths.VMDirs[1], "etc.toml.d", "90-limits-root.toml")
	write(own, "description = \"mine\"\n")
	if _, err := a.limitsDropIn(place{vm: "etc", disk: "root"}, hypervisor.Limits{}); err == nil || !strings.Contains(err.Error(), own+" was not written by vmctl") {
		t.Errorf("a file of a person's: %v", err)
	}
	write(filepath.Join(a.paths.VMDirs[0], "run.toml.d", "99-own.toml"), "[disk.root]\niops_read = 3\n")
	if _, err := a.limitsDropIn(place{vm: "run", disk: "root"}, hypervisor.Limits{IOPS: 5}); exitStatus(err) != exitInvalid {
		t.Errorf("limits that exclude another drop-in's: %v", err)
	}
	if _, err := a.limitsDropIn(place{vm: "etc", disk: "data"}, hypervisor.Limits{}); exitStatus(err) != exitNotFound {
		t.Errorf("a disk that no definition has: %v", err)
	}
}

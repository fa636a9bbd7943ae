package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// A disk that runs is grown as it was plugged in: by the filter of its limits where
// it has one, whatever its limits are by now.
func TestHotDiskIsAsPluggedIn(t *testing.T) {
	a := host(t)
	keep := func(file string, v any) {
		t.Helper()
		b, err := json.Marshal(v)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(file), 0o755)
		}
		if err == nil {
			err = os.WriteFile(file, b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ started, now int64 }{{0, 500}, {500, 0}} {
		d := config.Disk{Name: "root", Path: "/srv/root.raw", IOPS: c.started}
		keep(a.paths.Record("web"), hypervisor.Record{Machine: &config.Machine{Name: "web", Disks: []config.Disk{d}}})
		keep(a.paths.Changes("web"), hypervisor.Changes{Live: &config.LiveSettings{Disks: map[string]config.DiskLimits{"root": {IOPS: c.now}}}})
		defined := d
		defined.IOPS = c.now
		hot, err := a.hotDisk(knownDisk{Disk: defined, vm: "web", file: d.Path})
		if err != nil || hot.Disk.IOPS != c.started {
			t.Errorf("started with %d: planned with %d, %v", c.started, hot.Disk.IOPS, err)
		}
		defined.Path = "/srv/other.raw"
		if _, err := a.hotDisk(knownDisk{Disk: defined, vm: "web", file: defined.Path}); err == nil || !strings.Contains(err.Error(), "runs without this disk") {
			t.Errorf("another file: got %v", err)
		}
	}
}

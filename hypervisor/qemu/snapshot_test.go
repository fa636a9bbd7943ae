package qemu_test

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/hypervisor"
)

// tags are the snapshots inside of an image, in use or not.
func tags(t *testing.T, path string) (tags []string) {
	t.Helper()
	out, err := exec.Command("qemu-img", "info", "-U", "--output=json", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Snapshots []struct{ Name string } }
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	for _, s := range info.Snapshots {
		tags = append(tags, s.Name)
	}
	return tags
}

func TestSnapshotDisks(t *testing.T) {
	long := strings.Repeat("x", 63)
	m := start(t, "[disk.a]\nsize = \"1M\"\n[disk."+long+"]\nsize = \"1M\"\nbus = \"scsi\"\n[disk.raw]\nsize = \"1M\"\nformat = \"raw\"\n")
	m.want(hypervisor.Started, "")
	c := m.control().(hypervisor.DiskSnapshotter)
	want := func(disk string, want ...string) {
		t.Helper()
		if got := tags(t, m.paths.Disk("vm", disk, "qcow2")); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("disk %s has the snapshots %q, want %q", disk, got, want)
		}
	}
	if err := c.SnapshotDisks(t.Context(), "one", []string{"a", long}); err != nil {
		t.Fatal(err)
	}
	want("a", "one")
	want(long, "one")
	for _, disks := range [][]string{{"a", "raw", long}, {"a", "none"}} {
		if err := c.SnapshotDisks(t.Context(), "two", disks); err == nil {
			t.Errorf("a snapshot of %q was taken", disks)
		}
	}
	want("a", "one")
	want(long, "one")
	for range 2 {
		if err := c.DeleteDiskSnapshot(t.Context(), "one", "a"); err != nil {
			t.Error(err)
		}
	}
	want("a")
	want(long, "one")
	if err := c.DeleteDiskSnapshot(t.Context(), "one", "none"); err == nil || err.Error() != "the running machine has no disk none" {
		t.Errorf("of no disk: %v", err)
	}
	m.status(c, hypervisor.StatusRunning)
	if listens, err := c.(hypervisor.AgentWatcher).AgentListens(t.Context()); listens || err != nil {
		t.Errorf("without a guest: %v, %v", listens, err)
	}
}

//go:build e2e

package bus

import (
	"os"
	"os/exec"
	"slices"
	"testing"
)

// Limits of a unit that runs are set, and nothing is left that would hold against
// what the unit's own files say later; what a person has set stays. That the kernel
// holds the unit to them is for a test with controllers.
func TestHoldToLimits(t *testing.T) {
	c := connect(t)
	const unit = "vmctl-test-limited.service"
	text := func(limits string) map[string]string {
		return map[string]string{unit: "[Service]\nExecStart=/bin/sleep 1000\n" + limits}
	}
	place(t, c, text("CPUQuota=50%\nAllowedCPUs=0\nMemoryMax=100M\nIOReadBandwidthMax=/ 10M\nIOReadIOPSMax=/ 100\n"))
	if err := c.Start(t.Context(), unit); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemctl", "set-property", "--runtime", unit, "TasksMax=77").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	overrides, err := c.Overrides(unit)
	if want := []string{"/run/systemd/system.control/" + unit + ".d/50-TasksMax.conf"}; err != nil || !slices.Equal(overrides, want) {
		t.Fatalf("%v, %v", overrides, err)
	}
	if err := os.WriteFile("/run/systemd/system/"+unit, []byte(text("CPUQuota=30%\nMemoryMax=200M\nMemoryHigh=150M\nIOReadIOPSMax=/ 200\n")[unit]), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := c.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	// For good, while it is under way.
	persistent := "/etc/systemd/system.control/" + unit + ".d"
	if err := os.MkdirAll(persistent, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(persistent+"/50-IOWeight.conf", []byte("[Service]\nIOWeight=77\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tooSmall, err := c.HoldToLimits(t.Context(), unit, overrides, map[string][]string{"IOReadBandwidthMax": {"/"}}, 300<<20)
	if want := []string{"MemoryHigh", "MemoryMax"}; err != nil || !slices.Equal(tooSmall, want) {
		t.Fatalf("%v, %v", tooSmall, err)
	}
	if none, err := c.HoldToLimits(t.Context(), unit, overrides, map[string][]string{"IOReadBandwidthMax": {"/"}}, 149<<20); err != nil || none != nil {
		t.Fatalf("%v, %v", none, err)
	}
	if left, err := c.Overrides(unit); err != nil || !slices.Equal(left, append(overrides, persistent+"/50-IOWeight.conf")) {
		t.Errorf("left: %v, %v", left, err)
	}
	all, err := c.systemd.GetAllPropertiesContext(t.Context(), unit)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint64{"CPUQuotaPerSecUSec": 300_000, "MemoryMax": 200 << 20, "TasksMax": 77, "CPUWeight": Unset} {
		if got := property[uint64](all, name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	if read := property[[][]any](all, "IOReadBandwidthMax"); len(read) != 0 {
		t.Errorf("IOReadBandwidthMax is %v", read)
	}
	if iops := property[[][]any](all, "IOReadIOPSMax"); len(iops) != 1 || iops[0][1] != uint64(200) {
		t.Errorf("IOReadIOPSMax is %v", iops)
	}
	if err := os.RemoveAll(persistent); err != nil {
		t.Error(err)
	}
	if property[bool](all, "NeedDaemonReload") {
		t.Error("systemd has yet to read what was taken away")
	}
	if err := c.Stop(t.Context(), unit); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("systemctl", "revert", unit).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

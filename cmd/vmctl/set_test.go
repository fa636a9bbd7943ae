package main

import "testing"

// Limits that vmctl disk throttle has set are replaced by those of the definition
// where these are named, and not for anything else that is set.
func TestLimitsOfADisk(t *testing.T) {
	for key, want := range map[string]bool{
		"disk.root.iops": true, "disk.root.bandwidth_read": true, "disk.root.cache": false, "disk.root2.iops": false, "cpus": false,
	} {
		if got := limitsOf("root", []string{"memory", key}); got != want {
			t.Errorf("%s: got %v", key, got)
		}
	}
}

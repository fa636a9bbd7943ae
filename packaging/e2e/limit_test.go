//go:build e2e

package e2e

import "testing"

// The limit of starts is for machines that crash. systemd counts every start
// of a unit that it keeps loaded: one that another unit names, such as
// vms.target.
func TestStartsByPeopleHaveNoLimit(t *testing.T) {
	t.Parallel()
	v := newVMFrom(t, "often", firmwareOnly+"lifecycle.stop_timeout = \"1s\"\n")
	run(t, "systemctl", "daemon-reload")
	run(t, "systemd-run", "--unit=often-kept", "--property=After="+v.unit(), "sleep", "infinity")
	t.Cleanup(func() { try("systemctl", "stop", "often-kept") })
	for range 7 {
		run(t, "systemctl", "start", v.unit())
		run(t, "systemctl", "stop", v.unit())
	}
}

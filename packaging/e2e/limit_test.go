//go:build e2e

package e2e

import "testing"

// The limit of starts is for machines that crash. systemd counts every start
// of a unit that it keeps loaded, as it does those that start with the host.
func TestStartsByPeopleHaveNoLimit(t *testing.T) {
	t.Parallel()
	v := newVMFrom(t, "often", "autostart = true\n"+firmwareOnly+"lifecycle.stop_timeout = \"1s\"\n")
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "start", "vms.target")
	for range 7 {
		run(t, "systemctl", "start", v.unit())
		run(t, "systemctl", "stop", v.unit())
	}
}

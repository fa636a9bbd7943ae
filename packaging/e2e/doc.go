// Package e2e tests vmctl as it is installed: definitions on disk, a running
// systemd, hypervisors that run guests. Its tests have the build tag e2e and
// want to be process of a system of their own, which packaging/e2e/run makes.
//
// A test writes what a person would do:
//
//	func TestSomething(t *testing.T) {
//		v := newVM(t, "web", `cpus = 2`)  // /etc/vmctl/vms/web.toml
//		v.start()                         // daemon-reload, systemctl start
//		v.expect("vmctl-guest: ready")    // on the console
//		v.typeLine("disks")
//		v.expect(`disk vda .* bus=virtio`)
//		run(t, "vmctl", "stop", "web")
//	}
//
// What newVM and the others made is taken away at the end of the test, and
// where it failed, the unit's journal and the console's last lines are shown.
// Tests that leave the rest of the system alone call t.Parallel.
//
// A test named TestAfterReboot… runs in a second boot of the container, for which
// TestBeforeReboot… has left something.
//
// A test named TestLimits… runs in a machine of QEMU's with a kernel of its own
// (run --machine), for what a container may not have: the controllers of cgroup v2.
// It is slow there, and a machine within it slower.
//
// A test named TestCloudHypervisor… runs in a container with the host's
// cloud-hypervisor and KVM (run --cloud-hypervisor), where the host has them. The
// other TestCloud… are by what stands in for it.
//
// Nothing is asserted about time; what takes longer than patience is taken to
// hang.
package e2e

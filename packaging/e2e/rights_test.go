//go:build e2e

package e2e

import (
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// TestPolkit: by the packaged example, members of a group start, stop and kill
// machines, all or those named, by vmctl and by systemctl, and nobody else does; nor
// do they get at the API.
func TestPolkit(t *testing.T) {
	const rules = "/etc/polkit-1/rules.d/50-vmctl.rules"
	run(t, "install", "-D", "-m", "644", "/usr/share/doc/vmctl/examples/50-vmctl.rules", rules)
	run(t, "sed", "-i", `s/"web1", "web2"/"rights-other", "rights"/`, rules)
	t.Cleanup(func() { try("rm", rules) })
	groups := map[string]string{"operator1": "vm-operators", "operator2": "web-operators", "stranger": ""}
	for user, group := range groups {
		run(t, "useradd", "--no-create-home", user)
		t.Cleanup(func() { try("userdel", user) })
		if group != "" {
			run(t, "groupadd", "--system", "--users", user, group)
			t.Cleanup(func() { try("groupdel", group) })
		}
	}
	as := func(user string, argv ...string) []string {
		return append([]string{"runuser", "-u", user, "--"}, argv...)
	}
	v := newVMFrom(t, "rights", "memory = \"64M\"\nlifecycle.stop_timeout = \"5s\"\nconsole.group = \"web-operators\"\n")
	run(t, "vmctl", "reload", v.name)

	// polkitd reads its rules a moment after they change.
	eventually(t, "a member of the group may start it", func() bool { return try(as("operator1", "vmctl", "start", v.name)...).code == 0 })
	// The console is for the group that its definition says, and nothing else of it.
	for range 2 {
		run(t, as("operator2", "vmctl", "console", "--log", v.name)...)
		for _, user := range []string{"operator1", "stranger"} {
			contains(t, fail(t, 7, as(user, "vmctl", "console", "--log", v.name)...), "console of rights: ", "permission denied")
		}
		paths := config.SystemPaths("")
		for _, file := range []string{paths.QMPSocket(v.name), paths.JobSocket(v.name), paths.AgentSocket(v.name), paths.VMJSON(v.name), paths.RuntimeDir(v.name)} {
			if try(as("operator2", "test", "-w", file)...).code == 0 || try(as("operator2", "test", "-r", file)...).code == 0 {
				t.Errorf("a member of the console's group may use %s", file)
			}
		}
		run(t, "systemctl", "reload", v.unit())
	}
	v.define("memory = \"64M\"\nlifecycle.stop_timeout = \"5s\"\n")
	run(t, "vmctl", "reload", v.name)
	contains(t, fail(t, 7, as("operator2", "vmctl", "console", "--log", v.name)...), "permission denied")
	contains(t, run(t, "vmctl", "diff", v.name), "runs with what is defined")
	contains(t, fail(t, 7, as("stranger", "vmctl", "stop", v.name)...), "vmctl: stop rights: ", "not permitted", "have an administrator allow it by polkit")
	contains(t, fail(t, 7, as("stranger", "vmctl", "kill", v.name)...), "not permitted")
	if r := try(as("stranger", "systemctl", "--no-ask-password", "stop", v.unit())...); r.code == 0 {
		t.Error("a stranger may stop a machine by systemctl")
	}
	contains(t, strings.Join(strings.Fields(run(t, as("stranger", "vmctl", "list")...)), " "), " rights running ")
	run(t, as("operator1", "vmctl", "stop", v.name)...)
	contains(t, fail(t, 7, as("stranger", "vmctl", "start", v.name)...), "vmctl: start rights: ", "not permitted")
	run(t, as("operator1", "systemctl", "--no-ask-password", "start", v.unit())...)
	run(t, as("operator2", "vmctl", "kill", v.name)...)
	// Nothing else than that.
	more := newVMFrom(t, "rights-more", "memory = \"64M\"\n")
	run(t, "vmctl", "reload", more.name)
	contains(t, fail(t, 7, as("operator2", "vmctl", "start", more.name)...), "not permitted")
	socket := strings.TrimPrefix(apiSocket, "unix:")
	run(t, "systemctl", "start", "vmctl-api.socket")
	run(t, "test", "-S", socket)
	for user := range groups {
		if r := try(as(user, "test", "-w", socket)...); r.code == 0 {
			t.Errorf("%s may drive the API", user)
		}
	}
	contains(t, fail(t, 7, as("operator1", "vmctl", "enable", v.name)...), "not permitted")
	if r := try(as("operator1", "systemctl", "--no-ask-password", "stop", "dbus.service")...); r.code == 0 {
		t.Error("a member of the group may stop other services")
	}
	if r := try(as("operator1", "vmctl", "delete", "--yes", v.name)...); r.code != 7 {
		t.Errorf("a member of the group deletes a machine: %d %s", r.code, r.all())
	}
}

// TestHostDevices: what this host has not got is said before anything is started,
// in a sentence each; and the sandbox lets QEMU look for USB devices.
func TestHostDevices(t *testing.T) {
	t.Parallel()
	v := newVMFrom(t, "host-devices", "memory = \"64M\"\n[pci.gpu]\naddress = \"0000:7f:1f.7\"\n[usb.key]\nvendor = \"fffe\"\nproduct = \"c52b\"\n")
	text := fail(t, 1, "vmctl", "start", v.name)
	contains(t, text, "host-devices.toml:3: pci.gpu.address: want a PCI device of this host, got 0000:7f:1f.7, which is not there",
		"host-devices.toml:4: usb.key: want a USB device that is plugged in, got fffe:c52b, which is not")
	if r := try("test", "-e", v.stateDir()+"/host-devices.json"); r.code == 0 {
		t.Error("what was refused is noted")
	}
	contains(t, run(t, "systemctl", "cat", v.unit()), "modprobe@vfio_pci.service", "DeviceAllow=char-vfio rw", "DeviceAllow=char-usb_device rw", "vfio-pci,id=pci-gpu,host=0000:7f:1f.7")

	// A definition with [usb] opens what is opened here by hand, and no more: QEMU
	// waits for the device.
	v.define(`memory = "64M"
[service]
RestrictAddressFamilies = "AF_NETLINK"
[hypervisor_options]
extra_args = ["-device", "qemu-xhci,id=by-hand", "-device", "usb-host,bus=by-hand.0,vendorid=0xfffe,productid=0xc52b"]
`)
	run(t, "vmctl", "reload", v.name)
	run(t, "vmctl", "start", v.name)
	run(t, "vmctl", "kill", v.name)
}

package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/netsetup"
	"github.com/vmctl/vmctl/units/bus"
)

// sound are the facts of a host on which all is well.
func sound() facts {
	return facts{
		Systemd: "257.1", SystemdMajor: 257, QEMU: "10.0.2", QEMUPath: "/usr/bin/qemu-system-x86_64",
		Virtualization: true, Accel: "kvm", Firmware: 2, CgroupVersion: 2,
		Controllers:     []string{"cpu", "io", "memory", "pids"},
		Nodes:           map[string]bool{"/dev/net/tun": true, "/dev/vhost-net": true, "/dev/vhost-vsock": true, "/dev/kvm": true},
		StateFreeBytes:  100 << 30,
		Paths:           map[string]string{"state": "/var/lib/vmctl/vms"},
		machinedPresent: true,
		network:         hostNetwork{programs: map[string]string{"nft": "1.0.6", "dnsmasq": "2.90"}},
	}
}

func TestExamine(t *testing.T) {
	for _, c := range examine(sound()) {
		if c.Verdict != verdictOK || c.Next != "" {
			t.Errorf("on a sound host: %+v", c)
		}
	}
	idle := sound()
	idle.target = "disabled" // and nothing that it would start
	for _, c := range examine(idle) {
		if c.Verdict != verdictOK {
			t.Errorf("on an idle host: %+v", c)
		}
	}
	// What is not known is not called good.
	mute := sound()
	mute.busErr = errors.New("no bus")
	for _, c := range examine(mute) {
		if c.Name == "failed" || c.Name == "leftovers" || c.Name == "autostart" {
			t.Errorf("without systemd: %+v", c)
		}
	}
	tests := []struct {
		name   string
		change func(*facts)
		want   string // verdict, check, text
		next   string
	}{
		{"no systemd", func(f *facts) { f.busErr = errors.New("no bus") }, "fail systemd no bus", "PID 1"},
		{"no user manager", func(f *facts) { f.user, f.busErr = true, errors.New("no bus") }, "fail systemd no bus", "enable-linger"},
		{"no linger", func(f *facts) { f.user = true }, "warn autostart your VMs start when you log in, and end when you log out", "loginctl enable-linger"},
		{"not root", func(f *facts) { f.busErr = bus.ErrNotPermitted }, "fail systemd not permitted", "root"},
		{"old systemd", func(f *facts) { f.Systemd, f.SystemdMajor = "247.3", 247 }, "warn systemd version 247.3 is older than what is tested", "252"},
		{"no cloud-hypervisor", func(f *facts) { f.Cloud = cloudFacts{wanted: true} }, "fail cloud-hypervisor not installed, but a VM wants it", "releases"},
		{"mute cloud-hypervisor", func(f *facts) { f.Cloud = cloudFacts{Path: "/usr/bin/cloud-hypervisor", wanted: true} }, "fail cloud-hypervisor /usr/bin/cloud-hypervisor does not tell its version, so its VMs do not start", "--version"},
		{"mute and not wanted", func(f *facts) { f.Cloud = cloudFacts{Path: "/usr/bin/cloud-hypervisor"} }, "warn cloud-hypervisor /usr/bin/cloud-hypervisor does not tell its version", "--version"},
		{"no KVM for it", func(f *facts) {
			f.Cloud, f.Nodes["/dev/kvm"] = cloudFacts{Path: "/usr/bin/cloud-hypervisor", Version: "v53.0", wanted: true}, false
		}, "fail cloud-hypervisor version v53.0, but there is no /dev/kvm, and it runs VMs by KVM alone", "modprobe kvm_intel"},
		{"no VMX for it", func(f *facts) {
			f.Cloud, f.Virtualization = cloudFacts{Path: "/usr/bin/cloud-hypervisor", Version: "v53.0", wanted: true}, false
		}, "warn cloud-hypervisor version v53.0, but the CPU has no VMX or SVM: KVM may not work, and it cannot do without", "nested"},
		{"no firmware for it", func(f *facts) {
			f.Cloud = cloudFacts{Path: "/usr/bin/cloud-hypervisor", Version: "v53.0", wanted: true, wantsFirmware: true}
		}, "warn cloud-hypervisor version v53.0, but no firmware: it boots kernels alone", "edk2/releases"},
		{"old cloud-hypervisor", func(f *facts) { f.Cloud = cloudFacts{Path: "/usr/bin/cloud-hypervisor", Version: "v46.0"} }, "warn cloud-hypervisor version v46.0 has no cards but vhost-user ones: v52.0 or newer is needed", "releases"},
		{"half installed", func(f *facts) { f.missing = []string{"/x", "/y"} }, "fail installation not there: /x, /y", "make install"},
		{"no nft", func(f *facts) { f.network.programs = map[string]string{"dnsmasq": "2.90"} }, "warn nft not installed, so there are no networks", "nftables"},
		{"broken dnsmasq", func(f *facts) { f.network.programs = map[string]string{"nft": "1.0.6", "dnsmasq": ""} }, "warn dnsmasq does not tell its version", "--version"},
		{"no module", func(f *facts) { f.network.modules = []string{"vxlan"} }, "warn kernel no module vxlan, which networks need", "modprobe vxlan"},
		{"Docker", func(f *facts) {
			f.network.obstacles = []netsetup.Obstacle{{Text: "Docker drops", Remedy: "iptables -I"}, {Text: "ufw drops"}}
		}, "warn firewall Docker drops (and 1 more), so guests of networks may reach nothing", "iptables -I"},
		{"no QEMU", func(f *facts) { f.QEMU, f.QEMUPath = "", "" }, "fail qemu qemu-system-x86_64 is not installed", "apt install"},
		{"broken QEMU", func(f *facts) { f.QEMU = "" }, "fail qemu /usr/bin/qemu-system-x86_64 does not tell its version", "--version"},
		{"module missing", func(f *facts) { f.Accel = "tcg" }, "warn acceleration there is no /dev/kvm, so QEMU's guests run by slow software emulation", "modprobe"},
		{"no VMX", func(f *facts) { f.Accel, f.Virtualization = "tcg", false }, "warn acceleration the CPU has no VMX or SVM, so QEMU's guests run by slow software emulation", "nested"},
		{"no firmware", func(f *facts) { f.Firmware = 0 }, `warn uefi no firmware for firmware = "uefi"`, "ovmf"},
		{"no vhost", func(f *facts) { f.Nodes["/dev/vhost-net"] = false }, "warn vhost-net no /dev/vhost-net: without it networks are slower", "modprobe vhost-net"},
		{"cgroup v1", func(f *facts) { f.CgroupVersion = 1 }, "warn cgroup no version 2 tree, so limits of [resources] do not hold", "boot"},
		{"no memory controller", func(f *facts) { f.Controllers = []string{"cpu", "io", "pids"} }, "warn cgroup no controller for memory, so such limits do not hold", "boot"},
		{"no machined", func(f *facts) { f.machinedPresent = false }, "warn machined not installed, so machinectl does not know the VMs", "systemd-container"},
		{"full disk", func(f *facts) { f.StateFreeBytes = 1 << 20 }, "warn space 1M free for /var/lib/vmctl/vms", "room"},
		{"broken definition", func(f *facts) { f.problems = []config.Problem{{File: "/a.toml", Line: 1, Text: "bad"}} }, "fail definitions 1 problem, the first: /a.toml:1: bad", "vmctl check"},
		{"not reloaded", func(f *facts) { f.stale = strings.Fields("a b c d e f g") }, "warn reload systemd has not read the definition of a, b, c, d, e and 2 more", "vmctl reload"},
		{"leftovers", func(f *facts) { f.leftovers = []string{"a", "d1"} }, "warn leftovers state without definition: a, d1", "vmctl delete a"},
		{"target disabled", func(f *facts) { f.withHost, f.target = []string{"web"}, "disabled" }, "warn autostart vms.target is disabled, so web will not start with the host", "systemctl enable vms.target"},
		{"target of a user", func(f *facts) { f.user, f.withHost, f.target = true, []string{"web"}, "disabled" }, "warn autostart vms.target is disabled, so web will not start with the host", "systemctl --user enable vms.target"},
		{"failed", func(f *facts) { f.failed = []string{"web"} }, "warn failed web failed", "vmctl show web"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := sound()
			tt.change(&f)
			var found []check
			for _, c := range examine(f) {
				if c.Verdict != verdictOK {
					found = append(found, c)
				}
			}
			if len(found) != 1 {
				t.Fatalf("got %+v", found)
			}
			c := found[0]
			if got := string(c.Verdict) + " " + c.Name + " " + c.Text; got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if !strings.Contains(c.Next, tt.next) {
				t.Errorf("next: got %q, want %q in it", c.Next, tt.next)
			}
		})
	}
}

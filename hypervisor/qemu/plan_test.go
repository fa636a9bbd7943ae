package qemu_test

import (
	"encoding/json"
	"flag"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/hypervisortest"
	"github.com/vmctl/vmctl/hypervisor/qemu"
)

var update = flag.Bool("update", false, "rewrite what the golden files want")

// testHost is a host with everything, with Debian's firmware.
func testHost() hypervisor.Host {
	ovmf := func(file, code, vars string, features ...string) hypervisor.Firmware {
		return hypervisor.Firmware{
			File: "/usr/share/qemu/firmware/" + file, Interfaces: []string{"uefi"},
			Code: "/usr/share/OVMF/" + code, CodeFormat: "raw", Vars: "/usr/share/OVMF/" + vars, VarsFormat: "raw",
			Machines: []string{"pc-q35-*"}, Features: features,
		}
	}
	plain := ovmf("60-edk2-x86_64.json", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd", "acpi-s3", "amd-sev", "verbose-dynamic")
	plain.Machines = []string{"pc-i440fx-*", "pc-q35-*"}
	return hypervisor.Host{
		CPUVirtualization: true,
		Nodes:             map[string]bool{"/dev/kvm": true, "/dev/vhost-net": true, "/dev/vhost-vsock": true, "/dev/net/tun": true},
		Programs: map[string]string{
			"qemu-system-x86_64": "/usr/bin/qemu-system-x86_64", "virtiofsd": "/usr/libexec/virtiofsd", "swtpm": "/usr/bin/swtpm",
		},
		Firmware: []hypervisor.Firmware{
			ovmf("40-edk2-x86_64-secure-enrolled.json", "OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd", "enrolled-keys", "requires-smm", "secure-boot"),
			ovmf("50-edk2-x86_64-secure.json", "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd", "requires-smm", "secure-boot"),
			plain,
		},
		HugepageSize: 2 << 20,
		Systemd:      257,
	}
}

// load reads a definition. All that is derived comes from a fixed machine-id.
func load(t *testing.T, name, text string) *config.Machine {
	t.Helper()
	return subject().Load(t, name, text)
}

func TestPlan(t *testing.T) { subject().Golden(t, *update) }

// opened are the files that a command line names.
func opened(t *testing.T, plan *hypervisor.Plan) []string {
	var files []string
	for i, a := range plan.Argv {
		switch a {
		case "-blockdev":
			var node struct{ Filename string }
			if err := json.Unmarshal([]byte(plan.Argv[i+1]), &node); err != nil {
				t.Fatal(err)
			}
			files = append(files, node.Filename)
		case "-kernel", "-initrd", "-bios":
			files = append(files, plan.Argv[i+1])
		}
	}
	return files
}

func subject() hypervisortest.Subject {
	return hypervisortest.Subject{
		Hypervisor: qemu.QEMU{},
		Host:       testHost(),
		Card:       "user = true",
		Opened:     opened,
	}
}

func TestSuite(t *testing.T) { hypervisortest.Run(t, subject()) }

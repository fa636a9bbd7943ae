package qemu_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

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
	dir := t.TempDir()
	paths := config.SystemPaths("")
	paths.MachineID = filepath.Join(dir, "machine-id")
	file := filepath.Join(dir, name+".toml")
	for path, content := range map[string]string{paths.MachineID: strings.Repeat("0123456789abcdef", 2) + "\n", file: text} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	vm := config.LoadFile(paths, file)
	if vm.Machine == nil {
		t.Fatalf("loading %s: %v", text, vm.Problems)
	}
	return vm.Machine
}

// TestPlan compares plans, or what is refused, with the golden files: vm.toml
// and, where the host differs from testHost, host.json above, want below.
func TestPlan(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			host, want := testHost(), -1
			var m *config.Machine
			for i, f := range archive.Files {
				switch f.Name {
				case "vm.toml":
					m = load(t, "vm", string(f.Data))
				case "host.json":
					if err := json.Unmarshal(f.Data, &host); err != nil {
						t.Fatal(err)
					}
				case "want":
					want = i
				}
			}
			got := planned(t, m, host)
			if *update {
				if want < 0 {
					archive.Files = append(archive.Files, txtar.File{Name: "want"})
					want = len(archive.Files) - 1
				}
				archive.Files[want].Data = got
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want < 0 || !bytes.Equal(got, archive.Files[want].Data) {
				t.Errorf("got:\n%s", got)
			}
		})
	}
}

// planned writes a plan, an option of the command line on each line, or the
// problems.
func planned(t *testing.T, m *config.Machine, host hypervisor.Host) []byte {
	t.Helper()
	plan, problems := qemu.QEMU{}.Plan(m, host, config.SystemPaths(""))
	again, _ := qemu.QEMU{}.Plan(m, host, config.SystemPaths(""))
	if !reflect.DeepEqual(plan, again) {
		t.Error("planning twice gave two plans")
	}
	var b bytes.Buffer
	for _, p := range problems {
		p.File = filepath.Base(p.File)
		fmt.Fprintln(&b, p.Error())
	}
	if plan == nil {
		return b.Bytes()
	}
	for i, a := range plan.Argv {
		switch {
		case i == 0:
		case a[0] == '-':
			b.WriteString("\n  ")
		default:
			b.WriteByte(' ')
		}
		b.WriteString(a)
	}
	b.WriteByte('\n')
	plan.Argv = nil
	rest, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	b.Write(append(bytes.Replace(rest, []byte("  \"argv\": null,\n"), nil, 1), '\n'))
	return b.Bytes()
}

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

func TestSuite(t *testing.T) {
	hypervisortest.Run(t, hypervisortest.Subject{
		Hypervisor: qemu.QEMU{},
		Host:       testHost(),
		Opened:     opened,
	})
}

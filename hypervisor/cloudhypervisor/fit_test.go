package cloudhypervisor

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// accepted is what releases take of what a plan uses: the option, and the keys of
// its value; nil for a value that is not parsed, or none.
var accepted = map[version]map[string][]string{
	{40, 0}: {
		"--api-socket": {"path", "fd"}, "--event-monitor": {"path", "fd"}, "-v": nil, "--seccomp": nil,
		"--platform": {"num_pci_segments", "iommu_segments", "serial_number", "uuid", "oem_strings"},
		"--cpus":     {"boot", "max", "topology", "kvm_hyperv", "max_phys_bits", "affinity", "features"},
		"--memory":   {"size", "file", "mergeable", "hotplug_method", "hotplug_size", "hotplugged_size", "shared", "hugepages", "hugepage_size", "prefault", "thp"},
		"--kernel":   nil, "--firmware": nil, "--initramfs": nil, "--cmdline": nil,
		"--serial": nil, "--console": nil, "--rng": {"src", "iommu"}, "--pvpanic": nil, "--watchdog": nil,
		"--balloon": {"size", "deflate_on_oom", "free_page_reporting"},
		"--vsock":   {"socket", "cid", "iommu", "id", "pci_segment"},
		"--disk": {"path", "readonly", "direct", "iommu", "queue_size", "num_queues", "vhost_user", "socket", "bw_size", "bw_one_time_burst", "bw_refill_time",
			"ops_size", "ops_one_time_burst", "ops_refill_time", "id", "_disable_io_uring", "_disable_aio", "pci_segment", "serial", "rate_limit_group", "queue_affinity"},
		"--net": {"tap", "ip", "mask", "mac", "host_mac", "offload_tso", "offload_ufo", "offload_csum", "mtu", "iommu", "queue_size", "num_queues", "vhost_user",
			"socket", "vhost_mode", "id", "fd", "bw_size", "bw_one_time_burst", "bw_refill_time", "ops_size", "ops_one_time_burst", "ops_refill_time", "pci_segment"},
		"--fs": {"tag", "queue_size", "num_queues", "socket", "id", "pci_segment"}, "--tpm": {"socket"},
		"--device": {"path", "iommu", "id", "pci_segment"},
	},
	{46, 0}: {"--landlock": nil, "--landlock-rules": {"path", "access"}, "--platform": {"iommu_address_width"}},
	{51, 0}: {"--cpus": {"nested"}, "--disk": {"backing_files", "sparse", "image_type"}},
	{53, 0}: {
		"--cpus": {"core_scheduling", "profile"}, "--memory": {"reserve"}, "--disk": {"lock_granularity"},
		"--platform": {"system_uuid", "system_serial_number"},
	},
}

// takes is what a version takes: it, and all before it.
func takes(v version) map[string][]string {
	all := map[string][]string{}
	for w, options := range accepted {
		if v.before(w) {
			continue
		}
		for name, keys := range options {
			all[name] = append(all[name], keys...)
		}
	}
	return all
}

var errSyntax = errors.New("invalid syntax")

// parseOptions takes the value of an option apart as a version does.
func parseOptions(value string, v version) (map[string]string, error) {
	quotes := !v.before(version{51, 0}) // brackets within count no more, and a quote can be written
	var parts []string
	var part strings.Builder
	depth, quoted := 0, false
	for _, c := range strings.TrimSpace(value) {
		switch {
		case c == '"':
			quoted = !quoted
			if !quotes {
				continue
			}
		case quotes && quoted:
		case c == '[':
			depth++
		case c == ']':
			if depth--; depth < 0 {
				return nil, errSyntax
			}
		case c == ',' && depth == 0 && !quoted:
			parts = append(parts, part.String())
			part.Reset()
			continue
		}
		part.WriteRune(c)
	}
	if depth != 0 || quoted {
		return nil, errSyntax
	}
	parsed := map[string]string{}
	for _, p := range append(parts, part.String()) {
		key, value, ok := strings.Cut(p, "=")
		if !ok {
			return nil, errSyntax
		}
		parsed[key] = dequote(strings.TrimSpace(value))
	}
	return parsed, nil
}

func dequote(s string) string {
	var out strings.Builder
	var last rune
	quoted := false
	for _, c := range s {
		if c != '"' {
			out.WriteRune(c)
		} else {
			if last == '"' && !quoted {
				out.WriteRune('"')
			}
			quoted = !quoted
		}
		last = c
	}
	return out.String()
}

// check says what a version does not take of a command line.
func check(argv []string, v version) error {
	var errs []error
	options := takes(v)
	name := ""
	seen := map[string]bool{}
	for _, arg := range argv[1:] {
		if strings.HasPrefix(arg, "-") {
			name, _, _ = strings.Cut(arg, "=")
			if _, ok := options[name]; !ok {
				errs = append(errs, fmt.Errorf("unexpected argument %q", arg))
			}
			if seen[name] { // before v52
				errs = append(errs, fmt.Errorf("the argument %q cannot be used multiple times", name))
			}
			seen[name] = true
			continue
		}
		if options[name] == nil {
			continue
		}
		parsed, err := parseOptions(arg, v)
		errs = append(errs, err)
		for key := range parsed {
			if !slices.Contains(options[name], key) {
				errs = append(errs, fmt.Errorf("%s %s: unknown option: %s", name, arg, key))
			}
		}
	}
	return errors.Join(errs...)
}

// machines are those of the schema's examples that can be planned, and some that
// use what cloud-hypervisor has.
func machines(t *testing.T) map[string]*hypervisor.Plan {
	plans := map[string]*hypervisor.Plan{}
	for _, m := range config.Examples() {
		if plan, _ := subject().Hypervisor.Plan(m, subject().Host, config.SystemPaths("")); plan != nil {
			plan.Argv = slices.DeleteFunc(plan.Argv, func(a string) bool { return slices.Contains(m.HypervisorOptions.ExtraArgs, a) })
			plans[m.Name] = plan
		}
	}
	for name, text := range map[string]string{
		"all":        allText,
		"hostile":    "[disk.a]\npath = '/srv/\"a\", [b]'\n",
		"comma":      "[disk.a]\npath = '/srv/a,readonly=on'\n",
		"virtio":     "[console]\ndevice = \"virtio\"\n",
		"vhost-user": "[nic.a]\nvhost_user = \"/run/x.sock\"\n",
		"qcow2":      "[disk.a]\npath = \"/srv/a.qcow2\"\nreadonly = true\n",
		"beside":     "[share.a]\npath = \"/srv\"\n[share.b]\npath = \"/home\"\n[tpm]\nenabled = true\n",
		"tag":        "[share.a]\npath = \"/srv\"\ntag = '[a]'\n",
		"pci":        "[disk.a]\nsize = \"1G\"\n[pci.a]\naddress = \"0000:01:00.0\"\n[pci.b]\naddress = \"0000:02:00.0\"\n",
		"readonly":   "[disk.a]\npath = \"/srv/a\"\nreadonly = true\ndiscard = false\n",
	} {
		plan, problems := subject().Hypervisor.Plan(subject().Load(t, "vm", text), subject().Host, config.SystemPaths(""))
		if problems != nil {
			t.Fatalf("%s: %v", name, problems)
		}
		plans[name] = plan
	}
	return plans
}

const allText = `cpus = 4
[boot]
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd"
cmdline = "-x, \"y\" [z]"
[cpu]
max = 8
pinning = ["0-1", "2"]
[memory_options]
hugepages = true
shared = true
prealloc = true
max = "4G"
[disk.a]
size = "1G"
aio = "native"
cache = "none"
discard = false
iops = 100
bandwidth = "1M"
[disk.b]
image = "debian-13"
aio = "threads"
[disk.c]
path = "/srv/c"
ephemeral = true
[nic.a]
network = "default"
queues = 2
[watchdog]
enabled = true
[cloud_init]
`

// TestVersions: a version takes what was fitted for it, and what it cannot do is
// said.
func TestVersions(t *testing.T) {
	want := map[string]map[version]string{ // of the errors, in part
		"all":      {{40, 0}: "disk.a: cloud-hypervisor v40.0 does not lock the disks", {46, 0}: "nic.a: cloud-hypervisor v46.0 finds the interfaces", {51, 0}: "nic.a: "},
		"hostile":  {{40, 0}: `cannot be told "/srv/\"a\", [b]"`, {46, 0}: "cannot be told"},
		"comma":    {{40, 0}: "does not lock"},
		"tag":      {{40, 0}: `cannot be told "[a]"`, {46, 0}: "cannot be told"},
		"pci":      {{40, 0}: "does not lock", {46, 0}: "or a kernel with Landlock"},
		"qcow2":    {{40, 0}: "disk.a: cloud-hypervisor v40.0 reads the files that an image names", {46, 0}: "want v50.2 or newer"},
		"readonly": {{40, 0}: "guesses the format of a disk"},
	}
	plans := machines(t)
	for _, name := range slices.Sorted(maps.Keys(plans)) {
		for _, v := range slices.SortedFunc(maps.Keys(accepted), func(a, b version) int { return a.major - b.major }) {
			argv, notes, err := fit(plans[name].Argv, v, true)
			if text, named := want[name][v]; err != nil || text != "" {
				if named && (err == nil || !strings.Contains(err.Error(), text)) || !named && want[name] != nil {
					t.Errorf("%s, %v: got the error %v, want %q", name, v, err, text)
				}
				if err != nil {
					continue
				}
			}
			if err := check(argv, v); err != nil {
				t.Errorf("%s, %v: %v\n%q", name, v, err, argv)
			}
			unconfined := slices.ContainsFunc(notes, func(n config.Problem) bool { return strings.Contains(n.Text, "Landlock") })
			if (v == (version{40, 0}) && plans[name].Landlock) != unconfined {
				t.Errorf("%s, %v: got the notes %q", name, v, notes)
			}
		}
	}
}

// TestTPMReboots: a version that loses a TPM where the guest reboots says so.
func TestTPMReboots(t *testing.T) {
	argv := []string{"cloud-hypervisor", "--tpm", "socket=/run/tpm"}
	for v, want := range map[version]int{{52, 0}: 1, {53, 0}: 0} {
		if fitted, notes, err := fit(argv, v, true); err != nil || len(notes) != want || !slices.Equal(fitted, argv) {
			t.Errorf("%v: %q, %q, %v", v, fitted, notes, err)
		}
	}
}

func TestNoLandlock(t *testing.T) {
	argv := machines(t)["comma"].Argv
	for _, test := range []struct {
		v    version
		want string
	}{{version{46, 0}, "or a kernel with Landlock (Linux 6.2)"}, {version{51, 0}, ""}} {
		fitted, notes, err := fit(argv, test.v, false)
		switch {
		case test.want == "" && (err != nil || slices.Contains(fitted, "--landlock") || len(notes) != 1):
			t.Errorf("%v: %q, %q, %v", test.v, fitted, notes, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%v: %v", test.v, err)
		}
	}
	if !slices.Contains(argv, "--landlock") {
		t.Error("fit has changed what it was given")
	}
}

func TestVersion(t *testing.T) {
	for text, want := range map[string]string{
		"cloud-hypervisor v53.0\nMigration Protocol Versions: 1\nEnabled features: [\"io_uring\", \"kvm\"]\n": "v53.0", "cloud-hypervisor v50.2-12-gabcdef-dirty\n": "v50.2",
		"cloud-hypervisor v40.0.0\n": "v40.0", "cloud-hypervisor 51.1\n": "v51.1",
		"cloud-hypervisor x\n": "", "": "", "QEMU emulator version 10.0\n": "",
	} {
		binary := filepath.Join(t.TempDir(), "cloud-hypervisor")
		if err := os.WriteFile(binary, []byte("#!/bin/sh\ncat <<'E'\n"+text+"E\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		got, features, err := Version(t.Context(), binary)
		v, parseErr := parseVersion(got)
		if ok := err == nil && parseErr == nil; ok != (want != "") || ok && v.String() != want {
			t.Errorf("%q: got %v, %v, %v; want %q", text, v, err, parseErr, want)
		}
		if want == "v53.0" && !slices.Equal(features, []string{"io_uring", "kvm"}) {
			t.Errorf("got %q", features)
		}
	}
	if _, err := (CloudHypervisor{}).Release(t.Context(), "/bin/false"); err == nil || !strings.Contains(err.Error(), "/bin/false --version: exit status 1") {
		t.Error(err)
	}
	if _, _, err := fit([]string{"x"}, version{39, 0}, true); err == nil {
		t.Error("too old, and taken")
	}
}

// TestWithIO: only the disk that is meant is changed, whatever is in its name.
func TestWithIO(t *testing.T) {
	plan := machines(t)["all"]
	argv := CloudHypervisor{}.WithIO(plan.Argv, []hypervisor.FileIO{
		{Nodes: []string{"disk-a"}, Direct: false, AIO: "threads"}, {Nodes: []string{"disk-b"}, Direct: true, AIO: "io_uring"},
	})
	if err := check(argv, version{53, 0}); err != nil {
		t.Error(err)
	}
	before, after := values(plan.Argv, "--disk"), values(argv, "--disk")
	for i, want := range []string{",_disable_io_uring=on,_disable_aio=on", ",direct=on", ""} {
		if !strings.HasSuffix(after[i], ",id=disk-"+string("abc"[i])+want) {
			t.Errorf("got %s", after[i])
		}
	}
	if after[2] != before[2] {
		t.Errorf("got %s, want %s", after[2], before[2])
	}
}

func TestLacks(t *testing.T) {
	for text, want := range map[string]string{"v53.0": "", "v52.0": "", "v51.1": "no cards", "v40.0": "neither disks", "v39.0": "too old", "x": "not known"} {
		if got := Lacks(text); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

package hypervisor

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// tree makes files below a new directory; a name that ends in "*" is executable.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		mode := os.FileMode(0o644)
		if name[len(name)-1] == '*' {
			name, mode = name[:len(name)-1], 0o755
		}
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestProbe(t *testing.T) {
	const q35 = `"targets": [{"architecture": "aarch64", "machines": ["virt-*"]}, {"architecture": "x86_64", "machines": ["pc-q35-*"]}]`
	got := Probe(tree(t, map[string]string{
		"proc/cpuinfo":                            "processor\t: 0\nvmx flags\t: tsc\nflags\t\t: fpu svm sse\n\nprocessor\t: 1\nflags\t\t: fpu\n",
		"proc/meminfo":                            "MemTotal: 1 kB\nHugepagesize:       2048 kB\nHugetlb:               0 kB\n",
		"proc/sys/kernel/osrelease":               "6.1.0-test\n",
		"dev/net/tun":                             "",
		"lib/modules/6.1.0-test/modules.devname":  "# comment\nfuse fuse c10:229\nvhost_net vhost-net c10:238\nkvm kvm c10:232\n",
		"lib/modules/6.1.0-test/modules.builtin":  "kernel/net/vmw_vsock/vsock.ko\nkernel/drivers/vhost/vhost_vsock.ko\n",
		"lib/modules/5.10.0-old/modules.builtin":  "kernel/drivers/net/tun.ko\n",
		"usr/bin/qemu-system-x86_64*":             "",
		"usr/local/bin/qemu-system-x86_64*":       "",
		"usr/bin/qemu-img":                        "not executable",
		"usr/libexec/virtiofsd*":                  "",
		"usr/lib/qemu/passt/x":                    "a directory",
		"usr/lib/systemd/libsystemd-core-253.so":  "",
		"lib/systemd/libsystemd-shared-99.so":     "",
		"lib/systemd/libsystemd-shared-252.so":    "",
		"usr/share/qemu/firmware/60-plain.json":   `{"interface-types": ["uefi"], "mapping": {"device": "flash", "executable": {"filename": "/c.fd", "format": "raw"}, "nvram-template": {"filename": "/v.fd", "format": "qcow2"}}, ` + q35 + `, "features": ["acpi-s3"]}`,
		"usr/share/qemu/firmware/50-memory.json":  `{"interface-types": ["bios"], "mapping": {"device": "memory", "filename": "/m.bin"}, ` + q35 + `}`,
		"usr/share/qemu/firmware/55-hidden.json":  `{"interface-types": ["bios"], "mapping": {"device": "memory", "filename": "/h.bin"}, ` + q35 + `}`,
		"etc/qemu/firmware/55-hidden.json":        "",
		"usr/share/qemu/firmware/40-broken.json":  `{"interface-types": 1`,
		"usr/share/qemu/firmware/30-other.json":   `{"mapping": {"device": "memory", "filename": "/a.bin"}, "targets": [{"architecture": "aarch64", "machines": ["virt-*"]}]}`,
		"usr/share/qemu/firmware/20-nothing.json": `{` + q35 + `}`,
		"usr/share/qemu/firmware/README":          "",
	}))
	want := Host{
		CPUVirtualization: true,
		Nodes:             map[string]bool{"/dev/kvm": true, "/dev/vhost-net": true, "/dev/vhost-vsock": true, "/dev/net/tun": true},
		Programs:          map[string]string{"qemu-system-x86_64": "/usr/bin/qemu-system-x86_64", "virtiofsd": "/usr/libexec/virtiofsd"},
		Firmware: []Firmware{
			{File: "/usr/share/qemu/firmware/50-memory.json", Interfaces: []string{"bios"}, Code: "/m.bin", CodeFormat: "raw", Machines: []string{"pc-q35-*"}},
			{File: "/usr/share/qemu/firmware/60-plain.json", Interfaces: []string{"uefi"}, Code: "/c.fd", CodeFormat: "raw",
				Vars: "/v.fd", VarsFormat: "qcow2", Machines: []string{"pc-q35-*"}, Features: []string{"acpi-s3"}},
		},
		HugepageSize: 2 << 20,
		Systemd:      252,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// Firmware for cloud-hypervisor is found where packages and people put it, best
// first.
func TestProbeCloudFirmware(t *testing.T) {
	got := Probe(tree(t, map[string]string{
		"usr/share/cloud-hypervisor/hypervisor-fw":           "",
		"usr/share/cloud-hypervisor/CLOUDHV_EFI.fd":          "",
		"usr/local/share/cloud-hypervisor/CLOUDHV.fd":        "",
		"usr/share/cloudhv-efi-x86-64/CLOUDHV.fd":            "",
		"usr/share/rust-hypervisor-firmware/hypervisor-fw/x": "a directory",
		"usr/share/qemu/CLOUDHV.fd":                          "",
	})).CloudFirmware
	want := []string{
		"/usr/share/cloudhv-efi-x86-64/CLOUDHV.fd", "/usr/local/share/cloud-hypervisor/CLOUDHV.fd",
		"/usr/share/cloud-hypervisor/CLOUDHV_EFI.fd", "/usr/share/cloud-hypervisor/hypervisor-fw",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A host of which nothing can be read has nothing.
func TestProbeOfNothing(t *testing.T) {
	want := Host{Nodes: map[string]bool{}, Programs: map[string]string{}}
	if got := Probe(t.TempDir()); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestProbeOfAHostWithoutVirtualization(t *testing.T) {
	got := Probe(tree(t, map[string]string{
		"proc/cpuinfo": "flags\t\t: fpu vmxx nosvm vmmcall\nvmx flags\t: vnmi\n",
		"proc/meminfo": "Hugepagesize: many\n",
		"dev/kvm":      "",
		"usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.9-1.so": "",
	}))
	if got.CPUVirtualization || !got.Nodes["/dev/kvm"] || got.Systemd != 257 || got.HugepageSize != 0 {
		t.Errorf("got %+v", got)
	}
}

// passt is used by itself where one that is sound is installed and may confine
// itself, and wherever it is asked for.
func TestUserNetwork(t *testing.T) {
	const old, newer = "usr/bin/passt*", "usr/bin/passt-repair*"
	for _, test := range []struct {
		files               map[string]string
		byItself, confirmed string
	}{
		{map[string]string{old: "", newer: "", "proc/sys/user/max_user_namespaces": "1000\n", "proc/sys/kernel/unprivileged_userns_clone": "1\n"}, Passt, Passt},
		{map[string]string{old: ""}, Slirp, Passt},
		{map[string]string{old: "", newer: "", "proc/sys/user/max_user_namespaces": "0\n"}, Slirp, Passt},
		{map[string]string{old: "", newer: "", "proc/sys/kernel/unprivileged_userns_clone": "0\n"}, Slirp, Passt},
		{map[string]string{old: "", newer: "", "proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, Slirp, Passt},
	} {
		host := Probe(tree(t, test.files))
		for backend, want := range map[string]string{"": test.byItself, "auto": test.byItself, Passt: test.confirmed, Slirp: Slirp} {
			if got := host.UserNetwork(config.NIC{User: true, Backend: backend}); got != want {
				t.Errorf("%v, backend %q: got %s, want %s", test.files, backend, got, want)
			}
		}
	}
}

// Of one port of the host on several addresses for several ports of the guest, slirp
// alone makes something: a definition with that is as sound once passt is installed.
func TestUserNetworkOfForwards(t *testing.T) {
	forward := func(address string, guest int) config.Forward {
		return config.Forward{Address: address, HostPort: 8080, GuestPort: guest, Protocol: config.TCP}
	}
	udp := forward("127.0.0.2", 81)
	udp.Protocol = config.UDP
	host := Probe(tree(t, map[string]string{"usr/bin/passt*": "", "usr/bin/passt-repair*": ""}))
	for _, test := range []struct {
		forwards           []config.Forward
		byItself, askedFor string
	}{
		{[]config.Forward{forward("127.0.0.1", 80), forward("127.0.0.2", 81)}, Slirp, Passt},
		{[]config.Forward{forward("127.0.0.1", 80), forward("127.0.0.2", 80)}, Passt, Passt},
		{[]config.Forward{forward("127.0.0.1", 80), udp}, Passt, Passt},
		{[]config.Forward{forward("127.0.0.1", 80), forward("::1", 81)}, Passt, Passt}, // neither can
	} {
		for backend, want := range map[string]string{"": test.byItself, "auto": test.byItself, Passt: test.askedFor, Slirp: Slirp} {
			if got := host.UserNetwork(config.NIC{User: true, Backend: backend, Forward: test.forwards}); got != want {
				t.Errorf("%v, backend %q: got %s, want %s", test.forwards, backend, got, want)
			}
		}
	}
}

func TestCredentialText(t *testing.T) {
	got := string(CredentialText(config.Credential{Name: "a.b"}, []byte("x=\"y\",\x00\n")))
	if want := "io.systemd.credential.binary:a.b=eD0ieSIsAAo="; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func BenchmarkProbe(b *testing.B) {
	for b.Loop() {
		Probe("")
	}
}

package config

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// definition is one as people write them, the i-th of many.
func definition(i int) string {
	return fmt.Sprintf(`description = "Machine number %d"
cpus = 2
memory = "2G"
autostart = true

[boot]
firmware = "uefi"

[disk.root]
image = "debian-13"
size = "20G"

[disk.data]
path = "/srv/data/%d.qcow2"
cache = "none"

[nic.lan]
user = true
forward = ["%d:22/tcp"]

[cloud_init]
ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI someone@example"]

[lifecycle]
stop_timeout = "2min"

[resources]
cpu_quota = "150%%"
`, i, i, 1024+i%60000)
}

// hostPaths are the paths of an empty host.
func hostPaths(t testing.TB) Paths {
	t.Helper()
	p := SystemPaths(t.TempDir())
	write(t, p.MachineID, "8c5a2f0e1f4b4c3d9a6e0b1c2d3e4f50\n")
	return p
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkLoad(b *testing.B) {
	p := hostPaths(b)
	for i := range 1000 {
		write(b, filepath.Join(p.VMDirs[1], fmt.Sprintf("vm-%04d.toml", i)), definition(i))
	}
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		set, err := Load(p)
		if err != nil || len(set.VMs) != 1000 || len(set.VMs[0].Problems) > 0 {
			b.Fatal(err, len(set.VMs), set.VMs[0].Problems)
		}
	}
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N)/1000, "cpu-ns/definition")
}

// cpuTime is what the process has used of all processors, in nanoseconds.
func cpuTime(b *testing.B) int64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkLoadVM reads one of 1,000 definitions, as vmctl start does.
func BenchmarkLoadVM(b *testing.B) {
	p := hostPaths(b)
	for i := range 1000 {
		write(b, filepath.Join(p.VMDirs[1], fmt.Sprintf("vm-%04d.toml", i)), definition(i))
	}
	b.ReportAllocs()
	for b.Loop() {
		if vm, err := LoadVM(p, "vm-0500"); err != nil || vm.Machine == nil {
			b.Fatal(err, vm.Problems)
		}
	}
}

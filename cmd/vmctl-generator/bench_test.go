package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// definition is a machine as people write them: the things that most have.
const definition = `description = "Web server %[1]d"
autostart = true
cpus = 2
memory = "1G"

[disk.root]
path = "/srv/images/vm-%[1]d.qcow2"

[disk.data]
size = "20G"

[nic.lan]
user = true
forward = ["%[2]d:22/tcp"]

[cloud_init]
ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA root@host"]

[lifecycle]
stop_timeout = "2min"

[resources]
cpu_quota = "200%%"
`

// BenchmarkGenerator runs the generator on many definitions. What was promised
// is CPU time, 0.15 s and 1.5 s: cpu-s/op. The size of the
// process is measured with the program itself: /usr/bin/time -v.
func BenchmarkGenerator(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			root, out := b.TempDir(), memory(b)
			definitions(b, root, n)
			b.ReportAllocs()
			before := cpu()
			for i := 0; b.Loop(); i++ {
				dir := filepath.Join(out, fmt.Sprint(i))
				if err := os.Mkdir(dir, 0o755); err != nil {
					b.Fatal(err)
				}
				o, err := parse([]string{"vmctl-generator", "--root", root, dir}, func(string) string { return "" })
				if err != nil {
					b.Fatal(err)
				}
				if status := run(o, io.Discard, &log{out: os.Stderr}); status != 0 {
					b.Fatalf("exit status %d", status)
				}
			}
			b.ReportMetric((cpu()-before)/float64(b.N), "cpu-s/op")
		})
	}
}

// memory is a directory in memory, as the one is that systemd gives.
func memory(b *testing.B) string {
	dir, err := os.MkdirTemp("/dev/shm", "vmctl-generator")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// definitions writes n definitions below root, with the program that they run
// by.
func definitions(b *testing.B, root string, n int) {
	for file, text := range map[string]string{
		"usr/bin/qemu-system-x86_64": "",
		"proc/cpuinfo":               "flags\t\t: vmx\n",
	} {
		put(b, filepath.Join(root, file), text)
		if err := os.Chmod(filepath.Join(root, file), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	for i := range n {
		put(b, filepath.Join(root, fmt.Sprintf("etc/vmctl/vms/vm-%d.toml", i)), fmt.Sprintf(definition, i, 10000+i))
	}
}

func put(b *testing.B, file, text string) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
}

// cpu is the CPU time of this process so far, in seconds.
func cpu() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

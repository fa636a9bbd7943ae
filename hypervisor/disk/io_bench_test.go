package disk

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/vmctl/vmctl/hypervisor"
)

// BenchmarkIO compares what can be chosen for a file, by QEMU's own benchmark:
// random-like requests of 4 KiB, 32 at a time. An iteration is one request. The
// file fits into the page cache, which flatters "cached": a guest's own cache is
// what should hold it.
func BenchmarkIO(b *testing.B) {
	file := filepath.Join(b.TempDir(), "disk.img")
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+file, "bs=1M", "count=256", "conv=fsync").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for _, how := range []struct{ name, cache, aio string }{
		{"cached-threads", "writeback", hypervisor.Threads},
		{"direct-threads", "none", hypervisor.Threads},
		{"direct-native", "none", hypervisor.Native},
		{"direct-io_uring", "none", hypervisor.IOURing},
	} {
		for _, write := range []bool{false, true} {
			name, args := how.name+"/read", []string{"bench", "-f", "raw", "-d", "32", "-s", "4096", "-S", "1052672", "-t", how.cache, "-i", how.aio}
			if write {
				name, args = how.name+"/write", append(args, "-w")
			}
			b.Run(name, func(b *testing.B) {
				args := append(args[:len(args):len(args)], "-c", strconv.Itoa(max(b.N, 64)), file)
				if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
			})
		}
	}
}

// BenchmarkTry is what trying costs each start: the engines once, and each file.
func BenchmarkTry(b *testing.B) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		b.Fatal(err)
	}
	file := filepath.Join(b.TempDir(), "disk.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", file, "1G").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	b.Run("engines", func(b *testing.B) {
		for b.Loop() {
			TryEngines(qemu, false)
		}
	})
	b.Run("file", func(b *testing.B) {
		for b.Loop() {
			TryDirect(file, QCOW2, true)
		}
	})
}

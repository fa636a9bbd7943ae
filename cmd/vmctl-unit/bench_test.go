package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vmctl/vmctl/hypervisor/console"
)

// BenchmarkMonitorMemory measures what one monitor has to itself, in KiB, with
// one client. What was promised is 4 MiB, of which the scrollback takes 1 MiB
// once the guest has written as much.
func BenchmarkMonitorMemory(b *testing.B) {
	for b.Loop() {
		h := newHost(b)
		// A program that is not on the disk yet counts as written memory.
		syscall.Sync()
		p := h.start()
		conn := h.attach(console.ModeAttach)
		h.expect(conn, "guest is up")
		dirty, clean := privateMemory(b, h.monitorPID())
		b.ReportMetric(float64(dirty), "KiB-dirty")
		b.ReportMetric(float64(clean), "KiB-clean")

		p.Process.Kill()
		h.cleanup(p)
	}
}

// privateMemory is what a process alone has mapped, in KiB: what it has
// written, and what it only reads: its program, where no other monitor runs.
func privateMemory(b *testing.B, pid int) (dirty, clean int) {
	b.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(rollup)) {
		fmt.Sscanf(line, "Private_Dirty: %d kB", &dirty)
		fmt.Sscanf(line, "Private_Clean: %d kB", &clean)
	}
	return dirty, clean
}

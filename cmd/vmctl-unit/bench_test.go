package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/console"
)

// BenchmarkBeside measures how long a start waits for the comparison with 1,000
// machines that run, by what they have noted for it and, as a machine is read that an
// older vmctl has started, by their whole records.
func BenchmarkBeside(b *testing.B) {
	for _, noted := range []bool{true, false} {
		b.Run(fmt.Sprintf("noted=%v", noted), func(b *testing.B) {
			paths := config.SystemPaths(b.TempDir())
			machine := func(i int) *config.Machine {
				return &config.Machine{Name: fmt.Sprintf("m%d", i), UUID: config.UUID(fmt.Sprintf("5e0c1f2a-7a57-4b53-9a3e-%012d", i)), Vsock: config.Vsock{CID: uint32(1000 + i)}, NICs: []config.NIC{{
					Name: "lan", Network: "default", MAC: config.MAC(fmt.Sprintf("52:54:00:00:%02x:%02x", i>>8, i&0xff)),
					Forward: []config.Forward{{HostPort: 10000 + i, GuestPort: 22, Protocol: config.TCP}},
				}}}
			}
			// As long as one of a machine with a disk and a card.
			plan := &hypervisor.Plan{Argv: slices.Repeat([]string{"-device", "virtio-net-pci,bus=port1,id=nic-lan,netdev=net-lan,mac=52:54:00:00:00:01,romfile="}, 40)}
			for i := range 1000 {
				m := machine(i)
				a := app{paths: paths, vm: m.Name}
				for _, dir := range []string{paths.RuntimeDir(m.Name), paths.StateDir(m.Name)} {
					if err := os.MkdirAll(dir, 0o755); err != nil {
						b.Fatal(err)
					}
				}
				write := func() error { return a.writeRecord(hypervisor.Record{Machine: m, Plan: plan}) }
				if noted {
					write = func() error { return a.writeClaims(m) }
				}
				if err := errors.Join(write(), os.WriteFile(paths.Claimed(m.Name), nil, 0o644)); err != nil {
					b.Fatal(err)
				}
			}
			a := app{paths: paths, vm: "new", err: io.Discard}
			for b.Loop() {
				if problems, err := a.checkBeside(machine(1000)); err != nil || len(problems) > 0 {
					b.Fatal(problems, err)
				}
			}
		})
	}
}

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

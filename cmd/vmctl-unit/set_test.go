package main

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// setOperation is the command that sets CPUs and memory.
func (h host) setOperation(cpus int, memory config.Size) *exec.Cmd {
	h.Helper()
	b, err := json.Marshal(hypervisor.SetRequest{Settings: config.LiveSettings{CPUs: cpus, Memory: memory, Description: "new"}, Timeout: time.Second})
	if err != nil {
		h.Fatal(err)
	}
	return h.command(nil, "operate", h.vm, hypervisor.MachineSet, string(b))
}

// sizes are those of the hypervisor.
func (h host) sizes() (s hypervisor.Sizes) {
	h.Helper()
	h.control(func(ctx context.Context, c hypervisor.Control) (err error) {
		s, err = c.(hypervisor.Resizer).Sizes(ctx)
		return err
	})
	return s
}

func TestSetMachine(t *testing.T) {
	h := newHost(t)
	h.define("cpus = 1\ncpu.max = 4\nmemory = \"64M\"\nmemory_options.max = \"256M\"\n")
	p := h.start()
	set := func(cpus int, memory config.Size) (r hypervisor.SetResult) {
		t.Helper()
		out, err := h.setOperation(cpus, memory).Output()
		if err != nil {
			t.Fatal(err)
		}
		if err := operation.Follow(strings.NewReader(string(out)), func(operation.Progress) {}, func(string) {}, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := set(2, 128<<20); r.CPUs != 2 || r.Memory != 128<<20 || len(r.Waiting) != 0 {
		t.Errorf("got %+v", r)
	}
	if live := h.changes().Live; live == nil || live.CPUs != 2 || live.Memory != 128<<20 || live.Description != "new" {
		t.Errorf("noted is %+v", live)
	}
	// What waits for a restart is told, and is not what is noted.
	if r := set(5, 1<<30); r.CPUs != 2 || r.Memory != 128<<20 || !strings.Contains(r.Waiting["cpus"], "room for 4 CPUs") || !strings.Contains(r.Waiting["memory"], "room for 256 MiB") {
		t.Errorf("got %+v", r)
	}
	// There is no guest that would let go of it.
	if r := set(1, 64<<20); r.CPUs != 2 || r.Memory != 64<<20 || r.Waiting["cpus"] == "" {
		t.Errorf("got %+v", r)
	}
	if live := h.changes().Live; live.CPUs != 2 || live.Memory != 64<<20 {
		t.Errorf("noted is %+v", live)
	}
	p.Process.Kill()
	h.cleanup(p)
	out, _ := h.setOperation(1, 64<<20).Output()
	if err := operation.Follow(strings.NewReader(string(out)), func(operation.Progress) {}, func(string) {}, nil); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("got %v", err)
	}
}

// Limits of disks are set as they run, with the filter that a disk was plugged in
// with or without one; and such disks can still be taken out.
func TestSetDiskLimits(t *testing.T) {
	h := newHost(t)
	h.start()
	extra := h.parseDisk("extra", "size = \"1M\"\niops = 100\n")
	if got := h.operate(hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: extra}); got != "" {
		t.Fatal(got)
	}
	set := func(boot, extra config.DiskLimits) {
		t.Helper()
		b, err := json.Marshal(hypervisor.SetRequest{Settings: config.LiveSettings{CPUs: 1, Memory: 64 << 20,
			Disks: map[string]config.DiskLimits{"boot": boot, "extra": extra, "none": boot}}})
		if err != nil {
			t.Fatal(err)
		}
		out, err := h.command(nil, "operate", h.vm, hypervisor.MachineSet, string(b)).Output()
		if err == nil {
			err = operation.Follow(strings.NewReader(string(out)), func(operation.Progress) {}, func(string) {}, nil)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		noted := h.changes().Live.Disks
		for name, want := range map[string]config.DiskLimits{"boot": boot, "extra": extra} {
			var got config.DiskLimits
			h.control(func(ctx context.Context, c hypervisor.Control) (err error) {
				got, err = c.(hypervisor.Throttler).Limits(ctx, name)
				return err
			})
			if got != want || noted[name] != want {
				t.Errorf("%s has %+v, noted is %+v, want %+v", name, got, noted[name], want)
			}
		}
		if len(noted) != 2 {
			t.Errorf("noted is %+v", noted)
		}
	}
	set(config.DiskLimits{IOPS: 500}, config.DiskLimits{})
	// Past vmctl, which nobody notes.
	h.control(func(ctx context.Context, c hypervisor.Control) error {
		return c.(hypervisor.Throttler).SetLimits(ctx, "boot", config.DiskLimits{IOPS: 9})
	})
	set(config.DiskLimits{IOPS: 500}, config.DiskLimits{})
	set(config.DiskLimits{}, config.DiskLimits{BandwidthRead: 1 << 20})

	// By hand: what the definition said then is noted until it is set again.
	throttle := func(q hypervisor.ThrottleRequest) error {
		t.Helper()
		b, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		out, _ := h.command(nil, "operate", h.vm, hypervisor.DiskThrottle, string(b)).Output()
		return operation.Follow(strings.NewReader(string(out)), func(operation.Progress) {}, func(string) {}, nil)
	}
	if err := throttle(hypervisor.ThrottleRequest{Disk: "boot", Limits: config.DiskLimits{IOPS: 11}, Throttled: &config.DiskLimits{}}); err != nil {
		t.Error(err)
	}
	if c := h.changes(); c.Live.Disks["boot"].IOPS != 11 || c.Throttled["boot"] != (config.DiskLimits{}) || len(c.Throttled) != 1 {
		t.Errorf("noted is %+v", c)
	}
	if err := throttle(hypervisor.ThrottleRequest{Disk: "none"}); err == nil || !strings.Contains(err.Error(), "runs without a disk named none") {
		t.Errorf("got %v", err)
	}
	set(config.DiskLimits{}, config.DiskLimits{BandwidthRead: 1 << 20})
	if left := h.changes().Throttled; len(left) != 0 {
		t.Errorf("noted is still %+v", left)
	}

	// One of two cannot be: what has come of it is told, and noted.
	b, err := json.Marshal(hypervisor.SetRequest{Settings: config.LiveSettings{CPUs: 1, Memory: 64 << 20,
		Disks: map[string]config.DiskLimits{"boot": {IOPS: 7}, "extra": {IOPS: 1e18}}}})
	if err != nil {
		t.Fatal(err)
	}
	out, _ := h.command(nil, "operate", h.vm, hypervisor.MachineSet, string(b)).Output()
	err = operation.Follow(strings.NewReader(string(out)), func(operation.Progress) {}, func(string) {}, nil)
	if err == nil || !strings.Contains(err.Error(), "disk.extra has its limits as before: ") || !strings.Contains(err.Error(), "; set are those of disk.boot") {
		t.Errorf("got %v", err)
	}
	if noted := h.changes().Live.Disks; noted["boot"].IOPS != 7 || noted["extra"].BandwidthRead != 1<<20 || noted["extra"].IOPS != 0 {
		t.Errorf("noted is %+v", noted)
	}
	set(config.DiskLimits{}, config.DiskLimits{})
	if got := h.operate(hypervisor.DiskDetach, hypervisor.DiskRequest{Disk: extra, Timeout: time.Minute}); got != "" && !strings.Contains(got, "has not let go") {
		t.Error(got)
	}
	left := h.changes()
	if _, has := left.Live.Disks["extra"]; has && len(left.Leaving) == 0 {
		t.Error("the limits of what is gone are still noted")
	}
}

// TestSetMachineKilled kills it at any moment: what is noted is what the hypervisor
// has.
func TestSetMachineKilled(t *testing.T) {
	h := newHost(t)
	h.define("cpus = 1\ncpu.max = 32\nmemory = \"64M\"\nmemory_options.max = \"512M\"\n")
	p := h.start()
	for i := range 8 {
		cmd := h.setOperation(2+2*i, config.Size(64+16*i)<<20)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rand.N(60 * time.Millisecond))
		cmd.Process.Kill()
		cmd.Wait()
		h.must(nil, "mend", h.vm)
		if h.unfinished() != nil {
			t.Fatal("it is not mended")
		}
		s, noted := h.sizes(), config.LiveSettings{CPUs: 1, Memory: 64 << 20}
		if live := h.changes().Live; live != nil {
			noted = *live
		}
		if noted.CPUs != s.CPUs || int64(noted.Memory) != s.Memory {
			t.Fatalf("noted is %+v, it has %+v", noted, s)
		}
	}
	p.Process.Kill()
	h.cleanup(p)
}

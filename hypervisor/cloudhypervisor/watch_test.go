package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
)

// written is an event as cloud-hypervisor writes it.
func written(source, event string, properties ...string) string {
	p := "null"
	if len(properties) == 2 {
		p = fmt.Sprintf("{\n    %q: %q\n  }", properties[0], properties[1])
	}
	return fmt.Sprintf("{\n  \"timestamp\": {\n    \"secs\": 0,\n    \"nanos\": 7\n  },\n  \"source\": %q,\n  \"event\": %q,\n  \"properties\": %s\n}\n\n", source, event, p)
}

// watch has Watch read text, in pieces of some bytes, and returns the events.
func watch(t *testing.T, text string, piece int) (kinds []string, err error) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		for part := range slices.Chunk([]byte(text), piece) {
			if _, err := theirs.Write(part); err != nil {
				return
			}
		}
	}()
	defer ours.Close()
	err = CloudHypervisor{}.Watch(t.Context(), ours, func(e hypervisor.Event) {
		kinds = append(kinds, strings.TrimSpace(string(e.Kind)+" "+e.Cause))
	})
	return kinds, err
}

func TestWatch(t *testing.T) {
	start := written("vmm", "starting") + written("vm", "booting") + written("cpu_manager", "create_vcpu", "id", "0") +
		written("vm", "booted") + written("virtio-device", "activated", "id", "disk-root")
	end := written("vm", "deleted") + written("vmm", "shutdown")
	for name, test := range map[string]struct{ text, want string }{
		"life":         {start + end, "started, shutdown"},
		"reboot":       {start + written("vm", "rebooting") + written("vm", "rebooted") + end, "started, rebooted, shutdown"},
		"lost reboot":  {start + written("vm", "rebooting") + end, "started, shutdown error"},
		"pause":        {start + written("vm", "pausing") + written("vm", "paused") + written("vm", "resuming") + written("vm", "resumed"), "started, paused, resumed"},
		"panic":        {start + written("guest", "panic", "event", "panic"), "started, panicked"},
		"kdump":        {start + written("guest", "panic", "event", "crash_loaded"), "started"},
		"restore":      {written("vm", "restoring") + written("vm", "restored") + written("vm", "resuming") + written("vm", "resumed"), "loading, started"},
		"never booted": {written("vmm", "starting") + end, "shutdown"},
		"nothing":      {"", ""},
		"cut off":      {start + `{"source": "vm", "eve`, "started"},
	} {
		for _, piece := range []int{1, 7, 4096} {
			got, err := watch(t, test.text, piece)
			if err != nil || strings.Join(got, ", ") != test.want {
				t.Errorf("%s by %d bytes: got %q, %v, want %q", name, piece, got, err, test.want)
			}
		}
	}
}

func TestWatchGarbage(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON": written("vm", "booted") + "}}}", "another shape": "[1, 2]", "endless": `{"source": "` + strings.Repeat("x", 2*maxEvent),
	} {
		if _, err := watch(t, text, 4096); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	ours, _ := net.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := (CloudHypervisor{}).Watch(ctx, ours, func(hypervisor.Event) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// TestReadEnd: by the lines as v40 and v53 write them.
func TestReadEnd(t *testing.T) {
	const (
		start    = "cloud-hypervisor: 0.000310s: <main> INFO:cloud-hypervisor/src/main.rs:667 -- v53.0 starting"
		off      = "cloud-hypervisor: 4.212345s: <vcpu0> INFO:devices/src/acpi.rs:81 -- ACPI Shutdown signalled"
		exit     = "cloud-hypervisor: 4.212400s: <vmm> INFO:vmm/src/lib.rs:2080 -- VM exit event"
		shutdown = "cloud-hypervisor: 4.212400s: <vmm> INFO:vmm/src/api/mod.rs:1876 -- API request event: VmmShutdown"
		crash    = "cloud-hypervisor: 2.5s: <vcpu0> ERROR:vmm/src/cpu.rs:1460 -- VCPU generated error: VcpuRun(Internal error)\r"
		panicked = "cloud-hypervisor: 2.5s: <vcpu0> ERROR:vmm/src/cpu.rs:1490 -- vCPU thread panicked"
		warn     = "cloud-hypervisor: 0.1s: <vmm> WARN:vmm/src/x.rs:1 -- careful"
		guest    = "cloud-hypervisor: 1s: <vcpu0> INFO:devices/src/x.rs:1 -- says ACPI"
	)
	for name, test := range map[string]struct {
		lines []string
		cause string
		kept  int
	}{
		"power off":    {[]string{start, warn, off, exit}, "guest", 1},
		"signal":       {[]string{start, exit}, "signal", 0},
		"request":      {[]string{start, shutdown}, "host", 0},
		"crash":        {[]string{start, crash, exit}, "error", 1},
		"panic":        {[]string{start, "thread 'vcpu0' panicked at x:", panicked, exit}, "error", 2},
		"crash at end": {[]string{off, exit, crash}, "error", 1},
		"unknown":      {[]string{start, guest}, "", 0},
		"nothing":      {nil, "", 0},
		"failure":      {[]string{start, "Error: Cloud Hypervisor exited with the following chain of errors:", "  0: Error booting VM", ""}, "", 2},
	} {
		end, kept, ok := CloudHypervisor{}.ReadEnd(test.lines)
		if end.Kind != hypervisor.ShutDown || end.Cause != test.cause || ok != (test.cause != "") || len(kept) != test.kept {
			t.Errorf("%s: got %+v, %q, %v", name, end, kept, ok)
		}
		if name == "crash" && end.Detail != "VCPU generated error: VcpuRun(Internal error)" {
			t.Errorf("got %q", end.Detail)
		}
	}
}

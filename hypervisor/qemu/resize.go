package qemu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
)

var _ hypervisor.Resizer = (*control)(nil)

// Names of what more memory comes from.
const (
	memoryDevice = "memory"
	memoryObject = "spare"
)

// hotCPU is a place for a CPU (HotpluggableCPU in qapi/machine.json).
type hotCPU struct {
	Type  string         `json:"type"`
	Props map[string]int `json:"props"`    // "socket-id", "core-id", …
	Path  string         `json:"qom-path"` // "" where there is none
}

// id is the name of the CPU in a place, of one that is plugged in.
func (h hotCPU) id() string {
	if path.Dir(h.Path) != "/machine/peripheral" {
		return ""
	}
	return path.Base(h.Path)
}

// cpus are the places for CPUs, in the order in which they are filled.
func (c *control) cpus(ctx context.Context) ([]hotCPU, error) {
	var all []hotCPU
	if err := c.run(ctx, "query-hotpluggable-cpus", nil, &all); err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b hotCPU) int {
		for _, key := range []string{"socket-id", "die-id", "cluster-id", "module-id", "core-id", "thread-id"} {
			if order := cmp.Compare(a.Props[key], b.Props[key]); order != 0 {
				return order
			}
		}
		return 0
	})
	return all, nil
}

// spareMemory is the device that more memory comes from (MemoryDeviceInfo).
type spareMemory struct {
	ID        string `json:"id"`
	Size      int64  `json:"size"`
	Requested int64  `json:"requested-size"`
	Max       int64  `json:"max-size"`
	Step      int64  `json:"block-size"`
}

// spare is that device, false where the machine has none.
func (c *control) spare(ctx context.Context) (spareMemory, bool, error) {
	var devices []struct {
		Type string          `json:"type"`
		Data json.RawMessage `json:"data"`
	}
	if err := c.run(ctx, "query-memory-devices", nil, &devices); err != nil {
		return spareMemory{}, false, err
	}
	for _, d := range devices {
		var s spareMemory
		if d.Type != "virtio-mem" {
			continue
		}
		if err := json.Unmarshal(d.Data, &s); err != nil {
			return s, false, fmt.Errorf("query-memory-devices: %w", err)
		}
		if s.ID == memoryDevice {
			return s, true, nil
		}
	}
	return spareMemory{}, false, nil
}

// Sizes implements [hypervisor.Resizer].
func (c *control) Sizes(ctx context.Context) (s hypervisor.Sizes, err error) {
	all, err := c.cpus(ctx)
	if err != nil {
		return s, err
	}
	for _, cpu := range all {
		s.MaxCPUs++
		if cpu.Path != "" {
			s.CPUs++
		}
	}
	var summary struct {
		Base int64 `json:"base-memory"`
	}
	if err := c.run(ctx, "query-memory-size-summary", nil, &summary); err != nil {
		return s, err
	}
	spare, _, err := c.spare(ctx)
	if err != nil {
		return s, err
	}
	s.StartMemory, s.Memory, s.TakenMemory = summary.Base, summary.Base+spare.Requested, summary.Base+spare.Size
	s.MaxMemory, s.Step = summary.Base+spare.Max, spare.Step
	devices, err := c.devices(ctx)
	if err != nil {
		return s, err
	}
	if _, has := devices["balloon"]; has {
		var balloon struct{ Actual int64 }
		if err := c.run(ctx, "query-balloon", nil, &balloon); err != nil {
			return s, err
		}
		s.Balloon = balloon.Actual
	}
	return s, nil
}

// cpuCount is "1 CPU", "4 CPUs".
func cpuCount(n int) string {
	if n == 1 {
		return "1 CPU"
	}
	return fmt.Sprintf("%d CPUs", n)
}

// SetCPUs implements [hypervisor.Resizer].
func (c *control) SetCPUs(ctx context.Context, n int) error {
	all, err := c.cpus(ctx)
	if err != nil {
		return err
	}
	if n > len(all) {
		return &hypervisor.RestartError{Reason: fmt.Sprintf("it was started with room for %s (cpu.max)", cpuCount(len(all)))}
	}
	has := len(slices.DeleteFunc(slices.Clone(all), func(cpu hotCPU) bool { return cpu.Path == "" }))
	for i, cpu := range all {
		if has >= n {
			break
		}
		if cpu.Path == "" {
			if err := c.run(ctx, "device_add", cpu.arguments(i), nil); err != nil {
				return err
			}
			has++
		}
	}
	for _, cpu := range slices.Backward(all) {
		if has <= n {
			break
		}
		if cpu.id() != "" {
			if err := c.survivesUnplug(ctx); err != nil {
				return err
			}
			if err := c.unplugCPU(ctx, cpu.id()); err != nil {
				return err
			}
			has--
		}
	}
	if has > n {
		return &hypervisor.RestartError{Reason: fmt.Sprintf("%d of its CPUs are those that it was started with", has)}
	}
	return nil
}

// survivesUnplug is an error where QEMU would go on to use the memory of a CPU that
// is gone: until 10.2 an emulated one's address spaces stay registered (its
// cpu_destroy_address_spaces). 7.2 was seen to hang or crash when the state was
// written after that.
func (c *control) survivesUnplug(ctx context.Context) error {
	var kvm struct{ Enabled bool }
	if err := c.run(ctx, "query-kvm", nil, &kvm); err != nil || kvm.Enabled {
		return err
	}
	v, err := c.version(ctx)
	if err == nil && (v.Major < 10 || v.Major == 10 && v.Minor < 2) {
		err = &hypervisor.RestartError{Reason: fmt.Sprintf("QEMU %v, which emulates its CPUs, may crash after it has taken one out (10.2 does not)", v)}
	}
	return err
}

// cpuStep is the time between two looks whether a guest has let go of a CPU.
const cpuStep = 100 * time.Millisecond

// unplugCPU asks the guest to let go of a CPU, and waits until it has. There is no
// event that says so with every accelerator.
func (c *control) unplugCPU(ctx context.Context, id string) error {
	err := c.run(ctx, "device_del", map[string]any{"id": id}, nil)
	if refused, ok := errors.AsType[*Error](err); ok && strings.Contains(refused.Desc, "not supported device type") {
		return hypervisor.ErrReleaseRefused // before the guest's ACPI is up
	}
	if err != nil {
		return err
	}
	for {
		all, err := c.cpus(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(all, func(cpu hotCPU) bool { return cpu.id() == id }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return hypervisor.ErrNotReleased
		case <-time.After(cpuStep):
		}
	}
}

// arguments are what plugs a CPU into the i-th place.
func (h hotCPU) arguments(i int) map[string]any {
	arguments := map[string]any{"driver": h.Type, "id": "cpu-" + strconv.Itoa(i)}
	for key, value := range h.Props {
		arguments[key] = value
	}
	return arguments
}

// device is a CPU that was plugged in, on a command line.
func (h hotCPU) device() []string {
	parts := []string{h.Type, "id=" + h.id()}
	for _, key := range slices.Sorted(maps.Keys(h.Props)) {
		parts = append(parts, fmt.Sprintf("%s=%d", key, h.Props[key]))
	}
	return []string{"-device", options(parts...)}
}

// StateArgv implements [hypervisor.StateSaver]. Of memory, the state says itself
// how much there is.
func (c *control) StateArgv(ctx context.Context, argv []string) ([]string, error) {
	all, err := c.cpus(ctx)
	if err != nil {
		return nil, err
	}
	known := deviceIDs(argv)
	there := map[string]bool{}
	argv = slices.Clip(argv)
	for _, cpu := range all {
		id := cpu.id()
		there[id] = true
		if id != "" && !slices.Contains(known, id) {
			argv = append(argv, cpu.device()...)
		}
	}
	return withoutCPUs(argv, there), nil
}

// withoutCPUs leaves out the CPUs of a command line that are not there any more.
func withoutCPUs(argv []string, there map[string]bool) []string {
	var out []string
	for i := 0; i < len(argv); i++ {
		if argv[i] == "-device" && i+1 < len(argv) {
			ids := deviceIDs(argv[i : i+2])
			if len(ids) == 1 && hotCPUName(ids[0]) && !there[ids[0]] {
				i++
				continue
			}
		}
		out = append(out, argv[i])
	}
	return out
}

// hotCPUName says whether a device's name is one of [hotCPU.arguments].
func hotCPUName(id string) bool {
	var i int
	n, err := fmt.Sscanf(id, "cpu-%d", &i)
	return n == 1 && err == nil
}

// SetMemory implements [hypervisor.Resizer].
func (c *control) SetMemory(ctx context.Context, bytes int64) error {
	s, err := c.Sizes(ctx)
	if err != nil {
		return err
	}
	switch more := bytes - s.StartMemory; {
	case bytes == s.Memory:
		return nil
	case more < 0:
		return &hypervisor.RestartError{Reason: fmt.Sprintf("it was started with %d MiB; vmctl balloon takes of that", s.StartMemory/mebibyte)}
	case bytes > s.MaxMemory:
		return &hypervisor.RestartError{Reason: fmt.Sprintf("it was started with room for %d MiB (memory_options.max)", s.MaxMemory/mebibyte)}
	case more%s.Step != 0:
		return &hypervisor.RestartError{Reason: fmt.Sprintf("it grows in steps of %d MiB from %d MiB", s.Step/mebibyte, s.StartMemory/mebibyte)}
	default:
		return c.run(ctx, "qom-set", map[string]any{"path": "/machine/peripheral/" + memoryDevice, "property": "requested-size", "value": more}, nil)
	}
}

// SetBalloon implements [hypervisor.Resizer].
func (c *control) SetBalloon(ctx context.Context, bytes int64) error {
	return c.run(ctx, "balloon", map[string]int64{"value": bytes}, nil)
}

package qemu

import (
	"context"
	"strings"

	"github.com/vmctl/vmctl/hypervisor"
)

var (
	_ hypervisor.DiskMeter   = (*control)(nil)
	_ hypervisor.MemoryMeter = (*control)(nil)
)

// balloonPath is the balloon among QEMU's objects, and balloonPoll how often its
// guest is asked for numbers, in seconds.
const (
	balloonPath = "/machine/peripheral/balloon"
	balloonPoll = 10
)

// DiskTraffic implements [hypervisor.DiskMeter].
func (c *control) DiskTraffic(ctx context.Context) (map[string]hypervisor.DiskTraffic, error) {
	var all []struct {
		ID    string `json:"qdev"` // path of the device
		Stats struct {
			ReadBytes  uint64 `json:"rd_bytes"`
			WriteBytes uint64 `json:"wr_bytes"`
			Reads      uint64 `json:"rd_operations"`
			Writes     uint64 `json:"wr_operations"`
		} `json:"stats"`
	}
	if err := c.run(ctx, "query-blockstats", nil, &all); err != nil {
		return nil, err
	}
	traffic := map[string]hypervisor.DiskTraffic{}
	for _, b := range all {
		for part := range strings.SplitSeq(b.ID, "/") {
			if disk, ok := strings.CutPrefix(part, "disk-"); ok {
				traffic[disk] = hypervisor.DiskTraffic(b.Stats)
			}
		}
	}
	return traffic, nil
}

// GuestMemory implements [hypervisor.MemoryMeter]. The guest is asked for nothing
// before somebody wants to know.
func (c *control) GuestMemory(ctx context.Context) (hypervisor.GuestMemory, error) {
	var m hypervisor.GuestMemory
	var balloon struct{ Actual uint64 }
	if err := c.run(ctx, "query-balloon", nil, &balloon); err != nil {
		return m, err
	}
	m.Actual = balloon.Actual
	var told struct {
		Stats map[string]uint64 `json:"stats"`
	}
	property := map[string]any{"path": balloonPath, "property": "guest-stats-polling-interval"}
	var interval int
	if err := c.run(ctx, "qom-get", property, &interval); err != nil {
		return m, err
	}
	if interval == 0 {
		property["value"] = balloonPoll
		return m, c.run(ctx, "qom-set", property, nil)
	}
	if err := c.run(ctx, "qom-get", map[string]string{"path": balloonPath, "property": "guest-stats"}, &told); err != nil {
		return m, err
	}
	known := func(name string) *uint64 {
		// What the guest has not told is the largest number.
		if n, ok := told.Stats[name]; ok && n != ^uint64(0) {
			return &n
		}
		return nil
	}
	m.Total, m.Free, m.Available = known("stat-total-memory"), known("stat-free-memory"), known("stat-available-memory")
	return m, nil
}

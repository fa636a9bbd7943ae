package qemu

import (
	"context"
	"strings"

	"github.com/vmctl/vmctl/hypervisor"
)

var _ hypervisor.DiskMeter = (*control)(nil)

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

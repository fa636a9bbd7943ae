package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// throttleLimits are those of a throttle group (ThrottleLimits in
// qapi/block-core.json).
type throttleLimits struct {
	IOPS           int64 `json:"iops-total"`
	IOPSRead       int64 `json:"iops-read"`
	IOPSWrite      int64 `json:"iops-write"`
	Bandwidth      int64 `json:"bps-total"`
	BandwidthRead  int64 `json:"bps-read"`
	BandwidthWrite int64 `json:"bps-write"`
}

// throttle puts a filter above the nodes of a disk that has limits. Its device
// then reads "throttle-NAME", whose limits are those of the object
// "throttle-NAME".
func (p *planner) throttle(d config.Disk) {
	limits := d.Limits()
	if limits == (hypervisor.Limits{}) {
		return
	}
	group := throttleGroup(d.Name)
	p.arg("-object", jsonArg(struct {
		Type   string         `json:"qom-type"`
		ID     string         `json:"id"`
		Limits throttleLimits `json:"limits"`
	}{"throttle-group", group, throttleLimits(limits)}))
	filter := blockNode{Driver: "throttle", Name: topNode(d), Group: group, File: nodeName("disk", d.Name), ReadOnly: d.Readonly}
	if !d.Readonly {
		filter.Discard = discard(d)
	}
	p.arg("-blockdev", jsonArg(filter))
}

func throttleGroup(disk string) string { return "throttle-" + disk }

// topNode is the node that a disk's device reads. It is also the one by which
// the disk is resized: a filter does not tell the device above it that the node
// below it has grown (7.2 to 10.0).
func topNode(d config.Disk) string {
	if d.Limits() != (hypervisor.Limits{}) {
		return nodeName("throttle", d.Name)
	}
	return nodeName("disk", d.Name)
}

// limited names the limits of a throttle group to qom-get and qom-set.
type limited struct {
	Path     string          `json:"path"`
	Property string          `json:"property"`
	Value    *throttleLimits `json:"value,omitempty"`
}

// Limits implements [hypervisor.Throttler].
func (c *control) Limits(ctx context.Context, disk string) (hypervisor.Limits, error) {
	var l throttleLimits
	err := c.run(ctx, "qom-get", limited{"/objects/" + throttleGroup(disk), "limits", nil}, &l)
	if !notFound(err) {
		return hypervisor.Limits(l), err
	}
	b, err := c.backend(ctx, disk)
	return hypervisor.Limits(b.Inserted), err
}

// SetLimits implements [hypervisor.Throttler]. A disk that was started without
// limits has no filter; its device can have limits of its own.
func (c *control) SetLimits(ctx context.Context, disk string, l hypervisor.Limits) error {
	limits := throttleLimits(l)
	err := c.run(ctx, "qom-set", limited{"/objects/" + throttleGroup(disk), "limits", &limits}, nil)
	if !notFound(err) {
		return err
	}
	b, err := c.backend(ctx, disk)
	if err != nil {
		return err
	}
	return c.run(ctx, "block_set_io_throttle", struct {
		ID string `json:"id"`
		ioThrottle
	}{b.ID, ioThrottle(l)}, nil)
}

// ioThrottle are limits as block_set_io_throttle and query-block have them.
type ioThrottle struct {
	IOPS           int64 `json:"iops"`
	IOPSRead       int64 `json:"iops_rd"`
	IOPSWrite      int64 `json:"iops_wr"`
	Bandwidth      int64 `json:"bps"`
	BandwidthRead  int64 `json:"bps_rd"`
	BandwidthWrite int64 `json:"bps_wr"`
}

// backend is what a device reads by (BlockInfo).
type backend struct {
	ID       string     `json:"qdev"`
	Inserted ioThrottle `json:"inserted"`
}

// backend finds that of a disk. virtio-blk has it in a part of its own, which is
// named by its path.
func (c *control) backend(ctx context.Context, disk string) (backend, error) {
	var all []backend
	if err := c.run(ctx, "query-block", nil, &all); err != nil {
		return backend{}, err
	}
	for _, b := range all {
		if slices.Contains(strings.Split(b.ID, "/"), "disk-"+disk) {
			return b, nil
		}
	}
	return backend{}, fmt.Errorf("the machine has no disk %s", disk)
}

// notFound says whether QEMU has no such object.
func notFound(err error) bool {
	refused, ok := errors.AsType[*Error](err)
	return ok && refused.Class == "DeviceNotFound"
}

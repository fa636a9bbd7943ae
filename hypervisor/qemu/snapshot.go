package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
)

var (
	_ hypervisor.DiskSnapshotter = (*control)(nil)
	_ hypervisor.AgentWatcher    = (*control)(nil)
)

// snapshotTimeout bounds what is done with snapshots inside of images: their
// tables are read and written, those of a large image for a while.
const snapshotTimeout = 10 * time.Minute

// snapshotAction is one of a transaction (TransactionAction in
// qapi/transaction.json).
type snapshotAction struct {
	Type string       `json:"type"`
	Data diskSnapshot `json:"data"`
}

// diskSnapshot is one snapshot in one image. Device may be the name of a node.
type diskSnapshot struct {
	Device string `json:"device"`
	Name   string `json:"name"`
}

// SnapshotDisks implements [hypervisor.DiskSnapshotter].
func (c *control) SnapshotDisks(ctx context.Context, tag string, disks []string) error {
	var arguments struct {
		Actions []snapshotAction `json:"actions"`
	}
	for _, disk := range disks {
		arguments.Actions = append(arguments.Actions,
			snapshotAction{"blockdev-snapshot-internal-sync", diskSnapshot{nodeName("disk", disk), tag}})
	}
	return c.runFor(ctx, snapshotTimeout, "transaction", arguments, nil)
}

// DeleteDiskSnapshot implements [hypervisor.DiskSnapshotter].
func (c *control) DeleteDiskSnapshot(ctx context.Context, tag, disk string) error {
	found, err := c.hasSnapshot(ctx, tag, disk)
	if err != nil || !found {
		return err
	}
	return c.runFor(ctx, snapshotTimeout, "blockdev-snapshot-delete-internal-sync", diskSnapshot{nodeName("disk", disk), tag}, nil)
}

// hasSnapshot says whether a disk has a snapshot.
func (c *control) hasSnapshot(ctx context.Context, tag, disk string) (bool, error) {
	var nodes []struct {
		Name  string `json:"node-name"`
		Image struct {
			Snapshots []struct {
				Name string `json:"name"`
			} `json:"snapshots"`
		} `json:"image"`
	}
	if err := c.run(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		return false, err
	}
	for _, n := range nodes {
		if n.Name != nodeName("disk", disk) {
			continue
		}
		for _, s := range n.Image.Snapshots {
			if s.Name == tag {
				return true, nil
			}
		}
		return false, nil
	}
	return false, fmt.Errorf("the running machine has no disk %s", disk)
}

// AgentListens implements [hypervisor.AgentWatcher].
func (c *control) AgentListens(ctx context.Context) (bool, error) {
	var devices []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := c.run(ctx, "query-chardev", nil, &devices); err != nil {
		return false, err
	}
	for _, d := range devices {
		if d.Label == "agent" {
			return d.Open, nil
		}
	}
	return false, errors.New("the machine has no channel to a guest agent")
}

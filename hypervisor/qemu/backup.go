package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
)

var _ hypervisor.DiskCopier = (*control)(nil)

// The names of what a copy of disks makes in QEMU. By them it is found again by
// who has not made it.
const (
	copyJob        = "copy-"   // jobs, and the node of a copy
	copyFile       = "c-file-" // the node of its file
	copyDescriptor = "copy"    // what the set of its descriptor is said to be for
)

// nodeOf is the node with the content of a disk, and the name by which what
// belongs to its copy is called.
func nodeOf(key string) (node, name string, err error) {
	if disk, ok := strings.CutPrefix(key, "disk."); ok {
		return nodeName("disk", disk), short(disk, 21), nil
	}
	if key == "boot.firmware" {
		return "nvram", ".nvram", nil // no disk has such a name
	}
	return "", "", fmt.Errorf("%s is no disk", key)
}

// nodeInfo is BlockDeviceInfo of query-named-block-nodes.
type nodeInfo struct {
	Name    string     `json:"node-name"`
	Driver  string     `json:"drv"`
	Image   imageInfo  `json:"image"`
	Bitmaps []struct { // BlockDirtyInfo
		Name         string
		Count        int64
		Granularity  int64
		Recording    bool
		Persistent   bool
		Inconsistent bool
	} `json:"dirty-bitmaps"`
}

// imageInfo is ImageInfo.
type imageInfo struct {
	VirtualSize int64      `json:"virtual-size"`
	ActualSize  int64      `json:"actual-size"`
	Backing     *imageInfo `json:"backing-image"`
	Specific    struct {
		Data struct{ Compat string }
	} `json:"format-specific"`
}

// node asks for one node. The error is fs.ErrNotExist where there is none.
func (c *control) node(ctx context.Context, name string) (nodeInfo, error) {
	var nodes []nodeInfo
	if err := c.run(ctx, "query-named-block-nodes", nil, &nodes); err != nil {
		return nodeInfo{}, err
	}
	for _, n := range nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nodeInfo{}, fmt.Errorf("node %s: %w", name, fs.ErrNotExist)
}

// InspectDisk implements [hypervisor.DiskCopier].
func (c *control) InspectDisk(ctx context.Context, key string) (hypervisor.DiskState, error) {
	name, _, err := nodeOf(key)
	if err != nil {
		return hypervisor.DiskState{}, err
	}
	n, err := c.node(ctx, name)
	if err != nil {
		return hypervisor.DiskState{}, fmt.Errorf("%s: %w", key, err)
	}
	s := hypervisor.DiskState{
		Format:       n.Driver,
		VirtualSize:  n.Image.VirtualSize,
		KeepsBitmaps: n.Driver == "qcow2" && n.Image.Specific.Data.Compat != "0.10",
	}
	for i := &n.Image; i != nil; i = i.Backing {
		s.Allocated += i.ActualSize
	}
	s.Allocated = min(s.Allocated, s.VirtualSize)
	for _, b := range n.Bitmaps {
		s.Bitmaps = append(s.Bitmaps, hypervisor.Bitmap{
			Name: b.Name, Sound: b.Recording && !b.Inconsistent, Dirty: b.Count, Granularity: b.Granularity,
		})
	}
	return s, nil
}

// action is one of a QMP transaction.
type action struct {
	Type string `json:"type"`
	Data any    `json:"data"`
}

// bitmapArguments name a bitmap, or say how to make one.
type bitmapArguments struct {
	Node        string `json:"node"`
	Name        string `json:"name"`
	Persistent  bool   `json:"persistent,omitempty"`
	Granularity int64  `json:"granularity,omitempty"`
}

// backupArguments are those of blockdev-backup.
type backupArguments struct {
	Job         string `json:"job-id"`
	Device      string `json:"device"`
	Target      string `json:"target"`
	Sync        string `json:"sync"`
	Bitmap      string `json:"bitmap,omitempty"`
	BitmapMode  string `json:"bitmap-mode,omitempty"`
	Speed       int64  `json:"speed,omitempty"` // bytes per second
	AutoDismiss bool   `json:"auto-dismiss"`
}

// BeginCopy implements [hypervisor.DiskCopier].
func (c *control) BeginCopy(ctx context.Context, copies []hypervisor.DiskCopy, bytesPerSecond int64) error {
	var actions []action
	for _, copied := range copies {
		node, name, err := nodeOf(copied.Key)
		if err != nil {
			return err
		}
		if err := c.openTarget(ctx, name, copied); err != nil {
			return fmt.Errorf("open %s: %w", copied.Target.Name(), err)
		}
		if copied.Bitmap != "" {
			state, err := c.InspectDisk(ctx, copied.Key)
			if err != nil {
				return err
			}
			actions = append(actions, action{"block-dirty-bitmap-add", bitmapArguments{
				Node: node, Name: copied.Bitmap, Persistent: state.KeepsBitmaps, Granularity: hypervisor.BitmapGranularity,
			}})
		}
		job := backupArguments{Job: copyJob + name, Device: node, Target: copyJob + name, Sync: "full"}
		if bytesPerSecond > 0 {
			job.Speed = max(1, bytesPerSecond/int64(len(copies)))
		}
		if copied.Since != "" {
			job.Sync, job.Bitmap, job.BitmapMode = "bitmap", copied.Since, "never"
		}
		actions = append(actions, action{"blockdev-backup", job})
	}
	// Not with the jobs grouped, which QEMU cannot do with bitmaps in between.
	return c.run(ctx, "transaction", map[string]any{"actions": actions}, nil)
}

// openTarget makes a node of the image that is copied to. What it stands on is
// not opened: all that is written to it is whole clusters.
func (c *control) openTarget(ctx context.Context, name string, copied hypervisor.DiskCopy) error {
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := c.runWith(ctx, copied.Target, "add-fd", map[string]string{"opaque": copyDescriptor}, &set); err != nil {
		return err
	}
	file := blockNode{Driver: "file", Name: copyFile + name, Filename: fmt.Sprintf("/dev/fdset/%d", set.ID), Locking: "on"}
	if err := c.run(ctx, "blockdev-add", file, nil); err != nil {
		return err
	}
	return c.run(ctx, "blockdev-add", struct {
		Driver  string  `json:"driver"`
		Name    string  `json:"node-name"`
		File    string  `json:"file"`
		Backing *string `json:"backing"` // null: none
	}{"qcow2", copyJob + name, file.Name, nil}, nil)
}

// jobInfo is JobInfo of query-jobs.
type jobInfo struct {
	ID     string
	Status string
	Error  string
	Done   int64 `json:"current-progress"`
	Total  int64 `json:"total-progress"`
}

// copyJobs are the jobs of a copy.
func (c *control) copyJobs(ctx context.Context) ([]jobInfo, error) {
	var jobs []jobInfo
	err := c.run(ctx, "query-jobs", nil, &jobs)
	return slices.DeleteFunc(jobs, func(j jobInfo) bool { return !strings.HasPrefix(j.ID, copyJob) }), err
}

// Copying implements [hypervisor.DiskCopier].
func (c *control) Copying(ctx context.Context) (done, total int64, ended bool, err error) {
	jobs, err := c.copyJobs(ctx)
	if err != nil {
		return 0, 0, false, err
	}
	if len(jobs) == 0 {
		return 0, 0, true, errors.New("nothing is being copied")
	}
	ended = true
	for _, j := range jobs {
		if j.Error != "" {
			return done, total, true, errors.New(j.Error)
		}
		done, total = done+j.Done, total+j.Total
		ended = ended && j.Status == "concluded"
	}
	return done, total, ended, nil
}

// copyPause is how long is waited between two looks at a job that is ending.
const copyPause = 50 * time.Millisecond

// EndCopy implements [hypervisor.DiskCopier].
func (c *control) EndCopy(ctx context.Context) error {
	for any := false; ; any = true {
		jobs, err := c.copyJobs(ctx)
		if err != nil {
			return err
		}
		if len(jobs) == 0 {
			if err := c.closeTargets(ctx); err != nil || !any {
				return err
			}
			return c.goOn(ctx)
		}
		for _, j := range jobs {
			command := "job-cancel"
			if j.Status == "concluded" {
				command = "job-dismiss"
			}
			// It may have come to its end meanwhile: the next look tells.
			if err := c.run(ctx, command, map[string]string{"id": j.ID}, nil); err != nil && !isRefusal(err) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(copyPause):
		}
	}
}

func isRefusal(err error) bool {
	_, ok := errors.AsType[*Error](err)
	return ok
}

// closeTargets closes what openTarget has opened.
func (c *control) closeTargets(ctx context.Context) error {
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := c.run(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		return err
	}
	for _, prefix := range []string{copyJob, copyFile} { // from the top down
		for _, n := range nodes {
			if !strings.HasPrefix(n.Name, prefix) {
				continue
			}
			if err := c.run(ctx, "blockdev-del", map[string]string{"node-name": n.Name}, nil); err != nil {
				return err
			}
		}
	}
	var sets []struct {
		ID  int `json:"fdset-id"`
		FDs []struct{ Opaque string }
	}
	if err := c.run(ctx, "query-fdsets", nil, &sets); err != nil {
		return err
	}
	for _, s := range sets {
		if len(s.FDs) == 0 || s.FDs[0].Opaque != copyDescriptor {
			continue
		}
		if err := c.run(ctx, "remove-fd", map[string]int{"fdset-id": s.ID}, nil); err != nil {
			return err
		}
	}
	return nil
}

// goOn lets a guest run on that was paused by an error of a disk. Before a guest
// may overwrite what is still to be copied, that has to be copied; where it
// cannot be, the guest's write fails, and with the copy over it can be tried
// again.
func (c *control) goOn(ctx context.Context) error {
	var answer struct{ Status string }
	if err := c.run(ctx, "query-status", nil, &answer); err != nil || answer.Status != "io-error" {
		return err
	}
	return c.Resume(ctx)
}

// RemoveBitmap implements [hypervisor.DiskCopier].
func (c *control) RemoveBitmap(ctx context.Context, key, bitmap string) error {
	name, _, err := nodeOf(key)
	if err != nil {
		return err
	}
	n, err := c.node(ctx, name)
	if err != nil {
		return err
	}
	for _, b := range n.Bitmaps {
		if b.Name == bitmap {
			return c.run(ctx, "block-dirty-bitmap-remove", bitmapArguments{Node: name, Name: bitmap}, nil)
		}
	}
	return nil
}

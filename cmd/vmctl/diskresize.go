package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/hypervisor/disk"
)

func newDiskResizeCommand(a *app) *cobra.Command {
	var opts reading
	cmd := &cobra.Command{
		Use:   "resize {VM DISK | PATH} [+]SIZE",
		Short: "Grow a disk",
		Long: `Grow a disk to a size, or with + by a size. The guest then has to grow what is
on it. A disk is never made smaller: what lies at its end would be lost.`,
		Example: `  vmctl disk resize web root 40G
  vmctl disk resize /srv/data.qcow2 +10G`,
		ValidArgsFunction: a.completePlaces(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDiskResize(cmd.Context(), a, opts, args)
		},
	}
	cmd.Flags().StringVar(&opts.format, "format", "", "`FORMAT` of the file, where neither a definition nor its name's ending says it")
	opts.addFlags(cmd.Flags())
	completeFormats(cmd, "format")
	return cmd
}

func runDiskResize(ctx context.Context, a *app, opts reading, args []string) error {
	places, rest, err := takePlaces(args, 1, "a size")
	if err != nil {
		return err
	}
	text, add := strings.CutPrefix(rest[0], "+")
	wanted, err := config.ParseSize(text)
	if err != nil {
		return usageError{err}
	}
	if err := checkFormat("format", opts.format); err != nil {
		return err
	}
	p := places[0]
	begun := time.Now()
	old, now, err := a.resize(ctx, opts, p, int64(wanted), add)
	if p.vm != "" {
		a.note("disk resize", config.Disk{Name: p.disk}.Key(), p.vm, begun, err)
	}
	if err != nil {
		return inPlace("resize", p, err)
	}
	result := fmt.Sprintf("grown from %s to %s", config.Size(old), config.Size(now.size))
	if old == now.size {
		result = "has " + config.Size(old).String() + " already"
	}
	return a.tellChanged(ctx, p, now.file, now.format, result)
}

// resized is a disk that was grown.
type resized struct {
	file, format string
	size         int64 // bytes
}

// resize grows a disk to a size in bytes, or with add by it. It returns the size
// before.
func (a *app) resize(ctx context.Context, opts reading, p place, wanted int64, add bool) (old int64, now resized, err error) {
	t, err := a.target(p, opts.format)
	if err != nil {
		return 0, now, err
	}
	defer t.close()
	unlock, err := a.lockVMs("vmctl disk resize", t.vms()...)
	if err != nil {
		return 0, now, err
	}
	defer unlock()
	if t.format != disk.Raw && t.format != disk.QCOW2 {
		return 0, now, withHint(&stateError{fmt.Errorf("%s images cannot be grown", t.format)}, "vmctl disk convert makes a qcow2 image of it")
	}
	if old, err = a.virtualSize(ctx, t); err != nil {
		return 0, now, err
	}
	if add {
		if wanted > math.MaxInt64-old {
			return 0, now, usageError{fmt.Errorf("want a size that fits into 63 bits")}
		}
		wanted += old
	}
	now = resized{t.file.Name(), t.format, wanted}
	switch {
	case wanted < old:
		return 0, now, withHint(&stateError{fmt.Errorf("the disk has %s, and to cut it to %s would lose what lies beyond", config.Size(old), config.Size(wanted))},
			"by hand: shrink file systems and partitions in the guest first, then qemu-img resize --shrink on a copy")
	case wanted%512 != 0:
		return 0, now, usageError{fmt.Errorf("want a whole number of sectors of 512 bytes, got %d bytes", wanted)}
	}
	if slices.ContainsFunc(t.known, func(k knownDisk) bool { return a.isRunning(k.vm) }) {
		return old, now, a.resizeRunning(ctx, t, wanted)
	}
	if err := a.checkChangeable(t); err != nil {
		return 0, now, err
	}
	if wanted == old {
		return old, now, nil
	}
	c, err := a.chain(t, opts.follow)
	if err != nil {
		return 0, now, err
	}
	return old, now, a.imgOf(t).Resize(ctx, c, wanted)
}

// resizeRunning grows a disk that a machine runs with, to a size in bytes.
func (a *app) resizeRunning(ctx context.Context, t *target, bytes int64) error {
	i := slices.IndexFunc(t.known, func(k knownDisk) bool { return a.isRunning(k.vm) })
	k := t.known[i]
	if slices.ContainsFunc(t.known, func(other knownDisk) bool { return other.vm != k.vm && a.isRunning(other.vm) }) || !k.writable() {
		return inUseBy(t, k.vm)
	}
	d, err := a.hotDisk(k)
	if err != nil {
		return err
	}
	hv, ok := all.ByName(d.Machine.Hypervisor)
	if !ok {
		return &unknownHypervisorError{d.Machine.Hypervisor}
	}
	c, err := access.Connect(ctx, hv, a.paths.JobSocket(k.vm))
	if access.Nobody(err) {
		return &stateError{fmt.Errorf("%s has just ended", k.vm)}
	}
	if err != nil {
		return err
	}
	defer c.Close()
	hot, ok := c.(hypervisor.DiskHotplug)
	if !ok {
		return inUseBy(t, k.vm)
	}
	err = hot.ResizeDisk(ctx, d, bytes)
	if errors.Is(err, hypervisor.ErrFixedSize) {
		return withHint(&stateError{fmt.Errorf("on %s %w", d.Disk.Bus, err)}, "it can be grown while "+k.vm+" is stopped")
	}
	if err != nil {
		return err
	}
	if bus := d.Disk.Bus; bus != "virtio" && bus != "scsi" {
		a.ui.warnf("%s %s: nothing tells a guest of the new size on %s: it sees it once it looks again, or is restarted", k.vm, k.Name, bus)
	}
	return nil
}

// hotDisk is a disk as the machine that runs with it has it, whatever its definition
// says by now.
func (a *app) hotDisk(k knownDisk) (hypervisor.HotDisk, error) {
	record := a.readRecord(k.vm)
	if record == nil || record.Machine == nil {
		return hypervisor.HotDisk{}, fmt.Errorf("what %s was started with cannot be read", k.vm)
	}
	changes, err := hypervisor.ReadChanges(a.paths, k.vm)
	if err != nil {
		return hypervisor.HotDisk{}, err
	}
	d, has := changes.Plugged(record.Machine, k.Name)
	if !has || !sameFile(a.paths.DiskFile(k.vm, d), k.file) {
		return hypervisor.HotDisk{}, &stateError{fmt.Errorf("%s runs without this disk, which its definition has got since", k.vm)}
	}
	return hypervisor.HotDisk{Machine: changes.Apply(record.Machine), Disk: d, Paths: a.paths, Backing: changes.Backing[k.Name]}, nil
}

func sameFile(one, other string) bool {
	a, errA := os.Stat(one)
	b, errB := os.Stat(other)
	return one == other || errA == nil && errB == nil && os.SameFile(a, b)
}

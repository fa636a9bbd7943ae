package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// throttleOptions are the flags of vmctl disk throttle.
type throttleOptions struct {
	iops, iopsRead, iopsWrite                int64
	bandwidth, bandwidthRead, bandwidthWrite sizeFlag
	none, persist                            bool
}

func (o *throttleOptions) addFlags(flags *pflag.FlagSet) {
	flags.Int64Var(&o.iops, "iops", 0, "`OPERATIONS` per second, reads and writes together")
	flags.Int64Var(&o.iopsRead, "iops-read", 0, "`OPERATIONS` per second that read")
	flags.Int64Var(&o.iopsWrite, "iops-write", 0, "`OPERATIONS` per second that write")
	flags.Var(&o.bandwidth, "bandwidth", "bytes per second, reads and writes together")
	flags.Var(&o.bandwidthRead, "bandwidth-read", "bytes per second that are read")
	flags.Var(&o.bandwidthWrite, "bandwidth-write", "bytes per second that are written")
	flags.BoolVar(&o.none, "none", false, "no limits")
	flags.BoolVar(&o.persist, "persist", false, "for later starts too: by a drop-in of the definition")
}

func (o throttleOptions) limits() hypervisor.Limits {
	return hypervisor.Limits{
		IOPS: o.iops, IOPSRead: o.iopsRead, IOPSWrite: o.iopsWrite,
		Bandwidth: int64(o.bandwidth), BandwidthRead: int64(o.bandwidthRead), BandwidthWrite: int64(o.bandwidthWrite),
	}
}

// maxLimit is the most that a limit can be (QEMU's THROTTLE_VALUE_MAX, and that of
// definitions).
const maxLimit = 1e15

// check refuses what excludes each other. set says that there are limits to set,
// and not only to show.
func (o throttleOptions) check() (set bool, err error) {
	l := o.limits()
	set = o.none || l != hypervisor.Limits{}
	for _, n := range []int64{l.IOPS, l.IOPSRead, l.IOPSWrite, l.Bandwidth, l.BandwidthRead, l.BandwidthWrite} {
		if n < 0 || n > maxLimit {
			return set, usageError{fmt.Errorf("want a limit from 1 to %d per second, got %d", int64(maxLimit), n)}
		}
	}
	switch {
	case o.none && l != hypervisor.Limits{}:
		return set, usageError{errors.New("want limits or --none, got both")}
	case l.IOPS > 0 && l.IOPSRead+l.IOPSWrite > 0:
		return set, usageError{errors.New("want either --iops or --iops-read and --iops-write, got both")}
	case l.Bandwidth > 0 && l.BandwidthRead+l.BandwidthWrite > 0:
		return set, usageError{errors.New("want either --bandwidth or --bandwidth-read and --bandwidth-write, got both")}
	case o.persist && !set:
		return set, usageError{errors.New("--persist: want limits or --none beside it")}
	}
	return set, nil
}

func newDiskThrottleCommand(a *app) *cobra.Command {
	var opts throttleOptions
	cmd := &cobra.Command{
		Use:   "throttle VM DISK",
		Short: "Limit what a disk does per second, while the machine runs",
		Long: `Limit the operations and bytes per second of a disk, while the machine runs.
The limits replace all that the disk had; without any, those that it has are
shown. At the next start those of the definition hold again, which --persist
changes by a drop-in. Until then vmctl diff tells of it, and vmctl reload leaves
them as they are, unless the definition gives the disk others.`,
		Example: `  vmctl disk throttle web root --iops 500 --bandwidth 20M
  vmctl disk throttle web root --none --persist`,
		ValidArgsFunction: a.completePlaces(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDiskThrottle(cmd.Context(), a, opts, args)
		},
	}
	opts.addFlags(cmd.Flags())
	return cmd
}

// throttled is vmctl disk throttle -o json. The names of its fields stay.
type throttled struct {
	VM     string            `json:"vm"`
	Disk   string            `json:"disk"`
	Limits hypervisor.Limits `json:"limits"` // per second, 0 for none
	Live   bool              `json:"live"`   // of the machine that runs
	File   string            `json:"file"`   // the drop-in that was written; "" for none
}

func runDiskThrottle(ctx context.Context, a *app, opts throttleOptions, args []string) error {
	set, err := opts.check()
	if err != nil {
		return err
	}
	places, _, err := takePlaces(args, 1)
	if err != nil {
		return err
	}
	p := places[0]
	if p.path != "" {
		return usageError{fmt.Errorf("want a machine's disk, as VM DISK, got %s", p)}
	}
	t, err := a.throttle(ctx, p, opts, set)
	if err != nil {
		return inPlace("throttle", p, err)
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(t)
	}
	a.ui.printf("%s: %s", p, limitsText(t.Limits))
	if t.File != "" {
		a.ui.printf("written to %s", t.File)
	}
	return nil
}

// throttle sets the limits of a disk, or finds out about them.
func (a *app) throttle(ctx context.Context, p place, opts throttleOptions, set bool) (throttled, error) {
	t := throttled{VM: p.vm, Disk: p.disk, Limits: opts.limits()}
	conn, err := a.dial(ctx)
	if err != nil {
		return t, err
	}
	defer conn.Close()
	l, err := a.lookAt(ctx, conn, p.vm)
	if err != nil {
		return t, err
	}
	var kept deviceDropIn
	if opts.persist {
		if kept, err = a.limitsDropIn(p, t.Limits); err != nil {
			return t, err
		}
	}
	switch {
	case l.active() && set:
		t.Live = true
		q := hypervisor.ThrottleRequest{Disk: p.disk, Limits: t.Limits}
		if defined, has := definedLimits(l, p.disk); has && !opts.persist {
			q.Throttled = &defined
		}
		err = a.operate(ctx, conn, p.vm, "disk", hypervisor.DiskThrottle, q, nil)
	case l.active():
		t.Live = true
		err = a.do(ctx, l, func(c hypervisor.Control, ctx context.Context) (err error) {
			throttler, ok := c.(hypervisor.Throttler)
			if !ok {
				return impossible("changing the limits of a disk while the VM runs", l)
			}
			t.Limits, err = throttler.Limits(ctx, p.disk)
			return err
		})
	case !opts.persist:
		err = withHint(&transitionError{From: l.state, Reason: "only a machine that runs has disks to limit"},
			"--persist sets limits for the next start")
	}
	if err != nil || !opts.persist {
		return t, err
	}
	if err := kept.write(); err != nil {
		if t.Live {
			return t, fmt.Errorf("the limits hold until the machine stops, but not longer: %w", err)
		}
		return t, err
	}
	t.File = kept.file
	return t, conn.Reload(ctx)
}

// definedLimits are those that its definition gives to a disk of a machine.
func definedLimits(l look, disk string) (hypervisor.Limits, bool) {
	if l.vm.Machine == nil {
		return hypervisor.Limits{}, false
	}
	limits, has := l.vm.Machine.Live().Disks[disk]
	return limits, has
}

// throttledDisks are the disks of a machine that have other limits until it stops, as long
// as its definition says what it said then: by that.
func throttledDisks(l look) map[string]hypervisor.Limits {
	out := map[string]hypervisor.Limits{}
	for disk, by := range l.changes.Throttled {
		if defined, has := definedLimits(l, disk); has && defined == by {
			out[disk] = by
		}
	}
	return out
}

// limitsDropIn works out the drop-in that holds the limits of a disk, which has
// to be in a sound definition. All limits are in it, so that none of the
// definition's holds beside those that exclude it.
func (a *app) limitsDropIn(p place, l hypervisor.Limits) (deviceDropIn, error) {
	vm, err := a.find(p.vm)
	if err != nil {
		return deviceDropIn{}, err
	}
	if vm.Machine == nil {
		return deviceDropIn{}, invalid(vm, vm.Problems)
	}
	if !hasDevice(vm.Machine, "disk."+p.disk) {
		return deviceDropIn{}, &notFoundError{Kind: "disk of " + p.vm, Name: p.disk, Hint: "--persist is for disks that its definition has"}
	}
	file := filepath.Join(filepath.Dir(a.paths.DeviceDropIn(vm, "disk."+p.disk)), "90-limits-"+p.disk+".toml")
	return a.planDropIn(vm, file, fmt.Sprintf(config.DropInMark+`disk throttle. Without this file the limits are those of the
# definition again.
[disk.%s]
iops = %d
iops_read = %d
iops_write = %d
bandwidth = "%dB"
bandwidth_read = "%dB"
bandwidth_write = "%dB"
`, p.disk, l.IOPS, l.IOPSRead, l.IOPSWrite, l.Bandwidth, l.BandwidthRead, l.BandwidthWrite))
}

// limitsText is "500 operations/s, 20M/s".
func limitsText(l hypervisor.Limits) string {
	var parts []string
	for _, one := range []struct {
		n    int64
		text string
	}{
		{l.IOPS, "%d operations/s"}, {l.IOPSRead, "%d reads/s"}, {l.IOPSWrite, "%d writes/s"},
	} {
		if one.n > 0 {
			parts = append(parts, fmt.Sprintf(one.text, one.n))
		}
	}
	for _, one := range []struct {
		n    int64
		text string
	}{
		{l.Bandwidth, "%s/s"}, {l.BandwidthRead, "%s/s read"}, {l.BandwidthWrite, "%s/s written"},
	} {
		if one.n > 0 {
			parts = append(parts, fmt.Sprintf(one.text, config.Size(one.n)))
		}
	}
	if len(parts) == 0 {
		return "no limits"
	}
	return strings.Join(parts, ", ")
}

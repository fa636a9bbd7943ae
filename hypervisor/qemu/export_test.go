package qemu

import (
	"context"
	"os"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
)

// DecodePPM is for tests.
var DecodePPM = decodePPM

// SetStall sets how long the state may stand still.
func SetStall(s hypervisor.StateSaver, d time.Duration) { s.(*control).stall = d }

// MakeSome does the first steps of attaching a disk, as an attempt that is cut
// off; false where it has fewer.
func MakeSome(ctx context.Context, hot hypervisor.DiskHotplug, d hypervisor.HotDisk, files map[string][]*os.File, steps int) (bool, error) {
	c := hot.(*control)
	at := anyPlace()
	at.scsi, at.usb = true, true
	plan, _ := hotPlan(d, at)
	commands := hotCommands(plan.Argv)
	for _, command := range commands[:min(steps, len(commands)-1)] {
		if err := c.makePart(ctx, command, files); err != nil {
			return false, err
		}
	}
	return steps < len(commands), nil
}

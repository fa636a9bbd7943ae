package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

var (
	_ hypervisor.SharePlanner = QEMU{}
	_ hypervisor.ShareHotplug = (*control)(nil)
)

// shareID is the id of a share's device, and of the character device with the
// connection to its server.
func shareID(share string) string { return "share-" + share }

// checkHotShare refuses boards that no share can be plugged into, or out of.
func (p *planner) checkHotShare() {
	if p.microvm() {
		p.problem("machine", `"microvm" takes no devices while it runs: its shares change at a restart`)
	}
}

// PlanShare implements [hypervisor.SharePlanner].
func (QEMU) PlanShare(s hypervisor.HotShare) (*hypervisor.Plan, []config.Problem) {
	p := &planner{m: s.Machine}
	p.checkHotShare()
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	if !(&planner{m: s.Started}).sharedMemory() {
		return nil, []config.Problem{hypervisor.NoSharedMemory(s.Machine, s.Share.Key(), "share", "virtiofsd")}
	}
	return hotSharePlan(s, anyPlace())
}

// hotSharePlan plans one share, for a place, as it would be planned with the machine.
func hotSharePlan(s hypervisor.HotShare, at hotPlace) (*hypervisor.Plan, []config.Problem) {
	p := &planner{m: s.Machine, host: s.Host, paths: s.Paths, plan: &hypervisor.Plan{}, hot: &at}
	p.share(s.Share)
	return p.plan, p.problems
}

// chardevArguments reads -chardev of a socket: one to connect to by its path, or
// connected, whose descriptor is named instead of numbered.
func chardevArguments(value string) map[string]any {
	is := hotArguments("type", value)
	id := fmt.Sprint(is["id"])
	address := map[string]any{"type": "unix", "data": map[string]any{"path": is["path"]}}
	if is["path"] == nil {
		number, _ := strconv.Atoi(fmt.Sprint(is["fd"])) // which the planner has written
		address = map[string]any{"type": "fd", "data": map[string]any{"str": descriptorName(id, number-firstDescriptor)}}
	}
	return map[string]any{"id": id, "backend": map[string]any{
		"type": is["type"], "data": map[string]any{"addr": address, "server": false},
	}}
}

// AttachShare implements [hypervisor.ShareHotplug].
func (c *control) AttachShare(ctx context.Context, s hypervisor.HotShare, files []*os.File) error {
	devices, err := c.devices(ctx)
	if err != nil {
		return err
	}
	id := shareID(s.Share.Name)
	if _, there := devices[id]; there {
		return hypervisor.ErrPlugged
	}
	at, err := c.place(ctx, s.Machine.MachineType, devices)
	if err != nil {
		return err
	}
	plan, problems := hotSharePlan(s, at)
	if len(problems) > 0 {
		return problems[0]
	}
	if len(files) != len(plan.Descriptors) {
		return fmt.Errorf("want %d descriptors for %s, got %d", len(plan.Descriptors), s.Share.Key(), len(files))
	}
	// What an attempt that was cut off has left.
	if err := c.removeConnection(ctx, id); err != nil {
		return err
	}
	if err := c.plugWith(ctx, id, plan, files); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return errors.Join(err, c.removeConnection(undo, id))
	}
	return nil
}

// removeConnection removes the character device of a share or card whose device is
// gone, and the descriptor that was meant for it.
func (c *control) removeConnection(ctx context.Context, id string) error {
	var chardevs []struct{ Label string }
	if err := c.run(ctx, "query-chardev", nil, &chardevs); err != nil {
		return err
	}
	if slices.ContainsFunc(chardevs, func(d struct{ Label string }) bool { return d.Label == id }) {
		if err := c.removeChardev(ctx, id); err != nil {
			return err
		}
	}
	return c.closeDescriptor(ctx, descriptorName(id, 0))
}

// removeChardev removes a character device, which what used it may have for a moment
// longer.
func (c *control) removeChardev(ctx context.Context, id string) error {
	for begun := time.Now(); ; time.Sleep(nodeStep) {
		err := c.run(ctx, "chardev-remove", map[string]any{"id": id}, nil)
		refused, ok := errors.AsType[*Error](err)
		if !ok || !strings.Contains(refused.Desc, "busy") || time.Since(begun) > nodeTime || ctx.Err() != nil {
			return err
		}
	}
}

// DetachShare implements [hypervisor.ShareHotplug].
func (c *control) DetachShare(ctx context.Context, s hypervisor.HotShare) error {
	p := &planner{m: s.Machine}
	p.checkHotShare()
	if len(p.problems) > 0 {
		return p.problems[0]
	}
	devices, err := c.devices(ctx)
	if err != nil {
		return err
	}
	id := shareID(s.Share.Name)
	if _, there := devices[id]; there {
		if err := c.unplug(ctx, id); err != nil {
			return err
		}
	}
	return c.removeConnection(ctx, id)
}

// PluggedShares implements [hypervisor.ShareHotplug].
func (c *control) PluggedShares(ctx context.Context) ([]string, error) {
	return c.plugged(ctx, shareID(""))
}

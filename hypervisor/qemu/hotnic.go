package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

var (
	_ hypervisor.NICPlanner = QEMU{}
	_ hypervisor.NICHotplug = (*control)(nil)
)

func cardID(nic string) string { return "nic-" + nic }

// conventional says whether a card is conventional PCI, which a PCIe port does
// not take.
func conventional(model string) bool { return model == "e1000" || model == "rtl8139" }

// checkHotNIC refuses what cannot be plugged in or out.
func (p *planner) checkHotNIC(n config.NIC) {
	switch {
	case p.microvm():
		p.problem("machine", `"microvm" takes no devices while it runs: its cards change at a restart`)
	case p.q35() && conventional(n.Model):
		p.problem(n.Key()+".model", `%q is conventional PCI, of which "q35" takes nothing while it runs: want "virtio" or "e1000e", or a restart`, n.Model)
	}
}

// checkSandbox refuses what the machine's sandbox, which was made at its start,
// does not let QEMU reach.
func (p *planner) checkSandbox(n hypervisor.HotNIC) {
	const later = "which it has by a restart alone"
	switch {
	case n.NIC.Backend == hypervisor.Passt:
		// QEMU (7.2 and 10.0 tried) looks for the name of a socket that it is to listen
		// on where no names are known, and crashes with the guest's first packet.
		p.problem(n.NIC.Key()+".backend", "passt is started with the machine: the card is there after a restart")
	case n.NIC.User && !n.Started.Internet:
		p.problem(n.NIC.Key()+".user", "the machine was started without any way out of its sandbox, %s: with this card in its definition, or another with backend = \"slirp\"", later)
	case n.NIC.VhostUser != "" && !(&planner{m: n.StartedAs}).sharedMemory():
		p.problems = append(p.problems, hypervisor.NoSharedMemory(n.Machine, n.NIC.Key()+".vhost_user", "card", "a vhost-user peer"))
	}
}

// PlanNIC implements [hypervisor.NICPlanner].
func (QEMU) PlanNIC(n hypervisor.HotNIC) (*hypervisor.Plan, []config.Problem) {
	p := &planner{m: n.Machine}
	p.checkHotNIC(n.NIC)
	p.checkSandbox(n)
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	return hotNICPlan(n, anyPlace())
}

// hotNICPlan plans one card, for a place, as it would be planned with the
// machine, but for the boot order.
func hotNICPlan(n hypervisor.HotNIC, at hotPlace) (*hypervisor.Plan, []config.Problem) {
	p := &planner{m: n.Machine, host: n.Host, paths: n.Paths, plan: &hypervisor.Plan{}, hot: &at}
	p.nic(hypervisor.AsPlugged(n.NIC))
	return p.plan, p.problems
}

// netdevArguments reads -netdev. Descriptors are named instead of numbered.
func netdevArguments(value string) map[string]any {
	arguments := hotArguments("type", value)
	id := fmt.Sprint(arguments["id"])
	for _, key := range []string{"fd", "fds", "vhostfd", "vhostfds"} {
		text, there := arguments[key].(string)
		if !there {
			continue
		}
		var names []string
		for number := range strings.SplitSeq(text, ":") {
			i, _ := strconv.Atoi(number) // which the planner has written
			names = append(names, descriptorName(id, i-firstDescriptor))
		}
		arguments[key] = strings.Join(names, ":")
	}
	if text, there := arguments["local.str"].(string); there {
		i, _ := strconv.Atoi(text)
		arguments["local"] = map[string]any{"type": arguments["local.type"], "str": descriptorName(id, i-firstDescriptor)}
		delete(arguments, "local.type")
		delete(arguments, "local.str")
	}
	var forwards []map[string]string
	for _, part := range splitOptions(value) {
		if text, ok := strings.CutPrefix(part, "hostfwd="); ok {
			forwards = append(forwards, map[string]string{"str": text})
		}
	}
	if forwards != nil {
		arguments["hostfwd"] = forwards
	}
	return arguments
}

// descriptorName is that of the i-th descriptor of a device's backend to QEMU.
func descriptorName(backend string, i int) string { return fmt.Sprintf("%s-%d", backend, i) }

// AttachNIC implements [hypervisor.NICHotplug].
func (c *control) AttachNIC(ctx context.Context, n hypervisor.HotNIC, files []*os.File) error {
	devices, err := c.devices(ctx)
	if err != nil {
		return err
	}
	if _, there := devices[cardID(n.NIC.Name)]; there {
		return hypervisor.ErrPlugged
	}
	at, err := c.place(ctx, n.Machine.MachineType, devices)
	if err != nil {
		return err
	}
	plan, problems := hotNICPlan(n, at)
	if len(problems) > 0 {
		return problems[0]
	}
	if len(files) != len(plan.Descriptors) {
		return fmt.Errorf("want %d descriptors for %s, got %d", len(plan.Descriptors), n.NIC.Key(), len(files))
	}
	// What an attempt that was cut off has left.
	if err := c.removeBackend(ctx, n.NIC, len(files)); err != nil {
		return err
	}
	if err := c.plugWith(ctx, netdevID(n.NIC.Name), plan, files); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return errors.Join(err, c.removeBackend(undo, n.NIC, len(files)))
	}
	if n.NIC.Link == "down" {
		return c.SetLink(ctx, n.NIC.Name, false)
	}
	return nil
}

// plugWith makes a device and what it is plugged into on the host, the backend of an
// id, which is given files.
func (c *control) plugWith(ctx context.Context, backend string, plan *hypervisor.Plan, files []*os.File) error {
	for i, f := range files {
		if err := c.runWith(ctx, f, "getfd", map[string]any{"fdname": descriptorName(backend, i)}, nil); err != nil {
			return err
		}
	}
	for _, command := range hotCommands(plan.Argv) {
		if err := c.run(ctx, command.execute, command.arguments, nil); err != nil {
			return err
		}
	}
	return nil
}

func netdevID(nic string) string { return "net-" + nic }

func peerID(nic string) string { return "peer-" + nic }

// removeBackend removes what a card that is not there was plugged into, and the
// descriptors that were meant for that, at least as many as n.
func (c *control) removeBackend(ctx context.Context, nic config.NIC, n int) error {
	id := netdevID(nic.Name)
	err := c.run(ctx, "netdev_del", map[string]any{"id": id}, nil)
	if refused, ok := errors.AsType[*Error](err); ok && refused.Class == deviceNotFound {
		err = nil
	}
	if err == nil && nic.VhostUser != "" {
		err = c.removeConnection(ctx, peerID(nic.Name))
	}
	if err != nil {
		return err
	}
	for i := range n {
		if err := c.closeDescriptor(ctx, descriptorName(id, i)); err != nil {
			return err
		}
	}
	return nil
}

// closeDescriptor closes a descriptor that was handed over and is in no use, if there
// is one of that name.
func (c *control) closeDescriptor(ctx context.Context, name string) error {
	err := c.run(ctx, "closefd", map[string]any{"fdname": name}, nil)
	if refused, ok := errors.AsType[*Error](err); ok && strings.Contains(refused.Desc, "not found") {
		return nil
	}
	return err
}

// DetachNIC implements [hypervisor.NICHotplug].
func (c *control) DetachNIC(ctx context.Context, n hypervisor.HotNIC) error {
	p := &planner{m: n.Machine}
	p.checkHotNIC(n.NIC)
	if len(p.problems) > 0 {
		return p.problems[0]
	}
	devices, err := c.devices(ctx)
	if err != nil {
		return err
	}
	if _, there := devices[cardID(n.NIC.Name)]; there {
		if err := c.unplug(ctx, cardID(n.NIC.Name)); err != nil {
			return err
		}
	}
	plan, problems := hotNICPlan(n, anyPlace())
	if len(problems) > 0 {
		return problems[0]
	}
	return c.removeBackend(ctx, n.NIC, len(plan.Descriptors))
}

// SetLink implements [hypervisor.NICHotplug].
func (c *control) SetLink(ctx context.Context, nic string, up bool) error {
	return c.run(ctx, "set_link", map[string]any{"name": cardID(nic), "up": up}, nil)
}

// PluggedNICs implements [hypervisor.NICHotplug].
func (c *control) PluggedNICs(ctx context.Context) ([]string, error) {
	return c.plugged(ctx, cardID(""))
}

// plugged are the names of the devices whose ids begin with prefix.
func (c *control) plugged(ctx context.Context, prefix string) ([]string, error) {
	devices, err := c.devices(ctx)
	var names []string
	for id := range devices {
		if name, is := strings.CutPrefix(id, prefix); is {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, err
}

package qemu

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// hotPlace is what has to be known of a running machine to plug a disk, a card or a
// share into it.
type hotPlace struct {
	free      []string // properties of free places for PCI devices: "bus=port3", "addr=0x12"
	scsi, usb bool     // the controllers are there
	scsiID    int      // first free place on each
	usbPort   int
	backing   []hypervisor.Layer
}

func (h *hotPlace) hasSCSI() bool { return h != nil && h.scsi }
func (h *hotPlace) hasUSB() bool  { return h != nil && h.usb }

// freePlace takes the next free place.
func (p *planner) freePlace(key string) string {
	if len(p.hot.free) == 0 {
		p.problem(key, "no place is free to plug it in; a restart makes new ones")
		return ""
	}
	place := p.hot.free[0]
	p.hot.free = p.hot.free[1:]
	return place
}

// backingNodes are those of the files that a disk stands on, of one that is
// plugged in; the name of the uppermost, "" where there are none. Of a disk that
// is there at the start, QEMU finds them by itself.
func (p *planner) backingNodes(d config.Disk, c diskCache) string {
	if p.hot == nil {
		return ""
	}
	d.Readonly = true
	upper := ""
	for i, l := range slices.Backward(p.hot.backing) {
		role := "base"
		if i > 0 {
			role = fmt.Sprintf("b%d", i+1)
		}
		d.Format = l.Format
		p.blockNodes(role+"-file", role, d, l.Path, c, upper)
		upper = nodeName(role, d.Name)
	}
	return upper
}

// hotBuses are those to which a disk can be plugged in while the machine runs.
var hotBuses = []string{"virtio", "scsi", "usb", "nvme"}

// checkHot refuses what cannot be plugged in or out.
func (p *planner) checkHot(d config.Disk) {
	switch {
	case p.microvm():
		p.problem("machine", `"microvm" takes no devices while it runs: its disks change at a restart`)
	case !slices.Contains(hotBuses, d.Bus):
		p.problem(d.Key()+".bus", "%q takes no disks while the machine runs: want %s, or a restart", d.Bus, strings.Join(hotBuses, ", "))
	}
}

// hotPlan plans one disk, for a place, as it would be planned with the machine.
func hotPlan(d hypervisor.HotDisk, at hotPlace) (*hypervisor.Plan, []config.Problem) {
	at.backing = d.Backing
	// Without a place in the boot order, which cannot be changed.
	p := &planner{m: d.Machine, host: d.Host, paths: d.Paths, plan: &hypervisor.Plan{}, hot: &at, scsi: at.scsiID, usb: max(0, at.usbPort-1)}
	p.disk(d.Disk)
	p.plan.Argv = QEMU{}.WithIO(p.plan.Argv, d.IO)
	return p.plan, p.problems
}

// anyPlace is enough for any disk.
func anyPlace() hotPlace { return hotPlace{free: []string{"", ""}} }

// PlanDisk implements [hypervisor.DiskPlanner].
func (QEMU) PlanDisk(d hypervisor.HotDisk) (*hypervisor.DiskPlan, []config.Problem) {
	p := &planner{m: d.Machine}
	if d.Disk.Media != "cdrom" {
		p.checkHot(d.Disk)
	}
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	plan, problems := hotPlan(d, anyPlace())
	if len(problems) > 0 {
		return nil, problems
	}
	out := &hypervisor.DiskPlan{Files: plan.Files, New: plan.New, Disks: plan.Disks}
	for _, n := range nodesOf(plan.Argv) {
		if n.Filename != "" {
			out.Open = append(out.Open, hypervisor.Open{Path: n.Filename, Write: !n.ReadOnly, Direct: n.Cache.Direct})
		}
	}
	return out, nil
}

// nodesOf are the block nodes of a command line.
func nodesOf(argv []string) []blockNode {
	var nodes []blockNode
	for i := 0; i+1 < len(argv); i += 2 {
		var n blockNode
		if argv[i] == "-blockdev" && json.Unmarshal([]byte(argv[i+1]), &n) == nil {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// topOf is the node that the device of a planned disk reads.
func topOf(argv []string) string {
	nodes := nodesOf(argv)
	return nodes[len(nodes)-1].Name
}

// hotCommand is a QMP command that makes a part of a disk, card or share.
type hotCommand struct {
	execute   string // "object-add", "blockdev-add", "netdev_add", "chardev-add" or "device_add"
	id        string // of what it makes
	arguments any
}

// hotCommands are the QMP commands that do what options of the command line do.
func hotCommands(argv []string) []hotCommand {
	var out []hotCommand
	for i := 0; i+1 < len(argv); i += 2 {
		option, value := argv[i], argv[i+1]
		switch option {
		case "-blockdev":
			for _, n := range nodesOf(argv[i : i+2]) {
				out = append(out, hotCommand{"blockdev-add", n.Name, n})
			}
		case "-object":
			arguments := objectArguments(value)
			out = append(out, hotCommand{"object-add", fmt.Sprint(arguments["id"]), arguments})
		case "-netdev":
			arguments := netdevArguments(value)
			out = append(out, hotCommand{"netdev_add", fmt.Sprint(arguments["id"]), arguments})
		case "-chardev":
			arguments := chardevArguments(value)
			out = append(out, hotCommand{"chardev-add", fmt.Sprint(arguments["id"]), arguments})
		case "-device":
			arguments := hotArguments("driver", value)
			out = append(out, hotCommand{"device_add", fmt.Sprint(arguments["id"]), arguments})
		}
	}
	return out
}

// objectArguments reads -object, in either syntax.
func objectArguments(value string) map[string]any {
	arguments := map[string]any{}
	if json.Unmarshal([]byte(value), &arguments) == nil {
		return arguments
	}
	return hotArguments("qom-type", value)
}

// hotNumbers and hotSwitches are the properties of devices that are no text: QMP
// asks for the type, which the command line does not.
var (
	hotNumbers  = []string{"num-queues", "num_queues", "scsi-id", "channel", "lun", "p2", "p3", "bootindex", "vectors", "host_mtu", "queues"}
	hotSwitches = []string{"share-rw", "mq", "vhost"}
)

// hotArguments reads what options has written: the first word is the value of
// head.
func hotArguments(head, value string) map[string]any {
	arguments := map[string]any{}
	for i, part := range splitOptions(value) {
		name, text, _ := strings.Cut(part, "=")
		switch {
		case i == 0:
			arguments[head] = part
		case slices.Contains(hotNumbers, name):
			arguments[name] = json.Number(text)
		case slices.Contains(hotSwitches, name):
			arguments[name] = text == "on"
		default:
			arguments[name] = text
		}
	}
	return arguments
}

// splitOptions takes apart what options has joined.
func splitOptions(value string) []string {
	var parts []string
	for part := range strings.SplitSeq(strings.ReplaceAll(value, ",,", "\x00"), ",") {
		parts = append(parts, strings.ReplaceAll(part, "\x00", ","))
	}
	return parts
}

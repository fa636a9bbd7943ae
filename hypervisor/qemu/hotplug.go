package qemu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
)

var _ hypervisor.DiskHotplug = (*control)(nil)

// undoTime bounds the taking back of what was done, whatever its context says.
const undoTime = 30 * time.Second

func deviceID(disk string) string { return "disk-" + disk }

// deviceNotFound is the class of errors about what is not there.
const deviceNotFound = "DeviceNotFound"

// objects are the children of an object of QEMU's, by name, and their types.
func (c *control) objects(ctx context.Context, path string) (map[string]string, error) {
	var list []struct{ Name, Type string }
	if err := c.run(ctx, "qom-list", map[string]any{"path": path}, &list); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, o := range list {
		kind, _, _ := strings.Cut(o.Type, "<")
		if kind == "child" || kind == "link" {
			out[o.Name] = strings.TrimSuffix(strings.TrimPrefix(o.Type, kind+"<"), ">")
		}
	}
	return out, nil
}

// devices are those that have an id, and their drivers.
func (c *control) devices(ctx context.Context) (map[string]string, error) {
	return c.objects(ctx, "/machine/peripheral")
}

// place finds out where a disk can be plugged in.
func (c *control) place(ctx context.Context, board string, devices map[string]string) (hotPlace, error) {
	var at hotPlace
	_, at.scsi = devices["scsi"]
	_, at.usb = devices["usb"]
	var scsi, usb []int
	for id, driver := range devices {
		var property string
		switch {
		case strings.HasPrefix(driver, "scsi-"):
			property = "scsi-id"
		case strings.HasPrefix(driver, "usb-"):
			property = "port"
		default:
			continue
		}
		n, err := c.number(ctx, "/machine/peripheral/"+id, property)
		if err != nil {
			return at, err
		}
		if property == "port" {
			usb = append(usb, n)
		} else {
			scsi = append(scsi, n)
		}
	}
	at.scsiID, at.usbPort = firstFree(0, scsi), firstFree(1, usb)
	var err error
	if board == "q35" {
		at.free, err = c.freePorts(ctx, devices)
	} else {
		at.free, err = c.freeSlots(ctx)
	}
	return at, err
}

func firstFree(from int, taken []int) int {
	for slices.Contains(taken, from) {
		from++
	}
	return from
}

// number reads a property that is a number, or the text of one.
func (c *control) number(ctx context.Context, path, property string) (int, error) {
	var v any
	if err := c.run(ctx, "qom-get", map[string]any{"path": path, "property": property}, &v); err != nil {
		return 0, err
	}
	text := fmt.Sprint(v)
	if text == "" {
		return 0, nil // chosen by QEMU itself, of something that we did not plug in
	}
	return strconv.Atoi(text)
}

// freePorts are the PCIe root ports that nothing is in, as properties, lowest
// first.
func (c *control) freePorts(ctx context.Context, devices map[string]string) ([]string, error) {
	var ports []string
	for id, driver := range devices {
		if driver == "pcie-root-port" {
			ports = append(ports, id)
		}
	}
	slices.SortFunc(ports, func(a, b string) int { // port2 before port10
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	var free []string
	for _, port := range ports {
		in, err := c.objects(ctx, "/machine/peripheral/"+port+"/"+port)
		if err != nil {
			return nil, err
		}
		empty := true
		for name := range in {
			empty = empty && !strings.HasPrefix(name, "child[")
		}
		if empty {
			free = append(free, "bus="+port)
		}
		if len(free) == 2 { // a controller, and what is plugged into it
			break
		}
	}
	return free, nil
}

// freeSlots are the slots of pc's root bus that nothing is in, of those that are
// not kept for something, as properties.
func (c *control) freeSlots(ctx context.Context) ([]string, error) {
	var buses []struct {
		Bus     int
		Devices []struct{ Slot int }
	}
	if err := c.run(ctx, "query-pci", nil, &buses); err != nil {
		return nil, err
	}
	taken := map[int]bool{}
	for _, bus := range buses {
		for _, d := range bus.Devices {
			if bus.Bus == 0 {
				taken[d.Slot] = true
			}
		}
	}
	var free []string
	for slot := slotCard; slot <= slotEnd+1; slot++ {
		if !taken[slot] {
			free = append(free, fmt.Sprintf("addr=0x%x", slot))
		}
	}
	return free, nil
}

// AttachDisk implements [hypervisor.DiskHotplug].
func (c *control) AttachDisk(ctx context.Context, d hypervisor.HotDisk, files map[string][]*os.File) error {
	devices, err := c.devices(ctx)
	if err != nil {
		return err
	}
	if _, there := devices[deviceID(d.Disk.Name)]; there {
		return hypervisor.ErrPlugged
	}
	at, err := c.place(ctx, d.Machine.MachineType, devices)
	if err != nil {
		return err
	}
	plan, problems := hotPlan(d, at)
	if len(problems) > 0 {
		return problems[0]
	}
	commands := hotCommands(plan.Argv)
	// What an attempt that was cut off has left.
	if err := c.removeParts(ctx, commands); err != nil {
		return err
	}
	return c.makeParts(ctx, commands, files)
}

// makeParts runs commands; where one fails, what they have made is removed
// again, controllers apart.
func (c *control) makeParts(ctx context.Context, commands []hotCommand, files map[string][]*os.File) error {
	for i, command := range commands {
		err := c.makePart(ctx, command, files)
		if err == nil {
			continue
		}
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return errors.Join(err, c.removeParts(undo, commands[:i+1]))
	}
	return nil
}

func (c *control) makePart(ctx context.Context, command hotCommand, files map[string][]*os.File) error {
	if n, ok := command.arguments.(blockNode); ok && n.Filename != "" {
		set, err := c.passFiles(ctx, n.Name, files[n.Filename])
		if err != nil {
			return err
		}
		n.Filename = fmt.Sprintf("/dev/fdset/%d", set)
		command.arguments = n
	}
	return c.run(ctx, command.execute, command.arguments, nil)
}

// passFiles hands over one file, open in several modes, as the set of a node.
// QEMU takes from it what the node is to do; it has to be there for as long as
// the node, which may be opened anew for something else.
func (c *control) passFiles(ctx context.Context, node string, files []*os.File) (set int, err error) {
	if len(files) == 0 {
		return 0, fmt.Errorf("the file of %s is not open", node)
	}
	arguments := map[string]any{"opaque": node}
	for _, f := range files {
		var answer struct {
			Set int `json:"fdset-id"`
		}
		if err := c.runWith(ctx, f, "add-fd", arguments, &answer); err != nil {
			return 0, err
		}
		set = answer.Set
		arguments["fdset-id"] = set
	}
	return set, nil
}

// removeParts removes what commands make, but for devices, last first. What is
// not there is left out.
func (c *control) removeParts(ctx context.Context, commands []hotCommand) error {
	objects, err := c.objects(ctx, "/objects")
	if err != nil {
		return err
	}
	nodes, err := c.nodes(ctx)
	if err != nil {
		return err
	}
	for _, command := range slices.Backward(commands) {
		_, object := objects[command.id]
		switch {
		case command.execute == "blockdev-add" && nodes[command.id]:
			err = c.removeNode(ctx, command.id)
		case command.execute == "object-add" && object:
			err = c.run(ctx, "object-del", map[string]any{"id": command.id}, nil)
		}
		if err != nil {
			return err
		}
	}
	return c.removeFiles(ctx, commands)
}

// nodes are the names of all block nodes.
func (c *control) nodes(ctx context.Context) (map[string]bool, error) {
	var list []struct {
		Name string `json:"node-name"`
	}
	if err := c.run(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &list); err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, n := range list {
		names[n.Name] = true
	}
	return names, nil
}

// A device that is gone may have its node for a moment longer.
const (
	nodeTime = 10 * time.Second
	nodeStep = 20 * time.Millisecond
)

func (c *control) removeNode(ctx context.Context, node string) error {
	for begun := time.Now(); ; {
		err := c.run(ctx, "blockdev-del", map[string]any{"node-name": node}, nil)
		refused, ok := errors.AsType[*Error](err)
		if !ok || !strings.Contains(refused.Desc, "in use") || time.Since(begun) > nodeTime || ctx.Err() != nil {
			return err
		}
		time.Sleep(nodeStep)
	}
}

// removeFiles closes the sets of files of the nodes that commands make.
func (c *control) removeFiles(ctx context.Context, commands []hotCommand) error {
	var sets []struct {
		ID    int                       `json:"fdset-id"`
		Files []struct{ Opaque string } `json:"fds"`
	}
	if err := c.run(ctx, "query-fdsets", nil, &sets); err != nil {
		return err
	}
	for _, set := range sets {
		ours := slices.ContainsFunc(commands, func(command hotCommand) bool {
			return command.execute == "blockdev-add" && len(set.Files) > 0 && set.Files[0].Opaque == command.id
		})
		if ours {
			if err := c.run(ctx, "remove-fd", map[string]any{"fdset-id": set.ID}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// DetachDisk implements [hypervisor.DiskHotplug].
func (c *control) DetachDisk(ctx context.Context, d hypervisor.HotDisk) error {
	p := &planner{m: d.Machine}
	p.checkHot(d.Disk)
	if len(p.problems) > 0 {
		return p.problems[0]
	}
	devices, err := c.devices(ctx)
	if err != nil {
		return err
	}
	// The bridge of a CD-ROM on USB takes the drive with it.
	for _, id := range []string{"bot-" + d.Disk.Name, deviceID(d.Disk.Name)} {
		if _, there := devices[id]; !there {
			continue
		}
		if err := c.unplug(ctx, id); err != nil {
			return err
		}
		break
	}
	return c.removeDisk(ctx, d)
}

// removeDisk removes the nodes and objects of a disk whose device is gone.
func (c *control) removeDisk(ctx context.Context, d hypervisor.HotDisk) error {
	plan, problems := hotPlan(d, anyPlace())
	if len(problems) > 0 {
		return problems[0]
	}
	return c.removeParts(ctx, hotCommands(plan.Argv))
}

// unplug removes a device. The guest has to agree, and may take its time.
func (c *control) unplug(ctx context.Context, id string) error {
	// What has come by now may be of an earlier device of that name: QEMU sends what
	// was meant for a client that has gone to whoever comes next.
	c.seen = nil
	err := c.run(ctx, "device_del", map[string]any{"id": id}, nil)
	refused, ok := errors.AsType[*Error](err)
	switch {
	case ok && refused.Class == deviceNotFound:
		return nil // it has just gone
	case ok && strings.Contains(refused.Desc, "in the process of unplug"):
		// asked before
	case err != nil:
		return err
	}
	event, err := c.wait(ctx, func(m message) bool {
		var data struct{ Device string }
		about := m.Event == "DEVICE_DELETED" || m.Event == "DEVICE_UNPLUG_GUEST_ERROR"
		return about && json.Unmarshal(m.Data, &data) == nil && data.Device == id
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return hypervisor.ErrNotReleased
	case err != nil:
		return err
	case event.Event == "DEVICE_UNPLUG_GUEST_ERROR":
		return hypervisor.ErrReleaseRefused
	}
	return nil
}

// ResizeDisk implements [hypervisor.DiskHotplug].
func (c *control) ResizeDisk(ctx context.Context, d hypervisor.HotDisk, bytes int64) error {
	if d.Disk.Bus == "nvme" || d.Disk.Bus == "floppy" { // whose devices forbid it
		return hypervisor.ErrFixedSize
	}
	plan, problems := hotPlan(d, anyPlace())
	if len(problems) > 0 {
		return problems[0]
	}
	return c.run(ctx, "block_resize", map[string]any{"node-name": topOf(plan.Argv), "size": bytes}, nil)
}

// EjectMedium implements [hypervisor.DiskHotplug].
func (c *control) EjectMedium(ctx context.Context, d hypervisor.HotDisk, force bool) error {
	id := deviceID(d.Disk.Name)
	if err := c.openTray(ctx, id, force); err != nil {
		return err
	}
	if err := c.inOpenTray(ctx, id, force, "blockdev-remove-medium", map[string]any{"id": id}); err != nil {
		return err
	}
	return c.removeDisk(ctx, d)
}

// openTray opens a drive. A guest that has locked it is asked.
func (c *control) openTray(ctx context.Context, id string, force bool) error {
	err := c.run(ctx, "blockdev-open-tray", map[string]any{"id": id, "force": force}, nil)
	refused, ok := errors.AsType[*Error](err)
	if !ok || !strings.Contains(refused.Desc, "wait for tray to open") {
		return err
	}
	_, err = c.wait(ctx, func(m message) bool {
		var data struct {
			ID   string
			Open bool `json:"tray-open"`
		}
		return m.Event == "DEVICE_TRAY_MOVED" && json.Unmarshal(m.Data, &data) == nil && path.Base(data.ID) == id && data.Open
	})
	if err != nil && ctx.Err() != nil {
		return hypervisor.ErrNotReleased
	}
	return err
}

// InsertMedium implements [hypervisor.DiskHotplug].
func (c *control) InsertMedium(ctx context.Context, d hypervisor.HotDisk, files map[string][]*os.File, force bool) error {
	if err := c.EjectMedium(ctx, d, force); err != nil {
		return err
	}
	plan, problems := hotPlan(d, anyPlace())
	if len(problems) > 0 {
		return problems[0]
	}
	commands := slices.DeleteFunc(hotCommands(plan.Argv), func(h hotCommand) bool { return h.execute == "device_add" })
	if err := c.makeParts(ctx, commands, files); err != nil {
		return err
	}
	id := deviceID(d.Disk.Name)
	if err := c.inOpenTray(ctx, id, true, "blockdev-insert-medium", map[string]any{"id": id, "node-name": topOf(plan.Argv)}); err != nil {
		return errors.Join(err, c.removeParts(context.WithoutCancel(ctx), commands))
	}
	return c.run(ctx, "blockdev-close-tray", map[string]any{"id": id}, nil)
}

// inOpenTray runs what needs a drive that is open. Whatever resets the drive, a
// guest that is just starting, closes its tray again.
func (c *control) inOpenTray(ctx context.Context, id string, force bool, command string, arguments map[string]any) error {
	const tries = 5
	var err error
	for range tries {
		err = c.run(ctx, command, arguments, nil)
		refused, ok := errors.AsType[*Error](err)
		if !ok || !strings.Contains(refused.Desc, "not open") {
			return err
		}
		if err := c.openTray(ctx, id, force); err != nil {
			return err
		}
	}
	return err
}

// PluggedDisks implements [hypervisor.DiskHotplug].
func (c *control) PluggedDisks(ctx context.Context) (map[string]int64, error) {
	devices, err := c.devices(ctx)
	if err != nil {
		return nil, err
	}
	var blocks []struct {
		Qdev     string
		Inserted *struct {
			Image struct {
				Size int64 `json:"virtual-size"`
			}
		}
	}
	if err := c.run(ctx, "query-block", nil, &blocks); err != nil {
		return nil, err
	}
	disks := map[string]int64{}
	for id := range devices {
		name, isDisk := strings.CutPrefix(id, "disk-")
		if !isDisk {
			continue
		}
		disks[name] = 0
		for _, b := range blocks {
			// virtio-blk names itself by the path of its backend.
			if b.Inserted != nil && slices.Contains(strings.Split(b.Qdev, "/"), id) {
				disks[name] = b.Inserted.Image.Size
			}
		}
	}
	return disks, nil
}

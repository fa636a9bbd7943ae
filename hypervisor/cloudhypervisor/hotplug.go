package cloudhypervisor

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
	_ hypervisor.DiskPlanner  = CloudHypervisor{}
	_ hypervisor.NICPlanner   = CloudHypervisor{}
	_ hypervisor.SharePlanner = CloudHypervisor{}
	_ hypervisor.DiskHotplug  = control{}
	_ hypervisor.NICHotplug   = control{}
	_ hypervisor.ShareHotplug = control{}
)

// A guest may take its time to let go of a device. Each look whether it has costs
// the log a line: the time between two grows.
const (
	releaseStep    = 50 * time.Millisecond
	maxReleaseStep = 2 * time.Second
)

// PlanDisk implements [hypervisor.DiskPlanner]. cloud-hypervisor opens files by
// their paths alone: in its state directory, which its sandbox shows it, and where it
// is shown what lies elsewhere.
func (CloudHypervisor) PlanDisk(d hypervisor.HotDisk) (*hypervisor.DiskPlan, []config.Problem) {
	p := hotPlanner(d.Machine, d.Host, d.Paths)
	p.disk(d.Disk)
	if d.Disk.Path != "" && d.Disk.Ephemeral {
		p.problem(d.Disk.Key()+".ephemeral", "a copy of %s for each run of the machine is made at its start: it has it by a restart alone", d.Disk.Path)
	} else if d.Disk.Path != "" && d.Paths.User {
		p.unseen(d.Disk.Key()+".path", d.Disk.Path)
	}
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	plan := &hypervisor.DiskPlan{Files: p.plan.Files, New: p.plan.New, Disks: p.plan.Disks}
	for _, f := range p.plan.Disks {
		plan.Open = append(plan.Open, hypervisor.Open{Path: f.Path, Write: !d.Disk.Readonly})
	}
	return plan, nil
}

// hotPlanner plans devices of a machine that runs.
func hotPlanner(m *config.Machine, host hypervisor.Host, paths config.Paths) *planner {
	return &planner{m: m, host: host, paths: paths, hot: true, plan: &hypervisor.Plan{}}
}

// shown is where the machine sees a file for a device, one that runs elsewhere than
// one that starts.
func (p *planner) shown(f *hypervisor.File, device string) string {
	if !p.hot || p.paths.User {
		return f.Path
	}
	f.At = p.paths.ShownFile(p.m.Name, device)
	return f.At
}

// unseen refuses a user's own machine what lies elsewhere than in its state directory:
// to show it to its sandbox takes root.
func (p *planner) unseen(key, path string) {
	p.problem(key, "a user's own machine sees no more of the host than at its start: it has %s by a restart alone", path)
}

// PlanNIC implements [hypervisor.NICPlanner].
func (CloudHypervisor) PlanNIC(n hypervisor.HotNIC) (*hypervisor.Plan, []config.Problem) {
	p := hotPlanner(n.Machine, n.Host, n.Paths)
	key := n.NIC.Key() + ".vhost_user"
	switch {
	case n.NIC.VhostUser != "" && n.Paths.User:
		p.unseen(key, n.NIC.VhostUser)
		return nil, p.problems
	case n.NIC.VhostUser != "" && !(&planner{m: n.StartedAs}).sharedMemory():
		return nil, []config.Problem{hypervisor.NoSharedMemory(n.Machine, key, "card", "a vhost-user peer")}
	}
	p.nic(n.NIC)
	return p.plan, p.problems
}

// devices are the names of those that the guest has, or has not let go of; wanted
// says of each whether it is there to stay.
func (c control) devices(ctx context.Context) (wanted map[string]bool, err error) {
	var is struct {
		Config plugged                   `json:"config"`
		Tree   map[string]map[string]any `json:"device_tree"`
	}
	if err := c.get(ctx, "vm.info", &is); err != nil {
		return nil, err
	}
	stay := is.Config.ids()
	wanted = map[string]bool{}
	for id := range is.Tree {
		wanted[id] = stay[id]
	}
	return wanted, nil
}

// atLeast refuses a version of cloud-hypervisor that is older than what something
// takes.
func (c control) atLeast(ctx context.Context, least version, what string) error {
	format, err := c.StateFormat(ctx)
	if err != nil {
		return err
	}
	v, err := parseVersion(format.Version)
	if err == nil && v.before(least) {
		err = fmt.Errorf("cloud-hypervisor %v %s: want %v or newer", v, what, least)
	}
	return err
}

// AttachDisk implements [hypervisor.DiskHotplug]. It is there whole, or not at all.
func (c control) AttachDisk(ctx context.Context, d hypervisor.HotDisk, _ map[string][]*os.File) error {
	if err := c.atLeast(ctx, namesType, "guesses the format of a disk by what its guest has written to it"); err != nil {
		return err
	}
	p := hotPlanner(d.Machine, d.Host, d.Paths)
	p.disk(d.Disk)
	if len(p.problems) > 0 {
		return p.problems[0]
	}
	argv := CloudHypervisor{}.WithIO(append([]string{"--disk"}, p.disks...), d.IO)
	return c.attach(ctx, "vm.add-disk", diskID(d.Disk.Name), diskConfig(argv[1]), nil)
}

// attach plugs a device in.
func (c control) attach(ctx context.Context, request, id string, config map[string]any, files []*os.File) error {
	devices, err := c.devices(ctx)
	if err != nil {
		return err
	}
	if _, there := devices[id]; there {
		return hypervisor.ErrPlugged
	}
	return c.request(ctx, call{method: "PUT", path: request, body: config, files: files}, nil)
}

// diskConfig is what an argument of --disk says, as requests say it (DiskConfig).
func diskConfig(arg string) map[string]any {
	c := map[string]any{}
	limiter := map[string]map[string]int64{}
	buckets := map[string]string{"ops": "ops", "bw": "bandwidth"}
	for _, part := range split(arg) {
		key, value, _ := strings.Cut(part, "=")
		value = unquote(value)
		bucket, field, isLimit := strings.Cut(key, "_")
		number, err := strconv.ParseInt(value, 10, 64)
		switch {
		case buckets[bucket] != "" && isLimit && err == nil:
			name := buckets[bucket]
			if limiter[name] == nil {
				limiter[name] = map[string]int64{}
			}
			limiter[name][field] = number
		case key == "image_type":
			c[key] = map[string]string{"raw": "Raw", "qcow2": "Qcow2"}[value]
		case key == "num_queues":
			c[key] = number
		case key == "path", key == "serial", key == "id":
			c[key] = value
		default:
			c[strings.TrimPrefix(key, "_")] = value == "on"
		}
	}
	if len(limiter) > 0 {
		c["rate_limiter_config"] = limiter
	}
	return c
}

// DetachDisk implements [hypervisor.DiskHotplug].
func (c control) DetachDisk(ctx context.Context, d hypervisor.HotDisk) error {
	return c.detach(ctx, diskID(d.Disk.Name))
}

// detach asks the guest to let go of a device, once, and waits until it has.
func (c control) detach(ctx context.Context, id string) error {
	requests := context.WithoutCancel(ctx)
	for step := releaseStep; ; step = min(2*step, maxReleaseStep) {
		devices, err := c.devices(requests)
		if err != nil {
			return err
		}
		wanted, there := devices[id]
		switch {
		case !there:
			return nil
		case wanted:
			if err := c.put(requests, "vm.remove-device", map[string]string{"id": id}, nil); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return hypervisor.ErrNotReleased
		case <-time.After(step):
		}
	}
}

// ResizeDisk implements [hypervisor.DiskHotplug].
func (c control) ResizeDisk(ctx context.Context, d hypervisor.HotDisk, bytes int64) error {
	if err := c.atLeast(ctx, resizesDisks, "cannot grow a disk while the machine runs"); err != nil {
		return err
	}
	err := c.put(ctx, "vm.resize-disk", map[string]any{"id": diskID(d.Disk.Name), "desired_size": bytes}, nil)
	var refused *Error
	if errors.As(err, &refused) {
		if why := c.atLeast(ctx, resizesAny, "grows the disks alone that it reads by io_uring"); why != nil {
			return fmt.Errorf("%w (%w)", err, why)
		}
	}
	return err
}

// errNoMedia is for what only a CD-ROM drive has.
var errNoMedia = errors.New("cloud-hypervisor has no drives with media")

func (c control) InsertMedium(context.Context, hypervisor.HotDisk, map[string][]*os.File, bool) error {
	return errNoMedia
}

func (c control) EjectMedium(context.Context, hypervisor.HotDisk, bool) error { return errNoMedia }

// PluggedDisks implements [hypervisor.DiskHotplug]. cloud-hypervisor does not tell
// their sizes.
func (c control) PluggedDisks(ctx context.Context) (map[string]int64, error) {
	devices, err := c.devices(ctx)
	disks := map[string]int64{}
	for id := range devices {
		if name, ok := strings.CutPrefix(id, diskID("")); ok {
			disks[name] = 0
		}
	}
	return disks, err
}

// AttachNIC implements [hypervisor.NICHotplug].
func (c control) AttachNIC(ctx context.Context, n hypervisor.HotNIC, files []*os.File) error {
	if err := c.atLeast(ctx, hidesCards, "finds the interfaces of cards by their names, which the sandbox hides"); err != nil {
		return err
	}
	p := hotPlanner(n.Machine, n.Host, n.Paths)
	p.nic(n.NIC)
	if len(p.problems) > 0 {
		return p.problems[0]
	}
	card := map[string]any{"id": nicID(n.NIC.Name), "mac": string(n.NIC.MAC), "num_queues": 2 * n.NIC.Queues}
	if socket, ok := option(p.cards[0], "socket"); ok {
		card["vhost_user"], card["vhost_socket"] = true, socket
	}
	return c.attach(ctx, "vm.add-net", nicID(n.NIC.Name), card, files)
}

// DetachNIC implements [hypervisor.NICHotplug].
func (c control) DetachNIC(ctx context.Context, n hypervisor.HotNIC) error {
	return c.detach(ctx, nicID(n.NIC.Name))
}

// SetLink implements [hypervisor.NICHotplug]: cables are always plugged in.
func (c control) SetLink(_ context.Context, nic string, up bool) error {
	if !up {
		return fmt.Errorf("nic.%s.link: \"down\" is %s, whose cards are always plugged in", nic, notSupported)
	}
	return nil
}

// PluggedNICs implements [hypervisor.NICHotplug].
func (c control) PluggedNICs(ctx context.Context) ([]string, error) { return c.named(ctx, nicID("")) }

// named are the names of the devices whose ids begin with prefix.
func (c control) named(ctx context.Context, prefix string) (names []string, err error) {
	devices, err := c.devices(ctx)
	for id := range devices {
		if name, ok := strings.CutPrefix(id, prefix); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, err
}

// PlanShare implements [hypervisor.SharePlanner].
func (CloudHypervisor) PlanShare(s hypervisor.HotShare) (*hypervisor.Plan, []config.Problem) {
	if !(&planner{m: s.Started}).sharedMemory() {
		return nil, []config.Problem{hypervisor.NoSharedMemory(s.Machine, s.Share.Key(), "share", "virtiofsd")}
	}
	p := hotPlanner(s.Machine, s.Host, s.Paths)
	p.share(s.Share)
	return p.plan, p.problems
}

// AttachShare implements [hypervisor.ShareHotplug]. cloud-hypervisor connects to the
// share's server, and waits for a minute for one that does not listen.
func (c control) AttachShare(ctx context.Context, s hypervisor.HotShare, _ []*os.File) error {
	socket := s.Paths.SidecarSocket(config.ShareUnit(s.Machine.Name, s.Share.Name))
	return c.attach(ctx, "vm.add-fs", shareID(s.Share.Name), map[string]any{
		"id": shareID(s.Share.Name), "tag": s.Share.Tag, "socket": socket, "num_queues": 1, "queue_size": shareQueue,
	}, nil)
}

// shareQueue is how many requests of the guest wait at most, as without being asked for
// on the command line (--fs queue_size).
const shareQueue = 1024

// DetachShare implements [hypervisor.ShareHotplug].
func (c control) DetachShare(ctx context.Context, s hypervisor.HotShare) error {
	return c.detach(ctx, shareID(s.Share.Name))
}

// PluggedShares implements [hypervisor.ShareHotplug].
func (c control) PluggedShares(ctx context.Context) ([]string, error) {
	return c.named(ctx, shareID(""))
}

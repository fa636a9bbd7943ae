package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/cloudinit"
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/hostdevice"
	"github.com/vmctl/vmctl/hypervisor/image"
	"github.com/vmctl/vmctl/hypervisor/throwaway"
	"github.com/vmctl/vmctl/netsetup"
	"github.com/vmctl/vmctl/units"
)

// prepare checks and makes all that the machine needs, and gives its user
// access. Where that cannot be because of the definition, or of what it names,
// it prints why and leaves it to run to refuse: systemd does not restart by the
// exit status of the main process alone.
func (a app) prepare(ctx context.Context) error {
	digest, err := parsePrepare(a.args)
	if err != nil {
		return err
	}
	a.notify("STATUS=Preparing")
	dir, err := openRuntimeDir(a.paths, a.vm)
	if err != nil {
		return err
	}
	defer dir.Close()
	err = a.prepareIn(ctx, dir, digest)
	if err == nil {
		return nil
	}
	refused, ok := errors.AsType[refusal](err)
	if !ok { // the world's fault, which may pass: fails here, and is tried again
		return errors.Join(err, dir.put(a.paths.Refused(a.vm), []byte(oneLine(err.Error())), 0o600))
	}
	a.refuse(refused.problems)
	return dir.put(a.paths.Refused(a.vm), []byte(strings.Join(refused.problems, "\n")), 0o600)
}

func parsePrepare(args []string) (digest string, err error) {
	switch {
	case len(args) == 0:
		return "", nil // by hand: whatever the definition says now
	case len(args) == 2 && args[0] == "--digest":
		return args[1], nil
	}
	return "", fmt.Errorf("want prepare NAME --digest HEX, got %q", args)
}

func (a app) prepareIn(ctx context.Context, dir runtimeDir, digest string) error {
	if err := a.checkUser(dir.uid); err != nil {
		return err
	}
	// With the host, a snapshot that was missed begins too: the start waits.
	file, unlock, err := a.awaitLock(ctx, "a start")
	if err != nil {
		return err
	}
	defer unlock()
	a.locks = []*os.File{file}
	a.notify("STATUS=Preparing")
	if err := a.mendUnfinished(ctx); err != nil {
		return err
	}
	// Of an end that nobody saw.
	if err := errors.Join(a.unplugChanges(), a.hideAll(ctx), a.endShares(ctx), removeFile(a.paths.Changes(a.vm))); err != nil {
		return err
	}
	host := hypervisor.Probe(a.paths.Root)
	record, err := a.resolve(digest, host)
	if err != nil {
		return err
	}
	if err := a.goOn(dir, &record); err != nil {
		return err
	}
	m, plan := record.Machine, record.Plan
	if err := a.endNetworks(ctx, plan); err != nil {
		return err
	}
	if problems := slices.Concat(a.checkHost(m, plan), a.checkPorts(m, host), a.checkProxies(m), a.checkShares(m), checkConsole(m)); len(problems) > 0 {
		return refuseProblems(problems)
	}
	if err := a.prepareFiles(ctx, dir, host, record); err != nil {
		return err
	}
	if err := a.makeScratch(dir, plan); err != nil {
		return err
	}
	if plan.Seed {
		if err := a.writeSeed(dir, m); err != nil {
			return err
		}
		if err := a.checkSeed(dir, record); err != nil {
			return err
		}
	}
	if err := a.writeCredentials(dir, m, plan); err != nil {
		return err
	}
	if err := a.unplugOld(m); err != nil {
		return err
	}
	// Whatever happens from here on, cleanup knows what there may be of it.
	if err := a.claim(dir, record); err != nil {
		return err
	}
	if err := a.plugIn(ctx, m, plan); err != nil {
		return err
	}
	if err := a.listenForGuest(m, plan); err != nil {
		return err
	}
	if err := a.startSidecars(ctx, dir, m, plan.Sidecars); err != nil {
		return err
	}
	for _, w := range plan.Warnings {
		a.warn("%s", w)
	}
	return a.showRecord(dir, record)
}

// prepareFiles makes the machine's own files, with the images that they begin
// with, and gives its user access to those and to the definition's.
func (a app) prepareFiles(ctx context.Context, dir runtimeDir, host hypervisor.Host, record hypervisor.Record) error {
	m, toMake := record.Machine, *record.Plan
	if record.Incoming != nil {
		toMake.New = keepEphemeral(toMake.New)
	}
	children, release, err := a.images(ctx, m, &toMake)
	if err != nil {
		return err
	}
	defer release()
	if err := access.MakeStateDir(a.paths, a.vm); err != nil {
		return err
	}
	if m.Lifecycle.RemoveOnStop {
		if err := throwaway.Mark(a.paths, a.vm); err != nil {
			return err
		}
	}
	a.sweep(ctx)
	devices, err := a.takeDevices(m, record.Plan)
	if err != nil {
		return err
	}
	if err := a.takeFiles(dir, m, append(needed(&toMake, children), devices...)); err != nil {
		return err
	}
	return a.makeFiles(ctx, m, host, toMake.New, children, dir)
}

// makeFiles makes the machine's own files; children are those that stand on
// images.
func (a app) makeFiles(ctx context.Context, m *config.Machine, host hypervisor.Host, files, children []hypervisor.NewFile, dir runtimeDir) error {
	maker := disk.Maker{QemuImg: host.Programs["qemu-img"], Locks: a.locks}
	for _, n := range files {
		for _, child := range children {
			if child.Key == n.Key {
				n = child // with the image's format
			}
		}
		if maker.QemuImg == "" && disk.NeedsQemuImg(n) {
			return refuseProblems([]config.Problem{m.Problem(n.Key, "it is made by qemu-img, which is not installed (Debian: qemu-utils)")})
		}
		if err := a.makeFile(ctx, maker, n, dir); err != nil {
			return fmt.Errorf("%s: %w", n.Key, err)
		}
	}
	return nil
}

// makeFile makes one of the machine's files; a copy of an image may take long.
func (a app) makeFile(ctx context.Context, maker disk.Maker, n hypervisor.NewFile, dir runtimeDir) error {
	work := func() error { return maker.Make(ctx, n, dir.uid, dir.gid) }
	if n.Format != disk.Raw || n.BackingFormat == "" {
		return work()
	}
	a.notify("STATUS=Copying the image " + n.Image + " to " + n.Key)
	defer a.notify("STATUS=Preparing")
	return a.patiently(work)
}

// The numbers that systemd gives to dynamic users (systemd.exec(5),
// DynamicUser=).
const minDynamicUID, maxDynamicUID = 61184, 65519

// checkUser refuses to run the machine as a user of the host that happens to
// have the name meant for it alone: systemd would take that one.
func (a app) checkUser(uid int) error {
	if a.paths.User || uid >= minDynamicUID && uid <= maxDynamicUID {
		return nil
	}
	return refusal{[]string{fmt.Sprintf("%s: want the user name %s for this machine alone, but the host has such a user (uid %d): rename one of them", a.vm, units.User(a.vm), uid)}}
}

// resolve finds the definition and the plan that digest names: what is on disk
// now, or what the machine was last started with, but nothing else, since
// systemd has a command line from the same.
func (a app) resolve(digest string, host hypervisor.Host) (hypervisor.Record, error) {
	now := time.Now()
	vm, err := config.LoadVM(a.paths, a.vm)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return hypervisor.Record{}, err
	}
	problems := vm.Problems
	if err == nil && len(problems) == 0 {
		var plan *hypervisor.Plan
		plan, problems = all.Plan(vm.Machine, host, a.paths)
		if len(problems) == 0 {
			is := hypervisor.Digest(vm.Machine, plan)
			if digest == "" || digest == is {
				return hypervisor.Record{Digest: is, Machine: vm.Machine, Plan: plan, Started: now}, nil
			}
		}
	}
	if digest == "" {
		if err != nil {
			return hypervisor.Record{}, refusal{[]string{err.Error()}}
		}
		return hypervisor.Record{}, refuseProblems(problems)
	}
	last, err := readRecord(a.paths, a.vm)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.warn("the definition of the last start: %v", err)
	}
	if err == nil && last.Digest == digest {
		a.warn("the definition has changed since systemd read it: starting with what systemd has; systemctl daemon-reload makes the change known")
		last.Started = now
		last.Plan.Credentials = last.Machine.Credentials // which no plan is written with
		return last, nil
	}
	return hypervisor.Record{}, refusal{[]string{fmt.Sprintf("%s: the definition has changed since systemd read it: run systemctl daemon-reload, then start again", a.vm)}}
}

func readRecord(paths config.Paths, vm string) (hypervisor.Record, error) {
	var r hypervisor.Record
	b, err := os.ReadFile(paths.Record(vm))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", paths.Record(vm), err)
	}
	if r.Machine == nil || r.Plan == nil {
		return r, fmt.Errorf("%s: no machine or no plan in it", paths.Record(vm))
	}
	return r, nil
}

func refuseProblems(problems []config.Problem) error {
	var lines []string
	config.SortProblems(problems)
	for _, p := range problems {
		lines = append(lines, p.Error())
	}
	return refusal{lines}
}

// takeFiles gives the machine's user access to the files of the definition.
func (a app) takeFiles(dir runtimeDir, m *config.Machine, files []hypervisor.File) error {
	user := access.User{UID: uint32(dir.uid), GID: uint32(dir.gid)}
	checkWritten := a.writtenCheck(m)
	inspect := func(f hypervisor.File, data *os.File) error {
		if !f.Disk || f.Format == "" { // a stored image was looked at when it was stored
			return nil
		}
		if err := checkWritten(f, data); err != nil {
			return err
		}
		backing, err := checkImage(f, data, user)
		if name := (image.Store{Paths: a.paths}).NameOf(backing); err == nil && name != "" && !a.paths.User {
			// Its sandbox hides the store but for what the definition names.
			err = fmt.Errorf("%s stands on the stored image %s, which the machine sees by its name alone: want image = %q for a disk that does, or a file that is whole", f.Path, name, name)
		}
		return err
	}
	refusals, err := access.Take(a.paths, a.vm, user, files, inspect)
	if err != nil {
		return fmt.Errorf("give the machine access to its files: %w", err)
	}
	return refuseAll(m, refusals)
}

// takeDevices takes devices of the host for the machine. Access to their nodes is
// given with that to its files.
func (a app) takeDevices(m *config.Machine, plan *hypervisor.Plan) ([]hypervisor.File, error) {
	files, refusals, err := hostdevice.New(a.paths).Take(a.vm, plan)
	if err != nil {
		return nil, fmt.Errorf("take devices of the host: %w", err)
	}
	return files, refuseAll(m, refusals)
}

// refuseAll is nil where there are no refusals.
func refuseAll(m *config.Machine, refusals []access.Refusal) error {
	var problems []config.Problem
	for _, r := range refusals {
		problems = append(problems, m.Problem(r.Key, "%s", r.Text))
	}
	if len(problems) > 0 {
		return refuseProblems(problems)
	}
	return nil
}

// writtenCheck refuses to have files written to that are stored images, or that
// disks stand on: those of other machines, and the other ones of m.
func (a app) writtenCheck(m *config.Machine) func(f hypervisor.File, data *os.File) error {
	store := image.Store{Paths: a.paths}
	bases := sync.OnceValues(store.Bases) // most machines write to no file but their own
	return func(f hypervisor.File, data *os.File) error {
		if !f.Write {
			return nil
		}
		if name := store.NameOf(f.Path); name != "" {
			return image.WrittenError(f.Path, name)
		}
		info, err := data.Stat()
		if err != nil {
			return err
		}
		b, err := bases()
		if err != nil {
			return err
		}
		return b.Refuse(m, info, f.Path)
	}
}

// checkImage refuses an image that is not of the format that the definition
// says, or that stands on a file to which the machine has no access: an image
// may come from anywhere, so what it names is given to nobody. It returns that
// file, "" for none.
func checkImage(f hypervisor.File, data *os.File, user access.User) (backing string, err error) {
	if err := disk.Check(data, f.Format); err != nil || f.Format != disk.QCOW2 {
		return "", err
	}
	h, err := disk.ReadHeader(data)
	if err != nil {
		return "", err
	}
	if backing, err = disk.Backing(f.Path, h); err != nil || backing == "" {
		return "", err
	}
	if err := access.MayRead(backing, user); err != nil {
		return "", fmt.Errorf("%s stands on the image %s: %w", f.Path, backing, err)
	}
	return backing, nil
}

// checkHost says what the host lacks that the plan counts on.
func (a app) checkHost(m *config.Machine, plan *hypervisor.Plan) []config.Problem {
	var problems []config.Problem
	for _, node := range plan.Devices {
		err := checkNode(a.paths.Root + node)
		switch {
		case err == nil:
		case node != hypervisor.KVM:
			problems = append(problems, m.Problem(nodeKey(node), "%s: %v", node, err))
		case plan.NeedsKVM: // else the hypervisor emulates
			problems = append(problems, hypervisor.NoKVM(m, err.Error()))
		}
	}
	if size := plan.HugepageSize; size > 0 {
		need := (int64(m.Memory) + size - 1) / size
		if free := freeHugepages(size); free < need {
			problems = append(problems, m.Problem("memory_options.hugepages",
				"want %d free pages of %s, the host has %d: write the number to %s", need, config.Size(size), free, hugepagesFile(size, "nr_hugepages")))
		}
	}
	return problems
}

// checkPorts says which ports of the host the machine cannot have, because
// somebody listens there or they are root's.
func (a app) checkPorts(m *config.Machine, host hypervisor.Host) []config.Problem {
	if !slices.ContainsFunc(m.NICs, func(n config.NIC) bool { return len(n.Forward) > 0 }) {
		return nil
	}
	listeners, err := netsetup.Listeners(a.paths.Root)
	if err != nil {
		a.warn("%v", err)
	}
	return append(netsetup.LowPorts(m, a.paths.Root, func(n config.NIC) bool { return host.MayBindLowPorts(n, a.paths.User) }), netsetup.TakenPorts(m, listeners, host.RunsPasst)...)
}

// nodeKey is the key of a definition that asks for a device node.
func nodeKey(node string) string {
	switch node {
	case "/dev/vhost-vsock":
		return "vsock.enabled"
	case "/dev/vhost-net", "/dev/net/tun":
		return "nic"
	default:
		return ""
	}
}

// checkNode opens a device node, which also makes the kernel load its driver.
func checkNode(node string) error {
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch err {
	case nil:
		return unix.Close(fd)
	case unix.ENOENT:
		return errors.New("does not exist on this host")
	case unix.ENODEV, unix.ENXIO:
		return errors.New("the kernel has no driver for it, or no such hardware")
	case unix.EBUSY:
		return nil // somebody else's now, which is for the hypervisor to say
	default:
		return err
	}
}

func hugepagesFile(size int64, name string) string {
	return fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB/%s", size>>10, name)
}

// freeHugepages is the number of free pages of a size in bytes; 0 where the
// kernel has none of that size.
func freeHugepages(size int64) int64 {
	b, err := os.ReadFile(hugepagesFile(size, "free_hugepages"))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// writeSeed writes the cloud-init seed where its content differs.
func (a app) writeSeed(dir runtimeDir, m *config.Machine) error {
	// The image is put together from files in $TMPDIR, which have secrets.
	temp, err := os.MkdirTemp(a.paths.Runtime, ".seed-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := os.Setenv("TMPDIR", temp); err != nil {
		return err
	}
	seed, err := cloudinit.Build(m, readGiven)
	if err != nil {
		return refuseProblems([]config.Problem{m.Problem("cloud_init", "%v", err)})
	}
	path := a.paths.Seed(a.vm)
	if old, err := dir.get(path); err == nil && slices.Equal(old, seed) {
		return nil
	}
	return dir.put(path, seed, 0o600)
}

// readGiven reads a file that the definition names and the guest will see.
func readGiven(path string) ([]byte, error) { return access.ReadFile(path, cloudinit.MaxFile) }

func (a app) writeCredentials(dir runtimeDir, m *config.Machine, plan *hypervisor.Plan) error {
	for _, c := range plan.Credentials {
		content := []byte(c.Value)
		if c.File != "" {
			var err error
			if content, err = readGiven(c.File); err != nil {
				return refuseProblems([]config.Problem{m.Problem(c.Key(), "%v", err)})
			}
		}
		if err := dir.put(a.paths.Credential(a.vm, c.Name), hypervisor.CredentialText(c, content), 0o400); err != nil {
			return fmt.Errorf("write credential %s: %w", c.Name, err)
		}
	}
	return nil
}

// writeRecord keeps what the machine is started with, whole, for root.
func (a app) writeRecord(r hypervisor.Record) error {
	whole, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return access.WriteFile(a.paths.Record(a.vm), whole, 0o600, false)
}

// showRecord is the same without secrets, for everybody who may look into the
// runtime directory.
func (a app) showRecord(dir runtimeDir, r hypervisor.Record) error {
	r.Machine = r.Machine.Redacted()
	redacted, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return dir.put(a.paths.VMJSON(a.vm), redacted, 0o600)
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/hypervisor/operation"
	kept "github.com/vmctl/vmctl/hypervisor/saved"
	"github.com/vmctl/vmctl/units/bus"
)

// patience is how long a hypervisor may take to say what it does.
const patience = time.Second

// look is what is known of one machine at one time.
type look struct {
	vm     config.VM // without File: something is there, but the definition is gone
	unit   bus.UnitStatus
	record *hypervisor.Record // what it was started with; nil where it does not run or that cannot be read
	// changes are those of its disks since.
	changes hypervisor.Changes
	exit    *hypervisor.Exit // why it last ended; nil where that is not known or does not matter
	status  hypervisor.Status
	masked  bool   // the unit is, so that nothing starts it
	unready string // why the guest is not ready yet, "" where it is, or nobody asks
	state   state
}

// active says whether there is a hypervisor.
func (l look) active() bool {
	return l.unit.Active == "active" || l.unit.Active == "reloading" || l.unit.Active == "deactivating"
}

// inUse says whether systemd does something with it, or keeps in mind that it
// has failed.
func (l look) inUse() bool {
	return l.active() || l.unit.Active == "activating" || l.unit.Active == "failed"
}

// isLeftover says whether the definition is gone and nothing runs by it any
// more.
func (l look) isLeftover() bool {
	return l.vm.File == "" && (l.state == stopped || l.state == failed || l.state == saved)
}

// waiting says whether it has failed, and systemd is about to start it again.
func (l look) waiting() bool { return strings.HasPrefix(l.unit.Sub, "auto-restart") }

// machine is what the machine runs with, or else what its definition says; nil
// where neither is known.
func (l look) machine() *config.Machine {
	if l.record != nil && l.record.Machine != nil {
		return l.changes.Apply(l.record.Machine)
	}
	return l.vm.Machine
}

// lister lists units: a [*bus.Conn].
type lister interface {
	Units(ctx context.Context, pattern string) ([]bus.UnitStatus, error)
}

// lookAll finds out about every machine: those that are defined, and those of
// which something is there without a definition, by name. Definitions and units are read at
// the same time; all units by one call.
func (a *app) lookAll(ctx context.Context, conn lister) ([]look, *config.Set, error) {
	var set *config.Set
	var loadErr error
	var wg sync.WaitGroup
	wg.Go(func() { set, loadErr = config.Load(a.paths) })
	found, err := conn.Units(ctx, config.Unit("*"))
	wg.Wait()
	if err != nil {
		return nil, nil, err
	}
	if loadErr != nil {
		return nil, nil, loadErr
	}
	byName := map[string]bus.UnitStatus{}
	for _, u := range found {
		byName[u.Name] = u
	}
	var looks []look
	for _, vm := range set.VMs {
		looks = append(looks, look{vm: vm, unit: byName[config.Unit(vm.Name)]})
		delete(byName, config.Unit(vm.Name))
	}
	left := a.leftBehind()
	for _, vm := range set.VMs {
		delete(left, vm.Name)
	}
	for unit, u := range byName {
		name := vmName(unit)
		if l := (look{unit: u}); l.active() || l.inUse() && config.CheckName(name) == nil {
			left[name] = true
		}
	}
	for name := range left {
		looks = append(looks, look{vm: config.VM{Name: name}, unit: byName[config.Unit(name)]})
	}
	slices.SortFunc(looks, func(a, b look) int { return strings.Compare(a.vm.Name, b.vm.Name) })
	masked := a.masked("")
	inParallel(looks, func(l *look) {
		l.masked = masked[l.vm.Name]
		a.settleLook(ctx, l)
	})
	return looks, set, nil
}

// leftBehind are the names that have a state directory, or that systemctl
// enable has linked, whether they are defined or not.
func (a *app) leftBehind() map[string]bool {
	names := a.enabled()
	// Before the first machine is started, the directory does not exist.
	entries, _ := os.ReadDir(a.paths.State)
	for _, e := range entries {
		if e.IsDir() {
			names[e.Name()] = true
		}
	}
	maps.DeleteFunc(names, func(name string, _ bool) bool { return config.CheckName(name) != nil })
	return names
}

// isLeftBehind says whether a name is one of those.
func (a *app) isLeftBehind(name string) bool {
	return access.IsThere(a.paths.StateDir(name)) || access.IsThere(a.enableLink(name))
}

// masked are the names at whose units systemctl mask has been; of no other
// than name, where that is not "". systemd itself tells only of units that it
// has loaded.
func (a *app) masked(name string) map[string]bool {
	names := map[string]bool{}
	for _, dir := range []string{a.paths.EnableDir, a.paths.DropInDir} {
		links, _ := filepath.Glob(filepath.Join(dir, config.Unit(cmp.Or(name, "*"))))
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && target == os.DevNull {
				names[vmName(filepath.Base(link))] = true
			}
		}
	}
	return names
}

// lookAt finds out about one machine. The error is a notFoundError for a name
// of which there is nothing: no definition, no unit in use, nothing on disk.
func (a *app) lookAt(ctx context.Context, conn lister, name string) (look, error) {
	vm, findErr := a.find(name)
	if findErr != nil && exitStatus(findErr) != exitNotFound {
		return look{}, findErr
	}
	found, err := conn.Units(ctx, config.Unit(name))
	if err != nil {
		return look{}, err
	}
	l := look{vm: vm}
	for _, u := range found {
		if u.Name == config.Unit(name) {
			l.unit = u
		}
	}
	if findErr != nil {
		if !l.inUse() && !a.isLeftBehind(name) {
			return look{}, findErr
		}
		l.vm.Name = name
	}
	l.masked = a.masked(name)[name]
	a.settleLook(ctx, &l)
	switch {
	case l.exit != nil:
	case l.active(), l.unit.Active == "activating":
		l.exit = a.readExit(name)
	default:
		l.exit = a.lastExit(name)
	}
	return l, nil
}

// settleLook asks what the unit alone does not say, and decides the state.
func (a *app) settleLook(ctx context.Context, l *look) {
	if l.active() {
		l.record, l.changes = a.readRecord(l.vm.Name), a.changes(l.vm.Name)
		l.unready = a.unready(*l)
	}
	// While it is being stopped, vmctl-unit has the control socket, which
	// serves one at a time.
	if l.active() && l.unit.Active != "deactivating" && l.unit.Job == "" {
		l.status = a.ask(ctx, *l)
	}
	if l.unit.Active == "failed" || l.waiting() {
		l.exit = a.lastExit(l.vm.Name)
	}
	l.masked = l.masked || l.unit.Load == "masked"
	l.state = stateOf(unitState{Active: l.unit.Active, Job: l.unit.Job}, l.status, l.exit, a.kept(l.vm.Name))
}

// kept says what the state directory says of a machine.
func (a *app) kept(name string) keptState {
	k := keptState{Saved: kept.Exists(a.paths, name)}
	// Only root can read it: others are not told that it is being saved.
	if r, err := operation.Unfinished(a.paths, name); err == nil && r != nil {
		k.Saving = r.Kind == string(opSave)
	}
	return k
}

// unready is why the guest of a machine that runs is not ready, "" where it is or
// its definition does not ask.
func (a *app) unready(l look) string {
	if l.record == nil || l.record.Machine == nil {
		return ""
	}
	ready := l.record.Machine.Lifecycle.Ready
	if ready == "started" || ready == "" {
		return ""
	}
	r := readJSON[hypervisor.Readiness](a.paths.Readiness(l.vm.Name))
	switch {
	case r != nil && r.Ready:
		return ""
	case r != nil:
		return printable(r.Text)
	case ready == "agent":
		return "the guest agent is waited for"
	}
	return "the guest's boot is waited for"
}

// ask asks the hypervisor what it does, "" where it does not say: no rights,
// or just now starting or ending.
func (a *app) ask(ctx context.Context, l look) hypervisor.Status {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := a.control(ctx, l)
	if err != nil {
		return ""
	}
	defer c.Close()
	// An error says as little as no answer.
	status, _ := c.Status(ctx)
	if status != hypervisor.StatusPaused {
		return status
	}
	if log := readJSON[hypervisor.EventLog](a.paths.Events(l.vm.Name)); log != nil {
		return log.Status(status)
	}
	return status
}

// control connects to the hypervisor of a machine that runs.
func (a *app) control(ctx context.Context, l look) (hypervisor.Control, error) {
	name := "qemu"
	if m := l.machine(); m != nil {
		name = m.Hypervisor
	}
	h, ok := all.ByName(name)
	if !ok {
		return nil, &unknownHypervisorError{name}
	}
	socket, done, err := access.Socket(a.paths.ControlSocket(l.vm.Name))
	if err != nil {
		return nil, err
	}
	defer done()
	return h.Control(ctx, socket)
}

// unknownHypervisorError is a machine that runs by a hypervisor that this
// vmctl does not know: one of another version started it.
type unknownHypervisorError struct{ name string }

func (e *unknownHypervisorError) Error() string { return "hypervisor " + e.name + " is not known" }

// readRecord reads what a machine was started with, nil where that cannot be
// read. The one for root comes first: nobody else can have written it.
func (a *app) readRecord(name string) *hypervisor.Record {
	if r := readJSON[hypervisor.Record](a.paths.Record(name)); r != nil {
		return r
	}
	return readJSON[hypervisor.Record](a.paths.VMJSON(name))
}

// unreadable is the error of a caller who may not read what a machine runs with,
// nil where it can be read, or nothing runs.
func (a *app) unreadable(l look) error {
	if !l.active() || l.record != nil {
		return nil
	}
	file := a.paths.VMJSON(l.vm.Name)
	// Not opened: it may be a FIFO.
	if err := unix.Faccessat(unix.AT_FDCWD, file, unix.R_OK, unix.AT_EACCESS); errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("what it runs with: %w", &fs.PathError{Op: "open", Path: file, Err: err})
	}
	return nil
}

// changes reads what has changed of the disks of a machine that runs since its
// start; nothing where that cannot be read.
func (a *app) changes(name string) hypervisor.Changes {
	if c := readJSON[hypervisor.Changes](a.paths.Changes(name)); c != nil {
		return *c
	}
	return hypervisor.Changes{}
}

// readExit reads why a machine last ended, nil where that cannot be read.
func (a *app) readExit(name string) *hypervisor.Exit {
	return readJSON[hypervisor.Exit](a.paths.Exit(name))
}

// lastExit is why a machine that does not run ended: not what is recorded of an
// earlier end, where the last one left no record. That is so where somebody
// kills all of the unit, with the clean-up that would write it (see
// [access.GiveBack]).
func (a *app) lastExit(name string) *hypervisor.Exit {
	exit := a.readExit(name)
	// Written at each start; only root can read it.
	started, err := os.Stat(a.paths.Record(name))
	if err != nil || exit != nil && !started.ModTime().After(exit.Time) {
		return exit
	}
	return &hypervisor.Exit{Time: started.ModTime(), Reason: hypervisor.Killed, Detail: "with its clean-up, so that no more is recorded"}
}

// maxJSON bounds what is read of a file that a machine's user could write to.
const maxJSON = 16 << 20

// readJSON reads a file that vmctl-unit wrote, nil where it is not there, not
// ours to read, or not what it should be: what it says is for show.
func readJSON[T any](path string) *T {
	// A machine's user could put a FIFO in its place.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	v := new(T)
	if err := json.NewDecoder(io.LimitReader(f, maxJSON)).Decode(v); err != nil {
		return nil
	}
	return v
}

// vmName is the machine whose unit is named unit.
func vmName(unit string) string {
	return strings.TrimSuffix(strings.TrimPrefix(unit, "vm@"), ".service")
}

// inParallel calls do for each item, some at once. Most wait for files or
// sockets, so there are more than CPUs.
func inParallel[T any](items []T, do func(*T)) {
	limit := make(chan struct{}, 8*runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for i := range items {
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			do(&items[i])
		})
	}
	wg.Wait()
}

// lookAtThose looks at machines by their names, at all of them where there are none.
func (a *app) lookAtThose(ctx context.Context, vms []string) (looks []look, err error) {
	conn, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if len(vms) == 0 {
		looks, _, err = a.lookAll(ctx, conn)
		return looks, err
	}
	for _, vm := range vms {
		l, err := a.lookAt(ctx, conn, vm)
		if err != nil {
			return nil, err
		}
		looks = append(looks, l)
	}
	return looks, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/hypervisor/saved"
)

// A start from a saved state goes like this: prepare finds it, run has the
// hypervisor read it from load, or from files that run makes, the monitor sends READY once the hypervisor
// answers, and started, which is root, lets the CPUs run when all has been
// loaded: it first removes the record, since with the first instruction disks
// and saved memory do not belong together any more.

// goOn has the machine start from its saved state, if it has one.
func (a app) goOn(dir runtimeDir, record *hypervisor.Record) error {
	s, err := saved.Read(a.paths, a.vm)
	if err != nil {
		return refusal{[]string{fmt.Sprintf("%s: its saved state cannot be read: %v; vmctl reset %s discards it", a.vm, err, a.vm)}}
	}
	if s == nil {
		record.Incoming = nil // of the last start, whose record is used where the definition is broken
		// What a saving or loading left that was cut off.
		return saved.Discard(a.paths, a.vm)
	}
	if err := a.mayLoad(s, record.Machine); err != nil {
		return err
	}
	state := a.paths.SavedState(a.vm)
	if err := errors.Join(os.Chown(state, -1, dir.gid), os.Chmod(state, 0o640)); err != nil {
		return err
	}
	if s.Started.Plan.Internet && !record.Plan.Internet {
		a.warn("its user-mode networking was slirp's when it was saved, and has no way out of the sandbox that is made for passt now: the guest's is back after a restart")
	}
	// The plan of this version of vmctl, or of this host by now, may be another.
	started, now := record.Started, record.Machine
	*record = s.Started
	record.Started = started
	record.Machine = record.Machine.WithReloadedOf(now)
	record.Engines, record.IO = hypervisor.Engines{}, nil
	record.Incoming = &hypervisor.Incoming{ID: s.ID, Format: s.Format, Bytes: s.Bytes, Paused: s.Paused, Seed: s.Seed}
	a.notify("STATUS=Loading the saved state")
	return nil
}

// mayLoad refuses to load a state that does not belong to what is there now.
func (a app) mayLoad(s *saved.Record, m *config.Machine) error {
	refuse := func(format string, args ...any) error {
		return refusal{[]string{fmt.Sprintf("%s: it was saved at %s, and %s, or vmctl reset %s discards the saved state",
			a.vm, s.Saved.Local().Format(time.DateTime), fmt.Sprintf(format, args...), a.vm)}}
	}
	if failed := s.LoadError; failed != "" {
		// Told once: whoever starts it after that knows, and wants it tried.
		s.LoadError = ""
		if err := s.Write(a.paths, a.vm); err != nil {
			return err
		}
		return refuse("could not be loaded: %s: vmctl start %s tries again", failed, a.vm)
	}
	if was, is := s.Started.Machine.Hypervisor, m.Hypervisor; was != is {
		return refuse("by %s, whose saved states %s does not understand: hypervisor = %q goes on", was, is, was)
	}
	if !saved.SameMachine(s.Started.Machine, m) {
		keys := strings.Join(saved.Differing(s.Started.Machine, m), ", ")
		return refuse("its definition has changed since%s: restore that", strings.TrimSuffix(" ("+keys+")", " ()"))
	}
	if changed := s.Changed(); changed != "" {
		return refuse("its memory does not fit its disks any more: %s: restore that", changed)
	}
	state, err := saved.Look(a.paths.SavedState(a.vm))
	switch {
	case err != nil:
		return refuse("%v: restore that", err)
	case state.Size != s.Bytes:
		return refuse("%s had %d bytes, and has %d: restore that", state.Path, s.Bytes, state.Size)
	}
	return nil
}

// checkSeed refuses to load a state of a guest that has another cloud-init seed
// mounted, maybe.
func (a app) checkSeed(dir runtimeDir, r hypervisor.Record) error {
	if r.Incoming == nil {
		return nil
	}
	seed, err := dir.get(a.paths.Seed(a.vm))
	if err != nil || saved.SeedHash(seed) == r.Incoming.Seed {
		return err
	}
	return refuseProblems([]config.Problem{r.Machine.Problem("cloud_init", "a file that it names has changed since %s was saved: restore that, or vmctl reset %s discards the saved state", a.vm, a.vm)})
}

// keepEphemeral are new files of which those that are there stay, whatever is
// to become of them in the end.
func keepEphemeral(files []hypervisor.NewFile) []hypervisor.NewFile {
	files = slices.Clone(files)
	for i := range files {
		files[i].Ephemeral = false
	}
	return files
}

// withState is a command line that loads the saved state from a descriptor.
func withState(r hypervisor.Record, hv hypervisor.Hypervisor, argv []string, fd int) ([]string, error) {
	loader, ok := hv.(hypervisor.StateLoader)
	if !ok {
		return nil, fmt.Errorf("%s cannot load a saved state", hv.Name())
	}
	return loader.WithState(argv, fd, r.Incoming.Format), nil
}

// startLoader starts what writes the saved state to the hypervisor, if it starts
// with one.
func (a app) startLoader(all []ends) error {
	i := slices.IndexFunc(all, func(e ends) bool { return e.use == hypervisor.State })
	if i < 0 {
		return nil
	}
	note, err := os.OpenFile(a.paths.LoadNote(a.vm), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer note.Close()
	// Locked until the loader, too, has closed it.
	if err := access.Flock(note, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: %w", note.Name(), err)
	}
	err = a.spawn([]string{"load", a.vm}, []uintptr{note.Fd(), uintptr(all[i].ours)})
	return errors.Join(err, unix.Close(all[i].ours))
}

// unpackState has a hypervisor go on from files: they are made here, by the machine's
// user, and the command line is that with them.
func (a app) unpackState(record hypervisor.Record, hv hypervisor.StateUnpacker, argv []string) ([]string, error) {
	if err := hv.CheckFormat(context.Background(), argv, record.Incoming.Format); err != nil {
		return nil, refusal{[]string{err.Error()}}
	}
	scratch, err := os.OpenRoot(record.Plan.Scratch)
	if err != nil {
		return nil, err
	}
	defer scratch.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	unpacked := make(chan error, 1)
	go func() {
		defer r.Close()
		unpacked <- hv.UnpackState(r, scratch)
	}()
	loadErr := a.loadTo(w)
	err = errors.Join(loadErr, <-unpacked)
	// To read them takes the hypervisor as long again.
	a.putOff(loadGrace + time.Duration(record.Machine.Memory/loadSpeed)*time.Second)
	return hv.WithUnpacked(argv, record.Plan.Scratch), errors.Join(err, replace(a.paths.LoadNote(a.vm), []byte(loadText(err)), 0o600))
}

// loadSpeed is how many bytes of memory a hypervisor reads in a second, at least.
const loadSpeed = 50 << 20

// loadGrace is how long loading may make no progress, beside start_timeout.
const loadGrace = time.Minute

// loadWhole is the note of a state that was whole.
const loadWhole = "whole"

// loadText is the note of a state, by what came of decompressing it.
func loadText(err error) string {
	switch {
	case err == nil:
		return loadWhole
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return "no space to unpack the saved state in: " + oneLine(err.Error())
	}
	return "the saved state is damaged: " + oneLine(err.Error())
}

// load is the command that decompresses the saved state: descriptor 3 is the
// note, 4 the pipe to the hypervisor.
func (a app) load() error {
	note, pipe := os.NewFile(firstDescriptor, "note"), os.NewFile(firstDescriptor+1, "pipe")
	defer note.Close()
	err := a.loadTo(pipe)
	_, noteErr := note.WriteString(loadText(err))
	return errors.Join(err, noteErr)
}

func (a app) loadTo(pipe *os.File) error {
	defer pipe.Close()
	record, err := readVMJSON(a.paths.VMJSON(a.vm))
	if err != nil {
		return err
	}
	f, err := os.Open(a.paths.SavedState(a.vm))
	if err != nil {
		return err
	}
	defer f.Close()
	last := time.Time{}
	return saved.ReadState(f, pipe, func(read int64) {
		if time.Since(last) < time.Second || record.Incoming == nil || record.Incoming.Bytes == 0 {
			return
		}
		last = time.Now()
		a.putOff(loadGrace)
		a.notify(fmt.Sprintf("STATUS=Loading the saved state: %d %%", min(100, read*100/record.Incoming.Bytes)))
	})
}

// loadPoll is the time between two looks at how the loading goes.
const loadPoll = 20 * time.Millisecond

// finishLoad lets the CPUs run of a machine that was started with a saved state,
// once it is loaded, or with an error ends it, still saved.
func (a app) finishLoad(ctx context.Context, dir runtimeDir, r hypervisor.Record) error {
	if err := a.waitLoaded(ctx, dir); err != nil {
		return err
	}
	_, unlock, err := a.lockPatiently("a start")
	if err != nil {
		return err
	}
	defer unlock()
	s, err := saved.Read(a.paths, a.vm)
	if err != nil {
		return err
	}
	if s == nil || s.ID != r.Incoming.ID {
		return errors.New("the saved state was discarded while it was loaded")
	}
	if err := a.followDefinition(ctx, s); err != nil {
		a.warn("of what its definition says of limits and links by now, it has not got: %v (vmctl reload %s tries again)", err, a.vm)
	}
	if !s.Paused {
		if err := a.letRun(ctx, s); err != nil {
			return err
		}
	} else {
		a.notify("STATUS=Paused")
	}
	// From here on the record is gone, or of no meaning: the machine runs.
	return errors.Join(saved.Discard(a.paths, a.vm), a.emptyScratch())
}

// followDefinition gives the disks and cards of a machine that goes on the limits and
// links of its definition.
func (a app) followDefinition(ctx context.Context, s *saved.Record) error {
	r, err := a.openRunning(ctx)
	if _, ok := errors.AsType[*operation.Error](err); ok {
		return nil // by its hypervisor they wait for a restart
	}
	if err != nil {
		return err
	}
	defer r.close()
	var links error
	for _, n := range r.machine().NICs { // not every card has its link in the saved state
		if n.Link == "down" {
			links = errors.Join(links, r.control.SetLink(ctx, n.Name, false))
		}
	}
	vm, err := config.LoadVM(a.paths, a.vm)
	if err != nil || vm.Machine == nil {
		return errors.Join(append(problemErrors(vm.Problems), err, links)...)
	}
	return errors.Join(links, r.followLimits(ctx, vm.Machine), r.followCards(ctx, vm.Machine, s.Overridden))
}

// followLimits gives its disks the limits of m: those of its command line are of the
// start before it was saved.
func (r *live) followLimits(ctx context.Context, m *config.Machine) error {
	now, want := r.machine().Live(), m.Live().Disks
	maps.DeleteFunc(want, func(name string, limits config.DiskLimits) bool { return now.Disks[name] == limits })
	if len(want) == 0 {
		return nil
	}
	q := hypervisor.SetRequest{Settings: now}
	var failed error
	q.Settings.Disks, failed = r.setLimits(ctx, now.Disks, want)
	return errors.Join(failed, r.noteLive(q, now, nil))
}

// followCards gives its cards the links and limits of m. What was set until the machine
// stops, which overridden tells of, stays for as long as the definition says the same.
func (r *live) followCards(ctx context.Context, m *config.Machine, overridden map[string]string) error {
	var errs []error
	changed := false
	for _, defined := range m.NICs {
		n, has := r.findNIC(defined.Name)
		if !has || n.Settings() == defined.Settings() {
			continue
		}
		if by := overridden[n.Name]; by == defined.Settings() {
			r.changes.SetNIC(n, r.started, by)
			changed = true
			continue
		}
		n = n.WithSettings(defined)
		if err := r.adjust(ctx, n); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", n.Key(), err))
			continue
		}
		r.changes.SetNIC(n, r.started, "")
		changed = true
	}
	if changed {
		errs = append(errs, r.save())
	}
	return errors.Join(errs...)
}

// letRun removes the record and lets the CPUs run, in this order. Where they do
// not, it is still saved.
func (a app) letRun(ctx context.Context, s *saved.Record) error {
	if err := saved.Forget(a.paths, a.vm); err != nil {
		return err
	}
	err := a.onJobSocket(ctx, hypervisor.Control.Resume)
	if err == nil {
		return nil
	}
	// Without an answer it may run, and then nothing is saved any more.
	var status hypervisor.Status
	asked := a.onJobSocket(ctx, func(c hypervisor.Control, ctx context.Context) (err error) {
		status, err = c.Status(ctx)
		return err
	})
	if asked == nil && status != hypervisor.StatusRunning {
		if quit := a.onJobSocket(ctx, hypervisor.Control.Quit); quit == nil {
			return errors.Join(err, s.Write(a.paths, a.vm))
		}
	}
	return err
}

// setClock has the guest's agent, where one answers, set the clock, which has
// stood still while the machine was saved.
func (a app) setClock(ctx context.Context) {
	err := a.onJobSocket(ctx, func(c hypervisor.Control, ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, clockTime)
		defer cancel()
		agent, err := a.agent(ctx, c)
		if err != nil {
			return nil // without one it stays as it is
		}
		defer agent.Close()
		return agent.SetTime(ctx, time.Now())
	})
	if err != nil {
		a.warn("the guest's clock may be late: %v", err)
	}
}

// waitLoaded waits until the hypervisor has loaded all, and all was whole.
func (a app) waitLoaded(ctx context.Context, dir runtimeDir) error {
	note, err := dir.OpenFile("load", os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer note.Close()
	for access.Flock(note, unix.LOCK_EX|unix.LOCK_NB) != nil {
		time.Sleep(loadPoll)
	}
	text, err := dir.get(a.paths.LoadNote(a.vm))
	if err != nil {
		return err
	}
	if string(text) != loadWhole {
		return errors.New(oneLine(strings.TrimSpace("the saved state was not loaded: " + string(text))))
	}
	for {
		var status hypervisor.Status
		err := a.onJobSocket(ctx, func(c hypervisor.Control, ctx context.Context) (err error) {
			status, err = c.Status(ctx)
			return err
		})
		if err != nil || status != hypervisor.StatusLoading {
			return err
		}
		time.Sleep(loadPoll)
	}
}

// lockPatiently waits for who has the machine's lock and is soon done with it.
func (a app) lockPatiently(what string) (file *os.File, unlock func(), err error) {
	for end := time.Now().Add(controlTimeout); ; {
		file, unlock, err = operation.Lock(a.paths, a.vm, what)
		if err == nil || time.Now().After(end) {
			return file, unlock, err
		}
		time.Sleep(loadPoll)
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/hostdevice"
	"github.com/vmctl/vmctl/hypervisor/saved"
	"github.com/vmctl/vmctl/units/bus"
	"github.com/vmctl/vmctl/units/journal"
)

const (
	journalLines   = 20   // of the hypervisor, that are kept
	endLines       = 2000 // that are read to find how it ended, where its exit status does not say
	journalctlTime = 5 * time.Second
	forgiveTime    = 5 * time.Second

	// cleanupTime is what all of it may take where the host has much else to do, after
	// a stop that took most of TimeoutStopSec= or with one that is short.
	cleanupTime = 2 * time.Minute
)

// cleanup keeps why the machine ended, and takes back and removes what was
// there for this run alone. It returns the exit status, which is no success where
// the machine has failed and its own does not say so (hasFailed), and nowhere
// else: the unit would fail, and be started again. What fails here does
// not become the unit's STATUS=: why the machine ended matters more, above all
// where that could not be written down.
func (a app) cleanup(ctx context.Context) int {
	a.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", cleanupTime.Microseconds()))
	facts := a.gather(ctx)
	exit := decide(facts)
	ended := strings.TrimSuffix(fmt.Sprintf("%s: %s", exit.Reason, exit.Detail), ": ")
	a.event(journal.Ended, sdjournal.PriInfo, "ended: "+ended, ended)
	a.notify("STATUS=Ended: " + oneLine(ended))
	machine, plan, err := a.lastStart()
	failed := hasFailed(exit, machine.Lifecycle)
	if exit.Result == "success" && !failed {
		a.forgive(ctx)
	}
	err = errors.Join(err, a.unplug(machine.NICs), a.removeNames(machine.NICs), a.unplugChanges(), a.removeLeft(machine.NICs), a.removeFilters(), a.stopSidecars(ctx, plan.Sidecars), a.endShares(ctx), a.hideAll(ctx))
	removed, removeErr := a.removedAtEnd(ctx)
	err = errors.Join(err, removeErr)
	if !removed {
		err = errors.Join(err, a.writeExit(exit), access.GiveBack(a.paths, a.vm), hostdevice.New(a.paths).GiveBack(a.vm), a.removeEphemeral(plan.New), os.RemoveAll(a.paths.Scratch(a.vm)), removeFile(a.paths.Changes(a.vm)), removeFile(a.paths.Claims(a.vm)), a.noteLoadError(facts))
	}
	if err != nil {
		a.say(3, "%v", err)
	}
	if failed {
		return exitFailed
	}
	return 0
}

// hasFailed says whether a machine has failed of which systemd thinks well, because
// its hypervisor exits with 0 whatever happens. With the exit status of the
// clean-up, the unit has failed, and is started again.
func hasFailed(e hypervisor.Exit, l config.Lifecycle) bool {
	if e.Result != "success" {
		return false
	}
	return e.Reason == hypervisor.HypervisorError || e.Reason == hypervisor.GuestPanic && l.OnPanic == "restart"
}

// forgive has systemd forget how often the unit was started. Its limit is for
// machines that crash, but counts every start: whoever stops and starts one
// six times in ten minutes would be refused.
func (a app) forgive(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, forgiveTime)
	defer cancel()
	conn, err := bus.Dial(ctx, a.paths.User)
	if err == nil {
		defer conn.Close()
		err = conn.ResetFailed(ctx, config.Unit(a.vm))
	}
	if err != nil {
		a.warn("the start counts towards the limit of starts: %v", err)
	}
}

// gather finds out what is known.
func (a app) gather(ctx context.Context) facts {
	f := facts{
		Now:    time.Now(),
		Result: os.Getenv("SERVICE_RESULT"),
		Code:   os.Getenv("EXIT_CODE"),
		Status: os.Getenv("EXIT_STATUS"),

		OutOfMemory: a.outOfMemory(),
	}
	var log hypervisor.EventLog
	dir, err := openRuntimeDir(a.paths, a.vm)
	if err == nil {
		defer dir.Close()
		a.waitForMonitor(dir)
		log = a.readEvents(dir)
		f.Events = log.Events
		_, err := dir.Lstat(filepath.Base(a.paths.VMJSON(a.vm)))
		f.Unprepared = errors.Is(err, fs.ErrNotExist)
		f.Stop = a.readNote(dir)
	}
	refused, err := a.refusedLines(dir)
	switch {
	case err == nil:
		f.Lines = refused
	case f.Code == "killed" && f.Status == "KILL":
		// Of that nobody can say anything, and to ask the journal takes longer
		// than to start again.
	case f.Code == "exited" && f.Status == fmt.Sprint(exitConfig):
		// Of ours: what is no error says nothing of why.
		f.Lines = hypervisorLines(ctx, log.PID, journalLines, "--priority=err")
	case f.Code != "" && (f.Code != "exited" || f.Status != "0"):
		f.Lines = hypervisorLines(ctx, log.PID, journalLines)
	}
	a.readEnd(ctx, &f, log.PID)
	a.gatherSaved(&f, dir)
	if isLocked(f.Lines) {
		f.Holders = a.holders()
	}
	return f
}

// readEvents is what the monitor has heard of the hypervisor, as far as can be read.
func (a app) readEvents(dir runtimeDir) (log hypervisor.EventLog) {
	if err := dir.getJSON(a.paths.Events(a.vm), &log); err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.warn("%v", err)
	}
	return log
}

// outOfMemory says whether the kernel has killed a process of the unit for want of
// memory, of which systemd tells nothing where OOMPolicy=continue. Without the
// memory controller nobody knows.
func (a app) outOfMemory() bool {
	tree, err := os.ReadFile(a.paths.Root + "/proc/self/cgroup")
	if err != nil {
		return false
	}
	// This process may be in a cgroup of its own below the unit's.
	unit := config.Unit(a.vm)
	found := regexp.MustCompile(`(?m)^0::(/.*)?/` + regexp.QuoteMeta(unit) + `(/|$)`).FindSubmatch(tree)
	if found == nil {
		return false
	}
	events, err := os.ReadFile(filepath.Join(a.paths.Root, "/sys/fs/cgroup", string(found[1]), unit, "memory.events"))
	return err == nil && regexp.MustCompile(`(?m)^oom_kill [1-9]`).Match(events)
}

// readEnd finds out how a hypervisor ended whose exit status does not say.
func (a app) readEnd(ctx context.Context, f *facts, pid int) {
	reader, ok := a.startedWith().hv.(hypervisor.EndReader)
	if !ok || f.Unprepared || f.refused() || f.Code != "exited" || f.Stop != nil && f.Status == "0" {
		return
	}
	lines := hypervisorLines(ctx, pid, endLines)
	end, kept, ok := reader.ReadEnd(lines)
	if lines != nil {
		f.Lines = kept[max(0, len(kept)-journalLines):]
	}
	if ok {
		f.Events = append(f.Events, end)
	}
}

// gatherSaved finds out what this run has to do with a saved state.
func (a app) gatherSaved(f *facts, dir runtimeDir) {
	s, err := saved.Read(a.paths, a.vm)
	if err != nil {
		a.warn("%v", err)
	}
	if s == nil {
		return
	}
	// Without one, it has not come so far as to load it.
	r, err := readRecord(a.paths, a.vm)
	f.Loading = err == nil && r.Incoming != nil && r.Incoming.ID == s.ID
	f.Saved = !f.Loading
	if dir.Root == nil {
		return
	}
	// Without a note it was not begun, or cut off.
	if note, err := dir.get(a.paths.LoadNote(a.vm)); err == nil {
		f.Note = oneLine(string(note))
	}
}

// noteLoadError keeps what was wrong with a saved state, for the start that
// systemd tries next: it would end the same way.
func (a app) noteLoadError(f facts) error {
	text := f.loadError()
	if text == "" {
		return nil
	}
	s, err := saved.Read(a.paths, a.vm)
	if err != nil || s == nil || s.Started.Machine.Lifecycle.Restart == "no" {
		return err
	}
	s.LoadError = text
	return s.Write(a.paths, a.vm)
}

func (a app) readNote(dir runtimeDir) *stopNote {
	var note stopNote
	err := dir.getJSON(a.paths.StopNote(a.vm), &note)
	if err == nil {
		return &note
	}
	if !errors.Is(err, fs.ErrNotExist) {
		a.warn("%v", err)
	}
	return nil
}

// refusedLines are the problems with which prepare had the start refused.
func (a app) refusedLines(dir runtimeDir) ([]string, error) {
	if dir.Root == nil {
		return nil, fs.ErrNotExist
	}
	b, err := dir.get(a.paths.Refused(a.vm))
	return strings.Split(string(b), "\n"), err
}

// holders says who has the machine's disks.
func (a app) holders() []string {
	record, err := readRecord(a.paths, a.vm)
	if err != nil {
		return nil
	}
	var all []string
	for _, f := range record.Plan.Files {
		if !f.Disk {
			continue
		}
		if who := access.Holder(f.Path); who != "" {
			all = append(all, fmt.Sprintf("%s: %s is in use by %s", f.Key, f.Path, who))
		}
	}
	return all
}

func (a app) writeExit(e hypervisor.Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if err := access.MakeStateDir(a.paths, a.vm); err != nil {
		return err
	}
	return access.WriteFile(a.paths.Exit(a.vm), b, 0o644, false)
}

// lastStart is what the machine was started with; both are empty where it never
// was.
func (a app) lastStart() (*config.Machine, *hypervisor.Plan, error) {
	record, err := readRecord(a.paths, a.vm)
	if err == nil {
		return record.Machine, record.Plan, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return new(config.Machine), new(hypervisor.Plan), err
}

// removeEphemeral removes the disks whose content is thrown away, unless the
// machine goes on with them.
func (a app) removeEphemeral(made []hypervisor.NewFile) error {
	if saved.Exists(a.paths, a.vm) {
		return nil
	}
	var errs []error
	for _, n := range made {
		if !n.Ephemeral {
			continue
		}
		errs = append(errs, removeFile(n.Path))
	}
	return errors.Join(errs...)
}

// removeFile removes a file that need not be there.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// hypervisorLines are the last lines that the main process wrote, in this run
// of the unit, from the journal; none where they cannot be had. pid is the
// process' number, 0 if not known; options are more of journalctl's.
func hypervisorLines(ctx context.Context, pid, most int, options ...string) []string {
	invocation := os.Getenv("INVOCATION_ID")
	if invocation == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, journalctlTime)
	defer cancel()
	// What the process wrote last may not be in the journal yet.
	exec.CommandContext(ctx, "journalctl", "--sync").Run()
	args := []string{"--no-pager", "--quiet", "--output=cat", "--lines=" + strconv.Itoa(most),
		"_TRANSPORT=stdout", "_SYSTEMD_INVOCATION_ID=" + invocation}
	args = append(args, options...)
	if pid > 0 {
		args = append(args, "_PID="+strconv.Itoa(pid))
	}
	out, err := exec.CommandContext(ctx, "journalctl", args...).Output()
	if err != nil {
		return nil
	}
	if out = bytes.TrimSpace(out); len(out) == 0 {
		return nil
	}
	return strings.Split(string(out), "\n")
}

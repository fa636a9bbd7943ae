package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/bus"
)

// TestApplyTakesBack: where a step fails before systemd was told anything, the
// files of those before it are as they were.
func TestApplyTakesBack(t *testing.T) {
	p, stdout, stderr := plannedApply(t)
	vms := p.paths.VMDirs[1]
	before := definitionsIn(t, vms)
	if len(p.steps) != 3 {
		t.Fatalf("%d steps, want 3", len(p.steps))
	}
	runs := true
	p.steps = slices.Insert(p.steps, 0, &applyStep{Action: "stop", Kind: config.KindVM, Name: "gone", phase: phaseStop,
		do: func(context.Context) (string, error) { runs = false; return "stopped", nil },
		undo: func(context.Context) (string, error) {
			if now := definitionsIn(t, vms); now != before {
				t.Errorf("started again by other definitions:\n%s", now)
			}
			runs = true
			return "started again", nil
		}})
	p.add(&applyStep{Action: "reload", phase: phaseReload, do: func(context.Context) (string, error) {
		if now := definitionsIn(t, vms); now == before || runs {
			t.Error("nothing was done before")
		}
		return "", errors.New("no systemd")
	}})
	p.add(&applyStep{Action: "start", Kind: config.KindVM, Name: "made", phase: phaseStart})
	if err := p.run(context.Background()); exitStatus(err) != exitFailed {
		t.Errorf("the error is %v", err)
	}
	if !runs || !strings.Contains(stdout.String(), "gone: started again") {
		t.Errorf("what was stopped stays so:\n%s", stdout.String())
	}
	if after := definitionsIn(t, vms); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	for _, s := range p.steps {
		want := stepLeft
		if s.Action == "reload" {
			want = stepFailed
		}
		if s.Result != want {
			t.Errorf("%s %s is %s, want %s", s.Action, s.Name, s.Result, want)
		}
	}
	for _, want := range []string{"vmctl: reload systemd: no systemd\n", "vmctl: left: stop gone, change changed, create made, remove gone, reload systemd, start made\n"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("no %q in %s", want, stderr)
		}
	}
}

// TestApplyTakesBackAStop: the stop that has itself failed may be done in part, or go
// on without us; what comes after is not looked at, and a file that could not be
// written is left alone.
func TestApplyTakesBackAStop(t *testing.T) {
	for _, of := range []phase{phaseStop, phaseFiles} {
		var stdout, stderr bytes.Buffer
		p := &applyPlan{app: &app{ui: &ui{out: &stdout, err: &stderr}}}
		undone := false
		p.add(&applyStep{Action: "stop", Kind: config.KindVM, Name: "web", phase: of,
			do:   func(context.Context) (string, error) { return "", errors.New("interrupted") },
			undo: func(context.Context) (string, error) { undone = true; return "started again", nil }})
		if err := p.run(t.Context()); exitStatus(err) != exitFailed {
			t.Errorf("the error is %v", err)
		}
		if want := of == phaseStop; undone != want || strings.Contains(stdout.String(), "web: started again") != want {
			t.Errorf("of phase %d: taken back is %v, want %v:\n%s", of, undone, want, stdout.String())
		}
		if got := p.steps[0].Result; got != stepFailed {
			t.Errorf("the step is %s", got)
		}
	}
}

// plannedApply has planned to change the machine changed, to create made, and to remove
// gone, without systemd.
func plannedApply(t *testing.T) (p *applyPlan, stdout, stderr *bytes.Buffer) {
	t.Helper()
	paths := config.SystemPaths(t.TempDir())
	vms := paths.VMDirs[1]
	const source = "/srv/env.toml"
	if err := os.MkdirAll(vms, 0o755); err != nil {
		t.Fatal(err)
	}
	qemu := filepath.Join(paths.Root, "usr/bin/qemu-system-x86_64")
	if err := errors.Join(os.MkdirAll(filepath.Dir(qemu), 0o755), os.WriteFile(qemu, []byte("#!/bin/false\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"changed", "gone"} {
		if err := os.WriteFile(config.Definition(vms, name), []byte(config.Marked(source, "cpus = 1\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env, problems := config.ParseEnvironment(paths, source, "[vm.changed]\ncpus = 2\n[vm.made]\ncpus = 2\n", 0o644)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	a := &app{ui: &ui{out: stdout, err: stderr}, paths: paths, root: paths.Root}
	p = &applyPlan{app: a, env: env, source: source, opts: applyOptions{prune: true, noReload: true}, host: a.probe()}
	if err := p.make(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p, stdout, stderr
}

// TestApplyKeepsWhatIsNew: what somebody has written since apply did is not taken back.
func TestApplyKeepsWhatIsNew(t *testing.T) {
	p, _, stderr := plannedApply(t)
	vms := p.paths.VMDirs[1]
	var now string
	p.add(&applyStep{Action: "reload", phase: phaseReload, do: func(context.Context) (string, error) {
		for _, name := range []string{"changed", "gone", "made"} {
			if err := os.WriteFile(config.Definition(vms, name), []byte("cpus = 3\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		now = definitionsIn(t, vms)
		return "", errors.New("no systemd")
	}})
	if err := p.run(t.Context()); exitStatus(err) != exitFailed {
		t.Errorf("the error is %v", err)
	}
	if after := definitionsIn(t, vms); after != now {
		t.Errorf("somebody has written:\n%s\nafter:\n%s", now, after)
	}
	for _, step := range []string{"changed: change", "made: create", "gone: remove"} {
		name, _, _ := strings.Cut(step, ":")
		if want := step + " is not taken back: " + config.Definition(vms, name) + " has changed meanwhile\n"; !strings.Contains(stderr.String(), want) {
			t.Errorf("no %q in %s", want, stderr)
		}
	}
}

// TestApplyTakesBackOwn: of a machine that could not be restarted all files are put back,
// or none.
func TestApplyTakesBackOwn(t *testing.T) {
	for _, edited := range []bool{false, true} {
		p, _, _ := plannedApply(t)
		vms := p.paths.VMDirs[1]
		before := definitionsIn(t, vms)
		dropIn := filepath.Join(vms, "other")
		if err := os.WriteFile(dropIn, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		p.add(&applyStep{Action: "create", Kind: config.KindVM, Name: "changed", File: dropIn, phase: phaseFiles,
			undo:   func(context.Context) (string, error) { return "", os.Remove(dropIn) },
			intact: func() error { return stillHas(dropIn, "") }})
		p.steps = slices.DeleteFunc(p.steps, func(s *applyStep) bool { return s.Name != "changed" })
		if err := p.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if edited {
			if err := os.WriteFile(config.Definition(vms, "changed"), []byte("cpus = 3\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			before = definitionsIn(t, vms)
		}
		if found, err := p.takeBackOwn(t.Context(), "changed"); !found || (err != nil) != edited {
			t.Errorf("edited %v: %v, %v", edited, found, err)
		}
		if after := definitionsIn(t, vms); after != before {
			t.Errorf("edited %v: want:\n%s\nafter:\n%s", edited, before, after)
		}
		if found, err := p.takeBackOwn(t.Context(), "other"); found || err != nil {
			t.Errorf("a machine without changes: %v, %v", found, err)
		}
	}
}

// TestApplyStartsAllAgain: no machine waits until another has started.
func TestApplyStartsAllAgain(t *testing.T) {
	var stdout, stderr bytes.Buffer
	p := &applyPlan{app: &app{ui: &ui{out: &stdout, err: &stderr}}}
	names := []string{"one", "two", "three"}
	var begun sync.WaitGroup
	begun.Add(len(names))
	for _, name := range names {
		p.add(&applyStep{Action: "stop", Kind: config.KindVM, Name: name, phase: phaseStop, Result: stepDone,
			undo: func(context.Context) (string, error) {
				begun.Done()
				begun.Wait()
				return "started again", nil
			}})
	}
	done := make(chan struct{})
	go func() {
		p.undoStops(t.Context(), p.steps)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("one waits for another")
	}
	if got := strings.Count(stdout.String(), ": started again\n"); got != len(names) {
		t.Errorf("%d are told of:\n%s", got, &stdout)
	}
}

func TestTakeBackTime(t *testing.T) {
	of := func(stop, start config.Duration) *config.Machine {
		return &config.Machine{Lifecycle: config.Lifecycle{StopTimeout: stop, StartTimeout: start}}
	}
	minute := config.Duration(time.Minute)
	for _, test := range []struct {
		machine *config.Machine
		want    time.Duration
	}{
		{nil, boundlessTime},
		{of(3*minute, 2*minute), 5*time.Minute + systemdTime},
		{of(config.Infinity, minute), boundlessTime},
		{of(minute, config.Infinity), boundlessTime},
		{of(config.Infinity-minute, minute), boundlessTime},
	} {
		if got := takeBackTime(test.machine); got != test.want {
			t.Errorf("%v: %v, want %v", test.machine, got, test.want)
		}
	}
}

// TestRestartFailed: only a job that has run has ended the machine.
func TestRestartFailed(t *testing.T) {
	told := withHint(errors.New("it ended"), "look")
	for _, test := range []struct {
		err   error
		ended bool
	}{
		{&bus.JobError{Result: "failed"}, true},
		{&bus.JobError{Result: "timeout"}, true},
		{&bus.JobError{Result: "dependency"}, true},
		{&bus.JobError{Result: "canceled"}, false},
		{bus.ErrConnectionLost, false},
		{bus.ErrNoSuchUnit, false},
		{context.Canceled, false},
	} {
		got := inName("restart", "web", restartFailed(test.err, told))
		if _, ended := errors.AsType[*restartError](got); ended != test.ended || hintOf(got) != "look" {
			t.Errorf("%v: %v is of a job that has run: %v, want %v", test.err, got, ended, test.ended)
		}
	}
}

// definitionsIn are all files in a directory, with modes and contents.
func definitionsIn(t *testing.T, dir string) string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := ""
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all += f.Name() + " " + info.Mode().String() + "\n" + string(content)
	}
	return all
}

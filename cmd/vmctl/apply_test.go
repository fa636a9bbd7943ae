package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// TestApplyTakesBack: where a step fails before systemd was told anything, the
// files of those before it are as they were.
func TestApplyTakesBack(t *testing.T) {
	paths := config.SystemPaths(t.TempDir())
	vms := paths.VMDirs[1]
	const source = "/srv/env.toml"
	at := func(name string) string { return config.Definition(vms, name) }
	if err := os.MkdirAll(vms, 0o755); err != nil {
		t.Fatal(err)
	}
	qemu := filepath.Join(paths.Root, "usr/bin/qemu-system-x86_64")
	if err := errors.Join(os.MkdirAll(filepath.Dir(qemu), 0o755), os.WriteFile(qemu, []byte("#!/bin/false\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"changed", "gone"} {
		if err := os.WriteFile(at(name), []byte(config.Marked(source, "cpus = 1\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := definitionsIn(t, vms)
	env, problems := config.ParseEnvironment(paths, source, "[vm.changed]\ncpus = 2\n[vm.made]\ncpus = 2\n", 0o644)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var stdout, stderr bytes.Buffer
	a := &app{ui: &ui{out: &stdout, err: &stderr}, paths: paths, root: paths.Root}
	p := &applyPlan{app: a, env: env, source: source, opts: applyOptions{prune: true, noReload: true}, host: a.probe()}
	if err := p.make(context.Background()); err != nil {
		t.Fatal(err)
	}
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
			t.Errorf("no %q in %s", want, &stderr)
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

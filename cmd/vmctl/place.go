package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// A reload has systemd read every unit again. For a machine whose unit it has
// not loaded there is a shorter way: to write what the generator would write, to
// where it would. The next reload, whoever asks for it, replaces that by the
// generator's own, so it never stands in the way of anything.

// placeAll does so for each machine where it can be done. It returns the names
// for which it could not.
func (f *freshener) placeAll(ctx context.Context, names []string) (left []string) {
	for _, name := range names {
		vm, err := f.app.findIn(f.set, name)
		if err != nil || len(vm.Problems) > 0 || !f.place(ctx, f.app.plan(vm, f.host)) {
			left = append(left, name)
		}
	}
	return left
}

// place writes what systemd has to be told of one machine, and says whether
// systemd has taken it.
func (f *freshener) place(ctx context.Context, p planned) bool {
	// What starts with the host is linked too, of which systemd learns by a
	// reload alone.
	if len(p.Problems) > 0 || p.VM.Autostart {
		return false
	}
	for _, file := range p.Files {
		path := filepath.Join(f.app.paths.GeneratorDir, file.Name)
		if file.Link != "" || filepath.Ext(path) != ".conf" {
			continue // what starts by itself, of which a reload tells systemd
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return false
		}
		if err := access.WriteFile(path, []byte(file.Text), 0o644, false); err != nil {
			return false
		}
	}
	// systemd looks for new directories where one of its own has changed since it
	// looked last, but does not expect it of those of generators.
	if err := os.MkdirAll(f.app.paths.DropInDir, 0o755); err != nil {
		return false
	}
	now := time.Now()
	if err := os.Chtimes(f.app.paths.DropInDir, now, now); err != nil {
		return false
	}
	if !f.knows(ctx, config.Unit(p.VM.Name)) {
		return false
	}
	for _, s := range p.Plan.Sidecars {
		if !f.knows(ctx, s.Unit) {
			return false
		}
	}
	return true
}

// knows says whether systemd has read what was placed for a unit. It loads the
// unit, where it was not.
func (f *freshener) knows(ctx context.Context, unit string) bool {
	has, err := f.conn.Properties(ctx, unit)
	return err == nil && !has.NeedDaemonReload && slices.Contains(has.DropInPaths, filepath.Join(f.app.paths.GeneratorDir, unit+".d", "50-vmctl.conf"))
}

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/units"
)

// planned is what a definition comes to on this host: what the generator would
// do with it, or why nothing can be done.
type planned struct {
	VM       config.VM
	Plan     *hypervisor.Plan // nil where there are problems
	Digest   string
	Files    []units.File
	Problems []config.Problem
}

// plan works a definition out. It reads and changes nothing.
func (a *app) plan(vm config.VM, host hypervisor.Host) planned {
	p := planned{VM: vm, Problems: vm.Problems}
	if vm.Machine == nil {
		return p
	}
	plan, problems := all.Plan(vm.Machine, host, a.paths)
	if len(problems) > 0 {
		p.Problems = problems
		return p
	}
	digest := hypervisor.Digest(vm.Machine, plan)
	files, problems := units.Render(vm, plan, digest, units.EnvOf("", a.paths, host.Systemd, vm.Name))
	if len(problems) > 0 {
		p.Problems = problems
		return p
	}
	p.Plan, p.Digest, p.Files = plan, digest, files
	return p
}

// planName finds a definition by its name and plans it.
func (a *app) planName(name string) (planned, error) {
	vm, err := a.find(name)
	if err != nil {
		return planned{}, err
	}
	p := a.plan(vm, a.probe())
	if len(p.Problems) > 0 {
		return p, invalid(vm, p.Problems)
	}
	return p, nil
}

// dropIn is the text that systemd is to have, "" where there are problems.
func (p planned) dropIn() string {
	for _, f := range p.Files {
		if f.Name == units.DropIn(p.VM.Name) {
			return f.Text
		}
	}
	return ""
}

// generated is the drop-in that the generator last wrote for a machine, "" for
// none.
func (a *app) generated(name string) string {
	// What cannot be read is as good as not there: a reload writes it again.
	text, _ := os.ReadFile(filepath.Join(a.paths.GeneratorDir, units.DropIn(name)))
	return string(text)
}

// asInvalid makes a problem of the definition what it is to the exit status.
func asInvalid(err error) error {
	if p, ok := errors.AsType[config.Problem](err); ok {
		return &invalidError{[]config.Problem{p}}
	}
	return err
}

// inName puts the name before an error, but for one that names its file.
func inName(verb, name string, err error) error {
	if _, ok := errors.AsType[*invalidError](err); ok {
		return err
	}
	if _, ok := errors.AsType[*notFoundError](err); ok {
		return err
	}
	return fmt.Errorf("%s %s: %w", verb, name, err)
}

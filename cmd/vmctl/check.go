package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/cloudinit"
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

func newCheckCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check [NAME|FILE...]",
		Short: "Check definitions: every problem, by file, line and key",
		Long: `Check definitions, all of them or those named. A FILE (with a slash, or ending
in .toml) is checked as a definition of its own, wherever it lies. Each problem
is one line, file:line: key: what was wanted, what was there. Warnings are what
may be right on another day or another host, such as a file that is not there.`,
		Example: `  vmctl check
  vmctl check web
  vmctl check ./new.toml && install -m 644 new.toml /etc/vmctl/vms/`,
		GroupID: groupDefine,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			names, _ := a.completeNames(cmd, args, prefix)
			return names, cobra.ShellCompDirectiveDefault
		},
		RunE: func(_ *cobra.Command, args []string) error { return runCheck(a, args) },
	}
}

// finding is one line of vmctl check.
type finding struct {
	config.Problem
	Severity string `json:"severity"` // "error" or "warning"
}

// runCheck prints what is wrong with the definitions; the error is an
// invalidError where there is any problem.
func runCheck(a *app, args []string) error {
	vms, findings, err := a.checked(args)
	if err != nil {
		return err
	}
	host := a.probe()
	for _, vm := range vms {
		findings = append(findings, a.check(vm, host)...)
	}
	var problems []config.Problem
	for _, f := range findings {
		if f.Severity == "error" {
			problems = append(problems, f.Problem)
		}
	}
	if err := printFindings(a, findings); err != nil {
		return err
	}
	if len(problems) == 0 {
		a.ui.printf("%s checked, no problem", count(len(vms), "definition"))
		return nil
	}
	return &statusError{&invalidError{problems}, exitInvalid}
}

// checked returns the definitions that the arguments mean, and what is wrong
// with files that are no definition.
func (a *app) checked(args []string) ([]config.VM, []finding, error) {
	if len(args) == 0 {
		set, err := config.Load(a.paths)
		if err != nil {
			return nil, nil, err
		}
		return set.VMs, severity("error", set.Problems), nil
	}
	var vms []config.VM
	for _, arg := range args {
		if isFile(arg) {
			vms = append(vms, config.LoadFile(a.paths, arg))
			continue
		}
		vm, err := a.findChecked(arg)
		if err != nil {
			return nil, nil, err
		}
		vms = append(vms, vm)
	}
	return vms, nil, nil
}

// findChecked is find with the checks that concern other machines.
func (a *app) findChecked(name string) (config.VM, error) {
	vm, err := a.find(name)
	if err != nil {
		return vm, err
	}
	set, err := config.Load(a.paths)
	if err != nil {
		return vm, err
	}
	for _, other := range set.VMs {
		if other.Name == name {
			return other, nil
		}
	}
	return vm, nil
}

// check finds what is wrong with one definition on this host.
func (a *app) check(vm config.VM, host hypervisor.Host) []finding {
	p := a.plan(vm, host)
	if len(p.Problems) > 0 {
		problems := p.Problems
		config.SortProblems(problems)
		return severity("error", problems)
	}
	var warnings []config.Problem
	for _, text := range p.Plan.Warnings {
		warnings = append(warnings, config.Problem{File: vm.File, Text: text})
	}
	for _, f := range p.Plan.Files {
		if _, err := os.Stat(f.Path); errors.Is(err, fs.ErrNotExist) {
			warnings = append(warnings, vm.Machine.Problem(f.Key, "%s does not exist", f.Path))
		}
	}
	seedErr, seedWarning := checkSeed(vm.Machine)
	if seedErr != nil {
		return severity("error", asProblems(seedErr))
	}
	warnings = append(warnings, asProblems(seedWarning)...)
	config.SortProblems(warnings)
	return severity("warning", warnings)
}

// checkSeed says whether a seed can be made of the definition: an error where
// it never can, a warning where a file of it cannot be read today.
func checkSeed(m *config.Machine) (err, warning error) {
	if !m.CloudInit.Enabled {
		return nil, nil
	}
	noFile := func(string) ([]byte, error) { return nil, nil }
	if _, err := cloudinit.Files(m, noFile); err != nil {
		return err, nil
	}
	_, warning = cloudinit.Files(m, cloudinit.ReadFile)
	return nil, warning
}

// asProblems is the problem that err is, none where it is nil.
func asProblems(err error) []config.Problem {
	if p, ok := errors.AsType[config.Problem](err); ok {
		return []config.Problem{p}
	}
	return nil
}

// severity makes findings of problems.
func severity(s string, problems []config.Problem) []finding {
	var fs []finding
	for _, p := range problems {
		fs = append(fs, finding{p, s})
	}
	return fs
}

// printFindings prints them, one a line.
func printFindings(a *app, findings []finding) error {
	if a.ui.format == jsonFormat {
		if findings == nil {
			findings = []finding{}
		}
		return a.ui.json(findings)
	}
	for _, f := range findings {
		if f.Severity == "warning" {
			f.Text = "warning: " + f.Text
		}
		a.ui.printf("%s", f.Problem.Error())
	}
	return nil
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

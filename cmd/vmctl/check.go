package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/cloudinit"
	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/image"
	"github.com/vmctl/vmctl/netsetup"
)

func newCheckCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check [NAME|FILE...]",
		Short: "Check definitions: every problem, by file, line and key",
		Long: `Check definitions, all of them, with those of networks, security groups and templates, or those named; each of
them, also where one is broken or not there. A FILE (with a slash, or ending in
.toml) is checked as a definition of its own, wherever it lies. Each problem is
one line, file:line: key: what was wanted, what was there. Warnings are what may
be right on another day or another host, such as a file, a directory, an
interface or a device that is not there, or what the cloud-hypervisor that is
installed is too old for. A program that a definition names is not run for that.`,
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

func (f finding) isError() bool { return f.Severity == "error" }

// errorsOf are the problems that make definitions invalid.
func errorsOf(findings []finding) []config.Problem {
	var problems []config.Problem
	for _, f := range findings {
		if f.isError() {
			problems = append(problems, f.Problem)
		}
	}
	return problems
}

// isOfHost says whether it is a warning of no key: what the plan says of the
// host, the same for each machine that it concerns.
func (f finding) isOfHost() bool { return !f.isError() && f.Key == "" }

// runCheck prints what is wrong with the definitions; the error is an
// invalidError where there is any problem.
func runCheck(a *app, args []string) error {
	vms, findings, errs, err := a.checked(args)
	if err != nil {
		return err
	}
	others, invalid := len(findings), 0
	shared := 0
	if len(args) == 0 {
		all, _ := a.networks() // the rest is in findings
		shared = len(all)
		found, broken := a.checkNetworks(all)
		findings, invalid = append(findings, found...), broken
		groups, _ := config.LoadSecurityGroups(a.paths)
		shared += len(groups)
		for _, g := range groups {
			findings = append(findings, severity("error", g.Problems)...)
			if len(g.Problems) > 0 {
				invalid++
			}
		}
	}
	l := a.lookups()
	for _, vm := range vms {
		found := a.check(vm, l)
		if slices.ContainsFunc(found, finding.isError) {
			invalid++
		}
		findings = append(findings, found...)
	}
	if len(args) == 0 {
		templates, _ := config.LoadTemplates(a.paths)
		shared += len(templates)
		for _, t := range templates {
			found := slices.DeleteFunc(severity("error", t.Problems), func(f finding) bool { return slices.Contains(findings, f) })
			if findings = append(findings, found...); len(t.Problems) > 0 {
				invalid++
			}
		}
	}
	if err := printFindings(a, findings); err != nil {
		return err
	}
	for _, err := range errs {
		a.ui.errorf(err)
	}
	if len(vms) > 0 || len(errs) == 0 {
		a.ui.printf("%s", checkSummary(len(vms)+shared, invalid, others, warnings(findings)))
	}
	if problems := errorsOf(findings); len(problems) > 0 {
		errs = append(errs, &invalidError{problems})
	}
	if err := worst(errs); err != nil {
		return &statusError{errors.Join(errs...), exitStatus(err)}
	}
	return nil
}

// checkSummary is the last line: of how many definitions how many are invalid,
// how many problems concern none of them, and how many warnings there are.
func checkSummary(definitions, invalid, others, warnings int) string {
	text := count(definitions, "definition") + " checked"
	if invalid > 0 {
		text += fmt.Sprintf(", %d invalid", invalid)
	}
	if others > 0 {
		text += ", " + count(others, "other problem")
	}
	if warnings > 0 {
		text += ", " + count(warnings, "warning")
	}
	if invalid+others+warnings == 0 {
		text += ", no problem"
	}
	return text
}

// warnings are how many are told: that of the host once.
func warnings(findings []finding) int {
	n, told := 0, map[string]bool{}
	for _, f := range findings {
		if !f.isError() && !(f.isOfHost() && told[f.Text]) {
			n++
			told[f.Text] = true
		}
	}
	return n
}

// checked returns the definitions that the arguments mean, what is wrong with
// files that are no definition, and the errors of arguments that mean nothing.
func (a *app) checked(args []string) (vms []config.VM, findings []finding, errs []error, err error) {
	set, err := config.Load(a.paths)
	if err != nil {
		return nil, nil, nil, err
	}
	if len(args) == 0 {
		return set.VMs, severity("error", set.Problems), nil, nil
	}
	for _, arg := range args {
		if a.isFile(arg) {
			if err := isGiven(arg); err != nil {
				errs = append(errs, err)
				continue
			}
			vms = append(vms, config.LoadFile(a.paths, arg))
		} else if vm, err := a.findIn(set, arg); err != nil {
			errs = append(errs, err)
		} else {
			vms = append(vms, vm)
		}
	}
	return vms, nil, errs, nil
}

// findChecked is find with the checks that concern other machines.
func (a *app) findChecked(name string) (config.VM, error) {
	set, err := config.Load(a.paths)
	if err != nil {
		return config.VM{}, err
	}
	return a.findIn(set, name)
}

// findIn finds a definition among those that were loaded together.
func (a *app) findIn(set *config.Set, name string) (config.VM, error) {
	i, there := slices.BinarySearchFunc(set.VMs, name, func(vm config.VM, name string) int { return strings.Compare(vm.Name, name) })
	if there {
		return set.VMs[i], nil
	}
	// Which says why not.
	return a.find(name)
}

// basesFunc finds out what disks stand on, once: most machines write to no file
// but their own.
type basesFunc func() (image.Bases, error)

func (a *app) bases() basesFunc { return sync.OnceValues(a.store().Bases) }

// check finds what is wrong with one definition on this host.
func (a *app) check(vm config.VM, l lookups) []finding {
	p := a.plan(vm, l.host)
	if len(p.Problems) > 0 {
		problems := p.Problems
		config.SortProblems(problems)
		return severity("error", problems)
	}
	if problem := a.checkSchedule(vm.Machine); problem != nil {
		return severity("error", []config.Problem{*problem})
	}
	if problems := a.checkWritten(vm.Machine, p.Plan, l.bases); len(problems) > 0 {
		return severity("error", problems)
	}
	var warnings []config.Problem
	for _, text := range p.Plan.Warnings {
		warnings = append(warnings, config.Problem{File: vm.File, Text: text})
	}
	warnings = append(warnings, a.checkImages(vm.Machine)...)
	warnings = append(warnings, a.checkPorts(vm.Machine)...)
	warnings = append(warnings, a.checkHost(vm.Machine, p.Plan, l.host)...)
	refused, without := checkFit(vm.Machine, p.Plan, l)
	warnings = append(warnings, slices.Concat(refused, without)...)
	seedErr, seedWarning := checkSeed(vm.Machine)
	if seedErr != nil {
		return severity("error", asProblems(seedErr))
	}
	warnings = append(warnings, asProblems(seedWarning)...)
	warnings = append(warnings, vm.Warnings...)
	warnings = append(warnings, vm.Overridden...)
	config.SortProblems(warnings)
	return severity("warning", warnings)
}

// tellOverridden warns of what is written in files of a definition and does not
// hold.
func (a *app) tellOverridden(vm config.VM) {
	for _, p := range vm.Overridden {
		a.ui.warnf("%s", p.Error())
	}
}

// checkSchedule asks systemd whether it understands when snapshots are to be
// taken.
func (a *app) checkSchedule(m *config.Machine) *config.Problem {
	if !m.Snapshots.Scheduled() {
		return nil
	}
	_, err := exec.Command("systemd-analyze", "calendar", m.Snapshots.Schedule).Output()
	// Without the program it is systemd that says so.
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		why, _, _ := strings.Cut(string(e.Stderr), "\n")
		p := m.Problem("snapshots.schedule", "systemd does not understand it: %s", printable(why))
		return &p
	}
	return nil
}

// checkWritten finds files that the machine would write to and must not: stored
// images, and what other disks stand on. Of those it knows what the caller may
// read.
func (a *app) checkWritten(m *config.Machine, plan *hypervisor.Plan, bases basesFunc) []config.Problem {
	var problems []config.Problem
	for _, f := range plan.Files {
		if !f.Disk || !f.Write {
			continue
		}
		info, err := os.Stat(f.Path)
		if err != nil {
			continue // of which check warns
		}
		if name := a.store().NameOf(f.Path); name != "" {
			problems = append(problems, m.Problem(f.Key, "%v", image.WrittenError(f.Path, name)))
			continue
		}
		b, err := bases()
		if err != nil {
			return nil // who could not load definitions has been told
		}
		if err := b.Refuse(m, info, f.Path); err != nil {
			problems = append(problems, m.Problem(f.Key, "%v", err))
		}
	}
	return problems
}

// checkImages warns of images that are neither stored nor could be pulled when
// the machine starts, and of disks that are smaller than theirs.
func (a *app) checkImages(m *config.Machine) []config.Problem {
	var warnings []config.Problem
	for _, d := range m.Disks {
		if d.Image == "" {
			continue
		}
		i, err := a.store().Get(d.Image)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !a.canPull(d.Image):
			warnings = append(warnings, m.Problem(d.Key()+".image", "no image is stored by the name %s, and it is none that can be pulled", d.Image))
		case err == nil && d.Size > 0 && int64(d.Size) < i.VirtualSize:
			warnings = append(warnings, m.Problem(d.Key()+".size", "the image %s has %s, the disk is to have %s", d.Image, config.Size(i.VirtualSize), d.Size))
		}
	}
	return warnings
}

// checkPorts warns of ports of the host that the machine is to have, and that are
// root's or that somebody listens on. Once it runs, that may be itself; so it may
// where the caller must not look into its directory, which is there then.
func (a *app) checkPorts(m *config.Machine) []config.Problem {
	if !isAbsent(a.paths.ControlSocket(m.Name)) {
		return nil
	}
	// Without that, its start finds out.
	listeners, _ := netsetup.Listeners(a.root)
	return append(netsetup.LowPorts(m, a.root, func(n config.NIC) bool { return a.probe().MayBindLowPorts(n, a.paths.User) }), netsetup.TakenPorts(m, listeners, func(n config.NIC) bool { return a.probe().RunsPasst(n) })...)
}

// canPull says whether an image has a short name that is known.
func (a *app) canPull(name string) bool {
	sources, _ := config.LoadImages(a.paths)
	return slices.ContainsFunc(sources, func(s config.ImageSource) bool { return s.Name == name })
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

// printFindings prints them, one a line. What is wrong with the host is told
// once to people, not for each machine.
func printFindings(a *app, findings []finding) error {
	if a.ui.format == jsonFormat {
		if findings == nil {
			findings = []finding{}
		}
		return a.ui.json(findings)
	}
	told := map[string]int{} // how many machines have a warning that is of no key
	for _, f := range findings {
		if f.isOfHost() {
			told[f.Text]++
		}
	}
	for _, f := range findings {
		if n := told[f.Text]; f.isOfHost() && n != 1 {
			if n == 0 {
				continue
			}
			told[f.Text] = 0
			f.File, f.Text = "", fmt.Sprintf("%s (%s)", f.Text, count(n, "definition"))
		}
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

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/units/bus"
)

// What an environment comes to is decided by what there is: which files, which
// images, what runs. So an apply that was cut off at any moment is finished by the
// next, and one of what is there already does nothing.

// applyPlan is what there is to be done.
type applyPlan struct {
	*app
	conn   *bus.Conn // nil where nothing but files is to be written
	opts   applyOptions
	env    *config.Environment
	source string
	host   hypervisor.Host

	next    *app // as it is going to be
	removed []config.AppliedFile

	looks    []look // at machines, with their definitions as they are going to be
	networks []networkLook
	// concerned are the machines that the environment declares, or changes by a
	// template or the like.
	concerned map[string]bool

	steps    []*applyStep
	pending  []string
	warnings []finding
}

// The results of steps.
const (
	stepPlanned = "planned"
	stepDone    = "done"
	stepFailed  = "failed"
	stepLeft    = "left"
)

// applyStep is one thing to be done.
type applyStep struct {
	Action      string              `json:"action"` // create, change, remove, pull, reload, start, stop, restart
	Kind        config.Kind         `json:"kind"`   // "" for systemd
	Name        string              `json:"name"`
	File        string              `json:"file"`
	Differences []config.Difference `json:"differences"`
	Result      string              `json:"result"` // planned, done, failed, or left after a failure
	Error       *errorJSON          `json:"error"`

	detail string // for people
	phase  phase
	do     func(context.Context) (string, error)
	undo   func(context.Context) (string, error) // what do has done; nil where that harms nobody
	intact func() error                          // why undo would destroy what somebody else has done since; nil where it cannot
}

// phase is when a step is done: each phase after those before it.
type phase int

const (
	phasePull phase = iota
	phaseStop
	phaseFiles
	phaseReload
	phaseNetworks // from here on, one that fails keeps no other from being done
	phaseLive
	phaseStart
)

// what is the kind of thing, for people.
func (s *applyStep) what() string {
	switch s.Kind {
	case "":
		return "systemd"
	case config.KindVM:
		return "VM"
	}
	return strings.ReplaceAll(string(s.Kind), "_", " ")
}

// label is what is told of it: a machine's name alone.
func (s *applyStep) label() string {
	if s.Kind == config.KindVM {
		return s.Name
	}
	return strings.TrimSpace(s.what() + " " + s.Name)
}

func (p *applyPlan) add(s *applyStep) {
	if s.Differences == nil {
		s.Differences = []config.Difference{}
	}
	p.steps = append(p.steps, s)
}

// make finds out what there is to be done. The error is of what makes all of it
// impossible: nothing has been done then.
func (p *applyPlan) make(ctx context.Context) error {
	p.steps, p.pending, p.warnings, p.concerned = []*applyStep{}, []string{}, []finding{}, map[string]bool{}
	if err := p.findRemoved(); err != nil {
		return err
	}
	var gone []string
	for _, f := range p.removed {
		gone = append(gone, f.Path)
	}
	next := *p.app
	next.paths = p.paths.With(p.env.Files, gone)
	p.next = &next
	if err := p.checkOwners(); err != nil {
		return err
	}
	before, err := config.Load(p.paths)
	if err != nil {
		return err
	}
	after, err := config.Load(next.paths)
	if err != nil {
		return err
	}
	if err := p.validate(before, after); err != nil {
		return err
	}
	if p.conn != nil {
		if p.looks, _, err = next.lookAll(ctx, p.conn); err != nil {
			return err
		}
		if !p.user {
			if p.networks, err = next.lookNetworks(ctx, p.conn); err != nil {
				return err
			}
		}
		if err := p.planStops(); err != nil {
			return err
		}
	}
	p.planPulls(after)
	p.planFiles(before, after)
	if p.conn != nil {
		p.planReload(after)
		p.planNetworks()
		p.planMachines()
	}
	slices.SortStableFunc(p.steps, func(a, b *applyStep) int { return int(a.phase - b.phase) })
	return nil
}

// findRemoved finds what is to be pruned.
func (p *applyPlan) findRemoved() error {
	if !p.opts.prune {
		return nil
	}
	all, err := config.AppliedFrom(p.paths, p.source)
	if err != nil {
		return err
	}
	for _, f := range all {
		if slices.ContainsFunc(p.env.Files, func(e config.EnvironmentFile) bool { return e.Path == f.Path }) {
			continue
		}
		if !f.Intact {
			return changedSince(f.Path)
		}
		p.removed = append(p.removed, f)
	}
	return nil
}

func changedSince(path string) error {
	return withHint(&stateError{fmt.Errorf("%s has been changed since it was applied", path)},
		"put the change into what is applied, and remove the file; or remove its first line to keep it as your own")
}

// checkOwners refuses to write where somebody else has, each such file by name.
func (p *applyPlan) checkOwners() error {
	var errs []error
	for _, f := range p.env.Files {
		if err := p.checkOwner(f); err != nil {
			p.ui.errorf(err)
			errs = append(errs, err)
		}
	}
	return worst(errs)
}

func (p *applyPlan) checkOwner(f config.EnvironmentFile) error {
	if !f.DropIn {
		if first := filepath.Join(p.firstDir(f.Kind), filepath.Base(f.Path)); access.IsThere(first) {
			return &stateError{fmt.Errorf("%s: %s is there, and goes before what would be written to %s", f.From, first, f.Path)}
		}
	}
	content, err := config.ReadFile(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	switch from, intact := config.Mark(string(content)); {
	case from == "":
		return withHint(&stateError{fmt.Errorf("%s: %s is there, and was not written by vmctl apply", f.From, f.Path)},
			"move that file away, or leave it out of what is applied")
	case from != p.source:
		return withHint(&stateError{fmt.Errorf("%s: %s is there, and was applied from %s", f.From, f.Path, from)},
			"--name "+from+" is for one that has moved")
	case !intact:
		return changedSince(f.Path)
	}
	return nil
}

// firstDir is the directory whose files go before the administrator's.
func (p *applyPlan) firstDir(kind config.Kind) string {
	return map[config.Kind][]string{
		config.KindVM: p.paths.VMDirs, config.KindTemplate: p.paths.TemplateDirs,
		config.KindNetwork: p.paths.NetworkDirs, config.KindSecurityGroup: p.paths.SecurityGroupDirs,
	}[kind][0]
}

// declares says whether the environment has a file of a kind and name.
func (p *applyPlan) declares(kind config.Kind, name string) bool {
	return slices.ContainsFunc(p.env.Files, func(f config.EnvironmentFile) bool { return f.Kind == kind && f.Name == name })
}

// validate refuses an environment that would not work, or would break what is
// there.
func (p *applyPlan) validate(before, after *config.Set) error {
	sound := map[string]bool{}
	for _, vm := range before.VMs {
		sound["vm "+vm.Name] = len(vm.Problems) == 0
	}
	for _, n := range before.Networks {
		sound["network "+n.Name] = len(n.Problems) == 0
	}
	for _, g := range before.Groups {
		sound["group "+g.Name] = len(g.Problems) == 0
	}
	problems := slices.DeleteFunc(slices.Clone(after.Problems), func(q config.Problem) bool { return slices.Contains(before.Problems, q) })
	for _, n := range after.Networks {
		if p.declares(config.KindNetwork, n.Name) || sound["network "+n.Name] {
			problems = append(problems, n.Problems...)
		}
	}
	for _, g := range after.Groups {
		if p.declares(config.KindSecurityGroup, g.Name) || sound["group "+g.Name] {
			problems = append(problems, g.Problems...)
		}
	}
	templates, _ := config.LoadTemplates(p.next.paths)
	for _, t := range templates {
		if p.declares(config.KindTemplate, t.Name) {
			problems = append(problems, t.Problems...)
		}
	}
	_, images := config.LoadImages(p.next.paths)
	_, imagesBefore := config.LoadImages(p.paths)
	problems = append(problems, slices.DeleteFunc(images, func(q config.Problem) bool { return slices.Contains(imagesBefore, q) })...)
	l := lookups{p.host, p.next.bases(), p.next.releases()}
	for _, vm := range after.VMs {
		switch {
		case p.declares(config.KindVM, vm.Name):
			for _, f := range p.next.check(vm, l) {
				if f.isError() {
					problems = append(problems, f.Problem)
				} else {
					p.warn(f)
				}
			}
		case sound["vm "+vm.Name]:
			problems = append(problems, vm.Problems...)
		}
	}
	if len(problems) == 0 {
		return nil
	}
	var out []config.Problem
	for _, q := range problems { // one of a template is that of each machine
		if q = p.atSource(q); !slices.Contains(out, q) {
			out = append(out, q)
		}
	}
	config.SortProblems(out)
	return &invalidError{out}
}

// warn keeps a warning, once for all machines that it concerns.
func (p *applyPlan) warn(f finding) {
	f.Problem = p.atSource(f.Problem)
	if f.isOfHost() {
		f.File = ""
	}
	if !slices.Contains(p.warnings, f) {
		p.warnings = append(p.warnings, f)
	}
}

// atSource is a problem where people wrote what is wrong.
func (p *applyPlan) atSource(q config.Problem) config.Problem {
	for _, f := range p.env.Files {
		q = f.AtSource(q)
	}
	return q
}

// planStops plans the ends of what is to be pruned and runs.
func (p *applyPlan) planStops() error {
	pruned := map[string]bool{}
	var errs []error
	for _, f := range p.removed {
		if f.Kind != config.KindVM || f.DropIn {
			continue
		}
		pruned[f.Name] = true
		i := slices.IndexFunc(p.looks, func(l look) bool { return l.vm.Name == f.Name })
		if i < 0 || !p.looks[i].active() && p.looks[i].state != starting && p.looks[i].state != loading {
			continue
		}
		if !p.opts.force {
			errs = append(errs, withHint(&transitionError{From: p.looks[i].state, Reason: f.Name + " is to be removed, and runs"}, "--force shuts it down first"))
			continue
		}
		p.add(&applyStep{Action: "stop", Kind: config.KindVM, Name: f.Name, phase: phaseStop, do: func(ctx context.Context) (string, error) {
			return p.noted(opStop, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
				return p.stop(ctx, conn, stopOptions{}, name)
			})(ctx, p.conn, f.Name)
		}, undo: p.startAgain(f.Name)})
	}
	for _, f := range p.removed {
		if f.Kind != config.KindNetwork || f.DropIn {
			continue
		}
		i := slices.IndexFunc(p.networks, func(l networkLook) bool { return l.file.Name == f.Name })
		if i < 0 || p.networks[i].unit.Active == "" {
			continue
		}
		l := p.networks[i]
		if users := slices.DeleteFunc(l.machines(true), func(name string) bool { return pruned[name] }); len(users) > 0 {
			errs = append(errs, &transitionError{From: l.state, Reason: "the network " + f.Name + " is to be removed, and machines that run are plugged into it: " + strings.Join(users, ", ")})
			continue
		}
		p.add(&applyStep{Action: "stop", Kind: config.KindNetwork, Name: f.Name, phase: phaseStop, do: func(ctx context.Context) (string, error) {
			return "stopped", p.conn.Stop(ctx, config.NetworkUnit(f.Name))
		}, undo: p.startNetworkAgain(f.Name)})
	}
	for _, err := range errs {
		p.ui.errorf(err)
	}
	return worst(errs)
}

// putBack takes the change of a file back.
func putBack(file string, do func() error) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return "put back " + file + " as it was", do() }
}

// stillHas refuses to touch a file that has another text by now, or is gone: that is
// somebody else's.
func stillHas(path, text string) error {
	if now, err := config.ReadFile(path); err != nil || string(now) != text {
		return changedMeanwhile(path)
	}
	return nil
}

func changedMeanwhile(path string) error {
	return &stateError{fmt.Errorf("%s has changed meanwhile", path)}
}

// planPulls plans to get the images that are declared, or that machines need, and
// that can be had.
func (p *applyPlan) planPulls(after *config.Set) {
	p.warnOfSources()
	if p.opts.noPull || p.opts.noReload {
		return
	}
	var wanted []string
	for _, f := range p.env.Files {
		if f.Kind == config.KindImage {
			wanted = append(wanted, f.Name)
		}
	}
	for _, vm := range after.VMs {
		if vm.Machine == nil || !p.declares(config.KindVM, vm.Name) {
			continue
		}
		for _, d := range vm.Machine.Disks {
			if d.Image != "" && p.next.canPull(d.Image) {
				wanted = append(wanted, d.Image)
			}
		}
	}
	slices.Sort(wanted)
	for _, name := range slices.Compact(wanted) {
		if _, err := p.store().Get(name); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		p.add(&applyStep{Action: "pull", Kind: config.KindImage, Name: name, phase: phasePull, do: func(ctx context.Context) (string, error) {
			r, err := p.next.pullRequest(pullOptions{}, name)
			if err != nil {
				return "", err
			}
			if _, _, err := p.next.pull(ctx, r, false); err != nil {
				return "", pullError(r, err)
			}
			return "stored", nil
		}})
	}
}

// warnOfSources warns of images that are declared to be had from elsewhere than
// those that are stored by their names: disks may stand on these.
func (p *applyPlan) warnOfSources() {
	sources, _ := config.LoadImages(p.next.paths)
	for _, s := range sources {
		i, err := p.store().Get(s.Name)
		if err != nil || !p.declares(config.KindImage, s.Name) || i.Source == s.URL {
			continue
		}
		f := finding{config.Problem{Key: "image." + s.Name + ".url", Text: fmt.Sprintf("the image that is stored by this name is of %s, and stays: vmctl image pull --update %s replaces it, once no disk stands on it", i.Source, s.Name)}, "warning"}
		if k := slices.IndexFunc(p.env.Files, func(f config.EnvironmentFile) bool { return f.Kind == config.KindImage && f.Name == s.Name }); k >= 0 {
			f.File = p.env.Files[k].From
		}
		p.warn(f)
	}
}

// planFiles plans to write and remove files, and finds which machines that
// concerns.
func (p *applyPlan) planFiles(before, after *config.Set) {
	for _, vm := range after.VMs {
		if p.declares(config.KindVM, vm.Name) {
			p.concerned[vm.Name] = true
		}
	}
	var written []*applyStep
	for _, f := range p.env.Files {
		if s := p.fileStep(f, after); s != nil {
			written = append(written, s)
		}
	}
	if len(written)+len(p.removed) == 0 {
		return
	}
	changes, told := p.differences(before, after), map[string]bool{}
	for _, s := range written {
		if key := string(s.Kind) + " " + s.Name; s.Action == "change" && !told[key] {
			s.Differences, told[key] = append([]config.Difference{}, changes[key]...), true
		}
		p.add(s)
	}
	for _, vm := range after.VMs { // by a template, or the host's settings
		key := string(config.KindVM) + " " + vm.Name
		if len(changes[key]) == 0 || told[key] {
			continue
		}
		p.concerned[vm.Name] = true
		p.add(&applyStep{Action: "change", Kind: config.KindVM, Name: vm.Name, Differences: changes[key], phase: phaseFiles, detail: "by what it is made of"})
	}
	for _, f := range slices.Backward(p.removed) {
		p.add(p.removeStep(f))
	}
}

// differences are those of everything that is there before and after, by kind and
// name.
func (p *applyPlan) differences(before, after *config.Set) map[string][]config.Difference {
	all := map[string][]config.Difference{}
	machines := map[string]*config.Machine{}
	for _, vm := range before.VMs {
		machines[vm.Name] = vm.Machine
	}
	for _, vm := range after.VMs {
		if was := machines[vm.Name]; was != nil && vm.Machine != nil {
			all[string(config.KindVM)+" "+vm.Name] = config.Differences(was, vm.Machine)
		}
	}
	networks := map[string]*config.Network{}
	for _, n := range before.Networks {
		networks[n.Name] = n.Network
	}
	for _, n := range after.Networks {
		if was := networks[n.Name]; was != nil && n.Network != nil {
			all[string(config.KindNetwork)+" "+n.Name] = config.NetworkDifferences(was, n.Network)
		}
	}
	groups := map[string]*config.SecurityGroup{}
	for _, g := range before.Groups {
		groups[g.Name] = g.Group
	}
	for _, g := range after.Groups {
		if was := groups[g.Name]; was != nil && g.Group != nil {
			all[string(config.KindSecurityGroup)+" "+g.Name] = config.SecurityGroupDifferences(was, g.Group)
		}
	}
	return all
}

// fileStep writes one file; nil where it is there already.
func (p *applyPlan) fileStep(f config.EnvironmentFile, after *config.Set) *applyStep {
	text := config.Marked(p.source, f.Text)
	mode := f.Mode
	if i := slices.IndexFunc(after.VMs, func(vm config.VM) bool { return f.Kind == config.KindVM && vm.Name == f.Name }); i >= 0 && after.VMs[i].Machine != nil {
		mode &= definitionMode(after.VMs[i].Machine)
	}
	s := &applyStep{Action: "create", Kind: f.Kind, Name: f.Name, File: f.Path, detail: f.Path, phase: phaseFiles}
	before, err := config.ReadFile(f.Path)
	if err != nil { // checkOwners has read it where it is there
		s.do = func(context.Context) (string, error) {
			if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
				return "", err
			}
			return "created " + f.Path, access.CreateFile(f.Path, []byte(text), mode, true)
		}
		s.undo = putBack(f.Path, func() error { return os.Remove(f.Path) })
		s.intact = func() error { return stillHas(f.Path, text) }
		return s
	}
	if string(before) == text {
		return nil
	}
	was := mode
	if info, err := os.Stat(f.Path); err == nil {
		was = info.Mode().Perm()
		mode &= was // somebody may have closed it
	}
	s.Action, s.detail = "change", ""
	s.do = func(context.Context) (string, error) {
		if err := stillHas(f.Path, string(before)); err != nil {
			return "", err
		}
		return "changed " + f.Path, access.WriteFile(f.Path, []byte(text), mode, true)
	}
	s.undo = putBack(f.Path, func() error { return access.WriteFile(f.Path, before, was, true) })
	s.intact = func() error { return stillHas(f.Path, text) }
	if f.DropIn || f.Kind == config.KindTemplate {
		s.detail = f.Path
	}
	return s
}

// removeStep removes one file.
func (p *applyPlan) removeStep(f config.AppliedFile) *applyStep {
	detail := f.Path
	if f.Kind == config.KindVM && !f.DropIn && access.IsThere(p.paths.StateDir(f.Name)) {
		detail += "; its disks stay (vmctl delete " + f.Name + " removes them)"
	}
	var content []byte
	var info os.FileInfo
	return &applyStep{
		Action: "remove", Kind: f.Kind, Name: f.Name, File: f.Path, detail: detail, phase: phaseFiles,
		do: func(context.Context) (string, error) {
			var err error
			if content, err = config.ReadFile(f.Path); err != nil {
				return "", err
			}
			if info, err = os.Stat(f.Path); err != nil {
				return "", err
			}
			if from, intact := config.Mark(string(content)); from != p.source || !intact {
				return "", changedSince(f.Path)
			}
			return "removed " + f.Path, os.Remove(f.Path)
		},
		undo: putBack(f.Path, func() error { return access.CreateFile(f.Path, content, info.Mode().Perm(), true) }),
		intact: func() error {
			if access.IsThere(f.Path) {
				return changedMeanwhile(f.Path)
			}
			return nil
		},
	}
}

// planReload plans that systemd reads all again, where what it was told is not what
// is declared.
func (p *applyPlan) planReload(after *config.Set) {
	stale := slices.ContainsFunc(p.steps, func(s *applyStep) bool {
		return s.phase == phaseFiles && s.Kind != config.KindImage
	})
	for _, vm := range after.VMs {
		if !stale && p.declares(config.KindVM, vm.Name) {
			stale = p.generated(vm.Name) != p.next.plan(vm, p.host).dropIn()
		}
	}
	for _, n := range after.Networks {
		if !stale && !p.user && p.declares(config.KindNetwork, n.Name) {
			stale = p.next.networkStale(n)
		}
	}
	if !stale {
		return
	}
	p.add(&applyStep{Action: "reload", phase: phaseReload, do: func(ctx context.Context) (string, error) {
		if err := p.conn.Reload(ctx); err != nil {
			return "", err
		}
		return "has read all definitions again", p.reloadTimers(ctx, p.conn)
	}})
}

// planNetworks plans to bring networks up, and into line with their definitions.
func (p *applyPlan) planNetworks() {
	for _, l := range p.networks {
		name, unit := l.file.Name, config.NetworkUnit(l.file.Name)
		if !p.declares(config.KindNetwork, name) {
			continue
		}
		switch {
		case l.state != running && !p.opts.noStart:
			p.add(&applyStep{Action: "start", Kind: config.KindNetwork, Name: name, phase: phaseNetworks, do: func(ctx context.Context) (string, error) {
				if l.state == failed {
					if err := p.conn.ResetFailed(ctx, unit); err != nil && !errors.Is(err, bus.ErrNoSuchUnit) {
						return "", err
					}
				}
				if err := p.conn.Start(ctx, unit); err != nil {
					return "", networkJobError(ctx, p.conn, name, err)
				}
				p.warnOfObstacles(l.file.Network)
				return "started", nil
			}})
		case l.state == running && pendingNetwork(l):
			p.add(&applyStep{Action: "reload", Kind: config.KindNetwork, Name: name, phase: phaseNetworks, do: func(ctx context.Context) (string, error) {
				reload := p.conn.ReloadUnit
				if len(l.machines(true)) == 0 || l.up != nil && l.file.Network.DHCP && !l.up.DHCP {
					reload = p.conn.Restart
				}
				if err := reload(ctx, unit); err != nil {
					return "", networkJobError(ctx, p.conn, name, err)
				}
				return "is as defined", nil
			}})
		}
	}
}

// planMachines plans what is done to machines.
func (p *applyPlan) planMachines() {
	for _, l := range p.looks {
		name := l.vm.Name
		if l.vm.Machine == nil {
			continue
		}
		filters := p.next.filtersPending(l)
		if !p.concerned[name] && !(filters && !p.filtersPending(l)) {
			continue
		}
		switch {
		case l.active():
			p.planRunning(l, filters)
		case p.opts.noStart, !p.declares(config.KindVM, name), l.state == starting, l.state == stopping, l.state == loading:
		case l.vm.Autostart || p.opts.start:
			if l.masked {
				p.warn(finding{config.Problem{Text: name + " is not started: its unit is masked"}, "warning"})
				continue
			}
			p.add(&applyStep{Action: "start", Kind: config.KindVM, Name: name, phase: phaseStart})
		}
	}
}

// planRunning plans what is done to one that runs: what can be applied as it runs,
// and a restart for the rest where that is asked for.
func (p *applyPlan) planRunning(l look, filters bool) {
	name := l.vm.Name
	cards := p.next.differingCards(l)
	settings, others := p.next.takeable(l, p.host)
	rest := p.next.outdated(l, p.host) && (len(cards) == 0 || cards[len(cards)-1].Digest == "")
	rest = rest && others
	if rest && p.opts.restart {
		p.add(&applyStep{Action: "restart", Kind: config.KindVM, Name: name, phase: phaseStart})
		return
	}
	if rest {
		p.pending = append(p.pending, name)
	}
	detail := strings.Join(settings, ", ")
	if len(cards) > 0 || filters {
		detail = strings.TrimPrefix(detail+", links, limits and rules of its cards", ", ")
	}
	if detail != "" {
		p.add(&applyStep{Action: "reload", Kind: config.KindVM, Name: name, detail: detail, phase: phaseLive,
			do: func(ctx context.Context) (string, error) { return p.applyLive(ctx, name) }})
	}
}

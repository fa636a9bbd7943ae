package main

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units"
	"github.com/vmctl/vmctl/units/bus"
)

func newReloadCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "reload [NAME...]",
		Short: "Have systemd read all definitions again, and apply what machines can take as they run",
		Long: `Have systemd read all definitions again, as systemctl daemon-reload does, and tell
what that has changed. Problems are told first; a broken definition keeps no
other from being read, but makes the exit status 6. What runs goes on as it is,
but for what its cards may send and get: those of machines whose rules or security
groups have changed are held to the new ones, as systemctl reload vm@NAME does; and
for the links and limits of cards, where definitions say others by now. Machines
that are named take the CPUs, memory, limits of disks and of [resources] of their
definitions too, as by vmctl set. All else waits for the next start, and it is told for which
machines.
Timers of schedules that are new are started, and those of schedules that
are gone stopped, which systemctl daemon-reload leaves to systemctl start and stop.
With names, rules are applied to those machines, changed or not, and only of them
it is told what has changed.`,
		Example: `  vmctl reload
  vmctl reload web db`,
		GroupID:           groupDefine,
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runReload(cmd.Context(), a, args) },
	}
}

// reloaded is vmctl reload -o json.
type reloaded struct {
	Added    []string      `json:"added"`
	Changed  []string      `json:"changed"`
	Removed  []string      `json:"removed"`
	Rules    []string      `json:"rules_applied"` // those whose cards are held to other rules from now on
	Cards    []string      `json:"cards_set"`     // cards of machines that run whose link or limits were set, "VM NIC"
	Settings []settingsSet `json:"settings_set"`  // machines that run and were named, and what they have taken of their definitions
	Restart  []string      `json:"needs_restart"` // those that run with an older definition
	Invalid  []string      `json:"invalid"`       // those that do, and whose new one could not be started
	Gone     []string      `json:"gone"`          // those that run without any
	Enabled  []string      `json:"still_enabled"` // those that start with the host, and have none
	// Overridden is what was written in a definition after vmctl set, and does not hold.
	Overridden []config.Problem `json:"overridden"`
	Problems   []config.Problem `json:"problems"`
}

// settingsSet is what a machine that runs has taken of its definition.
type settingsSet struct {
	Name string   `json:"name"`
	Keys []setKey `json:"keys"`
}

func runReload(ctx context.Context, a *app, names []string) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, name := range names {
		if _, err := a.lookAt(ctx, conn, name); err != nil {
			return err
		}
	}
	problems, err := a.verify()
	if err != nil {
		return err
	}
	before := a.allGenerated()
	if err := conn.Reload(ctx); err != nil {
		return err
	}
	if err := a.reloadTimers(ctx, conn); err != nil {
		return err
	}
	r := compare(before, a.allGenerated())
	r.Problems = append([]config.Problem{}, problems...)
	looks, _, err := a.lookAll(ctx, conn)
	if err != nil {
		return err
	}
	var cardsErr error
	if r.Cards, cardsErr = a.reloadCards(ctx, conn, looks, names); len(r.Cards) > 0 {
		if looks, _, err = a.lookAll(ctx, conn); err != nil {
			return err
		}
	}
	var settingsErr error
	if r.Settings, settingsErr = a.reloadSettings(ctx, conn, looks, names); len(r.Settings) > 0 {
		if looks, _, err = a.lookAll(ctx, conn); err != nil {
			return err
		}
	}
	gone, enabled := map[string]bool{}, a.enabled()
	for _, l := range looks {
		gone[l.vm.Name] = l.vm.File == ""
		if gone[l.vm.Name] && enabled[l.vm.Name] {
			r.Enabled = append(r.Enabled, l.vm.Name)
		}
	}
	host := a.probe()
	for _, l := range looks {
		switch {
		case !l.active() || !a.outdated(l, host):
		case gone[l.vm.Name]:
			r.Gone = append(r.Gone, l.vm.Name)
		case len(a.plan(l.vm, host).Problems) > 0:
			r.Invalid = append(r.Invalid, l.vm.Name)
		default:
			r.Restart = append(r.Restart, l.vm.Name)
		}
	}
	r.Overridden = []config.Problem{}
	for _, l := range looks {
		if len(names) == 0 || slices.Contains(names, l.vm.Name) {
			r.Overridden = append(r.Overridden, l.vm.Overridden...)
			if a.ui.format != jsonFormat {
				a.tellOverridden(l.vm)
			}
		}
	}
	var filtersErr error
	r.Rules, filtersErr = a.reloadFilters(ctx, conn, looks, names)
	if len(names) > 0 {
		r = r.of(names)
	}
	if err := printReloaded(a, r); err != nil {
		return err
	}
	if problems = concerning(problems, looks, names); len(problems) > 0 {
		return &invalidError{problems}
	}
	return cmp.Or(settingsErr, cardsErr, filtersErr)
}

// reloadSettings has those of machines that run and are named take the settings of
// their definitions that they can.
func (a *app) reloadSettings(ctx context.Context, conn *bus.Conn, looks []look, names []string) ([]settingsSet, error) {
	all, errs := []settingsSet{}, []error{}
	for _, l := range looks {
		if !slices.Contains(names, l.vm.Name) || !l.active() {
			continue
		}
		set, keys, err := a.followSettings(ctx, conn, l, defaultSetTimeout)
		if err != nil {
			err = inName("reload", l.vm.Name, err)
			a.ui.errorf(err)
			errs = append(errs, err)
			continue
		}
		if len(keys) == 0 {
			continue
		}
		one := settingsSet{Name: l.vm.Name}
		for _, key := range keys {
			k := setKey{Key: key, Holds: setNow}
			if reason, waits := set.Waiting[key]; waits {
				k.Holds, k.Reason = setRestart, reason
			}
			one.Keys = append(one.Keys, k)
		}
		all = append(all, one)
	}
	if err := worst(errs); err != nil {
		return all, &statusError{err, exitStatus(err)}
	}
	return all, nil
}

// concerning are the problems that decide how a reload ends: where machines are
// named, those of their definitions. The others are told all the same.
func concerning(all []config.Problem, looks []look, names []string) []config.Problem {
	if len(names) == 0 {
		return all
	}
	var own []config.Problem
	for _, l := range looks {
		if slices.Contains(names, l.vm.Name) {
			own = append(own, l.vm.Problems...)
		}
	}
	return own
}

// of is what concerns some machines.
func (r reloaded) of(names []string) reloaded {
	for _, list := range []*[]string{&r.Added, &r.Changed, &r.Removed, &r.Restart, &r.Invalid, &r.Gone, &r.Enabled} {
		*list = slices.DeleteFunc(*list, func(name string) bool { return !slices.Contains(names, name) })
	}
	return r
}

// reloadTimers starts the timers of schedules that are new, and stops those of
// schedules that are gone: systemd itself does neither when it reads units again.
func (a *app) reloadTimers(ctx context.Context, conn *bus.Conn) error {
	timers, err := conn.Units(ctx, config.SnapshotTimer("*"))
	if err != nil {
		return err
	}
	for _, u := range timers {
		err = nil
		switch {
		case u.Load == "loaded" && (u.Active == "inactive" || u.Active == "failed"):
			err = conn.Start(ctx, u.Name)
		case u.Load == "not-found" && u.Active == "failed": // as systemd 257 has it
			err = conn.ResetFailed(ctx, u.Name)
		case u.Load == "not-found" && u.Active == "active":
			err = conn.Stop(ctx, u.Name)
		}
		if err != nil {
			a.ui.warnf("%s: %v", u.Name, err)
		}
	}
	return nil
}

// verify returns every problem of every definition.
func (a *app) verify() ([]config.Problem, error) {
	set, err := config.Load(a.paths)
	if err != nil {
		return nil, err
	}
	host := a.probe()
	found := make([]planned, len(set.VMs))
	for i, vm := range set.VMs {
		found[i].VM = vm
	}
	inParallel(found, func(p *planned) { *p = a.plan(p.VM, host) })
	problems := set.Problems
	for _, p := range found {
		problems = append(problems, p.Problems...)
	}
	problems = append(problems, sharedProblems(set)...)
	config.SortProblems(problems)
	return problems, nil
}

// sharedProblems are those of a host's networks and security groups.
func sharedProblems(set *config.Set) []config.Problem {
	var problems []config.Problem
	for _, g := range set.Groups {
		problems = append(problems, g.Problems...)
	}
	for _, n := range set.Networks {
		problems = append(problems, n.Problems...)
	}
	return problems
}

// allGenerated is what the generator last wrote, by machine.
func (a *app) allGenerated() map[string]string {
	// Before the first definition there is no directory.
	entries, _ := os.ReadDir(a.paths.GeneratorDir)
	found := map[string]string{}
	for _, e := range entries {
		unit, isDropIn := strings.CutSuffix(e.Name(), ".d")
		if !isDropIn || !strings.HasPrefix(unit, "vm@") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(a.paths.GeneratorDir, units.DropIn(vmName(unit))))
		if err == nil {
			found[vmName(unit)] = string(text)
		}
	}
	return found
}

// compare tells two states of the generator's output apart.
func compare(before, after map[string]string) reloaded {
	r := reloaded{Added: []string{}, Changed: []string{}, Removed: []string{}, Restart: []string{}, Invalid: []string{}, Gone: []string{}, Enabled: []string{}}
	for name, text := range after {
		old, there := before[name]
		switch {
		case !there:
			r.Added = append(r.Added, name)
		case old != text:
			r.Changed = append(r.Changed, name)
		}
	}
	for name := range before {
		if _, there := after[name]; !there {
			r.Removed = append(r.Removed, name)
		}
	}
	slices.Sort(r.Added)
	slices.Sort(r.Changed)
	slices.Sort(r.Removed)
	return r
}

func printReloaded(a *app, r reloaded) error {
	if a.ui.format == jsonFormat {
		return a.ui.json(r)
	}
	for _, part := range []struct {
		word  string
		names []string
	}{{"added", r.Added}, {"changed", r.Changed}, {"removed", r.Removed}} {
		for _, name := range part.names {
			a.ui.printf("%s: %s", name, part.word)
		}
	}
	for _, name := range r.Rules {
		a.ui.printf("%s: its cards are held to the rules as they are now", name)
	}
	for _, card := range r.Cards {
		a.ui.printf("%s: set to what is defined", card)
	}
	for _, one := range r.Settings {
		if err := printSet(a.ui, setResult{Name: one.Name, Keys: one.Keys}); err != nil {
			return err
		}
	}
	for _, name := range r.Restart {
		a.ui.printf("%s: runs with an older definition; vmctl restart %s applies the new one", name, name)
	}
	for _, name := range r.Invalid {
		a.ui.printf("%s: runs on with an older definition, since the new one is invalid", name)
	}
	for _, name := range r.Gone {
		a.ui.printf("%s: runs on without its definition; vmctl stop %s ends it", name, name)
	}
	for _, name := range r.Enabled {
		a.ui.warnf("%s is still enabled, but has no definition; vmctl disable %s takes that back", name, name)
	}
	if len(r.Added)+len(r.Changed)+len(r.Removed)+len(r.Rules)+len(r.Cards)+len(r.Settings)+len(r.Restart)+len(r.Invalid)+len(r.Gone) == 0 {
		a.ui.printf("nothing has changed")
	}
	return nil
}

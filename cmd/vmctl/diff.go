package main

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// exitChanged is the exit status of diff --exit-code where there is a difference.
const exitChanged = 10

func newDiffCommand(a *app) *cobra.Command {
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "diff [NAME...]",
		Short: "Show what a restart would change of VMs that run",
		Long: `Show in which keys the definitions of VMs, as they are now, are not what the VMs
run with; without names, of all that run. The next start takes them. Disks, cards and
shares that were changed until the machine stops (vmctl disk, nic, share) differ, too.`,
		Example: `  vmctl diff web
  vmctl diff --exit-code web; [ $? = 10 ] && vmctl restart web`,
		GroupID:           groupDefine,
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runDiff(cmd.Context(), a, args, exitCode) },
	}
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 10 where there is a difference")
	return cmd
}

// differing is a machine of vmctl diff -o json.
type differing struct {
	Name           string `json:"name"`
	PendingChanges bool   `json:"pending_changes"`
	// PendingRules are what cards may send and get, and who sits down at the console, which vmctl reload applies.
	PendingRules bool `json:"pending_rules"`
	// Differences are empty, too, where only secrets, the order of devices, or what
	// vmctl makes of the definition has changed.
	Differences []config.Difference `json:"differences"`
	// Overridden is what was written in the definition after vmctl set, and does not
	// hold: no difference, therefore.
	Overridden []config.Problem `json:"overridden"`
	// Problems are why the definition could not be started, and is not compared.
	Problems []config.Problem `json:"problems"`
}

func (d differing) differs() bool { return d.PendingChanges || d.PendingRules }

func runDiff(ctx context.Context, a *app, names []string, exitCode bool) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	var looks []look
	if len(names) == 0 {
		if looks, _, err = a.lookAll(ctx, conn); err != nil {
			return err
		}
		looks = slices.DeleteFunc(looks, func(l look) bool { return !l.active() })
	}
	for _, name := range names {
		l, err := a.lookAt(ctx, conn, name)
		if err != nil {
			return err
		}
		if !l.active() {
			return withHint(&transitionError{From: l.state, Reason: name + " runs with nothing that could differ"},
				"vmctl render "+name+" shows what it starts with")
		}
		looks = append(looks, l)
	}
	return a.diff(looks, len(names), exitCode)
}

// diff tells of machines that run, of which some were named.
func (a *app) diff(looks []look, named int, exitCode bool) error {
	all, host := []differing{}, a.probe()
	var errs []error
	for _, l := range looks {
		if err := a.unreadable(l); err != nil {
			errs = append(errs, inName("diff", l.vm.Name, err))
			continue
		}
		d := a.differing(l, host)
		if len(d.Problems) > 0 {
			errs = append(errs, invalid(l.vm, d.Problems))
		}
		all = append(all, d)
	}
	if err := printDifferences(a.ui, all, named); err != nil {
		return err
	}
	for _, err := range errs {
		a.ui.errorf(err)
	}
	if len(errs) > 0 {
		return worst(errs)
	}
	if exitCode && slices.ContainsFunc(all, differing.differs) {
		return &statusError{errors.New("there are differences"), exitChanged}
	}
	return nil
}

// differing compares what a machine runs with and its definition.
func (a *app) differing(l look, host hypervisor.Host) differing {
	d := differing{Name: l.vm.Name, Differences: []config.Difference{}, Overridden: slices.Concat([]config.Problem{}, l.vm.Overridden), Problems: []config.Problem{}}
	if l.vm.File != "" {
		d.Problems = append(d.Problems, a.plan(l.vm, host).Problems...)
	}
	d.PendingChanges = a.pending(l, host)
	if l.vm.Machine == nil || l.record == nil || l.record.Machine == nil {
		return d
	}
	d.PendingRules = a.filtersPending(l)
	runs := l.machine()
	if !d.PendingRules {
		runs = runs.WithReloadedOf(l.vm.Machine) // perhaps since the start
	}
	if d.differs() {
		d.Differences = append(d.Differences, config.Differences(runs, l.vm.Machine)...)
	}
	return d
}

// printDifferences prints machines: for people, those without any difference only
// where some were named.
func printDifferences(u *ui, all []differing, named int) error {
	if u.format == jsonFormat {
		return u.json(all)
	}
	table := [][]string{{"NAME", "KEY", "RUNS WITH", "DEFINED"}}
	for _, d := range all {
		for _, k := range d.Differences {
			table = append(table, []string{d.Name, k.Key, cmp.Or(printable(k.From), "-"), cmp.Or(printable(k.To), "-")})
		}
	}
	if len(table) > 1 {
		if err := writeTable(u.out, table); err != nil {
			return err
		}
	}
	for _, d := range all {
		for _, p := range d.Overridden {
			u.warnf("%s", p.Error())
		}
		switch {
		case len(d.Problems) > 0:
		case d.PendingChanges && len(d.Differences) == 0:
			u.printf("%s: a restart would change what vmctl makes of the definition, or the order of devices; the keys are the same.", d.Name)
		case d.PendingRules:
			u.printf("%s: vmctl reload %s applies the rules of its cards and console without a restart.", d.Name, d.Name)
		case !d.PendingChanges && named > 0:
			u.printf("%s runs with what is defined.", d.Name)
		}
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/all"
)

// lookups are what checks of several machines find out about the host, each once.
type lookups struct {
	host    hypervisor.Host
	bases   basesFunc
	release releaseFunc
}

func (a *app) lookups() lookups {
	return lookups{a.probe(), a.bases(), a.releases()}
}

// releaseFunc asks a program for its version.
type releaseFunc func(fitter hypervisor.Fitter, binary string) (string, error)

// releases asks each program once.
func (a *app) releases() releaseFunc {
	type answer struct {
		release string
		err     error
	}
	known := map[string]answer{}
	return func(fitter hypervisor.Fitter, binary string) (string, error) {
		got, ok := known[binary]
		if !ok {
			got.release, got.err = fitter.Release(context.Background(), a.root+binary)
			known[binary] = got
		}
		return got.release, got.err
	}
}

// checkFit says what of a machine the version of its hypervisor that the host
// has cannot do, with which it does not start, and what it does without. It runs
// none but the host's own programs: a definition may come from anywhere, and what
// that names is run in the machine's sandbox alone.
func checkFit(m *config.Machine, plan *hypervisor.Plan, l lookups) (refused, without []config.Problem) {
	// A plan has no other.
	hv, _ := all.ByName(m.Hypervisor)
	fitter, ok := hv.(hypervisor.Fitter)
	if !ok || !slices.Contains(slices.Collect(maps.Values(l.host.Programs)), plan.Argv[0]) {
		return nil, nil
	}
	release, err := l.release(fitter, plan.Argv[0])
	if err == nil {
		_, without, err = fitter.Fit(plan.Argv, release)
	}
	if unfit, ok := errors.AsType[hypervisor.Unfit](err); ok {
		refused = unfit
	} else if err != nil {
		refused = []config.Problem{{Key: "hypervisor", Text: err.Error()}}
	}
	return located(m, refused), located(m, without)
}

// located are problems of keys, each with where m has its key.
func located(m *config.Machine, problems []config.Problem) []config.Problem {
	var all []config.Problem
	for _, p := range problems {
		all = append(all, m.Problem(p.Key, "%s", p.Text))
	}
	return all
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/netsetup"
)

// inGroups returns a card with the lists of its security groups. Where one of
// those cannot be had the machine does not start: it would be more open than its
// definition says.
func (a app) inGroups(m *config.Machine, nic config.NIC) (config.NIC, error) {
	groups, err := config.SecurityGroupsOf(a.paths, m, nic)
	if p, ok := errors.AsType[config.Problem](err); ok {
		return nic, refuseProblems([]config.Problem{p})
	}
	if err != nil {
		return nic, err
	}
	return nic.InGroups(groups), nil
}

// reload holds the cards of a machine that runs to the rules that its definition
// has by now. All else that has changed there waits for the next start. Where
// anything is wrong, nothing is changed.
func (a app) reload(ctx context.Context) error {
	// No card goes meanwhile.
	unlock, err := a.lockNetworks(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	runs, err := a.running()
	if err != nil {
		return err
	}
	vm, err := config.LoadVM(a.paths, a.vm)
	if err != nil {
		return err
	}
	if len(vm.Problems) > 0 {
		return vm.Problems[0]
	}
	m := runs.WithFiltersOf(vm.Machine)
	var cards []netsetup.CardState
	for _, nic := range m.NICs {
		if !onBridge(nic) {
			continue
		}
		card, err := a.card(ctx, m, nic)
		if err != nil {
			return err
		}
		cards = append(cards, card)
	}
	for _, card := range cards {
		if err := netsetup.Refilter(card); err != nil {
			return err
		}
	}
	return a.writeFilters(m)
}

// running is the machine as it runs, with the cards that it has by now.
func (a app) running() (*config.Machine, error) {
	record, err := readRecord(a.paths, a.vm)
	if err != nil {
		return nil, err
	}
	changes, err := hypervisor.ReadChanges(a.paths, a.vm)
	return changes.Apply(record.Machine), err
}

// removeFilters takes back what writeFilters has noted.
func (a app) removeFilters() error {
	if a.paths.User {
		return nil
	}
	return removeFile(a.paths.Filters(a.vm))
}

// writeFilters notes what the machine's cards are held to.
func (a app) writeFilters(m *config.Machine) error {
	filters := map[string]config.Filter{}
	if err := a.addFilters(filters, m, m.NICs); err != nil || len(filters) == 0 {
		return err
	}
	return a.putFilters(filters)
}

// addFilters adds what cards of m are held to.
func (a app) addFilters(filters map[string]config.Filter, m *config.Machine, cards []config.NIC) error {
	for _, nic := range cards {
		if !onBridge(nic) {
			continue
		}
		nic, err := a.inGroups(m, nic)
		if err != nil {
			return err
		}
		filters[nic.Name] = nic.Filter()
	}
	return nil
}

// changeFilters changes what is noted. The caller keeps others from it
// ([app.lockNetworks]).
func (a app) changeFilters(change func(map[string]config.Filter) error) error {
	filters := map[string]config.Filter{}
	b, err := os.ReadFile(a.paths.Filters(a.vm))
	if err == nil {
		err = json.Unmarshal(b, &filters)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := change(filters); err != nil {
		return err
	}
	return a.putFilters(filters)
}

func (a app) putFilters(filters map[string]config.Filter) error {
	b, err := json.Marshal(filters)
	if err != nil {
		return err
	}
	file := a.paths.Filters(a.vm)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return access.WriteFile(file, b, 0o644, false)
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

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
// has by now, and puts back what of their tables somebody has removed. All else
// that has changed in the definition waits for the next start. Where anything is
// wrong with it, the cards are held to what they were, which is put back too.
func (a app) reload(ctx context.Context) error {
	// No card comes or goes meanwhile.
	unlock, err := a.lockNetworks(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	runs, err := a.running()
	if err != nil {
		return err
	}
	var errs []error
	var cards []config.NIC
	now, err := a.soundDefinition()
	if err == nil {
		if err := a.admit(now.Console.Group); err != nil {
			errs = append(errs, fmt.Errorf("console.group: %w", err))
		}
		cards, err = a.wantedCards(runs, now)
	}
	errs = append(errs, err)
	if err != nil {
		if cards, err = a.cardsAsHeld(runs); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	held := map[string]config.Filter{}
	for _, nic := range cards {
		if err := a.refilter(ctx, runs, nic); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", nic.Key(), err))
			continue
		}
		held[nic.Name] = nic.Filter()
	}
	if len(held) > 0 {
		errs = append(errs, a.changeFilters(func(f map[string]config.Filter) error {
			maps.Copy(f, held)
			return nil
		}))
	}
	return errors.Join(errs...)
}

// soundDefinition is the machine's definition as it is now.
func (a app) soundDefinition() (*config.Machine, error) {
	vm, err := config.LoadVM(a.paths, a.vm)
	if err != nil {
		return nil, err
	}
	if len(vm.Problems) > 0 {
		return nil, vm.Problems[0]
	}
	return vm.Machine, nil
}

// wantedCards are the cards of a machine that runs that can be held to rules, with
// those that its definition has by now.
func (a app) wantedCards(runs, now *config.Machine) ([]config.NIC, error) {
	m := runs.WithReloadedOf(now)
	var cards []config.NIC
	for _, nic := range bridgeCards(m) {
		nic, err := a.inGroups(m, nic)
		if err != nil {
			return nil, err
		}
		cards = append(cards, nic)
	}
	return cards, nil
}

// cardsAsHeld are the same cards with the rules that they are held to.
func (a app) cardsAsHeld(runs *config.Machine) ([]config.NIC, error) {
	filters, err := a.readFilters()
	if err != nil {
		return nil, err
	}
	cards := bridgeCards(runs)
	for i, nic := range cards {
		// One of which nothing is noted has those that it was plugged in with.
		if f, noted := filters[nic.Name]; noted {
			cards[i] = nic.HeldTo(f)
		}
	}
	return cards, nil
}

// bridgeCards are the cards of a machine that can be held to rules.
func bridgeCards(m *config.Machine) []config.NIC {
	return slices.DeleteFunc(slices.Clone(m.NICs), func(n config.NIC) bool { return !onBridge(n) })
}

// refilter replaces the tables of a card that is plugged in. Its network is there
// as long as the card is, whatever has become of its unit.
func (a app) refilter(ctx context.Context, m *config.Machine, nic config.NIC) error {
	var n *config.Network
	if nic.Network != "" {
		var err error
		if n, err = a.networkInUse(nic.Network); err != nil {
			return fmt.Errorf("the network %s: %w", nic.Network, err)
		}
	}
	card, err := a.cardIn(ctx, m, nic, n)
	if err != nil {
		return err
	}
	return netsetup.Refilter(card)
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
	filters, err := a.readFilters()
	if err != nil {
		return err
	}
	if err := change(filters); err != nil {
		return err
	}
	return a.putFilters(filters)
}

// readFilters is what is noted, nothing where there is no note.
func (a app) readFilters() (map[string]config.Filter, error) {
	filters := map[string]config.Filter{}
	b, err := os.ReadFile(a.paths.Filters(a.vm))
	if errors.Is(err, fs.ErrNotExist) {
		return filters, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &filters); err != nil {
		return nil, fmt.Errorf("%s: %w", a.paths.Filters(a.vm), err)
	}
	return filters, nil
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

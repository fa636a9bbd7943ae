package netsetup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// Addresses remembers which card has which address in a network.
type Addresses struct {
	File string // in a directory that belongs to the caller
	Lock string // locked while the file changes, and nobody else's to open
}

// AddressesOf are those of a network.
func AddressesOf(paths config.Paths, network string) Addresses {
	return Addresses{File: paths.NetworkAddresses(network), Lock: paths.Lock(".addresses")}
}

// Reserved is what a card has in a network.
type Reserved struct {
	Lease
	MAC config.MAC `json:"mac"`
}

// given is the content of the file: by card, as [cardOf] names it.
type given map[string]Reserved

// cardOf names a card of a machine, "web/lan".
func cardOf(vm, nic string) string { return vm + "/" + nic }

// SplitCard are the machine and the card of what [Addresses] name a card by.
func SplitCard(card string) (vm, nic string) {
	vm, nic, _ = strings.Cut(card, "/")
	return vm, nic
}

// Machines is what somebody who gives addresses to a card has to know of the other
// machines of the host.
type Machines interface {
	// Runs says whether a machine runs, or starts, with the card.
	Runs(vm, nic string) bool
	// Has says whether a machine's definition has the card; one that is broken may.
	Has(vm, nic string) bool
	// Fixed says whether a definition fixes an address of the network.
	Fixed(netip.Addr) bool
}

// HeldError is an address to which a card is fixed while another runs with it.
type HeldError struct {
	Address netip.Addr
	VM, NIC string // of the other
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("want an address of its own, got %s, which %s runs with (nic.%s): stop that first, and it gets another when it starts after this one", e.Address, e.VM, e.NIC)
}

// Take gives a card of m the addresses that it had before, where they are still of
// the network and the definition does not fix others, or new ones. One that is
// fixed is taken from a card for which it was chosen, unless that runs with it: the
// error is [HeldError] then.
// m is as it starts, with the card, or as it runs, without the one that is plugged in.
func (a Addresses) Take(n *config.Network, m *config.Machine, nic config.NIC, machines Machines) (Lease, error) {
	unlock, err := a.lock()
	if err != nil {
		return Lease{}, err
	}
	defer unlock()
	all, err := a.read()
	if err != nil {
		return Lease{}, err
	}
	card := cardOf(m.Name, nic.Name)
	old := all[card]
	delete(all, card)
	is := Reserved{old.Lease, nic.MAC}
	if !keeps(n, m, nic, old.Lease) {
		all.drop(n, m)
		if is.Lease, err = all.assign(n, m, nic, machines); err != nil {
			return Lease{}, err
		}
	}
	if is == old || is.Lease == old.Lease && is.Lease == (Lease{}) {
		return is.Lease, nil
	}
	all[card] = is
	return is.Lease, a.write(all)
}

// drop frees what the cards of a machine had and cannot keep: two may have exchanged
// their addresses.
func (all given) drop(n *config.Network, m *config.Machine) {
	for _, nic := range m.NICs {
		card := cardOf(m.Name, nic.Name)
		if had, has := all[card]; has && nic.Network == n.Name && !keeps(n, m, nic, had.Lease) {
			delete(all, card)
		}
	}
}

// assign chooses the addresses of a card that has none.
func (all given) assign(n *config.Network, m *config.Machine, nic config.NIC, machines Machines) (Lease, error) {
	if nic.Address.IsValid() {
		if err := all.free(nic.Address, machines); err != nil {
			return Lease{}, err
		}
	}
	taken := func(ip netip.Addr) bool {
		return all.holder(ip) != "" || machines.Fixed(ip) || fixesElsewhere(n, m, nic, ip)
	}
	lease, err := Assign(n, m.Name, nic, taken)
	if err != ErrFull {
		return lease, err
	}
	maps.DeleteFunc(all, func(card string, _ Reserved) bool {
		vm, nic := SplitCard(card)
		if own, has := m.NIC(nic); vm == m.Name && has && own.Network == n.Name {
			return false
		}
		return !machines.Runs(vm, nic) && !machines.Has(vm, nic)
	})
	return Assign(n, m.Name, nic, taken)
}

// free takes an address from the card that has it. That is no definition's, which
// would have been refused.
func (all given) free(ip netip.Addr, machines Machines) error {
	holder := all.holder(ip)
	if vm, nic := SplitCard(holder); holder != "" && machines.Runs(vm, nic) {
		return &HeldError{ip, vm, nic}
	}
	delete(all, holder)
	return nil
}

// holder is the card that has an address, "" for none.
func (all given) holder(ip netip.Addr) string {
	for card, r := range all {
		if r.IP4 == ip || r.IP6 == ip {
			return card
		}
	}
	return ""
}

// fixesElsewhere says whether a machine fixes an address to another of its cards.
func fixesElsewhere(n *config.Network, m *config.Machine, nic config.NIC, ip netip.Addr) bool {
	return ip.IsValid() && slices.ContainsFunc(m.NICs, func(other config.NIC) bool {
		return other.Name != nic.Name && other.Network == n.Name && other.Address == ip
	})
}

// keeps says whether a card of m can have the addresses that it had.
func keeps(n *config.Network, m *config.Machine, nic config.NIC, l Lease) bool {
	if fixesElsewhere(n, m, nic, l.IP4) || fixesElsewhere(n, m, nic, l.IP6) {
		return false
	}
	fits := func(ip netip.Addr, p netip.Prefix, fixed bool) bool {
		if !p.IsValid() || !n.DHCP && !fixed {
			return !ip.IsValid()
		}
		return p.Contains(ip) && ip != n.Gateway
	}
	a := nic.Address
	return fits(l.IP4, n.Prefix4(), a.Is4()) && fits(l.IP6, n.Prefix6(), a.Is6()) && (!a.IsValid() || a == l.IP4 || a == l.IP6)
}

// All is what a network's cards have, by machine and card, "web/lan".
func (a Addresses) All() (map[string]Reserved, error) { return a.read() }

// Hold calls f with what a network's cards have, which nobody changes meanwhile.
func (a Addresses) Hold(f func(map[string]Reserved) error) error {
	unlock, err := a.lock()
	if err != nil {
		return err
	}
	defer unlock()
	all, err := a.read()
	if err != nil {
		return err
	}
	return f(all)
}

// Forget frees the addresses of a machine in every network: those of the cards that
// are named, of all where none is.
func Forget(paths config.Paths, vm string, nics ...string) error {
	if paths.User {
		return nil
	}
	entries, err := os.ReadDir(paths.Addresses)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if network, is := strings.CutSuffix(e.Name(), ".json"); is && config.CheckName(network) == nil {
			errs = append(errs, AddressesOf(paths, network).forget(vm, nics))
		}
	}
	return errors.Join(errs...)
}

func (a Addresses) forget(vm string, nics []string) error {
	unlock, err := a.lock()
	if err != nil {
		return err
	}
	defer unlock()
	all, err := a.read()
	if err != nil {
		return err
	}
	before := len(all)
	maps.DeleteFunc(all, func(card string, _ Reserved) bool {
		of, nic := SplitCard(card)
		return of == vm && (len(nics) == 0 || slices.Contains(nics, nic))
	})
	if len(all) == before {
		return nil
	}
	return a.write(all)
}

func (a Addresses) lock() (func(), error) { return access.LockFile(a.Lock, unix.LOCK_EX) }

func (a Addresses) read() (given, error) {
	all := given{}
	b, err := os.ReadFile(a.File)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", a.File, err)
	}
	return all, nil
}

func (a Addresses) write(all given) error {
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(a.File), 0o755); err != nil {
		return err
	}
	return access.WriteFile(a.File, append(b, '\n'), 0o644, true)
}

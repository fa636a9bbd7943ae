package netsetup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// Addresses remembers which card has which address in a network.
type Addresses struct {
	File string // in a directory that belongs to the caller
}

// given is the content of the file: by machine and card, "web/lan".
type given map[string]Lease

// Take gives a card the addresses that it had before, where they are still of
// the network and the definition does not fix others, or new ones.
func (a Addresses) Take(n *config.Network, vm string, nic config.NIC) (Lease, error) {
	unlock, err := a.lock()
	if err != nil {
		return Lease{}, err
	}
	defer unlock()
	all, err := a.read()
	if err != nil {
		return Lease{}, err
	}
	card := vm + "/" + nic.Name
	old := all[card]
	delete(all, card)
	taken := func(ip netip.Addr) bool {
		for _, l := range all {
			if l.IP4 == ip || l.IP6 == ip {
				return true
			}
		}
		return false
	}
	if keeps(n, nic, old) {
		return old, nil
	}
	lease, err := Assign(n, vm, nic, taken)
	if err != nil {
		return Lease{}, err
	}
	all[card] = lease
	return lease, a.write(all)
}

// keeps says whether a card can have the addresses that it had.
func keeps(n *config.Network, nic config.NIC, l Lease) bool {
	p4, p6 := n.Prefix4(), n.Prefix6()
	return p4.IsValid() == l.IP4.IsValid() && p6.IsValid() == l.IP6.IsValid() &&
		(!p4.IsValid() || p4.Contains(l.IP4) && l.IP4 != n.Gateway) && (!p6.IsValid() || p6.Contains(l.IP6)) &&
		(!nic.Address.IsValid() || nic.Address == l.IP4 || nic.Address == l.IP6) && l != Lease{}
}

// All are the addresses of a network's cards, by machine and card, "web/lan".
func (a Addresses) All() (map[string]Lease, error) { return a.read() }

// Forget frees the addresses of a machine.
func (a Addresses) Forget(vm string, nics ...string) error {
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
	for _, nic := range nics {
		delete(all, vm+"/"+nic)
	}
	if len(all) == before {
		return nil
	}
	return a.write(all)
}

func (a Addresses) lock() (func(), error) { return lockDir(filepath.Dir(a.File)) }

// lockDir makes a directory and waits until nobody else has it locked.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if err != unix.EINTR {
			d.Close()
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}

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
	temp := filepath.Join(filepath.Dir(a.File), "."+filepath.Base(a.File)+".new")
	if err := os.WriteFile(temp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(temp, a.File)
}

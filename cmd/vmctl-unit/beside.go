package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// What no two machines can have at the same time, such as a port of the host, is
// refused where definitions are read. But a machine may run with what its
// definition no longer says, or without any: so a start, or a card that is plugged
// in, is compared with the machines that run.

// checkBeside says what of m another machine has that runs.
func (a app) checkBeside(m *config.Machine) ([]config.Problem, error) {
	others, err := a.machinesBeside(a.vm)
	var problems []config.Problem
	for _, other := range others {
		problems = append(problems, m.Beside(other)...)
	}
	return problems, err
}

// machinesBeside are the machines that run beside one, "" for none, with what they
// have of the host.
func (a app) machinesBeside(vm string) ([]*config.Machine, error) {
	entries, err := os.ReadDir(a.paths.Runtime)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []*config.Machine
	for _, e := range entries {
		if e.Name() == vm || config.CheckName(e.Name()) != nil {
			continue
		}
		other, err := a.other(e.Name())
		if err != nil {
			a.warn("%s, which runs: what it has of the host is not known: %v", e.Name(), err)
			continue
		}
		all = append(all, other)
	}
	return all, nil
}

// other is what another machine has as it runs, by root's own note of it; one without
// anything where it has not come that far.
func (a app) other(vm string) (*config.Machine, error) {
	if !access.IsThere(a.paths.Claimed(vm)) {
		return new(config.Machine), nil
	}
	b, err := os.ReadFile(a.paths.Claims(vm))
	if errors.Is(err, fs.ErrNotExist) { // started by a vmctl that wrote none
		return app{paths: a.paths, vm: vm}.running()
	}
	if err != nil {
		return nil, err
	}
	m := new(config.Machine)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%s: %w", a.paths.Claims(vm), err)
	}
	return m, nil
}

// writeClaims notes what m has, for others to be compared with. The caller keeps
// those waiting ([app.lockClaims]).
func (a app) writeClaims(m *config.Machine) error {
	b, err := json.Marshal(m.Claims())
	if err != nil {
		return err
	}
	return access.WriteFile(a.paths.Claims(a.vm), b, 0o600, false)
}

// lockClaims waits until no other machine is compared with those that run, and none
// will be until unlock is called.
func (a app) lockClaims() (unlock func(), err error) {
	return access.LockFile(a.paths.Lock(".claims"), unix.LOCK_EX)
}

// claim compares the machine with those that run, and has all later ones compared
// with it.
func (a app) claim(dir runtimeDir, record hypervisor.Record) error {
	unlock, err := a.lockClaims()
	if err != nil {
		return err
	}
	defer unlock()
	problems, err := a.checkBeside(record.Machine)
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return refuseProblems(problems)
	}
	if err := errors.Join(a.writeRecord(record), a.writeClaims(record.Machine)); err != nil {
		return err
	}
	return dir.put(a.paths.Claimed(a.vm), nil, 0o600)
}

// claimNIC compares a card that is to be plugged in with the machines that run, and
// has all later ones compared with it: while it is plugged in, however long the
// hypervisor takes for that, nobody waits.
func (r *live) claimNIC(n config.NIC) error {
	unlock, err := r.lockClaims()
	if err != nil {
		return err
	}
	defer unlock()
	hot := r.hotNIC(n)
	problems, err := r.checkPlug(hot.Machine, n, hot.Host)
	if len(problems) > 0 {
		return refuseHot(problems)
	}
	if err != nil {
		return err
	}
	with := *r.machine()
	with.NICs = append(slices.Clone(with.NICs), n)
	return r.writeClaims(&with)
}

// claimCards has others compared with the cards that the machine has by now.
func (r *live) claimCards() error {
	unlock, err := r.lockClaims()
	if err != nil {
		return err
	}
	defer unlock()
	return r.writeClaims(r.machine())
}

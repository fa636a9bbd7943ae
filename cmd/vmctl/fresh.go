package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/units/bus"
)

// freshener sees to it that systemd knows the definitions as they are now. A
// reload costs systemd time for every unit that it has loaded, so there is one
// for all machines, and none where nothing has changed.
type freshener struct {
	app  *app
	conn *bus.Conn
	host hypervisor.Host
	set  *config.Set      // every definition: what is wrong with one may be another's doing
	errs map[string]error // why a machine cannot be started
}

// freshen compares what systemd was told of each machine with what it would be
// told now, and reloads it where they differ.
func (f *freshener) freshen(ctx context.Context, names []string) {
	f.errs = map[string]error{}
	var err error
	if f.set, err = config.Load(f.app.paths); err != nil {
		for _, name := range names {
			f.errs[name] = err
		}
		return
	}
	var mu sync.Mutex
	var stale []string
	networks := false
	inParallel(names, func(name *string) {
		changed, network, err := f.changed(*name)
		mu.Lock()
		defer mu.Unlock()
		networks = networks || network
		if err != nil {
			f.errs[*name] = err
		} else if changed {
			stale = append(stale, *name)
		}
	})
	if !networks { // of which systemd learns by a reload alone
		stale = f.placeAll(ctx, stale)
	}
	if len(stale) == 0 && !networks {
		return
	}
	err = f.conn.Reload(ctx)
	for _, name := range stale {
		switch {
		case err != nil:
			f.errs[name] = fmt.Errorf("the definition has changed, and systemd has to read it: %w", err)
		case f.app.generated(name) == "":
			f.errs[name] = withHint(errors.New("systemd's generators made no unit of its definition"), "vmctl doctor looks for the cause")
		default:
			f.errs[name] = f.refused(name)
		}
	}
}

// refused is why the generator made something else of a definition than was
// expected: it also knows the other machines. It is nil where it did not.
func (f *freshener) refused(name string) error {
	if changed, _, err := f.changed(name); err == nil && !changed {
		return nil
	}
	vm, err := f.app.findChecked(name)
	if err != nil || len(vm.Problems) == 0 {
		return err
	}
	return &invalidError{vm.Problems}
}

// changed says whether systemd was told something else than it would be now, of
// a machine and of the networks that it is plugged into.
func (f *freshener) changed(name string) (machine, network bool, err error) {
	vm, err := f.app.findIn(f.set, name)
	if err != nil {
		return false, false, err
	}
	p := f.app.plan(vm, f.host)
	if len(p.Problems) > 0 {
		return false, false, invalid(vm, p.Problems)
	}
	return f.app.generated(name) != p.dropIn(), f.app.networksChanged(vm.Machine), nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/backup"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/hypervisor/saved"
	"github.com/vmctl/vmctl/hypervisor/snapshot"
)

// operator does one kind of thing to a machine's disks, cards, shares or state, as a unit of
// its own. request is its argument, and the result goes to who asked for it.
// When ctx ends it takes back what it did, and returns.
type operator func(ctx context.Context, a app, request json.RawMessage, report *operation.Reporter) (result any, err error)

// operators are all of them, by the word after "operate NAME".
var operators = map[string]operator{
	backup.Make:             makeBackup,
	hypervisor.DiskAttach:   attachDisk,
	hypervisor.DiskDetach:   detachDisk,
	hypervisor.DiskInsert:   insertMedium,
	hypervisor.DiskEject:    ejectMedium,
	hypervisor.DiskThrottle: throttleDisk,
	hypervisor.NICAttach:    attachNIC,
	hypervisor.NICDetach:    detachNIC,
	hypervisor.NICSet:       setNIC,
	hypervisor.ShareAttach:  attachShare,
	hypervisor.ShareDetach:  detachShare,
	hypervisor.MachineSet:   setMachine,
	backup.Restore:          restoreBackup,
	snapshot.Create:         createSnapshot,
	snapshot.Delete:         deleteSnapshots,
	snapshot.Restore:        restoreSnapshot,
	operationSave:           saveMachine,
	operationDiscard:        discardSaved,
}

// mender takes back, or brings to its end, an operation that was cut off. It may
// be cut off too, and is then called again.
type mender func(ctx context.Context, a app, r operation.Record) error

// menders are all of them, by the kind of the record.
var menders = map[string]mender{
	backup.Make:            mendBackup,
	hypervisor.DiskAttach:  mendDisk,
	hypervisor.DiskDetach:  mendDisk,
	hypervisor.DiskInsert:  mendMedium,
	hypervisor.DiskEject:   mendMedium,
	hypervisor.NICAttach:   mendNIC,
	hypervisor.NICDetach:   mendNIC,
	hypervisor.NICSet:      mendNIC,
	hypervisor.ShareAttach: mendShare,
	hypervisor.ShareDetach: mendShare,
	hypervisor.MachineSet:  mendSet,
	backup.Restore:         mendRestore,
	snapshot.Create:        mendCreateSnapshot,
	snapshot.Delete:        mendDeleteSnapshot,
	snapshot.Restore:       mendRestoreSnapshot,
	operationSave:          mendSave,
}

// operate does something to the machine's disks or state. Stdout is the report.
func (a app) operate(ctx context.Context) int {
	// Who asked may be gone: what has begun is brought to its end.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	report := operation.NewReporter(os.Stdout)
	result, err := a.operateOnce(ctx, report)
	report.End(result, err)
	if err != nil {
		a.say(3, "%v", err)
		return exitFailed
	}
	a.info("%s: done", a.args[0])
	return 0
}

func (a app) operateOnce(ctx context.Context, report *operation.Reporter) (any, error) {
	if len(a.args) != 2 {
		return nil, fmt.Errorf("want operate NAME WHAT REQUEST, got %q", a.args)
	}
	do, ok := operators[a.args[0]]
	if !ok {
		return nil, fmt.Errorf("no such operation: %s", a.args[0])
	}
	file, unlock, err := operation.Lock(a.paths, a.vm, a.args[0])
	if err != nil {
		return nil, err
	}
	defer unlock()
	a.locks = []*os.File{file}
	mending := a.mendUnfinished(ctx)
	if mending != nil {
		r, err := operation.Unfinished(a.paths, a.vm)
		if err != nil || r == nil || r.Kind != snapshot.Restore || a.args[0] != snapshot.Restore {
			return nil, mending
		}
		report.Warn("%v", mending)
	}
	if mending == nil && a.args[0] != operationDiscard && saved.Exists(a.paths, a.vm) {
		// Its memory would not fit its disks any more.
		return nil, operation.Refuse(operation.WrongState, "invalid transition from saved: VM is saved: start it to go on, or reset it to discard what is saved")
	}
	return do(ctx, a, json.RawMessage(a.args[1]), report)
}

// mend is for after an operation, however it ended.
func (a app) mend(ctx context.Context) error {
	// What the operation ran may have it for a moment longer.
	file, unlock, err := a.lockPatiently("mending")
	if err != nil {
		return err
	}
	defer unlock()
	a.locks = []*os.File{file}
	r, err := operation.Unfinished(a.paths, a.vm)
	if err != nil || r == nil {
		return err
	}
	if err := a.mendUnfinished(ctx); err != nil {
		return err
	}
	if r.Kind == backup.Make {
		a.cleanTarget(*r)
	}
	return nil
}

// awaitLock locks the machine once whoever has it is done, however long that
// takes.
func (a app) awaitLock(ctx context.Context, what string) (file *os.File, unlock func(), err error) {
	file, unlock, err = operation.Lock(a.paths, a.vm, what)
	if !isBusy(err) {
		return file, unlock, err
	}
	a.info("%v", err)
	a.notify("STATUS=Waiting: " + oneLine(err.Error()))
	err = a.patiently(func() (err error) {
		for {
			file, unlock, err = operation.Lock(a.paths, a.vm, what)
			if !isBusy(err) {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(lockPoll):
			}
		}
	})
	return file, unlock, err
}

// lockPoll is the time between two looks at a lock that somebody has.
const lockPoll = 100 * time.Millisecond

// isBusy says whether an error of [operation.Lock] is that somebody has it.
func isBusy(err error) bool {
	refused, ok := errors.AsType[*operation.Error](err)
	return ok && refused.Status == operation.WrongState
}

// mendUnfinished mends what was cut off. The caller has the machine's lock.
func (a app) mendUnfinished(ctx context.Context) error {
	r, err := operation.Unfinished(a.paths, a.vm)
	if err != nil || r == nil {
		return err
	}
	a.info("mending: %s of %s was cut off", r.Kind, r.Started.Format("2006-01-02 15:04:05"))
	mend, ok := menders[r.Kind]
	if !ok {
		return fmt.Errorf("mend %s: this version of vmctl does not know how", r.Kind)
	}
	// Of large images it takes a while, and whatever starts the machine waits.
	if err := a.patiently(func() error { return mend(ctx, a, *r) }); err != nil {
		return fmt.Errorf("mend %s: %w", r.Kind, err)
	}
	return operation.Forget(a.paths, a.vm)
}

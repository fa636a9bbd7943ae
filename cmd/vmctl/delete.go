package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/hostdevice"
	"github.com/vmctl/vmctl/netsetup"
	"github.com/vmctl/vmctl/units/bus"
)

// deleteOptions are the flags of vmctl delete.
type deleteOptions struct {
	yes       bool
	force     bool
	keepDisks bool
}

func newDeleteCommand(a *app) *cobra.Command {
	var opts deleteOptions
	cmd := &cobra.Command{
		Use:   "delete NAME...",
		Short: "Remove VMs: definition, disks that vmctl made, records",
		Long: `Remove VMs: the definition with its drop-ins, and the state directory with the
disks that vmctl made, snapshots, UEFI variables and saved state. Files that a definition names by path stay, always. What
was removed and what was left is told. Of a VM without a definition, what is left
is removed: records, disks, the link of vmctl enable, the mark of a failure.`,
		Example: `  vmctl delete web
  vmctl delete --force --yes test1 test2`,
		GroupID:           groupDefine,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDelete(cmd.Context(), a, opts, args)
		},
	}
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&opts.force, "force", "f", false, "shut down first what runs")
	cmd.Flags().BoolVar(&opts.keepDisks, "keep-disks", false, "leave the disks that vmctl made, and what belongs to them: snapshots, UEFI variables, saved state")
	return cmd
}

// deletion is what deleting a machine comes to.
type deletion struct {
	Removed []string `json:"removed"` // files, directories and links
	Left    []string `json:"left"`    // disks and the like that stay
	Cleared bool     `json:"cleared"` // the mark of a failure
}

// deleted is one machine in vmctl delete -o json.
type deleted struct {
	Name string `json:"name"`
	deletion
}

func runDelete(ctx context.Context, a *app, opts deleteOptions, names []string) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	gone, errs := make([]deleted, len(names)), make([]error, len(names))
	remove := func(i int) {
		begun, name := time.Now(), names[i]
		d, err := a.delete(ctx, conn, opts, name)
		a.note(string(opDelete), "", name, begun, err)
		if err != nil {
			errs[i] = inName(string(opDelete), name, err)
			a.ui.errorf(errs[i])
		}
		if d.any() {
			a.tellDeletion(name, d)
		}
		gone[i] = deleted{name, d}
	}
	var wg sync.WaitGroup
	for i := range names {
		if opts.yes {
			wg.Go(func() { remove(i) }) // one that takes long to stop holds up no other
		} else {
			remove(i) // a question at a time
		}
	}
	wg.Wait()
	all := slices.DeleteFunc(gone, func(d deleted) bool { return !d.any() })
	if len(all) > 0 {
		// The units of what is gone go with a reload.
		if err := conn.Reload(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	if a.ui.format == jsonFormat {
		if err := a.ui.json(append([]deleted{}, all...)); err != nil {
			return err
		}
	}
	return worst(errs)
}

// delete removes one machine. With an error, the deletion tells how far it
// went.
func (a *app) delete(ctx context.Context, conn *bus.Conn, opts deleteOptions, name string) (deletion, error) {
	l, err := a.lookAt(ctx, conn, name)
	if err != nil {
		return deletion{}, err
	}
	if err := allowed(opDelete, l.state); err != nil && !opts.force {
		return deletion{}, withHint(err, "vmctl delete --force "+name+" shuts it down first")
	}
	d, err := a.planDeletion(l, opts.keepDisks)
	if err != nil {
		return deletion{}, err
	}
	if !opts.yes {
		if err := a.ui.confirm(d.question(), "--yes"); err != nil {
			return deletion{}, err
		}
	}
	if l.active() || l.state == starting {
		if _, err := a.stop(ctx, conn, stopOptions{}, name); err != nil {
			return deletion{}, err
		}
	}
	if slices.Contains(d.Removed, a.enableLink(name)) {
		if err := conn.Disable(ctx, config.Unit(name)); err != nil {
			return deletion{}, err
		}
	}
	if d.Cleared {
		if err := forget(ctx, conn, name); err != nil {
			return deletion{}, err
		}
	}
	return a.removeLocked(ctx, conn, name, d)
}

// removeLocked removes what d says of a machine that nobody starts meanwhile, and
// to whose disks nothing is being done.
func (a *app) removeLocked(ctx context.Context, conn *bus.Conn, name string, d deletion) (deletion, error) {
	_, unlock, err := lockVM(a.paths, name, "a deletion")
	if err != nil {
		return deletion{}, err
	}
	defer unlock()
	if l, err := a.lookAt(ctx, conn, name); err == nil {
		if err := allowed(opDelete, l.state); err != nil {
			return deletion{}, err // started since it was looked at
		}
	}
	// Files and devices that it was only given go back as they were: what says how
	// is removed too.
	if access.IsThere(a.paths.Grants(name)) {
		if err := access.GiveBack(a.paths, name); err != nil {
			return deletion{}, err
		}
	}
	if err := hostdevice.New(a.paths).GiveBack(name); err != nil {
		return deletion{}, err
	}
	if err := netsetup.Forget(a.paths, name); err != nil {
		return deletion{}, err
	}
	return removeAll(d)
}

// any says whether anything was removed.
func (d deletion) any() bool { return len(d.Removed) > 0 || d.Cleared }

// question is what a person is asked before.
func (d deletion) question() string {
	var parts []string
	if len(d.Removed) > 0 {
		parts = append(parts, "remove "+strings.Join(d.Removed, ", "))
	}
	if d.Cleared {
		parts = append(parts, "clear the mark of the failure")
	}
	return strings.Join(parts, " and ")
}

// removeAll removes what d says, and returns what of it was done.
func removeAll(d deletion) (deletion, error) {
	for i, path := range d.Removed {
		if err := os.RemoveAll(path); err != nil {
			d.Removed, d.Left = d.Removed[:i], append(slices.Clone(d.Removed[i:]), d.Left...)
			return d, err
		}
	}
	return d, nil
}

// planDeletion finds what there is of a machine.
func (a *app) planDeletion(l look, keepDisks bool) (deletion, error) {
	d := deletion{Removed: []string{}, Left: []string{}, Cleared: l.unit.Active == "failed"}
	name := l.vm.Name
	for _, dir := range a.paths.VMDirs {
		for _, path := range []string{filepath.Join(dir, name+".toml"), filepath.Join(dir, name+".toml.d")} {
			if !access.IsThere(path) {
				continue
			}
			if strings.HasPrefix(path, a.paths.Root+"/usr/") {
				return d, withHint(fmt.Errorf("%s belongs to a package", path),
					"an empty "+filepath.Join(a.paths.Root+"/etc/vmctl/vms", name+".toml")+" masks it")
			}
			d.Removed = append(d.Removed, path)
		}
	}
	if err := a.planState(&d, name, keepDisks); err != nil {
		return d, err
	}
	if link := a.enableLink(name); access.IsThere(link) {
		d.Removed = append(d.Removed, link)
	}
	if l.vm.Machine != nil {
		for _, disk := range l.vm.Machine.Disks {
			if disk.Path != "" {
				d.Left = append(d.Left, disk.Path)
			}
		}
	}
	if len(d.Removed) == 0 && !d.Cleared {
		return d, errors.New("nothing of it is there to be removed")
	}
	return d, nil
}

// planState adds what is in the state directory.
func (a *app) planState(d *deletion, name string, keepDisks bool) error {
	dir := a.paths.StateDir(name)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var kept, records []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if slices.Contains(a.records(name), path) {
			records = append(records, path)
		} else if !strings.HasPrefix(e.Name(), ".") { // those are what a crash left of what was being written
			kept = append(kept, path)
		}
	}
	if keepDisks && slices.ContainsFunc(kept, isDisk) {
		// A disk may stand on a snapshot, and boots by its UEFI variables.
		d.Removed = append(d.Removed, records...)
		d.Left = append(d.Left, kept...)
		return nil
	}
	disks := slices.DeleteFunc(kept, func(path string) bool { return !isDisk(path) })
	if err := a.checkStanding(name, disks); err != nil {
		return err
	}
	d.Removed = append(append(d.Removed, disks...), dir)
	return nil
}

// isDisk says whether a file of a state directory is a disk.
func isDisk(path string) bool { return strings.HasPrefix(filepath.Base(path), "disk-") }

// records are the files of a state directory that are of no use without the
// definition.
func (a *app) records(name string) []string {
	return []string{a.paths.Record(name), a.paths.Exit(name), a.paths.Grants(name), a.paths.Changes(name), a.paths.Claims(name), a.paths.ThrowAway(name)}
}

// checkStanding refuses to remove disks of a machine on which others stand, which
// would be unreadable then.
func (a *app) checkStanding(name string, disks []string) error {
	if len(disks) == 0 {
		return nil
	}
	known, err := a.knownDisks()
	if err != nil {
		return err
	}
	for _, path := range disks {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue // nothing to stand on
		}
		others := slices.DeleteFunc(a.standing(f, known), func(other string) bool {
			return strings.HasPrefix(other, a.paths.StateDir(name)+"/")
		})
		f.Close()
		if len(others) > 0 {
			return withHint(&stateError{fmt.Errorf("%s is what %s stands on", path, strings.Join(others, ", "))},
				"vmctl disk flatten makes a disk stand on its own; --keep-disks leaves all")
		}
	}
	return nil
}

// tellDeletion says what has become of what.
func (a *app) tellDeletion(name string, d deletion) {
	for _, path := range d.Removed {
		a.ui.printf("%s: removed %s", name, path)
	}
	if d.Cleared {
		a.ui.printf("%s: cleared the mark of its failure", name)
	}
	for _, path := range d.Left {
		a.ui.printf("%s: left %s", name, path)
	}
}

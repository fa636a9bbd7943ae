package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
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
disks that vmctl made. Files that a definition names by path stay, always. What
was removed and what was left is told.`,
		GroupID:           groupDefine,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDelete(cmd.Context(), a, opts, args)
		},
	}
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&opts.force, "force", "f", false, "shut down first what runs")
	cmd.Flags().BoolVar(&opts.keepDisks, "keep-disks", false, "leave the disks that vmctl made")
	return cmd
}

// deletion is what deleting a machine comes to.
type deletion struct {
	Removed []string `json:"removed"` // files and directories
	Left    []string `json:"left"`    // disks and the like that stay
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
	var all []deleted
	var errs []error
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		d, err := a.delete(ctx, conn, opts, name)
		if err != nil {
			err = inName(string(opDelete), name, err)
			a.ui.errorf(err)
			errs = append(errs, err)
		}
		if len(d.Removed) > 0 {
			all = append(all, deleted{name, d})
			a.tellDeletion(name, d)
		}
	}
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
		question := "remove " + strings.Join(d.Removed, ", ")
		if err := a.ui.confirm(question, "--yes"); err != nil {
			return deletion{}, err
		}
	}
	if l.active() || l.state == starting {
		if _, err := a.stop(ctx, conn, stopOptions{}, name); err != nil {
			return deletion{}, err
		}
	}
	if a.enabled()[name] {
		if err := conn.Disable(ctx, config.Unit(name)); err != nil {
			return deletion{}, err
		}
	}
	if l.state == failed {
		if err := forget(ctx, conn, name); err != nil {
			return deletion{}, err
		}
	}
	return removeAll(d)
}

// removeAll removes what d says, and returns what of it was done.
func removeAll(d deletion) (deletion, error) {
	for i, path := range d.Removed {
		if err := os.RemoveAll(path); err != nil {
			return deletion{Removed: d.Removed[:i], Left: append(slices.Clone(d.Removed[i:]), d.Left...)}, err
		}
	}
	return d, nil
}

// planDeletion finds what there is of a machine.
func (a *app) planDeletion(l look, keepDisks bool) (deletion, error) {
	d := deletion{Removed: []string{}, Left: []string{}}
	name := l.vm.Name
	for _, dir := range a.paths.VMDirs {
		for _, path := range []string{filepath.Join(dir, name+".toml"), filepath.Join(dir, name+".toml.d")} {
			if _, err := os.Lstat(path); err != nil {
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
	if l.vm.Machine != nil {
		for _, disk := range l.vm.Machine.Disks {
			if disk.Path != "" {
				d.Left = append(d.Left, disk.Path)
			}
		}
	}
	if len(d.Removed) == 0 {
		return d, errors.New("nothing of it is on disk")
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
	var disks, others []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), "disk-") {
			disks = append(disks, path)
		} else {
			others = append(others, path)
		}
	}
	if keepDisks && len(disks) > 0 {
		d.Removed = append(d.Removed, others...)
		d.Left = append(d.Left, disks...)
		return nil
	}
	d.Removed = append(append(d.Removed, disks...), dir)
	return nil
}

// tellDeletion says what has become of what.
func (a *app) tellDeletion(name string, d deletion) {
	for _, path := range d.Removed {
		a.ui.printf("%s: removed %s", name, path)
	}
	for _, path := range d.Left {
		a.ui.printf("%s: left %s", name, path)
	}
}

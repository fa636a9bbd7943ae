package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/units/bus"
)

// saveUnit is the kind of the unit that saves, and discards what is saved.
const saveUnit = "save"

func newSaveCommand(a *app) *cobra.Command {
	var opts waitOptions
	cmd := &cobra.Command{
		Use:   "save NAME...",
		Short: "Put VMs away as they run: memory on the disk, hypervisor ended",
		Long: `Put VMs away as they run: memory and devices are written to the state directory,
compressed, and the hypervisor ends. vmctl start, or the start with the host, goes
on from there; vmctl reset discards what is saved. The guest runs while its memory
is written. Where it cannot be saved, or the saving is interrupted, it runs on.

A saved VM goes on with the definition and the disks that it was saved with: as
long as it is saved, neither may be changed.`,
		Example: `  vmctl save web
  vmctl start web`,
		GroupID:           groupRun,
		Args:              namesOrAll,
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runSave(cmd.Context(), a, opts, args) },
	}
	cmd.Flags().Var(&opts.timeout, "timeout", "take back what has not been saved after this time, e.g. 5min")
	cmd.Flags().BoolVarP(&opts.all, "all", "a", false, "save all that run")
	return cmd
}

func runSave(ctx context.Context, a *app, opts waitOptions, names []string) error {
	names, err := a.targets(ctx, opSave, opts.all, names)
	if err != nil {
		return err
	}
	ctx, cancel := opts.context(ctx)
	defer cancel()
	return a.each(ctx, opSave, names, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		l, err := a.lookAt(ctx, conn, name)
		if err != nil {
			return "", err
		}
		if err := allowed(opSave, l.state); err != nil {
			return "", err
		}
		var result struct {
			Bytes  int64 `json:"bytes"`
			Memory int64 `json:"memory_bytes"`
		}
		if err := a.operate(ctx, conn, name, saveUnit, "save", nil, &result); err != nil {
			return "", err
		}
		return "saved (" + sizeText(result.Memory) + " of memory in " + sizeText(result.Bytes) + ")", nil
	})
}

// discardSaved removes the saved state of a machine, which is stopped then.
func (a *app) discardSaved(ctx context.Context, conn *bus.Conn, l look) (string, error) {
	if err := a.operate(ctx, conn, l.vm.Name, saveUnit, "discard", nil, nil); err != nil {
		return "", err
	}
	if l.unit.Active == "failed" {
		return "discarded what was saved", forget(ctx, conn, l.vm.Name)
	}
	return "discarded what was saved", nil
}

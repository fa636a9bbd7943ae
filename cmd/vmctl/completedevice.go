package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
)

// completer completes the arguments of a command.
type completer = func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective)

// completeDevices completes the name of a machine, then of one of the devices that it
// has now: of those that names returns.
func (a *app) completeDevices(names func(*config.Machine) []string) completer {
	return a.completeOf(func(l look) (all []string) {
		if m := l.machine(); m != nil {
			all = names(m)
		}
		return all
	})
}

// completeDetached completes the name of a machine, then of a device that its
// definition has, and it, which runs, has not got.
func (a *app) completeDetached(names func(*config.Machine) []string) completer {
	return a.completeOf(func(l look) (all []string) {
		if l.vm.Machine == nil || l.record == nil {
			return nil
		}
		has := names(l.machine())
		return slices.DeleteFunc(names(l.vm.Machine), func(name string) bool { return slices.Contains(has, name) })
	})
}

// completeOf completes the name of a machine, then one of the names that of returns.
func (a *app) completeOf(of func(look) []string) completer {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		a.settle()
		if len(args) != 1 {
			return a.completeName(cmd, args, prefix)
		}
		// What cannot be read has no devices.
		found, _ := config.LoadVM(a.paths, args[0])
		found.Name = args[0]
		var out []cobra.Completion
		for _, name := range of(look{vm: found, record: a.readRecord(args[0]), changes: a.changes(args[0])}) {
			if strings.HasPrefix(name, prefix) {
				out = append(out, name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/image"
)

func newDiskCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "disk",
		Short: "Disks and image files: list, show, create, resize, clone, convert …",
		Long: `Disks of machines, and image files. Each command takes a disk in one of two ways:
VM DISK, for the machine's disk of that name, or the path of a file, which has a
slash in it: ./NAME for one of the working directory.

What changes a file makes a new one beside it, which takes its place once it is
whole (resize apart, which changes no content): a command that fails, or is
killed, leaves the old one. Refused is what others depend on: a disk that is in
use, a file that another image stands on, a stored image.`,
		Example: `  vmctl disk list
  vmctl disk resize web root 40G
  vmctl disk clone web root /srv/web.qcow2
  vmctl disk convert ./appliance.vmdk ./appliance.qcow2 --format qcow2`,
		GroupID: groupParts,
		Args:    noCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newDiskAttachCommand(a),
		newDiskCloneCommand(a),
		newDiskConvertCommand(a),
		newDiskCreateCommand(a),
		newDiskDeleteCommand(a),
		newDiskDetachCommand(a),
		newDiskEjectCommand(a),
		newDiskFlattenCommand(a),
		newDiskImportCommand(a),
		newDiskInsertCommand(a),
		newDiskListCommand(a),
		newDiskOverlayCommand(a),
		newDiskRebaseCommand(a),
		newDiskResizeCommand(a),
		newDiskShowCommand(a),
		newDiskThrottleCommand(a),
	)
	return cmd
}

// place is a disk as the command line names it: a machine's, or a file.
type place struct {
	vm, disk string
	path     string // absolute; "" for a machine's
}

func (p place) String() string {
	if p.path != "" {
		return p.path
	}
	return p.vm + " " + p.disk
}

// inPlace says of an error what it is about.
func inPlace(verb string, p place, err error) error { return fmt.Errorf("%s %s: %w", verb, p, err) }

// isPath says whether an argument is the path of a file.
func isPath(arg string) bool { return strings.ContainsRune(arg, filepath.Separator) }

// takePlace reads the place with which arguments begin, and returns the rest.
func takePlace(args []string) (place, []string, error) {
	const want = "want VM DISK, or the path of a file with a slash in it"
	switch {
	case len(args) == 0:
		return place{}, nil, usageError{errors.New(want)}
	case isPath(args[0]):
		path, err := filepath.Abs(args[0])
		return place{path: path}, args[1:], err
	case len(args) == 1 || isPath(args[1]):
		return place{}, nil, withHint(usageError{fmt.Errorf(want+", got %s alone", args[0])}, "a file of the working directory is ./"+args[0])
	}
	if err := checkName(args[0]); err != nil {
		return place{}, nil, err
	}
	if err := config.CheckName(args[1]); err != nil {
		return place{}, nil, usageError{fmt.Errorf("name of a disk: %w", err)}
	}
	return place{vm: args[0], disk: args[1]}, args[2:], nil
}

// takePlaces reads as many places as are wanted, and what is left has to be of a
// number of arguments, each of which has a name for people.
func takePlaces(args []string, n int, names ...string) ([]place, []string, error) {
	var places []place
	for range n {
		p, rest, err := takePlace(args)
		if err != nil {
			return nil, nil, err
		}
		places, args = append(places, p), rest
	}
	switch {
	case len(args) < len(names):
		return nil, nil, usageError{fmt.Errorf("want %s after %s", strings.Join(names[len(args):], " and "), places[len(places)-1])}
	case len(args) > len(names):
		return nil, nil, usageError{fmt.Errorf("want nothing after %s, got %q", strings.Join(append([]string{places[len(places)-1].String()}, args[:len(names)]...), " "), args[len(names)])}
	}
	return places, args, nil
}

// completePlaces completes as many places as are given.
func (a *app) completePlaces(n int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		a.settle()
		for range n {
			switch {
			case len(args) == 0:
				return a.completePlace(prefix)
			case isPath(args[0]):
				args = args[1:]
			case len(args) == 1:
				return a.completeDisks(args[0], prefix)
			default:
				args = args[2:]
			}
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// completePlace completes the name of a machine, or a path.
func (a *app) completePlace(prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	names := slices.DeleteFunc(a.names(), func(name string) bool { return !strings.HasPrefix(name, prefix) })
	if isPath(prefix) || len(names) == 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeDisks completes the name of a machine's disk.
func (a *app) completeDisks(vm, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	// What cannot be read has no disks.
	found, _ := config.LoadVM(a.paths, vm)
	var out []cobra.Completion
	for _, d := range a.disksOf(found) {
		if strings.HasPrefix(d.Name, prefix) && !slices.Contains(out, d.Name) {
			out = append(out, d.Name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeFormats completes a flag that takes the format of an image.
func completeFormats(cmd *cobra.Command, flag string) {
	// Only an unknown flag fails here.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(image.Formats, cobra.ShellCompDirectiveNoFileComp))
}

// checkFormat refuses what is no format; "" is none that is given.
func checkFormat(flag, format string) error {
	if format == "" || slices.Contains(image.Formats, format) {
		return nil
	}
	return usageError{fmt.Errorf("--%s: want one of %s, got %s", flag, strings.Join(image.Formats, ", "), format)}
}

// sizeFlag is the value of a flag that takes a size, in the notation of
// definitions.
type sizeFlag config.Size

// String, Set and Type make a size a pflag.Value.
func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return config.Size(*s).String()
}

func (s *sizeFlag) Set(text string) error {
	size, err := config.ParseSize(text)
	*s = sizeFlag(size)
	return err
}

func (s *sizeFlag) Type() string { return "SIZE" }

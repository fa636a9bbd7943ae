package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// names are those of all definitions, sorted, by a look at the directories
// alone: completion has to be fast, and to work while definitions are broken.
func (a *app) names() []string { return namesIn(a.paths.VMDirs) }

// namesIn are those of the definitions in directories.
func namesIn(dirs []string) []string {
	var names []string
	for _, dir := range dirs {
		// What cannot be read has no names.
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			name, isTOML := strings.CutSuffix(e.Name(), ".toml")
			if isTOML && !e.IsDir() && config.CheckName(name) == nil {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// notFound is the error for a name that no definition has.
func (a *app) notFound(name string) error {
	e := &notFoundError{Kind: "VM", Name: name}
	if slices.Contains(a.names(), name) {
		e.Hint = "its definition is masked, by an empty file or a link to /dev/null"
	} else if near := nearest(name, a.names()); near != "" {
		e.Hint = didYouMean(near)
	} else {
		e.Hint = "vmctl list shows those that there are"
	}
	return e
}

// load reads one definition for a command that needs it sound.
func (a *app) load(name string) (*config.Machine, error) {
	vm, err := a.find(name)
	if err != nil {
		return nil, err
	}
	if vm.Machine == nil {
		return nil, invalid(vm, vm.Problems)
	}
	return vm.Machine, nil
}

// invalid is the error of a definition with problems: that it cannot be read,
// where that is all that is wrong with it.
func invalid(vm config.VM, problems []config.Problem) error {
	return invalidFile(vm.File, problems)
}

// invalidFile is the error of a file that cannot be used: because of what is in
// it, or because the caller may not read it.
func invalidFile(file string, problems []config.Problem) error {
	// Not opened: it may be a FIFO.
	err := unix.Faccessat(unix.AT_FDCWD, file, unix.R_OK, unix.AT_EACCESS)
	if errors.Is(err, fs.ErrPermission) {
		return &fs.PathError{Op: "open", Path: file, Err: err}
	}
	return &invalidError{problems}
}

// find reads one definition, sound or broken.
func (a *app) find(name string) (config.VM, error) {
	if err := checkName(name); err != nil {
		return config.VM{}, err
	}
	vm, err := config.LoadVM(a.paths, name)
	if errors.Is(err, fs.ErrNotExist) {
		return config.VM{}, a.notFound(name)
	}
	return vm, err
}

// checkName refuses what is no name of a machine. The name of its unit or of
// its file is not, but tells which one is meant.
func checkName(name string) error {
	err := config.CheckName(name)
	if err == nil {
		return nil
	}
	err = usageError{fmt.Errorf("name of a VM: %w", err)}
	bare := strings.TrimSuffix(strings.TrimSuffix(vmName(filepath.Base(name)), ".d"), ".toml")
	if config.CheckName(bare) != nil {
		return err
	}
	return withHint(err, didYouMean(bare))
}

func didYouMean(name string) string { return fmt.Sprintf("did you mean %q?", name) }

// nearest is the candidate that a slip of the fingers may have turned into
// name, "" where none is near: one slip in a short name, one of three letters
// in a long one.
func nearest(name string, candidates []string) string {
	best := slices.MinFunc(append([]string{""}, candidates...), func(a, b string) int {
		return cmp.Compare(slips(name, a), slips(name, b))
	})
	if best == "" || slips(name, best) > max(1, len(name)/3) {
		return ""
	}
	return best
}

// slips is how many letters have to be inserted, removed, replaced or swapped
// with the next to make b of a (optimal string alignment).
func slips(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := range len(a) {
		for j := range len(b) {
			replaced := d[i][j]
			if a[i] != b[j] {
				replaced++
			}
			d[i+1][j+1] = min(replaced, d[i][j+1]+1, d[i+1][j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d[i+1][j+1] = min(d[i+1][j+1], d[i-1][j-1]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// completeNames completes the names of machines, each once.
func (a *app) completeNames(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	a.settle()
	var out []cobra.Completion
	for _, name := range a.names() {
		if strings.HasPrefix(name, prefix) && !slices.Contains(args, name) {
			out = append(out, name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeByRunning completes the names of machines, first of those that run, or of
// those that do not, as far as their directories tell: to ask systemd takes too long.
func (a *app) completeByRunning(running bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		names, directive := a.completeNames(cmd, args, prefix)
		slices.SortStableFunc(names, func(x, y string) int {
			later := func(name string) int {
				if access.IsThere(a.paths.ControlSocket(name)) == running {
					return 0
				}
				return 1
			}
			return cmp.Compare(later(x), later(y))
		})
		return names, directive | cobra.ShellCompDirectiveKeepOrder
	}
}

// completeName completes the name of one machine.
func (a *app) completeName(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeNames(cmd, args, prefix)
}

// oneName and someNames say how many names a command takes, in words for
// people.
func oneName(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("want the name of one VM, got %d arguments", len(args))}
	}
	return nil
}

func someNames(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{errors.New("want the name of a VM")}
	}
	return nil
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("want no argument, got %q", args[0])}
	}
	return nil
}

// isFile says whether an argument means a file and not a name. The file name of
// a definition is neither, where no such file is in the working directory.
func (a *app) isFile(arg string) bool {
	name, isTOML := strings.CutSuffix(arg, ".toml")
	if !isTOML || strings.ContainsRune(arg, filepath.Separator) {
		return strings.ContainsRune(arg, filepath.Separator)
	}
	_, err := os.Lstat(arg)
	return err == nil || !slices.Contains(a.names(), name)
}

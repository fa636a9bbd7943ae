package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/image"
)

func newImageDeleteCommand(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete NAME...",
		Short: "Remove stored images that no disk stands on",
		Long: `Remove stored images. One that a disk stands on is refused: the disk would be
lost. vmctl image show tells which disks those are.`,
		Example:           "  vmctl image delete debian-12 ubuntu-22.04",
		Args:              someImages,
		ValidArgsFunction: a.completeImages,
		RunE:              func(_ *cobra.Command, args []string) error { return runImageDelete(a, yes, args) },
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func runImageDelete(a *app, yes bool, names []string) error {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	for _, name := range names {
		if _, err := a.image(name); err != nil {
			return err
		}
	}
	if !yes {
		if err := a.ui.confirm("remove "+strings.Join(names, ", "), "--yes"); err != nil {
			return err
		}
	}
	// What a broken definition names is not known, and is only warned of here.
	named, _ := a.named()
	removed := []string{}
	var errs []error
	for _, name := range names {
		if err := a.deleteImage(name); err != nil {
			a.ui.errorf(err)
			errs = append(errs, err)
			continue
		}
		removed = append(removed, name)
		a.ui.printf("%s: removed", name)
		if vms := named[name]; len(vms) > 0 {
			a.ui.warnf("%s: %s has a disk that begins with it: the next start gets it again, or fails", name, strings.Join(vms, ", "))
		}
	}
	if a.ui.format == jsonFormat {
		if err := a.ui.json(removed); err != nil {
			return err
		}
	}
	return worst(errs)
}

// named are the machines whose definitions name an image, by image. The error is
// of a definition that cannot be read: it may name any.
func (a *app) named() (map[string][]string, error) {
	set, err := config.Load(a.paths)
	if err != nil {
		return nil, err
	}
	named := map[string][]string{}
	for _, vm := range set.VMs {
		if vm.Machine == nil {
			if err == nil {
				err = invalid(vm, vm.Problems)
			}
			continue
		}
		for _, d := range vm.Machine.Disks {
			if d.Image != "" && !slices.Contains(named[d.Image], vm.Name) {
				named[d.Image] = append(named[d.Image], vm.Name)
			}
		}
	}
	return named, err
}

func (a *app) deleteImage(name string) error {
	err := a.store().Delete(name)
	if used, ok := errors.AsType[*image.InUseError](err); ok {
		return withHint(&stateError{fmt.Errorf("delete %s: %w", name, used)},
			"vmctl delete removes a machine with its disks")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return a.imageNotFound(name)
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// pruneOptions are the flags of vmctl image prune.
type pruneOptions struct {
	yes    bool
	dryRun bool
}

func newImagePruneCommand(a *app) *cobra.Command {
	var opts pruneOptions
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that nothing uses, and what broken pulls have left",
		Long: `Remove stored images that no disk stands on and no definition names, and what
pulls that were broken off have left.`,
		Example: `  vmctl image prune --dry-run
  vmctl image prune --yes`,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return runImagePrune(a, opts) },
	}
	cmd.Flags().BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&opts.dryRun, "dry-run", "n", false, "only tell what would be removed")
	return cmd
}

// pruned is vmctl image prune -o json.
type pruned struct {
	Images     []string `json:"images"`
	Files      []string `json:"files"` // of broken pulls
	FreedBytes int64    `json:"freed_bytes"`
}

func runImagePrune(a *app, opts pruneOptions) error {
	p, err := a.planPrune()
	if err != nil {
		return err
	}
	switch {
	case len(p.Images)+len(p.Files) == 0:
		a.ui.printf("nothing to remove")
		return a.printPruned(p)
	case opts.dryRun:
		for _, what := range slices.Concat(p.Images, p.Files) {
			a.ui.printf("%s: would be removed", what)
		}
		return a.printPruned(p)
	case !opts.yes:
		if err := a.ui.confirm("remove "+strings.Join(slices.Concat(p.Images, p.Files), ", "), "--yes"); err != nil {
			return err
		}
	}
	for _, name := range p.Images {
		if err := a.deleteImage(name); err != nil {
			return err
		}
		a.ui.printf("%s: removed", name)
	}
	if err := a.store().RemoveLeft(p.Files); err != nil {
		return err
	}
	for _, file := range p.Files {
		a.ui.printf("%s: removed", file)
	}
	a.ui.printf("%s freed", sizeText(p.FreedBytes))
	return a.printPruned(p)
}

func (a *app) printPruned(p pruned) error {
	if a.ui.format != jsonFormat {
		return nil
	}
	return a.ui.json(p)
}

// planPrune finds what nothing uses. A definition that cannot be read may name
// any image.
func (a *app) planPrune() (pruned, error) {
	p := pruned{Images: []string{}, Files: []string{}}
	named, err := a.named()
	if err != nil {
		return p, withHint(err, "which images it names cannot be told, so none is removed")
	}
	rows, err := a.imageRows()
	if err != nil {
		return p, err
	}
	for _, r := range rows {
		if r.Children == nil {
			return p, fmt.Errorf("look for disks that stand on images: %w", fs.ErrPermission)
		}
		if len(r.Children) == 0 && len(named[r.Name]) == 0 {
			p.Images = append(p.Images, r.Name)
			p.FreedBytes += r.Allocated
		}
	}
	left, err := a.store().Left()
	if err != nil {
		return p, err
	}
	for _, file := range left {
		if s, err := os.Lstat(file); err == nil {
			p.FreedBytes += allocated(s)
		}
		p.Files = append(p.Files, file)
	}
	return p, nil
}

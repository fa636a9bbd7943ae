package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/image"
	"github.com/vmctl/vmctl/hypervisor/image/pull"
)

func newImageCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Stored images that disks begin with: pull, import, list, delete …",
		Long: `Stored images are what disks with image = "NAME" in a definition begin with.
They are never written again: each disk keeps what is different in a file of its
own. Short names such as debian-13 come from /usr/lib/vmctl/images.toml and
/etc/vmctl/images.toml; an image that is missing when a machine starts is pulled
by itself, if its name is one of those.`,
		Example: `  vmctl image pull debian-13
  vmctl image import ./appliance.vmdk --name appliance
  vmctl image list --available`,
		GroupID: groupParts,
		Args:    noCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newImageDeleteCommand(a),
		newImageExportCommand(a),
		newImageImportCommand(a),
		newImageListCommand(a),
		newImagePruneCommand(a),
		newImagePullCommand(a),
		newImageShowCommand(a),
		newImageVerifyCommand(a),
	)
	return cmd
}

// store is the stored images.
func (a *app) store() image.Store { return image.Store{Paths: a.paths} }

// puller brings images into the store.
func (a *app) puller() pull.Puller {
	return pull.New(a.store(), a.probe().Programs["qemu-img"], "vmctl/"+version)
}

// image finds a stored image.
func (a *app) image(name string) (image.Image, error) {
	if err := config.CheckImageName(name); err != nil {
		return image.Image{}, usageError{fmt.Errorf("name of an image: %w", err)}
	}
	i, err := a.store().Get(name)
	if errors.Is(err, fs.ErrNotExist) {
		return i, a.imageNotFound(name)
	}
	return i, err
}

func (a *app) imageNotFound(name string) error {
	e := &notFoundError{Kind: "image", Name: name, Hint: "vmctl image list shows those that there are"}
	// What cannot be read has no names.
	names, _ := a.store().Names()
	if near := nearest(name, names); near != "" {
		e.Hint = didYouMean(near)
	}
	for _, s := range a.imageSources() {
		if s.Name == name {
			e.Hint = "vmctl image pull " + name + " gets it"
		}
	}
	return e
}

// imageSources are the images that can be pulled by short names; what is wrong
// with their table is told.
func (a *app) imageSources() []config.ImageSource {
	sources, problems := config.LoadImages(a.paths)
	for _, p := range problems {
		a.ui.warnf("%v", p)
	}
	return sources
}

// imageJSON is an image in JSON. The names of its fields stay.
type imageJSON struct {
	image.Image
	File      string        `json:"file"`
	Allocated int64         `json:"allocated_bytes"` // what it takes of the file system: less than the file's size where that has holes
	Children  []image.Child `json:"children"`        // disks that stand on it; null where that cannot be told
}

// imageRows are all stored images with what stands on them.
func (a *app) imageRows() ([]imageJSON, error) {
	store := a.store()
	names, err := store.Names()
	if err != nil {
		return nil, err
	}
	children, err := a.children()
	if err != nil {
		return nil, err
	}
	rows := []imageJSON{}
	for _, name := range names {
		i, err := store.Get(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			a.ui.warnf("%v", err)
			continue
		}
		rows = append(rows, a.imageRow(i, children))
	}
	return rows, nil
}

func (a *app) imageRow(i image.Image, children map[string][]image.Child) imageJSON {
	row := imageJSON{Image: i, File: a.paths.Image(i.Name)}
	// Where it is gone it takes nothing.
	if st, err := os.Stat(row.File); err == nil {
		row.Allocated = allocated(st)
	}
	if children != nil {
		row.Children = append([]image.Child{}, children[i.Name]...)
	}
	return row
}

// allocated is what a file takes of its file system, in bytes.
func allocated(s os.FileInfo) int64 {
	const block = 512 // of st_blocks (stat(2)), whatever the file system's own
	return s.Sys().(*syscall.Stat_t).Blocks * block
}

// children are the disks that stand on images; nil where the caller may not look
// into disks.
func (a *app) children() (map[string][]image.Child, error) {
	all, err := a.store().Children()
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	return all, err
}

// completeImages completes the names of stored images, each once.
func (a *app) completeImages(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	a.settle()
	names, _ := a.store().Names()
	var out []cobra.Completion
	for _, name := range names {
		if strings.HasPrefix(name, prefix) && !slices.Contains(args, name) {
			out = append(out, name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeSources completes the short names of images that can be pulled.
func (a *app) completeSources(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	a.settle()
	sources, _ := config.LoadImages(a.paths)
	var out []cobra.Completion
	for _, s := range sources {
		if strings.HasPrefix(s.Name, prefix) && !slices.Contains(args, s.Name) {
			out = append(out, cobra.CompletionWithDesc(s.Name, s.Description))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// oneImage and someImages say how many names a command takes.
func oneImage(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("want the name of one image, got %d arguments", len(args))}
	}
	return nil
}

func someImages(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{errors.New("want the name of an image")}
	}
	return nil
}

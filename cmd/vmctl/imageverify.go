package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/image"

	"github.com/vmctl/vmctl/hypervisor/access"
)

func newImageVerifyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify [NAME...]",
		Short: "Compare stored images with what they were when they were stored",
		Long: `Compare stored images, all of them or those named, with the checksums that they
had when they were stored. The exit status is 1 where one has changed: each disk
that stands on it has changed too.`,
		Example: `  vmctl image verify
  vmctl image verify debian-13`,
		ValidArgsFunction: a.completeImages,
		RunE:              func(cmd *cobra.Command, args []string) error { return runImageVerify(cmd.Context(), a, args) },
	}
}

// verified is one image in vmctl image verify -o json.
type verified struct {
	Name  string     `json:"name"`
	Sound bool       `json:"sound"`
	Error *errorJSON `json:"error"`
}

func runImageVerify(ctx context.Context, a *app, names []string) error {
	if len(names) == 0 {
		all, err := a.store().Names()
		if err != nil {
			return err
		}
		names = all
	}
	results := []verified{}
	var errs []error
	for _, name := range names {
		err := a.verifyImage(ctx, name)
		result := verified{Name: name, Sound: err == nil}
		if err != nil {
			result.Error = new(newErrorJSON(err))
			a.ui.errorf(err)
			errs = append(errs, err)
		} else {
			a.ui.printf("%s: sound", name)
		}
		results = append(results, result)
	}
	if a.ui.format == jsonFormat {
		if err := a.ui.json(results); err != nil {
			return err
		}
	}
	return worst(errs)
}

func (a *app) verifyImage(ctx context.Context, name string) error {
	i, err := a.image(name)
	if err != nil {
		return err
	}
	var done int64
	err = a.store().Verify(i, func(n int64) {
		done += n
		if isTerminal(a.ui.err) && i.FileSize > 0 {
			a.ui.drawLine(fmt.Sprintf("%s: checking %d %%", name, done*100/i.FileSize))
		}
	})
	a.ui.clearLine()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return withHint(fmt.Errorf("verify %s: %w", name, err), "vmctl image show "+name+" tells where it is from, and which disks stand on it")
	}
	return nil
}

// exportOptions are the flags of vmctl image export.
type exportOptions struct {
	format string
	force  bool
}

func newImageExportCommand(a *app) *cobra.Command {
	var opts exportOptions
	cmd := &cobra.Command{
		Use:   "export NAME FILE",
		Short: "Write a stored image to a file",
		Long: `Write a stored image to a file, as it is stored, or converted by qemu-img to
another format. A file that is there already is left alone.`,
		Example: `  vmctl image export debian-13 /srv/debian-13.qcow2
  vmctl image export --format vmdk golden ./golden.vmdk`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{fmt.Errorf("want the name of an image and a file, got %d arguments", len(args))}
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return a.completeImages(cmd, args, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImageExport(cmd.Context(), a, opts, args[0], args[1])
		},
	}
	cmd.Flags().StringVar(&opts.format, "format", "", "convert it to this format: qcow2, raw, vmdk, vdi, vpc or vhdx")
	cmd.Flags().BoolVarP(&opts.force, "force", "f", false, "replace a file that is there")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(image.Formats, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runImageExport(ctx context.Context, a *app, opts exportOptions, name, file string) error {
	if opts.format != "" && !slices.Contains(image.Formats, opts.format) {
		return usageError{fmt.Errorf("--format: want one of %s, got %s", strings.Join(image.Formats, ", "), opts.format)}
	}
	i, err := a.image(name)
	if err != nil {
		return err
	}
	if s, err := os.Stat(file); err == nil && !s.Mode().IsRegular() {
		return withHint(&stateError{fmt.Errorf("export %s: want a file, %s is none", name, file)}, "name a file in it, or beside it")
	}
	if access.IsThere(file) && !opts.force {
		return withHint(&stateError{fmt.Errorf("export %s: %s is there already", name, file)}, "--force replaces it")
	}
	release, err := a.store().Hold()
	if err == nil {
		defer release()
		err = a.export(ctx, i, opts.format, file)
	}
	if err != nil {
		return fmt.Errorf("export %s: %w", name, err)
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(map[string]string{"name": name, "file": file})
	}
	a.ui.printf("%s: written to %s", name, file)
	return nil
}

// export writes an image to a file, whole or not at all.
func (a *app) export(ctx context.Context, i image.Image, format, file string) error {
	if err := a.store().Check(i); err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer out.Close()
	defer os.Remove(out.Name()) // gone already if all went well
	if format == "" || format == i.Format {
		err = disk.CopyFile(out, a.paths.Image(i.Name))
	} else {
		err = a.convert(ctx, i, format, out.Name())
	}
	if err != nil {
		return err
	}
	if err := out.Chmod(0o644); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	return os.Rename(out.Name(), file)
}

// convert has qemu-img write an image in another format. A stored image names no
// other files.
func (a *app) convert(ctx context.Context, i image.Image, format, file string) error {
	program := a.probe().Programs["qemu-img"]
	if program == "" {
		return errors.New("images are converted by qemu-img, which is not installed (Debian: qemu-utils)")
	}
	out, err := exec.CommandContext(ctx, program, "convert", "-q", "-f", i.Format, "-O", format, a.paths.Image(i.Name), file).CombinedOutput()
	if line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n"); err != nil && line != "" {
		return errors.New(line)
	}
	return err
}

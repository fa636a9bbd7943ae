package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/hypervisor/access"
)

// screenshotOptions are the flags of vmctl screenshot.
type screenshotOptions struct {
	head  int
	force bool
}

func newScreenshotCommand(a *app) *cobra.Command {
	var opts screenshotOptions
	cmd := &cobra.Command{
		Use:   "screenshot NAME [FILE]",
		Short: "Take a picture of the display of a VM",
		Long: `Take a picture of the display of a VM, in PNG, into FILE, by default NAME.png; "-"
is stdout. A file that is there already is left alone.`,
		Example: `  vmctl screenshot web
  vmctl screenshot --head 1 web second.png
  vmctl screenshot web - | display`,
		GroupID: groupReach,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return oneName(cmd, args)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return a.completeName(cmd, args, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			file := args[0] + ".png"
			if len(args) == 2 {
				file = args[1]
			}
			return runScreenshot(cmd.Context(), a, opts, args[0], file)
		},
	}
	cmd.Flags().IntVar(&opts.head, "head", 0, "of this monitor; the first is 0")
	cmd.Flags().BoolVarP(&opts.force, "force", "f", false, "replace a file that is there")
	return cmd
}

func runScreenshot(ctx context.Context, a *app, opts screenshotOptions, name, file string) error {
	if err := checkName(name); err != nil {
		return err
	}
	toStdout := file == "-"
	switch {
	case toStdout && isTerminal(a.ui.out):
		return usageError{errors.New("want a file, or a pipe for stdout: a picture is no text")}
	case toStdout && a.ui.format == jsonFormat:
		return usageError{errors.New("want a file with -o json: stdout is for one of the two")}
	case !toStdout && !opts.force && access.IsThere(file):
		return withHint(&stateError{fmt.Errorf("screenshot of %s: %s is there already", name, file)}, "--force replaces it")
	}
	picture, err := a.screenshot(ctx, name, opts.head)
	if err != nil {
		return fmt.Errorf("screenshot of %s: %w", name, err)
	}
	var data bytes.Buffer
	if err := png.Encode(&data, picture); err != nil {
		return err
	}
	if toStdout {
		_, err := a.ui.out.Write(data.Bytes())
		return err
	}
	if err := writeNew(file, data.Bytes(), opts.force); err != nil {
		return fmt.Errorf("screenshot of %s: %w", name, err)
	}
	size := picture.Bounds().Size()
	if a.ui.format == jsonFormat {
		return a.ui.json(map[string]any{
			"name": name, "file": file, "head": opts.head, "width": size.X, "height": size.Y, "size_bytes": data.Len(),
		})
	}
	a.ui.printf("%s: written to %s (%dx%d)", name, file, size.X, size.Y)
	return nil
}

func (a *app) screenshot(ctx context.Context, name string, head int) (image.Image, error) {
	_, d, display, done, err := a.viewable(ctx, name)
	if err != nil {
		return nil, err
	}
	defer done()
	if head > 0 && d.Device == "qxl" {
		return nil, usageError{fmt.Errorf("--head: want 0, where qxl has all its monitors, got %d", head)}
	}
	if head < 0 || head >= d.Heads {
		return nil, usageError{fmt.Errorf("--head: want a monitor from 0 to %d, as display.heads has them, got %d", d.Heads-1, head)}
	}
	return display.Screenshot(ctx, head)
}

// writeNew writes a file of a person, whole or not at all, in place of one that
// is there only if told so.
func writeNew(file string, data []byte, replace bool) error {
	if s, err := os.Stat(file); err == nil && !s.Mode().IsRegular() {
		return &stateError{fmt.Errorf("want a file, %s is none", file)}
	}
	var out *os.File
	var err error
	if replace {
		out, err = os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	} else {
		out, err = os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	}
	if err != nil {
		return err
	}
	_, err = out.Write(data)
	if replace && err == nil {
		err = out.Chmod(0o644)
	}
	if err = errors.Join(err, out.Close()); err == nil && replace {
		err = os.Rename(out.Name(), file)
	}
	if err != nil {
		os.Remove(out.Name())
	}
	return err
}

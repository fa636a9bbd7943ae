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
is stdout. A file that is there already is left alone. With -H, the file is here.`,
		Example: `  vmctl screenshot web
  vmctl screenshot --head 1 web second.png
  vmctl screenshot web - | display`,
		GroupID:     groupReach,
		Annotations: map[string]string{runsHere: alwaysHere},
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
	data, err := a.picture(ctx, name, opts.head)
	if err != nil {
		return about("screenshot of "+name, err)
	}
	if toStdout {
		_, err := a.ui.out.Write(data)
		return err
	}
	if err := writeNew(file, data, opts.force); err != nil {
		return fmt.Errorf("screenshot of %s: %w", name, err)
	}
	size, err := png.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return err
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(map[string]any{
			"name": name, "file": file, "head": opts.head, "width": size.Width, "height": size.Height, "size_bytes": len(data),
		})
	}
	a.ui.printf("%s: written to %s (%dx%d)", name, file, size.Width, size.Height)
	return nil
}

// picture takes a picture of a display, here or on the other host, in PNG.
func (a *app) picture(ctx context.Context, name string, head int) ([]byte, error) {
	var data bytes.Buffer
	if a.host == "" {
		picture, err := a.screenshot(ctx, name, head)
		if err != nil {
			return nil, err
		}
		err = png.Encode(&data, picture)
		return data.Bytes(), err
	}
	f, err := newFar(a.host)
	if err != nil {
		return nil, err
	}
	line := append(a.userFlag(), "screenshot", fmt.Sprintf("--head=%d", head), "--", name, "-")
	if err := f.run(ctx, nil, &data, line); err != nil {
		return nil, err
	}
	if _, err := png.DecodeConfig(bytes.NewReader(data.Bytes())); err != nil {
		return nil, fmt.Errorf("want a picture from vmctl on %s, got %d bytes: %w", f.host, data.Len(), err)
	}
	return data.Bytes(), nil
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

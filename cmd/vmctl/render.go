package main

import (
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
)

func newRenderCommand(a *app) *cobra.Command {
	var command bool
	cmd := &cobra.Command{
		Use:   "render NAME|FILE",
		Short: "Show what systemd is told about a VM; writes nothing",
		Long: `Show what systemd is told about a VM: the text of its unit's drop-in, and the
links beside it. Nothing is written. A FILE (with a slash, or ending in .toml) is
rendered as a definition of its own.`,
		Example: `  vmctl render web
  vmctl render --command web`,
		GroupID:           groupDefine,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE:              func(_ *cobra.Command, args []string) error { return runRender(a, args[0], command) },
	}
	cmd.Flags().BoolVar(&command, "command", false, "show the hypervisor's command line alone, for a shell")
	return cmd
}

// rendered is vmctl render with -o json.
type rendered struct {
	Name     string         `json:"name"`
	Digest   string         `json:"digest"`
	Argv     []string       `json:"argv"`
	Files    []renderedFile `json:"files"`
	Warnings []string       `json:"warnings"`
}

// renderedFile is a file or a link that the generator writes.
type renderedFile struct {
	Path string `json:"path"`
	Text string `json:"text,omitempty"`
	Link string `json:"link,omitempty"`
}

func runRender(a *app, arg string, command bool) error {
	p, err := a.planArgument(arg)
	if err != nil {
		return err
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(newRendered(a, p))
	}
	if command {
		words := make([]string, len(p.Plan.Argv))
		for i, arg := range p.Plan.Argv {
			words[i] = shellQuote(arg)
		}
		a.ui.printf("%s", strings.Join(words, " "))
		return nil
	}
	for i, f := range newRendered(a, p).Files {
		if i > 0 {
			a.ui.printf("")
		}
		if f.Link != "" {
			a.ui.printf("# %s -> %s", f.Path, f.Link)
			continue
		}
		// As systemctl cat has it.
		a.ui.printf("# %s", f.Path)
		a.ui.printf("%s", strings.TrimSuffix(f.Text, "\n"))
	}
	return nil
}

// planArgument plans the definition that a name or a file is.
func (a *app) planArgument(arg string) (planned, error) {
	if !a.isFile(arg) {
		return a.planName(arg)
	}
	if err := isGiven(arg); err != nil {
		return planned{}, err
	}
	vm := config.LoadFile(a.paths, arg)
	p := a.plan(vm, a.probe())
	if len(p.Problems) > 0 {
		return p, invalid(vm, p.Problems)
	}
	return p, nil
}

func newRendered(a *app, p planned) rendered {
	r := rendered{Name: p.VM.Name, Digest: p.Digest, Argv: p.Plan.Argv, Warnings: append([]string{}, p.Plan.Warnings...)}
	for _, f := range p.Files {
		r.Files = append(r.Files, renderedFile{filepath.Join(a.paths.GeneratorDir, f.Name), f.Text, f.Link})
	}
	return r
}

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/units/bus"
)

// opCreate is for messages: no state refuses it.
const opCreate transition = "create"

// defineOptions are the flags of vmctl create.
type defineOptions struct {
	draftOptions
	print bool
	start bool
}

func newCreateCommand(a *app) *cobra.Command {
	var opts defineOptions
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Write the definition of a VM",
		Long: `Write the definition of a VM to /etc/vmctl/vms/NAME.toml, with what was asked for
and nothing else; it is a file like any other from then on. It is checked before,
as vmctl check does. A name that something has is refused.`,
		Example: `  vmctl create web --image debian-13 --disk 20G --memory 2G --nic user --ssh-key ~/.ssh/id_ed25519.pub
  vmctl create shop --template web --param size=20G --param cpus=4
  vmctl create db --template base --path /dev/vg/db --nic bridge=br0 --set lifecycle.restart=always --start
  vmctl create --print web --image debian-13 > web.toml`,
		GroupID:           groupDefine,
		Args:              oneName,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, args []string) error { return runCreate(cmd.Context(), a, opts, args[0]) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&opts.print, "print", false, "print the definition, and write nothing")
	flags.BoolVar(&opts.start, "start", false, "start it then")
	opts.key(flags, "image", "NAME", "disk.root.image", "the disk root begins with this stored image, or one that can be pulled")
	opts.file(flags, "path", "disk.root.path", "the disk root is this image file or block device")
	opts.addFlags(cmd, a.settledPaths)
	autostart := func(text string) error { return opts.get().Set("autostart", text) }
	flags.Var(settingFlag{"bool", autostart}, "autostart", "start it with the host")
	flags.Lookup("autostart").NoOptDefVal = "true"
	_ = cmd.RegisterFlagCompletionFunc("image", func(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		images, _ := a.completeRun(cmd, nil, prefix)
		return images, cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

// created is vmctl create -o json.
type created struct {
	Name     string    `json:"name"`
	File     string    `json:"file"`
	Text     string    `json:"text"`
	Warnings []finding `json:"warnings"`
	State    state     `json:"state"`
}

func runCreate(ctx context.Context, a *app, opts defineOptions, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	draft, err := opts.finish(a.paths, false)
	if err != nil {
		return err
	}
	file := config.Definition(a.etcDir(), name)
	text := definitionText("vmctl create", draft)
	if !opts.print {
		if err := a.definitionFree(name); err != nil {
			return inName(string(opCreate), name, err)
		}
	}
	vm := config.Try(a.paths, file, text)
	findings := a.check(vm, a.lookups())
	if slices.ContainsFunc(findings, finding.isError) {
		var problems []config.Problem
		for _, f := range findings {
			problems = append(problems, f.Problem)
		}
		return draftError(file, problems)
	}
	c := created{Name: name, File: file, Text: text, Warnings: append([]finding{}, findings...), State: stopped}
	if opts.print {
		if a.ui.format == jsonFormat {
			return a.ui.json(c)
		}
		fmt.Fprint(a.ui.out, text)
		return nil
	}
	begun := time.Now()
	err = a.writeNew(file, text, vm.Machine, true)
	a.note(string(opCreate), "", name, begun, err)
	if err != nil {
		return inName(string(opCreate), name, err)
	}
	for _, w := range findings {
		a.ui.warnf("%v", w.Problem)
	}
	if left, err := filepath.Glob(a.paths.StateDir(name) + "/disk-*"); err == nil && len(left) > 0 {
		a.ui.warnf("%s: takes over what is left of an earlier VM: %s", name, strings.Join(left, ", "))
	}
	a.ui.printf("%s: created %s", name, file)
	if opts.start {
		if err := a.startCreated(ctx, name); err != nil {
			return inName(string(opStart), name, err)
		}
		c.State = running
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(c)
	}
	return nil
}

// startCreated starts a machine that was just defined.
func (a *app) startCreated(ctx context.Context, name string) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	f := &freshener{app: a, conn: conn, host: a.probe()}
	f.freshen(ctx, []string{name})
	text, err := a.noted(opStart, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		return a.start(ctx, conn, f, waitOptions{}, name)
	})(ctx, conn, name)
	if err != nil {
		return err
	}
	a.ui.printf("%s: %s", name, text)
	return nil
}

// etcDir is where administrators' definitions lie.
func (a *app) etcDir() string { return a.paths.VMDirs[1] }

// definitionFree says whether a name has no definition yet, masked or not.
func (a *app) definitionFree(name string) error {
	for _, dir := range a.paths.VMDirs {
		if file := config.Definition(dir, name); access.IsThere(file) {
			return withHint(a.taken(name, file), "vmctl edit "+name+" changes it")
		}
	}
	return nil
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/units/bus"
)

// opApply is for messages: no state refuses it.
const opApply transition = "apply"

// applyOptions are the flags of vmctl apply.
type applyOptions struct {
	check    bool
	yes      bool
	prune    bool
	force    bool
	start    bool
	noStart  bool
	restart  bool
	noPull   bool
	noReload bool
	progress bool
	name     string
}

func newApplyCommand(a *app) *cobra.Command {
	var opts applyOptions
	cmd := &cobra.Command{
		Use:   "apply FILE|DIRECTORY|-",
		Short: "Bring a whole environment about: networks, images, templates, VMs",
		Long: `Bring about what a file or a directory declares: networks, images, security groups,
templates and VMs. A file has a table for each, such as [vm.web], [network.lan] or
[image.debian-13]; a directory is laid out as /etc/vmctl is. What there is to be
done is shown first. Files are written to /etc/vmctl, with a line that says from
what; a file that somebody else has written, or changed since, is refused, and
nothing is done. Images that are not stored are pulled, networks brought up, and
VMs started that have autostart. To those that run, what can be is applied as they
run; the rest waits for a restart.

The exit status is 0 where nothing was to be done, 10 where something was. Once
something has been done, another tells that not all could be, and what is left:
the same command goes on from there. With -H the file is one of that host; - is
stdin here.`,
		Example: `  vmctl apply ./shop.toml
  vmctl apply --check ./shop/; [ $? = 10 ] && echo would change
  generate | vmctl apply --yes --prune --name shop -`,
		GroupID: groupDefine,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("want one file or directory (- is stdin), got %d arguments", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runApply(cmd.Context(), a, opts, args[0]) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&opts.check, "check", false, "show what there is to be done, and do nothing")
	flags.BoolVarP(&opts.yes, "yes", "y", false, "do not ask")
	flags.BoolVar(&opts.prune, "prune", false, "remove what was applied from the same source before, and is not in it any more; disks stay")
	flags.BoolVarP(&opts.force, "force", "f", false, "with --prune: shut down first what runs")
	flags.BoolVar(&opts.start, "start", false, "start all VMs, not only those that have autostart")
	flags.BoolVar(&opts.noStart, "no-start", false, "start no VM, and no network")
	flags.BoolVar(&opts.restart, "restart", false, "restart VMs that run with an older definition")
	flags.BoolVar(&opts.noPull, "no-pull", false, "leave images to the first start of who needs them")
	flags.BoolVar(&opts.noReload, "no-reload", false, "write files and do nothing else: for a host that does not run yet")
	flags.BoolVar(&opts.progress, "progress", false, progressUsage)
	flags.StringVar(&opts.name, "name", "", "name of the environment, by which it is known again; default: the path")
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions)
	cmd.MarkFlagsMutuallyExclusive("start", "no-start", "no-reload")
	cmd.MarkFlagsMutuallyExclusive("restart", "no-reload")
	cmd.MarkFlagsMutuallyExclusive("force", "no-reload")
	return cmd
}

// applied is vmctl apply -o json.
type applied struct {
	Source         string       `json:"source"`
	Check          bool         `json:"check"`
	Changed        bool         `json:"changed"` // or would be
	Steps          []*applyStep `json:"steps"`
	PendingRestart []string     `json:"pending_restart"` // VMs that run with an older definition
	Warnings       []finding    `json:"warnings"`
}

func runApply(ctx context.Context, a *app, opts applyOptions, path string) error {
	env, source, err := a.readEnvironment(opts, path)
	if err != nil {
		return err
	}
	var conn *bus.Conn
	if !opts.noReload {
		if conn, err = a.dial(ctx); err != nil {
			return err
		}
		defer conn.Close()
	}
	if !opts.check {
		unlock, err := a.lockApply()
		if err != nil {
			return err
		}
		defer unlock()
	}
	p := &applyPlan{app: a, conn: conn, opts: opts, env: env, source: source, host: a.probe()}
	if err := p.make(ctx); err != nil {
		return err
	}
	if !opts.check && len(p.steps) > 0 {
		p.print()
		if !opts.yes {
			if err := a.ui.confirm(fmt.Sprintf("do this (%s)", count(len(p.steps), "step")), "--yes"); err != nil {
				return err
			}
		}
		err = p.run(ctx)
	} else if opts.check {
		p.print()
	}
	return p.end(err)
}

// readEnvironment reads what is to be applied, and decides by what name it is known
// again.
func (a *app) readEnvironment(opts applyOptions, path string) (*config.Environment, string, error) {
	var env *config.Environment
	var problems []config.Problem
	source := opts.name
	if path == "-" {
		if opts.prune && source == "" {
			return nil, "", usageError{errors.New("--prune: want --name for what comes from stdin, by which it is known again")}
		}
		text, err := io.ReadAll(io.LimitReader(a.ui.in, maxEnvironment+1))
		if err != nil {
			return nil, "", err
		}
		if len(text) > maxEnvironment {
			return nil, "", fmt.Errorf("stdin has more than %d bytes", maxEnvironment)
		}
		env, problems = config.ParseEnvironment(a.paths, "stdin", string(text), 0o644)
		source = cmp.Or(source, "stdin")
	} else {
		if err := isGiven(path); err != nil {
			return nil, "", err
		}
		env, problems = config.ReadEnvironment(a.paths, path)
		if source == "" {
			var err error
			if source, err = filepath.Abs(path); err != nil {
				return nil, "", err
			}
		}
	}
	if len(problems) > 0 {
		return nil, "", &invalidError{problems}
	}
	return env, source, nil
}

// maxEnvironment is how much is read from stdin, in bytes.
const maxEnvironment = 1 << 20

// lockApply has one apply at a time: each decides by what it finds.
func (a *app) lockApply() (unlock func(), err error) {
	_, unlock, err = operation.Lock(a.paths, ".apply", "vmctl apply")
	if e, busy := errors.AsType[*operation.Error](err); busy {
		who, _, _ := strings.Cut(e.Text, " is under way")
		return nil, withHint(&stateError{fmt.Errorf("another apply is under way: %s", who)}, "wait for its end")
	}
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	return unlock, nil
}

// print shows the plan to people.
func (p *applyPlan) print() {
	if p.ui.format == jsonFormat || len(p.steps) == 0 {
		return
	}
	table := [][]string{{"TO DO", "WHAT", "NAME", "DETAILS"}}
	for _, s := range p.steps {
		var lines []string
		if s.detail != "" {
			lines = append(lines, s.detail)
		}
		for _, d := range s.Differences {
			lines = append(lines, fmt.Sprintf("%s: %s → %s", d.Key, cmp.Or(d.From, "-"), cmp.Or(d.To, "-")))
		}
		row := []string{s.Action, s.what(), cmp.Or(s.Name, "-")}
		for _, line := range append(lines, "")[:max(1, len(lines))] {
			table = append(table, append(row, printable(line)))
			row = []string{"", "", ""}
		}
	}
	// stdout has what was asked for; where that cannot be written, the rest fails too.
	_ = writeTable(p.ui.out, table)
}

// end prints what has come of it all.
func (p *applyPlan) end(err error) error {
	changed := len(p.steps) > 0
	if !p.opts.check {
		changed = slices.ContainsFunc(p.steps, func(s *applyStep) bool { return s.Result == stepDone })
	}
	for _, w := range p.warnings {
		p.ui.warnf("%v", w.Problem)
	}
	if p.ui.format == jsonFormat {
		for _, s := range p.steps {
			s.Result = cmp.Or(s.Result, stepPlanned)
		}
		out := applied{p.source, p.opts.check, changed, p.steps, p.pending, p.warnings}
		if jsonErr := p.ui.json(out); jsonErr != nil {
			return jsonErr
		}
	}
	for _, name := range p.pending {
		p.ui.printf("%s: runs with an older definition; vmctl restart %s applies the new one, and so does --restart", name, name)
	}
	if err != nil {
		return err
	}
	if !changed {
		p.ui.printf("nothing is to be done")
		return nil
	}
	return &statusError{errors.New("there are changes"), exitChanged}
}

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
)

func newTemplateCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "template",
		Aliases: []string{"templates"},
		Short:   "Show templates: what definitions can begin with",
		Long: `Show templates: the files /etc/vmctl/templates/NAME.toml, over which definitions
are merged that say template = "NAME". What a template leaves open are its
parameters; see vmctl.toml(5).`,
		Example: `  vmctl template list
  vmctl template show web`,
		GroupID: groupParts,
		Args:    noCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:               "list",
			Aliases:           []string{"ls"},
			Short:             "List templates, their parameters, and the VMs that are made of them",
			Example:           "  vmctl template list\n  vmctl template list -o json | jq -r '.[].parameters[].name'",
			Args:              noArguments,
			ValidArgsFunction: cobra.NoFileCompletions,
			RunE:              func(*cobra.Command, []string) error { return runTemplateList(a) },
		},
		&cobra.Command{
			Use:   "show NAME...",
			Short: "Show parameters, machines and problems of templates",
			Example: `  vmctl template show web
  vmctl create shop --template web --param size=20G`,
			Args: func(_ *cobra.Command, args []string) error {
				if len(args) == 0 {
					return usageError{errors.New("want the name of a template")}
				}
				return nil
			},
			ValidArgsFunction: a.completeTemplates,
			RunE:              func(_ *cobra.Command, args []string) error { return runTemplateShow(a, args) },
		},
	)
	return cmd
}

// templateJSON is a template in vmctl template list -o json.
type templateJSON struct {
	Name        string             `json:"name"`
	File        string             `json:"file"`
	Description string             `json:"description"`
	Parameters  []config.Parameter `json:"parameters"`
	Machines    []string           `json:"machines"` // whose definitions name it
	Problems    []config.Problem   `json:"problems"`
}

// templates are those that there are, with the machines of each.
func (a *app) templates() ([]templateJSON, error) {
	all, problems := config.LoadTemplates(a.paths)
	for _, p := range problems {
		a.ui.warnf("%v", p)
	}
	set, err := config.Load(a.paths)
	if err != nil {
		return nil, err
	}
	machines := map[string][]string{}
	for _, vm := range set.VMs {
		if vm.Machine != nil && vm.Machine.Template != "" {
			machines[vm.Machine.Template] = append(machines[vm.Machine.Template], vm.Name)
		}
	}
	rows := []templateJSON{}
	for _, t := range all {
		rows = append(rows, templateJSON{
			Name: t.Name, File: t.File, Description: t.Description,
			Parameters: append([]config.Parameter{}, t.Parameters...),
			Machines:   append([]string{}, machines[t.Name]...),
			Problems:   append([]config.Problem{}, t.Problems...),
		})
	}
	return rows, nil
}

// trouble is what is wrong with it, in one line, "" for nothing.
func (t templateJSON) trouble() string {
	if len(t.Problems) == 0 {
		return ""
	}
	return t.Problems[0].Error()
}

func runTemplateList(a *app) error {
	rows, err := a.templates()
	if err != nil {
		return err
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(rows)
	}
	table := [][]string{{"NAME", "PARAMETERS", "MACHINES", "DESCRIPTION"}}
	for _, t := range rows {
		var names []string
		for _, p := range t.Parameters {
			names = append(names, p.Name)
		}
		table = append(table, []string{t.Name, listOrDash(names), listOrDash(t.Machines), listText(t.Description, t.trouble())})
	}
	return writeTable(a.ui.out, table)
}

func runTemplateShow(a *app, names []string) error {
	all, err := a.templates()
	if err != nil {
		return err
	}
	rows := []templateJSON{}
	for _, name := range names {
		i := slices.IndexFunc(all, func(t templateJSON) bool { return t.Name == name })
		if i < 0 {
			return templateNotFound(a.paths, name)
		}
		rows = append(rows, all[i])
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(rows)
	}
	for i, t := range rows {
		if i > 0 {
			a.ui.printf("")
		}
		if err := printTemplate(a.ui, t); err != nil {
			return err
		}
	}
	return nil
}

func printTemplate(u *ui, t templateJSON) error {
	lines := [][]string{{"Name:", t.Name}, {"File:", t.File}}
	if t.Description != "" {
		lines = append(lines, []string{"Description:", printable(t.Description)})
	}
	lines = append(lines, []string{"Machines:", listOrDash(t.Machines)})
	for _, p := range t.Problems {
		lines = append(lines, []string{"Problem:", p.Error()})
	}
	if err := writeTable(u.out, lines); err != nil || len(t.Parameters) == 0 {
		return err
	}
	table := [][]string{{"PARAMETER", "TYPE", "DEFAULT", "DESCRIPTION"}}
	for _, p := range t.Parameters {
		value := "(required)"
		if !p.Default.IsZero() {
			value = printable(p.Default.String())
		}
		table = append(table, []string{p.Name, p.Type, value, listText(p.Description, "")})
	}
	fmt.Fprintln(u.out)
	return writeTable(u.out, table)
}

// templateNotFound is the error for a name that no template has.
func templateNotFound(paths config.Paths, name string) error {
	e := &notFoundError{Kind: "template", Name: name, Hint: "vmctl template list shows those that there are"}
	if near := nearest(name, namesIn(paths.TemplateDirs)); near != "" {
		e.Hint = didYouMean(near)
	}
	return e
}

// completeTemplates completes the names of templates, each once.
func (a *app) completeTemplates(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	a.settle()
	var out []cobra.Completion
	for _, name := range namesIn(a.paths.TemplateDirs) {
		if strings.HasPrefix(name, prefix) && !slices.Contains(args, name) {
			out = append(out, name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

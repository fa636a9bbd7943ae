package main

import (
	"context"
	"encoding/json"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/bus"
)

// filtersPending says whether the cards or the console of a machine that runs are held
// to other rules than those of its definition, as far as those are sound.
func (a *app) filtersPending(l look) bool {
	if !l.active() || l.record == nil || l.vm.Machine == nil || a.user {
		return false
	}
	if a.consolePending(l) {
		return true
	}
	wanted := map[string]config.Filter{}
	for _, nic := range l.machine().WithReloadedOf(l.vm.Machine).NICs {
		if nic.Network == "" && nic.Bridge == "" {
			continue
		}
		groups, err := config.SecurityGroupsOf(a.paths, l.vm.Machine, nic)
		if err != nil {
			return false // told as a problem of the definition
		}
		wanted[nic.Name] = nic.InGroups(groups).Filter()
	}
	if len(wanted) == 0 {
		return false
	}
	is := readJSON[map[string]config.Filter](a.paths.Filters(l.vm.Name))
	one, err1 := json.Marshal(wanted)
	other, err2 := json.Marshal(is)
	return err1 != nil || err2 != nil || string(one) != string(other)
}

// consolePending says whether another group sits down at the console of a machine than
// its definition says. Who may not look there is told that none does.
func (a *app) consolePending(l look) bool {
	var is unix.Stat_t
	if err := unix.Lstat(a.paths.ConsoleSocket(l.vm.Name), &is); err != nil {
		return false
	}
	admits := is.Mode&0o060 != 0
	name := l.vm.Machine.Console.Group
	if name == "" {
		return admits
	}
	g, err := user.LookupGroup(name)
	return err == nil && !(admits && g.Gid == strconv.FormatUint(uint64(is.Gid), 10))
}

// reloadFilters has the cards of machines that run held to the rules of their
// definitions: of those named, else of all whose rules have changed.
func (a *app) reloadFilters(ctx context.Context, conn *bus.Conn, looks []look, names []string) (done []string, err error) {
	done = []string{}
	var errs []error
	for _, l := range looks {
		name := l.vm.Name
		if !slices.Contains(names, name) && !(len(names) == 0 && a.filtersPending(l)) {
			continue
		}
		pending := a.filtersPending(l)
		if !l.active() || l.vm.Machine == nil || !(pending || a.isFiltered(l)) {
			continue
		}
		if err := conn.ReloadUnit(ctx, config.Unit(name)); err != nil {
			err = withHint(inName(string(opReload), name, err), "journalctl -u "+strings.TrimSuffix(config.Unit(name), ".service")+" has more; its cards and its console are held to the rules that they had")
			a.ui.errorf(err)
			errs = append(errs, err)
		} else if pending {
			done = append(done, name)
		}
	}
	return done, worst(errs)
}

// isFiltered says whether a machine has a card that rules can be for.
func (a *app) isFiltered(l look) bool {
	m := l.machine()
	return m != nil && slices.ContainsFunc(m.NICs, func(n config.NIC) bool { return n.Network != "" || n.Bridge != "" })
}

// groupJSON is one security group in vmctl network groups -o json.
type groupJSON struct {
	Name        string           `json:"name"`
	Description string           `json:"description"`
	AllowIn     []string         `json:"allow_in"`
	AllowOut    []string         `json:"allow_out"`
	DenyIn      []string         `json:"deny_in"`
	DenyOut     []string         `json:"deny_out"`
	Cards       []string         `json:"cards"` // MACHINE/NIC that are in it, by their definitions
	File        string           `json:"file"`
	Problems    []config.Problem `json:"problems"`
}

func newNetworkGroupsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "groups [NAME...]",
		Short: "List security groups, what they let through and drop, and the cards in them",
		Long: `List security groups: the files /etc/vmctl/security-groups/NAME.toml, which cards
name by security_groups. vmctl check checks them, vmctl reload applies changes to
machines that run.`,
		Example:           "  vmctl network groups\n  vmctl network groups -o json web | jq -r '.[].cards[]'",
		ValidArgsFunction: a.completeGroups,
		RunE:              func(_ *cobra.Command, args []string) error { return runNetworkGroups(a, args) },
	}
}

func runNetworkGroups(a *app, names []string) error {
	if err := a.systemOnly(); err != nil {
		return err
	}
	set, err := config.Load(a.paths)
	if err != nil {
		return err
	}
	cards := map[string][]string{}
	for _, vm := range set.VMs {
		if vm.Machine == nil {
			continue
		}
		for _, n := range vm.Machine.NICs {
			for _, g := range n.SecurityGroups {
				cards[g] = append(cards[g], vm.Name+"/"+n.Name)
			}
		}
	}
	for _, name := range names {
		if !slices.ContainsFunc(set.Groups, func(g config.SecurityGroupFile) bool { return g.Name == name }) {
			return &notFoundError{Kind: "security group", Name: name, Hint: "vmctl network groups lists those that there are"}
		}
	}
	rows := []groupJSON{}
	table := [][]string{{"NAME", "ALLOW IN", "ALLOW OUT", "DENY IN", "DENY OUT", "CARDS", "DESCRIPTION"}}
	for _, g := range set.Groups {
		if len(names) > 0 && !slices.Contains(names, g.Name) {
			continue
		}
		r := newGroupJSON(g, cards[g.Name])
		rows = append(rows, r)
		row := []string{r.Name}
		for _, list := range [][]string{r.AllowIn, r.AllowOut, r.DenyIn, r.DenyOut, r.Cards} {
			row = append(row, listOrDash(list))
		}
		trouble := ""
		if len(r.Problems) > 0 {
			trouble = r.Problems[0].Error()
		}
		table = append(table, append(row, listText(r.Description, trouble)))
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(rows)
	}
	return writeTable(a.ui.out, table)
}

func listOrDash(list []string) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ", ")
}

func newGroupJSON(g config.SecurityGroupFile, cards []string) groupJSON {
	r := groupJSON{Name: g.Name, File: g.File, Cards: append([]string{}, cards...), Problems: append([]config.Problem{}, g.Problems...)}
	group := g.Group
	if group == nil {
		group = new(config.SecurityGroup)
	}
	r.Description = group.Description
	r.AllowIn, r.AllowOut = ruleTexts(group.AllowIn, true), ruleTexts(group.AllowOut, false)
	r.DenyIn, r.DenyOut = ruleTexts(group.DenyIn, true), ruleTexts(group.DenyOut, false)
	return r
}

// completeGroups completes the names of security groups, each once.
func (a *app) completeGroups(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	a.settle()
	var out []cobra.Completion
	for _, name := range namesIn(a.paths.SecurityGroupDirs) {
		if strings.HasPrefix(name, prefix) && !slices.Contains(args, name) {
			out = append(out, name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

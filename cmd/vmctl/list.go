package main

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/guestagent"
	"github.com/vmctl/vmctl/units/bus"
)

// listOptions are the flags of vmctl list.
type listOptions struct {
	states []string
	names  bool
}

func newListCommand(a *app) *cobra.Command {
	var opts listOptions
	cmd := &cobra.Command{
		Use:     "list [NAME...]",
		Aliases: []string{"ls"},
		Short:   "List VMs: those that are defined, and what is there of others",
		Long: `List VMs: those that are defined, and what is there of others. A state with a star
(running*) is that of a VM whose definition has changed since it was started: vmctl
diff tells in what, and the next start takes it. Addresses are those that a network's
DHCP service lent or that the host has met; where there are none, those that the guest
agent says at once. With -o json, address_sources says which: lease, neighbour, agent.`,
		Example: `  vmctl list
  vmctl list --state running,paused
  vmctl list -o json | jq -r '.[] | select(.pending_changes) | .name'`,
		GroupID:           groupLook,
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runList(cmd.Context(), a, opts, args) },
	}
	cmd.Flags().StringSliceVar(&opts.states, "state", nil, "only those in one of these `STATES`")
	cmd.Flags().BoolVarP(&opts.names, "quiet", "q", false, "print names only")
	_ = cmd.RegisterFlagCompletionFunc("state", completeStateList)
	return cmd
}

// row is one machine in vmctl list -o json. The names of its fields stay.
type row struct {
	Name           string            `json:"name"`
	State          state             `json:"state"`
	Ready          bool              `json:"ready"`     // it runs, and its guest is as lifecycle.ready asks
	NotReady       string            `json:"not_ready"` // why the guest of one that runs is not
	Hypervisor     string            `json:"hypervisor"`
	CPUs           int               `json:"cpus"`
	MemoryBytes    int64             `json:"memory_bytes"`
	Unit           string            `json:"unit"`
	PID            int               `json:"pid"`             // of the hypervisor; 0 where none runs
	Addresses      []string          `json:"addresses"`       // of the guest, as far as they are known while it runs
	AddressSources map[string]string `json:"address_sources"` // who knows each of them, in the words of foundAddress
	Autostart      bool              `json:"autostart"`
	Masked         bool              `json:"masked"` // the unit is, so that nothing starts it
	Description    string            `json:"description"`
	StartedAt      *time.Time        `json:"started_at"`
	PendingChanges bool              `json:"pending_changes"` // a restart would change what it runs with
	Error          string            `json:"error"`           // what is wrong with the definition, or why it failed
}

func runList(ctx context.Context, a *app, opts listOptions, names []string) error {
	wanted, err := parseStates(opts.states)
	if err != nil {
		return err
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	looks, err := a.lookFor(ctx, conn, names)
	if err != nil {
		return err
	}
	looks = slices.DeleteFunc(looks, func(l look) bool { return len(wanted) > 0 && !slices.Contains(wanted, l.state) })
	seen := a.see(looks)
	rows := a.rows(ctx, conn, seen, looks)
	if !opts.names || a.ui.format == jsonFormat {
		askAgents(ctx, seen, looks, rows, func(ctx context.Context, l look) []guestagent.Interface {
			return a.askAgent(ctx, l, false).interfaces
		})
	}
	return printList(a, opts, rows)
}

// lookFor finds out about the machines named, or about all.
func (a *app) lookFor(ctx context.Context, conn *bus.Conn, names []string) ([]look, error) {
	if len(names) == 0 {
		looks, set, err := a.lookAll(ctx, conn)
		if err != nil {
			return nil, err
		}
		for _, p := range set.Problems {
			a.ui.warnf("%v", p)
		}
		return looks, nil
	}
	var looks []look
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		l, err := a.lookAt(ctx, conn, name)
		if err != nil {
			return nil, err
		}
		looks = append(looks, l)
	}
	return looks, nil
}

// agentsTime is how long the guest agents of all machines in a list may take.
const agentsTime = 500 * time.Millisecond

// askAgents completes the rows of machines of which the host itself knows no
// address, by what their guest agents say. These are asked all at once, so that
// those that hang cost agentsTime together.
func askAgents(ctx context.Context, seen seen, looks []look, rows []row, ask func(context.Context, look) []guestagent.Interface) {
	ctx, cancel := context.WithTimeout(ctx, agentsTime)
	defer cancel()
	var wg sync.WaitGroup
	for i, l := range looks {
		// A hypervisor that has just not answered does not say whether an agent listens.
		m := l.machine()
		if l.state != running || l.status == "" || m == nil || !m.GuestAgent.Enabled || len(m.NICs) == 0 || len(rows[i].Addresses) > 0 {
			continue
		}
		wg.Go(func() { rows[i].setAddresses(seen.nics(l, ask(ctx, l))) })
	}
	wg.Wait()
}

// rows makes a row of each machine.
func (a *app) rows(ctx context.Context, conn *bus.Conn, seen seen, looks []look) []row {
	enabled := a.enabled()
	var host hypervisor.Host
	if slices.ContainsFunc(looks, look.active) {
		host = a.probe()
	}
	type pair struct {
		look look
		row  row
	}
	pairs := make([]pair, len(looks))
	for i, l := range looks {
		pairs[i].look = l
	}
	inParallel(pairs, func(p *pair) {
		p.row = newRow(p.look, enabled[p.look.vm.Name])
		if p.look.active() {
			p.row.PendingChanges = a.pending(p.look, host)
			p.row.PID, p.row.StartedAt = process(ctx, conn, p.look.unit.Name)
			p.row.setAddresses(seen.nics(p.look, nil))
		}
	})
	rows := make([]row, len(pairs))
	for i, p := range pairs {
		rows[i] = p.row
	}
	return rows
}

// newRow is what is known of a machine without asking further.
func newRow(l look, enabled bool) row {
	r := row{
		Name:      l.vm.Name,
		State:     l.state,
		Ready:     l.state == running && l.unready == "",
		Unit:      config.Unit(l.vm.Name),
		Autostart: enabled,
		Masked:    l.masked,
		Error:     errorText(l),
	}
	r.setAddresses(nil)
	if m := l.vm.Machine; m != nil {
		r.Autostart = r.Autostart || m.Autostart
	}
	if l.state == running {
		r.NotReady = l.unready
	}
	m := l.machine()
	if m == nil {
		return r
	}
	r.Hypervisor, r.CPUs, r.MemoryBytes, r.Description = m.Hypervisor, m.CPUs, int64(m.Memory), m.Description
	return r
}

// setAddresses has a row tell the addresses of all of a machine's cards. One that
// two have is told to be known by the first's source.
func (r *row) setAddresses(nics []shownNIC) {
	r.Addresses, r.AddressSources = []string{}, map[string]string{}
	for _, n := range nics {
		for _, f := range n.Addresses {
			r.Addresses = append(r.Addresses, f.Address)
			if r.AddressSources[f.Address] == "" {
				r.AddressSources[f.Address] = f.Source
			}
		}
	}
}

// errorText is what is wrong with a machine, in one line, "" for nothing.
func errorText(l look) string {
	switch {
	case l.isLeftover():
		return "no definition"
	case l.vm.File == "":
		return "definition is gone"
	case len(l.vm.Problems) > 0:
		text := l.vm.Problems[0].Error()
		if more := len(l.vm.Problems) - 1; more > 0 {
			text += " (and " + strconv.Itoa(more) + " more)"
		}
		return text
	case l.masked:
		return "its unit is masked"
	case l.status == hypervisor.StatusPanicked:
		return string(hypervisor.GuestPanic)
	case l.waiting() && l.exit != nil:
		return "to be started again after " + exitText(l.exit)
	case l.state == failed && l.exit != nil:
		return exitText(l.exit)
	}
	return ""
}

// exitText is why a machine ended, in one line.
func exitText(e *hypervisor.Exit) string {
	if e.Detail == "" {
		return string(e.Reason)
	}
	return string(e.Reason) + ": " + e.Detail
}

// process is a unit's main process and when it was started.
func process(ctx context.Context, conn *bus.Conn, unit string) (int, *time.Time) {
	// What has just ended has neither.
	p, err := conn.Properties(ctx, unit)
	if err != nil || p.MainPID == 0 {
		return 0, nil
	}
	return p.MainPID, &p.ActiveEnterTimestamp
}

func printList(a *app, opts listOptions, rows []row) error {
	if a.ui.format == jsonFormat {
		return a.ui.json(rows)
	}
	if opts.names {
		for _, r := range rows {
			a.ui.printf("%s", r.Name)
		}
		return nil
	}
	table := [][]string{{"NAME", "STATE", "CPUS", "MEMORY", "AUTOSTART", "ADDRESS", "DESCRIPTION"}}
	for _, r := range rows {
		table = append(table, listCells(r))
	}
	return writeTable(a.ui.out, table)
}

// listCells are the cells of one row.
func listCells(r row) []string {
	cpus, memory := "-", "-"
	if r.CPUs > 0 {
		cpus, memory = strconv.Itoa(r.CPUs), sizeText(r.MemoryBytes)
	}
	text := listText(r.Description, r.Error)
	if r.NotReady != "" && r.Error == "" {
		text = "not ready: " + r.NotReady
	}
	return []string{r.Name, listState(r.State, r.PendingChanges), cpus, memory, yesNo(r.Autostart), addressCell(r.Addresses), text}
}

// addressCell is the first of several addresses, and how many more there are.
func addressCell(all []string) string {
	switch len(all) {
	case 0:
		return "-"
	case 1:
		return all[0]
	}
	return all[0] + " +" + strconv.Itoa(len(all)-1)
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/netsetup"
)

func newNICCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "nic",
		Short: "Network cards of machines: list, attach, detach, up, down, set",
		Long: `Network cards of machines, which come and go while these run, too. What is changed
lasts until the machine stops; with --persist it is written to its definition, as a
drop-in. Of a machine that does not run, only --persist makes sense.`,
		Example: `  vmctl nic list
  vmctl nic attach web backend --network lan
  vmctl nic set web backend --rate-out 10M --persist`,
		GroupID: groupParts,
		Args:    noCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newNICAttachCommand(a),
		newNICDetachCommand(a),
		newNICLinkCommand(a, "up", "Plug a card's cable in"),
		newNICLinkCommand(a, "down", "Unplug a card's cable: its guest sees no carrier, and no packet passes"),
		newNICListCommand(a),
		newNICSetCommand(a),
	)
	return cmd
}

// vmAndNIC accepts the name of a machine and of one of its cards.
func vmAndNIC(_ *cobra.Command, args []string) error {
	if len(args) != 2 {
		return usageError{fmt.Errorf("want VM NIC, got %d arguments", len(args))}
	}
	if err := checkName(args[0]); err != nil {
		return err
	}
	if err := config.CheckName(args[1]); err != nil {
		return usageError{fmt.Errorf("name of a card: %w", err)}
	}
	return nil
}

// nicNames are the names of a machine's cards.
func nicNames(m *config.Machine) (names []string) {
	for _, n := range m.NICs {
		names = append(names, n.Name)
	}
	return names
}

// completeInterfaces completes interfaces of the host.
func (a *app) completeInterfaces(_ *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	entries, _ := os.ReadDir(a.root + "/sys/class/net")
	var out []cobra.Completion
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && !strings.HasPrefix(e.Name(), netsetup.TapPrefix) {
			out = append(out, e.Name())
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func newNICListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list [VM...]",
		Aliases: []string{"ls"},
		Short:   "List the cards of machines",
		Long: `List the cards of all machines, or of those named: of one that runs those that it
has now, of others those that definitions have. Addresses are in vmctl show.`,
		Example:           "  vmctl nic list\n  vmctl nic list -o json | jq -r '.[] | select(.link == \"down\") | .vm'",
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runNICList(cmd.Context(), a, args) },
	}
}

// nicRow is one card in vmctl nic list -o json. The names of its fields stay.
type nicRow struct {
	VM        string `json:"vm"`
	NIC       string `json:"nic"`
	Running   bool   `json:"running"` // the machine runs, and has the card
	Plug      string `json:"plug"`    // as in vmctl show
	Model     string `json:"model"`
	MAC       string `json:"mac"`
	Link      string `json:"link"`                      // up or down
	RateIn    int64  `json:"rate_in_bytes_per_second"`  // 0 for no limit
	RateOut   int64  `json:"rate_out_bytes_per_second"` // 0 for no limit
	Interface string `json:"interface"`                 // of the host; "" where it has none
	Defined   bool   `json:"defined"`                   // the definition has the card
	Leaving   bool   `json:"leaving"`                   // the guest was asked to let go of it, and has not
	nicFilter
}

// nicFilter is what a card is held to, as vmctl nic list and show tell it with -o
// json: its own lists as its definition has them, beside those of its groups.
type nicFilter struct {
	AntiSpoofing   bool     `json:"anti_spoofing"` // of a card on a bridge
	AllowIn        []string `json:"allow_in"`
	AllowOut       []string `json:"allow_out"`
	DenyIn         []string `json:"deny_in"`
	DenyOut        []string `json:"deny_out"`
	SecurityGroups []string `json:"security_groups"`

	spoofs bool // it may send under others' names, where others on its bridge may not
}

// newNICFilter is that of a card: of one that runs as it is held to by now, as far as
// its definition goes.
func newNICFilter(l look, n config.NIC) nicFilter {
	if l.vm.Machine != nil {
		n, _ = (&config.Machine{NICs: []config.NIC{n}}).WithReloadedOf(l.vm.Machine).NIC(n.Name)
	}
	onBridge := n.Network != "" || n.Bridge != ""
	return nicFilter{
		AntiSpoofing: onBridge && n.Filter().AntiSpoofing, spoofs: onBridge && !n.Filter().AntiSpoofing,
		AllowIn: ruleTexts(n.AllowIn, true), AllowOut: ruleTexts(n.AllowOut, false),
		DenyIn: ruleTexts(n.DenyIn, true), DenyOut: ruleTexts(n.DenyOut, false),
		SecurityGroups: append([]string{}, n.SecurityGroups...),
	}
}

// String is the filter in one cell, "" where it is what each card on a bridge has.
func (f nicFilter) String() string {
	var parts []string
	if f.spoofs {
		parts = append(parts, "may send under others' names")
	}
	for _, list := range []struct {
		word  string
		items []string
	}{{"allow in", f.AllowIn}, {"allow out", f.AllowOut}, {"deny in", f.DenyIn}, {"deny out", f.DenyOut}, {"groups", f.SecurityGroups}} {
		if len(list.items) > 0 {
			parts = append(parts, list.word+" "+strings.Join(list.items, ", "))
		}
	}
	return strings.Join(parts, "; ")
}

// ruleTexts writes a list of rules as it is read.
func ruleTexts(rules []config.Rule, in bool) []string {
	all := []string{}
	for _, r := range rules {
		all = append(all, r.Text(in))
	}
	return all
}

func runNICList(ctx context.Context, a *app, vms []string) error {
	looks, err := a.lookAtThose(ctx, vms)
	if err != nil {
		return err
	}
	rows := []nicRow{}
	var errs []error
	for _, l := range looks {
		rows = append(rows, nicRows(l)...)
		if err := a.unreadable(l); err != nil {
			errs = append(errs, inName("list cards of", l.vm.Name, err))
		}
	}
	if a.ui.format == jsonFormat {
		return cmp.Or(a.ui.json(rows), worst(errs))
	}
	table := [][]string{{"VM", "NIC", "PLUGGED INTO", "MODEL", "MAC", "LINK", "LIMIT IN", "LIMIT OUT", "INTERFACE", "FILTER"}}
	for _, r := range rows {
		table = append(table, r.cells())
	}
	if err := writeTable(a.ui.out, table); err != nil {
		return err
	}
	for _, err := range errs {
		a.ui.errorf(err)
	}
	return worst(errs)
}

func nicRows(l look) []nicRow {
	var rows []nicRow
	m := l.machine()
	if m == nil {
		return nil
	}
	for _, n := range m.NICs {
		r := nicRow{VM: l.vm.Name, NIC: n.Name, Running: l.active(), Plug: plug(n), Model: n.Model, MAC: string(n.MAC),
			Link: cmp.Or(n.Link, "up"), RateIn: int64(n.RateIn), RateOut: int64(n.RateOut),
			Defined: l.vm.Machine != nil && hasDevice(l.vm.Machine, n.Key()), Leaving: slices.Contains(l.changes.LeavingNICs, n.Name),
			nicFilter: newNICFilter(l, n)}
		if l.active() {
			r.Interface = netsetup.Interface(m.Name, n)
		}
		rows = append(rows, r)
	}
	return rows
}

func (r nicRow) cells() []string {
	rate := func(n int64) string {
		if n == 0 {
			return "-"
		}
		return config.Size(n).String() + "/s"
	}
	link := r.Link
	if r.Leaving {
		link += ", being detached"
	}
	return []string{r.VM, r.NIC, printable(r.Plug), r.Model, r.MAC, link, rate(r.RateIn), rate(r.RateOut), cmp.Or(r.Interface, "-"), cmp.Or(r.nicFilter.String(), "-")}
}

// pluggedNIC is vmctl nic attach, detach, up, down and set -o json.
type pluggedNIC struct {
	VM        string `json:"vm"`
	NIC       string `json:"nic"`
	Running   bool   `json:"running"`   // the guest has the change
	Persisted bool   `json:"persisted"` // a restart keeps it
	Link      string `json:"link"`
	RateIn    int64  `json:"rate_in_bytes_per_second"`
	RateOut   int64  `json:"rate_out_bytes_per_second"`
}

// nicChange is a change of a card of a machine.
type nicChange struct {
	*hotChange
	name   string
	result pluggedNIC
}

// changeNIC does something to a card of a machine, and tells of it.
func (a *app) changeNIC(ctx context.Context, verb string, args []string, do func(*nicChange) (string, error)) error {
	vm, name := args[0], args[1]
	fail := func(err error) error { return fmt.Errorf("%s %s %s: %w", verb, vm, name, err) }
	c, err := a.newHotChange(ctx, vm, "nic."+name)
	if err != nil {
		return fail(err)
	}
	defer c.conn.Close()
	n := &nicChange{hotChange: c, name: name, result: pluggedNIC{VM: vm, NIC: name, Running: c.look.active()}}
	text, err := do(n)
	if err != nil {
		return fail(err)
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(n.result)
	}
	a.ui.printf("%s %s: %s", vm, name, text)
	return nil
}

// tell fills in what the card is like.
func (c *nicChange) tell(n config.NIC) {
	c.result.Link, c.result.RateIn, c.result.RateOut = cmp.Or(n.Link, "up"), int64(n.RateIn), int64(n.RateOut)
}

// request has the machine's card changed while it runs.
func (c *nicChange) request(ctx context.Context, what string, q hypervisor.NICRequest) error {
	return c.operate(ctx, c.conn, c.look.vm.Name, "nic", what, q, nil)
}

func newNICAttachCommand(a *app) *cobra.Command {
	var keys []attachKey
	var persist bool
	cmd := &cobra.Command{
		Use:   "attach VM NIC [--network NAME | --bridge NAME | --user-mode | …]",
		Short: "Plug a card into a machine, while it runs too",
		Long: `Plug a network card into a machine. Where that runs, its guest sees the card at
once; with --persist the machine has it after a restart too, by a drop-in of its
definition, VM.toml.d/60-nic-NIC.toml. Where it does not run, only --persist makes
sense. Without flags that say what it is plugged into, the card is the one that the
definition has by that name, which was detached. (--user behind attach is --user-mode; that of your own machines
stands before the command: vmctl --user nic attach.)

A network of vmctl's that is not up is started. The peer behind --vhost-user maps the
memory of the machine, which has to have been started so: with memory_options.shared
= true, or such a card, or a share. A machine that runs takes cards of
the models virtio and e1000e, and on the board pc any; microvm takes none. There is
room for some (on q35 four, disks and shares counted), which a restart makes again.`,
		Example: `  vmctl nic attach web backend --network lan
  vmctl nic attach web wan --bridge br0 --vlan 7 --rate-out 10M --persist`,
		Args:              vmAndNIC,
		ValidArgsFunction: a.completeDetached(nicNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.changeNIC(ctx, "attach", args, func(c *nicChange) (string, error) { return c.attach(ctx, keys, persist) })
		},
	}
	flags := cmd.Flags()
	key := func(name, typ, key, usage string) {
		flags.Var(settingFlag{typ, func(text string) error {
			keys = append(keys, attachKey{key, text})
			return nil
		}}, name, usage)
	}
	key("network", "NAME", "network", "one of vmctl's networks")
	key("bridge", "NAME", "bridge", "a bridge of the host")
	for _, name := range []string{"user-mode", "user"} {
		key(name, "bool", "user", "user-mode networking by slirp, of a machine that was started with such a card")
		flags.Lookup(name).NoOptDefVal = "true"
	}
	flags.Lookup("user").Hidden = true // as vmctl's own is before the command
	key("tap", "NAME", "tap", "a TAP interface of the host")
	key("macvtap", "NAME", "macvtap", "an interface of the host to put a macvtap on")
	key("vde", "DIR", "vde", "a VDE switch of the host")
	key("vhost-user", "SOCKET", "vhost_user", "the socket of a vhost-user peer that listens; of a machine that runs with shared memory")
	key("model", "MODEL", "model", "virtio (default), e1000e, e1000 or rtl8139")
	key("mac", "MAC", "mac", "default: derived from host, machine and card name")
	key("address", "ADDRESS", "address", "fixed address in the network")
	key("forward", "[ADDRESS:]PORT:PORT", "forward", "a port of the host that reaches the guest's; repeatable")
	key("queues", "N", "queues", "queue pairs")
	key("mtu", "BYTES", "mtu", "largest packet")
	key("vlan", "ID", "vlan", "VLAN tag on the bridge")
	key("link", "STATE", "link", "up (default) or down")
	key("rate-in", "SIZE", "rate_in", "limit to the guest, bytes per second")
	key("rate-out", "SIZE", "rate_out", "limit from the guest, bytes per second")
	flags.BoolVar(&persist, "persist", false, "write it to the definition, as a drop-in")
	_ = cmd.RegisterFlagCompletionFunc("model", cobra.FixedCompletions([]cobra.Completion{"virtio", "e1000e", "e1000", "rtl8139"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("link", cobra.FixedCompletions([]cobra.Completion{"up", "down"}, cobra.ShellCompDirectiveNoFileComp))
	for _, name := range []string{"bridge", "tap", "macvtap"} {
		_ = cmd.RegisterFlagCompletionFunc(name, a.completeInterfaces)
	}
	for _, name := range []string{"mac", "address", "forward", "queues", "mtu", "vlan", "rate-in", "rate-out"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	_ = cmd.RegisterFlagCompletionFunc("network", func(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.completeNetworks(cmd, nil, prefix)
	})
	return cmd
}

// attach plugs the card in.
func (c *nicChange) attach(ctx context.Context, keys []attachKey, persist bool) (string, error) {
	n, draft, err := c.wanted(keys)
	if err != nil {
		return "", err
	}
	if err := c.cold(persist, "attaches it"); err != nil {
		return "", err
	}
	if err := c.checkAmongOthers(n, draft); err != nil {
		return "", err
	}
	c.tell(n)
	var kept deviceDropIn
	digest := ""
	if persist && draft != nil {
		if err := c.forgetSettings(); err != nil {
			return "", err
		}
	}
	if persist {
		if kept, digest, err = c.keep("attach", draft); err != nil {
			return "", err
		}
	}
	if c.look.active() {
		if err := c.request(ctx, hypervisor.NICAttach, hypervisor.NICRequest{NIC: n, Digest: digest}); err != nil {
			return "", err
		}
	}
	if persist {
		c.result.Persisted = true
		if err := c.persist(ctx, kept); err != nil {
			return "", err
		}
	}
	return c.attachedText(persist), nil
}

// checkAmongOthers refuses a card that could not be beside the networks, groups and
// machines that there are.
func (c *nicChange) checkAmongOthers(n config.NIC, draft *config.Draft) error {
	m, file := c.look.vm.Machine, c.look.vm.File
	if draft != nil {
		var err error
		if m, err = c.alone(draft); err != nil {
			return err
		}
		file = c.look.vm.Name + ".toml"
	}
	if m == nil {
		return nil // as it was defined before
	}
	one := *m
	one.NICs, one.Disks = []config.NIC{n}, nil
	one.Requires, one.Wants, one.After = nil, nil, nil
	if problems := config.ProblemsAmong(c.paths, config.VM{Name: c.look.vm.Name, File: file, Machine: &one}); len(problems) > 0 {
		return draftError(file, problems)
	}
	return nil
}

// wanted is the card that is asked for, and the keys that say so; those are nil
// for one that the definition has.
func (c *nicChange) wanted(keys []attachKey) (config.NIC, *config.Draft, error) {
	if n, has := c.look.vm.Machine.NIC(c.name); has {
		if len(keys) > 0 {
			return n, nil, c.definedAlready("card")
		}
		return n, nil, nil
	}
	if len(keys) == 0 {
		if n, has := c.before().NIC(c.name); has {
			return n, nil, nil
		}
		return config.NIC{}, nil, withHint(usageError{fmt.Errorf("the definition has no card named %s: want --network, --bridge or another that says what it is plugged into", c.name)},
			"vmctl nic attach --help lists them")
	}
	draft := config.NewDraft()
	for _, k := range keys {
		if err := draft.Set(c.key+"."+k.key, k.value); err != nil {
			return config.NIC{}, nil, usageError{fmt.Errorf("--%s: %w", strings.ReplaceAll(k.key, "_", "-"), err)}
		}
	}
	m, err := c.alone(draft)
	if err != nil {
		return config.NIC{}, nil, err
	}
	return m.NICs[0], draft, nil
}

func newNICDetachCommand(a *app) *cobra.Command {
	var persist bool
	timeout := span(releaseTime)
	cmd := &cobra.Command{
		Use:   "detach VM NIC",
		Short: "Take a card out of a machine, while it runs too",
		Long: `Take a network card out of a machine. Where that runs, its guest is asked to let go
of the card, and may take its time. With --persist the machine has not got the card
after a restart either, by a drop-in of its definition. Where it does not run, only
--persist makes sense.`,
		Example:           "  vmctl nic detach web backend\n  vmctl nic detach web lan --persist",
		Args:              vmAndNIC,
		ValidArgsFunction: a.completeDevices(nicNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return a.changeNIC(ctx, "detach", args, func(c *nicChange) (string, error) { return c.detach(ctx, persist, time.Duration(timeout)) })
		},
	}
	cmd.Flags().BoolVar(&persist, "persist", false, "take it out of the definition too, by a drop-in")
	cmd.Flags().Var(&timeout, "timeout", "wait no longer than this for the guest")
	return cmd
}

// detach takes the card out.
func (c *nicChange) detach(ctx context.Context, persist bool, timeout time.Duration) (string, error) {
	kept, digest, err := c.keepDetached(persist, &notFoundError{Kind: "card of " + c.look.vm.Name, Name: c.name,
		Hint: "vmctl nic list " + c.look.vm.Name + " shows those that it has"})
	if err != nil {
		return "", err
	}
	n, _ := c.look.machine().NIC(c.name)
	c.tell(n)
	if c.look.active() {
		q := hypervisor.NICRequest{NIC: config.NIC{Name: c.name}, Timeout: timeout, Digest: digest}
		if err := c.request(ctx, hypervisor.NICDetach, q); err != nil {
			return "", err
		}
	}
	text := c.detachedText(persist)
	if persist {
		c.result.Persisted = true
		if err := c.persist(ctx, kept); err != nil {
			return "", err
		}
		if err := netsetup.Forget(c.paths, c.look.vm.Name, c.name); err != nil {
			return "", fmt.Errorf("the card is detached, and keeps its addresses: %w", err)
		}
	}
	return text, nil
}

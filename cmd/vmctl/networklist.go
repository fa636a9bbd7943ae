package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/netsetup"
)

// networkJSON is one network in vmctl network list -o json. The names of its
// fields stay.
type networkJSON struct {
	Name            string   `json:"name"`
	State           state    `json:"state"`
	Description     string   `json:"description"`
	Unit            string   `json:"unit"`
	Interface       string   `json:"interface"`   // the bridge
	HostBridge      bool     `json:"host_bridge"` // which is the host's, and not made by vmctl
	Subnet          string   `json:"subnet"`      // "" for none, like those below
	Subnet6         string   `json:"subnet6"`
	Gateway         string   `json:"gateway"`
	Gateway6        string   `json:"gateway6"`
	DHCP            bool     `json:"dhcp"`
	DHCPRange       string   `json:"dhcp_range"`
	Domain          string   `json:"domain"`
	NAT             bool     `json:"nat"`
	NAT6            bool     `json:"nat6"`
	Isolated        bool     `json:"isolated"`
	MTU             int      `json:"mtu_bytes"`
	VLAN            int      `json:"vlan"` // 0 for none
	Autostart       bool     `json:"autostart"`
	Machines        []string `json:"machines"`         // with a card in it, by their definitions or as they run
	RunningMachines []string `json:"running_machines"` // those of them that run
	PendingChanges  bool     `json:"pending_changes"`  // the definition is not the one that it is up with
	File            string   `json:"file"`
	Error           string   `json:"error"` // what is wrong with the definition, or why it failed
}

// networkShown is vmctl network show -o json.
type networkShown struct {
	networkJSON
	Problems []config.Problem `json:"problems"` // of the definition
	Cards    []networkCard    `json:"cards"`
	Ports    []string         `json:"other_ports"` // interfaces on the bridge that are no machine's
	Leases   []networkLease   `json:"leases"`

	waits []string // keys that have changed, and that no reload changes while machines are plugged in
}

// networkLease is one address in vmctl network leases -o json.
type networkLease struct {
	Network   string     `json:"network"`
	Address   string     `json:"address"`
	Machine   string     `json:"vm"` // "" for one that is no machine's
	NIC       string     `json:"nic"`
	MAC       string     `json:"mac"`
	Hostname  string     `json:"hostname"` // that the service knows
	Kind      string     `json:"kind"`     // "fixed": by the definition; "reserved": chosen for the card, and kept; "given": to somebody else
	Lent      bool       `json:"lent"`     // the guest has asked for it
	ExpiresAt *time.Time `json:"expires_at"`
}

func newNetworkListCommand(a *app) *cobra.Command {
	var names bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List networks: those that are defined, and those that are up without it",
		Long: `List networks: those that are defined, and those that are up without it. A state
with a star (running*) is that of a network that is up otherwise than it is defined
by now: vmctl network reload brings it into line. RUNNING is how many machines that
run are plugged into it, of how many that are defined so.`,
		Example:           "  vmctl network list\n  vmctl network list -o json | jq -r '.[] | select(.state == \"running\") | .interface'",
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runNetworkList(cmd.Context(), a, names) },
	}
	cmd.Flags().BoolVarP(&names, "quiet", "q", false, "print names only")
	return cmd
}

func runNetworkList(ctx context.Context, a *app, names bool) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	looks, err := a.lookNetworks(ctx, conn)
	if err != nil {
		return err
	}
	rows := []networkJSON{}
	table := [][]string{{"NAME", "STATE", "INTERFACE", "SUBNET", "SUBNET6", "RUNNING", "DESCRIPTION"}}
	for _, l := range looks {
		r := newNetworkJSON(l)
		rows = append(rows, r)
		table = append(table, networkCells(r))
		if names {
			a.ui.printf("%s", r.Name)
		}
	}
	switch {
	case a.ui.format == jsonFormat:
		return a.ui.json(rows)
	case names:
		return nil
	}
	if err := writeTable(a.ui.out, table); err != nil {
		return err
	}
	if slices.ContainsFunc(rows, func(r networkJSON) bool { return r.PendingChanges && r.State == running }) {
		a.ui.notef("* is up otherwise than defined: vmctl network reload")
	}
	return nil
}

func newNetworkJSON(l networkLook) networkJSON {
	r := networkJSON{
		Name: l.file.Name, State: l.state, Unit: config.NetworkUnit(l.file.Name), File: l.file.File,
		Machines: l.machines(false), RunningMachines: l.machines(true), PendingChanges: pendingNetwork(l),
		Error: networkError(l),
	}
	n := l.network()
	if n == nil {
		return r
	}
	r.Description, r.Interface, r.HostBridge, r.VLAN, r.Autostart = n.Description, n.Device(), n.Bridge != "", n.VLAN, n.Autostart
	if r.HostBridge {
		return r // of which vmctl knows no more
	}
	r.Subnet, r.Subnet6, r.DHCP, r.DHCPRange, r.Domain, r.MTU = n.Subnet, n.Subnet6, n.DHCP, n.DHCPRange, n.Domain, n.MTU
	r.NAT, r.NAT6, r.Isolated = n.NAT && n.Subnet != "", n.NAT6 && n.Subnet6 != "", n.Isolated
	if n.Gateway.IsValid() {
		r.Gateway = n.Gateway.String()
	}
	if g := n.Gateway6(); g.IsValid() {
		r.Gateway6 = g.String()
	}
	return r
}

// networkError is what is wrong with a network, in one line, "" for nothing.
func networkError(l networkLook) string {
	switch {
	case l.file.File == "":
		return "definition is gone"
	case len(l.file.Problems) > 0:
		text := l.file.Problems[0].Error()
		if more := len(l.file.Problems) - 1; more > 0 {
			text += fmt.Sprintf(" (and %d more)", more)
		}
		return text
	case l.state == failed:
		return "it failed; systemctl status " + config.NetworkUnit(l.file.Name) + " tells why"
	}
	return ""
}

func networkCells(r networkJSON) []string {
	return []string{
		r.Name, listState(r.State, r.PendingChanges), cmp.Or(r.Interface, "-"), cmp.Or(r.Subnet, "-"), cmp.Or(r.Subnet6, "-"),
		fmt.Sprintf("%d of %d", len(r.RunningMachines), len(r.Machines)), listText(r.Description, r.Error),
	}
}

func newNetworkShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME...",
		Short:             "Show all about networks: addresses, machines, interfaces, leases",
		Long:              `Show all about networks. With -o json one object for one name, an array for several.`,
		Example:           "  vmctl network show default",
		Args:              someNetworks,
		ValidArgsFunction: a.completeNetworks,
		RunE:              func(cmd *cobra.Command, args []string) error { return runNetworkShow(cmd.Context(), a, args) },
	}
}

func runNetworkShow(ctx context.Context, a *app, names []string) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	looks, err := a.lookNetwork(ctx, conn, names...)
	if err != nil {
		return err
	}
	var all []networkShown
	for _, l := range looks {
		all = append(all, networkShown{
			networkJSON: newNetworkJSON(l),
			Problems:    append([]config.Problem{}, l.file.Problems...),
			Cards:       append([]networkCard{}, l.cards...),
			Ports:       append([]string{}, l.foreign...),
			Leases:      a.leasesOf(l),
			waits:       l.waits(),
		})
	}
	return printAll(a.ui, all, networkLines)
}

// networkLines are the lines of vmctl network show for people.
func networkLines(s networkShown) [][]string {
	var rows [][]string
	add := func(word, text string) {
		if text != "" {
			rows = append(rows, []string{word + ":", printable(text)})
		}
	}
	bridge := s.Interface
	if s.HostBridge {
		bridge += ", a bridge of the host"
	}
	subnet := func(subnet, gateway string, nat bool) string {
		switch {
		case subnet == "":
			return ""
		case s.Isolated:
			return subnet + ", host " + gateway + ", isolated"
		case nat:
			return subnet + ", host " + gateway + ", NAT"
		}
		return subnet + ", host " + gateway
	}
	add("Name", s.Name)
	add("Description", s.Description)
	add("State", string(s.State))
	add("Unit", s.Unit)
	add("Definition", s.File)
	add("Error", s.Error)
	if s.PendingChanges {
		add("Pending", pendingText(s))
	}
	add("Autostart", yesNo(s.Autostart))
	add("Interface", bridge)
	add("IPv4", subnet(s.Subnet, s.Gateway, s.NAT))
	add("IPv6", subnet(s.Subnet6, s.Gateway6, s.NAT6))
	if s.DHCP {
		add("DHCP", cmp.Or(s.DHCPRange, "IPv6 alone"))
		add("Domain", s.Domain)
	}
	for _, c := range s.Cards {
		add("Machine "+c.Machine, strings.Join(slices.DeleteFunc([]string{"card " + c.NIC, c.MAC, c.Interface}, func(p string) bool { return p == "" }), ", "))
	}
	for _, c := range s.Cards {
		for _, f := range c.Forward {
			add("Forward", f+" to "+c.Machine+", card "+c.NIC)
		}
	}
	for _, p := range s.Ports {
		add("Other port", p)
	}
	for _, l := range s.Leases {
		add("Lease", leaseText(l))
	}
	return rows
}

// pendingText says how a changed definition comes to hold.
func pendingText(s networkShown) string {
	if len(s.waits) == 0 || len(s.RunningMachines) == 0 {
		return "the definition has changed; vmctl network reload " + s.Name + " applies it"
	}
	return fmt.Sprintf("the definition has changed, in %s too, which waits until no machine is plugged in (%s); vmctl network reload %s applies it then",
		strings.Join(s.waits, " and "), strings.Join(s.RunningMachines, ", "), s.Name)
}

func leaseText(l networkLease) string {
	who := cmp.Or(l.Machine, l.Hostname, l.MAC)
	if l.NIC != "" {
		who += ", card " + l.NIC
	}
	return l.Address + ", " + who + ", " + l.Kind + ", " + expiryText(l)
}

// expiryText is until when an address is lent.
func expiryText(l networkLease) string {
	switch {
	case !l.Lent:
		return "not asked for"
	case l.ExpiresAt == nil:
		return "for ever"
	}
	return "until " + timeText(l.ExpiresAt)
}

func newNetworkLeasesCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "leases [NAME...]",
		Short: "List addresses of cards in networks, and what DHCP has given out",
		Long: `List the addresses that belong to cards, and what the networks' DHCP service has
given out: "fixed" ones are by the definition, "reserved" ones were chosen for
the card, which gets them again, "given" ones somebody else has.`,
		Example:           "  vmctl network leases default\n  vmctl network leases -o json | jq -r '.[] | select(.vm == \"web\") | .address'",
		ValidArgsFunction: a.completeNetworks,
		RunE:              func(cmd *cobra.Command, args []string) error { return runNetworkLeases(cmd.Context(), a, args) },
	}
}

func runNetworkLeases(ctx context.Context, a *app, names []string) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	looks, err := a.lookNetworks(ctx, conn)
	if len(names) > 0 && err == nil {
		looks, err = a.lookNetwork(ctx, conn, names...)
	}
	if err != nil {
		return err
	}
	rows := []networkLease{}
	table := [][]string{{"NETWORK", "ADDRESS", "MACHINE", "NIC", "MAC", "KIND", "LENT"}}
	var errs []error
	for _, l := range looks {
		rows = append(rows, a.leasesOf(l)...)
		if err := a.leasesDenied(l.file.Name); err != nil {
			errs = append(errs, inName("leases of", l.file.Name, err))
		}
	}
	if a.ui.format == jsonFormat {
		return cmp.Or(a.ui.json(rows), worst(errs))
	}
	for _, r := range rows {
		table = append(table, []string{r.Network, r.Address, cmp.Or(r.Machine, printable(r.Hostname), "-"), cmp.Or(r.NIC, "-"), cmp.Or(printable(r.MAC), "-"), r.Kind, expiryText(r)})
	}
	if err := writeTable(a.ui.out, table); err != nil {
		return err
	}
	for _, err := range errs {
		a.ui.errorf(err)
	}
	return worst(errs)
}

// leasesDenied is the error of a caller who may not read which addresses of a
// network are whose.
func (a *app) leasesDenied(network string) error {
	for _, file := range []string{a.paths.NetworkAddresses(network), a.paths.NetworkLeases(network)} {
		// Not opened: it may be a FIFO.
		if err := unix.Faccessat(unix.AT_FDCWD, file, unix.R_OK, unix.AT_EACCESS); errors.Is(err, fs.ErrPermission) {
			return &fs.PathError{Op: "open", Path: file, Err: err}
		}
	}
	return nil
}

// leasesOf are the addresses of a network, of cards first.
func (a *app) leasesOf(l networkLook) []networkLease {
	// Of a network that is down, nobody removes what has expired.
	lent := slices.DeleteFunc(a.lent(l.file.Name), func(g netsetup.GivenOut) bool { return !g.Expires.IsZero() && g.Expires.Before(time.Now()) })
	rows := []networkLease{}
	reserved := a.reserved(l.file.Name)
	var cards []string
	for card := range reserved {
		cards = append(cards, card)
	}
	slices.Sort(cards)
	for _, card := range cards {
		machine, nic := netsetup.SplitCard(card)
		if !l.mayHave(machine, nic) {
			continue
		}
		for _, ip := range reserved[card].Addresses() {
			row := networkLease{Network: l.file.Name, Address: ip.String(), Kind: "reserved", Machine: machine, NIC: nic}
			for _, c := range l.cards {
				if c.Machine == row.Machine && c.NIC == row.NIC {
					row.MAC = c.MAC
					if c.fixed == row.Address {
						row.Kind = "fixed"
					}
				}
			}
			for i, given := range lent {
				if given.Address == ip {
					row.Hostname, row.Lent, row.ExpiresAt = printable(given.Hostname), true, expiry(given.Expires)
					lent = slices.Delete(lent, i, i+1)
					break
				}
			}
			rows = append(rows, row)
		}
	}
	for _, given := range lent {
		rows = append(rows, networkLease{
			Network: l.file.Name, Address: given.Address.String(), MAC: printable(given.MAC), Hostname: printable(given.Hostname),
			Kind: "given", Lent: true, ExpiresAt: expiry(given.Expires),
		})
	}
	return rows
}

// expiry is nil for what is lent for ever.
func expiry(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

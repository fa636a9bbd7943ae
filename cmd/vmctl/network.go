package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/netsetup"
	"github.com/vmctl/vmctl/units"
	"github.com/vmctl/vmctl/units/bus"
)

func newNetworkCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "network",
		Short: "Networks that machines are plugged into: list, create, leases …",
		Long: `Networks are what cards with network = "NAME" in a definition are plugged into: a
bridge with addresses, DHCP, names and a way out. A network NAME is the file
/etc/vmctl/networks/NAME.toml and the unit vm-network@NAME.service, which starts
with the first machine that uses it.`,
		Example: `  vmctl network create lan --subnet 10.20.0.0/24
  vmctl network leases
  vmctl network show default`,
		GroupID: groupParts,
		Annotations: map[string]string{
			manualFiles: "/etc/vmctl/networks/NAME.toml\tDefinition of a network; a link to /dev/null in /etc masks one of /usr/lib.\n" +
				"/run/vmctl/networks/, /usr/lib/vmctl/networks/\tThe same by programs and packages: that in /run goes before, that in /usr after.\n" +
				"NAME.toml.d/*.toml\tDrop-ins beside it, merged in the order of their names.\n" +
				"/etc/vmctl/security-groups/NAME.toml\tRules that several cards share.\n" +
				"vm-network@NAME.service\tIts unit, whose process gives out addresses and names: dnsmasq.\n" +
				"/var/lib/vmctl/networks/NAME/\tWhich addresses are whose.",
			manualAlso: "dnsmasq.8 nft.8 ip-link.8 bridge.8",
		},
		Args: noCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newNetworkCheckCommand(a),
		newNetworkCreateCommand(a),
		newNetworkDeleteCommand(a),
		newNetworkGroupsCommand(a),
		newNetworkLeasesCommand(a),
		newNetworkListCommand(a),
		newNetworkReloadCommand(a),
		newNetworkShowCommand(a),
		newNetworkStartCommand(a),
		newNetworkStopCommand(a),
	)
	return cmd
}

// networkLook is what is known of one network at one time.
type networkLook struct {
	file    config.NetworkFile // without File: it is up, but the definition is gone
	unit    bus.UnitStatus
	up      *config.Network // what it is up with; nil where it is not, or that cannot be read
	state   state
	cards   []networkCard // of machines that are defined or run
	unread  []string      // machines with a definition that is broken: which cards they have is not known
	foreign []string      // interfaces on the bridge of which no such machine has one
}

// networkCard is a card of a machine in a network.
type networkCard struct {
	Machine   string `json:"vm"`
	NIC       string `json:"nic"`
	MAC       string `json:"mac"`
	Interface string `json:"interface"` // of the host, while it runs
	Running   bool   `json:"running"`
	// Forward are the ports of the host that reach the guest.
	Forward []string `json:"forward"`
	fixed   string   // address by the definition, "" for none
}

// network is what the network is, or else would be: nil where neither is known.
func (l networkLook) network() *config.Network {
	if l.up != nil {
		return l.up
	}
	return l.file.Network
}

// machines are the names of those with a card in the network; of those that run
// alone, where running says so.
func (l networkLook) machines(running bool) []string {
	names := []string{}
	for _, c := range l.cards {
		if c.Running || !running {
			names = append(names, c.Machine)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// lookNetworks finds out about every network: those that are defined, and those
// that are up without a definition, by name.
func (a *app) lookNetworks(ctx context.Context, conn *bus.Conn) ([]networkLook, error) {
	if err := a.systemOnly(); err != nil {
		return nil, err
	}
	vms, set, err := a.lookAll(ctx, conn)
	if err != nil {
		return nil, err
	}
	found, err := conn.Units(ctx, config.NetworkUnit("*"))
	if err != nil {
		return nil, err
	}
	byName := map[string]bus.UnitStatus{}
	for _, u := range found {
		byName[networkName(u.Name)] = u
	}
	var looks []networkLook
	for _, n := range set.Networks {
		looks = append(looks, networkLook{file: n, unit: byName[n.Name]})
		delete(byName, n.Name)
	}
	for name, u := range byName {
		if config.CheckName(name) == nil && u.Active != "inactive" {
			looks = append(looks, networkLook{file: config.NetworkFile{Name: name}, unit: u})
		}
	}
	slices.SortFunc(looks, func(x, y networkLook) int { return cmp.Compare(x.file.Name, y.file.Name) })
	for i := range looks {
		a.settleNetwork(&looks[i], vms)
	}
	return looks, nil
}

// lookNetwork is lookNetworks for those of some names, in their order.
func (a *app) lookNetwork(ctx context.Context, conn *bus.Conn, names ...string) ([]networkLook, error) {
	all, err := a.lookNetworks(ctx, conn)
	if err != nil {
		return nil, err
	}
	var looks []networkLook
	for _, name := range names {
		if err := checkNetworkName(name); err != nil {
			return nil, err
		}
		i := slices.IndexFunc(all, func(l networkLook) bool { return l.file.Name == name })
		if i < 0 {
			return nil, a.networkNotFound(name)
		}
		looks = append(looks, all[i])
	}
	return looks, nil
}

// settleNetwork finds what the unit alone does not say, and decides the state.
func (a *app) settleNetwork(l *networkLook, vms []look) {
	l.state = unkeptState(unitState{Active: l.unit.Active, Job: l.unit.Job}, "", nil)
	l.up = readJSON[config.Network](a.paths.NetworkJSON(l.file.Name))
	for _, vm := range vms {
		m := vm.machine()
		if m == nil {
			l.unread = append(l.unread, vm.vm.Name)
			continue
		}
		for _, n := range m.NICs {
			if n.Network == l.file.Name {
				l.cards = append(l.cards, newNetworkCard(vm, n))
			}
		}
	}
	if l.network() == nil {
		return
	}
	for _, port := range a.ports(l.network().Device()) {
		if !slices.ContainsFunc(l.cards, func(c networkCard) bool { return c.Interface == port }) {
			l.foreign = append(l.foreign, port)
		}
	}
}

func newNetworkCard(vm look, n config.NIC) networkCard {
	c := networkCard{Machine: vm.vm.Name, NIC: n.Name, MAC: string(n.MAC), Forward: forwardTexts(n), Running: vm.active() || vm.state == starting}
	if c.Running {
		c.Interface = netsetup.TapName(c.Machine, n.Name)
	}
	if n.Address.IsValid() {
		c.fixed = n.Address.String()
	}
	return c
}

// ports are the interfaces on a bridge.
func (a *app) ports(bridge string) []string {
	// Where it is not up, there is none.
	entries, _ := os.ReadDir(filepath.Join(a.root, "/sys/class/net", bridge, "brif"))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// lent is what the service of a network has given out; nothing where there is
// none, or that is not ours to read.
func (a *app) lent(network string) []netsetup.GivenOut {
	// The service's user could put a FIFO or a link in its place.
	f, err := os.OpenFile(a.paths.NetworkLeases(network), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	return netsetup.ParseLeases(io.LimitReader(f, maxJSON))
}

// reserved are the addresses that belong to cards, by "MACHINE/NIC".
func (a *app) reserved(network string) map[string]netsetup.Reserved {
	// For show: what cannot be read is not told.
	all, _ := netsetup.AddressesOf(a.paths, network).All()
	return all
}

// networkStale says whether systemd was told something else of a network than it
// would be now.
func (a *app) networkStale(n config.NetworkFile) bool {
	file := units.RenderNetwork(n, units.Env{Paths: a.paths})[0]
	told, err := os.ReadFile(filepath.Join(a.paths.GeneratorDir, file.Name))
	return err != nil || string(told) != file.Text
}

// networksChanged says so of the networks that a machine is plugged into.
func (a *app) networksChanged(m *config.Machine) bool {
	return slices.ContainsFunc(m.NICs, func(n config.NIC) bool {
		if n.Network == "" || a.user {
			return false
		}
		file, err := config.LoadNetwork(a.paths, n.Network)
		return err == nil && a.networkStale(file)
	})
}

// pendingNetwork says whether the definition is another than the one that the
// network is up with.
func pendingNetwork(l networkLook) bool {
	if l.up == nil || l.file.Network == nil {
		return l.up != nil
	}
	was, err1 := json.Marshal(l.up)
	is, err2 := json.Marshal(l.file.Network)
	return err1 != nil || err2 != nil || string(was) != string(is)
}

// waits are the keys that have changed, and that no reload changes while machines are
// plugged in.
func (l networkLook) waits() []string {
	if l.up == nil || l.file.Network == nil {
		return nil
	}
	var keys []string
	for _, c := range l.file.Network.Waiting(l.up) {
		keys = append(keys, c.Key)
	}
	return keys
}

// mayHave says whether a machine has a card in the network, by its definition or as
// it runs, as far as that can be told.
func (l networkLook) mayHave(machine, nic string) bool {
	return slices.Contains(l.unread, machine) || slices.ContainsFunc(l.cards, func(c networkCard) bool { return c.Machine == machine && c.NIC == nic })
}

// systemOnly refuses --user: bridges are the host's.
func (a *app) systemOnly() error {
	if a.user {
		return usageError{errors.New("networks are the system's: want no --user")}
	}
	return nil
}

// networks are those of the host, which a user's own machines have no part in.
func (a *app) networks() ([]config.NetworkFile, []config.Problem) {
	if a.user {
		return nil, nil
	}
	return config.LoadNetworks(a.paths)
}

// findNetwork reads one network's definition, sound or broken, with the checks
// that concern others.
func (a *app) findNetwork(name string) (config.NetworkFile, error) {
	if err := errors.Join(a.systemOnly(), checkNetworkName(name)); err != nil {
		return config.NetworkFile{}, err
	}
	all, _ := config.LoadNetworks(a.paths)
	if i := slices.IndexFunc(all, func(n config.NetworkFile) bool { return n.Name == name }); i >= 0 {
		return all[i], nil
	}
	return config.NetworkFile{}, a.networkNotFound(name)
}

func checkNetworkName(name string) error {
	if err := config.CheckName(name); err != nil {
		return usageError{fmt.Errorf("name of a network: %w", err)}
	}
	return nil
}

func (a *app) networkNotFound(name string) error {
	e := &notFoundError{Kind: "network", Name: name, Hint: "vmctl network list shows those that there are"}
	if slices.Contains(a.networkNames(), name) {
		e.Hint = "its definition is masked, by an empty file or a link to /dev/null"
	} else if near := nearest(name, a.networkNames()); near != "" {
		e.Hint = didYouMean(near)
	}
	return e
}

// networkNames are names for networks.
func (a *app) networkNames() []string { return namesIn(a.paths.NetworkDirs) }

// networkName is the network whose unit is named unit.
func networkName(unit string) string {
	return strings.TrimSuffix(strings.TrimPrefix(unit, "vm-network@"), ".service")
}

// completeNetworks completes the names of networks, each once.
func (a *app) completeNetworks(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	a.settle()
	var out []cobra.Completion
	for _, name := range a.networkNames() {
		if strings.HasPrefix(name, prefix) && !slices.Contains(args, name) {
			out = append(out, name)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func someNetworks(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{errors.New("want the name of a network")}
	}
	return nil
}

func oneNetwork(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("want the name of one network, got %d arguments", len(args))}
	}
	return nil
}

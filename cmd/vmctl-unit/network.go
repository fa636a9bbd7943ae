package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/netsetup"
	"github.com/vmctl/vmctl/units/bus"
)

// networkUp makes a network as its definition says, or takes over what is there
// of it from before.
func (a app) networkUp(ctx context.Context) error {
	unlock, err := a.lockNetworks(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	was, cards, err := a.networkAsIs()
	if err != nil {
		return err
	}
	n, err := a.wantedNetwork(was, cards)
	if err != nil && len(cards) > 0 {
		a.warn("machines are plugged in (%s), so it goes on as it was, since %s", strings.Join(cards, ", "), oneSentence(err))
		n, err = was, nil
	}
	if err == nil && serves(n) {
		err = netsetup.Busy(n)
	}
	if err != nil {
		return err
	}
	if _, err := a.makeNetwork(was, n); err != nil {
		if was == nil {
			err = errors.Join(err, a.removeNetwork(n))
		}
		return err
	}
	a.notify("STATUS=" + networkStatus(n))
	a.tellResolved(ctx, n)
	a.warnOfObstacles(n)
	return removeFile(a.paths.NetworkLeft(n.Name))
}

// warnOfObstacles tells of filters of others that drop what a network needs. They
// stay as they are.
func (a app) warnOfObstacles(n *config.Network) {
	if n.Bridge != "" {
		return
	}
	found, err := netsetup.Obstacles(n.Device())
	if err != nil {
		a.warn("%v", err)
	}
	for _, o := range found {
		a.warn("%s, so guests may reach nothing: %s", o.Text, o.Remedy)
	}
}

// networkReload brings a network that is up into line with its definition. Its
// service reads most of its settings at its start alone: where they have
// changed it is ended, and systemd starts it again.
func (a app) networkReload(ctx context.Context) error {
	unlock, err := a.lockNetworks(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	was, cards, err := a.networkAsIs()
	if err != nil {
		return err
	}
	n, err := a.wantedNetwork(was, cards)
	if err != nil && was != nil {
		// Whoever has removed all tables of the host has removed its, too.
		if _, err := a.makeNetwork(was, was); err != nil {
			a.warn("put back what the network was: %v", err)
		}
	}
	if err != nil {
		return err
	}
	restart, err := a.makeNetwork(was, n)
	if err != nil {
		return err
	}
	a.notify("STATUS=" + networkStatus(n))
	a.tellResolved(ctx, n)
	service, err := strconv.Atoi(os.Getenv("MAINPID"))
	if err != nil {
		if serves(n) {
			a.warn("its DHCP and DNS service runs from the next start on")
		}
		return nil
	}
	signal := unix.SIGHUP
	if restart || !serves(n) {
		a.info("settings of DHCP and DNS have changed: the service is ended, and started again")
		signal = unix.SIGTERM
	}
	if err := unix.Kill(service, signal); err != nil && err != unix.ESRCH {
		return fmt.Errorf("tell the service of it: %w", err)
	}
	return nil
}

// oneSentence is an error, or what a refusal begins with.
func oneSentence(err error) string {
	if refused, ok := errors.AsType[refusal](err); ok {
		return refused.problems[0]
	}
	return err.Error()
}

// serves says whether a network has a DHCP and DNS service of ours.
func serves(n *config.Network) bool { return n.Bridge == "" && n.DHCP }

// networkStatus is a network that is up in one line.
func networkStatus(n *config.Network) string {
	if n.Bridge != "" {
		return "Up on " + n.Bridge + ", a bridge of the host"
	}
	parts := []string{n.Device()}
	for _, p := range netsetup.Network(n).Addresses {
		parts = append(parts, p.String())
	}
	if n.Isolated {
		parts = append(parts, "isolated")
	}
	return "Up: " + strings.Join(parts, ", ")
}

// lockNetworks waits until no network changes, and none will until the answer is
// called: for unix.LOCK_EX, to change one; for unix.LOCK_SH, to plug into one, but see
// [app.lockToPlug].
func (a app) lockNetworks(how int) (unlock func(), err error) {
	if err := makeOpenDir(a.paths.NetworkRuntime); err != nil { // which dnsmasq reads
		return nil, err
	}
	return access.LockFile(a.paths.Lock(".networks"), how)
}

// makeOpenDir makes a directory that everybody looks into, whatever the umask is.
func makeOpenDir(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755)
}

// networkAsIs is the definition that the network is up with, nil where it is
// not, and the cards in it.
func (a app) networkAsIs() (n *config.Network, cards []string, err error) {
	n, err = a.networkInUse(a.vm)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case err != nil:
		a.warn("what the network was before: %v", err)
		return nil, nil, nil
	}
	cards, _, err = a.ports(n)
	return n, cards, err
}

// ports are the machines' cards in a network, by a name for people, and other
// interfaces on a bridge of its own. On a bridge of the host's own, which others use
// whatever becomes of the network, there are cards of others, too: which are whose, the
// machines that run have noted.
func (a app) ports(n *config.Network) (cards, others []string, err error) {
	on, others, err := netsetup.Ports(netsetup.Network(n))
	if err != nil || n.Bridge == "" {
		return on, others, err
	}
	if len(on) == 0 {
		return nil, nil, nil
	}
	machines, err := a.machinesBeside("")
	for _, m := range machines {
		for _, nic := range m.NICs {
			if name := m.Name + "-" + nic.Name; nic.Network == n.Name && slices.Contains(on, name) {
				cards = append(cards, name)
			}
		}
	}
	return cards, nil, err
}

// wantedNetwork is the network by its definition, which is refused where the
// host, or the cards that are plugged into what was, do not allow it.
func (a app) wantedNetwork(was *config.Network, cards []string) (*config.Network, error) {
	file, err := a.findNetwork()
	if err != nil {
		return nil, refusal{[]string{err.Error()}}
	}
	problems := file.Problems
	if len(problems) == 0 {
		problems = slices.Concat(a.checkNetwork(file.Network), checkPlugged(was, file.Network, cards))
	}
	if len(problems) > 0 {
		return nil, refuseProblems(problems)
	}
	for _, w := range file.Warnings {
		a.warn("%v", w)
	}
	return file.Network, nil
}

// checkPlugged says what cannot change while cards are plugged in.
func checkPlugged(was, is *config.Network, cards []string) []config.Problem {
	if len(cards) == 0 {
		return nil
	}
	var problems []config.Problem
	for _, c := range is.Waiting(was) {
		problems = append(problems, is.Problem(c.Key, "want no change while machines are plugged in (%s), got %q in place of %q",
			strings.Join(cards, ", "), c.Is, c.Was))
	}
	return problems
}

// makeNetwork brings the host from what a network was, nil where there was none,
// to what it is by now, and says whether its service has to start again.
func (a app) makeNetwork(was, n *config.Network) (restart bool, err error) {
	if was != nil {
		if err := netsetup.Change(netsetup.Network(was), netsetup.Network(n)); err != nil {
			return false, err
		}
	}
	if err := a.writeNetwork(n); err != nil {
		return false, err
	}
	others := a.networksUp()
	s := netsetup.Network(n, others...)
	if err := netsetup.Up(s); err != nil {
		return false, err
	}
	if err := errors.Join(netsetup.Settle(others), a.forward(s.Forward4, s.Forward6, others)); err != nil || !serves(n) {
		return false, err
	}
	// Of machines that do not run, too: their addresses are nobody else's.
	if _, err := a.writeHosts(n); err != nil {
		return false, err
	}
	return a.writeService(n)
}

// networksUp are the networks that are up with a bridge of their own.
func (a app) networksUp() []*config.Network {
	// Before the first there is no directory.
	entries, _ := os.ReadDir(a.paths.NetworkRuntime)
	var up []*config.Network
	for _, e := range entries {
		n, err := a.networkInUse(e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			a.warn("%v", err)
		case n.Bridge == "":
			up = append(up, n)
		}
	}
	return up
}

// forward has packets forwarded between the networks that are up and the rest,
// for the protocols that are wanted beside what is on already.
func (a app) forward(v4, v6 bool, up []*config.Network) error {
	f := netsetup.Forwarding{File: a.paths.Forwarding, Lock: a.paths.Lock(".forwarding")}
	if len(up) == 0 {
		return f.Off()
	}
	var bridges []string
	for _, n := range up {
		bridges = append(bridges, n.Device())
	}
	return f.On(v4, v6, bridges)
}

// findNetwork reads a network's definition, with the checks that concern others.
func (a app) findNetwork() (config.NetworkFile, error) {
	all, _ := config.LoadNetworks(a.paths)
	for _, n := range all {
		if n.Name == a.vm {
			return n, nil
		}
	}
	// Which says why not.
	return config.LoadNetwork(a.paths, a.vm)
}

// checkNetwork says what of the host is in the way.
func (a app) checkNetwork(n *config.Network) []config.Problem {
	var problems []config.Problem
	if key, err := netsetup.Check(netsetup.Network(n)); err != nil {
		problems = append(problems, n.Problem(key, "%v", err))
	}
	if serves(n) {
		if _, err := exec.LookPath("dnsmasq"); err != nil {
			problems = append(problems, n.Problem("dhcp", "dnsmasq, which gives out addresses, is not installed (Debian: dnsmasq-base); install it, or write dhcp = false"))
		}
	}
	for _, p := range []struct {
		key    string
		prefix netip.Prefix
	}{{"subnet", n.Prefix4()}, {"subnet6", n.Prefix6()}} {
		if route, err := netsetup.Overlap(p.prefix, n.Device()); err != nil {
			a.warn("%v", err)
		} else if route != "" {
			problems = append(problems, n.Problem(p.key, "want a subnet that the host does not use yet, got %s, which overlaps the route %s", p.prefix, route))
		}
	}
	return problems
}

// writeNetwork writes what machines that are plugged in have to know, and
// whoever removes it all.
func (a app) writeNetwork(n *config.Network) error {
	for _, dir := range []string{a.paths.NetworkRuntime, a.paths.NetworkDir(n.Name), a.paths.NetworkHosts(n.Name)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return access.WriteFile(a.paths.NetworkJSON(n.Name), b, 0o644, false)
}

// writeService writes the settings of the network's service, and says whether
// they are others than before.
func (a app) writeService(n *config.Network) (changed bool, err error) {
	service := netsetup.Service(n, netsetup.ServiceDir{
		Hosts:  a.paths.NetworkHosts(n.Name),
		Leases: a.paths.NetworkLeases(n.Name),
		Resolv: a.resolvConf(),
	})
	before, err := os.ReadFile(a.paths.NetworkService(n.Name))
	if err == nil && string(before) == service {
		return false, nil
	}
	return true, access.WriteFile(a.paths.NetworkService(n.Name), []byte(service), 0o644, false)
}

// resolvConf is the file with the host's name servers: systemd-resolved's own
// list where there is one, since its stub cannot be asked by others, and would
// tell guests of one network about those of another.
func (a app) resolvConf() string {
	const resolved = "/run/systemd/resolve/resolv.conf"
	if access.IsThere(a.paths.Root + resolved) {
		return a.paths.Root + resolved
	}
	return a.paths.Root + "/etc/resolv.conf"
}

// resolvedTimeout is how long systemd-resolved may take to answer.
const resolvedTimeout = 5 * time.Second

// tellResolved has systemd-resolved, where it runs, ask the network's service
// for the names of its guests, and for no others. It forgets that when the
// bridge goes.
func (a app) tellResolved(ctx context.Context, n *config.Network) {
	if !serves(n) || len(netsetup.Gateways(n)) == 0 {
		return
	}
	if _, err := os.Stat("/run/systemd/resolve/io.systemd.Resolve"); err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, resolvedTimeout)
	defer cancel()
	if err := setNames(ctx, n); err != nil {
		a.warn("the host will not know the guests by name: %v", err)
	}
}

func setNames(ctx context.Context, n *config.Network) error {
	index, err := netsetup.Index(n.Device())
	if err != nil {
		return err
	}
	conn, err := bus.Dial(ctx, false)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.SetLinkNames(ctx, bus.LinkNames{Index: index, Servers: netsetup.Gateways(n), Domain: n.Domain})
}

// networkDown removes what networkUp has made, unless somebody needs it still.
func (a app) networkDown(ctx context.Context) error {
	unlock, err := a.lockNetworks(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	n, err := a.networkInUse(a.vm)
	if errors.Is(err, fs.ErrNotExist) {
		return a.settleRest() // who removed it may have been killed before
	}
	if err != nil {
		return err
	}
	cards, others, err := a.ports(n)
	if err != nil {
		return err
	}
	wanted := a.stopWanted(ctx)
	switch {
	case !wanted && len(cards)+len(others) > 0:
		// Guests go on talking to each other while their DHCP service is started
		// again, or is given up; the next start takes over what is there.
		a.say(5, "the network's service has ended (%s): the network itself stays as it is", cmp.Or(os.Getenv("SERVICE_RESULT"), "success"))
		return a.leaveNetwork(n, "The service has ended, the network itself is up")
	case len(cards) > 0:
		a.warn("machines are plugged in, so the network stays until the last of them ends: %s", strings.Join(cards, ", "))
		return a.leaveNetwork(n, "Stopped, but stays until the last machine ends: "+strings.Join(cards, ", "))
	}
	if err := a.removeNetwork(n); err != nil {
		return err
	}
	if wanted {
		a.notify("STATUS=Down")
	}
	return nil
}

// leaveNetwork notes that a network stays although its unit ends.
func (a app) leaveNetwork(n *config.Network, status string) error {
	a.notify("STATUS=" + status)
	return access.WriteFile(a.paths.NetworkLeft(n.Name), nil, 0o644, false)
}

// removeNetwork removes a network, and the note of it once it is gone.
func (a app) removeNetwork(n *config.Network) error {
	if err := netsetup.Down(netsetup.Network(n)); err != nil {
		return err
	}
	if err := os.RemoveAll(a.paths.NetworkDir(n.Name)); err != nil {
		return err
	}
	return a.settleRest()
}

// settleRest brings the rules of networks that are up, and what is forwarded, into
// line with there being no others.
func (a app) settleRest() error {
	left := a.networksUp()
	if len(left) == 0 && !access.IsThere(a.paths.Forwarding) {
		return nil
	}
	return errors.Join(netsetup.Settle(left), a.forward(false, false, left))
}

// removeLeft removes the networks that only the machine's cards kept.
func (a app) removeLeft(cards []config.NIC) error {
	var errs []error
	for _, nic := range cards {
		if nic.Network == "" || !access.IsThere(a.paths.NetworkLeft(nic.Network)) {
			continue
		}
		a.vm = nic.Network
		errs = append(errs, a.removeUnused())
	}
	return errors.Join(errs...)
}

// removeUnused removes a network whose unit has ended, unless others are
// plugged into it.
func (a app) removeUnused() error {
	unlock, err := a.lockNetworks(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	n, cards, err := a.networkAsIs()
	if err != nil || n == nil || len(cards) > 0 || !access.IsThere(a.paths.NetworkLeft(n.Name)) {
		return err
	}
	return a.removeNetwork(n)
}

// stopWanted says whether a network's unit ends because somebody wants it to,
// and not because its service has ended.
func (a app) stopWanted(ctx context.Context) bool {
	switch os.Getenv("SERVICE_RESULT") {
	case "": // not called by the unit
		return true
	case "success":
	default:
		return false
	}
	return a.hasJob(ctx, config.NetworkUnit(a.vm), "stop", "restart")
}

// networkInUse is the definition that a network is up with.
func (a app) networkInUse(name string) (*config.Network, error) {
	b, err := os.ReadFile(a.paths.NetworkJSON(name))
	if err != nil {
		return nil, err
	}
	n := new(config.Network)
	if err := json.Unmarshal(b, n); err != nil {
		return nil, fmt.Errorf("%s: %w", a.paths.NetworkJSON(name), err)
	}
	return n, nil
}

// forgetNeighbours has nobody take the addresses that the host knows of earlier
// runs for those of this one.
func (a app) forgetNeighbours(m *config.Machine) {
	var macs []config.MAC
	for _, n := range m.NICs {
		macs = append(macs, n.MAC)
	}
	if a.paths.User || len(macs) == 0 {
		return
	}
	if err := netsetup.ForgetNeighbours(macs...); err != nil {
		a.warn("%v", err)
	}
}

// onBridge says whether a card has an interface of ours on the host.
func onBridge(nic config.NIC) bool { return nic.Network != "" || nic.Bridge != "" }

// card is what a card that is to be plugged in needs of the host.
func (a app) card(ctx context.Context, m *config.Machine, nic config.NIC) (netsetup.CardState, error) {
	nic, err := a.inGroups(m, nic)
	if err != nil {
		return netsetup.CardState{}, err
	}
	var n *config.Network
	if nic.Network != "" {
		if n, err = a.networkOf(ctx, m, nic); err != nil {
			return netsetup.CardState{}, err
		}
	}
	return a.cardIn(ctx, m, nic, n)
}

// cardIn is what a card needs of the host, with its addresses in the network,
// which is nil for a card that is in none.
func (a app) cardIn(ctx context.Context, m *config.Machine, nic config.NIC, n *config.Network) (netsetup.CardState, error) {
	if n == nil {
		on, err := onHostBridge(m, nic, nic.Bridge)
		return netsetup.Card(m.Name, nic, nil, netsetup.FixedLease(nic), on), err
	}
	on, err := onHostBridge(m, nic, n.Bridge)
	if err != nil {
		return netsetup.CardState{}, err
	}
	lease, err := netsetup.AddressesOf(a.paths, n.Name).Take(n, m, nic, &neighbours{paths: a.paths, network: n.Name})
	if held, ok := errors.AsType[*netsetup.HeldError](err); ok {
		return netsetup.CardState{}, refuseProblems([]config.Problem{m.Problem(nic.Key()+".address", "%v", held)})
	}
	if err != nil {
		return netsetup.CardState{}, refuseProblems([]config.Problem{m.Problem(nic.Key()+".network", "network %s: %v", n.Name, err)})
	}
	if serves(n) {
		if err := a.tellService(ctx, n); err != nil {
			return netsetup.CardState{}, err
		}
		if err := a.writeNames(n, nic, lease); err != nil {
			return netsetup.CardState{}, err
		}
	}
	card := netsetup.Card(m.Name, nic, n, lease, on)
	// Of an isolated network, too; of others, by interfaces that came since.
	s := netsetup.Network(n)
	if n.Bridge == "" {
		err = a.forward(s.Forward4 || card.Forward4, s.Forward6 || card.Forward6, a.networksUp())
	}
	return card, err
}

// onHostBridge is what a card has to know of the bridge of the host's own that it is
// on, if it is on one: without that, its guest could have the host's addresses.
func onHostBridge(m *config.Machine, nic config.NIC, bridge string) (netsetup.HostBridge, error) {
	if bridge == "" {
		return netsetup.HostBridge{}, nil
	}
	on, err := netsetup.FindHostBridge(bridge)
	if err != nil {
		return on, refuseProblems([]config.Problem{m.Problem(plugKey(nic), "%v", err)})
	}
	return on, nil
}

// neighbours are the other machines with cards in a network, [netsetup.Machines]:
// their definitions are read where a card has no addresses yet.
type neighbours struct {
	paths   config.Paths
	network string
	set     *config.Set
}

func (n *neighbours) Runs(vm, nic string) bool {
	if !access.IsThere(n.paths.RuntimeDir(vm)) {
		return false
	}
	// As one has that is plugged in just now, too.
	if _, err := net.InterfaceByName(netsetup.TapName(vm, nic)); err == nil {
		return true
	}
	m, err := (app{paths: n.paths, vm: vm}).running()
	if err != nil { // it is being prepared, say
		return true
	}
	card, has := m.NIC(nic)
	return has && card.Network == n.network
}

func (n *neighbours) Has(vm, nic string) bool {
	for _, other := range n.definitions() {
		if other.Name != vm {
			continue
		}
		if other.Machine == nil {
			return true
		}
		card, has := other.Machine.NIC(nic)
		return has && card.Network == n.network
	}
	return false
}

func (n *neighbours) Fixed(ip netip.Addr) bool {
	return slices.ContainsFunc(n.definitions(), func(vm config.VM) bool {
		return vm.Machine != nil && slices.ContainsFunc(vm.Machine.NICs, func(nic config.NIC) bool {
			return nic.Network == n.network && nic.Address == ip
		})
	})
}

func (n *neighbours) definitions() []config.VM {
	if n.set == nil {
		n.set, _ = config.Load(n.paths) // with an error, there are none
		if n.set == nil {
			n.set = &config.Set{}
		}
	}
	return n.set.VMs
}

// writeNames tells programs of the host the name of a card's guest.
func (a app) writeNames(n *config.Network, nic config.NIC, lease netsetup.Lease) error {
	if err := makeOpenDir(a.paths.Names); err != nil {
		return err
	}
	return access.WriteFile(a.paths.CardNames(a.vm, nic.Name), []byte(netsetup.NameLines(n, lease, a.vm)), 0o644, false)
}

// removeNames takes that back.
func (a app) removeNames(cards []config.NIC) error {
	var errs []error
	for _, nic := range cards {
		if nic.Network != "" {
			errs = append(errs, removeFile(a.paths.CardNames(a.vm, nic.Name)))
		}
	}
	return errors.Join(errs...)
}

// writeHosts writes what a network's service knows of cards, a file for each that
// has addresses, and removes those of others. It says whether any has changed or
// gone, which the service does not notice by itself. Machines that start at once
// wait for each other, so that none writes what was true before another's.
func (a app) writeHosts(n *config.Network) (changed bool, err error) {
	err = netsetup.AddressesOf(a.paths, n.Name).Hold(func(all map[string]netsetup.Reserved) error {
		changed, err = a.writeHostsOf(n, all)
		return err
	})
	return changed, err
}

func (a app) writeHostsOf(n *config.Network, all map[string]netsetup.Reserved) (changed bool, err error) {
	dir := a.paths.NetworkHosts(n.Name)
	there, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	wanted := map[string]bool{}
	for card := range all {
		wanted[netsetup.TapName(netsetup.SplitCard(card))] = true
	}
	for _, e := range there {
		if !wanted[e.Name()] {
			changed = true
			if err := removeFile(filepath.Join(dir, e.Name())); err != nil {
				return false, err
			}
		}
	}
	for card, has := range all {
		if has.MAC == "" { // noted before that was: the file, if there is one, has it
			continue
		}
		vm, nic := netsetup.SplitCard(card)
		file, line := filepath.Join(dir, netsetup.TapName(vm, nic)), netsetup.HostLine(n, has.MAC, has.Lease, vm)
		before, err := os.ReadFile(file)
		if err == nil && string(before) == line {
			continue
		}
		changed = changed || err == nil
		if err := access.WriteFile(file, []byte(line), 0o644, false); err != nil {
			return false, err
		}
	}
	return changed, nil
}

// tellService tells the service of a network of its cards. It looks for new files by
// itself, but knows what it has read of a file before until it reads all again
// (dnsmasq(8), --dhcp-hostsdir).
func (a app) tellService(ctx context.Context, n *config.Network) error {
	changed, err := a.writeHosts(n)
	if err != nil || !changed {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	conn, err := bus.Dial(ctx, false)
	if err == nil {
		defer conn.Close()
		err = conn.Kill(ctx, config.NetworkUnit(n.Name), bus.Main, int(unix.SIGHUP))
	}
	if err != nil { // it is started again just now, say, and reads them then
		a.warn("have the service of the network %s read %s again: %v", n.Name, a.paths.NetworkHosts(n.Name), err)
	}
	return nil
}

// networkOf is the network of a card, which systemd has started before, or tried
// to: where it is not up the error says why.
func (a app) networkOf(ctx context.Context, m *config.Machine, nic config.NIC) (*config.Network, error) {
	n, err := a.networkInUse(nic.Network)
	left := access.IsThere(a.paths.NetworkLeft(nic.Network))
	if err == nil && !left {
		return n, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	state, why := a.networkState(ctx, nic.Network)
	if left && state != "failed" && state != "inactive" {
		return n, nil // its service is started again
	}
	if state == "inactive" { // what it says is of an earlier time
		why = ""
	}
	unit := strings.TrimSuffix(config.NetworkUnit(nic.Network), ".service")
	return nil, m.Problem(nic.Key()+".network", "the network %s is not up: %s", nic.Network,
		cmp.Or(why, fmt.Sprintf("%s is %s, journalctl -u %[1]s tells more", unit, cmp.Or(state, "not known to systemd"))))
}

// networkState is the state of a network's unit, and what that says of itself;
// both are empty where systemd does not tell.
func (a app) networkState(ctx context.Context, network string) (state, status string) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	conn, err := bus.Dial(ctx, false)
	if err != nil {
		return "", ""
	}
	defer conn.Close()
	// What it cannot tell stays empty.
	p, _ := conn.Properties(ctx, config.NetworkUnit(network))
	return p.ActiveState, p.StatusText
}

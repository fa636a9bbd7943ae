package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/netsetup"
	"github.com/vmctl/vmctl/units/bus"
)

// networkUp makes a network as its definition says, or brings one that is up
// into line with it.
func (a app) networkUp(ctx context.Context) error {
	file, err := a.findNetwork()
	if err != nil {
		return refusal{[]string{err.Error()}}
	}
	if len(file.Problems) > 0 {
		return refuseProblems(file.Problems)
	}
	n := file.Network
	if problems := a.checkNetwork(n); len(problems) > 0 {
		return refuseProblems(problems)
	}
	if err := a.writeNetwork(n); err != nil {
		return err
	}
	if err := netsetup.Up(netsetup.Network(n)); err != nil {
		return err
	}
	a.tellResolved(ctx, n)
	return nil
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
	if n.Bridge == "" && n.DHCP {
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

// writeNetwork writes what the service, and machines that are plugged in, have
// to know.
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
	if err := access.WriteFile(a.paths.NetworkJSON(n.Name), b, 0o644, false); err != nil {
		return err
	}
	if n.Bridge != "" || !n.DHCP {
		return nil
	}
	service := netsetup.Service(n, netsetup.ServiceDir{
		Hosts:  a.paths.NetworkHosts(n.Name),
		Leases: a.paths.NetworkLeases(n.Name),
	}, a.servers(n))
	return access.WriteFile(a.paths.NetworkService(n.Name), []byte(service), 0o644, false)
}

// resolvConf are the files with the host's name servers: systemd-resolved's own
// list first, since its stub cannot be asked for others.
var resolvConf = []string{"/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"}

// servers are the name servers that questions are passed on to.
func (a app) servers(n *config.Network) []netip.Addr {
	var servers []netip.Addr
	for _, s := range n.DNS {
		servers = append(servers, netip.MustParseAddr(s)) // checked by config
	}
	if len(servers) > 0 || n.Isolated {
		return servers
	}
	for _, file := range resolvConf {
		b, err := os.ReadFile(a.paths.Root + file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "nameserver" {
				continue
			}
			if s, err := netip.ParseAddr(fields[1]); err == nil {
				servers = append(servers, s)
			}
		}
		if len(servers) > 0 {
			break
		}
	}
	return servers
}

// resolvedTimeout is how long systemd-resolved may take to answer.
const resolvedTimeout = 5 * time.Second

// tellResolved has systemd-resolved, where it runs, ask the network's service
// for the names of its guests, and for no others. It forgets that when the
// bridge goes.
func (a app) tellResolved(ctx context.Context, n *config.Network) {
	if !n.DHCP || n.Bridge != "" || len(netsetup.Gateways(n)) == 0 {
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

// networkDown removes what networkUp has made.
func (a app) networkDown() error {
	n, err := a.networkInUse(a.vm)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// Guests go on talking to each other while their DHCP service is started
	// again, or is given up; the next start takes over what is there.
	if result := os.Getenv("SERVICE_RESULT"); result != "" && result != "success" {
		a.warn("the network's service has failed (%s): the network itself stays as it is", result)
		return nil
	}
	ports, err := netsetup.Ports(n.Device())
	if err != nil {
		return err
	}
	if machines := slices.DeleteFunc(ports, func(p string) bool { return !strings.HasPrefix(p, netsetup.TapPrefix) }); len(machines) > 0 {
		a.warn("machines are still plugged in, so the network stays until the next stop: %s", strings.Join(machines, ", "))
		return nil
	}
	return errors.Join(netsetup.Down(netsetup.Network(n)), os.RemoveAll(a.paths.NetworkDir(n.Name)))
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

// plugIn makes the interfaces of the machine's cards on the host, and hands them
// to systemd for run.
func (a app) plugIn(m *config.Machine) error {
	a.forgetNeighbours(m)
	for _, nic := range m.NICs {
		if nic.Network == "" && nic.Bridge == "" {
			continue
		}
		card, err := a.card(m, nic)
		if err != nil {
			return err
		}
		// What the last run has left would keep the name taken.
		if err := dropFiles(queueName(nic.Name)); err != nil {
			return err
		}
		queues, err := netsetup.Plug(card)
		if err != nil {
			return refuseProblems([]config.Problem{m.Problem(nic.Key(), "%v", err)})
		}
		err = storeFiles(queueName(nic.Name), queues)
		for _, q := range queues {
			q.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
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

// card is what a card needs of the host, with its addresses in the network.
func (a app) card(m *config.Machine, nic config.NIC) (netsetup.CardState, error) {
	if nic.Network == "" {
		return netsetup.Card(m.Name, nic, nil, netsetup.Lease{}), nil
	}
	n, err := a.networkInUse(nic.Network)
	if err != nil {
		return netsetup.CardState{}, fmt.Errorf("%s: the network is not up: %w", nic.Key(), err)
	}
	lease, err := netsetup.Addresses{File: a.paths.NetworkAddresses(n.Name)}.Take(n, m.Name, nic)
	if err != nil {
		return netsetup.CardState{}, refuseProblems([]config.Problem{m.Problem(nic.Key()+".network", "network %s: %v", n.Name, err)})
	}
	if n.Bridge == "" && n.DHCP {
		file := filepath.Join(a.paths.NetworkHosts(n.Name), netsetup.TapName(m.Name, nic.Name))
		line := netsetup.HostLine(nic.MAC, lease, a.vm)
		if err := access.WriteFile(file, []byte(line), 0o644, false); err != nil {
			return netsetup.CardState{}, err
		}
		if err := a.writeNames(n, nic, lease); err != nil {
			return netsetup.CardState{}, err
		}
	}
	return netsetup.Card(m.Name, nic, n, lease), nil
}

// writeNames tells programs of the host the name of a card's guest.
func (a app) writeNames(n *config.Network, nic config.NIC, lease netsetup.Lease) error {
	if err := os.MkdirAll(a.paths.Names, 0o755); err != nil {
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

// unplug removes what is left of a machine's cards on the host once their queues
// are closed.
func unplug(vm string, cards []config.NIC) error {
	var errs []error
	for _, nic := range cards {
		if nic.Network != "" || nic.Bridge != "" {
			errs = append(errs, netsetup.Unplug(vm, nic.Name))
		}
	}
	return errors.Join(errs...)
}

// queueName is the name under which systemd keeps the queues of a card.
func queueName(card string) string { return "queue-" + card }

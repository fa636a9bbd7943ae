package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
)

// crossCheck finds what is wrong between machines. defined are the names of
// all definitions, with those that are masked or broken: to name one of them
// is no mistake.
func crossCheck(p Paths, set *Set, defined []string) {
	c := crossChecker{paths: p, set: set, user: p.User, at: map[string]int{}, defined: map[string]bool{}, started: map[string]*Machine{}, problems: map[int][]Problem{}}
	c.disks()
	for _, name := range defined {
		c.defined[name] = true
	}
	for i, vm := range set.VMs {
		c.at[vm.Name] = i
	}
	c.names()
	c.unique()
	c.plugs()
	c.loops()
	for i := range set.VMs {
		SortProblems(set.VMs[i].Warnings)
	}
	for i, problems := range c.problems {
		vm := &set.VMs[i]
		vm.Machine, vm.Problems = nil, append(vm.Problems, problems...)
		SortProblems(vm.Problems)
	}
}

type crossChecker struct {
	paths    Paths
	set      *Set
	user     bool
	at       map[string]int // index of each machine by name
	defined  map[string]bool
	started  map[string]*Machine // of those that were looked for, nil for one that does not run
	problems map[int][]Problem
}

func (c *crossChecker) add(vm int, p Problem) {
	// What has not even the form of a name has been told already.
	if slices.ContainsFunc(c.set.VMs[vm].Problems, func(q Problem) bool { return q.Key == p.Key || strings.HasPrefix(p.Key, q.Key+"[") }) {
		return
	}
	c.problems[vm] = append(c.problems[vm], p)
}

func (c *crossChecker) warn(vm int, p Problem) {
	c.set.VMs[vm].Warnings = append(c.set.VMs[vm].Warnings, p)
}

// names finds machines, networks and security groups that are named and do not
// exist, also where a machine has other problems. systemd starts a machine
// without those that it only wants.
func (c *crossChecker) names() {
	for i, vm := range c.set.VMs {
		m := cmp.Or(vm.Machine, vm.broken)
		if m == nil {
			continue
		}
		for _, key := range needKeys {
			for k, name := range m.needs(key) {
				if c.defined[name] {
					continue
				}
				p := m.origin.problem(key, index(key, k), "want a machine that is defined, got "+show(name)+c.meantMachine(name))
				if key == "wants" {
					p.Text = "no machine is named " + show(name) + c.meantMachine(name)
					c.warn(i, p)
				} else {
					c.add(i, p)
				}
			}
		}
		for _, n := range m.NICs {
			c.network(i, m, n)
			c.securityGroups(i, m, n)
		}
	}
}

// meantMachine asks whether another machine is meant by a name that none has.
func (c *crossChecker) meantMachine(name string) string {
	return didYouMean(name, slices.Sorted(maps.Keys(c.defined)))
}

// securityGroups finds groups of a card that cannot be had.
func (c *crossChecker) securityGroups(i int, m *Machine, n NIC) {
	for k, name := range n.SecurityGroups {
		at, known := slices.BinarySearchFunc(c.set.Groups, name, func(f SecurityGroupFile, name string) int { return strings.Compare(f.Name, name) })
		var file SecurityGroupFile
		if known {
			file = c.set.Groups[at]
		}
		text := file.missing(!known, name)
		if !known {
			text += didYouMean(name, c.groupNames())
		}
		if text != "" {
			c.add(i, m.Problem(index(n.Key()+".security_groups", k), "%s", text))
		}
	}
}

func (c *crossChecker) groupNames() []string {
	var names []string
	for _, g := range c.set.Groups {
		names = append(names, g.Name)
	}
	return names
}

// network checks a card against its network, as far as that is known.
func (c *crossChecker) network(i int, m *Machine, n NIC) {
	if n.Network == "" || c.user {
		return // no hypervisor plugs a user's own machine into one
	}
	k, known := slices.BinarySearchFunc(c.set.Networks, n.Network, func(f NetworkFile, name string) int { return strings.Compare(f.Name, name) })
	if !known {
		c.add(i, m.Problem(n.Key()+".network", "want a network that is defined, got %s%s", show(n.Network), didYouMean(n.Network, networkNames(c.set.Networks))))
		return
	}
	network := c.set.Networks[k].Network
	if network == nil {
		c.warn(i, m.Problem(n.Key()+".network", "the network %s cannot be started: %s", n.Network, c.set.Networks[k].Problems[0]))
		return
	}
	if c.set.VMs[i].Machine == nil {
		return // what could be read of it may not be what is meant
	}
	c.forwards(i, n, network)
	// Of a bridge of the host's own, what it is when the card is plugged in counts.
	if network.Bridge == "" && n.MTU > network.MTU {
		c.add(i, m.Problem(n.Key()+".mtu", "want at most %d, the mtu of the network %s, got %d", network.MTU, network.Name, n.MTU))
	}
	if network.Bridge == "" && n.VLAN != 0 {
		c.add(i, m.Problem(n.Key()+".vlan", "want none in the network %s, which has a bridge of its own that keeps no VLANs apart: name a network on a bridge of the host that does, got %d", network.Name, n.VLAN))
	}
	if !n.Address.IsValid() || network.Bridge != "" {
		return
	}
	if a := n.Address; !network.Prefix4().Contains(a) && !network.Prefix6().Contains(a) {
		c.add(i, m.Problem(n.Key()+".address", "want an address of the network %s (%s), got %s", network.Name,
			strings.Join(slices.DeleteFunc([]string{network.Subnet, network.Subnet6}, func(s string) bool { return s == "" }), ", "), a))
	} else if a == network.Gateway || a == network.Gateway6() {
		c.add(i, m.Problem(n.Key()+".address", "want an address of its own, got %s, which is the host's", a))
	} else if p := network.Prefix4(); p.IsValid() && p.Bits() < 31 && (a == p.Masked().Addr() || a == broadcast(p)) {
		c.add(i, m.Problem(n.Key()+".address", "want an address of its own, got %s, which is the network's own or for all in it", a))
	}
}

// forwards finds ports of the host that cannot be given to a guest in a network.
func (c *crossChecker) forwards(i int, n NIC, network *Network) {
	m := c.set.VMs[i].Machine
	for k, f := range n.Forward {
		key := index(n.Key()+".forward", k)
		switch {
		case network.Bridge != "":
			c.add(i, m.Problem(key, "want none in the network %s: on a bridge of the host the guest is reached by its own address", network.Name))
		case !network.DHCP && !n.Address.IsValid():
			c.add(i, m.Problem(key, "want the guest's address beside it (%s.address), which the network %s, with dhcp = false, does not give out", n.Key(), network.Name))
		case !f.IsProxied() && f.onLoopback6():
			// No interface but lo takes a packet from ::1; there is no route_localnet for IPv6.
			c.add(i, m.Problem(key, "want 127.0.0.1 or another address of the host, or tcp, got %s, which the kernel forwards to no network", show(f.String())))
		}
	}
}

// single is what no two machines can have.
type single struct {
	machine *Machine
	vm      int // its place in the set
	key     string
	what    string // "an address", "a UUID", "a number"; "" for a port of the host
	value   string // as the definition has it

	Forward // of a port
}

const anID = "an id" // in the API

// singles are a machine's.
func (m *Machine) singles() []single {
	all := make([]single, 0, len(m.NICs)+3)
	add := func(s single) {
		s.machine = m
		all = append(all, s)
	}
	for _, n := range m.NICs {
		add(single{key: n.Key() + ".mac", what: "an address", value: string(n.MAC)})
		switch {
		case !n.Address.IsValid():
		case n.Network != "":
			add(single{key: n.Key() + ".address", what: "an address in the network " + n.Network, value: n.Address.String()})
		case n.VLAN != 0:
			add(single{key: n.Key() + ".address", what: fmt.Sprintf("an address on the bridge %s in the VLAN %d", n.Bridge, n.VLAN), value: n.Address.String()})
		default:
			add(single{key: n.Key() + ".address", what: "an address on the bridge " + n.Bridge, value: n.Address.String()})
		}
		for k, f := range n.Forward {
			add(single{key: index(n.Key()+".forward", k), value: f.String(), Forward: f})
		}
	}
	add(single{key: "uuid", what: "a UUID", value: string(m.UUID)})
	add(single{key: "api.id", what: anID, value: m.ID()})
	if m.Vsock.Enabled != "false" {
		add(single{key: "vsock.cid", what: "a number", value: strconv.FormatUint(uint64(m.Vsock.CID), 10)})
	}
	if a := m.Display.Address; a != "" {
		host, p, err := net.SplitHostPort(a)
		if err != nil {
			panic(err) // its form was checked
		}
		n, _ := port(p)
		add(single{key: "display.address", value: a, Forward: Forward{Address: host, HostPort: n, Protocol: TCP}})
	}
	return all
}

// singleGroup is the same for all that may be alike.
type singleGroup struct {
	what, value string
	port        int
}

func (s single) group() singleGroup {
	if s.what != "" {
		return singleGroup{what: s.what, value: s.value}
	}
	return singleGroup{value: s.Protocol, port: s.HostPort}
}

// alike says whether only one of s and o can be had, which are of different
// machines or of one.
func (s single) alike(o single) bool {
	switch {
	case s.group() != o.group():
		return false
	case s.what == anID:
		return s.machine.API.ID != "" // else it is derived, and nothing to blame it for
	case s.what != "":
		return true
	case s.machine == o.machine && s.key != "display.address" && o.key != "display.address":
		return false // the forwards of one machine are compared when it is read
	}
	return s.overlaps(o.Forward)
}

// beside is the problem that s cannot be had, as there is o.
func (s single) beside(o single) Problem {
	switch s.what {
	case "":
		return s.machine.Problem(s.key, "want a port of the host of its own, got %s beside that of machine %s (%s)", show(s.value), o.machine.Name, o.machine.Problem(o.key, "%s", show(o.value)))
	case "a number":
		return s.machine.Problem(s.key, "want a number of its own, got %s as machine %s has", s.value, o.machine.Name)
	}
	return s.machine.Problem(s.key, "want %s of its own, got %s as machine %s has", s.what, show(s.value), o.machine.Name)
}

// Claims is m without what others may have, too: as much of it as [Machine.Beside]
// looks at.
func (m *Machine) Claims() *Machine {
	c := &Machine{Name: m.Name, UUID: m.UUID, Vsock: Vsock{Enabled: m.Vsock.Enabled, CID: m.Vsock.CID}, API: API{ID: m.API.ID}, Display: Display{Address: m.Display.Address}}
	for _, n := range m.NICs {
		c.NICs = append(c.NICs, NIC{Name: n.Name, Network: n.Network, Bridge: n.Bridge, VLAN: n.VLAN, MAC: n.MAC, Address: n.Address, Forward: n.Forward})
	}
	return c
}

// Beside is what m cannot have while other runs: addresses, numbers and ports of
// the host.
func (m *Machine) Beside(other *Machine) []Problem {
	var problems []Problem
	for _, s := range m.singles() {
		for _, o := range other.singles() {
			if s.alike(o) {
				problems = append(problems, s.beside(o))
				break
			}
		}
	}
	return problems
}

// unique finds what two machines must not share, or one not have twice. The one
// that has had it for less long is blamed.
func (c *crossChecker) unique() {
	groups := map[singleGroup][]single{}
	for i, vm := range c.set.VMs {
		if vm.Machine == nil {
			continue
		}
		for _, s := range vm.Machine.singles() {
			s.vm = i
			groups[s.group()] = append(groups[s.group()], s)
		}
	}
	for _, group := range groups {
		if len(group) == 1 {
			continue
		}
		slices.SortStableFunc(group, c.older)
		for i, s := range group {
			if first := slices.IndexFunc(group[:i], s.alike); first >= 0 {
				c.add(s.vm, s.beside(group[first]))
			}
		}
	}
}

// older compares by who has had something for longer: a machine that was started
// with it and runs, then that of the older files. Where neither is known to be, the
// first by name is.
func (c *crossChecker) older(a, b single) int {
	running := func(s single) int {
		if m := c.startedAs(s.machine.Name); m != nil && slices.ContainsFunc(m.singles(), s.alike) {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(running(a), running(b)),
		c.set.VMs[a.vm].changed.Compare(c.set.VMs[b.vm].changed),
		cmp.Compare(a.vm, b.vm),
	)
}

// startedAs is a machine that runs as it was started, nil where it does not run.
// What is read there may be forged by the machine's own user, who can have it lose
// or win against the machines with which its definition clashes.
func (c *crossChecker) startedAs(vm string) *Machine {
	if m, known := c.started[vm]; known {
		return m
	}
	var record struct {
		Machine *Machine `json:"machine"`
	}
	data, err := readFile(c.paths.VMJSON(vm))
	if err != nil || json.Unmarshal(data, &record) != nil {
		record.Machine = nil
	}
	if m := record.Machine; m != nil && m.Display.Address != "" {
		if _, _, err := net.SplitHostPort(m.Display.Address); err != nil {
			record.Machine = nil
		}
	}
	c.started[vm] = record.Machine
	return record.Machine
}

// disks finds files and block devices that two machines cannot have at the
// same time. They may well be meant to run one after the other.
func (c *crossChecker) disks() {
	first := map[string]map[use]string{} // the machine that has a path first, by how it uses it
	for i, vm := range c.set.VMs {
		if vm.Machine == nil {
			continue
		}
		for _, d := range vm.Machine.Disks {
			if d.Path == "" {
				continue
			}
			if other := rival(first[d.Path], d.use(), vm.Name); other != "" {
				c.warn(i, vm.Machine.Problem(d.Key()+".path", "machine %s has %s too, and only one of the two can run at a time", other, show(d.Path)))
			}
			if first[d.Path] == nil {
				first[d.Path] = map[use]string{}
			}
			if first[d.Path][d.use()] == "" {
				first[d.Path][d.use()] = vm.Name
			}
		}
	}
}

// plugs finds what cards of two machines cannot be plugged into at the same
// time. They may well be meant to run one after the other.
func (c *crossChecker) plugs() {
	type plug struct{ key, value string }
	first := map[plug]string{}
	for i, vm := range c.set.VMs {
		if vm.Machine == nil {
			continue
		}
		for _, n := range vm.Machine.NICs {
			key, value := n.plugAlone()
			if key == "" {
				continue
			}
			switch other := first[plug{key, value}]; other {
			case "":
				first[plug{key, value}] = vm.Name
			case vm.Name:
			default:
				c.warn(i, vm.Machine.Problem(n.Key()+"."+key, "machine %s is plugged into %s too, and only one of the two can run at a time", other, show(value)))
			}
		}
	}
}

// rival is the first by name of the machines whose use of a disk keeps another
// machine from its own, "" for none.
func rival(first map[use]string, own use, machine string) string {
	found := ""
	for u, name := range first {
		if name != machine && u.excludes(own) && (found == "" || name < found) {
			found = name
		}
	}
	return found
}

// loops finds machines that would have to start before themselves. requires
// counts as after: a machine waits for those that it requires.
func (c *crossChecker) loops() {
	for _, group := range c.circles() {
		for _, i := range group {
			m := c.set.VMs[i].Machine
			loop := c.loop(i, group)
			key := "after"
			if !slices.Contains(m.After, loop[1]) {
				key = "requires"
			}
			c.add(i, m.origin.problem(key, index(key, slices.Index(m.needs(key), loop[1])), "want no loop, got "+arrows(loop)))
		}
	}
}

// arrows writes a loop, a long one shortened.
func arrows(loop []string) string {
	const most = 10
	if len(loop) > most {
		loop = append(append(slices.Clone(loop[:most-2]), "…"), loop[len(loop)-1])
	}
	return strings.Join(loop, " → ")
}

// next are the machines that machine i waits for.
func (c *crossChecker) next(i int) []int {
	m := c.set.VMs[i].Machine
	if m == nil {
		return nil
	}
	var out []int
	for _, name := range slices.Concat(m.After, m.Requires) {
		if k, ok := c.at[name]; ok && name != m.Name {
			out = append(out, k)
		}
	}
	return out
}

// loop returns the names of a shortest way from machine i to itself, all of it
// within its group.
func (c *crossChecker) loop(i int, group []int) []string {
	from := map[int]int{}
	for queue := []int{i}; len(queue) > 0; queue = queue[1:] {
		for _, k := range c.next(queue[0]) {
			if k == i {
				way := []string{c.set.VMs[i].Name}
				for at := queue[0]; at != i; at = from[at] {
					way = append(way, c.set.VMs[at].Name)
				}
				way = append(way, c.set.VMs[i].Name)
				slices.Reverse(way)
				return way
			}
			if _, seen := from[k]; !seen {
				if _, in := slices.BinarySearch(group, k); in {
					from[k] = queue[0]
					queue = append(queue, k)
				}
			}
		}
	}
	panic("no loop in a strongly connected group")
}

// circles returns the groups of machines of which each waits for each (the
// strongly connected components, by Tarjan's algorithm), sorted.
func (c *crossChecker) circles() [][]int {
	t := tarjan{next: c.next, number: make([]int, len(c.set.VMs)), low: make([]int, len(c.set.VMs)), on: make([]bool, len(c.set.VMs))}
	for i := range c.set.VMs {
		if t.number[i] == 0 {
			t.visit(i)
		}
	}
	return t.groups
}

type tarjan struct {
	next   func(int) []int
	number []int // order of the visits from 1; 0: not visited
	low    []int
	on     []bool // on the stack
	stack  []int
	count  int
	groups [][]int
}

func (t *tarjan) visit(i int) {
	t.count++
	t.number[i], t.low[i], t.on[i] = t.count, t.count, true
	t.stack = append(t.stack, i)
	for _, k := range t.next(i) {
		if t.number[k] == 0 {
			t.visit(k)
			t.low[i] = min(t.low[i], t.low[k])
		} else if t.on[k] {
			t.low[i] = min(t.low[i], t.number[k])
		}
	}
	if t.low[i] != t.number[i] {
		return
	}
	at := slices.Index(t.stack, i)
	group := slices.Clone(t.stack[at:])
	t.stack = t.stack[:at]
	for _, k := range group {
		t.on[k] = false
	}
	if len(group) > 1 {
		slices.Sort(group)
		t.groups = append(t.groups, group)
	}
}

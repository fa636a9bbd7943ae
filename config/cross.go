package config

import (
	"net"
	"slices"
	"strings"
)

// crossCheck finds what is wrong between machines. defined are the names of
// all definitions, with those that are masked or broken: to name one of them
// is no mistake. user says that they are a user's own.
func crossCheck(set *Set, defined []string, user bool) {
	c := crossChecker{set: set, user: user, at: map[string]int{}, defined: map[string]bool{}, problems: map[int][]Problem{}}
	c.disks()
	for _, name := range defined {
		c.defined[name] = true
	}
	for i, vm := range set.VMs {
		c.at[vm.Name] = i
	}
	c.names()
	c.unique()
	c.hostPorts()
	c.plugs()
	c.loops()
	for i := range set.VMs {
		SortProblems(set.VMs[i].Warnings)
	}
	for i, problems := range c.problems {
		vm := &set.VMs[i]
		vm.Machine, vm.Problems = nil, problems
		SortProblems(vm.Problems)
	}
}

type crossChecker struct {
	set      *Set
	user     bool
	at       map[string]int // index of each machine by name
	defined  map[string]bool
	problems map[int][]Problem
}

func (c *crossChecker) add(vm int, p Problem) { c.problems[vm] = append(c.problems[vm], p) }

func (c *crossChecker) warn(vm int, p Problem) {
	c.set.VMs[vm].Warnings = append(c.set.VMs[vm].Warnings, p)
}

// names finds machines and networks that are named and do not exist. systemd
// starts a machine without those that it only wants.
func (c *crossChecker) names() {
	for i, vm := range c.set.VMs {
		if vm.Machine == nil {
			continue
		}
		m := vm.Machine
		for _, key := range needKeys {
			for k, name := range m.needs(key) {
				if c.defined[name] {
					continue
				}
				p := m.origin.problem(key, index(key, k), "want a machine that is defined, got "+show(name))
				if key == "wants" {
					p.Text = "no machine is named " + show(name)
					c.warn(i, p)
				} else {
					c.add(i, p)
				}
			}
		}
		for _, n := range m.NICs {
			c.network(i, n)
			c.securityGroups(i, n)
		}
	}
}

// securityGroups finds groups of a card that cannot be had.
func (c *crossChecker) securityGroups(i int, n NIC) {
	for k, name := range n.SecurityGroups {
		at, known := slices.BinarySearchFunc(c.set.Groups, name, func(f SecurityGroupFile, name string) int { return strings.Compare(f.Name, name) })
		var file SecurityGroupFile
		if known {
			file = c.set.Groups[at]
		}
		if text := file.missing(!known, name); text != "" {
			c.add(i, c.set.VMs[i].Machine.Problem(index(n.Key()+".security_groups", k), "%s", text))
		}
	}
}

// network checks a card against its network, as far as that is known.
func (c *crossChecker) network(i int, n NIC) {
	if n.Network == "" || c.user {
		return // no hypervisor plugs a user's own machine into one
	}
	m := c.set.VMs[i].Machine
	k, known := slices.BinarySearchFunc(c.set.Networks, n.Network, func(f NetworkFile, name string) int { return strings.Compare(f.Name, name) })
	if !known {
		c.add(i, m.Problem(n.Key()+".network", "want a network that is defined, got %s", show(n.Network)))
		return
	}
	network := c.set.Networks[k].Network
	if network == nil {
		return
	}
	c.forwards(i, n, network)
	if !n.Address.IsValid() {
		return
	}
	if a := n.Address; !network.Prefix4().Contains(a) && !network.Prefix6().Contains(a) {
		c.add(i, m.Problem(n.Key()+".address", "want an address of the network %s (%s), got %s", network.Name,
			strings.Join(slices.DeleteFunc([]string{network.Subnet, network.Subnet6}, func(s string) bool { return s == "" }), ", "), a))
	} else if a == network.Gateway || a == network.Gateway6() {
		c.add(i, m.Problem(n.Key()+".address", "want an address of its own, got %s, which is the host's", a))
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
		case f.Address == "::1":
			// No interface but lo takes a packet from ::1; there is no route_localnet for IPv6.
			c.add(i, m.Problem(key, "want 127.0.0.1 or another address of the host, got %s, which the kernel forwards to no network", show(f.String())))
		}
	}
}

// unique finds what two machines must not share. The later by name is blamed.
func (c *crossChecker) unique() {
	macs, uuids, cids, ids := map[MAC]string{}, map[UUID]string{}, map[uint32]string{}, map[string]string{}
	for i, vm := range c.set.VMs {
		if vm.Machine == nil {
			continue
		}
		m := vm.Machine
		for _, n := range m.NICs {
			if first, twice := macs[n.MAC]; twice {
				c.add(i, m.Problem(n.Key()+".mac", "want an address of its own, got %s as machine %s has", show(string(n.MAC)), first))
			} else {
				macs[n.MAC] = m.Name
			}
		}
		if first, twice := uuids[m.UUID]; twice {
			c.add(i, m.Problem("uuid", "want a UUID of its own, got %s as machine %s has", show(string(m.UUID)), first))
		} else {
			uuids[m.UUID] = m.Name
		}
		if first, twice := ids[m.ID()]; !twice {
			ids[m.ID()] = m.Name
		} else if m.API.ID != "" {
			c.add(i, m.Problem("api.id", "want an id of its own, got %s as machine %s has", show(m.API.ID), first))
		}
		if first, twice := cids[m.Vsock.CID]; m.Vsock.Enabled == "false" {
			continue
		} else if twice {
			c.add(i, m.Problem("vsock.cid", "want a number of its own, got %d as machine %s has", m.Vsock.CID, first))
		} else {
			cids[m.Vsock.CID] = m.Name
		}
	}
}

// claim is a port of the host that a machine has.
type claim struct {
	Forward
	machine *Machine
	key     string
	text    string // as the definition has it
}

// claims are the ports of the host that are forwarded to a guest, or that a
// display listens on.
func (m *Machine) claims() []claim {
	var all []claim
	for _, n := range m.NICs {
		for k, f := range n.Forward {
			all = append(all, claim{f, m, index(n.Key()+".forward", k), f.String()})
		}
	}
	if a := m.Display.Address; a != "" {
		host, p, err := net.SplitHostPort(a)
		if err != nil {
			panic(err) // its form was checked
		}
		n, _ := port(p)
		all = append(all, claim{Forward{Address: host, HostPort: n, Protocol: "tcp"}, m, "display.address", a})
	}
	return all
}

// hostPorts finds ports of the host that are given to two machines, or twice to
// one. The later by name is blamed.
func (c *crossChecker) hostPorts() {
	type port struct {
		number   int
		protocol string
	}
	given := map[port][]claim{}
	for i, vm := range c.set.VMs {
		if vm.Machine == nil {
			continue
		}
		for _, own := range vm.Machine.claims() {
			at := port{own.HostPort, own.Protocol}
			first := slices.IndexFunc(given[at], func(g claim) bool {
				// The forwards of one machine are compared when it is read.
				return (g.machine != own.machine || own.key == "display.address") && g.overlaps(own.Forward)
			})
			if first >= 0 {
				g := given[at][first]
				c.add(i, own.machine.Problem(own.key, "want a port of the host of its own, got %s beside that of machine %s (%s)", show(own.text), g.machine.Name, g.machine.Problem(g.key, "%s", show(g.text))))
			}
			given[at] = append(given[at], own)
		}
	}
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

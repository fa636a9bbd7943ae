package config

import (
	"slices"
	"strings"
)

// ReadDraft merges files to one definition that says all that they do, in the
// order of [Machine.Files], and names no template nor parameters of one. name is
// that of the machine.
func ReadDraft(name string, files []string) (*Draft, []Problem) {
	var sources []*source
	for _, f := range files {
		sources = append(sources, readSource(f, len(sources) > 0))
	}
	d := NewDraft()
	merged := layered(sources)
	if slices.ContainsFunc(sources, (*source).isPattern) {
		merged = merged.filledWith(argumentsIn(name, sources))
	}
	d.tree = merged.tree
	d.Remove("template")
	return d, merged.problems
}

// Devices are the names of the devices of one kind, "disk" or "nic", in the
// order of the file.
func (d *Draft) Devices(kind string) []string {
	if table, ok := d.tree.node(kind).(*tree); ok {
		return slices.Clone(table.keys)
	}
	return nil
}

// Remove takes a dotted key out, or a table with all that is in it. It is no
// error where there is none.
func (d *Draft) Remove(key string) { d.tree = d.tree.without(strings.Split(key, ".")) }

// without is a tree without what is at a path.
func (t *tree) without(path []string) *tree {
	out := newTree(len(t.keys))
	for i, key := range t.keys {
		sub, table := t.nodes[i].(*tree)
		switch {
		case key != path[0]:
			out.set(key, t.nodes[i])
		case len(path) > 1 && table:
			out.set(key, sub.without(path[1:]))
		case len(path) > 1:
			out.set(key, t.nodes[i])
		}
	}
	return out
}

// Rename makes the definition another machine's: what belongs to one machine
// alone is derived anew from its name.
func (d *Draft) Rename() {
	for _, key := range []string{"uuid", "autostart", "vsock.cid", "cloud_init.hostname"} {
		d.Remove(key)
	}
	for _, nic := range d.Devices("nic") {
		d.Remove("nic." + nic + ".mac")
		d.Remove("nic." + nic + ".address")
	}
}

// argumentsIn are the values of parameters in files that are known to be right.
func argumentsIn(machine string, sources []*source) map[string]any {
	values := map[string]any{machineName: machine}
	all := parametersOf(sources)
	for i, name := range all.keys {
		values[name] = all.nodes[i].(*tree).node("default")
	}
	return values
}

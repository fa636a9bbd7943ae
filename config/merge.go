package config

import (
	"maps"
	"slices"

	"github.com/BurntSushi/toml"
)

// tree is a TOML table that keeps the order in which its keys first appear. A
// node is a *tree, or a value as the TOML library gives it. Trees are not
// changed once they are made, so that many machines can share them.
type tree struct {
	keys  []string
	nodes map[string]any
}

func (t *tree) set(key string, node any) {
	if _, there := t.nodes[key]; !there {
		t.keys = append(t.keys, key)
	}
	t.nodes[key] = node
}

// has says whether the tree has a value or table at path.
func (t *tree) has(path ...string) bool {
	_, ok := t.get(path...)
	return ok
}

func (t *tree) get(path ...string) (any, bool) {
	var node any = t
	for _, key := range path {
		table, ok := node.(*tree)
		if !ok {
			return nil, false
		}
		if node, ok = table.nodes[key]; !ok {
			return nil, false
		}
	}
	return node, true
}

func newTree(size int) *tree { return &tree{nodes: make(map[string]any, size)} }

// ordered makes a tree of a decoded document, whose keys it was given in the
// order of the document. lost is a key that the document does not have: the
// library takes "a.b = 1" and then "a = {}", which TOML forbids.
func ordered(doc map[string]any, keys []toml.Key) (root *tree, lost toml.Key) {
	root = newTree(len(doc))
	for _, key := range keys {
		t, table := root, doc
		for i, part := range key {
			value, ok := table[part]
			if !ok {
				return root, key
			}
			sub, ok := value.(map[string]any)
			if !ok {
				if t.set(part, value); i < len(key)-1 && !isList(value) {
					return root, key
				}
				break // lists are taken whole
			}
			next, ok := t.nodes[part].(*tree)
			if !ok {
				next = newTree(len(sub))
				t.set(part, next)
			}
			t, table = next, sub
		}
	}
	root.complete(doc)
	return root, nil
}

func isList(v any) bool {
	switch v.(type) {
	case []any, []map[string]any:
		return true
	}
	return false
}

// complete adds what doc has and the list of keys did not, so that nothing of
// a definition can go unseen.
func (t *tree) complete(doc map[string]any) {
	if len(t.nodes) < len(doc) {
		for _, key := range slices.Sorted(maps.Keys(doc)) {
			if _, there := t.nodes[key]; there {
				continue
			}
			if _, table := doc[key].(map[string]any); table {
				t.set(key, newTree(0))
			} else {
				t.set(key, doc[key])
			}
		}
	}
	for key, node := range t.nodes {
		if sub, ok := node.(*tree); ok {
			sub.complete(doc[key].(map[string]any))
		}
	}
}

// merged returns what over says where it says something, else what under says.
// Tables merge key by key; everything else replaces.
func merged(under, over *tree) *tree {
	switch {
	case len(under.keys) == 0:
		return over
	case len(over.keys) == 0:
		return under
	}
	out := &tree{keys: slices.Clone(under.keys), nodes: maps.Clone(under.nodes)}
	for _, key := range over.keys {
		node := over.nodes[key]
		above, ok1 := node.(*tree)
		below, ok2 := out.nodes[key].(*tree)
		if ok1 && ok2 {
			node = merged(below, above)
		}
		out.set(key, node)
	}
	return out
}

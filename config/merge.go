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
	nodes []any          // of the keys
	at    map[string]int // index of each key; nil while there are few
}

// few keys are found sooner by looking through them than in a map.
const few = 16

func (t *tree) index(key string) int {
	if t.at == nil {
		return slices.Index(t.keys, key)
	}
	if i, ok := t.at[key]; ok {
		return i
	}
	return -1
}

// node returns what stands at a key, nil where there is none.
func (t *tree) node(key string) any {
	if i := t.index(key); i >= 0 {
		return t.nodes[i]
	}
	return nil
}

func (t *tree) set(key string, node any) {
	if i := t.index(key); i >= 0 {
		t.nodes[i] = node
		return
	}
	t.keys, t.nodes = append(t.keys, key), append(t.nodes, node)
	switch n := len(t.keys); {
	case n == few:
		t.at = make(map[string]int, 2*few)
		for i, key := range t.keys {
			t.at[key] = i
		}
	case n > few:
		t.at[key] = n - 1
	}
}

// has says whether the tree has a value or table at path.
func (t *tree) has(path ...string) bool { return t.get(path...) != nil }

// get is the value or table at path, nil for none.
func (t *tree) get(path ...string) any {
	var node any = t
	for _, key := range path {
		table, ok := node.(*tree)
		if !ok {
			return nil
		}
		node = table.node(key)
	}
	return node
}

func newTree(size int) *tree {
	return &tree{keys: make([]string, 0, size), nodes: make([]any, 0, size)}
}

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
			next, ok := t.node(part).(*tree)
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
			if t.node(key) != nil {
				continue
			}
			if _, table := doc[key].(map[string]any); table {
				t.set(key, newTree(0))
			} else {
				t.set(key, doc[key])
			}
		}
	}
	for i, node := range t.nodes {
		if sub, ok := node.(*tree); ok {
			sub.complete(doc[t.keys[i]].(map[string]any))
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
	out := &tree{keys: slices.Clone(under.keys), nodes: slices.Clone(under.nodes), at: maps.Clone(under.at)}
	for i, key := range over.keys {
		node := over.nodes[i]
		above, ok1 := node.(*tree)
		below, ok2 := out.node(key).(*tree)
		if ok1 && ok2 {
			node = merged(below, above)
		}
		out.set(key, node)
	}
	return out
}

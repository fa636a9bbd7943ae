package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Draft is a definition that is being written, key by key. It has what was
// set and nothing else.
type Draft struct {
	schema *table
	tree   *tree
}

// NewDraft returns a definition that says nothing yet.
func NewDraft() *Draft {
	return &Draft{schema: schemaOf(reflect.TypeFor[Machine]()), tree: newTree(0)}
}

// NewNetworkDraft is [NewDraft] for a network.
func NewNetworkDraft() *Draft {
	return &Draft{schema: schemaOf(reflect.TypeFor[Network]()), tree: newTree(0)}
}

// Set sets a dotted key from a text as it is typed on a command line: strings
// without quotes, "2" for a number, "true" for a boolean. A list gets one more
// element each time, or is set as a whole by one in TOML's notation ("[…]"). The
// error is what a definition with that value would be refused with.
func (d *Draft) Set(key, text string) error {
	p, err := d.find(key)
	if err != nil {
		return err
	}
	if !utf8.ValidString(text) {
		return errors.New("want UTF-8, got other bytes")
	}
	t := d.table(p.path)
	last := p.path[len(p.path)-1]
	if p.field == nil { // whatever the text says
		switch before := t.node(last).(type) {
		case string:
			if p.several {
				t.set(last, []any{before, text})
				return nil
			}
		case []any:
			t.set(last, append(before[:len(before):len(before)], text))
			return nil
		}
		t.set(last, text)
		return nil
	}
	value, err := p.field.typed(text)
	if err != nil {
		return err
	}
	if p.field.typ.Kind() != reflect.Slice {
		t.set(last, value)
		return nil
	}
	if list, whole := value.([]any); whole {
		t.set(last, list)
		return nil
	}
	before, _ := t.node(last).([]any)
	t.set(last, append(before[:len(before):len(before)], value))
	return nil
}

// Has says whether a key has been set.
func (d *Draft) Has(key string) bool {
	p, err := d.find(key)
	return err == nil && d.tree.has(p.path...)
}

// Give sets the value of a template's parameter from a text as it is typed on a
// command line. A list gets one more element each time.
func (d *Draft) Give(p Parameter, text string) error {
	v, err := p.Typed(text)
	if err != nil {
		return err
	}
	t := d.table([]string{parametersKey, p.Name})
	if list, is := v.of.([]any); is {
		before, _ := t.node(p.Name).([]any)
		v.of = append(before[:len(before):len(before)], list...)
	}
	t.set(p.Name, v.of)
	return nil
}

// Literal has what was set mean itself, also beside values of parameters, where
// ${…} would be one of them.
func (d *Draft) Literal() {
	if d.tree.node(parametersKey) == nil {
		return
	}
	for i, key := range d.tree.keys {
		if key != parametersKey {
			d.tree.nodes[i] = literal(d.tree.nodes[i])
		}
	}
}

func literal(node any) any {
	switch node := node.(type) {
	case *tree:
		for i := range node.nodes {
			node.nodes[i] = literal(node.nodes[i])
		}
	case string:
		return strings.ReplaceAll(node, "${", "$${")
	case []any:
		var out []any
		for _, element := range node {
			out = append(out, literal(element))
		}
		return out
	}
	return node
}

// Unset takes back a dotted key, and the tables that have nothing in them then. It
// says whether the draft had it. The error is that of [Draft.Set] for a key that the
// schema does not know.
func (d *Draft) Unset(key string) (had bool, err error) {
	p, err := d.find(key)
	if err != nil || !d.tree.has(p.path...) {
		return false, err
	}
	d.tree = d.tree.without(p.path)
	for path := p.path[:len(p.path)-1]; len(path) > 0; path = path[:len(path)-1] {
		if len(d.table(append(slices.Clone(path), "")).keys) > 0 {
			break
		}
		d.tree = d.tree.without(path)
	}
	return true, nil
}

// Add sees to it that a table is there, if with nothing in it: "nic.lan",
// "cloud_init".
func (d *Draft) Add(key string) { d.table(append(strings.Split(key, "."), "")) }

// table is the table that the last part of a path is in.
func (d *Draft) table(path []string) *tree {
	t := d.tree
	for _, part := range path[:len(path)-1] {
		sub, ok := t.node(part).(*tree)
		if !ok {
			sub = newTree(0)
			t.set(part, sub)
		}
		t = sub
	}
	return t
}

// setPlace is where a key goes. field is nil where people choose the key's
// name, and its value is passed on.
type setPlace struct {
	path    []string
	field   *field
	several bool // without a field: each time is one more, as for systemd
}

// find finds a dotted key in the schema.
func (d *Draft) find(key string) (setPlace, error) {
	s, parts := d.schema, strings.Split(key, ".")
	for i := 0; i < len(parts); i++ {
		f := s.byKey[parts[i]]
		rest := parts[i+1:]
		switch {
		case f == nil:
			return setPlace{}, errors.New(unknown(s, parts[i]))
		case kindOf(f.typ).name: // a name that may have dots
			name := strings.Join(rest, ".")
			if name == "" {
				return setPlace{}, fmt.Errorf("want %s.NAME, got %s alone", key, key)
			}
			return setPlace{path: []string{f.key, name}, several: f.typ == reflect.TypeFor[[]Setting]()}, nil
		case f.named && len(rest) < 2:
			return setPlace{}, fmt.Errorf("want %s.NAME.KEY, got %s", f.key, key)
		case f.named:
			if want := wantName(rest[0]); want != "" {
				return setPlace{}, fmt.Errorf("want %s, got %s", want, show(rest[0]))
			}
			s, i = f.sub, i+1
		case f.sub != nil && len(rest) == 0:
			return setPlace{}, fmt.Errorf("want a key of the table, such as %s.%s, got the table", key, f.sub.fields[0].key)
		case f.sub != nil:
			s = f.sub
		case len(rest) > 0:
			return setPlace{}, fmt.Errorf("want %s, which is no table, got %s", strings.Join(parts[:i+1], "."), key)
		default:
			return setPlace{path: parts, field: f}, nil
		}
	}
	panic("no key") // Split returns at least one part
}

// typed makes the TOML value of a field, or one element of a list, of what was
// typed.
func (f *field) typed(text string) (any, error) {
	typ := f.typ
	if typ.Kind() == reflect.Slice {
		if strings.HasPrefix(text, "[") && !strings.HasPrefix(text, "[::") {
			return f.whole(text)
		}
		typ = typ.Elem()
	}
	value := f.literalOf(typ, text)
	if want := f.set(reflect.New(typ).Elem(), value); want != "" {
		if f.secret {
			return nil, fmt.Errorf("want %s, got another (not shown)", want)
		}
		return nil, fmt.Errorf("want %s, got %s", want, show(value))
	}
	return value, nil
}

// whole reads a list in TOML's notation.
func (f *field) whole(text string) (any, error) {
	var doc map[string]any
	_, err := decodeTOML("list = "+text+"\n", &doc)
	list, ok := doc["list"].([]any)
	if err != nil || !ok || len(doc) != 1 {
		return nil, fmt.Errorf("want a list such as [\"one\", \"two\"], got %s", show(text))
	}
	for _, value := range list {
		if want := f.set(reflect.New(f.typ.Elem()).Elem(), value); want != "" {
			return nil, fmt.Errorf("want %s, got %s", want, show(value))
		}
	}
	return list, nil
}

// literalOf is the TOML value that a text is meant to be.
func (f *field) literalOf(typ reflect.Type, text string) any {
	b, boolErr := strconv.ParseBool(text)
	isBool := boolErr == nil && (text == "true" || text == "false")
	n, intErr := strconv.ParseInt(text, 10, 64)
	switch typ {
	case reflect.TypeFor[Hugepages]():
		if isBool {
			return b
		}
		return text
	case reflect.TypeFor[Duration]():
		if intErr == nil {
			return n
		}
		return text
	case reflect.TypeFor[Size]():
		return text
	}
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	switch typ.Kind() {
	case reflect.Bool:
		if isBool {
			return b
		}
	case reflect.String:
		if isBool && f.has(text) {
			return b
		}
	case reflect.Int, reflect.Int64, reflect.Uint32:
		if intErr == nil {
			return n
		}
	}
	return text
}

// Try loads a definition as if its text were in file already, with its drop-ins
// and together with all others: what is wrong with it stands in it, also what
// would be wrong with others because of it.
func Try(p Paths, file, text string) VM {
	l := newLoader(p)
	l.draft = &source{file: file, tree: newTree(0), masked: text == "", changed: newest}
	if !l.draft.masked {
		l.draft.parse(text)
	}
	name := l.draft.name()
	if want := wantName(name); want != "" {
		return VM{Name: name, File: file, Problems: []Problem{badName(file, want)}}
	}
	if l.draft.masked {
		return VM{Name: name, File: file, Problems: []Problem{{File: file, Text: "want a definition, got an empty file"}}}
	}
	with, names := l.all()
	without := &Set{Networks: with.Networks}
	for _, vm := range with.VMs {
		if vm.Name != name {
			without.VMs = append(without.VMs, vm)
		}
	}
	crossCheck(p, without, names)
	crossCheck(p, with, names)
	var tried VM
	var others []Problem
	sound := map[string]bool{}
	for _, vm := range without.VMs {
		sound[vm.Name] = len(vm.Problems) == 0
	}
	for _, vm := range with.VMs {
		switch {
		case vm.Name == name:
			tried = vm
		case sound[vm.Name]:
			others = append(others, vm.Problems...)
		}
	}
	if len(others) > 0 {
		tried.Machine, tried.Problems = nil, append(tried.Problems, others...)
	}
	return tried
}

// name is that of the machine whose definition the file is.
func (s *source) name() string { return strings.TrimSuffix(filepath.Base(s.file), suffix) }

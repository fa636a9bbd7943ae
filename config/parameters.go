package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Parameter is what a template leaves to those who use it: [parameters.NAME] in
// the template, or NAME = DEFAULT in its [parameters]. The tags are those of
// [Machine].
type Parameter struct {
	Name string `toml:"-" json:"name"`

	Type        string `toml:"type" json:"type" enum:"string|integer|boolean|list" doc:"what a value has to be; default: what the default is, else a string"`
	Default     Value  `toml:"default" json:"default,omitzero" doc:"what holds where a machine does not say; without a default each has to"`
	Description string `toml:"description" json:"description,omitempty" doc:"one line for people"`
}

// Argument is the value of a parameter, as a machine has it.
type Argument struct {
	Name  string
	Value Value
}

// Value is that of a parameter: a string, an integer, a boolean, or a list of
// them. The zero value is none.
type Value struct{ of any }

const wantValue = "a string, an integer, true, false or a list of them"

// parse takes a TOML value.
func (v *Value) parse(value any) string {
	if list, ok := value.([]any); ok {
		for _, element := range list {
			if parameterType(element) == "" || parameterType(element) == "list" {
				return wantValue
			}
		}
	} else if parameterType(value) == "" {
		return wantValue
	}
	v.of = value
	return ""
}

// IsZero says whether there is no value.
func (v Value) IsZero() bool { return v.of == nil }

// String writes the value in TOML's notation.
func (v Value) String() string {
	if v.IsZero() {
		return ""
	}
	return quoteValue(v.of)
}

// MarshalJSON writes the value itself.
func (v Value) MarshalJSON() ([]byte, error) { return json.Marshal(v.of) }

// parameterType is the type of a TOML value as templates call it, "" for one that no
// parameter has.
func parameterType(value any) string {
	switch value.(type) {
	case string:
		return "string"
	case int64:
		return "integer"
	case bool:
		return "boolean"
	case []any:
		return "list"
	}
	return ""
}

// Typed is the value that a text means that was typed on a command line: an
// integer or boolean where the parameter is one, and a list of one element, or a
// whole one in TOML's notation ("[…]").
func (p Parameter) Typed(text string) (Value, error) {
	var value any = text
	switch n, err := strconv.ParseInt(text, 10, 64); {
	case p.Type == "integer" && err == nil:
		value = n
	case p.Type == "boolean" && (text == "true" || text == "false"):
		value = text == "true"
	case p.Type == "list" && strings.HasPrefix(text, "["):
		var doc map[string]any
		if _, err := decodeTOML("list = "+text+"\n", &doc); err != nil || len(doc) != 1 {
			return Value{}, fmt.Errorf("want a list such as [\"one\", \"two\"], got %s", show(text))
		}
		value = doc["list"]
	case p.Type == "list":
		value = []any{text}
	}
	var v Value
	if want := cmp.Or(v.parse(value), p.wants(v)); want != "" {
		return Value{}, fmt.Errorf("want %s, got %s", want, show(value))
	}
	return v, nil
}

// wants is what a value should be, "" where it is that.
func (p Parameter) wants(v Value) string {
	if parameterType(v.of) == p.Type {
		return ""
	}
	return map[string]string{"string": "a string", "integer": "an integer", "boolean": "true or false", "list": "a list"}[p.Type]
}

// parametersKey is the table in which templates name their parameters, and
// machines give them values.
const parametersKey = "parameters"

// machineName is the parameter that every template has: whose machine it is.
const machineName = "name"

func wantParameter(name string) string {
	switch {
	case name == machineName:
		return "another name: ${name} is the name of the machine"
	case name == "" || len(name) > maxName || name[0] < 'a' || name[0] > 'z' ||
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "":
		return "a name of a-z, 0-9, hyphens and underscores that begins with a letter"
	}
	return ""
}

// isPattern says whether ${…} means something in a file: in those that have a
// table of parameters, and no others, since guests' scripts are full of it.
func (s *source) isPattern() bool { return s.tree.node(parametersKey) != nil }

// hasTable says whether a file has a table in a table.
func (s *source) hasTable(table, name string) bool {
	t, _ := s.tree.node(table).(*tree)
	if t == nil {
		return false
	}
	_, is := t.node(name).(*tree)
	return is
}

// parametersOf merges the tables of parameters of files, each parameter a table;
// one that has a value only is one with that default.
func parametersOf(sources []*source) *tree {
	all := newTree(0)
	for _, s := range sources {
		given, _ := s.tree.node(parametersKey).(*tree)
		if given == nil {
			continue
		}
		own := newTree(len(given.keys))
		for i, name := range given.keys {
			node := given.nodes[i]
			if _, table := node.(*tree); !table {
				value := newTree(1)
				value.set("default", node)
				node = value
			}
			own.set(name, node)
		}
		all = merged(all, own)
	}
	return all
}

// decodeParameters reads what parametersOf has merged.
func decodeParameters(d *decoder, t *tree) []Parameter {
	schema := schemaOf(reflect.TypeFor[Parameter]())
	var out []Parameter
	d.enter(parametersKey)
	defer d.leave()
	for i, name := range t.keys {
		p := Parameter{Name: name}
		before := len(d.wrong)
		d.enter(name)
		if want := wantParameter(name); want != "" {
			d.want(want, name)
		}
		d.table(schema, t.nodes[i].(*tree), reflect.ValueOf(&p).Elem())
		switch {
		case len(d.wrong) > before:
		case p.Default.IsZero():
			p.Type = cmp.Or(p.Type, "string")
		case p.Type == "":
			p.Type = parameterType(p.Default.of)
		case p.wants(p.Default) != "":
			d.want(p.wants(p.Default), p.Default.of)
		}
		d.leave()
		out = append(out, p)
	}
	return out
}

// withParameters puts the values of parameters where the files say ${…}. own are
// those of the machine itself, above the templates that it is made of.
func (l layers) withParameters(machine string, own int) (layers, []Argument) {
	if !slices.ContainsFunc(l.sources, (*source).isPattern) {
		return l, nil
	}
	first := len(l.sources) - own
	var d decoder
	for _, s := range l.sources {
		if _, table := s.tree.node(parametersKey).(*tree); s.isPattern() && !table {
			d.mistakeAt(parametersKey, parametersKey, "want a table, got "+show(s.tree.node(parametersKey)))
		}
	}
	declared, all := parametersOf(l.sources[:first]), parametersOf(l.sources)
	known := newTree(0) // of what has no place here, nothing else is told
	for i, name := range all.keys {
		key := join(parametersKey, name)
		switch {
		case declared.node(name) == nil:
			d.mistakeAt(key, key, l.unknownParameter(declared, name))
		case slices.ContainsFunc(l.sources[first:], func(s *source) bool { return s.hasTable(parametersKey, name) }):
			d.mistakeAt(key, key, "want a value, got a table, as templates alone have it")
		default:
			known.set(name, all.nodes[i])
		}
	}
	var arguments []Argument
	values := map[string]any{machineName: machine}
	for _, p := range decodeParameters(&d, known) {
		key := join(parametersKey, p.Name)
		if p.Default.IsZero() && !d.bad[key] && !slices.ContainsFunc(d.wrong, func(m mistake) bool { return strings.HasPrefix(m.key, key+".") }) {
			text := "want a value, which the template has no default for, got none"
			if p.Description != "" {
				text += " (" + p.Description + ")"
			}
			d.mistakeAt(key, "template", text)
		}
		values[p.Name] = p.Default.of
		arguments = append(arguments, Argument{p.Name, p.Default})
	}
	l.problems = append(l.problems, d.problems(l.origin)...)
	if len(l.problems) > 0 {
		l.tree = l.tree.without([]string{parametersKey})
		return l, nil
	}
	return l.filledWith(values), arguments
}

// unknownParameter is the message for one that no template has.
func (l layers) unknownParameter(declared *tree, name string) string {
	if l.tree.node("template") == nil {
		return "want a template with it (template = …), got none"
	}
	if len(declared.keys) == 0 {
		return fmt.Sprintf("want none: the template %v has no parameters", show(l.tree.node("template")))
	}
	if meant := didYouMean(name, declared.keys); meant != "" {
		return "unknown parameter" + meant
	}
	return "unknown parameter, the template has " + strings.Join(declared.keys, ", ")
}

// filledWith merges the files with values in place of ${…}.
func (l layers) filledWith(values map[string]any) layers {
	l.tree, l.filled = newTree(0), map[string][]string{}
	for _, s := range l.sources {
		t := s.tree
		for key := range l.filled {
			if t.has(strings.Split(key, ".")...) {
				delete(l.filled, key)
			}
		}
		if s.isPattern() {
			f := filling{values: values, filled: l.filled}
			t = f.table(t.without([]string{parametersKey}))
			l.problems = append(l.problems, f.decoder.problems(origin{sources: []*source{s}})...)
		}
		l.tree = merged(l.tree, t)
	}
	return l
}

// filling puts values into the tree of one file.
type filling struct {
	decoder
	values map[string]any
	filled map[string][]string // the parameters that were used, by key
}

func (f *filling) table(t *tree) *tree {
	out := newTree(len(t.keys))
	for i, key := range t.keys {
		f.enter(key)
		out.set(key, f.node(t.nodes[i]))
		f.leave()
	}
	return out
}

func (f *filling) node(node any) any {
	switch node := node.(type) {
	case *tree:
		return f.table(node)
	case string:
		return f.text(node)
	case []any:
		var out []any
		for _, element := range node {
			// A list in a list is its elements.
			if value := f.node(element); parameterType(value) == "list" && parameterType(element) == "string" {
				out = append(out, value.([]any)...)
			} else {
				out = append(out, value)
			}
		}
		return out
	}
	return node
}

// text replaces ${NAME} by the value of that parameter, and $${ by ${. What is
// nothing but one parameter becomes a value of its type. Values are not looked
// into again.
func (f *filling) text(s string) any {
	if !strings.Contains(s, "${") {
		return s
	}
	var b strings.Builder
	for rest := s; ; {
		before, after, found := strings.Cut(rest, "${")
		if escaped, is := strings.CutSuffix(before, "$"); found && is {
			b.WriteString(escaped + "${")
			rest = after
			continue
		}
		b.WriteString(before)
		if !found {
			return b.String()
		}
		name, after, closed := strings.Cut(after, "}")
		value, known := f.values[name]
		switch {
		case !closed, !known:
			got := show(name)
			if wantParameter(name) != "" { // a part of a script, in which a password may be
				got = "something else (not shown)"
			}
			f.mistake("", "want the name of a parameter in ${…} (and $${ for a plain ${), got "+got)
			return s
		case s == "${"+name+"}":
			f.note(name)
			return value
		case parameterType(value) == "list":
			f.mistake("", fmt.Sprintf("want ${%s} alone, since it is a list, got it in a text", name))
			return s
		}
		f.note(name)
		fmt.Fprint(&b, value)
		rest = after
	}
}

// note keeps in mind that a parameter was used for the value at hand.
func (f *filling) note(name string) {
	key := strings.Join(f.path, ".")
	if name != machineName && !slices.Contains(f.filled[key], name) {
		f.filled[key] = append(f.filled[key], name)
	}
}

// used tells where the parameters of a key got their values.
func (o origin) used(key string) string {
	key, _, _ = strings.Cut(key, "[")
	text := ""
	for _, name := range o.filled[key] {
		at := Problem{Key: join(parametersKey, name)}
		at.File, at.Line = o.locate(at.Key)
		text += ", by " + at.Error()
	}
	return text
}

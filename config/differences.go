package config

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Difference is a key whose value is not the same in two machines. The values
// are in TOML's notation, "" where a machine has none.
type Difference struct {
	Key  string `json:"key"`
	From string `json:"from"`
	To   string `json:"to"`
}

// Device is the key of the disk, card or other device that has the key: "nic.lan" of
// "nic.lan.rate_in".
func (d Difference) Device() string {
	kind, rest, _ := strings.Cut(d.Key, ".")
	name, _, _ := strings.Cut(rest, ".")
	return join(kind, name)
}

// Differences are the keys that two machines differ in, in the order of the
// schema. A device that only one of them has is one difference, its value what is
// not by default. Secrets are not compared.
func Differences(from, to *Machine) []Difference {
	c := comparison{}
	c.tables(schemaOf(reflect.TypeFor[Machine]()), "", reflect.ValueOf(*from.Redacted()), reflect.ValueOf(*to.Redacted()))
	return c.found
}

// NetworkDifferences is [Differences] for networks.
func NetworkDifferences(from, to *Network) []Difference {
	c := comparison{}
	c.tables(schemaOf(reflect.TypeFor[Network]()), "", reflect.ValueOf(*from), reflect.ValueOf(*to))
	return c.found
}

// SecurityGroupDifferences is [Differences] for security groups.
func SecurityGroupDifferences(from, to *SecurityGroup) []Difference {
	c := comparison{}
	c.tables(schemaOf(reflect.TypeFor[SecurityGroup]()), "", reflect.ValueOf(*from), reflect.ValueOf(*to))
	return c.found
}

// comparison collects differences.
type comparison struct{ found []Difference }

func (c *comparison) tables(s *table, header string, from, to reflect.Value) {
	for _, f := range s.fields {
		key, a, b := join(header, quoteKey(f.key)), from.Field(f.index), to.Field(f.index)
		switch {
		case f.secret, from.Type().Field(f.index).Tag.Get("json") == "-": // not in a record
		case f.named:
			c.devices(f, key, a, b)
		case f.sub != nil:
			c.tables(f.sub, key, a, b)
		default:
			c.values(key, f.form, a, b)
		}
	}
}

// devices compares the named tables of one kind.
func (c *comparison) devices(f field, kind string, from, to reflect.Value) {
	named := func(list reflect.Value, name string) (reflect.Value, bool) {
		for i := range list.Len() {
			if list.Index(i).Field(f.name).String() == name {
				return list.Index(i), true
			}
		}
		return f.sub.zero, false
	}
	var names []string
	for _, list := range []reflect.Value{from, to} {
		for i := range list.Len() {
			if name := list.Index(i).Field(f.name).String(); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	for _, name := range names {
		key := join(kind, quoteKey(name))
		a, inFrom := named(from, name)
		b, inTo := named(to, name)
		if inFrom != inTo {
			c.found = append(c.found, Difference{key, f.inline(a, inFrom), f.inline(b, inTo)})
			continue
		}
		c.tables(f.sub, key, a, b)
	}
}

// inline writes a named table on one line, "" for one that is not there.
func (f field) inline(v reflect.Value, there bool) string {
	if !there {
		return ""
	}
	c := comparison{}
	c.tables(f.sub, "", f.sub.zero, v)
	parts := make([]string, len(c.found))
	for i, d := range c.found {
		parts[i] = d.Key + " = " + d.To
	}
	return "{ " + strings.Join(parts, ", ") + " }"
}

func (c *comparison) values(key, form string, from, to reflect.Value) {
	if a, b := valueText(form, from), valueText(form, to); a != b {
		c.found = append(c.found, Difference{key, a, b})
	}
}

// valueText writes a value of a key of a form in TOML's notation, "" where it is
// empty.
func valueText(form string, v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return ""
		}
		return valueText(form, v.Elem())
	case reflect.Slice:
		if v.Len() == 0 {
			return ""
		}
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = valueText(form, v.Index(i))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	switch value := v.Interface().(type) {
	case fmt.Stringer:
		if v.IsZero() {
			return ""
		}
		return quoteLine(value.String())
	case Rule:
		return quoteLine(value.Text(form == "rule_in"))
	case Setting:
		return value.Name + " = " + quoteLine(value.Value)
	case Credential:
		return quoteLine(value.Name + ": " + cmp.Or(value.File, value.Value.String()))
	}
	if v.Kind() == reflect.String {
		if v.Len() == 0 {
			return ""
		}
		return quoteLine(v.String())
	}
	return fmt.Sprint(v.Interface())
}

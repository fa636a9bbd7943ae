package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// table is what the struct tags say of one table (see [Machine]).
type table struct {
	fields []field // in the order of the struct
	byKey  map[string]*field
	zero   reflect.Value // the struct with every default filled in
}

// field is what the tags say of one key.
type field struct {
	key      string
	doc      string
	enum     []string
	fallback string // the default in TOML's notation
	min, max *int64
	form     string
	integer  bool
	secret   bool

	index int
	typ   reflect.Type
	sub   *table // of a table, or of each of several named ones
	named bool
	name  int // index of the field with the name of a named one
}

// schemaOf reads the tags of a struct. A wrong tag is a mistake in this
// package and panics.
func schemaOf(t reflect.Type) *table {
	s := &table{byKey: map[string]*field{}, zero: reflect.New(t).Elem()}
	s.fields = make([]field, 0, t.NumField())
	for i := range t.NumField() {
		sf := t.Field(i)
		key := sf.Tag.Get("toml")
		if key == "" || key == "-" {
			continue
		}
		s.fields = append(s.fields, field{
			key:      key,
			doc:      sf.Tag.Get("doc"),
			fallback: sf.Tag.Get("default"),
			form:     sf.Tag.Get("form"),
			integer:  sf.Tag.Get("integer") == "true",
			secret:   sf.Tag.Get("secret") == "true",
			index:    i,
			typ:      sf.Type,
		})
		f := &s.fields[len(s.fields)-1]
		if enum := sf.Tag.Get("enum"); enum != "" {
			f.enum = strings.Split(enum, "|")
		}
		f.min, f.max = f.bound(sf.Tag.Get("min")), f.bound(sf.Tag.Get("max"))
		f.nest(s.zero.Field(i))
		f.fill(s.zero.Field(i))
	}
	for i := range s.fields {
		s.byKey[s.fields[i].key] = &s.fields[i]
	}
	return s
}

// nest reads the tags of the tables below.
func (f *field) nest(v reflect.Value) {
	_, leaf := v.Addr().Interface().(parser)
	switch {
	case leaf, f.typ.PkgPath() != reflect.TypeFor[Machine]().PkgPath() && f.typ.Kind() != reflect.Slice:
	case f.typ.Kind() == reflect.Struct:
		f.sub = schemaOf(f.typ)
		v.Set(f.sub.zero)
	case f.typ.Kind() == reflect.Slice && f.typ.Elem().Kind() == reflect.Struct:
		if name, ok := f.typ.Elem().FieldByName("Name"); ok && name.Tag.Get("toml") == "-" {
			f.sub, f.named, f.name = schemaOf(f.typ.Elem()), true, name.Index[0]
		}
	}
}

// fill sets the default.
func (f *field) fill(v reflect.Value) {
	if f.fallback == "" {
		return
	}
	if want := f.set(v, f.literal()); want != "" {
		panic(fmt.Sprintf("default of %s: want %s, got %s", f.key, want, f.fallback))
	}
}

// literal reads the default: a string, an integer, true or false. It is not
// left to the TOML library, which would take longer for all of them than for
// the definition.
func (f *field) literal() any {
	if s, err := strconv.Unquote(f.fallback); err == nil {
		return s
	}
	if n, err := strconv.ParseInt(f.fallback, 10, 64); err == nil {
		return n
	}
	b, err := strconv.ParseBool(f.fallback)
	if err != nil {
		panic(fmt.Sprintf("default of %s: %s", f.key, f.fallback))
	}
	return b
}

// bound reads a min or max tag.
func (f *field) bound(tag string) *int64 {
	if tag == "" {
		return nil
	}
	if n, err := strconv.ParseInt(tag, 10, 64); err == nil {
		return &n
	}
	size, want := parseSize(tag)
	if want != "" {
		panic(fmt.Sprintf("bound of %s: want %s, got %s", f.key, want, tag))
	}
	return new(int64(size))
}

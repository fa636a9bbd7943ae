package config

import (
	"net/netip"
	"reflect"
	"strconv"
	"strings"
)

// KeyDoc says what one key of a definition is, for manual pages.
type KeyDoc struct {
	Key     string   `json:"key"`  // dotted; "NAME" stands for the name of a device
	Type    string   `json:"type"` // in words
	Doc     string   `json:"doc"`
	Default string   `json:"default,omitempty"` // in TOML's notation
	Min     string   `json:"min,omitempty"`     // the same, without quotes
	Max     string   `json:"max,omitempty"`
	Enum    []string `json:"enum,omitempty"`
	Secret  bool     `json:"secret,omitempty"`
}

// Keys returns every key of a definition, in the order of [Machine].
func Keys() []KeyDoc { return keysOf(schemaOf(reflect.TypeFor[Machine]()), "") }

// NetworkKeys returns every key of a network.
func NetworkKeys() []KeyDoc { return keysOf(schemaOf(reflect.TypeFor[Network]()), "") }

// SecurityGroupKeys returns every key of a security group.
func SecurityGroupKeys() []KeyDoc { return keysOf(schemaOf(reflect.TypeFor[SecurityGroup]()), "") }

// ParameterKeys returns every key of a parameter of a template.
func ParameterKeys() []KeyDoc { return keysOf(schemaOf(reflect.TypeFor[Parameter]()), "") }

// SettingsKeys returns every key of the host's settings.
func SettingsKeys() []KeyDoc { return keysOf(schemaOf(reflect.TypeFor[Settings]()), "") }

// ImageKeys returns every key of an image in images.toml.
func ImageKeys() []KeyDoc { return keysOf(schemaOf(reflect.TypeFor[ImageSource]()), "") }

func keysOf(s *table, above string) []KeyDoc {
	var out []KeyDoc
	for _, f := range s.fields {
		key := join(above, f.key)
		kind := kindOf(f.typ)
		switch {
		case f.named:
			out = append(out, keysOf(f.sub, key+".NAME")...)
			continue
		case f.sub != nil:
			out = append(out, keysOf(f.sub, key)...)
			continue
		case kind.name:
			key += ".NAME"
		}
		out = append(out, KeyDoc{key, kind.words, f.doc, f.fallback, f.boundText(f.min), f.boundText(f.max), f.enum, f.secret})
	}
	return out
}

// boundText writes a bound of the field in the notation of its values, "" where
// there is none.
func (f *field) boundText(bound *int64) string {
	switch {
	case bound == nil:
		return ""
	case f.typ == reflect.TypeFor[Size]():
		return Size(*bound).String()
	}
	return strconv.FormatInt(*bound, 10)
}

// kind is how the values of a type are written in TOML.
type kind struct {
	words  string
	schema map[string]any // JSON Schema
	name   bool           // the keys below are names that people choose
}

func kindOf(t reflect.Type) kind {
	text := func(words, pattern string) kind {
		return kind{words: words, schema: map[string]any{"type": "string", "pattern": pattern}}
	}
	plain := func(words, typ string) kind {
		return kind{words: words, schema: map[string]any{"type": typ}}
	}
	switch t {
	case reflect.TypeFor[Size]():
		return text("size", `^[0-9]+(\.[0-9]+)?(B|[KMGT](iB)?)$`)
	case reflect.TypeFor[Duration]():
		return kind{words: "span of time", schema: map[string]any{"type": []string{"string", "integer"}}}
	case reflect.TypeFor[MAC]():
		return text("Ethernet address", `^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$`)
	case reflect.TypeFor[UUID]():
		return text("UUID", `^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)
	case reflect.TypeFor[Hugepages]():
		return kind{words: "boolean or size", schema: map[string]any{"enum": []any{true, false, "2M", "2MiB", "1G", "1GiB"}}}
	case reflect.TypeFor[Forward]():
		return text("forward", `^((([0-9.]+|\[[0-9A-Fa-f:.]+\]):)?[0-9]+:[0-9]+(/(tcp|udp))?)$`)
	case reflect.TypeFor[Rule]():
		return text("rule", `^(any|icmp|(tcp|udp|sctp)(/[0-9]+(-[0-9]+)?)?)( (from|to) [0-9A-Fa-f:.]+(/[0-9]+)?)?$`)
	case reflect.TypeFor[netip.Addr]():
		return text("IP address", `^[0-9A-Fa-f:.]+$`)
	case reflect.TypeFor[Text]():
		return plain("text or path", "string")
	case reflect.TypeFor[[]Setting]():
		return kind{words: "string, boolean, integer or a list of them", schema: map[string]any{"type": "object"}, name: true}
	case reflect.TypeFor[[]Argument]():
		return kind{words: "string, boolean, integer or a list of them", schema: argumentSchema(), name: true}
	case reflect.TypeFor[Value]():
		return kind{words: "string, boolean, integer or a list of them", schema: valueSchema()}
	case reflect.TypeFor[[]Credential]():
		return kind{words: "string or { file }", schema: credentialSchema(), name: true}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return kindOf(t.Elem())
	case reflect.Slice:
		of := kindOf(t.Elem())
		return kind{words: "list: " + of.words, schema: map[string]any{"type": "array", "items": of.schema}}
	case reflect.Bool:
		return plain("boolean", "boolean")
	case reflect.String:
		return plain("string", "string")
	}
	return plain("integer", "integer")
}

const namePattern = `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`

func credentialSchema() map[string]any {
	return map[string]any{
		"type":          "object",
		"propertyNames": map[string]any{"pattern": `^[A-Za-z0-9._-]{1,128}$`},
		"additionalProperties": map[string]any{
			"writeOnly": true,
			"oneOf": []any{
				map[string]any{"type": "string"},
				map[string]any{
					"type":                 "object",
					"properties":           map[string]any{"file": map[string]any{"type": "string", "pattern": "^/"}},
					"required":             []string{"file"},
					"additionalProperties": false,
				},
			},
		},
	}
}

// argumentSchema is the schema of a machine's [parameters].
func argumentSchema() map[string]any {
	return map[string]any{
		"type":                 "object",
		"propertyNames":        map[string]any{"pattern": `^[a-z][a-z0-9_-]{0,62}$`},
		"additionalProperties": valueSchema(),
	}
}

func valueSchema() map[string]any {
	one := map[string]any{"type": []string{"string", "boolean", "integer"}}
	return map[string]any{"oneOf": []any{one, map[string]any{"type": "array", "items": one}}}
}

// settingSchema is the schema of [unit] and [service], in which the settings
// that are refused are false.
func settingSchema(section string) map[string]any {
	one := map[string]any{"type": []string{"string", "boolean", "integer"}}
	never := map[string]any{}
	for _, r := range refusals {
		for _, name := range strings.Fields(r.names) {
			if r.section == section {
				never[name] = false
			}
		}
	}
	return map[string]any{
		"type":                 "object",
		"propertyNames":        map[string]any{"pattern": `^[A-Za-z][A-Za-z0-9]*$`},
		"properties":           never,
		"additionalProperties": map[string]any{"oneOf": []any{one, map[string]any{"type": "array", "items": one}}},
	}
}

// Schema returns the JSON Schema of a definition, ready to be marshalled. It is
// made from the same tags as the loader, which checks more than a schema can
// say.
func Schema() map[string]any {
	return documentSchema(reflect.TypeFor[Machine](), "vmctl definition of a machine")
}

// NetworkSchema is [Schema] for a network.
func NetworkSchema() map[string]any {
	return documentSchema(reflect.TypeFor[Network](), "vmctl definition of a network")
}

// SecurityGroupSchema is [Schema] for a security group.
func SecurityGroupSchema() map[string]any {
	return documentSchema(reflect.TypeFor[SecurityGroup](), "vmctl definition of a security group")
}

func documentSchema(t reflect.Type, title string) map[string]any {
	s := tableSchema(schemaOf(t))
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = title
	return s
}

func tableSchema(t *table) map[string]any {
	properties := map[string]any{}
	for i := range t.fields {
		f := &t.fields[i]
		p := f.schema()
		p["description"] = f.doc
		properties[f.key] = p
	}
	return map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
}

func (f *field) schema() map[string]any {
	switch {
	case f.named:
		return map[string]any{
			"type":                 "object",
			"propertyNames":        map[string]any{"pattern": namePattern},
			"additionalProperties": tableSchema(f.sub),
		}
	case f.sub != nil:
		return tableSchema(f.sub)
	case f.typ == reflect.TypeFor[[]Setting]():
		return settingSchema(f.key)
	}
	s := kindOf(f.typ).schema
	if f.enum != nil {
		s = map[string]any{"enum": f.enumValues()}
	}
	if f.integer {
		s["type"] = []string{"string", "integer"}
	}
	if s["type"] == "integer" {
		if f.min != nil {
			s["minimum"] = *f.min
		}
		if f.max != nil {
			s["maximum"] = *f.max
		}
	}
	if pattern := formPattern(f.form); pattern != "" {
		if items, ok := s["items"].(map[string]any); ok {
			items["pattern"] = pattern
		} else {
			s["pattern"] = pattern
		}
	}
	if f.fallback != "" {
		s["default"] = f.literal()
	}
	if f.secret {
		s["writeOnly"] = true
	}
	return s
}

func (f *field) enumValues() []any {
	var out []any
	for _, e := range f.enum {
		switch e {
		case "true", "false":
			out = append(out, e == "true")
		default:
			out = append(out, e)
		}
	}
	return out
}

// formPattern is what a schema can say of the form of a string.
func formPattern(form string) string {
	switch form {
	case "name":
		return namePattern
	case "path", "socket":
		return `^/`
	case "firmware":
		return `^(bios|uefi|none|/.*)$`
	case "hex4":
		return `^[0-9a-f]{4}$`
	case "pci":
		return `^([0-9A-Fa-f]{4}:)?[01][0-9A-Fa-f]:[0-9A-Fa-f]{2}\.[0-7]$`
	case "feature":
		return `^[+-][A-Za-z0-9._-]+$`
	case "slice":
		return `\.slice$`
	}
	return ""
}

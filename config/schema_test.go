package config

import (
	"encoding/json"
	"fmt"
	goparser "go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func numbered(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// TestImports keeps the package below all others of ours.
func TestImports(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		parsed, err := goparser.ParseFile(token.NewFileSet(), file, nil, goparser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range parsed.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			outside := strings.Contains(strings.Split(path, "/")[0], ".")
			test := strings.HasSuffix(file, "_test.go") && path == "github.com/rogpeppe/go-internal/txtar"
			if outside && path != "github.com/BurntSushi/toml" && !test {
				t.Errorf("%s imports %s: a definition is read without anything else of ours", file, path)
			}
		}
	}
}

// TestExamplesComplete finds a key, a value of an enumeration or a kind of
// device that no example has.
func TestExamplesComplete(t *testing.T) {
	written := map[string]map[string]bool{} // key → the values it has
	var walk func(key string, v any)
	walk = func(key string, v any) {
		if written[key] == nil {
			written[key] = map[string]bool{}
		}
		if sub, ok := v.(*tree); ok {
			for i, k := range sub.keys {
				if named := slices.Contains([]string{"disk", "nic", "share", "pci", "usb", "credentials", "unit", "service"}, key); named {
					k = "NAME"
				}
				walk(join(key, k), sub.nodes[i])
			}
			return
		}
		written[key][fmt.Sprint(v)] = true
	}
	for _, text := range exampleTexts() {
		s := &source{tree: newTree(0)}
		s.parse(text)
		walk("", s.tree)
	}
	for _, k := range Keys() {
		if k.Key == "template" || k.Key == "parameters.NAME" {
			continue // of a file, which leaves nothing behind but its name
		}
		if written[k.Key] == nil {
			t.Errorf("no example has %s", k.Key)
		}
		for _, e := range k.Enum {
			if !written[k.Key][e] {
				t.Errorf("no example has %s = %q", k.Key, e)
			}
		}
	}

	kinds := map[reflect.Type]bool{}
	for _, m := range Examples() {
		for _, d := range m.Devices() {
			kinds[reflect.TypeOf(d)] = true
		}
	}
	device := reflect.TypeFor[Device]()
	machine := reflect.TypeFor[Machine]()
	for i := range machine.NumField() {
		kind := machine.Field(i).Type
		if kind.Kind() == reflect.Slice {
			kind = kind.Elem()
		}
		if kind.Implements(device) && !kinds[kind] {
			t.Errorf("no example has a %s, or Devices leaves it out", kind)
		}
	}
}

// TestRoundTrip sends machines through JSON, as a record does.
func TestRoundTrip(t *testing.T) {
	for _, m := range Examples() {
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var back Machine
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(&back)
		if err != nil || string(again) != string(text) {
			t.Errorf("%s became %s, %v", text, again, err)
		}
	}
}

// TestRedacted looks for everything that the tags call secret.
func TestRedacted(t *testing.T) {
	m := &Machine{Credentials: []Credential{{Name: "a", Value: "SECRET"}, {Name: "b", File: "/b"}}}
	var fill func(s *table, v reflect.Value)
	fill = func(s *table, v reflect.Value) {
		for _, f := range s.fields {
			switch {
			case f.named:
				one := reflect.New(f.typ.Elem()).Elem()
				fill(f.sub, one)
				v.Field(f.index).Set(reflect.Append(v.Field(f.index), one))
			case f.sub != nil:
				fill(f.sub, v.Field(f.index))
			case f.secret:
				v.Field(f.index).SetString("SECRET")
			}
		}
	}
	fill(schemaOf(reflect.TypeFor[Machine]()), reflect.ValueOf(m).Elem())
	text, err := json.Marshal(m.Redacted())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "SECRET") || !strings.Contains(string(text), `"***"`) {
		t.Errorf("redacted to %s", text)
	}
	if m.CloudInit.PasswordHash != "SECRET" || m.Credentials[0].Value != "SECRET" {
		t.Error("redacting changed the machine itself")
	}
	if s := fmt.Sprintf("%v %s %+v", m.CloudInit.PasswordHash, m.CloudInit.PasswordHash, m.Credentials); strings.Contains(s, "SECRET") {
		t.Errorf("printed as %s", s)
	}
	m.CloudInit.UserData = "/srv/user-data"
	m.CloudInit.MetaData = ""
	if r := m.Redacted().CloudInit; r.UserData != "/srv/user-data" || r.MetaData != "" {
		t.Errorf("redacted to %q, %q, want the path and nothing", r.UserData, r.MetaData)
	}
}

// TestSecretsUntold gives values of secrets that are wrong: no message has
// them.
func TestSecretsUntold(t *testing.T) {
	for _, doc := range []string{
		"[cloud_init]\npassword_hash = \"SECRET\"",
		"[cloud_init]\npassword_hash = \"SECRET\\n\"",
		"[cloud_init]\nuser_data = \"/SECRET/\"",
		"[cloud_init]\nmeta_data = [\"SECRET\"]",
		"[credentials]\na = [\"SECRET\"]",
		"[credentials]\na = \"SECRET\\u0000\"",
		"[credentials]\na.b = \"SECRET\"",
		"[credentials]\na = { file = \"/a\", value = \"SECRET\" }",
	} {
		problems := buildText(t, doc).Problems
		if len(problems) == 0 {
			t.Errorf("%s: no problem", doc)
		}
		for _, p := range problems {
			if strings.Contains(p.Error(), "SECRET") {
				t.Errorf("%s: %v", doc, p)
			}
		}
	}
}

// buildText makes a machine of a definition without a host.
func buildText(t testing.TB, doc string) VM {
	t.Helper()
	l := loader{schema: schemaOf(reflect.TypeFor[Machine]()), settings: Settings{Hypervisor: "qemu"}, templates: map[string]*layers{}}
	s := &source{file: "test.toml", tree: newTree(0)}
	s.parse(doc)
	return l.build("test", []*source{s})
}

// TestTags keeps the tags of the schema complete: each key has a text for
// people and a name in JSON.
func TestTags(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range slices.Concat(Keys(), SettingsKeys()) {
		if k.Doc == "" || k.Type == "" {
			t.Errorf("%s has no text", k.Key)
		}
		seen[k.Key] = true
	}
	for _, key := range []string{"cpus", "disk.NAME.size", "credentials.NAME", "service.NAME", "lifecycle.stop_timeout"} {
		if !seen[key] {
			t.Errorf("%s is not listed", key)
		}
	}
}

// TestSchema checks the JSON Schema against the loader: every example is valid
// by it, and every pattern compiles.
func TestSchema(t *testing.T) {
	text, err := json.Marshal(Schema())
	if err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(Schema())
	if err != nil || string(again) != string(text) {
		t.Error("marshalled differently the second time")
	}
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	for i, doc := range exampleTexts() {
		s := &source{tree: newTree(0)}
		s.parse(doc)
		if wrong := invalid(schema, plain(s.tree), ""); wrong != "" {
			t.Errorf("example %d: %s", i+1, wrong)
		}
	}
	for _, doc := range []string{
		"cpuz = 1", "cpus = 0", "cpus = 1025", "memory = \"2X\"", "memory = 2", "[disk.A]\nsize = \"1G\"",
		"[disk.a]\nsice = \"1G\"", "[disk.a]\nbus = \"isa\"", "[boot]\nkernel = \"x\"", "[service]\nType = \"x\"",
		"[service]\n\"a b\" = 1", "[credentials]\na = 1", "[credentials]\na = { file = \"x\" }", "[vsock]\nenabled = \"true\"",
		"after = [\"B\"]", "[nic.a]\nforward = [\"22\"]", "[nic.a]\nmac = \"5\"", "autostart = \"yes\"",
	} {
		s := &source{tree: newTree(0)}
		s.parse(doc)
		if s.problem != nil || invalid(schema, plain(s.tree), "") == "" {
			t.Errorf("%q is valid by the schema", doc)
		}
		if len(buildText(t, doc).Problems) == 0 {
			t.Errorf("%q is loaded", doc)
		}
	}
}

// plain makes of a tree what JSON would have given.
func plain(v any) any {
	switch v := v.(type) {
	case *tree:
		out := map[string]any{}
		for i, k := range v.keys {
			out[k] = plain(v.nodes[i])
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = plain(v[i])
		}
		return out
	case int64:
		return float64(v)
	}
	return v
}

// invalid is as much of JSON Schema as ours uses. It returns what is wrong.
func invalid(schema any, v any, at string) string {
	if schema == false {
		return at + ": not allowed"
	}
	s, ok := schema.(map[string]any)
	if !ok {
		return ""
	}
	if enum, ok := s["enum"].([]any); ok && !slices.Contains(enum, v) {
		return fmt.Sprintf("%s: %v is none of %v", at, v, enum)
	}
	if types, ok := s["type"]; ok {
		list, ok := types.([]any)
		if !ok {
			list = []any{types}
		}
		if !slices.Contains(list, any(typeOf(v))) {
			return fmt.Sprintf("%s: %v is not %v", at, v, types)
		}
	}
	if choices, ok := s["oneOf"].([]any); ok {
		good := 0
		for _, c := range choices {
			if invalid(c, v, at) == "" {
				good++
			}
		}
		if good != 1 {
			return fmt.Sprintf("%s: %v fits %d of the choices", at, v, good)
		}
	}
	switch v := v.(type) {
	case string:
		if pattern, ok := s["pattern"].(string); ok && !regexp.MustCompile(pattern).MatchString(v) {
			return fmt.Sprintf("%s: %q does not match %s", at, v, pattern)
		}
	case float64:
		if low, ok := s["minimum"].(float64); ok && v < low {
			return fmt.Sprintf("%s: %v is below %v", at, v, low)
		}
		if high, ok := s["maximum"].(float64); ok && v > high {
			return fmt.Sprintf("%s: %v is above %v", at, v, high)
		}
	case []any:
		for i := range v {
			if wrong := invalid(s["items"], v[i], index(at, i)); wrong != "" {
				return wrong
			}
		}
	case map[string]any:
		properties, _ := s["properties"].(map[string]any)
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if wrong := invalid(s["propertyNames"], key, at); wrong != "" {
				return wrong
			}
			of, known := properties[key]
			if !known {
				of = s["additionalProperties"]
			}
			if wrong := invalid(of, v[key], join(at, key)); wrong != "" {
				return wrong
			}
		}
	}
	return ""
}

func typeOf(v any) string {
	switch v.(type) {
	case string:
		return "string"
	case bool:
		return "boolean"
	case float64:
		return "integer"
	case []any:
		return "array"
	}
	return "object"
}

// TestTagsExplained keeps the tags that the comment of Machine explains and those
// that are used the same.
func TestTagsExplained(t *testing.T) {
	text, err := os.ReadFile("machine.go")
	if err != nil {
		t.Fatal(err)
	}
	comment, _, _ := strings.Cut(string(text), "type Machine struct")
	for _, m := range regexp.MustCompile(`\b([a-z]+):"`).FindAllStringSubmatch(string(text), -1) {
		if tag := m[1]; tag != "json" && !regexp.MustCompile(`//\t([a-z]+,)*`+tag+`\b`).MatchString(comment) {
			t.Errorf("the tag %s is not explained", tag)
		}
	}
}

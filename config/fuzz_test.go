package config

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

// seeds gives the fuzzers what the other tests read.
func seeds(f *testing.F) {
	for _, text := range exampleTexts() {
		f.Add(text)
	}
	for _, text := range []string{
		"", "a = '''x\n'''", "a = \"\"\"\"quoted\"\"\"\"\"", "a.'b.c'.\"d\\\"e\" = [1, {x = 1, y = [\"#\"]}, 1979-05-27 07:32:00]", "[[a]]\nb=1\n[[a]]\nb=2",
		"a = [ # ]\n1,\n2 ]\nb = 3", "a = {\n b = 1, # }\n c = {}\n}\nd = 1", "\ufeffcpus = 2", "a = \"\\\\\"\nb = 1", "a.b = 1\na = 2",
		"a = \"\"\"\\\n  x \\\"\"\"\"\nb = 1", "disk.a.size = \"1G\"\ndisk.b = {size=\"2G\"}", "a = ''\nb = \"\"\nc = '''''' \nd = \"\"\"\"\"\"\ne=1",
	} {
		f.Add(text)
	}
}

// FuzzDecode loads anything: it never panics, and either gives a machine that
// can be marshalled or says what is wrong in one line each.
func FuzzDecode(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, doc string) {
		vm := buildText(t, doc)
		if (vm.Machine == nil) != (len(vm.Problems) > 0) {
			t.Fatalf("machine %v with problems %v", vm.Machine, vm.Problems)
		}
		for _, p := range vm.Problems {
			if strings.ContainsAny(p.Error(), "\n\r\x00") || p.Text == "" || p.Line < 0 || p.Line > 1+strings.Count(doc, "\n") {
				t.Errorf("problem %q at line %d", p.Error(), p.Line)
			}
		}
		if vm.Machine != nil {
			if _, err := json.Marshal(vm.Machine.Redacted()); err != nil {
				t.Error(err)
			}
		}
	})
}

// FuzzRule: what is read as a rule is written the same way, but for what ports
// and addresses can be left out of.
func FuzzRule(f *testing.F) {
	for _, text := range []string{"any", "tcp/22", "tcp/8000-8100 from 10.0.0.0/8", "icmp to 2001:db8::/32", "udp/53 to 192.0.2.1/32", "sctp/1-1", "tcp/+1", "any from ::/0"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, word := range []string{"from", "to"} {
			r, want := parseRule(text, word)
			if want != "" {
				if (r != Rule{}) && !strings.Contains(text, word) {
					t.Errorf("%q is refused (%s) and is %v", text, want, r)
				}
				continue
			}
			again, want := parseRule(r.Text(word == "from"), word)
			if want != "" || again != r {
				t.Errorf("%q is %v, written %q, which is %v (%s)", text, r, r.Text(word == "from"), again, want)
			}
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(b, &again); err != nil || again != r {
				t.Errorf("%q by JSON: %v, %v", text, again, err)
			}
		}
	})
}

// FuzzPlaces compares the keys that the scanner finds with the library's.
func FuzzPlaces(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, doc string) {
		s := source{tree: newTree(0)}
		s.parse(doc)
		if s.problem != nil {
			if s.places != nil {
				s.places() // must come to an end
			}
			return
		}
		var values any
		meta, err := toml.Decode(doc, &values)
		if err != nil {
			t.Fatal(err)
		}
		found := s.places()
		for _, key := range meta.Keys() {
			path := strings.Join(key, ".")
			if _, ok := found[path]; !ok && !inList(values, key) && path != "" && path[0] != '.' {
				t.Errorf("%q was not found, but %v", path, found)
			}
		}
	})
}

// inList says whether a key is within a list, where the library does not say
// of which element.
func inList(v any, key toml.Key) bool {
	for _, part := range key[:len(key)-1] {
		table, ok := v.(map[string]any)
		if !ok {
			return true
		}
		v = table[part]
	}
	_, ok := v.(map[string]any)
	return !ok
}

package config

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite what the golden files want")

// TestGolden loads the files above "want" in each archive, from a root that
// they are laid out in, and compares the machines or problems with it. Of a
// machine only what differs from the defaults is written.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p := hostPaths(t)
			var want []byte
			var inputs []txtar.File
			for _, f := range archive.Files {
				if f.Name == "want" {
					want = f.Data
					continue
				}
				inputs = append(inputs, f)
				write(t, filepath.Join(p.Root, f.Name), string(f.Data))
			}
			got := loaded(t, p)
			if again := loaded(t, p); !bytes.Equal(got, again) {
				t.Errorf("loading twice gave two results:\n%s\n%s", got, again)
			}
			if *update {
				archive.Files = append(inputs, txtar.File{Name: "want", Data: got})
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// loaded writes what Load makes of a host.
func loaded(t *testing.T, p Paths) []byte {
	t.Helper()
	set, err := Load(p)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	problems := func(ps []Problem) {
		for _, problem := range ps {
			fmt.Fprintln(&b, strings.ReplaceAll(problem.Error(), p.Root+"/", ""))
		}
	}
	warnings := func(ps []Problem) {
		for _, p := range ps {
			p.Text = "warning: " + p.Text
			problems([]Problem{p})
		}
	}
	problems(set.Problems)
	for _, vm := range set.VMs {
		problems(vm.Problems)
		warnings(vm.Warnings)
		if (vm.Machine == nil) != (len(vm.Problems) > 0) {
			t.Errorf("%s has %d problems and machine %v", vm.Name, len(vm.Problems), vm.Machine)
		}
		if vm.Machine != nil {
			b.Write(difference(t, vm.Machine))
		}
	}
	for _, n := range set.Networks {
		problems(n.Problems)
		warnings(n.Warnings)
		if (n.Network == nil) != (len(n.Problems) > 0) {
			t.Errorf("network %s has %d problems and is %v", n.Name, len(n.Problems), n.Network)
		}
		if n.Network != nil {
			text, err := json.Marshal(n.Network)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "network %s: %s\n", n.Name, text)
		}
	}
	for _, g := range set.Groups {
		problems(g.Problems)
		if (g.Group == nil) != (len(g.Problems) > 0) {
			t.Errorf("security group %s has %d problems and is %v", g.Name, len(g.Problems), g.Group)
		}
		if g.Group != nil {
			text, err := json.Marshal(g.Group)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "security group %s: %s\n", g.Name, text)
		}
	}
	return b.Bytes()
}

// difference writes what of a machine is not as in one with nothing but its
// name, as "key: JSON".
func difference(t *testing.T, m *Machine) []byte {
	t.Helper()
	id := "8c5a2f0e1f4b4c3d9a6e0b1c2d3e4f50"
	l := loader{schema: newLoader(Paths{}).schema, machineID: id, settings: Settings{Hypervisor: "qemu"}}
	plain := l.build(m.Name, []*source{{file: "plain.toml", tree: newTree(0)}}).Machine
	values, defaults := flat(t, m), flat(t, plain)
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s:\n", m.Name)
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if values[key] != defaults[key] {
			fmt.Fprintf(&b, "  %s: %s\n", key, values[key])
		}
	}
	return b.Bytes()
}

// flat returns the JSON of each value in m by its dotted key.
func flat(t *testing.T, m *Machine) map[string]string {
	t.Helper()
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	var walk func(key string, v any)
	walk = func(key string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, sub := range v {
				walk(join(key, k), sub)
			}
		case []any:
			if len(v) == 0 {
				out[key] = "[]"
			}
			for i, sub := range v {
				walk(index(key, i), sub)
			}
		default:
			text, _ := json.Marshal(v)
			out[key] = string(text)
		}
	}
	walk("", tree)
	return out
}

// TestDefaults compares the whole of a machine that its definition says nothing
// about.
func TestDefaults(t *testing.T) {
	p := hostPaths(t)
	write(t, filepath.Join(p.VMDirs[1], "plain.toml"), "# nothing\n")
	vm, err := LoadVM(p, "plain")
	if err != nil || len(vm.Problems) > 0 {
		t.Fatal(err, vm.Problems)
	}
	got, err := json.MarshalIndent(vm.Machine, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/defaults.json"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

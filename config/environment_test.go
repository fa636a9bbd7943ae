package config

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestEnvironmentSaysTheSame: a machine is the same by what is written of its table
// as by the definition that the table was made of.
func TestEnvironmentSaysTheSame(t *testing.T) {
	p := hostPaths(t)
	l := newLoader(p)
	for i, text := range exampleTexts() {
		doc := &source{file: "env.toml", tree: newTree(0)}
		doc.parse(text)
		r := environmentReader{paths: p}
		r.thing(doc, kindPlace{KindVM, "vms", p.VMDirs[1], reflect.TypeFor[Machine]()}, 0o644, "test", doc.tree)
		if len(r.problems) > 0 || len(r.files) != 1 {
			t.Fatal(r.problems)
		}
		want := l.build("test", []*source{doc})
		again := &source{file: "test.toml", tree: newTree(0)}
		again.parse(Marked("env.toml", r.files[0].Text))
		got := l.build("test", []*source{again})
		if got.Machine == nil {
			t.Fatalf("example %d: %v in\n%s", i+1, got.Problems, r.files[0].Text)
		}
		one, _ := json.Marshal(want.Machine)
		other, _ := json.Marshal(got.Machine)
		if string(one) != string(other) || want.Machine.CloudInit.PasswordHash != got.Machine.CloudInit.PasswordHash {
			t.Errorf("example %d is another by\n%s", i+1, r.files[0].Text)
		}
	}
}

// TestEnvironmentDrafts: what is declared is loaded as if it were there, with the
// lines of what was written, and what goes as if it were not.
func TestEnvironmentDrafts(t *testing.T) {
	p := hostPaths(t)
	write(t, filepath.Join(p.VMDirs[1], "old.toml"), "cpus = 1\n")
	write(t, filepath.Join(p.VMDirs[1], "stays.toml"), "cpus = 1\nafter = [\"old\"]\n")
	write(t, filepath.Join(p.VMDirs[2], "new.toml"), "cpus = 7\n")
	write(t, filepath.Join(p.VMDirs[1], "new.toml.d/10.toml"), "memory = \"3G\"\n")
	env, problems := ParseEnvironment(p, "env.toml", `
[template.base]
memory = "2G"
[template.base.parameters]
cpus = 2
[vm.new]
template = "base"
[vm.bad]
template = "base"
[vm.bad.disk.root]
size = "1"
`, 0o644)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	with := p.With(env.Files, []string{filepath.Join(p.VMDirs[1], "old.toml")})
	set, err := Load(with)
	if err != nil || len(set.VMs) != 3 {
		t.Fatal(err, set.VMs)
	}
	bad, made, stays := set.VMs[0], set.VMs[1], set.VMs[2]
	if made.Machine == nil || made.Machine.CPUs != 1 || made.Machine.Memory != 3<<30 {
		t.Errorf("new is %+v, %v", made.Machine, made.Problems)
	}
	if len(bad.Problems) != 1 || len(stays.Problems) != 1 {
		t.Fatal(bad.Problems, stays.Problems)
	}
	q := bad.Problems[0]
	for _, f := range env.Files {
		q = f.AtSource(q)
	}
	if got := q.Error(); !strings.HasPrefix(got, "env.toml:11: vm.bad.disk.root.size: want a size") {
		t.Error(got)
	}
	if got := stays.Problems[0].Text; got != `want a machine that is defined, got "old"` {
		t.Error(got)
	}
	if set, _ := Load(p); len(set.VMs) != 3 || set.VMs[0].Machine.CPUs != 7 {
		t.Error("the files themselves are others by now")
	}
	if vm, err := LoadVM(with, "new"); err != nil || vm.Machine == nil {
		t.Error(err, vm.Problems)
	}
	if _, err := LoadVM(with, "old"); err == nil {
		t.Error("old is there still")
	}
}

// What is not there yet has nothing for longer than what is: it is refused, whatever
// the names. What is applied again as it is has what it has for as long as before.
func TestEnvironmentIsNewer(t *testing.T) {
	const machine = "uuid = \"5e0c1f2a-7a57-4b53-9a3e-0d6d8a0f5b11\"\n"
	refused := func(p Paths) string {
		t.Helper()
		set, err := Load(p)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, vm := range set.VMs {
			if len(vm.Problems) > 0 {
				all = append(all, vm.Name)
			}
		}
		return strings.Join(all, " ")
	}
	p := hostPaths(t)
	there := Definition(p.VMDirs[1], "there")
	write(t, there, machine)

	imported, _ := EnvironmentFileOf(p, KindVM, "a", "a.xml", machine)
	if got := refused(p.With([]EnvironmentFile{imported}, nil)); got != "a" {
		t.Errorf("refused %q, want a, which is imported", got)
	}
	table, problems := ParseEnvironment(p, "env.toml", "[vm.a]\n"+machine, 0o644)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if got := refused(p.With(table.Files, nil)); got != "a" {
		t.Errorf("refused %q, want a, which is applied", got)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "vms/a.toml"), machine)
	files, problems := ReadEnvironment(p, dir)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if got := refused(p.With(files.Files, nil)); got != "a" {
		t.Errorf("refused %q, want a, which is applied from a directory", got)
	}

	a := files.Files[0]
	write(t, a.Path, Marked(dir, a.Text))
	writeLater(t, there, machine, a.Path)
	if got := refused(p.With(files.Files, nil)); got != "there" {
		t.Errorf("refused %q, want what has come since", got)
	}
	write(t, a.Path, Marked(dir, "cpus = 2\n"+a.Text))
	writeLater(t, there, machine, a.Path)
	if got := refused(p.With(files.Files, nil)); got != "a" {
		t.Errorf("refused %q, want what would change", got)
	}
}

func TestMark(t *testing.T) {
	text := "cpus = 1\n"
	marked := Marked("/srv/a \"b\"\n(c)", text)
	for content, want := range map[string]struct {
		from   string
		intact bool
	}{
		marked:                                {"/srv/a \"b\"\n(c)", true},
		marked + "#\n":                        {"/srv/a \"b\"\n(c)", false},
		text:                                  {"", false},
		"":                                    {"", false},
		mark:                                  {"", false},
		mark + "\"x":                          {"", false},
		mark + "\"x\"":                        {"x", false},
		"# Written by vmctl create.\n" + text: {"", false},
	} {
		if from, intact := Mark(content); from != want.from || intact != want.intact {
			t.Errorf("%q: %q, %v", content, from, intact)
		}
	}
}

// FuzzEnvironment: whatever a file says, it is an environment or has problems, and
// what would be written of it is TOML.
func FuzzEnvironment(f *testing.F) {
	f.Add("[vm.web]\ncpus = 1\n[vm.web.disk.root]\nsize = \"1G\"\n[network.lan]\nsubnet = \"10.0.0.0/24\"\n[image.\"x.1\"]\nurl = \"https://x\"\n")
	f.Add("[vm.web.disk]\nroot = \"\"\n")
	f.Add("vm.web = 3\n[template.a.parameters]\nx = [1, \"\"\"a\nb\"\"\"]\n[settings]\nhypervisor = \"qemu\"\n")
	p := SystemPaths("/nowhere")
	f.Fuzz(func(t *testing.T, text string) {
		env, problems := ParseEnvironment(p, "env.toml", text, 0o644)
		if len(problems) > 0 {
			return
		}
		set, err := Load(p.With(env.Files, nil))
		if err != nil {
			t.Fatal(err)
		}
		for _, vm := range set.VMs {
			if vm.Machine == nil {
				continue
			}
			for _, file := range env.Files {
				again := &source{tree: newTree(0)}
				if again.parse(file.Text); file.Kind == KindVM && file.Name == vm.Name && again.problem != nil {
					t.Fatalf("%v in\n%s", again.problem, file.Text)
				}
			}
		}
	})
}

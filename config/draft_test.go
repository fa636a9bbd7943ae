package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// hostile are values that would end a string, a line, a table or a file early,
// or be something else than they are.
var hostile = []string{
	"", " ", "a", `"`, `""`, `"""`, `""""`, `'''`, `\`, `\"`, `\n`, "a\nb", "\n", "\n\n", "a\n", "a\nb\n", "\na", "\r\n", "a\r\nb\r", "\t",
	"# no comment", "a = 1", "[table]", "]", "{}", "true", "1", "1979-05-27", "\u007f", "\x01", "\u0085", "\u2028x", "\ufeff", "\u202e", "é", "𝄞",
	"line \"one\"\nline \"\"two\"\"\n\"", "ends in \\\nand goes on", "a\n\"\"\"\nb", "%i %% $HOME ${x}", strings.Repeat("x", 5000),
}

// Whatever is set is what is read again.
func TestDraftRoundTrip(t *testing.T) {
	for _, value := range hostile {
		d := NewDraft()
		for _, key := range []string{"cloud_init.user_data", "credentials.a.b", "credentials.plain"} {
			if err := d.Set(key, value); err != nil {
				if key == "cloud_init.user_data" {
					continue
				}
				t.Fatalf("%q: %v", value, err)
			}
		}
		s := source{file: "x", tree: newTree(0)}
		s.parse(d.Text())
		if s.problem != nil {
			t.Errorf("%q: %v in\n%s", value, s.problem, d.Text())
			continue
		}
		if !reflect.DeepEqual(plainTree(s.tree), plainTree(d.tree)) {
			t.Errorf("%q: set %v, read %v from\n%s", value, plainTree(d.tree), plainTree(s.tree), d.Text())
		}
	}
}

func FuzzDraft(f *testing.F) {
	for _, value := range hostile {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		d := NewDraft()
		if d.Set("credentials.a", value) != nil {
			return
		}
		s := source{file: "x", tree: newTree(0)}
		s.parse(d.Text())
		if s.problem != nil || s.tree.node("credentials").(*tree).node("a") != value {
			t.Errorf("%q: %v, %v from\n%s", value, s.problem, s.tree, d.Text())
		}
	})
}

// plainTree is a tree without the order of its keys.
func plainTree(node any) any {
	t, ok := node.(*tree)
	if !ok {
		return node
	}
	out := map[string]any{}
	for i, key := range t.keys {
		out[key] = plainTree(t.nodes[i])
	}
	return out
}

// Every key of every example, typed as on a command line, comes to the machine
// that the example is.
func TestDraftOfExamples(t *testing.T) {
	p := hostPaths(t)
	for i, text := range exampleTexts() {
		s := source{file: "x", tree: newTree(0)}
		s.parse(text)
		d := NewDraft()
		var set func(key string, node any)
		set = func(key string, node any) {
			switch v := node.(type) {
			case *tree:
				for k, sub := range v.keys {
					if key == "credentials" && sub == "ssh.authorized_keys.root" {
						continue // a table, which no text is
					}
					set(join(key, sub), v.nodes[k])
				}
			case []any:
				for _, element := range v {
					if err := d.Set(key, fmt.Sprint(element)); err != nil {
						t.Errorf("%s = %v: %v", key, element, err)
					}
				}
			default:
				if err := d.Set(key, fmt.Sprint(v)); err != nil {
					t.Errorf("%s = %v: %v", key, v, err)
				}
			}
		}
		set("", s.tree)
		name := fmt.Sprintf("example-%d", i)
		file := Definition(p.VMDirs[0], name)
		write(t, file, strings.ReplaceAll(text, "\"ssh.authorized_keys.root\" = { file = \"/srv/keys\" }\n", ""))
		want, err := LoadVM(p, name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, file, d.Text())
		got, err := LoadVM(p, name)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := asJSON(t, got), asJSON(t, want); a != b {
			t.Errorf("typed:\n%s\nwant:\n%s\nfrom:\n%s", a, b, d.Text())
		}
	}
}

func asJSON(t *testing.T, vm VM) string {
	t.Helper()
	if len(vm.Problems) > 0 {
		return fmt.Sprint(vm.Problems)
	}
	text, err := json.MarshalIndent(vm.Machine, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestDraftRefuses(t *testing.T) {
	for _, tt := range []struct{ key, value, want string }{
		{"cpus", "two", `want an integer from 1 to 1024, got "two"`},
		{"cpus", "0", `want an integer from 1 to 1024, got 0`},
		{"memory", "2", `want a size such as "512M" or "20G", got "2"`},
		{"memory", "1K", `want a size from 1M to 4096T, got "1K"`},
		{"lifecycle.restrat", "no", `unknown key, did you mean "restart"?`},
		{"lifecycle.restart", "never", `want "no", "on-failure" or "always", got "never"`},
		{"lifecycle", "x", "want a key of the table, such as lifecycle.start_timeout, got the table"},
		{"disk.size", "1G", "want disk.NAME.KEY, got disk.size"},
		{"disk.Root.size", "1G", `want a name of a-z, 0-9 and (not at its ends) hyphens, got "Root"`},
		{"cpus.more", "1", "want cpus, which is no table, got cpus.more"},
		{"nic.lan.forward", "[1", `want a list such as ["one", "two"], got "[1"`},
		{"nic.lan.forward", `["22"]`, `want [ADDRESS:]HOSTPORT:GUESTPORT[/PROTOCOL] such as "2222:22/tcp" or "127.0.0.1:8080:80", got "22"`},
		{"autostart", "yes", `want true or false, got "yes"`},
		{"credentials", "x", "want credentials.NAME, got credentials alone"},
		{"cloud_init.password_hash", "a\nb", "want a string of one line, got another (not shown)"},
		{"description", "\xff", "want UTF-8, got other bytes"},
		{"", "x", "unknown key"},
	} {
		err := NewDraft().Set(tt.key, tt.value)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s=%s: got %v, want %s", tt.key, tt.value, err, tt.want)
		}
	}
}

func TestDraftText(t *testing.T) {
	d := NewDraft()
	for _, kv := range []string{"nic.lan.user=true", "disk.z.size=1G", "disk.root.image=debian-13", "memory=2G", "cpus=2", "disk.root.size=20G",
		"nic.lan.forward=2222:22", "nic.lan.forward=[::1]:80:80", "lifecycle.restart=no", "service.Nice=5", "credentials.a.b=x y", "cloud_init.user_data=#cloud-config\na: \"b\"\n"} {
		key, value, _ := strings.Cut(kv, "=")
		if err := d.Set(key, value); err != nil {
			t.Fatal(err)
		}
	}
	d.Add("nic.other")
	want := `cpus = 2
memory = "2G"

[disk.z]
size = "1G"

[disk.root]
image = "debian-13"
size = "20G"

[nic.lan]
user = true
forward = ["2222:22", "[::1]:80:80"]

[nic.other]

[cloud_init]
user_data = """
#cloud-config
a: "b"
"""

[credentials]
"a.b" = "x y"

[lifecycle]
restart = "no"

[service]
Nice = "5"
`
	if got := d.Text(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// A definition is tried as it would be, with its drop-ins and among the others,
// and nothing of it is on disk then.
func TestTry(t *testing.T) {
	p := hostPaths(t)
	write(t, Definition(p.VMDirs[1], "web"), "cpus = 1\nuuid = \"5e0c1f2a-7a57-4b53-9a3e-0d6d8a0f5b11\"\n")
	write(t, Definition(p.VMDirs[1], "broken"), "cpus = 0\n")
	write(t, filepath.Join(p.VMDirs[1], "new.toml.d/10-more.toml"), "memory = \"3G\"\n")
	file := Definition(p.VMDirs[1], "new")
	vm := Try(p, file, "cpus = 3\nafter = [\"web\"]\n")
	if vm.Machine == nil || vm.Machine.CPUs != 3 || vm.Machine.Memory != 3<<30 || vm.File != file {
		t.Errorf("got %v", vm)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("it was written")
	}
	for _, tt := range []struct{ file, text, want string }{
		{file, "cpus = 0\n", file + `:1: cpus: want an integer from 1 to 1024, got 0`},
		{file, "", file + `: want a definition, got an empty file`},
		{file, "after = [\"no-such\"]", file + `:1: after: want a machine that is defined, got "no-such"`},
		{file, "uuid = \"5e0c1f2a-7a57-4b53-9a3e-0d6d8a0f5b11\"", file + `:1: uuid: want a UUID of its own, got "5e0c1f2a-7a57-4b53-9a3e-0d6d8a0f5b11" as machine web has`},
		{Definition(p.VMDirs[1], "web"), "cpus = 0", Definition(p.VMDirs[1], "web") + `:1: cpus: want an integer from 1 to 1024, got 0`},
		{Definition(p.VMDirs[1], "No"), "cpus = 1", Definition(p.VMDirs[1], "No") + `: want a name of a-z, 0-9 and (not at its ends) hyphens before .toml as the file's name, got "No.toml"`},
	} {
		vm := Try(p, tt.file, tt.text)
		if len(vm.Problems) != 1 || vm.Problems[0].Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.text, vm.Problems, tt.want)
		}
	}
}

func TestRemoveOnStop(t *testing.T) {
	p := hostPaths(t)
	const text = "lifecycle.remove_on_stop = true\n"
	write(t, Definition(p.VMDirs[0], "run"), text)
	write(t, Definition(p.VMDirs[1], "etc"), text)
	write(t, Definition(p.VMDirs[0], "both"), text)
	write(t, Definition(p.VMDirs[1], "both"), "cpus = 1\n")
	write(t, Definition(p.VMDirs[0], "again"), text+"lifecycle.restart = \"always\"\n")
	for name, want := range map[string]string{
		"run":   "",
		"etc":   Definition(p.VMDirs[1], "etc") + ":1: lifecycle.remove_on_stop: want a definition in " + p.VMDirs[0] + " for a machine that is removed when it ends, got one in " + p.VMDirs[1],
		"both":  Definition(p.VMDirs[0], "both") + ":1: lifecycle.remove_on_stop: want no other definition of the machine that is removed when it ends, got " + Definition(p.VMDirs[1], "both"),
		"again": Definition(p.VMDirs[0], "again") + `:2: lifecycle.restart: want "no" for a machine that is removed when it ends, got "always"`,
	} {
		vm, err := LoadVM(p, name)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, p := range vm.Problems {
			got += p.Error()
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
		if want == "" && vm.Machine.Lifecycle.Restart != "no" {
			t.Errorf("%s: restart %s", name, vm.Machine.Lifecycle.Restart)
		}
	}
}

// A key that is taken back leaves no empty table, which would mean something.
func TestUnset(t *testing.T) {
	d := NewDraft()
	for _, text := range []string{"cpus=2", "cloud_init.user=ann", "nic.lan.user=true", "nic.lan.queues=1", "credentials.a.b=x"} {
		key, value, _ := strings.Cut(text, "=")
		if err := d.Set(key, value); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		key, want string
		had       bool
	}{
		{"cloud_init.user", "cpus = 2\n\n[nic.lan]\nuser = true\nqueues = 1\n\n[credentials]\n\"a.b\" = \"x\"\n", true},
		{"cloud_init.user", "cpus = 2\n\n[nic.lan]\nuser = true\nqueues = 1\n\n[credentials]\n\"a.b\" = \"x\"\n", false},
		{"credentials.a.b", "cpus = 2\n\n[nic.lan]\nuser = true\nqueues = 1\n", true},
		{"nic.lan.user", "cpus = 2\n\n[nic.lan]\nqueues = 1\n", true},
		{"nic.lan.queues", "cpus = 2\n", true},
		{"memory", "cpus = 2\n", false},
		{"cpus", "", true},
	} {
		if had, err := d.Unset(c.key); had != c.had || err != nil || d.Text() != c.want {
			t.Errorf("%s: %v, %v, %q; want %v, %q", c.key, had, err, d.Text(), c.had, c.want)
		}
	}
	if _, err := d.Unset("nosuch"); err == nil {
		t.Error("a key that there is not")
	}
}

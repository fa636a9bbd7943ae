package hypervisortest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// Load reads a definition of a machine of the subject. All that is derived comes
// from a fixed machine-id.
func (s Subject) Load(t *testing.T, name, text string) *config.Machine {
	t.Helper()
	dir := t.TempDir()
	paths := config.SystemPaths("")
	paths.MachineID = filepath.Join(dir, "machine-id")
	file := filepath.Join(dir, name+".toml")
	if own := s.Hypervisor.Name(); own != "qemu" && !strings.Contains(text, "hypervisor =") { // the default
		text = fmt.Sprintf("hypervisor = %q\n", own) + text
	}
	for path, content := range map[string]string{paths.MachineID: strings.Repeat("0123456789abcdef", 2) + "\n", file: text} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	vm := config.LoadFile(paths, file)
	if vm.Machine == nil {
		t.Fatalf("loading %s: %v", text, vm.Problems)
	}
	return vm.Machine
}

// Golden compares plans, or what is refused, with the golden files in testdata:
// vm.toml and, where the host differs from the subject's, host.json above, want
// below. Together they have every device that there is, and every value of a key
// that has but a few.
func (s Subject) Golden(t *testing.T, update bool) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	has := map[string][]string{}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var host hypervisor.Host // a copy: its maps are written to
			if err := json.Unmarshal([]byte(marshal(t, s.Host)), &host); err != nil {
				t.Fatal(err)
			}
			want := -1
			var m *config.Machine
			for i, f := range archive.Files {
				switch f.Name {
				case "vm.toml":
					m = s.Load(t, "vm", string(f.Data))
				case "host.json":
					if err := json.Unmarshal(f.Data, &host); err != nil {
						t.Fatal(err)
					}
				case "want":
					want = i
				}
			}
			gatherValues(reflect.ValueOf(*m), "", has)
			got := s.planned(t, m, host)
			if update {
				if want < 0 {
					archive.Files = append(archive.Files, txtar.File{Name: "want"})
					want = len(archive.Files) - 1
				}
				archive.Files[want].Data = got
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want < 0 || !bytes.Equal(got, archive.Files[want].Data) {
				t.Errorf("got:\n%s", got)
			}
		})
	}
	s.checkHas(t, has)
}

// gatherValues adds to values those of each key of a table of a definition, without
// the names of devices.
func gatherValues(table reflect.Value, prefix string, values map[string][]string) {
	for f, v := range table.Fields() {
		name := f.Tag.Get("toml")
		if name == "" || name == "-" {
			continue
		}
		elements := []reflect.Value{v}
		if v.Kind() == reflect.Slice {
			elements = nil
			for i := range v.Len() {
				elements = append(elements, v.Index(i))
			}
		}
		for _, e := range elements {
			if e.Kind() == reflect.Struct && len(schemaKeys(e.Type(), "")) > 0 {
				gatherValues(e, prefix+name+".", values)
				continue
			}
			if !e.IsZero() {
				values[prefix+name] = append(values[prefix+name], fmt.Sprint(e.Interface()))
			}
		}
	}
}

// checkHas says what no golden file has.
func (s Subject) checkHas(t *testing.T, has map[string][]string) {
	t.Helper()
	for _, doc := range config.Keys() {
		key := strings.Replace(doc.Key, ".NAME", "", 1)
		if s.isElsewhere(key) || key == "hypervisor" {
			continue
		}
		if len(has[key]) == 0 {
			t.Errorf("no golden file has %s", key)
		}
		for _, value := range doc.Enum {
			if len(has[key]) > 0 && !slices.Contains(has[key], value) {
				t.Errorf("no golden file has %s = %q", key, value)
			}
		}
	}
}

// planned writes a plan, an option of the command line on each line, or the
// problems.
func (s Subject) planned(t *testing.T, m *config.Machine, host hypervisor.Host) []byte {
	t.Helper()
	plan, problems := s.Hypervisor.Plan(m, host, config.SystemPaths(""))
	again, _ := s.Hypervisor.Plan(m, host, config.SystemPaths(""))
	if !reflect.DeepEqual(plan, again) {
		t.Error("planning twice gave two plans")
	}
	var b bytes.Buffer
	for _, p := range problems {
		p.File = filepath.Base(p.File)
		fmt.Fprintln(&b, p.Error())
	}
	if plan == nil {
		return b.Bytes()
	}
	for i, a := range plan.Argv {
		switch {
		case i == 0:
		case a[0] == '-':
			b.WriteString("\n  ")
		default:
			b.WriteByte(' ')
		}
		b.WriteString(a)
	}
	b.WriteByte('\n')
	plan.Argv = nil
	rest, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	b.Write(append(bytes.Replace(rest, []byte("  \"argv\": null,\n"), nil, 1), '\n'))
	return b.Bytes()
}

package units

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vmctl/vmctl/config"
)

func TestUsersAreLegalAndDiffer(t *testing.T) {
	// The strict form of systemd's user names.
	legal := regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,30}$`)
	long := strings.Repeat("a", 62)
	seen := map[string]string{}
	for _, vm := range []string{
		"a", "web", "0", "a-b", strings.Repeat("x", 28), strings.Repeat("x", 29),
		long + "b", long + "c", strings.Repeat("a-", 31) + "a",
	} {
		user := User(vm)
		if !legal.MatchString(user) {
			t.Errorf("User(%q) = %q, which is no legal name", vm, user)
		}
		if other, ok := seen[user]; ok {
			t.Errorf("%q and %q share the user %q", vm, other, user)
		}
		seen[user] = vm
	}
	if got := User("web"); got != "vm-web" {
		t.Errorf("User(web) = %q, want vm-web", got)
	}
}

func TestAnOverlongCommandLineIsRefused(t *testing.T) {
	m := &config.Machine{Name: "x"}
	d := &dropIn{vm: config.VM{Name: "x", Machine: m}}
	d.command("run --", []string{"/bin/true", strings.Repeat("x", maxCommand)})
	if len(d.problems) != 1 || !strings.Contains(d.problems[0].Text, "less than 1048576 bytes") {
		t.Errorf("problems = %v", d.problems)
	}
}

func TestWriteMakesFilesAndLinks(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	files := []File{
		{Name: "vm@a.service.d/50-vmctl.conf", Text: "[Service]\n"},
		{Name: "vms.target.wants/vm@a.service", Link: "/usr/lib/systemd/system/vm@.service"},
	}
	if err := Write(root, files); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, files[0].Name)); string(got) != files[0].Text || err != nil {
		t.Errorf("drop-in = %q, %v", got, err)
	}
	if got, err := os.Readlink(filepath.Join(dir, files[1].Name)); got != files[1].Link || err != nil {
		t.Errorf("link = %q, %v", got, err)
	}

	// A second source for the same unit is an error that names the file, and
	// what comes after it is written; a link may be wanted twice.
	more := append(files, File{Name: "vm@b.service.d/50-vmctl.conf", Text: "x"})
	err = Write(root, more)
	if err == nil || !strings.Contains(err.Error(), "writing vm@a.service.d/50-vmctl.conf: ") || strings.Contains(err.Error(), "wants") {
		t.Errorf("writing twice: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "vm@b.service.d/50-vmctl.conf")); err != nil {
		t.Error(err)
	}
	if err := Write(root, []File{{Name: "../outside", Text: "x"}}); err == nil {
		t.Error("wrote outside of the directory")
	}
}

// After a reload the template alone holds for a machine that runs and whose
// definition is broken or gone by now. What it says of the network of a control
// group would cut that machine off.
func TestTheTemplateCutsNoMachineOff(t *testing.T) {
	text, err := os.ReadFile("../packaging/systemd/vm@.service")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "IPAddress") || strings.HasPrefix(line, "SocketBind") || strings.HasPrefix(line, "RestrictNetworkInterfaces") {
			t.Errorf("the template says %s", line)
		}
	}
}

// No limit of a definition is left out: each key is in the golden case.
func TestResourcesAreComplete(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/resources.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var m config.Machine
	for _, f := range archive.Files {
		if f.Name == "machine.json" {
			if err := json.Unmarshal(f.Data, &m); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := reflect.ValueOf(m.Resources)
	for i := range r.NumField() {
		f := r.Type().Field(i)
		setting, _, _ := strings.Cut(f.Tag.Get("doc"), "=")
		if r.Field(i).IsZero() || !strings.Contains(string(archive.Files[len(archive.Files)-1].Data), "\n"+setting+"=") {
			t.Errorf("%s is not tested, or not rendered as %s=", f.Tag.Get("toml"), setting)
		}
	}
}

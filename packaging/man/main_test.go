package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/packaging/man/roff"
)

func TestPageIsCurrent(t *testing.T) {
	want, err := page(".")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("vmctl.toml.5")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("vmctl.toml.5 is stale: go run ./packaging/man")
	}
	if regexp.MustCompile(`@[A-Z]+@`).MatchString(want) {
		t.Error("a place of the frame was not filled")
	}
}

// What nothing can run yet is marked, key by key, table by table, value by
// value; the rest is not.
func TestMissing(t *testing.T) {
	notes := missing()
	for key, want := range map[string]string{
		"nic.NAME.user":  "",
		"disk.NAME.path": "",
		"pci.NAME":       "",
		"disk.NAME.bus":  `"pflash" is not yet supported by qemu.`,
	} {
		if got := notes[key]; got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
}

// TestDifferencesAreAll: each key that a hypervisor is known to refuse, by the golden
// files of its plans, is in the table.
func TestDifferencesAreAll(t *testing.T) {
	table := differences()
	files, err := filepath.Glob("../../hypervisor/*/testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	refusal := regexp.MustCompile(`(?m)^vm.toml:\d+: ([^:]+): .*not supported by (?:qemu|cloud-hypervisor)`)
	n := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range refusal.FindAllStringSubmatch(string(text), -1) {
			n++
			key := general(m[1])
			if strings.HasPrefix(key, "credentials.") {
				key = "credentials.NAME"
			}
			if !strings.Contains(table, ".B "+roff.Escape(key)+"\n") {
				t.Errorf("%s refuses %s, which is not in the table", file, key)
			}
		}
	}
	if n < 20 {
		t.Errorf("found %d refusals; is the pattern right?", n)
	}
}

func TestSplit(t *testing.T) {
	for key, want := range map[string][2]string{
		"cpus":             {"", "cpus"},
		"cpu.model":        {"cpu", "model"},
		"disk.NAME.path":   {"disk.NAME", "path"},
		"credentials.NAME": {"credentials", "NAME"},
	} {
		if table, name := split(key); table != want[0] || name != want[1] {
			t.Errorf("%s: got %q and %q, want %q", key, table, name, want)
		}
	}
}

// TestNetworkExamples: what the page shows is right.
func TestNetworkExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/networks/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatal("no examples", err)
	}
	for _, file := range files {
		if n := config.LoadNetworkFile(config.SystemPaths(t.TempDir()), file); len(n.Problems) > 0 {
			t.Errorf("%v", n.Problems)
		}
	}
}

// TestEnvironmentExamples: so is what can be applied.
func TestEnvironmentExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/environments/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatal("no examples", err)
	}
	for _, file := range files {
		p := config.SystemPaths(t.TempDir())
		env, problems := config.ReadEnvironment(p, file)
		set, err := config.Load(p.With(env.Files, nil))
		if err != nil {
			t.Fatal(err)
		}
		_, more := config.LoadImages(p.With(env.Files, nil))
		problems = append(append(problems, set.Problems...), more...)
		for _, vm := range set.VMs {
			problems = append(problems, vm.Problems...)
		}
		for _, n := range set.Networks {
			problems = append(problems, n.Problems...)
		}
		if len(problems) > 0 || len(set.VMs) == 0 {
			t.Errorf("%s: %d machines, %v", file, len(set.VMs), problems)
		}
	}
}

// TestPagesAreSound has groff read every page.
func TestPagesAreSound(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip(err)
	}
	pages, _ := filepath.Glob("*.[1-9]")
	if len(pages) == 0 {
		t.Fatal("no pages")
	}
	for _, file := range pages {
		out, err := exec.Command(groff, "-man", "-Tutf8", "-ww", "-z", file).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

// Every page of ours that units or other pages refer to is there.
func TestReferencesExist(t *testing.T) {
	names := regexp.MustCompile(`(?:man:|\.BR )(vmctl[a-z.\\-]*)(?: |)\(([1-9])\)`)
	n := 0
	look := func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) == ".go" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range names.FindAllStringSubmatch(string(text), -1) {
			n++
			page := strings.ReplaceAll(m[1], `\`, "") + "." + m[2]
			if _, err := os.Stat(page); err != nil {
				t.Errorf("%s refers to %s, which is not there", path, page)
			}
		}
		return err
	}
	for _, dir := range []string{".", "../systemd"} {
		if err := filepath.WalkDir(dir, look); err != nil {
			t.Fatal(err)
		}
	}
	if n < 10 {
		t.Errorf("found %d references; is the pattern right?", n)
	}
}

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestManualIsComplete looks in vmctl(1) for every command and every option.
func TestManualIsComplete(t *testing.T) {
	source, err := os.ReadFile("../../packaging/man/vmctl.1")
	if err != nil {
		t.Fatal(err)
	}
	manual := strings.NewReplacer(`\-`, "-", `\fB`, "", `\fI`, "", `\fR`, "", `\fP`, "").Replace(string(source))
	has := func(what, word string) {
		if !regexp.MustCompile(`(?m)(^|[^\w-])` + regexp.QuoteMeta(word) + `($|[^\w-])`).MatchString(manual) {
			t.Errorf("vmctl(1) does not have %s %s", what, word)
		}
	}
	root := newRootCommand(newApp())
	options := func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			has("the option of "+c.Name(), "--"+f.Name)
			if f.Shorthand != "" {
				has("the option of "+c.Name(), "-"+f.Shorthand)
			}
		})
	}
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { has("the option", "--"+f.Name) })
	for _, c := range root.Commands() {
		if c.Hidden {
			continue
		}
		has("the command", c.Name())
		options(c)
		for _, sub := range c.Commands() {
			has("the command", c.Name()+" "+sub.Name())
			options(sub)
		}
	}
	for _, s := range states {
		has("the state", string(s))
	}
}

// TestManualPages has groff read the page of each command; what they refer to is
// there.
func TestManualPages(t *testing.T) {
	dir := t.TempDir()
	root := newRootCommand(newApp())
	root.SetArgs([]string{"manual", dir})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(pages) < 40 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	there := map[string]bool{"vmctl (1)": true, "vmctl.toml (5)": true,
		"dnsmasq (8)": true, "nft (8)": true, "ip-link (8)": true, "bridge (8)": true}
	for _, p := range pages {
		there[strings.TrimSuffix(filepath.Base(p), ".1")+" (1)"] = true
	}
	groff, missing := exec.LookPath("groff")
	if missing != nil {
		t.Log(missing)
	}
	for _, p := range pages {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		_, also, _ := strings.Cut(string(text), ".SH SEE ALSO\n")
		for line := range strings.Lines(also) {
			ref := strings.ReplaceAll(strings.TrimPrefix(strings.TrimRight(line, ",\n"), ".BR "), `\-`, "-")
			if !there[ref] {
				t.Errorf("%s refers to %s, which is not there", filepath.Base(p), ref)
			}
		}
		if missing != nil {
			continue
		}
		if out, err := exec.Command(groff, "-man", "-Tutf8", "-ww", "-z", p).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", filepath.Base(p), err, out)
		}
	}
}

package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestManualIsComplete looks in vmctl(8) for every command and every option.
func TestManualIsComplete(t *testing.T) {
	source, err := os.ReadFile("../../packaging/man/vmctl.8")
	if err != nil {
		t.Fatal(err)
	}
	manual := strings.NewReplacer(`\-`, "-", `\fB`, "", `\fI`, "", `\fR`, "", `\fP`, "").Replace(string(source))
	has := func(what, word string) {
		if !regexp.MustCompile(`(?m)(^|[^\w-])` + regexp.QuoteMeta(word) + `($|[^\w-])`).MatchString(manual) {
			t.Errorf("vmctl(8) does not have %s %s", what, word)
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

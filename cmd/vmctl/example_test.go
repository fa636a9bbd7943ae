package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestExamples wants one of every command that does something.
func TestExamples(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if !c.Runnable() || c.Hidden || c.Name() == "help" || strings.HasPrefix(c.Name(), "__") {
			return
		}
		if c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			if !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: the example is not indented: %q", c.CommandPath(), line)
			}
		}
	}
	walk(newRootCommand(newApp()))
}

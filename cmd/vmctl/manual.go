package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vmctl/vmctl/packaging/man/roff"
)

// newManualCommand is for who installs: each command has a page, of what --help
// says.
func newManualCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "manual DIR",
		Short:   "Write a manual page for each command into a directory",
		Example: `  vmctl manual /usr/share/man/man1`,
		Hidden:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("want a directory")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, c := range cmd.Root().Commands() {
				if !c.IsAvailableCommand() {
					continue
				}
				if err := os.WriteFile(filepath.Join(args[0], pageName(c)+".1"), []byte(manualPage(c)), 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// pageName is the name of a command's page, which those below it share.
func pageName(c *cobra.Command) string { return "vmctl-" + c.Name() }

// manualPage is the page of a command with all below it.
func manualPage(c *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 1 \"\" vmctl \"Virtual machines as systemd services\"\n", roff.Escape(strings.ToUpper(pageName(c))))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff.Escape(pageName(c)), roff.Escape(lowerFirst(c.Short)))
	b.WriteString(".SH SYNOPSIS\n")
	below := slices.DeleteFunc(slices.Clone(c.Commands()), func(s *cobra.Command) bool { return !s.IsAvailableCommand() })
	for i, s := range append(below, c) {
		if s == c && len(below) > 0 {
			break
		}
		if i > 0 {
			b.WriteString(".br\n")
		}
		b.WriteString(roff.Escape(s.UseLine()) + "\n")
	}
	b.WriteString(".SH DESCRIPTION\n" + paragraphs(cmp.Or(c.Long, c.Short)))
	if len(below) == 0 {
		b.WriteString(optionList(".SH OPTIONS\n", c.NonInheritedFlags()))
	} else {
		b.WriteString(".SH COMMANDS\n")
	}
	for _, s := range below {
		fmt.Fprintf(&b, ".SS %s\n%s", roff.Escape(s.CommandPath()), paragraphs(cmp.Or(s.Long, s.Short)))
		b.WriteString(optionList("", s.NonInheritedFlags()))
		if s.Example != "" {
			b.WriteString(".PP\nExamples:\n" + asTyped(s.Example))
		}
	}
	b.WriteString(optionList(".SH OPTIONS OF ALL COMMANDS\n", c.Root().PersistentFlags()))
	if c.Example != "" {
		b.WriteString(".SH EXAMPLES\n" + asTyped(c.Example))
	}
	if files := c.Annotations[manualFiles]; files != "" {
		b.WriteString(".SH FILES\n" + fileList(files))
	}
	_, status, _ := strings.Cut(helpTemplate, "Exit status: ")
	b.WriteString(".SH EXIT STATUS\n" + paragraphs(status))
	b.WriteString(".SH SEE ALSO\n" + seeAlso(c))
	return b.String()
}

// Annotations of commands, for their pages alone: files, one a line with what it is
// behind a tab, and further pages, such as "nft.8".
const (
	manualFiles = "manual-files"
	manualAlso  = "manual-also"
)

// fileList are files with what they are.
func fileList(lines string) string {
	var b strings.Builder
	for line := range strings.Lines(lines) {
		file, text, _ := strings.Cut(strings.TrimSpace(line), "\t")
		b.WriteString(".TP\n.I " + roff.Escape(file) + "\n" + roff.Escape(text) + "\n")
	}
	return b.String()
}

// seeAlso are the pages of the command's group, and those of all.
func seeAlso(c *cobra.Command) string {
	refs := []string{".BR vmctl (1)", ".BR vmctl.toml (5)"}
	for page := range strings.FieldsSeq(c.Annotations[manualAlso]) {
		name, section, _ := strings.Cut(page, ".")
		refs = append(refs, ".BR "+roff.Escape(name)+" ("+section+")")
	}
	for _, other := range c.Root().Commands() {
		if other != c && other.GroupID == c.GroupID && other.IsAvailableCommand() {
			refs = append(refs, ".BR "+roff.Escape(pageName(other))+" (1)")
		}
	}
	return strings.Join(refs, ",\n") + "\n"
}

// optionList are options with what they do, nothing where there are none.
func optionList(heading string, flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		names := roff.Escape("--" + f.Name)
		if f.Shorthand != "" {
			names = roff.Escape("-"+f.Shorthand) + ", " + names
		}
		b.WriteString(".TP\n\\fB" + names + "\\fR")
		if value != "" {
			b.WriteString(" \\fI" + roff.Escape(value) + "\\fR")
		}
		b.WriteString("\n" + roff.Escape(usage) + ".\n")
	})
	if b.Len() == 0 {
		return ""
	}
	return heading + b.String()
}

// paragraphs are those of a text; lines that begin with a space are as typed.
func paragraphs(text string) string {
	var b strings.Builder
	for i, p := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		if strings.HasPrefix(p, " ") {
			b.WriteString(asTyped(p))
			continue
		}
		for line := range strings.Lines(p) {
			b.WriteString(roff.Escape(strings.TrimRight(line, "\n")) + "\n")
		}
	}
	return b.String()
}

// asTyped shows lines as they are.
func asTyped(text string) string {
	var b strings.Builder
	b.WriteString(".EX\n")
	for line := range strings.Lines(text) {
		b.WriteString(roff.Escape(strings.TrimRight(line, "\n")) + "\n")
	}
	return b.String() + ".EE\n"
}

// lowerFirst has a sentence go on from a name.
func lowerFirst(s string) string {
	if len(s) > 1 && strings.ToUpper(s[:2]) == s[:2] {
		return s // an abbreviation
	}
	return strings.ToLower(s[:1]) + s[1:]
}

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// parseStates reads the states that a flag names.
func parseStates(names []string) ([]state, error) {
	var out []state
	for _, name := range names {
		if !slices.Contains(states[:], state(name)) {
			return nil, usageError{fmt.Errorf("want %s, got %q", strings.Join(stateNames(), ", "), name)}
		}
		out = append(out, state(name))
	}
	return out, nil
}

func stateNames() []string {
	var names []string
	for _, s := range states {
		names = append(names, string(s))
	}
	return names
}

// completeStateList completes a flag that takes several states, with commas between.
func completeStateList(_ *cobra.Command, _ []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	before := text[:strings.LastIndex(text, ",")+1]
	var out []cobra.Completion
	for _, s := range stateNames() {
		if !slices.Contains(strings.Split(before, ","), s) {
			out = append(out, before+s)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveKeepOrder
}

// completeStates completes a flag that takes a state.
func completeStates(cmd *cobra.Command, flag string) {
	// Only an unknown flag fails here.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(stateNames(), cobra.ShellCompDirectiveNoFileComp))
}

package main

import "github.com/spf13/cobra"

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "version",
		Short:             "Show the version of vmctl",
		Example:           "  vmctl version",
		GroupID:           groupLook,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return runVersion(a) },
	}
}

func runVersion(a *app) error {
	if a.ui.format == jsonFormat {
		return a.ui.json(struct {
			Version string `json:"version"`
		}{version})
	}
	a.ui.printf("vmctl %s", version)
	return nil
}

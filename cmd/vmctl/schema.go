package main

import (
	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
)

func newSchemaCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of a definition",
		Long: `Print the JSON Schema of a definition, for editors and programs that make
definitions. A TOML file holds to it as its JSON does.`,
		Example:           `  vmctl schema > vmctl.schema.json`,
		GroupID:           groupDefine,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return runSchema(a) },
	}
}

func runSchema(a *app) error {
	return a.ui.json(config.Schema())
}

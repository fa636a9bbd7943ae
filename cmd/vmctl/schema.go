package main

import (
	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
)

func newSchemaCommand(a *app) *cobra.Command {
	var network, group bool
	cmd := &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of a definition",
		Long: `Print the JSON Schema of a definition, for editors and programs that make
definitions. A TOML file holds to it as its JSON does.`,
		Example:           `  vmctl schema > vmctl.schema.json`,
		GroupID:           groupDefine,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return runSchema(a, network, group) },
	}
	cmd.Flags().BoolVar(&network, "network", false, "of the definition of a network")
	cmd.Flags().BoolVar(&group, "security-group", false, "of the definition of a security group")
	cmd.MarkFlagsMutuallyExclusive("network", "security-group")
	return cmd
}

func runSchema(a *app, network, group bool) error {
	switch {
	case network:
		return a.ui.json(config.NetworkSchema())
	case group:
		return a.ui.json(config.SecurityGroupSchema())
	}
	return a.ui.json(config.Schema())
}

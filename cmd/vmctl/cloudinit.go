package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/cloudinit"
)

func newCloudInitCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cloud-init NAME [FILE]",
		Short: "Show what cloud-init in the guest is given",
		Long: `Show what cloud-init in the guest is given at the next start: user-data,
meta-data, network-config and vendor-data, or only the FILE named.`,
		Example: `  vmctl cloud-init web
  vmctl cloud-init web user-data | cloud-init schema --config-file /dev/stdin`,
		GroupID: groupDefine,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return oneName(cmd, args)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return []cobra.Completion{"meta-data", "network-config", "user-data", "vendor-data"}, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeName(cmd, args, prefix)
		},
		RunE: func(_ *cobra.Command, args []string) error {
			return runCloudInit(a, args[0], strings.Join(args[1:], ""))
		},
	}
}

// runCloudInit prints the seed of a machine, or one file of it.
func runCloudInit(a *app, name, file string) error {
	m, err := a.load(name)
	if err != nil {
		return err
	}
	if !m.CloudInit.Enabled {
		return withHint(fmt.Errorf("%s: cloud-init is not enabled", name), "a table [cloud_init] in the definition enables it")
	}
	files, err := cloudinit.Files(m, cloudinit.ReadFile)
	if err != nil {
		return asInvalid(err)
	}
	if file != "" {
		return printSeedFile(a, files, file)
	}
	if a.ui.format == jsonFormat {
		all := map[string]string{}
		for _, f := range files {
			all[f.Name] = string(f.Data)
		}
		return a.ui.json(all)
	}
	for i, f := range files {
		if i > 0 {
			a.ui.printf("")
		}
		a.ui.printf("# %s", f.Name)
		a.ui.printf("%s", strings.TrimSuffix(string(f.Data), "\n"))
	}
	return nil
}

// printSeedFile prints one file as it is, byte for byte.
func printSeedFile(a *app, files []cloudinit.File, name string) error {
	var names []string
	for _, f := range files {
		if f.Name != name {
			names = append(names, f.Name)
			continue
		}
		if a.ui.format == jsonFormat {
			return a.ui.json(map[string]string{f.Name: string(f.Data)})
		}
		_, err := a.ui.out.Write(f.Data)
		return err
	}
	return usageError{fmt.Errorf("want one of %s, got %s", strings.Join(names, ", "), name)}
}

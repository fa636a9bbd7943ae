package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newCompletionCommand(a *app) *cobra.Command {
	shells := []cobra.Completion{"bash", "fish", "zsh"}
	return &cobra.Command{
		Use:   "completion bash|fish|zsh",
		Short: "Print a script that completes vmctl's commands and the names of VMs",
		Long: `Print a script that completes vmctl's commands and the names of VMs. The one for
bash does nothing without the package bash-completion; a package of vmctl has
put all three where they belong.`,
		Example: `  vmctl completion bash > /usr/share/bash-completion/completions/vmctl
  vmctl completion zsh > "${fpath[1]}/_vmctl"
  vmctl completion fish > ~/.config/fish/completions/vmctl.fish`,
		ValidArgs:         shells,
		ValidArgsFunction: cobra.FixedCompletions(shells, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("want bash, fish or zsh")}
			}
			return runCompletion(a, cmd.Root(), args[0])
		},
	}
}

func runCompletion(a *app, root *cobra.Command, shell string) error {
	switch shell {
	case "bash":
		return root.GenBashCompletionV2(a.ui.out, true)
	case "fish":
		return root.GenFishCompletion(a.ui.out, true)
	case "zsh":
		return root.GenZshCompletion(a.ui.out)
	}
	return usageError{fmt.Errorf("want bash, fish or zsh, got %s", shell)}
}

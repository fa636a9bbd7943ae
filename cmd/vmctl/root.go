package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// uid is the calling user's number.
func uid() string { return strconv.Itoa(os.Getuid()) }

// newRootCommand returns vmctl with all its commands.
func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "vmctl",
		Short: "Virtual machines as systemd services",
		Long: `vmctl runs virtual machines as systemd services. A machine NAME is the file
/etc/vmctl/vms/NAME.toml and the unit vm@NAME.service; systemctl, journalctl and
machinectl work on it as on any other.`,
		Example: `  vmctl list
  vmctl start web db
  vmctl console web
  vmctl -H root@host2 show web`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              noCommand,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			// Which cobra does later, and without its status.
			if err := errors.Join(cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups()); err != nil {
				return flagError(cmd, err)
			}
			if cmd.Flags().Changed("host") {
				// The others that have it do not come here.
				if cmd.Annotations[runsHere] == "" {
					return flagError(cmd, fmt.Errorf("--host: %s has no use for it", cmd.CommandPath()))
				}
				if _, err := newFar(a.host); err != nil {
					return err
				}
			}
			a.settle()
			return nil
		},
	}
	root.SetOut(a.ui.out)
	root.SetErr(a.ui.err)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	root.SetHelpTemplate(helpTemplate)

	flags := root.PersistentFlags()
	flags.VarP(&a.ui.format, "output", "o", "how to print: text or json")
	flags.BoolVar(&a.user, userOption, false, "machines of your own service manager, not the system's")
	flags.StringVarP(&a.host, "host", "H", "", "do it on this host, by ssh ([USER@]HOST[:PORT])")
	// Only an unknown flag fails here.
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]cobra.Completion{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	_ = root.RegisterFlagCompletionFunc("host", cobra.NoFileCompletions)

	root.AddGroup(
		&cobra.Group{ID: groupLook, Title: "Look:"},
		&cobra.Group{ID: groupRun, Title: "Run:"},
		&cobra.Group{ID: groupDefine, Title: "Define:"},
		&cobra.Group{ID: groupReach, Title: "Reach:"},
		&cobra.Group{ID: groupParts, Title: "Parts:"},
	)
	root.AddCommand(
		newAPICommand(a),
		newApplyCommand(a),
		newBackupCommand(a),
		newBalloonCommand(a),
		newCheckCommand(a),
		newCloudInitCommand(a),
		newCompletionCommand(a),
		newConsoleCommand(a),
		newCopyCommand(a),
		newCreateCommand(a),
		newDeleteCommand(a),
		newDiffCommand(a),
		newDisableCommand(a),
		newDiskCommand(a),
		newDoctorCommand(a),
		newEditCommand(a),
		newEnableCommand(a),
		newEventsCommand(a),
		newExecCommand(a),
		newHistoryCommand(a),
		newImageCommand(a),
		newImportCommand(a),
		newInfoCommand(a),
		newKillCommand(a),
		newListCommand(a),
		newLogsCommand(a),
		newManualCommand(a),
		newMetricsCommand(a),
		newMonitorCommand(a),
		newNICCommand(a),
		newShareCommand(a),
		newNetworkCommand(a),
		newPauseCommand(a),
		newReloadCommand(a),
		newRenderCommand(a),
		newResetCommand(a),
		newRestartCommand(a),
		newResumeCommand(a),
		newRunCommand(a),
		newSaveCommand(a),
		newSchemaCommand(a),
		newScreenshotCommand(a),
		newSendKeyCommand(a),
		newSetCommand(a),
		newSetPasswordCommand(a),
		newShowCommand(a),
		newSnapshotCommand(a),
		newSSHCommand(a),
		newSSHConfigCommand(a),
		newSSHKeyCommand(a),
		newStartCommand(a),
		newStopCommand(a),
		newTemplateCommand(a),
		newTopCommand(a),
		newUnsetCommand(a),
		newVersionCommand(a),
		newViewCommand(a),
		newWaitCommand(a),
	)
	refuseHelpOfNothing(root)
	return root
}

// userOption is the flag of all commands that some have for something else.
const userOption = "user"

// cutUser takes --user out of a command line where it stands before the command.
// Behind it, some commands have another one: of users of guests, and of cards.
func cutUser(args []string) (rest []string, user bool) {
	for i, arg := range args {
		switch {
		case arg == "--"+userOption || arg == "--"+userOption+"=true":
			user = true
			continue
		case strings.HasPrefix(arg, "-"),
			i > 0 && slices.Contains([]string{"-H", "--host", "-o", "--output"}, args[i-1]),
			arg == cobra.ShellCompRequestCmd, arg == cobra.ShellCompNoDescRequestCmd:
			rest = append(rest, arg)
			continue
		}
		return append(rest, args[i:]...), user
	}
	return rest, user
}

// The groups of the help.
const (
	groupLook   = "look"
	groupRun    = "run"
	groupDefine = "define"
	groupReach  = "reach"
	groupParts  = "parts"
)

// refuseHelpOfNothing has help refuse what is no command: cobra's own tells of
// the root instead.
func refuseHelpOfNothing(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, _ := root.Find([]string{"help"})
	help.Args = func(_ *cobra.Command, args []string) error {
		if found, _, _ := root.Find(args); found == root {
			return noCommand(root, args)
		}
		return nil
	}
}

// flagError refuses the options of a command.
func flagError(cmd *cobra.Command, err error) error {
	if missing, ok := errors.AsType[*notFoundError](err); ok {
		return missing
	}
	return withHint(usageError{err}, cmd.CommandPath()+" --help lists its options")
}

// noCommand refuses what is no command, with the nearest that is.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := usageError{fmt.Errorf("no command is named %s", args[0])}
	var all []string
	for _, c := range cmd.Commands() {
		all = append(all, c.Name())
	}
	if near := nearest(args[0], all); near != "" {
		return withHint(err, didYouMean(near))
	}
	return withHint(err, "vmctl --help lists them")
}

// helpTemplate is cobra's, with the exit statuses below.
const helpTemplate = `{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}

{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}
Exit status: 0 done, 1 failed, 2 usage, 3 no such VM or image, 4 not possible in
this state, 5 timed out, 6 the definition is invalid, 7 not permitted.
`

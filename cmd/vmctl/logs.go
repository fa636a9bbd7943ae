package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
)

// logsOptions are the flags of vmctl logs.
type logsOptions struct {
	follow  bool
	lines   int
	since   string
	until   string
	console bool
}

func newLogsCommand(a *app) *cobra.Command {
	var opts logsOptions
	cmd := &cobra.Command{
		Use:   "logs NAME...",
		Short: "Show the journal of VMs: start and stop, hypervisor, console",
		Long: `Show the journal of VMs: what systemd, the hypervisor and the guest's console
said. journalctl does it; with -o json its JSON, one entry a line.`,
		Example: `  vmctl logs -f web
  vmctl logs --since -1h web db
  vmctl logs --console -n 50 web`,
		GroupID:           groupLook,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE:              func(_ *cobra.Command, args []string) error { return runLogs(a, opts, args) },
	}
	cmd.Flags().BoolVarP(&opts.follow, "follow", "f", false, "go on with what is logged from now on")
	cmd.Flags().IntVarP(&opts.lines, "lines", "n", -1, "show the last `N` lines only")
	// -1, all of them, is nothing to read in the help.
	cmd.Flags().Lookup("lines").DefValue = "0"
	cmd.Flags().StringVar(&opts.since, "since", "", "show what is not older than this `TIME` (see journalctl)")
	cmd.Flags().StringVar(&opts.until, "until", "", "show what is not newer than this `TIME`")
	cmd.Flags().BoolVar(&opts.console, "console", false, "show the guest's console only")
	return cmd
}

// runLogs becomes journalctl.
func runLogs(a *app, opts logsOptions, names []string) error {
	for _, name := range names {
		_, err := a.find(name)
		// The journal outlives the definition.
		if err != nil && !(exitStatus(err) == exitNotFound && a.isLeftBehind(name)) {
			return err
		}
	}
	if err := a.journalDenied(); err != nil {
		return err
	}
	journalctl, err := exec.LookPath("journalctl")
	if err != nil {
		return err
	}
	argv := journalArgv(a.user, a.ui.format, opts, names)
	return fmt.Errorf("running %s: %w", journalctl, syscall.Exec(journalctl, argv, os.Environ()))
}

// journalArgv is the command line of journalctl.
func journalArgv(user bool, f format, opts logsOptions, names []string) []string {
	argv := []string{"journalctl"}
	flag := "--unit="
	if user {
		flag = "--user-unit="
	}
	for _, name := range names {
		argv = append(argv, flag+config.Unit(name))
	}
	if opts.follow {
		argv = append(argv, "--follow")
	}
	if opts.lines >= 0 {
		argv = append(argv, "--lines="+strconv.Itoa(opts.lines))
	}
	if opts.since != "" {
		argv = append(argv, "--since="+opts.since)
	}
	if opts.until != "" {
		argv = append(argv, "--until="+opts.until)
	}
	if f == jsonFormat {
		// --all: a long line is null without it.
		argv = append(argv, "--output=json", "--all")
	}
	if opts.console {
		argv = append(argv, "VMCTL_STREAM=console")
	}
	return argv
}

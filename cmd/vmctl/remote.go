package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// runRemote becomes ssh, which runs the same command on a.host.
func runRemote(a *app, cmd *cobra.Command, args []string) error {
	ssh, err := a.findSSH()
	if err != nil {
		return err
	}
	terminal := isTerminal(os.Stdin) && isTerminal(os.Stdout)
	argv := sshArgv(a.host, terminal, remoteArgs(cmd, args))
	return fmt.Errorf("running %s: %w", ssh, syscall.Exec(ssh, argv, os.Environ()))
}

// findSSH returns the program that reaches a.host.
func (a *app) findSSH() (string, error) {
	// An empty one, of a variable that is not set, must not mean this host.
	if a.host == "" || strings.HasPrefix(a.host, "-") {
		return "", usageError{fmt.Errorf("--host: want [USER@]HOST, got %q", a.host)}
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return "", withHint(err, "--host needs ssh: apt install openssh-client")
	}
	return ssh, nil
}

// remoteArgs are the arguments of cmd as it was called, without --host.
func remoteArgs(cmd *cobra.Command, args []string) []string {
	// The path begins with "vmctl".
	argv := strings.Fields(cmd.CommandPath())[1:]
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.Name == "host" {
			return
		}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			for _, v := range list.GetSlice() {
				argv = append(argv, "--"+f.Name+"="+v)
			}
			return
		}
		argv = append(argv, "--"+f.Name+"="+f.Value.String())
	})
	if len(args) > 0 {
		argv = append(append(argv, "--"), args...)
	}
	return argv
}

// sshArgv is the command line of ssh. It joins its arguments with spaces and
// has a shell read them, so each of ours is quoted.
func sshArgv(host string, terminal bool, args []string) []string {
	argv := []string{"ssh"}
	if terminal {
		// The console and questions need a terminal over there.
		argv = append(argv, "-t")
	}
	argv = append(argv, "--", host, "vmctl")
	for _, arg := range args {
		argv = append(argv, shellQuote(arg))
	}
	return argv
}

// shellQuote makes one word of s for any shell that knows single quotes.
func shellQuote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./:,@%+"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/signal"
	"syscall"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/hypervisor/guestagent"
)

// execOptions are the flags of vmctl exec.
type execOptions struct {
	user    string
	env     []string
	dir     string
	timeout span
	noStdin bool
	stream  bool
}

// maxShown bounds each stream of a command in JSON, in bytes.
const maxShown = 64 << 20

func newExecCommand(a *app) *cobra.Command {
	var opts execOptions
	cmd := &cobra.Command{
		Use:   "exec NAME -- COMMAND [ARGUMENT...]",
		Short: "Run a command in the guest of a VM, by its guest agent",
		Long: `Run a command in the guest of a VM, by its guest agent. Its output comes on stdout
and stderr as it is written; its exit status becomes that of vmctl exec, 128 and
the number of the signal where one ended it, 125 where the user or the directory
is not there, 127 where the command is not. It ends once all have ended that hold
its output, as with ssh. There is no terminal: vmctl console and ssh have one.

What comes on stdin, unless that is a terminal, is read to its end before the
command begins. What follows -- is the command's, options as well.

When vmctl exec is interrupted, when nobody reads its output any more, and after
--timeout (exit status 5), the command and what it has started are ended.

With -o json, stdout has the exit status and both streams once it has ended; with
--stream it has a line of JSON for each piece of them as it is written, in base64,
and at last one with the exit status: {"stdout": "aGkK"}, {"exit_status": 0}.`,
		Example: `  vmctl exec web -- systemctl is-system-running
  vmctl exec --user postgres db -- pg_dump app >app.sql
  vmctl exec web -- sh -c 'cat >/etc/motd' <motd`,
		GroupID:           groupReach,
		Args:              nameAndCommand,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runExec(cmd.Context(), a, opts, args[0], args[1:])
		},
	}
	cmd.Flags().StringVarP(&opts.user, "user", "u", "", "the guest's `USER` that runs it (default root)")
	cmd.Flags().StringArrayVarP(&opts.env, "env", "e", nil, "set a variable of its environment, `KEY=VALUE`")
	cmd.Flags().StringVarP(&opts.dir, "workdir", "w", "", "its working `DIRECTORY` (default the user's home)")
	cmd.Flags().BoolVarP(&opts.noStdin, "no-stdin", "n", false, "do not read stdin")
	cmd.Flags().BoolVar(&opts.stream, "stream", false, "with -o json: print its output as it is written")
	cmd.Flags().Var(&opts.timeout, "timeout", "end it when it takes longer than this, e.g. 30s")
	return cmd
}

// nameAndCommand takes the name of a machine and a command.
func nameAndCommand(_ *cobra.Command, args []string) error {
	if len(args) < 2 {
		return usageError{errors.New("want the name of a VM and a command: vmctl exec NAME -- COMMAND")}
	}
	return nil
}

// shownExec is vmctl exec -o json. Of each stream, either the text is there or,
// where it is no UTF-8, the bytes in base64.
type shownExec struct {
	Name         string `json:"name"`
	ExitStatus   int    `json:"exit_status"`
	Stdout       string `json:"stdout"`
	StdoutBase64 []byte `json:"stdout_base64,omitempty"`
	Stderr       string `json:"stderr"`
	StderrBase64 []byte `json:"stderr_base64,omitempty"`
}

func runExec(ctx context.Context, a *app, opts execOptions, name string, argv []string) error {
	// The command has to be ended where nobody reads what it writes.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := waitOptions{timeout: opts.timeout}.context(ctx)
	defer cancel()
	ctx, stop := untilUnread(ctx, a.ui.out)
	defer stop()
	channel, err := a.agent(ctx, name, "commands run while the VM does")
	if err != nil {
		return fmt.Errorf("exec in %s: %w", name, err)
	}
	defer channel.Release()
	cmd := guestagent.Command{Argv: argv, Env: opts.env, User: opts.user, Dir: opts.dir, Stdout: a.ui.out, Stderr: a.ui.err}
	if !opts.noStdin && !isTerminal(a.ui.in) {
		cmd.Stdin = a.input()
	}
	var stdout, stderr capped
	if a.ui.format == jsonFormat {
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if opts.stream {
			cmd.Stdout, cmd.Stderr = streamed{a.ui, "stdout"}, streamed{a.ui, "stderr"}
		}
	}
	var exit guestagent.Exit
	err = a.noting("exec", "", name, func() (err error) { // which its exit status is no failure of
		exit, err = channel.Run(ctx, cmd)
		return err
	})
	if err != nil && context.Cause(ctx) == errUnread {
		return fmt.Errorf("exec in %s: %w: %v", name, errUnread, err)
	}
	if err != nil {
		return execError(name, err)
	}
	switch {
	case a.ui.format == jsonFormat && opts.stream:
		if err := a.ui.line(map[string]int{"exit_status": exit.Code()}); err != nil {
			return err
		}
	case a.ui.format == jsonFormat:
		s := shownExec{Name: name, ExitStatus: exit.Code()}
		s.Stdout, s.StdoutBase64 = stdout.shown()
		s.Stderr, s.StderrBase64 = stderr.shown()
		if err := a.ui.json(s); err != nil {
			return err
		}
	}
	if exit.Code() != 0 {
		return &statusError{fmt.Errorf("exec in %s: the command ended with exit status %d", name, exit.Code()), exit.Code()}
	}
	return nil
}

// execError is why a command could not be waited for.
func execError(name string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(*guestagent.SilentError)) {
		return fmt.Errorf("exec in %s: it took longer than --timeout: %w", name, err)
	}
	if errors.Is(err, syscall.EPIPE) && errors.As(err, new(*guestagent.LocalError)) {
		return fmt.Errorf("exec in %s: nobody reads the command's output: %w", name, err)
	}
	return agentError("exec in "+name, err)
}

// streamed prints what is written to one of a command's streams, a line of JSON for
// each piece.
type streamed struct {
	ui   *ui
	name string
}

func (s streamed) Write(p []byte) (int, error) {
	if err := s.ui.line(map[string][]byte{s.name: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// capped keeps what is written, up to maxShown.
type capped struct{ bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	if c.Len()+len(p) > maxShown {
		return 0, fmt.Errorf("more output than fits into JSON (%s): leave out -o json", sizeText(maxShown))
	}
	return c.Buffer.Write(p)
}

func (c *capped) shown() (string, []byte) {
	if utf8.Valid(c.Bytes()) {
		return c.String(), nil
	}
	return "", c.Bytes()
}

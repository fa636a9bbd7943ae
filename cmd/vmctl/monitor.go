package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/console"
)

// othersTurn is how long somebody else may have the hypervisor's monitor before
// it is said to be taken.
const othersTurn = 3 * time.Second

// monitorOptions are the flags of vmctl monitor.
type monitorOptions struct {
	command string
	native  bool
}

func newMonitorCommand(a *app) *cobra.Command {
	var opts monitorOptions
	cmd := &cobra.Command{
		Use:   "monitor NAME",
		Short: "Speak to the hypervisor of a VM",
		Long: `Speak to the hypervisor of a VM: of QEMU, by the commands of its HMP, such as
"info block" and "help". What you change there vmctl knows nothing of.

With --qmp the protocol is QMP, as it is: JSON, first of all
{"execute": "qmp_capabilities"}. It serves one at a time.

Ctrl-] begins a command: q leaves, d presses Ctrl-Alt-Del, ? helps. Where stdin is
no terminal, its lines are the commands, up to one that fails.`,
		Example: `  vmctl monitor web
  vmctl monitor web --command 'info block'
  vmctl monitor web --qmp --command '{"execute": "query-status"}'`,
		GroupID:           groupReach,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("command") && strings.TrimSpace(opts.command) == "" {
				return usageError{errors.New("--command: want a command, got none")}
			}
			return runMonitor(cmd.Context(), a, opts, args[0])
		},
	}
	cmd.Flags().StringVarP(&opts.command, "command", "c", "", "run this one, print what it says, and end")
	cmd.Flags().BoolVar(&opts.native, "qmp", false, "speak QMP")
	_ = cmd.RegisterFlagCompletionFunc("command", cobra.NoFileCompletions)
	return cmd
}

func runMonitor(ctx context.Context, a *app, opts monitorOptions, name string) error {
	if a.ui.format == jsonFormat && opts.command == "" {
		return usageError{errors.New("want --command with -o json")}
	}
	l, err := a.lookUp(ctx, name, "the monitor is there while the VM runs", starting, loading, running, paused, stopping, saving)
	if err != nil {
		return fmt.Errorf("monitor of %s: %w", name, err)
	}
	switch {
	case opts.command != "":
		err = a.oneCommand(ctx, l, opts)
	case opts.native && !isTerminal(a.ui.in):
		err = a.converse(ctx, l, a.ui.in, a.ui.out)
	case !isTerminal(a.ui.in):
		err = a.commandLines(ctx, l)
	default:
		err = a.atMonitor(ctx, l, opts.native)
	}
	if err = quietEnd(err); err != nil {
		return fmt.Errorf("monitor of %s: %w", name, err)
	}
	return nil
}

// oneCommand runs one command and prints its answer.
func (a *app) oneCommand(ctx context.Context, l look, opts monitorOptions) error {
	answer, err := a.command(ctx, l, opts.command, opts.native)
	if err != nil {
		return err
	}
	switch {
	case !opts.native && isRefusal(answer):
		return errors.New(strings.TrimSpace(answer))
	case a.ui.format != jsonFormat:
		printAnswer(a.ui.out, answer)
		return nil
	case opts.native:
		return a.ui.json(json.RawMessage(answer))
	}
	return a.ui.json(map[string]string{"name": l.vm.Name, "output": answer})
}

// isRefusal says whether the answer of QEMU's monitor for people is that a command
// is not known, was given wrongly, or failed (monitor/hmp.c): it has no other sign.
func isRefusal(answer string) bool {
	return strings.HasPrefix(answer, "unknown command: ") || strings.HasPrefix(answer, "Error: ") || strings.Contains(answer, "\nTry \"help ")
}

// command runs one command. The connection is not kept: others have their turn
// while a person thinks.
func (a *app) command(ctx context.Context, l look, command string, native bool) (string, error) {
	conn, commander, err := a.commander(ctx, l)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if native {
		return commander.Native(ctx, command)
	}
	answer, err := commander.Human(ctx, command)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return "", nil // "quit"
	}
	return strings.ReplaceAll(answer, "\r\n", "\n"), err
}

// printAnswer prints what a command has said, if anything, as lines.
func printAnswer(w io.Writer, answer string) {
	if answer = strings.TrimRight(answer, "\n"); answer != "" {
		fmt.Fprintln(w, answer)
	}
}

// commandLines runs each line of stdin.
func (a *app) commandLines(ctx context.Context, l look) error {
	lines := bufio.NewScanner(a.ui.in)
	for lines.Scan() {
		command := strings.TrimSpace(lines.Text())
		if command == "" {
			continue
		}
		answer, err := a.command(ctx, l, command, false)
		if err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		if isRefusal(answer) {
			return fmt.Errorf("%s: %s", command, strings.TrimSpace(answer))
		}
		printAnswer(a.ui.out, answer)
	}
	return lines.Err()
}

// converse speaks the hypervisor's own protocol.
func (a *app) converse(ctx context.Context, l look, in io.Reader, out io.Writer) error {
	h, socket, done, err := a.ownSocket(l)
	if err != nil {
		return err
	}
	defer done()
	c, ok := h.(hypervisor.Converser)
	if !ok {
		return impossible("QMP", l)
	}
	err = c.Converse(ctx, socket, in, out)
	if errors.Is(err, context.DeadlineExceeded) {
		return errOthersTurn
	}
	return asAbsent(l, err)
}

// atMonitor is a person at a terminal. What the terminal edits and shows is
// passed through a [console.Session], for its escape key.
func (a *app) atMonitor(ctx context.Context, l look, native bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ours, theirs := net.Pipe()
	defer ours.Close()
	prompt := "(" + l.vm.Name + ") "
	if native {
		prompt = ""
	}
	terminal := term.NewTerminal(theirs, prompt)
	if width, height, err := term.GetSize(int(a.ui.in.Fd())); err == nil && width > 0 {
		// Of more there is no use: it wraps by itself.
		_ = terminal.SetSize(width, height)
	}
	ended := make(chan error, 1)
	go func() {
		defer theirs.Close()
		if native {
			ended <- a.talkNative(ctx, l, terminal)
			return
		}
		ended <- a.talkHuman(ctx, l, terminal)
	}()
	session := console.Session{In: a.ui.in, Out: a.ui.out, CtrlAltDel: func() error { return a.ctrlAltDel(ctx, l.vm.Name) }}
	err := a.inTerminal("Monitor of "+l.vm.Name+". Ctrl-] q leaves, Ctrl-] ? helps.", func() error { return session.Run(ctx, ours) })
	if err != nil {
		return err
	}
	return <-ended
}

// talkHuman runs what a person types, until the person or the hypervisor ends.
func (a *app) talkHuman(ctx context.Context, l look, terminal *term.Terminal) error {
	for {
		line, err := terminal.ReadLine()
		if errors.Is(err, io.EOF) {
			return nil // Ctrl-D
		}
		if err != nil {
			return err
		}
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		answer, err := a.command(ctx, l, line, false)
		if _, gone := errors.AsType[*transitionError](err); gone {
			fmt.Fprintf(terminal, "%s has ended.\n", l.vm.Name)
			return nil
		}
		if err != nil {
			answer = err.Error()
		}
		printAnswer(terminal, answer)
	}
}

// talkNative passes on what a person types, where it is JSON, and what comes.
func (a *app) talkNative(ctx context.Context, l look, terminal *term.Terminal) error {
	commands, typed := io.Pipe()
	go func() {
		for {
			line, err := terminal.ReadLine()
			if err != nil {
				typed.CloseWithError(err) // io.EOF for Ctrl-D
				return
			}
			if line = strings.TrimSpace(line); line != "" && !json.Valid([]byte(line)) {
				fmt.Fprintln(terminal, "want a command in JSON, all of it on one line")
				continue
			}
			if _, err := io.WriteString(typed, line+"\n"); err != nil {
				return
			}
		}
	}()
	defer commands.Close()
	return a.converse(ctx, l, commands, terminal)
}

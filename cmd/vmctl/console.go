package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/console"
)

// consoleOptions are the flags of vmctl console.
type consoleOptions struct {
	log    bool
	follow bool
}

func newConsoleCommand(a *app) *cobra.Command {
	var opts consoleOptions
	cmd := &cobra.Command{
		Use:   "console NAME",
		Short: "Sit down at the text console of a VM",
		Long: `Sit down at the text console of a VM: first what was written so far, then what is
being written, and what you type. Several people may, at once.

Ctrl-] begins a command: q leaves, d presses Ctrl-Alt-Del, ? helps, and Ctrl-]
types itself.

Where stdin is no terminal, its bytes are typed as they are, Ctrl-] too, and
after its end the console is shown until the VM ends.`,
		Example: `  vmctl console web
  vmctl console --log web | less -R`,
		GroupID:           groupReach,
		Args:              oneName,
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runConsole(cmd.Context(), a, opts, args[0])
		},
	}
	cmd.Flags().BoolVar(&opts.log, "log", false, "print what was written so far, and end")
	cmd.Flags().BoolVarP(&opts.follow, "follow", "f", false, "print what was and is being written, and type nothing")
	return cmd
}

func (a *app) dialConsole(ctx context.Context, name string, mode console.Mode) (*console.Conn, error) {
	socket, done, err := access.Socket(a.paths.ConsoleSocket(name))
	if err != nil {
		return nil, err
	}
	defer done()
	return console.Dial(ctx, socket, mode)
}

func runConsole(ctx context.Context, a *app, opts consoleOptions, name string) error {
	if a.ui.format == jsonFormat {
		return usageError{errors.New("the console is bytes, not JSON")}
	}
	if err := checkName(name); err != nil {
		return err
	}
	ctx, stop := untilUnread(ctx, a.ui.out)
	defer stop()
	mode := console.ModeAttach
	switch {
	case opts.follow:
		mode = console.ModeFollow
	case opts.log:
		mode = console.ModeLog
	}
	conn, err := a.dialConsole(ctx, name, mode)
	if err != nil {
		return a.noConsole(ctx, name, err)
	}
	defer conn.Close()
	if mode != console.ModeAttach {
		return quietEnd(console.Copy(ctx, conn, a.ui.out))
	}
	if !isTerminal(a.ui.in) {
		// An error of either side ends the other.
		go func() { _, _ = io.Copy(conn, a.ui.in) }()
		return quietEnd(console.Copy(ctx, conn, a.ui.out))
	}
	out := &lineCounter{Writer: a.ui.out}
	session := console.Session{
		In:         a.ui.in,
		Out:        out,
		CtrlAltDel: func() error { return a.ctrlAltDel(ctx, name) },
	}
	conn.Live = func() {
		if out.lines >= height(a.ui.in) {
			fmt.Fprint(a.ui.err, "\r\n"+consoleHint(name)+"\r\n")
		}
	}
	return a.sitDown(name, func() error { return session.Run(ctx, conn) })
}

// consoleHint is what a person at a console has to know.
func consoleHint(name string) string {
	return "Console of " + name + ". Ctrl-] q leaves, Ctrl-] ? helps."
}

// lineCounter counts the lines that are written.
type lineCounter struct {
	io.Writer
	lines int
}

func (c *lineCounter) Write(p []byte) (int, error) {
	c.lines += bytes.Count(p, []byte("\n"))
	return c.Writer.Write(p)
}

// height is how many lines a terminal shows: with as many more, the first one
// is out of sight.
func height(terminal *os.File) int {
	_, lines, err := term.GetSize(int(terminal.Fd()))
	if err != nil || lines <= 1 {
		return 24 // one that does not say: a serial line, for one
	}
	return lines - 1
}

// leaveTerminal takes back what guests commonly set in a terminal and leave so:
// colours, no wrapping (SeaBIOS), no cursor, the other meanings of the keypad
// and the cursor keys, bracketed paste (bash), and the mouse.
const leaveTerminal = "\x1b[0m\x1b[?7h\x1b[?25h\x1b>\x1b[?1l\x1b[?2004l\x1b[?1000l"

// sitDown is a person at the console.
func (a *app) sitDown(name string, session func() error) error {
	err := a.inTerminal(consoleHint(name), session)
	if err == nil {
		fmt.Fprintf(a.ui.err, "%s has ended.\n", name)
	}
	return quietEnd(err)
}

// inTerminal runs a session with the terminal in raw mode, which it gives back
// as it was. A person is told hint first.
func (a *app) inTerminal(hint string, session func() error) error {
	fd := int(a.ui.in.Fd())
	fmt.Fprintln(a.ui.err, hint)
	old, err := term.MakeRaw(fd)
	if err != nil {
		return err
	}
	defer term.Restore(fd, old)
	err = session()
	fmt.Fprint(a.ui.err, leaveTerminal+"\r\n")
	return err
}

// quietEnd is err but for what is a good end of a console: leaving it by the
// escape key or by a signal.
func quietEnd(err error) error {
	if errors.Is(err, console.ErrDetached) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// noConsole says why there is no console.
func (a *app) noConsole(ctx context.Context, name string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("console of %s: %w", name, err)
	}
	if _, err := a.find(name); err != nil {
		return err
	}
	from := stopped
	// Without systemd there is no better guess.
	if conn, err := a.dial(ctx); err == nil {
		defer conn.Close()
		if l, err := a.lookAt(ctx, conn, name); err == nil {
			from = l.state
		}
	}
	if from == running || from == paused {
		return withHint(fmt.Errorf("console of %s: nothing serves it any more: the machine's monitor has ended", name),
			"the machine runs on; vmctl restart "+name+" brings the console back")
	}
	return withHint(fmt.Errorf("console of %s: %w", name, &transitionError{From: from, Reason: "the console is there while the VM runs"}),
		"vmctl logs --console "+name+" shows what was written earlier")
}

// ctrlAltDel presses the three keys.
func (a *app) ctrlAltDel(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l := look{vm: config.VM{Name: name}, record: a.readRecord(name)}
	c, err := a.control(ctx, l)
	if err != nil {
		return err
	}
	defer c.Close()
	keys, ok := c.(hypervisor.KeySender)
	if !ok {
		return impossible("pressing keys", l)
	}
	return keys.SendKeys(ctx, 0, "ctrl", "alt", "delete")
}

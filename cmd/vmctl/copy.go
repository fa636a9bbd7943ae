package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/guestcopy"
)

// guestCopyOptions are the flags of vmctl copy.
type guestCopyOptions struct {
	recursive bool
	via       copyVia
	user      string
	timeout   span
}

func newCopyCommand(a *app) *cobra.Command {
	opts := guestCopyOptions{via: viaAuto}
	cmd := &cobra.Command{
		Use:   "copy SOURCE NAME:DESTINATION | NAME:SOURCE DESTINATION",
		Short: "Copy files into the guest of a VM, or out of it, by its guest agent or ssh",
		Long: `Copy files into the guest of a VM, or out of it: a file, with -r a directory, or for
- what comes on stdin or goes to stdout. It goes by the guest agent, or where none
answers or it is not allowed to, by ssh as vmctl ssh has it; --via names one of the
two. Paths of the guest begin at its user's home: by the agent that is root, by ssh
whoever logs in, cloud_init.user or else root. A directory as destination is what it is put into. Modes
and times are kept, here without what the umask takes away and without writing by
others; in the guest, files belong to whoever is there already or to the user, here
to you.

What arrives is compared by size and SHA-256, and then gets its name, in place of
a file that had it: until then that is as it was. A directory replaces nothing.

With -H, the VM is on that host and the files are here; it goes by the agent.`,
		Example: `  vmctl copy nginx.conf web:/etc/nginx/nginx.conf
  vmctl copy -r web:/var/log/nginx logs
  pg_dump app | vmctl copy - db:/srv/app.sql`,
		GroupID:     groupReach,
		Annotations: map[string]string{runsHere: alwaysHere},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{fmt.Errorf("want a source and a destination, got %d arguments", len(args))}
			}
			return nil
		},
		ValidArgsFunction: a.completeCopy,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCopy(cmd.Context(), a, opts, args[0], args[1])
		},
	}
	cmd.Flags().BoolVarP(&opts.recursive, "recursive", "r", false, "copy a directory, and all in it")
	cmd.Flags().StringVarP(&opts.user, "user", "u", "", "the guest's `USER` at whose home paths begin, and whose the files become")
	cmd.Flags().Var(&opts.via, "via", "how they get there: agent, ssh, or auto for the first that works")
	// Only an unknown flag fails here.
	_ = cmd.RegisterFlagCompletionFunc("via", cobra.FixedCompletions([]cobra.Completion{"agent", "auto", "ssh"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().Var(&opts.timeout, "timeout", "give up after this, e.g. 10min")
	return cmd
}

// completeCopy completes files, and the names of machines with a colon.
func (a *app) completeCopy(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := a.completeNames(cmd, nil, prefix)
	for i := range names {
		names[i] += ":"
	}
	return names, cobra.ShellCompDirectiveNoSpace
}

// guestPath is one side of a copy: of a guest, or with name "" of this host.
type guestPath struct{ name, path string }

func (p guestPath) String() string {
	if p.name == "" {
		return p.path
	}
	return p.name + ":" + p.path
}

// parseGuestPath takes what is before a colon for a machine, unless it has a
// slash in it.
func parseGuestPath(arg string) (guestPath, error) {
	name, path, ok := strings.Cut(arg, ":")
	if !ok || strings.Contains(name, "/") {
		return guestPath{"", arg}, nil
	}
	if err := checkName(name); err != nil {
		return guestPath{}, withHint(err, "a file whose name has a colon in it is written ./"+arg)
	}
	if path == "" {
		path = "."
	}
	return guestPath{name, path}, nil
}

// shownCopy is vmctl copy -o json.
type shownCopy struct {
	Name        string `json:"name"`
	Destination string `json:"destination"` // the path that it has; "-" for a stream
	Bytes       int64  `json:"bytes"`       // that went through: of a directory those of its archive
	SHA256      string `json:"sha256"`      // of those
	Via         string `json:"via"`         // "agent" or "ssh"
}

func runCopy(ctx context.Context, a *app, opts guestCopyOptions, source, destination string) error {
	src, err := parseGuestPath(source)
	if err != nil {
		return err
	}
	dst, err := parseGuestPath(destination)
	if err != nil {
		return err
	}
	name := src.name + dst.name
	switch {
	case (src.name == "") == (dst.name == ""):
		return usageError{errors.New("want one of source and destination in a guest, NAME:PATH, and the other here")}
	case dst.path == "-" && dst.name == "" && a.ui.format == jsonFormat:
		return usageError{errors.New("stdout has either the file or JSON")}
	}
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := waitOptions{timeout: opts.timeout}.context(ctx)
	defer cancel()
	var result guestcopy.Result
	var via copyVia
	copied := func() (err error) {
		result, via, err = a.copyBy(ctx, opts, name, src, dst)
		return err
	}
	if a.host == "" { // else it is that host's to keep
		err = a.noting("copy", "", name, copied)
	} else {
		err = copied()
	}
	if err != nil {
		return agentError(fmt.Sprintf("copy %s to %s", src, dst), err)
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(shownCopy{name, result.Destination, result.Bytes, result.SHA256, string(via)})
	}
	if dst.name != "" {
		result.Destination = name + ":" + result.Destination
	}
	if result.Destination != "-" {
		a.ui.printf("%s: %s copied", result.Destination, sizeText(result.Bytes))
	}
	return nil
}

// copyThrough copies in the direction that is asked for.
func (a *app) copyThrough(ctx context.Context, g guestcopy.Guest, opts guestCopyOptions, src, dst guestPath) (guestcopy.Result, error) {
	defer a.ui.clearLine()
	progress := a.copyProgress(src.String())
	switch {
	case src.name != "" && dst.path == "-":
		return guestcopy.PullStream(ctx, g, src.path, a.ui.out, progress)
	case src.name != "":
		return guestcopy.Pull(ctx, g, src.path, dst.path, opts.recursive, progress)
	case src.path == "-":
		return guestcopy.PushStream(ctx, g, a.input(), dst.path, progress)
	}
	return guestcopy.Push(ctx, g, src.path, dst.path, opts.recursive, progress)
}

// copyProgress shows how far a copy is, on a terminal.
func (a *app) copyProgress(what string) guestcopy.Progress {
	if a.ui.format != textFormat || !isTerminal(a.ui.err) {
		return func(int64, int64) {}
	}
	var shown time.Time
	return func(done, total int64) {
		if time.Since(shown) < pollInterval {
			return
		}
		shown = time.Now()
		line := filepath.Base(what) + ": " + sizeText(done)
		if total > 0 {
			line += fmt.Sprintf(" (%d %% of %s)", done*100/total, config.Size(total))
		}
		a.ui.drawLine(line)
	}
}

// limited keeps the beginning of what is written: enough of an error.
type limited struct{ w *bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	const enough = 4 << 10
	l.w.Write(p[:min(len(p), max(0, enough-l.w.Len()))])
	return len(p), nil
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/units/bus"
	"github.com/vmctl/vmctl/units/journal"
)

// historyOptions are the flags of vmctl events and vmctl history.
type historyOptions struct {
	lines    int
	since    string
	until    string
	noFollow bool
	after    string // a cursor
}

func (o *historyOptions) addFlags(cmd *cobra.Command) {
	cmd.Flags().IntVarP(&o.lines, "lines", "n", -1, "show the last `N` only")
	cmd.Flags().Lookup("lines").DefValue = "0" // -1, all of them, is nothing to read in the help
	cmd.Flags().StringVar(&o.since, "since", "", "show what is not older than this `TIME` (see journalctl)")
	cmd.Flags().StringVar(&o.until, "until", "", "show what is not newer than this `TIME`")
}

func newEventsCommand(a *app) *cobra.Command {
	var opts historyOptions
	cmd := &cobra.Command{
		Use:   "events [NAME...]",
		Short: "Follow what happens to VMs: starts, ends, reboots, panics, disk errors, agents",
		Long: `Follow what happens to VMs, those named or all: that they start and stop, why they
ended, that they are paused, that the guest reboots or panics, that a disk fails,
that the guest agent comes and goes, and what people have done to them. With -o json
one object a line. It is all in the journal, in the order in which it happened. A
reader that is slow, or stands still for a while, is waited for, however long, and
holds up nobody else: it misses nothing that the journal still has when it goes on
(SystemMaxUse= in journald.conf(5)). The command ends when its reader has gone.`,
		Example: `  vmctl events
  vmctl events --since -1h --no-follow web
  vmctl events -o json | jq -r 'select(.event == "ended") | .vm + ": " + .detail'`,
		GroupID:           groupLook,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !opts.noFollow && opts.lines < 0 && opts.since == "" {
				opts.lines = 0 // from now on
			}
			return runEvents(cmd.Context(), a, opts, args)
		},
	}
	opts.addFlags(cmd)
	cmd.Flags().BoolVar(&opts.noFollow, "no-follow", false, "end with what has happened so far")
	return cmd
}

func runEvents(ctx context.Context, a *app, opts historyOptions, names []string) error {
	if err := a.heardOf(ctx, names); err != nil {
		return err
	}
	ctx, stop := untilUnread(ctx, a.ui.out)
	defer stop()
	if opts.lines <= 0 {
		return a.eachEvent(ctx, opts, names, nil, a.printEvent)
	}
	begun := time.Now()
	last, err := a.lastEvents(ctx, opts, names, nil)
	if err != nil {
		return err
	}
	for _, e := range last {
		if err := a.printEvent(e); err != nil {
			return err
		}
	}
	if opts.noFollow {
		return nil
	}
	on := historyOptions{lines: -1, until: opts.until, since: "@" + strconv.FormatInt(begun.Unix(), 10)}
	if len(last) > 0 {
		on.since, on.after = "", last[len(last)-1].Cursor
	}
	return a.eachEvent(ctx, on, names, nil, a.printEvent)
}

// heardOf refuses names of which there is no machine, and never was one as far as
// the journal goes.
func (a *app) heardOf(ctx context.Context, names []string) error {
	for _, name := range names {
		_, err := a.find(name)
		if err == nil || a.isLeftBehind(name) {
			continue
		}
		if exitStatus(err) != exitNotFound {
			return err
		}
		past, journalErr := a.lastEvents(ctx, historyOptions{lines: 1}, []string{name}, nil)
		if journalErr != nil {
			return journalErr
		}
		if len(past) == 0 {
			return err
		}
	}
	return nil
}

// lastEvents are the last of those that have happened so far, as many as the
// options say, or all.
func (a *app) lastEvents(ctx context.Context, opts historyOptions, names []string, kinds []journal.Kind) ([]journal.Event, error) {
	all, lines := []journal.Event{}, opts.lines
	opts.noFollow, opts.lines = true, -1 // the journal's lines are of others too
	err := a.eachEvent(ctx, opts, names, kinds, func(e journal.Event) error {
		all = append(all, e)
		return nil
	})
	if lines >= 0 {
		all = all[max(0, len(all)-lines):]
	}
	return all, err
}

func newHistoryCommand(a *app) *cobra.Command {
	opts := historyOptions{noFollow: true}
	cmd := &cobra.Command{
		Use:   "history [NAME...]",
		Short: "Show what was done to VMs: when, by whom, how long it took, how it went",
		Long: `Show what was done to VMs by vmctl, those named or all, and how they ended: when,
who did it, how long it took, and what came of it; also that commands ran in the
guest, files were copied and keys and passwords set, but not which. It is what the
journal keeps.
What was done by systemctl shows in vmctl events.`,
		Example: `  vmctl history web
  vmctl history --since today -o json`,
		GroupID:           groupLook,
		ValidArgsFunction: a.completeNames,
		RunE:              func(cmd *cobra.Command, args []string) error { return runHistory(cmd.Context(), a, opts, args) },
	}
	opts.addFlags(cmd)
	return cmd
}

func runHistory(ctx context.Context, a *app, opts historyOptions, names []string) error {
	if err := a.heardOf(ctx, names); err != nil {
		return err
	}
	all, err := a.lastEvents(ctx, opts, names, []journal.Kind{journal.Operation, journal.Ended})
	if err != nil {
		return err
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(all)
	}
	table := [][]string{{"TIME", "NAME", "WHAT", "BY", "TOOK", "RESULT"}}
	for _, e := range all {
		what, by, took, result := string(e.Kind), "-", "-", e.Detail
		if e.Kind == journal.Operation {
			what, by, took, result = strings.TrimSpace(e.Operation+" "+e.Device), e.User, tookText(e.Took), "done"
			if e.Failed {
				result = "failed: " + e.Detail
			}
		}
		table = append(table, []string{e.Time.Format(time.DateTime), e.VM, printable(what), printable(by), took, printable(result)})
	}
	return writeTable(a.ui.out, table)
}

// tookText is a duration for people, to a tenth of a second.
func tookText(d time.Duration) string {
	if d < time.Minute {
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + "s"
	}
	return d.Round(time.Second).String()
}

// printEvent prints one event: JSON on a line, or a line for people.
func (a *app) printEvent(e journal.Event) error {
	if a.ui.format == jsonFormat {
		return a.ui.line(e)
	}
	text := string(e.Kind)
	if e.Kind == journal.Operation {
		operation := strings.TrimSpace(e.Operation + " " + e.Device)
		text = operation + " by " + e.User + ": done in " + tookText(e.Took)
		if e.Failed {
			text = operation + " by " + e.User + ": failed"
		}
	}
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	_, err := fmt.Fprintf(a.ui.out, "%s %s: %s\n", e.Time.Format("2006-01-02 15:04:05.000"), e.VM, printable(text))
	return err
}

// eachEvent calls do for the events of machines, or of all, of the kinds given, or
// of all, in their order, until there are no more or ctx ends.
func (a *app) eachEvent(ctx context.Context, opts historyOptions, names []string, kinds []journal.Kind, do func(journal.Event) error) error {
	for _, name := range names {
		if err := checkName(name); err != nil {
			return err
		}
	}
	if err := a.journalDenied(); err != nil {
		return err
	}
	uid := ""
	if a.user {
		uid = strconv.Itoa(os.Getuid())
	}
	argv := eventArgv(a.user, opts, kinds)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = readEvents(out, uid, names, do)
	if err != nil {
		cancel()
	}
	if waitErr := cmd.Wait(); err == nil && waitErr != nil && ctx.Err() == nil {
		return fmt.Errorf("journalctl: %w: %s", waitErr, strings.TrimSpace(complaint.String()))
	}
	return err
}

// readEvents reads what journalctl prints.
func readEvents(r io.Reader, uid string, names []string, do func(journal.Event) error) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var entry journal.Entry
			if json.Unmarshal(line, &entry) == nil {
				if e, ok := entry.Event(uid); ok && (len(names) == 0 || slices.Contains(names, e.VM)) {
					if err := do(e); err != nil {
						return err
					}
				}
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// eventArgv is the command line of journalctl for events.
func eventArgv(user bool, opts historyOptions, kinds []journal.Kind) []string {
	argv := []string{"journalctl", "--quiet", "--output=json", "--all"}
	if user {
		argv = append(argv, "--user")
	}
	if !opts.noFollow {
		argv = append(argv, "--follow")
		if opts.lines < 0 {
			argv = append(argv, "--no-tail")
		}
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
	if opts.after != "" {
		argv = append(argv, "--after-cursor="+opts.after)
	}
	return append(argv, journal.Matches(kinds...)...)
}

// noted is do, of which the journal keeps who had it done and how it went.
func (a *app) noted(op transition, do action) action {
	return func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		begun := time.Now()
		text, err := do(ctx, conn, name)
		a.note(string(op), "", name, begun, err)
		return text, err
	}
}

// noting does something to a machine, or to a disk or card of it, and keeps that in the
// journal.
func (a *app) noting(op, device, name string, do func() error) error {
	begun := time.Now()
	err := do()
	a.note(op, device, name, begun, err)
	return err
}

// callerVariable is in whose name something is done, where vmctl-api has it done.
const callerVariable = "VMCTL_CALLER"

// note keeps in the journal what was done to a machine, or to a disk or card of it
// ("nic.lan"). A host without a journal keeps nothing.
func (a *app) note(op, device, name string, begun time.Time, err error) {
	e := journal.Event{VM: name, Kind: journal.Operation, Operation: op, Device: device, User: os.Getenv(callerVariable), Took: time.Since(begun), Failed: err != nil}
	text, priority := op+": done", sdjournal.PriInfo
	if err != nil {
		if exitStatus(err) == exitNotFound {
			return // there is no such machine that this could be of
		}
		e.Detail = strings.Join(strings.Fields(err.Error()), " ")
		text, priority = op+": failed: "+e.Detail, sdjournal.PriWarning
	}
	_ = journal.Send(e, a.user, text, priority)
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/bus"
)

// waitOptions are the flags of commands that wait for systemd.
type waitOptions struct {
	noWait  bool
	timeout span
	all     bool
}

func (o *waitOptions) addFlags(flags *pflag.FlagSet, all string) {
	flags.BoolVar(&o.noWait, "no-wait", false, "do not wait until it is done")
	flags.Var(&o.timeout, "timeout", "wait no longer than this, e.g. 30s; it goes on all the same")
	flags.BoolVarP(&o.all, "all", "a", false, all)
}

// context bounds ctx by the timeout, where there is one.
func (o waitOptions) context(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.timeout == 0 || config.Duration(o.timeout) == config.Infinity {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(o.timeout))
}

// namesOrAll accepts either names or --all.
func namesOrAll(cmd *cobra.Command, args []string) error {
	all, err := cmd.Flags().GetBool("all")
	switch {
	case err != nil:
		return err
	case all && len(args) > 0:
		return usageError{errors.New("want names or --all, got both")}
	case !all && len(args) == 0:
		return usageError{errors.New("want the name of a VM, or --all")}
	}
	return nil
}

// action is one operation on one machine. It returns what has happened, in a
// few words: "started".
type action func(ctx context.Context, conn *bus.Conn, name string) (string, error)

// result is one machine in the JSON of a command on several.
type result struct {
	Name   string     `json:"name"`
	Result string     `json:"result"` // in a few words, "" where it failed
	Error  *errorJSON `json:"error"`
}

// each does an operation on several machines at once, and says of each what
// has come of it as soon as it is known. The error is that of the one that
// ended worst.
func (a *app) each(ctx context.Context, op transition, names []string, do action) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if op != opWait {
		do = a.noted(op, do)
	}
	return a.eachOn(ctx, conn, op, names, do)
}

// eachOn is each on a connection that is there.
func (a *app) eachOn(ctx context.Context, conn *bus.Conn, op transition, names []string, do action) error {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	progress := a.ui.progress(string(op), names)
	results := make([]result, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			text, err := do(ctx, conn, name)
			results[i].Name = name
			progress.done(name)
			if err != nil {
				errs[i] = inName(string(op), name, err)
				results[i].Error = new(newErrorJSON(errs[i]))
				a.ui.errorf(errs[i])
				return
			}
			results[i].Result = text
			a.ui.printf("%s: %s", name, text)
		})
	}
	wg.Wait()
	progress.stop()
	if a.ui.format == jsonFormat {
		if err := a.ui.json(results); err != nil {
			return err
		}
	}
	return worst(errs)
}

// worst is the error with the highest exit status, nil where there is none. It
// has been told already.
func worst(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	err := slices.MaxFunc(errs, func(a, b error) int { return cmp.Compare(exitStatus(a), exitStatus(b)) })
	return &statusError{err, exitStatus(err)}
}

// targets are the machines that a command is for: those named, or with --all
// those in whose state op is possible and does something.
func (a *app) targets(ctx context.Context, op transition, all bool, names []string) ([]string, error) {
	if !all {
		return names, nil
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	looks, _, err := a.lookAll(ctx, conn)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range looks {
		if affects(op, l.state) && !(op == opStart && (l.isLeftover() || l.masked)) {
			out = append(out, l.vm.Name)
		}
	}
	return out, nil
}

// affects says whether op --all concerns a machine in a state.
func affects(op transition, from state) bool {
	switch op {
	case opStart:
		return from == stopped || from == failed || from == saved
	case opKill, opReset, opRestart:
		return from == running || from == paused
	}
	return allowed(op, from) == nil
}

// progress shows what is still waited for, on a terminal only.
type progress struct {
	ui   *ui
	verb string
	wake chan struct{}
	over sync.WaitGroup

	mu   sync.Mutex
	left []string
}

// progress begins to show that verb is being done to names.
func (u *ui) progress(verb string, names []string) *progress {
	p := &progress{ui: u, verb: verb, wake: make(chan struct{}), left: slices.Clone(names)}
	if u.format == textFormat && isTerminal(u.err) {
		p.over.Go(p.show)
	}
	return p
}

// done takes a name off.
func (p *progress) done(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = slices.DeleteFunc(p.left, func(s string) bool { return s == name })
	p.ui.clearLine()
}

// stop ends it.
func (p *progress) stop() {
	close(p.wake)
	p.over.Wait()
}

// show redraws a line each second.
func (p *progress) show() {
	begin := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-p.wake:
			p.ui.clearLine()
			return
		case <-tick.C:
		}
		p.mu.Lock()
		line := fmt.Sprintf("%s %s ... %s", p.verb, strings.Join(p.left, ", "), time.Since(begin).Round(time.Second))
		p.mu.Unlock()
		p.ui.drawLine(line)
	}
}

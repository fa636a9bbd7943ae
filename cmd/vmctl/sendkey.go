package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

const (
	// chordHold and textHold are how long keys are held, unless told otherwise.
	// A guest that is slow to fetch what its keyboard has loses keys.
	chordHold = 100 * time.Millisecond
	textHold  = 30 * time.Millisecond
	maxHold   = time.Minute
)

// sendKeyOptions are the flags of vmctl sendkey.
type sendKeyOptions struct {
	text string
	hold span
}

func newSendKeyCommand(a *app) *cobra.Command {
	var opts sendKeyOptions
	cmd := &cobra.Command{
		Use:   "sendkey NAME [KEY...]",
		Short: "Press keys of a VM",
		Long: `Press keys of a VM, one KEY after another. A KEY is the name of a key of a US
keyboard, or several with "-" between them, which are pressed together. Letters
and digits are named as they are, others: esc f1 ret spc tab backspace ctrl alt
shift meta_l up down left right pgup pgdn home end insert delete minus equal dot
comma slash; completion knows all.

--text types a text as on a US keyboard, before the KEYs; the guest sees something
else where it has another keyboard.`,
		Example: `  vmctl sendkey web ctrl-alt-delete
  vmctl sendkey web esc f2
  vmctl sendkey web --text root ret`,
		GroupID: groupReach,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return oneName(cmd, args)
			}
			if len(args) == 1 && !cmd.Flags().Changed("text") {
				return usageError{errors.New("want keys, or --text")}
			}
			return nil
		},
		ValidArgsFunction: a.completeKeys,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSendKey(cmd.Context(), a, opts, args[0], args[1:])
		},
	}
	cmd.Flags().StringVar(&opts.text, "text", "", "type this")
	cmd.Flags().Var(&opts.hold, "hold", "hold each key down for so long, e.g. 2s (default 100ms, of --text 30ms)")
	_ = cmd.RegisterFlagCompletionFunc("text", cobra.NoFileCompletions)
	return cmd
}

func (a *app) completeKeys(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeNames(cmd, args, prefix)
	}
	pressed, last := "", prefix
	if i := strings.LastIndexByte(prefix, '-'); i >= 0 {
		pressed, last = prefix[:i+1], prefix[i+1:]
	}
	var out []cobra.Completion
	for _, key := range knownKeys() {
		if strings.HasPrefix(key, last) {
			out = append(out, pressed+key)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// press is a chord, and how long it is held.
type press struct {
	keys chord
	hold time.Duration
}

// presses are what is to be pressed, in order.
func presses(opts sendKeyOptions, keys []string) ([]press, error) {
	if opts.hold < 0 || time.Duration(opts.hold) > maxHold {
		return nil, usageError{fmt.Errorf("--hold: want at most %s, got %s", config.Duration(maxHold), opts.hold.String())}
	}
	held := func(usual time.Duration) time.Duration {
		if opts.hold > 0 {
			return time.Duration(opts.hold)
		}
		return usual
	}
	var all []press
	chords, err := typeText(opts.text)
	if err != nil {
		return nil, err
	}
	for _, c := range chords {
		all = append(all, press{c, held(textHold)})
	}
	for _, text := range keys {
		c, err := parseChord(text, knownKeys())
		if err != nil {
			return nil, err
		}
		all = append(all, press{c, held(chordHold)})
	}
	return all, nil
}

func runSendKey(ctx context.Context, a *app, opts sendKeyOptions, name string, keys []string) error {
	all, err := presses(opts, keys)
	if err != nil {
		return err
	}
	if err := a.noting("sendkey", "", name, func() error { return a.sendKeys(ctx, name, all) }); err != nil {
		return fmt.Errorf("send keys to %s: %w", name, err)
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(map[string]any{"name": name, "presses": len(all)})
	}
	a.ui.printf("%s: keys pressed", name)
	return nil
}

// sendKeys presses keys one after another, and returns once the last is let go
// of. The connection is for short calls, so it is not kept in between.
func (a *app) sendKeys(ctx context.Context, name string, all []press) error {
	l, err := a.lookUp(ctx, name, "keys reach what runs", running)
	if err != nil {
		return err
	}
	if m := l.machine(); m != nil && m.MachineType == "microvm" {
		return &stateError{errors.New(`machine = "microvm" has no keyboard`)}
	}
	for _, p := range all {
		err := a.do(ctx, l, func(c hypervisor.Control, ctx context.Context) error {
			keys, ok := c.(hypervisor.KeySender)
			if !ok {
				return impossible("pressing keys", l)
			}
			return keys.SendKeys(ctx, p.hold, p.keys...)
		})
		if err != nil {
			return err
		}
		// Each key is pressed, and let go of, that long after the one before.
		select {
		case <-time.After(2 * time.Duration(len(p.keys)) * p.hold):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

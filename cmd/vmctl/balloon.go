package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

const opBalloon transition = "balloon"

// leastMemory is what is left to every guest, in bytes.
const leastMemory = 16 << 20

func newBalloonCommand(a *app) *cobra.Command {
	timeout := span(defaultSetTimeout)
	cmd := &cobra.Command{
		Use:   "balloon NAME [SIZE]",
		Short: "Show how much memory a VM has, or take some of it back until it stops",
		Long: `Show how much of its memory the guest of a VM has, or have its balloon leave it SIZE
of what it was started with: the host has the rest until the VM stops, or is given
more again. The guest decides how fast it follows, and with balloon.deflate_on_oom
takes memory back before it kills processes. Memory that was added while it ran is
not the balloon's: vmctl set NAME memory=SIZE.`,
		Example: `  vmctl balloon web 512M
  vmctl balloon web`,
		GroupID: groupRun,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usageError{fmt.Errorf("want the name of one VM and perhaps a size, got %d arguments", len(args))}
			}
			return nil
		},
		ValidArgsFunction: a.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			var size sizeFlag
			if len(args) == 2 {
				if err := size.Set(args[1]); err != nil {
					return usageError{fmt.Errorf("size: %w", err)}
				}
			}
			begun := time.Now()
			err := a.balloon(cmd.Context(), args[0], config.Size(size), time.Duration(timeout))
			if size != 0 && exitStatus(err) != exitUsage {
				a.note(string(opBalloon), "", args[0], begun, err)
			}
			if err != nil {
				return inName(string(opBalloon), args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().Var(&timeout, "timeout", "how long to wait for the guest to follow, e.g. 30s")
	return cmd
}

// ballooned is vmctl balloon -o json.
type ballooned struct {
	Name         string `json:"name"`
	BalloonBytes int64  `json:"balloon_bytes"`      // that the balloon leaves of what it was started with
	StartBytes   int64  `json:"start_memory_bytes"` // that it was started with
	AddedBytes   int64  `json:"added_bytes"`        // that it has taken since
	MemoryBytes  int64  `json:"memory_bytes"`       // both, as the guest has it
}

// balloon shows the memory of a machine that runs; with size, in bytes, the balloon
// is to leave that.
func (a *app) balloon(ctx context.Context, name string, size config.Size, timeout time.Duration) error {
	l, err := a.lookUp(ctx, name, "the guest has memory while it runs", running, paused)
	if err != nil {
		return err
	}
	c, err := a.control(ctx, l)
	if err != nil {
		return asAbsent(l, err)
	}
	defer c.Close()
	r, ok := c.(hypervisor.Resizer)
	if !ok {
		return &stateError{errors.New("its hypervisor does not change the memory of what runs")}
	}
	s, err := r.Sizes(ctx)
	if err != nil {
		return err
	}
	if s.Balloon == 0 {
		return withHint(&stateError{errors.New("the VM has no balloon")}, "balloon.enabled = true in its definition and a restart give it one")
	}
	if size != 0 {
		if int64(size) < leastMemory || int64(size) > s.StartMemory {
			return usageError{fmt.Errorf("size: want %s to %s, which it was started with, got %s", config.Size(leastMemory), config.Size(s.StartMemory), size)}
		}
		if s, err = inflate(ctx, r, int64(size), timeout); err != nil {
			return err
		}
	}
	b := ballooned{Name: name, BalloonBytes: s.Balloon, StartBytes: s.StartMemory, AddedBytes: s.TakenMemory - s.StartMemory}
	b.MemoryBytes = b.BalloonBytes + b.AddedBytes
	if a.ui.format == jsonFormat {
		return a.ui.json(b)
	}
	text := fmt.Sprintf("%s: the guest has %s of %s", name, sizeText(b.MemoryBytes), sizeText(s.TakenMemory))
	if size != 0 && s.Balloon != int64(size) {
		text += fmt.Sprintf(" so far, and is to have %s", sizeText(int64(size)+b.AddedBytes))
	}
	a.ui.printf("%s", text)
	return nil
}

// inflate sets the balloon, and waits a while for the guest.
func inflate(ctx context.Context, r hypervisor.Resizer, bytes int64, timeout time.Duration) (hypervisor.Sizes, error) {
	if err := r.SetBalloon(ctx, bytes); err != nil {
		return hypervisor.Sizes{}, err
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for end := time.Now().Add(timeout); ; {
		s, err := r.Sizes(ctx)
		if err != nil || s.Balloon == bytes || time.Now().After(end) {
			return s, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
}

package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/hypervisor/operation"
)

// That it was taken back is said only where the operation itself has ended so.
func TestInterrupted(t *testing.T) {
	for _, c := range []struct {
		err   error
		want  string
		taken bool
	}{
		{&operation.Error{Status: operation.Failed, Text: "disk.root: context canceled"}, "interrupted, and taken back", true},
		{&operation.Error{Status: operation.Failed, Text: "context canceled\nthe guest may still be frozen"}, "may still be frozen", false},
		{operation.ErrCutOff, "interrupted: context canceled", false},
	} {
		err := interrupted(context.Canceled, c.err, "vm-snapshot@web.service")
		if got := err.Error(); !strings.Contains(got, c.want) || strings.Contains(got, "taken back") != c.taken {
			t.Errorf("%v: got %q, want %q", c.err, got, c.want)
		}
		if !errors.Is(c.err, operation.ErrCutOff) {
			continue
		}
		if h, ok := errors.AsType[*hintError](err); !ok || !strings.Contains(h.Hint, "systemctl status vm-snapshot@web.service") {
			t.Errorf("%v says not where to look: %v", c.err, err)
		}
	}
}

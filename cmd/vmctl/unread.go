package main

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// errUnread is the end of what nobody is there for any more: the reader of a pipe
// has gone, or the connection of ssh by which the command was called.
var errUnread = errors.New("nobody reads the output any more")

// untilUnread ends with ctx, or once nobody can read what is written to out: a
// command that waits for long, and writes little, would not notice.
func untilUnread(ctx context.Context, out io.Writer) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if f, ok := out.(*os.File); ok {
		// It ends with the process.
		go func() {
			if isUnread(f, -1) {
				cancel(errUnread)
			}
		}()
	}
	return ctx, func() { cancel(nil) }
}

// isUnread says whether nobody can read what is written to a file. It waits for that
// as many milliseconds, with -1 for ever.
func isUnread(f *os.File, timeout int) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd())}}
	for {
		_, err := unix.Poll(fds, timeout)
		if err == nil {
			return fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		}
		if err != unix.EINTR {
			return false
		}
	}
}

// input is stdin, of which the end is an error where it comes with that of the
// connection that it came by: what has come is not all then.
func (a *app) input() io.Reader { return wholeInput{a.ui.in, a.ui.out} }

type wholeInput struct {
	in  io.Reader
	out io.Writer
}

func (w wholeInput) Read(p []byte) (int, error) {
	n, err := w.in.Read(p)
	if f, ok := w.out.(*os.File); ok && err == io.EOF && isUnread(f, 0) {
		return n, errUnread
	}
	return n, err
}

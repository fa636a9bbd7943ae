// Vmctl is the command line of vmctl: it shows and changes machines through
// systemd (over D-Bus), the definition files, and the sockets that a running
// machine has. It keeps nothing of its own.
//
// Each command is one file with newXCommand, which declares its flags, and
// runX, an ordinary function that does it. What all of them share: the world
// (app.go), names (names.go), a machine's state (state.go, look.go), ways of
// printing (ui.go, output.go) and of failing (errors.go).
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
)

// version is set when the program is linked.
var version = "unknown"

// garbage is how much memory may be used, in bytes, before any is collected.
// Most commands end long before: without it, a list of 1,000 machines takes
// twice the CPU.
const garbage = 128 << 20

// shortTime is after which a command counts as one that may run for days, as events
// and top do, many at once even: its garbage is collected as usual.
const shortTime = 5 * time.Second

func main() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(garbage)
	time.AfterFunc(shortTime, func() { debug.SetGCPercent(100) })
	// SIGPIPE is left alone: vmctl list | head ends quietly.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	os.Exit(run(ctx, newApp(), os.Args[1:]))
}

// run does what args ask for and returns the exit status.
func run(ctx context.Context, a *app, args []string) int {
	root := newRootCommand(a)
	args, a.user = cutUser(args)
	if c, ok := parseCall(root, args); ok && !c.isHere() && a.adopt(c) {
		status, err := a.goFar(ctx, c)
		if err != nil {
			return a.ui.fail(err)
		}
		return status
	}
	if a.completeFar(ctx, args) {
		return exitDone
	}
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	return a.ui.fail(err)
}

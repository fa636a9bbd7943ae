// Vmctl-api lets programs drive machines over gRPC: those written for mvirt-vmm
// by mvirt.VmService (see proto/mvirt), others by vmctl.v1 (see proto/vmctl). It
// is started by its sockets, keeps nothing, and ends when nobody needs it.
//
// What is changed, it has vmctl change, as a child process with -o json: the
// command line then is the only place that decides what is allowed in which state,
// and how it is done; a call is worth the 10 ms that a process costs, and a bug in
// one ends that process alone. What is read, it reads where vmctl does:
// definitions by config, states by vmctl list, the console at its socket, what
// happens by vmctl events.
//
// Where what is: who may (caller.go, gate.go, polkit.go), what every call goes
// through (calls.go), vmctl (command.go), machines as they are found (machines.go),
// and then a file or two for each part of a service.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/vmctl/vmctl/config"
)

// version is set when the program is linked.
var version = "unknown"

// shutdownTime is how long calls that run have to end when the service is stopped.
const shutdownTime = 20 * time.Second

// maxHeap is how much memory, in bytes, is used rather than cleaned up.
const maxHeap = 128 << 20

func main() {
	idle := flag.Duration("idle", time.Minute, "end when there was no call for so long")
	flag.Parse()
	log.SetFlags(0) // the journal has the time
	// A list of many machines is garbage soon, of which there is little else.
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(maxHeap)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "vmctl-api:", err)
		os.Exit(1)
	}
}

// run serves on the sockets that systemd passes until ctx ends, or nobody has
// called for the time idle.
func run(ctx context.Context, idle time.Duration) error {
	paths := config.SystemPaths("")
	listeners, err := passedListeners(paths)
	if err != nil {
		return err
	}
	s := newServer(paths, "vmctl")
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- s.grpc.Serve(l) }()
	}
	// There may be no systemd to tell.
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	select {
	case err = <-failed:
	case <-ctx.Done():
	case <-s.activity.idleFor(idle):
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	s.shutDown(shutdownTime)
	if err != nil {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}

// errEnding is why a stream ends when the service does.
var errEnding = errors.New("the service ends: call again")

// Since Go 1.25 the runtime holds the files of its control group's CPU limit
// open, with the very numbers that run has to give to the hypervisor. Nothing
// here needs to know the limit.
//go:debug containermaxprocs=0

// vmctl-unit is what the units of machines run, one command for each place in
// a unit:
//
//	prepare NAME [--digest HEX]   before the start, as root: checks and makes what
//	                              the machine needs, gives its user access
//	run NAME -- COMMAND…          as the machine's user: opens the sockets, starts
//	                              the monitor, becomes the hypervisor
//	monitor NAME …                beside the hypervisor: console, readiness, events
//	load NAME                     beside the hypervisor, at first: decompresses the
//	                              saved state that it starts with
//	register NAME                 after the start, as root: lets a saved state go on,
//	                              tells machined
//	ready NAME                    as root, in a unit of its own: waits until the guest
//	                              is ready
//	reload NAME                   as root: holds the cards and the console of a machine
//	                              that runs to the rules of its definition as it is now
//	stop NAME                     as root: has the guest shut down, or ends it
//	cleanup NAME                  at last, as root: why it ended; takes back access
//	serve NAME UNIT [--as USER] -- COMMAND…
//	                              beside the machine, in a unit of its own: opens the
//	                              socket, becomes virtiofsd or swtpm
//	join NAME SOCKET -- COMMAND…  the same, but connects to the hypervisor, which
//	                              listens: becomes passt
//	wanted NAME UNIT              before join, as root: whether the machine has use
//	                              for it
//	lost NAME UNIT                after either, as root: says so where the machine
//	                              runs on without it
//	refuse NAME [PROBLEM…]        in place of run: says why the machine cannot start
//	operate NAME WHAT REQUEST     as root, in a unit of its own: something that is
//	                              done to disks or state, e.g. a snapshot
//	mend NAME                     after that, as root: takes back what was cut off
//	network-up NETWORK            as root: makes a network
//	network-reload NETWORK        as root: brings one that is up into line with its
//	                              definition
//	network-down NETWORK          as root: removes it
//
// People have no use for it. Its output goes to the journal.
//
// run and monitor are in the way of each start and of each machine's memory:
// what this program links is bounded by deps_test.go.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/vmctl/vmctl/config"
)

// Exit statuses. exitConfig is EX_CONFIG of sysexits.h, which the units do not
// restart.
const (
	exitFailed = 1
	exitUsage  = 2
	exitConfig = 78
)

func main() {
	// Before anything else: the Go runtime takes what descriptors it finds.
	in := reserveDescriptors(os.Args)
	os.Exit(run(os.Args[1:], in))
}

// app is what every command needs.
type app struct {
	paths config.Paths
	vm    string
	args  []string // after the name
	err   io.Writer
	// journal says that stderr is the journal, which takes a line's priority
	// from its beginning (sd-daemon(3)).
	journal bool
	notify  func(state string) // sd_notify(3)
	// starting says that this is a part of the unit's start, with its time-out.
	starting bool
	locks    []*os.File // the machine's lock, for what we run to hold too
}

func run(args []string, in inherited) int {
	a := app{err: os.Stderr, journal: os.Getenv("JOURNAL_STREAM") != ""}
	a.notify = func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			a.warn("tell systemd %q: %v", state, err)
		}
	}
	command, args, err := a.parse(args)
	if err != nil {
		a.say(3, "%v", err)
		return exitUsage
	}
	a.starting = slices.Contains([]string{"prepare", "run", "load"}, command)
	switch command {
	case "prepare":
		return a.status(a.prepare(context.Background()))
	case "run":
		return a.status(a.run(in))
	case "monitor":
		return a.status(a.monitor())
	case "load":
		return a.status(a.load())
	case "register":
		return a.status(a.started(context.Background()))
	case "ready":
		return a.status(a.ready(context.Background()))
	case "reload":
		return a.status(a.reload(context.Background()))
	case "stop":
		return a.status(a.stop(context.Background()))
	case "cleanup":
		return a.cleanup(context.Background())
	case "serve":
		return a.status(a.serve())
	case "join":
		return a.status(a.join())
	case "wanted":
		return a.wanted(context.Background())
	case "lost":
		return a.status(a.lost(context.Background()))
	case "refuse":
		return a.refuse(a.args)
	case "network-up":
		return a.status(a.networkUp(context.Background()))
	case "network-reload":
		return a.status(a.networkReload(context.Background()))
	case "network-down":
		return a.status(a.networkDown(context.Background()))
	case "operate":
		return a.operate(context.Background())
	case "mend":
		return a.status(a.mend(context.Background()))
	}
	a.say(3, "no such command: %s", command)
	return exitUsage
}

// parse reads the options before the command, the command and the name.
func (a *app) parse(args []string) (command string, rest []string, err error) {
	user, root := false, ""
	for len(args) > 0 && strings.HasPrefix(args[0], "--") {
		switch option, value, _ := strings.Cut(args[0], "="); option {
		case "--user":
			user = true
		case "--root": // for tests
			root = value
		default:
			return "", nil, fmt.Errorf("no such option: %s", args[0])
		}
		args = args[1:]
	}
	if len(args) < 2 {
		return "", nil, errors.New("usage: vmctl-unit [--user] COMMAND NAME …")
	}
	if err := config.CheckName(args[1]); err != nil {
		return "", nil, err
	}
	a.vm, a.args = args[1], args[2:]
	a.paths = config.SystemPaths(root)
	if user {
		home := os.Getenv("HOME")
		a.paths = config.UserPaths(
			cmp.Or(os.Getenv("XDG_CONFIG_HOME"), filepath.Join(home, ".config")),
			cmp.Or(os.Getenv("XDG_DATA_HOME"), filepath.Join(home, ".local/share")),
			os.Getenv("XDG_RUNTIME_DIR"))
	}
	return args[0], a.args, nil
}

// status prints an error and makes it an exit status.
func (a app) status(err error) int {
	if err == nil {
		return 0
	}
	if refused, ok := errors.AsType[refusal](err); ok {
		return a.refuse(refused.problems)
	}
	a.say(3, "%v", err)
	a.notify("STATUS=" + oneLine(err.Error()))
	return exitFailed
}

// say prints a line with a priority of syslog(3): 3 is an error, 4 a warning,
// 6 information.
func (a app) say(priority int, format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		if a.journal {
			fmt.Fprintf(a.err, "<%d>", priority)
		}
		fmt.Fprintln(a.err, strings.TrimSuffix(line, "\n"))
	}
}

func (a app) info(format string, args ...any) { a.say(6, format, args...) }
func (a app) warn(format string, args ...any) { a.say(4, format, args...) }

// oneLine makes text fit for a line of sd_notify(3).
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

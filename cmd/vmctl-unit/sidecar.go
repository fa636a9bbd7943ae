package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/units/bus"
	"github.com/vmctl/vmctl/units/journal"
)

// What runs beside the hypervisor (hypervisor.Sidecar) has a unit of its own,
// which listens on a socket that only the machine's user connects to: serve.
// Prepare starts it, run connects to it, and hands the hypervisor no path but the
// connection. With that it ends; where it does not, systemd ends it after the
// machine (BindsTo=). A hypervisor that takes a path alone connects by itself, and
// does so again when its guest reboots: what ended with the connection is started
// again, for as long as the machine runs.
//
// For the network of a card it is the other way round: prepare opens the socket for
// the hypervisor, and the unit connects: join. Where its process ends, systemd
// starts another, which connects again.

const (
	// sidecarTime is for a unit that was started to listen.
	sidecarTime = 30 * time.Second
	// lostTime is for a hypervisor whose connections are closed to be gone.
	lostTime = 5 * time.Second

	// Of ExecCondition=: that a unit is not started, and that starting it failed.
	exitGone    = 1
	exitUnknown = 255
)

// checkShares says what of the host is in the way of sharing directories.
func (a app) checkShares(m *config.Machine) []config.Problem {
	var problems []config.Problem
	for _, s := range m.Shares {
		if why := a.checkShared(s.Path); why != "" {
			problems = append(problems, m.Problem(s.Key()+".path", "want a directory, got %s, which %s", s.Path, why))
		}
		if _, err := user.Lookup(s.User); s.User != "" && err != nil {
			problems = append(problems, m.Problem(s.Key()+".user", "want a user of this host, got %q", s.User))
		}
	}
	return problems
}

// checkConsole says whether the host has the group that is to sit down at the console.
func checkConsole(m *config.Machine) []config.Problem {
	if _, err := user.LookupGroup(m.Console.Group); m.Console.Group != "" && err != nil {
		return []config.Problem{m.Problem("console.group", "want a group of this host, got %q", m.Console.Group)}
	}
	return nil
}

// checkShared is why a directory cannot be shared.
func (a app) checkShared(path string) string {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "does not exist on this host"
	case err != nil:
		return "cannot be looked at: " + err.Error()
	case !st.IsDir():
		return "is none"
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "cannot be looked at: " + err.Error()
	}
	return a.paths.Unshareable(real)
}

// startSidecars starts what runs beside the hypervisor.
func (a app) startSidecars(ctx context.Context, dir runtimeDir, m *config.Machine, sidecars []hypervisor.Sidecar) error {
	if len(sidecars) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sidecarTime)
	defer cancel()
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, s := range sidecars {
		if s.State != "" {
			if err := a.giveState(dir, filepath.Dir(s.State)); err != nil {
				return fmt.Errorf("%s: %w", s.Key, err)
			}
		}
		if s.Card != "" {
			socket, err := a.listenForSidecar(dir, s)
			if err == nil {
				err = handOver(queueName(s.Card), []*os.File{socket})
			}
			if err != nil {
				return fmt.Errorf("%s: %w", s.Key, err)
			}
		}
		// It may have been given up before.
		if err := conn.ResetFailed(ctx, s.Unit); err != nil && !errors.Is(err, bus.ErrNoSuchUnit) {
			return fmt.Errorf("%s: %w", s.Key, err)
		}
		has, err := conn.Properties(ctx, s.Unit)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Key, err)
		}
		// Not for NeedDaemonReload too, which the definition also sets that was edited
		// since: a start is with what systemd has read of that.
		if a.staleServer(has, s.Unit) {
			if err := conn.Reload(ctx); err != nil {
				return fmt.Errorf("%s: %w", s.Key, err)
			}
		}
		// One may be left of the last run.
		if err := conn.RestartMeekly(ctx, s.Unit); err != nil {
			return m.Problem(s.Key, "%s does not start: %v (journalctl -u %s)", s.Name, err, s.Unit)
		}
	}
	return nil
}

// endNetworks ends the networks of cards that the last run, or one before it, may
// have left with the ports of the host that this one wants.
func (a app) endNetworks(ctx context.Context, plan *hypervisor.Plan) error {
	machine, last, err := a.lastStart()
	if err != nil {
		machine, last = new(config.Machine), new(hypervisor.Plan) // which is told when it is needed
	}
	if err := a.stopProxies(machine.NICs); err != nil {
		return err
	}
	sidecars := slices.DeleteFunc(slices.Concat(last.Sidecars, plan.Sidecars), func(s hypervisor.Sidecar) bool { return s.Card == "" })
	if len(sidecars) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sidecarTime)
	defer cancel()
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, s := range sidecars {
		if err := conn.Stop(ctx, s.Unit); err != nil && !errors.Is(err, bus.ErrNoSuchUnit) {
			return err
		}
		if err := dropFiles(queueName(s.Card)); err != nil {
			return err
		}
	}
	return nil
}

// listenForSidecar opens the socket on which the hypervisor listens for the
// network of a card, to which only the machine's user, and root, connects.
func (a app) listenForSidecar(user runtimeDir, s hypervisor.Sidecar) (*os.File, error) {
	for _, dir := range []string{a.paths.Sidecars, a.paths.SidecarDir(s.Unit)} {
		if err := makeOpenDir(dir); err != nil {
			return nil, err
		}
	}
	address, done, err := shortAddress(a.paths.SidecarSocket(s.Unit))
	if err != nil {
		return nil, err
	}
	defer done()
	fd, err := listen(address.Name)
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), address.Name)
	if err := os.Lchown(address.Name, user.uid, user.gid); err != nil {
		socket.Close()
		return nil, err
	}
	return socket, nil
}

// giveState makes the directory of a sidecar's state where it is missing, and
// gives it with all in it to the machine's user, whose number changes.
func (a app) giveState(dir runtimeDir, path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// A machine may have written to it: no link in it leads anywhere.
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	self, err := root.Open(".")
	if err != nil {
		return err
	}
	defer self.Close()
	names, err := self.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range append(names, ".") {
		if err := root.Lchown(name, dir.uid, dir.gid); err != nil {
			return err
		}
	}
	return nil
}

// stopSidecars has systemd end what runs beside the hypervisor, and does not wait
// for it: where the definition is gone by now, systemd does not know that it
// belongs to the machine.
func (a app) stopSidecars(ctx context.Context, sidecars []hypervisor.Sidecar) error {
	if len(sidecars) == 0 {
		return nil
	}
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	var errs []error
	for _, s := range sidecars {
		if s.Card != "" { // which is no directory of the unit's own
			errs = append(errs, os.RemoveAll(a.paths.SidecarDir(s.Unit)))
		}
		if _, err := conn.Begin(ctx, bus.Stop, s.Unit); err != nil && !errors.Is(err, bus.ErrNoSuchUnit) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// connectSidecar is a connection to a sidecar's socket.
func connectSidecar(paths config.Paths, unit string) (int, error) {
	return connectTo(paths.SidecarSocket(unit))
}

// connectTo is a connection to a socket.
func connectTo(path string) (int, error) {
	address, done, err := shortAddress(path)
	if err != nil {
		return -1, err
	}
	defer done()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(fd, address); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", path, err)
	}
	return fd, nil
}

// shortAddress is the address of a socket until done is called. Its path may be
// too long for one.
func shortAddress(path string) (address *unix.SockaddrUnix, done func(), err error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", filepath.Dir(path), err)
	}
	name := fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))
	return &unix.SockaddrUnix{Name: name}, func() { unix.Close(dir) }, nil
}

// serve opens the socket of a sidecar, and becomes it.
func (a app) serve() error {
	command := slices.Index(a.args, "--")
	if command < 1 || command == len(a.args)-1 {
		return errors.New("want serve NAME UNIT [--as USER] -- COMMAND…")
	}
	unit, options, argv := a.args[0], a.args[1:command], a.args[command+1:]
	if len(options) != 0 && (len(options) != 2 || options[0] != "--as") {
		return fmt.Errorf("want serve NAME UNIT [--as USER] -- COMMAND…, got %q", options)
	}
	socket, err := a.listenFor(unit)
	if err != nil {
		return err
	}
	if len(options) > 0 {
		if err := become(options[1]); err != nil {
			return fmt.Errorf("become the user %s: %w", options[1], err)
		}
	}
	a.notify("READY=1") // whoever connects now waits until it is served
	return executeWith(socket, argv)
}

// join connects to the hypervisor that listens for a sidecar, and becomes that.
func (a app) join() error {
	if len(a.args) < 3 || a.args[1] != "--" {
		return fmt.Errorf("want join NAME SOCKET -- COMMAND…, got %q", a.args)
	}
	socket, err := connectTo(a.args[0])
	if err != nil {
		return err
	}
	return silently(func() error { return executeWith(socket, a.args[2:]) })
}

// silently has become who tells the journal by syslog(3) all that it tells its
// standard error, as passt does. That is there again where it comes to nothing.
func silently(become func() error) error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	own, err := unix.FcntlInt(uintptr(unix.Stderr), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Dup3(int(null.Fd()), unix.Stderr, 0); err != nil {
		return err
	}
	return errors.Join(become(), unix.Dup3(own, unix.Stderr, 0))
}

// wanted is the exit status, for ExecCondition=, that says whether the machine runs
// or starts, and, where one is named, listens for a sidecar.
func (a app) wanted(ctx context.Context) int {
	wanted, err := a.listensFor(ctx)
	switch {
	case err != nil:
		a.status(err)
		return exitUnknown
	case !wanted:
		return exitGone
	}
	return 0
}

func (a app) listensFor(ctx context.Context) (bool, error) {
	if len(a.args) > 1 {
		return false, errors.New("want wanted NAME [UNIT]")
	}
	if len(a.args) == 1 && !access.IsThere(a.paths.SidecarSocket(a.args[0])) {
		return false, nil
	}
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	machine, err := conn.Properties(ctx, config.Unit(a.vm))
	return slices.Contains([]string{"activating", "active", "reloading"}, machine.ActiveState), err
}

// executeWith becomes a sidecar, which inherits its socket.
func executeWith(socket int, argv []string) error {
	if _, err := unix.FcntlInt(uintptr(socket), unix.F_SETFD, 0); err != nil {
		return err
	}
	known := strings.NewReplacer(hypervisor.SocketArg, strconv.Itoa(socket), hypervisor.InterfaceArg, linkLocalInterface(),
		hypervisor.UIDArg, strconv.Itoa(os.Getuid()), hypervisor.GIDArg, strconv.Itoa(os.Getgid()))
	for i := range argv {
		argv[i] = known.Replace(argv[i])
	}
	return fmt.Errorf("execute %s: %w", argv[0], syscall.Exec(argv[0], argv, os.Environ()))
}

// linkLocalInterface is the first interface that is up and has a link-local
// address of IPv6, else "lo".
func linkLocalInterface() string {
	interfaces, _ := net.Interfaces() // as good as none
	for _, i := range interfaces {
		addresses, _ := i.Addrs()
		for _, a := range addresses {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && i.Flags&net.FlagUp != 0 && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
				return i.Name
			}
		}
	}
	return "lo"
}

// listenFor opens a socket that only the machine's user, and root, connects to.
func (a app) listenFor(unit string) (int, error) {
	var machine unix.Stat_t
	if err := unix.Stat(a.paths.RuntimeDir(a.vm), &machine); err != nil {
		return -1, fmt.Errorf("%s does not run: stat %s: %w", a.vm, a.paths.RuntimeDir(a.vm), err)
	}
	address, done, err := shortAddress(a.paths.SidecarSocket(unit))
	if err != nil {
		return -1, err
	}
	defer done()
	fd, err := listen(address.Name)
	if err != nil {
		return -1, err
	}
	if machine.Uid != uint32(os.Getuid()) {
		err = unix.Chown(address.Name, int(machine.Uid), int(machine.Gid))
	}
	return fd, err
}

// become makes this process one of another user, who has no privileges.
func become(name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return err
	}
	var groups []int
	for _, id := range ids {
		n, err := strconv.Atoi(id)
		if err != nil {
			return err
		}
		groups = append(groups, n)
	}
	if err := syscall.Setgroups(groups); err != nil {
		return err
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return err
	}
	return syscall.Setresuid(uid, uid, uid)
}

// lost says that a sidecar has ended while the machine runs on: neither the hypervisor
// nor the guest can be told to begin anew with another.
func (a app) lost(ctx context.Context) error {
	if len(a.args) != 1 {
		return errors.New("want lost NAME UNIT")
	}
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	machine, err := conn.Properties(ctx, config.Unit(a.vm))
	if err != nil || machine.ActiveState != "active" {
		return err
	}
	s, expected, err := a.findSidecar(a.args[0])
	stopped := a.wasStopped(ctx, a.args[0])
	switch {
	case err != nil || !expected:
		return err
	case s.Reconnects && !stopped && os.Getenv("SERVICE_RESULT") == "success" && os.Getenv("EXIT_CODE") == "exited":
		return nil // the connection was closed: the next is waited for
	case endsSoon(machine.MainPID):
		return nil
	}
	switch {
	case s.Card != "" && !access.IsThere(a.paths.SidecarSocket(s.Unit)):
		return nil // taken out
	case s.Card != "":
		what := "another is started"
		if stopped {
			what = "no other is started by itself, as it was stopped: systemctl start " + s.Unit + " does"
		}
		a.warn("%s: %s has ended (%s): the guest's connections with it; %s", s.Key, s.Name, ended(), what)
		return nil
	}
	detail := fmt.Sprintf("%s: %s has ended (%s)", s.Key, s.Name, ended())
	a.event(journal.Lost, sdjournal.PriErr, fmt.Sprintf("%s: the guest has none until %s", detail, a.until(s, stopped)), detail)
	return nil
}

// wasStopped says whether a sidecar ends because somebody wants it to. Where that cannot
// be told it has ended by itself, as most do.
func (a app) wasStopped(ctx context.Context, unit string) bool {
	stopped, err := a.askJob(ctx, unit, "stop")
	if err != nil {
		a.warn("%v", err)
	}
	return stopped
}

// until is when a guest has again what a sidecar gave it.
func (a app) until(s hypervisor.Sidecar, stopped bool) string {
	switch {
	case !s.Reconnects && s.Share != "":
		return fmt.Sprintf("it is detached and attached again (vmctl share detach), or the machine is restarted (vmctl restart %s)", a.vm)
	case !s.Reconnects:
		return fmt.Sprintf("the machine is restarted (vmctl restart %s)", a.vm)
	case stopped:
		return fmt.Sprintf("another is started, which nobody does by itself, as it was stopped (systemctl start %s), and it reboots", s.Unit)
	}
	return "it reboots"
}

// findSidecar is what of the machine, as it runs now, has a unit; expected says whether
// that is there to stay.
func (a app) findSidecar(unit string) (s hypervisor.Sidecar, expected bool, err error) {
	record, err := readRecord(a.paths, a.vm)
	if err != nil {
		return s, false, err
	}
	changes, err := hypervisor.ReadChanges(a.paths, a.vm)
	if err != nil {
		return s, false, err
	}
	s, expected = changes.Sidecar(record.Plan, unit)
	return s, expected, nil
}

// ended is how a process of the unit has, for people: "killed KILL".
func ended() string {
	return strings.TrimSpace(os.Getenv("EXIT_CODE") + " " + os.Getenv("EXIT_STATUS"))
}

// endsSoon waits for the end of a process whose connections are closed, which it
// may be in the middle of.
func endsSoon(pid int) bool {
	if pid == 0 {
		return true
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(lostTime.Milliseconds()))
	return err == nil && n > 0
}

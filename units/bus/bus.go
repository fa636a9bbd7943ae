// Package bus asks systemd and machined to do things, and tells how they went,
// over D-Bus.
//
// It knows calls, jobs and errors; what a unit means is the caller's.
package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	sddbus "github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

var (
	// ErrNotPermitted is a call that D-Bus or polkit denied.
	ErrNotPermitted = errors.New("not permitted")
	// ErrNoSuchUnit is a call that concerns a unit of which systemd has
	// neither a file nor a process.
	ErrNoSuchUnit = errors.New("no such unit")
	// ErrNoSuchProcess is a signal for a unit that has no such process now.
	ErrNoSuchProcess = errors.New("no such process")
	// ErrConnectionLost is a wait whose end can no longer be told: the bus or
	// systemd closed the connection. The job goes on.
	ErrConnectionLost = errors.New("connection to systemd lost")
)

// JobError is a job that ended otherwise than it should.
type JobError struct {
	Unit   string
	Result string // "canceled", "timeout", "failed", "dependency", "skipped" …: org.freedesktop.systemd1(5), JobRemoved
}

func (e *JobError) Error() string {
	switch e.Result {
	case "canceled":
		return e.Unit + ": canceled by another job"
	case "timeout":
		return e.Unit + ": timed out"
	case "dependency":
		return e.Unit + ": a unit that it requires failed"
	}
	return e.Unit + ": " + e.Result
}

// Conn is a connection to a service manager. Its methods may be called from
// several goroutines, and end with their context. It is never made again by
// itself once it was lost.
type Conn struct {
	systemd *sddbus.Conn
	calls   *godbus.Conn // go-systemd's own for calls; also for what it has no call for
	signals *godbus.Conn // go-systemd's own for signals
	user    bool         // the user's service manager, not the system's
	direct  bool         // to systemd itself: no bus daemon, hence no match rules and no other service
}

// Dial connects to the system's service manager, or to the user's. Where the
// system has no bus, root reaches systemd directly.
func Dial(ctx context.Context, user bool) (*Conn, error) {
	address, err := busAddress(user)
	if err != nil {
		return nil, err
	}
	c, err := dial(ctx, address, user, false)
	if err == nil {
		return c, nil
	}
	err = fmt.Errorf("connecting to systemd over D-Bus: %w", err)
	private, ok := privateAddress(user)
	if !ok {
		return nil, err
	}
	if c, direct := dial(ctx, private, user, true); direct == nil {
		return c, nil
	}
	return nil, err
}

// busAddress is where the bus listens. godbus would start a bus of its own
// where a user has none, on which there is no systemd.
func busAddress(user bool) (string, error) {
	name, fallback := "DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket"
	if user {
		name, fallback = "DBUS_SESSION_BUS_ADDRESS", runtimeAddress("bus")
	}
	if address := os.Getenv(name); address != "" {
		return address, nil
	}
	if fallback == "" {
		return "", errors.New("connecting to the user's systemd: it does not run for this user")
	}
	return fallback, nil
}

// privateAddress is where systemd itself listens, for its own user alone.
func privateAddress(user bool) (string, bool) {
	if user {
		address := runtimeAddress("systemd/private")
		return address, address != ""
	}
	return "unix:path=/run/systemd/private", os.Geteuid() == 0
}

// controlDirs are where systemctl set-property keeps what it was told, until the next
// boot and for good (systemd.unit(5)).
func controlDirs(user bool) []string {
	if !user {
		return []string{"/run/systemd/system.control", "/etc/systemd/system.control"}
	}
	var dirs []string
	if runtime := runtimeDir(); runtime != "" {
		dirs = append(dirs, filepath.Join(runtime, "systemd/user.control"))
	}
	if home, err := os.UserConfigDir(); err == nil {
		dirs = append(dirs, filepath.Join(home, "systemd/user.control"))
	}
	return dirs
}

// runtimeAddress is the address of a socket in the user's runtime directory,
// "" where there is none.
func runtimeAddress(socket string) string {
	dir := runtimeDir()
	if dir == "" {
		return ""
	}
	return "unix:path=" + godbus.EscapeBusAddressValue(filepath.Join(dir, socket))
}

// runtimeDir is the user's, "" where there is none. A session that is no login, such
// as one of su or of cron, is not told of it.
func runtimeDir() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return dir
	}
	dir := "/run/user/" + strconv.Itoa(os.Getuid())
	if _, err := os.Stat(dir); err != nil {
		return ""
	}
	return dir
}

// dial makes the two connections that go-systemd wants. Neither library lets a
// context bound that (go-systemd issue 398; godbus' context ends the
// connection with it), so it is done aside.
func dial(ctx context.Context, address string, user, direct bool) (*Conn, error) {
	type result struct {
		conn *Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var made []*godbus.Conn
		systemd, err := sddbus.NewConnection(func() (*godbus.Conn, error) {
			conn, err := open(address, direct)
			if err == nil {
				made = append(made, conn)
			}
			return conn, err
		})
		if err != nil {
			done <- result{err: err}
			return
		}
		// NewConnection makes the one for calls first.
		done <- result{conn: &Conn{systemd: systemd, calls: made[0], signals: made[1], user: user, direct: direct}}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

func open(address string, direct bool) (*godbus.Conn, error) {
	conn, err := godbus.Dial(address)
	if err != nil {
		return nil, err
	}
	err = conn.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(os.Getuid()))})
	if err == nil && !direct {
		err = conn.Hello()
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Close ends the connection.
func (c *Conn) Close() { c.systemd.Close() }

// Verb is what a job does.
type Verb string

const (
	Start   Verb = "start"
	Stop    Verb = "stop"
	Restart Verb = "restart"
	Reload  Verb = "reload"
)

// Job is a job that systemd has taken on.
type Job struct {
	conn   *Conn
	unit   string
	result chan string
}

// Begin has systemd take on a job and returns at once. It replaces a job of
// the unit that contradicts it.
func (c *Conn) Begin(ctx context.Context, verb Verb, unit string) (*Job, error) {
	// Buffered, always: go-systemd sends the result while it holds the lock
	// that every later job needs (its issue 429).
	j := &Job{conn: c, unit: unit, result: make(chan string, 1)}
	enqueue := map[Verb]func(context.Context, string, string, chan<- string) (int, error){
		Start:   c.systemd.StartUnitContext,
		Stop:    c.systemd.StopUnitContext,
		Restart: c.systemd.RestartUnitContext,
		Reload:  c.systemd.ReloadUnitContext,
	}[verb]
	if _, err := enqueue(ctx, unit, "replace", j.result); err != nil {
		return nil, named(string(verb)+" "+unit, err)
	}
	return j, nil
}

// Wait returns when the job has ended: nil where it was done, a [*JobError]
// where it was not. Ending the wait does not end the job.
func (j *Job) Wait(ctx context.Context) error {
	select {
	case result := <-j.result:
		if result != "done" {
			return &JobError{Unit: j.unit, Result: result}
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s: %w", j.unit, ctx.Err())
	case <-j.conn.signals.Context().Done():
		return fmt.Errorf("waiting for %s: %w", j.unit, ErrConnectionLost)
	}
}

// Start starts a unit, and waits until it is active; the error is a
// [*JobError] where it did not become so.
func (c *Conn) Start(ctx context.Context, unit string) error { return c.do(ctx, Start, unit) }

// Stop stops a unit, and waits until it is. Stopping what does not run is no
// error.
func (c *Conn) Stop(ctx context.Context, unit string) error { return c.do(ctx, Stop, unit) }

// RestartMeekly is Restart, but it takes back no job that somebody else has
// asked for: then it fails.
func (c *Conn) RestartMeekly(ctx context.Context, unit string) error {
	j := &Job{conn: c, unit: unit, result: make(chan string, 1)}
	if _, err := c.systemd.RestartUnitContext(ctx, unit, "fail", j.result); err != nil {
		return named("restart "+unit, err)
	}
	return j.Wait(ctx)
}

// Restart stops a unit where it runs, and starts it.
func (c *Conn) Restart(ctx context.Context, unit string) error { return c.do(ctx, Restart, unit) }

// ReloadUnit has an active unit read its configuration again (ExecReload=).
func (c *Conn) ReloadUnit(ctx context.Context, unit string) error { return c.do(ctx, Reload, unit) }

func (c *Conn) do(ctx context.Context, verb Verb, unit string) error {
	j, err := c.Begin(ctx, verb, unit)
	if err != nil {
		return err
	}
	return j.Wait(ctx)
}

// Who are the processes of a unit that a signal goes to.
type Who string

const (
	All  Who = "all"
	Main Who = "main"
)

// Kill sends a signal to processes of a unit; ErrNoSuchProcess where it has
// none.
func (c *Conn) Kill(ctx context.Context, unit string, who Who, signal int) error {
	err := named("kill "+unit, c.systemd.KillUnitWithTarget(ctx, unit, sddbus.Who(who), int32(signal)))
	if errors.Is(err, ErrNoSuchUnit) {
		// systemd forgets units that do not run, whether they exist or not.
		return fmt.Errorf("kill %s: %w", unit, ErrNoSuchProcess)
	}
	return err
}

// ResetFailed has systemd forget that a unit failed, and how often.
func (c *Conn) ResetFailed(ctx context.Context, unit string) error {
	return named("reset "+unit, c.systemd.ResetFailedUnitContext(ctx, unit))
}

// Reload has systemd run its generators and read all units again. What the
// generators complained about it does not tell.
func (c *Conn) Reload(ctx context.Context) error {
	return named("reload systemd", c.systemd.ReloadContext(ctx))
}

// Enable links a unit as its [Install] section says. The change is on disk;
// systemd notices it at the next reload.
func (c *Conn) Enable(ctx context.Context, unit string) error {
	_, _, err := c.systemd.EnableUnitFilesContext(ctx, []string{unit}, false, false)
	return named("enable "+unit, err)
}

// Disable takes back what [Conn.Enable] did. Links made by a generator are not
// its business.
func (c *Conn) Disable(ctx context.Context, unit string) error {
	_, err := c.systemd.DisableUnitFilesContext(ctx, []string{unit}, false)
	return named("disable "+unit, err)
}

// Version returns systemd's version: whole, and the major number (0 where that
// cannot be told).
func (c *Conn) Version(ctx context.Context) (string, int, error) {
	var v godbus.Variant
	err := c.calls.Object(systemdName, systemdPath).
		CallWithContext(ctx, getProperty, 0, systemdName+".Manager", "Version").Store(&v)
	if err != nil {
		return "", 0, named("ask systemd for its version", err)
	}
	version, _ := v.Value().(string)
	digits := strings.IndexFunc(version+" ", func(r rune) bool { return r < '0' || r > '9' })
	major, err := strconv.Atoi(version[:digits])
	if err != nil {
		major = 0
	}
	return version, major, nil
}

const (
	systemdName    = "org.freedesktop.systemd1"
	systemdPath    = godbus.ObjectPath("/org/freedesktop/systemd1")
	propertiesName = "org.freedesktop.DBus.Properties"
	getProperty    = propertiesName + ".Get"
)

// named says what was tried, and makes the errors that callers tell apart
// recognizable; nil stays nil.
func named(what string, err error) error {
	if err == nil {
		return nil
	}
	// godbus returns the value, not a pointer.
	if remote, ok := errors.AsType[godbus.Error](err); ok {
		switch remote.Name {
		case "org.freedesktop.systemd1.NoSuchUnit":
			return fmt.Errorf("%s: %w", what, ErrNoSuchUnit)
		case "org.freedesktop.systemd1.NoSuchProcess":
			return fmt.Errorf("%s: %w", what, ErrNoSuchProcess)
		case "org.freedesktop.DBus.Error.AccessDenied",
			"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
			"org.freedesktop.PolicyKit1.Error.NotAuthorized":
			return fmt.Errorf("%s: %w: %w", what, ErrNotPermitted, err)
		}
	}
	if errors.Is(err, godbus.ErrClosed) {
		return fmt.Errorf("%s: %w", what, ErrConnectionLost)
	}
	return fmt.Errorf("%s: %w", what, err)
}

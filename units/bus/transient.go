package bus

import (
	"context"
	"errors"
	"fmt"
	"os"

	sddbus "github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// ErrUnitExists is a transient unit whose name another one has.
var ErrUnitExists = errors.New("the unit exists already")

// Transient is a service made for one command, gone when that has ended.
type Transient struct {
	Unit        string
	Description string
	Argv        []string // Argv[0] is absolute
	StopPost    []string // ExecStopPost=, run however the command ended; nil for none
	Environment []string // "KEY=VALUE", beside what systemd gives
	Stdin       *os.File // what it reads; nil for nothing
	Stdout      *os.File // where it writes; nil for the journal
	Stderr      *os.File // the same for errors
	TimeoutStop uint64   // µs from SIGTERM to SIGKILL
}

// execCommand is one line of ExecStart= and the like: D-Bus type (sasb).
type execCommand struct {
	Path    string
	Argv    []string
	MayFail bool
}

// RunTransient starts a transient service and returns when its command has been
// executed. The error is [ErrUnitExists] where one by that name is there.
func (c *Conn) RunTransient(ctx context.Context, t Transient) error {
	set := func(name string, value any) sddbus.Property {
		return sddbus.Property{Name: name, Value: godbus.MakeVariant(value)}
	}
	command := func(argv []string) []execCommand { return []execCommand{{argv[0], argv, false}} }
	properties := []sddbus.Property{
		set("Description", t.Description),
		set("Type", "exec"),
		set("CollectMode", "inactive-or-failed"),
		set("NotifyAccess", "all"), // else EXTEND_TIMEOUT_USEC= of what takes long goes nowhere
		set("ExecStart", command(t.Argv)),
		set("TimeoutStopUSec", t.TimeoutStop),
	}
	if t.StopPost != nil {
		properties = append(properties, set("ExecStopPost", command(t.StopPost)))
	}
	if t.Stdout != nil {
		properties = append(properties,
			// Were both the journal, as is the default, systemd would take the one
			// for the other, and stderr went where stdout does.
			set("StandardOutput", "null"),
			set("StandardOutputFileDescriptor", godbus.UnixFD(t.Stdout.Fd())),
			set("StandardError", "journal"))
	}
	if t.Stderr != nil {
		properties = append(properties, set("StandardErrorFileDescriptor", godbus.UnixFD(t.Stderr.Fd())))
	}
	if t.Stdin != nil {
		properties = append(properties, set("StandardInputFileDescriptor", godbus.UnixFD(t.Stdin.Fd())))
	}
	if len(t.Environment) > 0 {
		properties = append(properties, set("Environment", t.Environment))
	}
	job := &Job{conn: c, unit: t.Unit, result: make(chan string, 1)}
	if _, err := c.systemd.StartTransientUnitContext(ctx, t.Unit, "fail", properties, job.result); err != nil {
		if remote, ok := errors.AsType[godbus.Error](err); ok && remote.Name == "org.freedesktop.systemd1.UnitExists" {
			return fmt.Errorf("%s: %w", t.Unit, ErrUnitExists)
		}
		return named("start "+t.Unit, err)
	}
	return job.Wait(ctx)
}

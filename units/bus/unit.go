package bus

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	sddbus "github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// UnitStatus is one line of a list of units.
type UnitStatus struct {
	Name   string
	Load   string // "loaded", "not-found", "masked", …
	Active string // "active", "activating", "deactivating", "inactive", "failed", …
	Sub    string // "running", "start-pre", "auto-restart", …
	Job    string // type of the job that waits or runs: "start", "stop", …; "" for none
}

// Units lists the units that systemd has loaded and whose name matches
// pattern, a glob; one that neither runs nor is linked from another is not
// loaded.
func (c *Conn) Units(ctx context.Context, pattern string) ([]UnitStatus, error) {
	list, err := c.systemd.ListUnitsByPatternsContext(ctx, nil, []string{pattern})
	if err != nil {
		return nil, named("list units", err)
	}
	units := make([]UnitStatus, len(list))
	for i, u := range list {
		units[i] = UnitStatus{Name: u.Name, Load: u.LoadState, Active: u.ActiveState, Sub: u.SubState, Job: u.JobType}
	}
	return units, nil
}

// Unset is a counter that systemd does not keep for the unit.
const Unset = ^uint64(0)

// Properties is what systemd tells of one service
// (org.freedesktop.systemd1(5)).
type Properties struct {
	Description   string
	LoadState     string // "not-found" for a unit that does not exist
	ActiveState   string
	SubState      string
	UnitFileState string // "enabled", "enabled-runtime", "disabled", …

	SourcePath       string
	DropInPaths      []string
	NeedDaemonReload bool // a file of the unit, or SourcePath, changed since it was read

	ActiveEnterTimestamp time.Time // zero: never
	InvocationID         string    // 32 hexadecimal digits; "": not started since it was loaded

	MainPID        int // 0: none
	ExecMainPID    int // of the last run too
	ExecMainCode   int // CLD_… of wait(2)
	ExecMainStatus int
	StatusText     string
	Result         string // "success", "exit-code", "signal", "timeout", "start-limit-hit", …
	NRestarts      int

	ControlGroup  string
	CPUUsageNSec  uint64 // these four: Unset where not known
	MemoryCurrent uint64 // bytes
	IOReadBytes   uint64
	IOWriteBytes  uint64
}

// Properties returns what systemd tells of a service, which is loaded for that
// where it was not. For one that does not exist LoadState is "not-found".
func (c *Conn) Properties(ctx context.Context, unit string) (Properties, error) {
	all, err := c.systemd.GetAllPropertiesContext(ctx, unit)
	if err != nil {
		return Properties{}, named("look at "+unit, err)
	}
	p := Properties{
		Description:      property[string](all, "Description"),
		LoadState:        property[string](all, "LoadState"),
		ActiveState:      property[string](all, "ActiveState"),
		SubState:         property[string](all, "SubState"),
		UnitFileState:    property[string](all, "UnitFileState"),
		SourcePath:       property[string](all, "SourcePath"),
		DropInPaths:      property[[]string](all, "DropInPaths"),
		NeedDaemonReload: property[bool](all, "NeedDaemonReload"),
		InvocationID:     hex.EncodeToString(property[[]byte](all, "InvocationID")),
		MainPID:          int(property[uint32](all, "MainPID")),
		ExecMainPID:      int(property[uint32](all, "ExecMainPID")),
		ExecMainCode:     int(property[int32](all, "ExecMainCode")),
		ExecMainStatus:   int(property[int32](all, "ExecMainStatus")),
		StatusText:       property[string](all, "StatusText"),
		Result:           property[string](all, "Result"),
		NRestarts:        int(property[uint32](all, "NRestarts")),
		ControlGroup:     property[string](all, "ControlGroup"),
		CPUUsageNSec:     counter(all, "CPUUsageNSec"),
		MemoryCurrent:    counter(all, "MemoryCurrent"),
		IOReadBytes:      counter(all, "IOReadBytes"),
		IOWriteBytes:     counter(all, "IOWriteBytes"),
	}
	if us := property[uint64](all, "ActiveEnterTimestamp"); us != 0 {
		p.ActiveEnterTimestamp = time.UnixMicro(int64(us))
	}
	return p, nil
}

// property is the value of a property, T's zero where the unit has none: a
// unit that is not a service, or an older systemd.
func property[T any](all map[string]any, name string) T {
	v, _ := all[name].(T)
	return v
}

func counter(all map[string]any, name string) uint64 {
	if v, ok := all[name].(uint64); ok {
		return v
	}
	return Unset
}

// State is what changes while a unit lives.
type State struct {
	Active     string
	Sub        string
	StatusText string
	Result     string
	MainPID    int
}

// WatchUnit calls on with the state of a unit, then with each further one,
// until the context ends, which is its error. It asks for the signals of this
// one unit; go-systemd's subscriptions poll, or bring those of every unit and
// drop what is not fetched in time.
func (c *Conn) WatchUnit(ctx context.Context, unit string, on func(State)) error {
	path := godbus.ObjectPath(string(systemdPath) + "/unit/" + sddbus.PathBusEscape(unit))
	signals := make(chan *godbus.Signal, 16)
	c.calls.Signal(signals)
	defer c.calls.RemoveSignal(signals)

	// Directly connected, every signal comes unasked.
	if !c.direct {
		match := []godbus.MatchOption{
			godbus.WithMatchObjectPath(path),
			godbus.WithMatchInterface(propertiesName),
			godbus.WithMatchMember("PropertiesChanged"),
		}
		if err := c.calls.AddMatchSignalContext(ctx, match...); err != nil {
			return named("watch "+unit, err)
		}
		defer c.calls.RemoveMatchSignal(match...)
	}
	// Without a subscriber systemd sends no signals. It counts them by
	// connection, so there is nothing to take back while others watch too.
	err := c.calls.Object(systemdName, systemdPath).CallWithContext(ctx, systemdName+".Manager.Subscribe", 0).Err
	if err != nil && !isAlreadySubscribed(err) {
		return named("watch "+unit, err)
	}

	p, err := c.Properties(ctx, unit)
	if err != nil {
		return err
	}
	state := State{Active: p.ActiveState, Sub: p.SubState, StatusText: p.StatusText, Result: p.Result, MainPID: p.MainPID}
	on(state)
	for {
		select {
		case s, ok := <-signals:
			if !ok {
				return fmt.Errorf("watching %s: %w", unit, ErrConnectionLost)
			}
			if s.Path != path || s.Name != propertiesName+".PropertiesChanged" {
				continue
			}
			if next := state.after(s.Body); next != state {
				state = next
				on(state)
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-c.calls.Context().Done():
			return fmt.Errorf("watching %s: %w", unit, ErrConnectionLost)
		}
	}
}

func isAlreadySubscribed(err error) bool {
	remote, ok := err.(godbus.Error)
	return ok && remote.Name == systemdName+".AlreadySubscribed"
}

// after is the state after a PropertiesChanged signal: interface, changed
// properties, names of invalidated ones.
func (s State) after(body []any) State {
	if len(body) < 2 {
		return s
	}
	changed, _ := body[1].(map[string]godbus.Variant)
	text := func(name string, old string) string {
		if v, ok := changed[name].Value().(string); ok {
			return v
		}
		return old
	}
	s.Active = text("ActiveState", s.Active)
	s.Sub = text("SubState", s.Sub)
	s.StatusText = text("StatusText", s.StatusText)
	s.Result = text("Result", s.Result)
	if pid, ok := changed["MainPID"].Value().(uint32); ok {
		s.MainPID = int(pid)
	}
	return s
}

// Stopping says whether the service manager, and with it the host or the user's
// session, is about to end.
func (c *Conn) Stopping(ctx context.Context) (bool, error) {
	p, err := c.systemd.SystemStateContext(ctx)
	if err != nil {
		return false, named("ask for the state of the system", err)
	}
	state, _ := p.Value.Value().(string)
	return state == "stopping", nil
}

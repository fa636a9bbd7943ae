package bus

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	sddbus "github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// Proxy is a TCP port of the host, on which systemd listens, and the service that it
// starts with the first who connects: systemd-socket-proxyd(8), say. Both are gone when
// they are stopped, or the unit that they belong to is; the socket is, however that ends.
type Proxy struct {
	Name        string // of the socket and of the service, without what says which it is
	Description string
	Listen      string   // ADDRESS:PORT
	Argv        []string // of the service; Argv[0] is absolute
	Of          string   // the unit that they belong to, which is running or being started
	Slice       string
}

// Socket and Service are the proxy's units.
func (p Proxy) Socket() string  { return p.Name + ".socket" }
func (p Proxy) Service() string { return p.Name + ".service" }

// auxiliary is a unit that comes with a transient one: D-Bus type (sa(sv)).
type auxiliary struct {
	Name       string
	Properties []sddbus.Property
}

// listen is a socket: D-Bus type (ss).
type listen struct{ Type, Address string }

// StartProxy has systemd listen. One by that name must have been stopped: the error is
// [ErrUnitExists] where it is there for longer than it takes systemd to forget it.
func (c *Conn) StartProxy(ctx context.Context, p Proxy) error {
	set := func(name string, value any) sddbus.Property {
		return sddbus.Property{Name: name, Value: godbus.MakeVariant(value)}
	}
	socket := []sddbus.Property{
		set("Description", p.Description),
		set("CollectMode", "inactive-or-failed"),
		set("BindsTo", []string{p.Of}),
		set("Listen", []listen{{"Stream", p.Listen}}),
	}
	service := []sddbus.Property{
		set("Description", p.Description),
		set("CollectMode", "inactive-or-failed"),
		// It is started by whoever connects, which would start that unit with BindsTo=,
		// or take back that it is stopped.
		set("PartOf", []string{p.Of}),
		set("Slice", p.Slice),
		set("ExecStart", []execCommand{{p.Argv[0], p.Argv, false}}),
	}
	for name, value := range proxySandbox() {
		service = append(service, set(name, value))
	}
	for begun := time.Now(); ; time.Sleep(forgetPoll) {
		var job godbus.ObjectPath
		err := c.calls.Object(systemdName, systemdPath).CallWithContext(ctx, systemdName+".Manager.StartTransientUnit", 0,
			p.Socket(), "fail", socket, []auxiliary{{p.Service(), service}}).Store(&job)
		if remote, ok := errors.AsType[godbus.Error](err); ok && remote.Name == "org.freedesktop.systemd1.UnitExists" {
			if time.Since(begun) < forgetTime {
				continue
			}
			return fmt.Errorf("%s: %w", p.Socket(), ErrUnitExists)
		}
		if err != nil {
			return named("start "+p.Socket(), err)
		}
		// Which waits for that job, or finds it done, and takes back none that stops
		// what the socket belongs to.
		j := &Job{conn: c, unit: p.Socket(), result: make(chan string, 1)}
		if _, err := c.systemd.StartUnitContext(ctx, p.Socket(), "fail", j.result); err != nil {
			return named("start "+p.Socket(), err)
		}
		return j.Wait(ctx)
	}
}

// StopProxy has systemd listen no more, and ends what it has started for that.
func (c *Conn) StopProxy(ctx context.Context, p Proxy) error {
	var errs []error
	for _, unit := range []string{p.Socket(), p.Service()} {
		if err := c.Stop(ctx, unit); err != nil && !errors.Is(err, ErrNoSuchUnit) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

const (
	// forgetTime is for systemd to forget a unit that was stopped just now.
	forgetTime = 5 * time.Second
	forgetPoll = 20 * time.Millisecond
)

// only is a list of what is allowed, and nothing else: D-Bus type (bas).
type only struct {
	Allow bool
	Names []string
}

// proxySandbox are the settings of a service that connects two sockets, and has no
// business with anything else of the host.
func proxySandbox() map[string]any {
	sandbox := map[string]any{
		"CapabilityBoundingSet":   uint64(0),
		"DevicePolicy":            "closed",
		"KeyringMode":             "private",
		"ProtectHome":             "yes",
		"ProtectProc":             "invisible",
		"ProtectSystem":           "strict",
		"RestrictAddressFamilies": only{true, []string{"AF_UNIX", "AF_INET", "AF_INET6"}},
		"RestrictNamespaces":      uint64(0),
		"SystemCallArchitectures": []string{"native"},
		"SystemCallErrorNumber":   int32(syscall.EPERM),
		"SystemCallFilter":        only{true, []string{"@system-service"}},
		"UMask":                   uint32(0o077),
	}
	for _, name := range []string{"DynamicUser", "LockPersonality", "MemoryDenyWriteExecute", "NoNewPrivileges", "PrivateDevices", "PrivateTmp", "PrivateUsers",
		"ProtectClock", "ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables",
		"RemoveIPC", "RestrictRealtime", "RestrictSUIDSGID"} {
		sandbox[name] = true
	}
	return sandbox
}

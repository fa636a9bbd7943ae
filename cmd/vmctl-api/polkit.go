package main

import (
	"context"
	"path"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// policy decides whether a caller may use a machine, beyond what its role says.
type policy interface {
	// check returns an error with the code PermissionDenied where it may not.
	check(ctx context.Context, c *call, vm string) error
}

// polkit asks polkit, where there is one, whose rules then can take from a user
// of this host what its group has given. Root, and who has come by a certificate,
// are none of its business.
type polkit struct{}

const (
	polkitName = "org.freedesktop.PolicyKit1"
	polkitPath = dbus.ObjectPath("/org/freedesktop/PolicyKit1/Authority")
	// polkitAction is described in packaging/polkit/io.github.vmctl.policy. Its
	// details are vm and method, for rules to decide by.
	polkitAction = "io.github.vmctl.api"
	polkitTime   = 10 * time.Second
)

// subject and verdict are polkit's (polkit's D-Bus reference).
type subject struct {
	Kind    string
	Details map[string]dbus.Variant
}

type verdict struct {
	Authorized bool
	Challenge  bool
	Details    map[string]string
}

func (polkit) check(ctx context.Context, c *call, vm string) error {
	if !c.caller.local || c.caller.uid == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, polkitTime)
	defer cancel()
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil // no bus, no polkit
	}
	defer bus.Close()
	who := subject{"unix-process", map[string]dbus.Variant{
		"pid":        dbus.MakeVariant(uint32(c.caller.pid)),
		"start-time": dbus.MakeVariant(uint64(0)), // polkit looks itself
		"uid":        dbus.MakeVariant(int32(c.caller.uid)),
	}}
	method := path.Base(c.method)
	details := map[string]string{"vm": vm, "method": method}
	var v verdict
	err = bus.Object(polkitName, polkitPath).CallWithContext(ctx, polkitName+".Authority.CheckAuthorization", 0,
		who, polkitAction, details, uint32(0), "").Store(&v)
	switch {
	case err != nil && noPolkit(err):
		return nil
	case err != nil:
		return status.Errorf(codes.PermissionDenied, "%s of %s: asking polkit: %v", method, vm, err)
	case !v.Authorized:
		return status.Errorf(codes.PermissionDenied, "polkit does not let %s use %s of %s", c.caller.Name, method, vm)
	}
	return nil
}

// noPolkit says whether an error is that there is none.
func noPolkit(err error) bool {
	e, ok := err.(dbus.Error)
	return ok && (e.Name == "org.freedesktop.DBus.Error.ServiceUnknown" || e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner" ||
		strings.HasPrefix(e.Name, "org.freedesktop.DBus.Error.Spawn."))
}

// allow says that a call is about a machine, and whether the caller may.
func (s *server) allow(ctx context.Context, vm string) error {
	c := callOf(ctx)
	if c == nil {
		return nil
	}
	c.about(vm)
	return s.policy.check(ctx, c, vm)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmctl/vmctl/config"
)

// policy decides whether a caller may use things, beyond what its role says.
type policy interface {
	// check returns for each an error with the code PermissionDenied where it may
	// not.
	check(ctx context.Context, c *call, objects []object) []error
}

// The kinds of objects, which are details of polkit's action too. Those of what an
// environment has are config's.
const (
	vmObject          = string(config.KindVM)
	networkObject     = string(config.KindNetwork)
	imageObject       = string(config.KindImage)
	environmentObject = "environment"
)

// polkit asks polkit, where there is one, whose rules then can take from a user
// of this host what its group has given. Root, and who has come by a certificate,
// are none of its business. Where it cannot be asked, nobody else may.
type polkit struct {
	slots chan struct{} // as many as are asked at once
	mu    sync.Mutex
	bus   *dbus.Conn // nil before the first question
}

func newPolkit() *polkit { return &polkit{slots: make(chan struct{}, polkitAtOnce)} }

const (
	polkitName = "org.freedesktop.PolicyKit1"
	polkitPath = dbus.ObjectPath("/org/freedesktop/PolicyKit1/Authority")
	// polkitAction is described in packaging/polkit/io.github.vmctl.policy. Its
	// details are the kind of the object with its name, and method, for rules to
	// decide by.
	polkitAction = "io.github.vmctl.api"
	polkitTime   = 10 * time.Second
	// polkitAtOnce is how many questions wait for an answer: the bus takes no more
	// than 128 of a connection.
	polkitAtOnce = 64
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

func (p *polkit) check(ctx context.Context, c *call, objects []object) []error {
	out := make([]error, len(objects))
	if len(objects) == 0 || !c.caller.local || c.caller.uid == 0 {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, polkitTime)
	defer cancel()
	bus, err := p.connection()
	if errors.Is(err, fs.ErrNotExist) {
		return out // no bus, no polkit
	}
	if err != nil {
		for i, o := range objects {
			out[i] = notAsked(c, o, err)
		}
		return out
	}
	// One alone tells whether there is polkit at all.
	if out[0] = p.ask(ctx, bus, c, objects[0]); status.Code(out[0]) == codes.Unavailable {
		return make([]error, len(objects))
	}
	var wg sync.WaitGroup
	for i, o := range objects[1:] {
		wg.Go(func() { out[i+1] = safely(c.method, func() error { return p.ask(ctx, bus, c, o) }) })
	}
	wg.Wait()
	return out
}

// connection is the connection to the bus, which all calls share: the bus takes only
// so many of one user. It is made anew where it was lost. The error is fs.ErrNotExist
// where the host has no bus.
func (p *polkit) connection() (*dbus.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bus != nil && p.bus.Connected() {
		return p.bus, nil
	}
	// The context of a connection ends it.
	ctx, cancel := context.WithCancel(context.Background())
	late := time.AfterFunc(polkitTime, cancel)
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if !late.Stop() && err == nil {
		err = errors.Join(context.DeadlineExceeded, bus.Close())
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("connecting to D-Bus: %w", err)
	}
	p.bus = bus
	return bus, nil
}

// ask asks polkit whether the caller may use something: the error has the code
// Unavailable where there is no polkit.
func (p *polkit) ask(ctx context.Context, bus *dbus.Conn, c *call, o object) error {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return notAsked(c, o, ctx.Err())
	}
	who := subject{"unix-process", map[string]dbus.Variant{
		"pid":        dbus.MakeVariant(uint32(c.caller.pid)),
		"start-time": dbus.MakeVariant(uint64(0)), // polkit looks itself
		"uid":        dbus.MakeVariant(int32(c.caller.uid)),
	}}
	method := path.Base(c.method)
	details := map[string]string{o.kind: o.name, "method": method}
	var v verdict
	err := bus.Object(polkitName, polkitPath).CallWithContext(ctx, polkitName+".Authority.CheckAuthorization", 0,
		who, polkitAction, details, uint32(0), "").Store(&v)
	switch {
	case err != nil && noPolkit(err):
		return status.Error(codes.Unavailable, err.Error())
	case err != nil:
		return notAsked(c, o, err)
	case !v.Authorized:
		return status.Errorf(codes.PermissionDenied, "polkit does not let %s use %s of %s", c.caller.Name, method, o.name)
	}
	return nil
}

// notAsked is why a caller may not, where polkit might say that it may.
func notAsked(c *call, o object, err error) error {
	return status.Errorf(codes.PermissionDenied, "%s of %s: asking polkit: %v", path.Base(c.method), o.name, err)
}

// noPolkit says whether an error is that none is installed. One that is and cannot be
// started might deny.
func noPolkit(err error) bool {
	e, ok := err.(dbus.Error)
	return ok && (e.Name == "org.freedesktop.DBus.Error.ServiceUnknown" || e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner")
}

// allow says that a call is about a machine, and whether the caller may.
func (s *server) allow(ctx context.Context, vm string) error { return s.allowUse(ctx, vmObject, vm) }

// allowNamed is the same of something whose name has yet to be looked at; field is
// where the request has it.
func (s *server) allowNamed(ctx context.Context, kind, field, name string) error {
	if err := config.CheckName(name); err != nil {
		return status.Errorf(codes.InvalidArgument, "%s: %v", field, err)
	}
	return s.allowUse(ctx, kind, name)
}

// allowUse says that a call is about something, and whether the caller may; others
// are names that it goes by as well.
func (s *server) allowUse(ctx context.Context, kind, name string, others ...string) error {
	c := callOf(ctx)
	if c == nil {
		return nil
	}
	objects := []object{{kind, name}}
	c.isAbout(objects[0])
	for _, other := range others {
		if other != name {
			objects = append(objects, object{kind, other})
		}
	}
	return errors.Join(s.policy.check(ctx, c, objects)...)
}

// visible are those of several machines that the caller may see.
func visible[T any](ctx context.Context, s *server, all []T, name func(T) string) []T {
	c := callOf(ctx)
	if c == nil {
		return all
	}
	objects := make([]object, len(all))
	for i, one := range all {
		objects[i] = object{vmObject, name(one)}
	}
	var out []T
	for i, err := range s.policy.check(ctx, c, objects) {
		if err == nil {
			out = append(out, all[i])
		}
	}
	return out
}

// sees says whether the caller may see a machine.
func (s *server) sees(ctx context.Context, vm string) bool {
	return len(visible(ctx, s, []string{vm}, func(name string) string { return name })) > 0
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"path"
	"runtime/debug"
	"strings"
	"sync"
	"time"
	"unicode"

	sdjournal "github.com/coreos/go-systemd/v22/journal"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmctl/vmctl/units/journal"
)

// call is a call while it is being answered.
type call struct {
	caller *caller
	role   role   // of the caller, now
	method string // "/mvirt.VmService/StartVm"
	begun  time.Time

	mu    sync.Mutex
	about object // once that is known
}

// object is what a call is about.
type object struct {
	kind string // "environment", or of what one has: "vm", "network", "image"...
	name string
}

type callKey struct{}

// callOf is the call that ctx is of, nil where it is of none.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

func (c *call) isAbout(o object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.about = o
}

// unary and stream are what every call goes through.
func (s *server) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	err = s.answer(ctx, info.FullMethod, func(ctx context.Context) error {
		var err error
		answer, err = handle(ctx, request)
		return err
	})
	return answer, err
}

func (s *server) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return s.answer(stream.Context(), info.FullMethod, func(ctx context.Context) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(s.ending, func() { cancel(errEnding) })()
		err := handle(service, &callStream{stream, ctx})
		if context.Cause(ctx) == errEnding {
			return status.Error(codes.Unavailable, errEnding.Error())
		}
		return err
	})
}

// callStream is a stream with the context of its call: where that ends, nothing
// waits any more for a caller who does not read, or says nothing.
type callStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *callStream) Context() context.Context { return s.ctx }
func (s *callStream) SendMsg(m any) error      { return s.orEnd(s.ServerStream.SendMsg, m) }
func (s *callStream) RecvMsg(m any) error      { return s.orEnd(s.ServerStream.RecvMsg, m) }

func (s *callStream) orEnd(do func(any) error, m any) error {
	if err := s.ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	done := make(chan error, 1)
	go func() { done <- safely(callOf(s.ctx).method, func() error { return do(m) }) }()
	return wait(s.ctx, done)
}

// answer answers a call: not if the caller may not.
func (s *server) answer(ctx context.Context, method string, handle func(context.Context) error) error {
	defer s.activity.begin()()
	c := &call{method: oneLine(method), begun: time.Now()}
	err := safely(c.method, func() error { return s.handle(ctx, c, handle) })
	s.keep(c, err)
	return err
}

func (s *server) handle(ctx context.Context, c *call, handle func(context.Context) error) error {
	who, ok := callerOf(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, "it is not known who calls")
	}
	c.caller = who
	may, err := who.mayNow()
	if unknown, ok := errors.AsType[*unknownError](err); ok {
		return status.Error(codes.Unavailable, unknown.Error())
	}
	if err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	if need := s.needs(c.method); may < need {
		return status.Errorf(codes.PermissionDenied, "%s is for an %s, %s is %s", path.Base(c.method), need, who.Name, may)
	}
	c.role = may
	return handle(context.WithValue(ctx, callKey{}, c))
}

// safely does something for a call: whatever happens, no more than that fails by it.
// Each goroutine of a call needs it again.
func safely(method string, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Printf("%s: %v\n%s", method, p, debug.Stack())
			err = status.Errorf(codes.Internal, "%s failed: journalctl -u vmctl-api has more", path.Base(method))
		}
	}()
	return do()
}

// looks are the methods that a viewer may call: they change nothing. All of
// health's and reflection's are.
var looks = map[string]bool{
	"/mvirt.VmService/GetVersion":    true,
	"/mvirt.VmService/GetSystemInfo": true,
	"/mvirt.VmService/GetVm":         true,
	"/mvirt.VmService/ListVms":       true,
	"/mvirt.VmService/WatchVms":      true,

	"/vmctl.v1.MachineService/ListMachines": true,
	"/vmctl.v1.MachineService/GetMachine":   true,
	"/vmctl.v1.MachineService/WatchEvents":  true,

	"/vmctl.v1.SnapshotService/ListSnapshots":    true,
	"/vmctl.v1.ImageService/ListImages":          true,
	"/vmctl.v1.ImageService/ListAvailableImages": true,
	"/vmctl.v1.NetworkService/ListNetworks":      true,
	"/vmctl.v1.NetworkService/GetNetwork":        true,
	"/vmctl.v1.NetworkService/ListLeases":        true,
	"/vmctl.v1.MetricsService/GetMetrics":        true,
}

// needs is what a caller has to be for a method. That there is none anybody is told.
func (s *server) needs(method string) role {
	switch service := path.Dir(method); {
	case looks[method], !s.methods[method], service == "/grpc.health.v1.Health",
		service == "/grpc.reflection.v1.ServerReflection", service == "/grpc.reflection.v1alpha.ServerReflection":
		return viewer
	}
	return operator
}

// methodsOf are the methods that a service has, as callers name them.
func methodsOf(services map[string]grpc.ServiceInfo) map[string]bool {
	out := map[string]bool{}
	for name, service := range services {
		for _, m := range service.Methods {
			out["/"+name+"/"+m.Name] = true
		}
	}
	return out
}

// noMethod answers calls of methods that there are none of, such as those of
// mvirt.PodService: they are in the journal as others are.
func noMethod(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	return status.Errorf(codes.Unimplemented, "%s: there is no such method", oneLine(method))
}

// keep has the journal keep a call.
func (s *server) keep(c *call, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := status.Convert(err)
	done := journal.Call{Method: c.method, Peer: "?", Code: st.Code().String(), Message: oneLine(st.Message()), Took: time.Since(c.begun), Look: s.needs(c.method) == viewer}
	if c.caller != nil {
		done.Peer = c.caller.Peer
	}
	text := path.Base(c.method)
	if c.about.name != "" {
		text += " " + c.about.name
	}
	if c.about.kind == vmObject {
		done.VM = c.about.name
	}
	text += fmt.Sprintf(" by %s: %s in %.3f s", done.Peer, done.Code, done.Took.Seconds())
	priority := sdjournal.PriInfo
	switch {
	case err != nil:
		text += ": " + done.Message
		priority = sdjournal.PriNotice
	case done.Look:
		// A page that shows machines asks every other second.
		priority = sdjournal.PriDebug
	}
	s.journal(done, text, priority)
}

// maxLine is how much of what a caller may have given is kept, in bytes.
const maxLine = 1024

// oneLine is a text as it may stand in the journal, whatever a caller has put in.
func oneLine(text string) string {
	if len(text) > maxLine {
		text = text[:maxLine] + "..."
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case unicode.IsControl(r):
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(text, string(unicode.ReplacementChar)))
}

// activity knows how long nothing was done.
type activity struct {
	mu    sync.Mutex
	n     int
	since time.Time // n is 0
}

func newActivity() *activity { return &activity{since: time.Now()} }

// begin says that something is being done; what it returns, that it is done.
func (a *activity) begin() (end func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.n--; a.n == 0 {
			a.since = time.Now()
		}
	}
}

// left is how long it takes until nothing was done for a time, 0 where that is so.
func (a *activity) left(idle time.Duration) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n > 0 {
		return idle
	}
	return max(0, time.Until(a.since.Add(idle)))
}

// idleFor is closed once nothing was done for a time.
func (a *activity) idleFor(idle time.Duration) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		for left := a.left(idle); left > 0; left = a.left(idle) {
			time.Sleep(left)
		}
		close(done)
	}()
	return done
}

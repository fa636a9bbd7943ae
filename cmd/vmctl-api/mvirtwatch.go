package main

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
)

// WatchVms tells what there is, as STARTED for what runs and CREATED for all
// else, and then what happens, from then on without a gap. A caller that reads so
// slowly that [watchQueue] events wait is ended with RESOURCE_EXHAUSTED: it
// subscribes again, and is told what there is by then. Of machines that it may not
// use it is told nothing.
func (s *mvirtService) WatchVms(r *mvirt.WatchVmsRequest, stream mvirt.VmService_WatchVmsServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	sub, present, err := s.watch.subscribe(ctx)
	if err != nil {
		return err
	}
	defer s.watch.unsubscribe(sub)
	go func() {
		select {
		case <-sub.lost:
			cancel(errSlow)
		case <-ctx.Done():
		}
	}()
	err = s.tellEvents(&callStream{stream, ctx}, r, sub, present)
	if context.Cause(ctx) == errSlow {
		return errSlow
	}
	return err
}

// errSlow is why a watch ends whose caller does not read.
var errSlow = status.Errorf(codes.ResourceExhausted, "more than %d events wait to be read: subscribe again", watchQueue)

// tellEvents sends what there is and what happens until the stream ends.
func (s *mvirtService) tellEvents(stream *callStream, r *mvirt.WatchVmsRequest, sub *subscriber, present []*machine) error {
	ctx := stream.Context()
	send := func(e *mvirt.VmEvent) error {
		if r.VmId != nil && r.GetVmId() != e.GetVmId() {
			return nil
		}
		return stream.SendMsg(e)
	}
	for _, m := range visible(ctx, s.server, present, nameOf) {
		if err := send(s.presentEvent(m)); err != nil {
			return err
		}
	}
	for {
		select {
		case e := <-sub.events:
			if !s.sees(ctx, e.name) {
				continue
			}
			if err := send(s.toEvent(e)); err != nil {
				return err
			}
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// presentEvent tells of a machine as it was found.
func (s *mvirtService) presentEvent(m *machine) *mvirt.VmEvent {
	e := &mvirt.VmEvent{VmId: m.id(), Type: mvirt.VmEventType_VM_EVENT_CREATED, Timestamp: m.created.Unix(), Vm: s.summary(m)}
	if isUp(m.State) && m.StartedAt != nil {
		e.Type, e.Timestamp = mvirt.VmEventType_VM_EVENT_STARTED, m.StartedAt.Unix()
	}
	return e
}

var mvirtEvents = map[change]mvirt.VmEventType{
	vmCreated: mvirt.VmEventType_VM_EVENT_CREATED,
	vmStarted: mvirt.VmEventType_VM_EVENT_STARTED,
	vmStopped: mvirt.VmEventType_VM_EVENT_STOPPED,
	vmDeleted: mvirt.VmEventType_VM_EVENT_DELETED,
}

func (s *mvirtService) toEvent(e vmEvent) *mvirt.VmEvent {
	out := &mvirt.VmEvent{VmId: e.id, Type: mvirtEvents[e.change], Timestamp: e.time.Unix()}
	if out.Timestamp <= 0 {
		out.Timestamp = time.Now().Unix()
	}
	if e.machine != nil {
		out.Vm = s.summary(e.machine)
		if e.change == vmStopped {
			// Its unit may still be cleaning up.
			out.Vm.State = mvirt.VmState_VM_STATE_STOPPED
		}
	}
	return out
}

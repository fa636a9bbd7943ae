package main

import (
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
)

// WatchVms tells what there is, as STARTED for what runs and CREATED for all
// else, and then what happens, from then on without a gap. A caller that reads so
// slowly that [watchQueue] events wait is ended with RESOURCE_EXHAUSTED: it
// subscribes again, and is told what there is by then. Of machines that it may not
// use it is told nothing.
func (s *mvirtService) WatchVms(r *mvirt.WatchVmsRequest, stream mvirt.VmService_WatchVmsServer) error {
	sub, present, err := s.watch.subscribe(stream.Context())
	if err != nil {
		return err
	}
	defer s.watch.unsubscribe(sub)
	viewing := callOf(stream.Context()).role < operator
	send := func(e *mvirt.VmEvent) error {
		if r.VmId != nil && r.GetVmId() != e.GetVmId() {
			return nil
		}
		if viewing && e.GetVm().GetConfig().GetUserData() != "" {
			e = proto.CloneOf(e)
			e.Vm.Config.UserData = nil
		}
		return stream.Send(e)
	}
	for _, m := range visible(stream.Context(), s.server, present, nameOf) {
		if err := send(s.presentEvent(m)); err != nil {
			return err
		}
	}
	for {
		select {
		case e := <-sub.events:
			if !s.sees(stream.Context(), e.name) {
				continue
			}
			if err := send(s.toEvent(e)); err != nil {
				return err
			}
		case <-sub.lost:
			return status.Errorf(codes.ResourceExhausted, "more than %d events wait to be read: subscribe again", watchQueue)
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		}
	}
}

// presentEvent tells of a machine as it was found.
func (s *mvirtService) presentEvent(m *machine) *mvirt.VmEvent {
	e := &mvirt.VmEvent{VmId: m.id(), Type: mvirt.VmEventType_VM_EVENT_CREATED, Timestamp: m.created.Unix(), Vm: s.toVM(s.ending, m)}
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
		out.Vm = s.toVM(s.ending, e.machine)
		if e.change == vmStopped {
			// Its unit may still be cleaning up.
			out.Vm.State = mvirt.VmState_VM_STATE_STOPPED
		}
	}
	return out
}

package main

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
)

// machineService is vmctl's own service. What is done, vmctl does, and what it
// refuses is refused.
type machineService struct {
	vmctlv1.UnimplementedMachineServiceServer
	*server
}

func (s *machineService) ListMachines(ctx context.Context, _ *vmctlv1.ListMachinesRequest) (*vmctlv1.ListMachinesResponse, error) {
	all, err := s.machines(ctx)
	if err != nil {
		return nil, err
	}
	out := &vmctlv1.ListMachinesResponse{}
	for _, m := range visible(ctx, s.server, all, nameOf) {
		out.Machines = append(out.Machines, toMachine(m))
	}
	return out, nil
}

func (s *machineService) GetMachine(ctx context.Context, r *vmctlv1.GetMachineRequest) (*vmctlv1.GetMachineResponse, error) {
	if err := s.checkNamed(ctx, r.GetName()); err != nil {
		return nil, err
	}
	m, err := s.machineNamed(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, status.Errorf(codes.NotFound, "no VM is named %s", r.GetName())
	}
	return &vmctlv1.GetMachineResponse{Machine: toMachine(m)}, nil
}

func (s *machineService) checkNamed(ctx context.Context, name string) error {
	return s.allowNamed(ctx, vmObject, "name", name)
}

// do has vmctl do something to a machine, and finds how that is then: stopped as it
// was before, where what was done has removed it, as the end of a throw-away does.
func (s *machineService) do(ctx context.Context, name string, args ...string) (*vmctlv1.Machine, error) {
	if err := s.checkNamed(ctx, name); err != nil {
		return nil, err
	}
	before, err := s.machineNamed(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := s.ask(ctx, vmctl(append(args, "--", name)...), nil); err != nil {
		return nil, err
	}
	m, err := s.machineNamed(ctx, name)
	if err != nil {
		return nil, err
	}
	if m == nil {
		if before == nil {
			return nil, status.Errorf(codes.NotFound, "no VM is named %s any more", name)
		}
		m = before.ended()
	}
	return toMachine(m), nil
}

func (s *machineService) StartMachine(ctx context.Context, r *vmctlv1.StartMachineRequest) (*vmctlv1.StartMachineResponse, error) {
	m, err := s.do(ctx, r.GetName(), "start")
	if err != nil {
		return nil, err
	}
	return &vmctlv1.StartMachineResponse{Machine: m}, nil
}

func (s *machineService) StopMachine(ctx context.Context, r *vmctlv1.StopMachineRequest) (*vmctlv1.StopMachineResponse, error) {
	args := []string{"stop"}
	if seconds := r.GetGraceSeconds(); seconds > 0 {
		args = append(args, "--grace", strconv.FormatUint(uint64(seconds), 10)+"s")
	}
	m, err := s.do(ctx, r.GetName(), args...)
	if err != nil {
		return nil, err
	}
	return &vmctlv1.StopMachineResponse{Machine: m}, nil
}

func (s *machineService) RestartMachine(ctx context.Context, r *vmctlv1.RestartMachineRequest) (*vmctlv1.RestartMachineResponse, error) {
	m, err := s.do(ctx, r.GetName(), "restart")
	if err != nil {
		return nil, err
	}
	return &vmctlv1.RestartMachineResponse{Machine: m}, nil
}

func (s *machineService) KillMachine(ctx context.Context, r *vmctlv1.KillMachineRequest) (*vmctlv1.KillMachineResponse, error) {
	m, err := s.do(ctx, r.GetName(), "kill")
	if err != nil {
		return nil, err
	}
	return &vmctlv1.KillMachineResponse{Machine: m}, nil
}

func (s *machineService) ResetMachine(ctx context.Context, r *vmctlv1.ResetMachineRequest) (*vmctlv1.ResetMachineResponse, error) {
	m, err := s.do(ctx, r.GetName(), "reset")
	if err != nil {
		return nil, err
	}
	return &vmctlv1.ResetMachineResponse{Machine: m}, nil
}

func (s *machineService) PauseMachine(ctx context.Context, r *vmctlv1.PauseMachineRequest) (*vmctlv1.PauseMachineResponse, error) {
	m, err := s.do(ctx, r.GetName(), "pause")
	if err != nil {
		return nil, err
	}
	return &vmctlv1.PauseMachineResponse{Machine: m}, nil
}

func (s *machineService) ResumeMachine(ctx context.Context, r *vmctlv1.ResumeMachineRequest) (*vmctlv1.ResumeMachineResponse, error) {
	m, err := s.do(ctx, r.GetName(), "resume")
	if err != nil {
		return nil, err
	}
	return &vmctlv1.ResumeMachineResponse{Machine: m}, nil
}

func (s *machineService) SaveMachine(ctx context.Context, r *vmctlv1.SaveMachineRequest) (*vmctlv1.SaveMachineResponse, error) {
	m, err := s.do(ctx, r.GetName(), "save")
	if err != nil {
		return nil, err
	}
	return &vmctlv1.SaveMachineResponse{Machine: m}, nil
}

func (s *machineService) DeleteMachine(ctx context.Context, r *vmctlv1.DeleteMachineRequest) (*vmctlv1.DeleteMachineResponse, error) {
	if err := s.checkNamed(ctx, r.GetName()); err != nil {
		return nil, err
	}
	args := []string{"delete", "--yes"}
	if r.GetKeepDisks() {
		args = append(args, "--keep-disks")
	}
	return &vmctlv1.DeleteMachineResponse{}, s.ask(ctx, vmctl(append(args, "--", r.GetName())...), nil)
}

// WatchEvents is vmctl events: what waits to be read is in the journal, so that a
// slow caller misses nothing and holds nothing up.
func (s *machineService) WatchEvents(r *vmctlv1.WatchEventsRequest, stream vmctlv1.MachineService_WatchEventsServer) error {
	ctx := stream.Context()
	since := time.Now()
	if r.GetSince() != nil {
		if err := r.GetSince().CheckValid(); err != nil {
			return status.Errorf(codes.InvalidArgument, "since: %v", err)
		}
		since = r.GetSince().AsTime()
	}
	args := []string{"events", "--since", "@" + strconv.FormatInt(since.Unix(), 10), "--"}
	for _, name := range r.GetNames() {
		if err := s.checkNamed(ctx, name); err != nil {
			return err
		}
		args = append(args, name)
	}
	err := s.commands.follow(ctx, args, nil, func(line []byte) error {
		var e journalEvent
		// journalctl takes times in whole seconds.
		if json.Unmarshal(line, &e) != nil || e.Time.Before(since) || !s.sees(ctx, e.VM) {
			return nil
		}
		return stream.Send(&vmctlv1.WatchEventsResponse{
			Time: timestamppb.New(e.Time), Name: e.VM, Event: e.Event, Detail: e.Detail,
			Operation: e.Operation, User: e.User, Seconds: e.Seconds, Failed: e.Failed,
		})
	})
	if err != nil {
		return statusOf("", err)
	}
	return status.Error(codes.Unavailable, "the events have ended: call again")
}

// machineState is the state of a name of vmctl's.
func machineState(state string) vmctlv1.MachineState {
	return vmctlv1.MachineState(vmctlv1.MachineState_value["MACHINE_STATE_"+strings.ToUpper(state)])
}

// toMachine tells of a machine.
func toMachine(m *machine) *vmctlv1.Machine {
	out := &vmctlv1.Machine{
		Name: m.Name, Id: m.id(), State: machineState(m.State),
		Description: m.Description, Hypervisor: m.Hypervisor, Cpus: uint32(m.CPUs), MemoryBytes: uint64(m.MemoryBytes),
		Pid: uint32(m.PID), Addresses: m.Addresses, Autostart: m.Autostart, PendingChanges: m.PendingChanges, Error: m.Error,
	}
	if m.StartedAt != nil {
		out.StartedAt = timestamppb.New(*m.StartedAt)
	}
	return out
}

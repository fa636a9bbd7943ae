package main

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
	"github.com/vmctl/vmctl/units/bus"

	"github.com/vmctl/vmctl/config"
)

// mvirtService is mvirt's service. Its ids are never names: what is asked for
// by a name is not found, and mvirt's own client then looks for the name itself.
type mvirtService struct {
	mvirt.UnimplementedVmServiceServer
	*server
}

func (s *mvirtService) GetVersion(context.Context, *mvirt.GetVersionRequest) (*mvirt.VersionInfo, error) {
	return &mvirt.VersionInfo{Version: version}, nil
}

func (s *mvirtService) GetVm(ctx context.Context, r *mvirt.GetVmRequest) (*mvirt.Vm, error) {
	m, err := s.find(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	return s.toVM(ctx, m), nil
}

func (s *mvirtService) ListVms(ctx context.Context, _ *mvirt.ListVmsRequest) (*mvirt.ListVmsResponse, error) {
	all, err := s.machines(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(all, func(a, b *machine) int { return b.created.Compare(a.created) })
	out := &mvirt.ListVmsResponse{}
	for _, m := range visible(ctx, s.server, all, nameOf) {
		out.Vms = append(out.Vms, s.summary(m))
	}
	return out, nil
}

func (s *mvirtService) DeleteVm(ctx context.Context, r *mvirt.DeleteVmRequest) (*mvirt.DeleteVmResponse, error) {
	m, err := s.find(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	if stateOf(m.State) == mvirt.VmState_VM_STATE_RUNNING {
		return nil, status.Error(codes.FailedPrecondition, "Cannot delete running VM")
	}
	if err := s.commands.run(ctx, vmctl("delete", "--yes", "--keep-disks", m.Name), nil); err != nil {
		return nil, statusOf("Cannot delete VM: ", err)
	}
	return &mvirt.DeleteVmResponse{}, nil
}

func (s *mvirtService) StartVm(ctx context.Context, r *mvirt.StartVmRequest) (*mvirt.Vm, error) {
	m, err := s.find(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	if m.State == running {
		return nil, status.Error(codes.FailedPrecondition, "VM is already running")
	}
	if err := s.commands.run(ctx, vmctl("start", m.Name), nil); err != nil {
		return nil, startError(err)
	}
	if m, err = s.lookAgain(ctx, m); err != nil {
		return nil, err
	}
	return s.toVM(ctx, m), nil
}

// startError is why a machine does not start: INTERNAL as with mvirt, also where it
// took too long. Of a broken definition mvirt has nothing.
func startError(err error) error {
	const prefix = "Failed to start VM: "
	if e, ok := errors.AsType[*commandError](err); ok {
		switch e.Status {
		case exitInvalid:
			return status.Error(codes.FailedPrecondition, prefix+e.Message)
		case exitTimeout:
			return status.Error(codes.Internal, prefix+e.Message)
		}
	}
	return statusOf(prefix, err)
}

func (s *mvirtService) StopVm(ctx context.Context, r *mvirt.StopVmRequest) (*mvirt.Vm, error) {
	m, err := s.find(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	if stateOf(m.State) != mvirt.VmState_VM_STATE_RUNNING {
		return nil, status.Error(codes.FailedPrecondition, "VM is not running")
	}
	args := []string{"stop", m.Name}
	if seconds := r.GetTimeoutSeconds(); seconds > 0 {
		args = append(args, "--grace", strconv.FormatUint(uint64(seconds), 10)+"s")
	}
	return s.endVM(ctx, m, vmctl(args...))
}

func (s *mvirtService) KillVm(ctx context.Context, r *mvirt.KillVmRequest) (*mvirt.Vm, error) {
	m, err := s.find(ctx, r.GetId())
	if err != nil {
		return nil, err
	}
	switch stateOf(m.State) {
	case mvirt.VmState_VM_STATE_RUNNING, mvirt.VmState_VM_STATE_STOPPING:
		return s.endVM(ctx, m, vmctl("kill", m.Name))
	}
	return nil, status.Error(codes.FailedPrecondition, "VM is not running")
}

// endVM has vmctl end a machine, and returns once that has begun; what comes of
// it is in the journal. It goes on when the caller does not wait, and where the
// service is ended too: what is lost then is how long the guest was to be given,
// which becomes stop_timeout of its definition.
func (s *mvirtService) endVM(ctx context.Context, m *machine, cmd command) (*mvirt.Vm, error) {
	release, err := s.commands.acquire(ctx, cmd)
	if err != nil {
		return nil, err
	}
	result := make(chan error, 1)
	s.inBackground(func() {
		defer release()
		result <- safely(callOf(ctx).method, func() error { return s.commands.do(context.WithoutCancel(ctx), cmd, nil) })
	})
	if err := s.untilStopping(ctx, m, result); err != nil {
		return nil, statusOf("Failed to stop VM: ", err)
	}
	vm := s.toVM(ctx, m)
	vm.State = mvirt.VmState_VM_STATE_STOPPING
	return vm, nil
}

// lookTime is how often it is looked whether a stop has begun.
const lookTime = 20 * time.Millisecond

// untilStopping returns when a machine is being stopped, or with how that ended.
// One that was being stopped already is only left alone once the result is there.
func (s *mvirtService) untilStopping(ctx context.Context, m *machine, result <-chan error) error {
	conn, err := bus.Dial(ctx, false)
	if err != nil || stateOf(m.State) == mvirt.VmState_VM_STATE_STOPPING {
		// The end of it tells as well, if later.
		return wait(ctx, result)
	}
	defer conn.Close()
	tick := time.NewTicker(lookTime)
	defer tick.Stop()
	for {
		select {
		case err := <-result:
			return err
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-tick.C:
		}
		units, err := conn.Units(ctx, config.Unit(m.Name))
		if err != nil {
			return wait(ctx, result)
		}
		if len(units) == 0 || units[0].Active == "deactivating" || units[0].Job == "stop" {
			return nil
		}
	}
}

func wait(ctx context.Context, result <-chan error) error {
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// stateOf is mvirt's word for a state.
func stateOf(state string) mvirt.VmState {
	switch state {
	case starting, loading:
		return mvirt.VmState_VM_STATE_STARTING
	case running, paused:
		return mvirt.VmState_VM_STATE_RUNNING
	case stopping, saving:
		return mvirt.VmState_VM_STATE_STOPPING
	}
	return mvirt.VmState_VM_STATE_STOPPED
}

// mebibyte is the unit of mvirt's memory, in bytes.
const mebibyte = 1 << 20

// toVM tells of a machine as mvirt does. User data are for operators: they may have
// passwords in them.
func (s *mvirtService) toVM(ctx context.Context, m *machine) *mvirt.Vm {
	vm := s.summary(m)
	if c := callOf(ctx); m.vm.Machine == nil || c != nil && c.role < operator {
		return vm
	}
	if _, file := m.vm.Machine.CloudInit.UserData.Path(); !file {
		vm.Config.UserData = given(string(m.vm.Machine.CloudInit.UserData))
	}
	return vm
}

// summary is a machine without its user data, of which those of a few fill a message
// of many.
func (s *mvirtService) summary(m *machine) *mvirt.Vm {
	vm := &mvirt.Vm{
		Id:        m.id(),
		Name:      apiName(m),
		State:     stateOf(m.State),
		CreatedAt: m.created.Unix(),
		Config:    &mvirt.VmConfig{Vcpus: uint32(m.CPUs), MemoryMb: uint64(m.MemoryBytes / mebibyte)},
	}
	if m.created.IsZero() {
		vm.CreatedAt = 0
	}
	if m.StartedAt != nil {
		vm.StartedAt = new(m.StartedAt.Unix())
	}
	if m.vm.Machine != nil {
		vm.Config = s.toConfig(m.vm.Machine)
	}
	return vm
}

// apiName is the name that programs know a machine by, nil where it was given
// none.
func apiName(m *machine) *string {
	if m.vm.Machine == nil {
		return new(m.Name)
	}
	if m.vm.Machine.API.Name == "" && m.Name == namelessName(m.id()) {
		return nil
	}
	return new(cmp.Or(m.vm.Machine.API.Name, m.Name))
}

func (s *mvirtService) toConfig(m *config.Machine) *mvirt.VmConfig {
	c := &mvirt.VmConfig{
		Vcpus:      uint32(m.CPUs),
		MemoryMb:   uint64(m.Memory / mebibyte),
		BootMode:   mvirt.BootMode_BOOT_MODE_DISK,
		NestedVirt: !slices.Contains(m.CPU.Features, noNested[0]),
	}
	if b := m.Boot; b.Kernel != "" {
		c.BootMode = mvirt.BootMode_BOOT_MODE_KERNEL
		c.Kernel, c.Initramfs, c.Cmdline = given(b.Kernel), given(b.Initrd), given(b.Cmdline)
	}
	for _, d := range m.Disks {
		c.Disks = append(c.Disks, &mvirt.DiskConfig{Path: s.paths.DiskFile(m.Name, d), Readonly: d.Readonly})
	}
	for _, n := range m.NICs {
		c.Nics = append(c.Nics, &mvirt.NicConfig{Tap: given(n.Tap), Mac: given(string(n.MAC)), VhostSocket: given(n.VhostUser)})
	}
	return c
}

// given is a text that is left out where it is empty.
func given(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

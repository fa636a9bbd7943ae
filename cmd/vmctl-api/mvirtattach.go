package main

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
	"github.com/vmctl/vmctl/config"
)

// What is attached and detached here holds for good: mvirt has one definition of
// a machine, and no other idea of what it has.

func (s *mvirtService) AttachDisk(ctx context.Context, r *mvirt.AttachDiskRequest) (*mvirt.Vm, error) {
	path := r.GetDisk().GetPath()
	return s.change(ctx, r.GetVmId(), func(m *config.Machine) ([]string, error) {
		if err := checkFile("disk", path); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		if s.diskAt(m, path) != "" {
			return nil, status.Errorf(codes.AlreadyExists, "VM has the disk %s already", path)
		}
		args := []string{"disk", "attach", "--persist", "--path", path}
		if r.GetDisk().GetReadonly() {
			args = append(args, "--readonly")
		}
		return append(args, m.Name, freeName(diskName, func(name string) bool {
			return slices.ContainsFunc(m.Disks, func(d config.Disk) bool { return d.Name == name })
		})), nil
	})
}

func (s *mvirtService) DetachDisk(ctx context.Context, r *mvirt.DetachDiskRequest) (*mvirt.Vm, error) {
	return s.change(ctx, r.GetVmId(), func(m *config.Machine) ([]string, error) {
		name := s.diskAt(m, r.GetPath())
		if name == "" {
			return nil, status.Errorf(codes.NotFound, "VM has no disk %s", r.GetPath())
		}
		return []string{"disk", "detach", "--persist", m.Name, name}, nil
	})
}

// diskAt is the name of the disk whose file is path, "" where there is none.
func (s *mvirtService) diskAt(m *config.Machine, path string) string {
	for _, d := range m.Disks {
		if s.paths.DiskFile(m.Name, d) == path {
			return d.Name
		}
	}
	return ""
}

func (s *mvirtService) AttachNic(ctx context.Context, r *mvirt.AttachNicRequest) (*mvirt.Vm, error) {
	tap, socket := nicSource(r.GetNic())
	return s.change(ctx, r.GetVmId(), func(m *config.Machine) ([]string, error) {
		args := []string{"nic", "attach", "--persist"}
		switch {
		case tap != "":
			args = append(args, "--tap", tap)
		case socket != "":
			args = append(args, "--vhost-user", socket)
		default: // the host's default network, as when it is created
			set, err := s.load()
			if err != nil {
				return nil, err
			}
			if set.Settings.Network == "" {
				return nil, status.Error(codes.InvalidArgument, "nic: want tap: the host has no default network (network in vmctl.toml)")
			}
			args = append(args, "--network", set.Settings.Network)
		}
		if mac := r.GetNic().GetMac(); mac != "" {
			if nicWith(m, mac) != "" {
				return nil, status.Errorf(codes.AlreadyExists, "VM has a card with the address %s already", mac)
			}
			args = append(args, "--mac", mac)
		}
		return append(args, m.Name, freeName(nicName, func(name string) bool {
			_, has := m.NIC(name)
			return has
		})), nil
	})
}

func (s *mvirtService) DetachNic(ctx context.Context, r *mvirt.DetachNicRequest) (*mvirt.Vm, error) {
	return s.change(ctx, r.GetVmId(), func(m *config.Machine) ([]string, error) {
		name := nicWith(m, r.GetMac())
		if name == "" {
			return nil, status.Errorf(codes.NotFound, "VM has no card with the address %s", r.GetMac())
		}
		return []string{"nic", "detach", "--persist", m.Name, name}, nil
	})
}

// nicWith is the name of the card with an address, "" where there is none.
func nicWith(m *config.Machine, mac string) string {
	for _, n := range m.NICs {
		if strings.EqualFold(string(n.MAC), mac) {
			return n.Name
		}
	}
	return ""
}

// freeName is the first name that is not taken.
func freeName(name func(int) string, taken func(string) bool) string {
	for i := 0; ; i++ {
		if !taken(name(i)) {
			return name(i)
		}
	}
}

// change has vmctl change what a machine has.
func (s *mvirtService) change(ctx context.Context, id string, arguments func(*config.Machine) ([]string, error)) (*mvirt.Vm, error) {
	m, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	if m.vm.Machine == nil {
		return nil, status.Error(codes.FailedPrecondition, m.Error)
	}
	args, err := arguments(m.vm.Machine)
	if err != nil {
		return nil, err
	}
	if err := s.ask(ctx, vmctl(args...), nil); err != nil {
		return nil, err
	}
	if m, err = s.lookAgain(ctx, m); err != nil {
		return nil, err
	}
	return s.toVM(ctx, m), nil
}

package main

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
	"github.com/vmctl/vmctl/config"
)

// snapshotService is vmctl snapshot.
type snapshotService struct {
	vmctlv1.UnimplementedSnapshotServiceServer
	*server
}

// snapshotRow is a snapshot in JSON of vmctl.
type snapshotRow struct {
	VM          string    `json:"vm"`
	Name        string    `json:"name"`
	Description string    `json:"description"`
	Created     time.Time `json:"created_at"`
	Parent      string    `json:"parent"`
	State       string    `json:"state"`
	Quiesced    bool      `json:"quiesced"`
	Scheduled   bool      `json:"scheduled"`
	MemoryBytes uint64    `json:"memory_bytes"`
	Current     bool      `json:"current"`
	Disks       []struct {
		Name string `json:"name"`
		Path string `json:"path"`
		Size uint64 `json:"size_bytes"`
	} `json:"disks"`
}

func (r snapshotRow) message() *vmctlv1.Snapshot {
	out := &vmctlv1.Snapshot{
		Machine: r.VM, Name: r.Name, Description: r.Description, CreatedAt: timestamppb.New(r.Created), Parent: r.Parent,
		State: machineState(r.State), Quiesced: r.Quiesced, Scheduled: r.Scheduled, MemoryBytes: r.MemoryBytes, Current: r.Current,
	}
	for _, d := range r.Disks {
		out.Disks = append(out.Disks, &vmctlv1.SnapshotDisk{Name: d.Name, Path: d.Path, SizeBytes: d.Size})
	}
	return out
}

// checkSnapshot says what is wrong with the names of a machine and of a snapshot, and
// whether the caller may.
func (s *snapshotService) checkSnapshot(ctx context.Context, vm, name string) error {
	if err := config.CheckName(name); err != nil {
		return status.Errorf(codes.InvalidArgument, "name: %v", err)
	}
	return s.allowNamed(ctx, vmObject, "machine", vm)
}

func (s *snapshotService) ListSnapshots(ctx context.Context, r *vmctlv1.ListSnapshotsRequest) (*vmctlv1.ListSnapshotsResponse, error) {
	if err := s.allowNamed(ctx, vmObject, "machine", r.GetMachine()); err != nil {
		return nil, err
	}
	var rows []snapshotRow
	if err := s.ask(ctx, look("snapshot", "list", "--", r.GetMachine()), &rows); err != nil {
		return nil, err
	}
	out := &vmctlv1.ListSnapshotsResponse{}
	for _, row := range rows {
		out.Snapshots = append(out.Snapshots, row.message())
	}
	return out, nil
}

func (s *snapshotService) CreateSnapshot(ctx context.Context, r *vmctlv1.CreateSnapshotRequest) (*vmctlv1.CreateSnapshotResponse, error) {
	if err := s.allowNamed(ctx, vmObject, "machine", r.GetMachine()); err != nil {
		return nil, err
	}
	args := []string{"snapshot", "create", "--description=" + r.GetDescription()}
	if r.GetMemory() {
		args = append(args, "--memory")
	}
	if r.GetQuiesce() != vmctlv1.Quiesce_QUIESCE_UNSPECIFIED {
		args = append(args, "--quiesce="+strings.ToLower(strings.TrimPrefix(r.GetQuiesce().String(), "QUIESCE_")))
	}
	args = append(args, "--", r.GetMachine())
	if r.GetName() != "" {
		args = append(args, r.GetName())
	}
	var made snapshotRow
	if err := s.ask(ctx, vmctl(args...), &made); err != nil {
		return nil, err
	}
	made.VM, made.Current = r.GetMachine(), true
	return &vmctlv1.CreateSnapshotResponse{Snapshot: made.message()}, nil
}

func (s *snapshotService) RestoreSnapshot(ctx context.Context, r *vmctlv1.RestoreSnapshotRequest) (*vmctlv1.RestoreSnapshotResponse, error) {
	if err := s.checkSnapshot(ctx, r.GetMachine(), r.GetName()); err != nil {
		return nil, err
	}
	args := []string{"snapshot", "restore", "--yes"}
	if r.GetForce() {
		args = append(args, "--force")
	}
	if r.GetDisksOnly() {
		args = append(args, "--disks-only")
	}
	switch r.GetAfter() {
	case vmctlv1.AfterRestore_AFTER_RESTORE_START:
		args = append(args, "--start")
	case vmctlv1.AfterRestore_AFTER_RESTORE_STAY_OFF:
		args = append(args, "--no-start")
	}
	var restored struct {
		Disks   []string `json:"disks"`
		Memory  bool     `json:"memory"`
		Started bool     `json:"started"`
	}
	if err := s.ask(ctx, vmctl(append(args, "--", r.GetMachine(), r.GetName())...), &restored); err != nil {
		return nil, err
	}
	return &vmctlv1.RestoreSnapshotResponse{Disks: restored.Disks, Memory: restored.Memory, Started: restored.Started}, nil
}

func (s *snapshotService) DeleteSnapshot(ctx context.Context, r *vmctlv1.DeleteSnapshotRequest) (*vmctlv1.DeleteSnapshotResponse, error) {
	if err := s.checkSnapshot(ctx, r.GetMachine(), r.GetName()); err != nil {
		return nil, err
	}
	return &vmctlv1.DeleteSnapshotResponse{}, s.ask(ctx, vmctl("snapshot", "delete", "--yes", "--", r.GetMachine(), r.GetName()), nil)
}

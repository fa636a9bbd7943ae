package main

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/console"
)

// chunk is how much of the console is sent at once, in bytes.
const chunk = 32 << 10

// Console is a console as vmctl console shows it: first what was written so far;
// for several at once; a caller that does not read misses what it could not be
// sent, is told how much that is, and holds nobody else up. The stream ends when
// the machine does.
func (s *mvirtService) Console(stream mvirt.VmService_ConsoleServer) error {
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return status.Error(codes.InvalidArgument, "the first message has to name the VM: there was none")
	}
	if err != nil {
		return err
	}
	if first.GetVmId() == "" {
		return status.Error(codes.InvalidArgument, "the first message has to name the VM: vm_id is empty")
	}
	ctx := stream.Context()
	m, err := s.find(ctx, first.GetVmId())
	if err != nil {
		return err
	}
	if stateOf(m.State) != mvirt.VmState_VM_STATE_RUNNING {
		return status.Error(codes.FailedPrecondition, "VM is not running")
	}
	socket, done, err := access.Socket(s.paths.ConsoleSocket(m.Name))
	if err != nil {
		return status.Errorf(codes.Unavailable, "Console not available: %v", err)
	}
	conn, err := console.Dial(ctx, socket, console.ModeAttach)
	done()
	if err != nil {
		return status.Errorf(codes.Unavailable, "Console not available: %v", err)
	}
	defer conn.Close()
	// Also where the other direction is stuck.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	go func() {
		for in, err := first, error(nil); err == nil; in, err = stream.Recv() {
			if _, err := conn.Write(in.GetData()); err != nil {
				return
			}
		}
		// Who types no more may still look.
	}()
	buffer := make([]byte, chunk)
	for {
		n, err := conn.Read(buffer)
		if n > 0 {
			if err := stream.Send(&mvirt.ConsoleOutput{Data: buffer[:n]}); err != nil {
				return err
			}
		}
		switch {
		case ctx.Err() != nil:
			return status.FromContextError(ctx.Err()).Err()
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return status.Errorf(codes.Unavailable, "the console has ended: %v", err)
		}
	}
}

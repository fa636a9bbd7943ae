package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	vmctlv1 "github.com/vmctl/vmctl/cmd/vmctl-api/proto/vmctl/v1"
)

// execService is vmctl exec.
type execService struct {
	vmctlv1.UnimplementedExecServiceServer
	*server
}

// execPart is a line of vmctl exec --stream.
type execPart struct {
	Stdout     []byte  `json:"stdout"`
	Stderr     []byte  `json:"stderr"`
	ExitStatus *uint32 `json:"exit_status"`
}

func (s *execService) Exec(stream vmctlv1.ExecService_ExecServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	first, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	c := first.GetCommand()
	if c == nil {
		return status.Error(codes.InvalidArgument, "command: the first message has to have it")
	}
	if err := s.allowNamed(ctx, vmObject, "command.machine", c.GetMachine()); err != nil {
		return err
	}
	if len(c.GetArgv()) == 0 {
		return status.Error(codes.InvalidArgument, "command.argv: want a program")
	}
	cmd := vmctl("exec", "--stream")
	cmd.option("--user", c.GetUser())
	cmd.option("--workdir", c.GetDirectory())
	for _, e := range c.GetEnvironment() {
		cmd.option("--env", e)
	}
	if seconds := c.GetTimeoutSeconds(); seconds > 0 {
		cmd.option("--timeout", strconv.FormatUint(uint64(seconds), 10)+"s")
	}
	args := append(append(cmd.args, "--", c.GetMachine()), c.GetArgv()...)
	input, more := io.Pipe()
	go func() {
		err := readInput(stream, more)
		if err != nil {
			cancel(err)
		}
		more.CloseWithError(err)
	}()
	// What has ended reads no more.
	defer input.Close()
	ended := false
	err = s.commands.follow(ctx, args, input, func(line []byte) error {
		var part execPart
		if err := json.Unmarshal(line, &part); err != nil {
			return status.Errorf(codes.Internal, "vmctl exec: %v", err)
		}
		out := &vmctlv1.ExecResponse{}
		switch {
		case part.ExitStatus != nil:
			ended = true
			out.Part = &vmctlv1.ExecResponse_ExitStatus{ExitStatus: *part.ExitStatus}
		case part.Stdout != nil:
			out.Part = &vmctlv1.ExecResponse_Stdout{Stdout: part.Stdout}
		default:
			out.Part = &vmctlv1.ExecResponse_Stderr{Stderr: part.Stderr}
		}
		return stream.Send(out)
	})
	if ended || err == nil {
		// The status of vmctl is that of the command.
		return nil
	}
	if cause := context.Cause(ctx); status.Code(cause) == codes.InvalidArgument {
		return cause
	}
	return statusOf("", err)
}

// readInput writes what the caller sends into a command's input.
func readInput(stream vmctlv1.ExecService_ExecServer, into io.Writer) error {
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if in.GetCommand() != nil {
			return status.Error(codes.InvalidArgument, "command: want one, in the first message")
		}
		if _, err := into.Write(in.GetStdin()); err != nil {
			return err
		}
	}
}

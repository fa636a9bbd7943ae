package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// commands runs vmctl.
type commands struct {
	program string
	slots   chan struct{} // as many as may run at once
}

func newCommands(program string, atOnce int) *commands {
	return &commands{program: program, slots: make(chan struct{}, atOnce)}
}

// callerVariable tells vmctl in whose name it is run, for the journal.
const callerVariable = "VMCTL_CALLER"

// command is vmctl with arguments.
type command struct {
	args  []string
	stdin string
	ended func() // called when it has ended, where it is not nil
}

func vmctl(args ...string) command { return command{args: args} }

// run has vmctl do something, and reads the JSON that it prints into result. The
// error is a [*commandError], unless vmctl could not be run. What vmctl has begun
// goes on as its help says when ctx ends.
func (c *commands) run(ctx context.Context, cmd command, result any) error {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	defer func() { <-c.slots }()
	out, err := c.start(ctx, cmd).output(ctx)
	if err != nil {
		return err
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(out, result); err != nil {
		return fmt.Errorf("vmctl %s: %w", cmd.args[0], err)
	}
	return nil
}

// process is a vmctl that is to be run.
type process struct {
	*exec.Cmd
	out, err bytes.Buffer
}

func (c *commands) start(ctx context.Context, cmd command) *process {
	p := &process{Cmd: exec.CommandContext(ctx, c.program, append([]string{"-o", "json"}, cmd.args...)...)}
	p.Stdin = strings.NewReader(cmd.stdin)
	p.Stdout, p.Stderr = &p.out, &p.err
	p.Env = os.Environ()
	if call := callOf(ctx); call != nil {
		p.Env = append(p.Env, callerVariable+"="+call.caller.Name)
	}
	p.Cancel = func() error { return p.Process.Signal(syscall.SIGTERM) }
	p.WaitDelay = 10 * time.Second
	return p
}

// output runs it.
func (p *process) output(ctx context.Context) ([]byte, error) {
	err := p.Run()
	if err == nil {
		return p.out.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return nil, err
	}
	return nil, readError(p.err.Bytes(), exit)
}

// commandError is what vmctl says has gone wrong.
type commandError struct {
	Message string `json:"message"`
	Status  int    `json:"status"`
	Hint    string `json:"hint"`
	State   string `json:"state"`
}

func (e *commandError) Error() string { return e.Message }

// readError finds the error in what vmctl has written to stderr: its last JSON
// value, after warnings as text.
func readError(stderr []byte, exit *exec.ExitError) *commandError {
	var v struct{ Error commandError }
	if i := bytes.LastIndex(append([]byte("\n"), stderr...), []byte("\n{")); i >= 0 && json.Unmarshal(stderr[i:], &v) == nil {
		return &v.Error
	}
	text := strings.TrimSpace(string(stderr))
	if text == "" {
		text = exit.String()
	}
	return &commandError{Message: text, Status: exit.ExitCode()}
}

// Exit statuses of vmctl(8).
const (
	exitFailed       = 1
	exitUsage        = 2
	exitNotFound     = 3
	exitWrongState   = 4
	exitTimeout      = 5
	exitInvalid      = 6
	exitNotPermitted = 7
)

// codeOf is the code for an exit status.
func codeOf(exit int) codes.Code {
	switch exit {
	case exitUsage, exitInvalid:
		return codes.InvalidArgument
	case exitNotFound:
		return codes.NotFound
	case exitWrongState:
		return codes.FailedPrecondition
	case exitTimeout:
		return codes.DeadlineExceeded
	case exitNotPermitted:
		return codes.PermissionDenied
	}
	return codes.Internal
}

// statusOf is the status for an error of vmctl, with prefix before its text.
func statusOf(prefix string, err error) error {
	if e, ok := errors.AsType[*commandError](err); ok {
		return status.Error(codeOf(e.Status), prefix+e.Message)
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	return status.Error(codes.Internal, prefix+err.Error())
}

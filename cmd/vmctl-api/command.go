package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	// As many as may run at once: of those that are done at once, of those that wait
	// for a machine, and of those that may run for long.
	quick, waiting chan struct{}
	long           *counts
	child          launcher
	unit           launcher
}

// launcher runs a process to its end.
type launcher func(context.Context, process) error

// process is a program that is to be run.
type process struct {
	argv           []string
	env            []string // beside the service's own
	stdin          io.Reader
	stdout, stderr io.Writer
}

func newCommands(program string) *commands {
	return &commands{
		program: program,
		quick:   make(chan struct{}, maxQuick),
		waiting: make(chan struct{}, maxWaiting),
		long:    newCounts("calls that take long are under way", maxLong, maxLongOfEach),
		child:   runChild,
		unit:    runUnit,
	}
}

// callerVariable tells vmctl in whose name it is run, for the journal.
const callerVariable = "VMCTL_CALLER"

// command is vmctl with arguments.
type command struct {
	args  []string
	stdin string
	// It is done at once: it waits for no machine.
	quick bool
	// It may run for long.
	long bool
	// It runs as a unit of its own: it needs what the service is kept from, such as
	// other hosts.
	apart bool
	// What it prints is text, and goes there, where it is not nil.
	text io.Writer
	// What it says with --progress is told to, where it is not nil.
	progress func(json.RawMessage)
}

func vmctl(args ...string) command { return command{args: args} }

// look is a command that changes nothing.
func look(args ...string) command { return command{args: args, quick: true} }

// option adds a flag with its value, where that is not "".
func (c *command) option(flag, value string) {
	if value != "" {
		c.args = append(c.args, flag+"="+value)
	}
}

// run has vmctl do something, and reads the JSON that it prints into result, also
// where it has failed. The error is a [*commandError], unless vmctl could not be
// run. What vmctl has begun goes on as its help says when ctx ends.
func (c *commands) run(ctx context.Context, cmd command, result any) error {
	release, err := c.acquire(ctx, cmd)
	if err != nil {
		return err
	}
	defer release()
	return c.do(ctx, cmd, result)
}

// ask is run for what a call is about: the error is a status.
func (s *server) ask(ctx context.Context, cmd command, result any) error {
	return statusOf("", s.commands.run(ctx, cmd, result))
}

// do is run of a command that may run already.
func (c *commands) do(ctx context.Context, cmd command, result any) error {
	launch := c.child
	if cmd.apart {
		launch = c.unit
	}
	var stdout bytes.Buffer
	said := &complaints{progress: cmd.progress}
	p := c.process(ctx, cmd.args, cmd.text == nil)
	p.stdin, p.stdout, p.stderr = strings.NewReader(cmd.stdin), &stdout, &lines{each: said.line}
	if cmd.text != nil {
		p.stdout = cmd.text
	}
	err := said.error(ctx, launch(ctx, p))
	if result == nil {
		return err
	}
	if readErr := json.Unmarshal(stdout.Bytes(), result); err == nil && readErr != nil {
		return fmt.Errorf("vmctl %s was cut off: %w", cmd.args[0], readErr)
	}
	return err
}

// follow has vmctl do something that may take long, and tells what it says, line by
// line. An error of each ends it.
func (c *commands) follow(ctx context.Context, args []string, stdin io.Reader, each func(line []byte) error) error {
	release, err := c.acquire(ctx, command{long: true})
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var eachErr error
	said := &complaints{}
	p := c.process(ctx, args, true)
	p.stdin, p.stderr = stdin, &lines{each: said.line}
	p.stdout = &lines{each: func(line []byte) error {
		if eachErr = safely("vmctl "+args[0], func() error { return each(line) }); eachErr != nil {
			cancel()
		}
		return eachErr
	}}
	err = c.child(ctx, p)
	if eachErr != nil {
		return eachErr
	}
	return said.error(ctx, err)
}

// acquire waits until one more may run; of those that run for long, whoever is one
// too many is refused.
func (c *commands) acquire(ctx context.Context, cmd command) (release func(), err error) {
	slots := c.waiting
	switch {
	case cmd.long:
		who := ""
		if call := callOf(ctx); call != nil {
			who = call.caller.Name
		}
		if err := c.long.add(who); err != nil {
			return nil, status.Errorf(codes.ResourceExhausted, "%v: call again when one has ended", err)
		}
		return func() { c.long.remove(who) }, nil
	case cmd.quick:
		slots = c.quick
	}
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// process is vmctl, in the caller's name.
func (c *commands) process(ctx context.Context, args []string, json bool) process {
	p := process{argv: append([]string{c.program, "-o", "text"}, args...)}
	if json {
		p.argv[2] = "json"
	}
	if call := callOf(ctx); call != nil {
		p.env = append(p.env, callerVariable+"="+call.caller.Name)
	}
	return p
}

// outputTime is how long the output of a process that has ended may still be held
// open by what it has started.
const outputTime = 10 * time.Second

// runChild runs a process as a child.
func runChild(ctx context.Context, p process) error {
	cmd := exec.CommandContext(ctx, p.argv[0], p.argv[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = p.stdout, p.stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = outputTime
	if p.stdin == nil {
		return cmd.Run()
	}
	into, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	// Were it cmd.Stdin, the end of the process would wait for that of its input.
	go func() {
		// Input that breaks off is not ended, so that nobody takes it for whole: whoever
		// breaks it off ends the process as well.
		if _, err := io.Copy(into, p.stdin); err == nil {
			into.Close()
		}
	}()
	return cmd.Wait()
}

// lines tells of what is written to it, line by line.
type lines struct {
	each func(line []byte) error
	rest []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		if err := l.each(line); err != nil {
			return 0, err
		}
		l.rest = rest
	}
}

// maxComplaints is how much of what vmctl says of errors is kept, in bytes: its end.
const maxComplaints = 1 << 20

// complaints are what vmctl writes to stderr.
type complaints struct {
	progress func(json.RawMessage)
	text     []byte
}

func (c *complaints) line(line []byte) error {
	if c.progress != nil && bytes.HasPrefix(line, []byte(`{"progress":`)) {
		var v struct{ Progress json.RawMessage }
		if err := json.Unmarshal(line, &v); err != nil {
			return nil
		}
		return safely("progress", func() error { c.progress(v.Progress); return nil })
	}
	c.text = append(append(c.text, line...), '\n')
	c.text = c.text[max(0, len(c.text)-maxComplaints):]
	return nil
}

// error is why vmctl has failed, nil where it has not; err is how the process has
// ended. A unit's tells nothing, so that what was said counts.
func (c *complaints) error(ctx context.Context, err error) error {
	switch said := c.last(); {
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case said != nil:
		return said
	case err == nil:
		return nil
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return err
	}
	return &commandError{Message: cmp.Or(string(bytes.TrimSpace(c.text)), exit.String()), Status: exit.ExitCode()}
}

// last is the error that vmctl has said, nil for none: its last JSON value, after
// warnings as text.
func (c *complaints) last() *commandError {
	var v struct{ Error *commandError }
	i := bytes.LastIndex(append([]byte("\n"), c.text...), []byte("\n{"))
	if i < 0 || json.Unmarshal(c.text[i:], &v) != nil {
		return nil
	}
	return v.Error
}

// commandError is what vmctl says has gone wrong.
type commandError struct {
	Message string `json:"message"`
	Status  int    `json:"status"`
	Hint    string `json:"hint"`
	State   string `json:"state"`
}

func (e *commandError) Error() string { return e.Message }

// Exit statuses of vmctl(1).
const (
	exitFailed       = 1
	exitUsage        = 2
	exitNotFound     = 3
	exitWrongState   = 4
	exitTimeout      = 5
	exitInvalid      = 6
	exitNotPermitted = 7
	exitChanged      = 10 // of apply: something was done, or is to be
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

// statusOf is the status for an error of vmctl, with prefix before its text; nil for
// none.
func statusOf(prefix string, err error) error {
	if e, ok := errors.AsType[*commandError](err); ok {
		return status.Error(codeOf(e.Status), prefix+e.Message)
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	return status.Error(codes.Internal, prefix+err.Error())
}

package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/units/bus"
)

// Exit statuses, as the help of vmctl has them.
const (
	exitDone         = 0
	exitFailed       = int(operation.Failed)
	exitUsage        = int(operation.Usage)
	exitNotFound     = int(operation.NotFound)
	exitWrongState   = int(operation.WrongState)
	exitTimeout      = int(operation.TimedOut)
	exitInvalid      = int(operation.Invalid)
	exitNotPermitted = int(operation.NotPermitted)
)

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// notFoundError is a name that nothing has.
type notFoundError struct {
	Kind string // "VM", "image"
	Name string
	Hint string
}

func (e *notFoundError) Error() string { return "no " + e.Kind + " is named " + e.Name }

// given is the error of a file that the command line names: one that is not there
// is of the status of all that is named and is not.
func given(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &notFoundError{Kind: "file", Name: path}
	}
	return err
}

// isGiven is given for a file that is read later.
func isGiven(path string) error {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return given(path, err)
	}
	return nil // of which reading it tells more
}

// invalidError is a definition that cannot be used. Its text is the problems,
// one a line.
type invalidError struct{ Problems []config.Problem }

func (e *invalidError) Error() string {
	errs := make([]error, len(e.Problems))
	for i, p := range e.Problems {
		errs[i] = p
	}
	return errors.Join(errs...).Error()
}

// timeoutError is a wait that was too short.
type timeoutError struct{ Want state }

func (e *timeoutError) Error() string { return "timed out, not yet " + string(e.Want) }
func (e *timeoutError) Unwrap() error { return context.DeadlineExceeded }

// stateError is what is not possible as things are: not of a machine's state.
type stateError struct{ error }

func (e *stateError) Unwrap() error { return e.error }

// hintError is an error with what to type next.
type hintError struct {
	error
	Hint string
}

func (e *hintError) Unwrap() error { return e.error }

// withHint adds what to type next to an error.
func withHint(err error, hint string) error { return &hintError{err, hint} }

// statusedError is an error whose exit status another process has decided.
type statusedError struct {
	error
	status int
}

func (e *statusedError) Unwrap() error { return e.error }

// statusError is the end of a command that has already said what failed. Its
// text is for JSON alone.
type statusError struct {
	error
	status int
}

func (e *statusError) Unwrap() error { return e.error }

// exitStatus decides the exit status of an error.
func exitStatus(err error) int {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	if e, ok := errors.AsType[*statusedError](err); ok {
		return e.status
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*notFoundError](err); ok {
		return exitNotFound
	}
	if _, ok := errors.AsType[*transitionError](err); ok {
		return exitWrongState
	}
	if _, ok := errors.AsType[*stateError](err); ok {
		return exitWrongState
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return exitTimeout
	}
	if _, ok := errors.AsType[*invalidError](err); ok {
		return exitInvalid
	}
	if notPermitted(err) {
		return exitNotPermitted
	}
	// A program that we run in our place, such as journalctl.
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.ExitCode() > 0 {
		return e.ExitCode()
	}
	return exitFailed
}

// notPermitted says whether err is a lack of rights.
func notPermitted(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, bus.ErrNotPermitted)
}

// hintOf is what to type next after err, "" where nothing helps.
func hintOf(err error) string {
	if e, ok := errors.AsType[*hintError](err); ok {
		return e.Hint
	}
	if e, ok := errors.AsType[*notFoundError](err); ok && e.Hint != "" {
		return e.Hint
	}
	if errors.Is(err, bus.ErrNotPermitted) {
		return "run it as root, or have an administrator allow it by polkit"
	}
	// Of files and sockets polkit decides nothing.
	if notPermitted(err) {
		return "run it as root"
	}
	return ""
}

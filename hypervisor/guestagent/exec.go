package guestagent

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxInput is how much of a command's input goes with the call that runs it,
	// in bytes. What is more becomes a file in the guest first.
	maxInput = 256 << 10
	// maxOutput bounds the answer with a command's output, in bytes: the agent
	// keeps 16 MiB of each stream (GUEST_EXEC_MAX_OUTPUT in QEMU's
	// qga/commands.c), and base64 makes a third more of it.
	maxOutput = 2*(16<<20)*4/3 + 1<<20

	firstPoll = 20 * time.Millisecond
	lastPoll  = 500 * time.Millisecond
	// graceTime is how long a command that is not waited for any more may take to
	// end by itself.
	graceTime = 2 * time.Second
)

// notSetUp is the exit status of a command of which the user or the directory is
// not there (see exec.sh).
const notSetUp = 125

// guestPath is where programs are in a guest.
const guestPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

//go:embed exec.sh
var execScript string

// groupScript runs the script that follows it in a process group of its own,
// where the guest has setsid.
const groupScript = `script=$1; shift
read -r _ _ _ _ group _ </proc/$$/stat
[ "$group" = $$ ] || ! command -v setsid >/dev/null || exec setsid /bin/sh -c "$script" vmctl "$@"
exec /bin/sh -c "$script" vmctl "$@"`

// endScript ends all of a command: its group, or its first process alone.
// Shells do not agree on how a group is written.
const endScript = `kill -s "$1" -- "-$2" 2>/dev/null || kill -s "$1" "-$2" 2>/dev/null || kill -s "$1" "$2"`

// Command is a program to run in the guest.
type Command struct {
	Argv []string // Argv[0] is looked for in the usual places
	Env  []string // "KEY=value", beside PATH, HOME, USER and LOGNAME
	User string   // "" for the agent's own, which is root
	Dir  string   // working directory, "" for the user's home

	Stdin  io.Reader // read to its end before the program is run; nil for none
	Stdout io.Writer
	Stderr io.Writer
}

// Exit is how a program ended: by a signal, or with a status.
type Exit struct {
	Status int
	Signal int // 0 for none
}

// Code is an exit status as shells have it.
func (e Exit) Code() int {
	if e.Signal != 0 {
		return 128 + e.Signal
	}
	return e.Status
}

// CutError is output that the agent has not kept. The program did run.
type CutError struct{ Stream string }

func (e *CutError) Error() string {
	return "the guest agent has kept only the first 16 MiB of the command's " + e.Stream
}

// UnendedError is a program of which the end could not be waited for, and that
// could not be ended.
type UnendedError struct {
	PID int64
	Err error // why it is not waited for
}

func (e *UnendedError) Error() string {
	return fmt.Sprintf("%v; the command may go on in the guest as process %d", e.Err, e.PID)
}

func (e *UnendedError) Unwrap() error { return e.Err }

// EndedError is a program that was ended.
type EndedError struct{ Err error } // why

func (e *EndedError) Error() string {
	return fmt.Sprintf("%v; the command was ended in the guest", e.Err)
}

func (e *EndedError) Unwrap() error { return e.Err }

// process is a program that the agent runs.
type process struct {
	c   *Channel
	pid int64
}

// status is the answer to guest-exec-status. It has the output at the end alone.
type status struct {
	Exited       bool   `json:"exited"`
	Code         int    `json:"exitcode"`
	Signal       int    `json:"signal"`
	Out          []byte `json:"out-data"`
	Err          []byte `json:"err-data"`
	OutTruncated bool   `json:"out-truncated"`
	ErrTruncated bool   `json:"err-truncated"`
}

func (s status) exit() (Exit, error) {
	if s.Code < 0 || s.Code > 255 || s.Signal < 0 || s.Signal > 127 {
		return Exit{}, fmt.Errorf("guest agent: guest-exec-status: exit status %d, signal %d", s.Code, s.Signal)
	}
	return Exit{s.Code, s.Signal}, nil
}

// spawn has the agent run a program.
func (c *Channel) spawn(ctx context.Context, argv, env []string, input []byte, capture bool) (process, error) {
	arguments := map[string]any{"path": argv[0], "arg": argv[1:], "capture-output": capture}
	if env != nil {
		// Else it gives its own.
		arguments["env"] = env
	}
	if input != nil {
		arguments["input-data"] = base64.StdEncoding.EncodeToString(input)
	}
	var answer struct {
		PID int64 `json:"pid"`
	}
	err := c.call(ctx, "guest-exec", arguments, &answer, maxAnswer)
	return process{c, answer.PID}, err
}

// poll asks how far a program is. Once it has ended, the agent answers only once.
func (p process) poll(ctx context.Context) (status, error) {
	var s status
	err := p.c.call(ctx, "guest-exec-status", map[string]int64{"pid": p.pid}, &s, maxOutput)
	if e, ok := errors.AsType[*Error](err); ok && e.Class == "GenericError" {
		return s, fmt.Errorf("%w: %v", ErrRestarted, err)
	}
	return s, err
}

// wait waits for the end of a program, and calls each time before it waits.
func (p process) wait(ctx context.Context, each func() error) (status, error) {
	for interval := firstPoll; ; interval = min(2*interval, lastPoll) {
		s, err := p.poll(ctx)
		if err != nil || s.Exited {
			return s, err
		}
		if err := each(); err != nil {
			return s, err
		}
		if err := p.c.pause(ctx, interval); err != nil {
			return s, err
		}
	}
}

func nothing() error { return nil }

// end ends a program: it is asked to, and what is left of it then is killed. cause
// is why: an [*EndedError] or an [*UnendedError] says what came of it.
func (p process) end(ctx context.Context, cause error) error {
	ended := false
	for _, signal := range []string{"TERM", "KILL"} {
		if _, err := p.c.simple(ctx, "/bin/sh", "-c", endScript, "sh", signal, strconv.FormatInt(p.pid, 10)); err != nil {
			return &UnendedError{p.pid, cause}
		}
		if !ended {
			grace, cancel := context.WithTimeout(ctx, graceTime)
			s, err := p.wait(grace, nothing)
			cancel()
			ended = err == nil && s.Exited
		}
	}
	if !ended {
		return &UnendedError{p.pid, cause}
	}
	return &EndedError{cause}
}

// Run runs a program and waits for its end, whatever its exit status. Its output
// comes as it is written. Where ctx ends before, or the output cannot be passed
// on, the program is ended: an [*EndedError] says that it was.
//
// The output goes through files in the guest that have no name once the program
// runs: so it may be of any size that the guest has room for. Where the guest has
// no shell, or its agent opens no files, the agent keeps the output until the
// end, at most 16 MiB of each stream: more is a [*CutError].
func (c *Channel) Run(ctx context.Context, cmd Command) (Exit, error) {
	if err := cmd.check(); err != nil {
		return Exit{}, err
	}
	if err := c.allowed(ctx, "guest-exec", "guest-exec-status"); err != nil {
		return Exit{}, err
	}
	filesErr := c.allowed(ctx, "guest-file-open", "guest-file-read", "guest-file-write", "guest-file-close")
	if filesErr != nil {
		return c.runDirect(ctx, cmd, filesErr)
	}
	input, err := c.firstInput(ctx, cmd.Stdin)
	if err != nil {
		return Exit{}, err
	}
	exit, err := c.runSpooled(ctx, cmd, input)
	if errors.Is(err, errNoShell) {
		cmd.Stdin = input.whole()
		return c.runDirect(ctx, cmd, err)
	}
	return exit, err
}

// userName is what the shell in the guest may see as the name of a user.
var userName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*\$?$`)

func (cmd Command) check() error {
	if len(cmd.Argv) == 0 || cmd.Argv[0] == "" {
		return errors.New("no command")
	}
	if cmd.User != "" && !userName.MatchString(cmd.User) {
		return fmt.Errorf("%q is not the name of a user", cmd.User)
	}
	for _, env := range cmd.Env {
		if name, _, ok := strings.Cut(env, "="); !ok || name == "" {
			return fmt.Errorf("environment: want KEY=VALUE, got %q", env)
		}
	}
	for _, text := range append(append([]string{cmd.Dir}, cmd.Argv...), cmd.Env...) {
		if strings.ContainsRune(text, 0) {
			return fmt.Errorf("%q has a zero byte in it", text)
		}
	}
	return nil
}

// input is the beginning of a command's input, and the rest of it.
type input struct {
	first []byte
	rest  io.Reader // nil where first is all
}

func (i input) whole() io.Reader {
	if i.rest == nil {
		return bytes.NewReader(i.first)
	}
	return io.MultiReader(bytes.NewReader(i.first), i.rest)
}

// firstInput reads as much of the input as goes with a call; first is nil where
// there is no input.
func (c *Channel) firstInput(ctx context.Context, stdin io.Reader) (input, error) {
	if stdin == nil {
		return input{}, nil
	}
	first := make([]byte, maxInput+1)
	n, end, err := c.read(ctx, stdin, first)
	switch {
	case err != nil:
		return input{}, fmt.Errorf("reading the command's input: %w", err)
	case end:
		return input{first: first[:n]}, nil
	}
	return input{first, stdin}, nil
}

// errNoShell is a guest without /bin/sh: nothing has been run.
var errNoShell = errors.New("the guest has no /bin/sh")

// afterwards gives what is left to be done after a command its own time, once:
// also where ctx has ended.
func (c *Channel) afterwards(ctx context.Context) (after func() context.Context, done func()) {
	cancel := func() {}
	after = sync.OnceValue(func() (own context.Context) {
		own, cancel = context.WithTimeout(context.WithoutCancel(ctx), c.endTime)
		return own
	})
	return after, func() { cancel() }
}

// runSpooled is Run by exec.sh.
func (c *Channel) runSpooled(ctx context.Context, cmd Command, in input) (exit Exit, err error) {
	name := make([]byte, 8)
	rand.Read(name)
	for _, dir := range c.tempDirs {
		dir += "/vmctl-exec-" + hex.EncodeToString(name)
		var unset bool
		exit, unset, err = c.runIn(ctx, dir, cmd, in)
		if !unset {
			return exit, err
		}
	}
	return exit, fmt.Errorf("the guest has no room for the command's output in any of %s", strings.Join(c.tempDirs, ", "))
}

// runIn is runSpooled in one directory. With unset the directory could not be
// made, and nothing has been run.
func (c *Channel) runIn(ctx context.Context, dir string, cmd Command, in input) (exit Exit, unset bool, err error) {
	after, done := c.afterwards(ctx)
	defer done()
	first, kind := in.first, ""
	if in.rest != nil {
		first, kind = nil, "file"
		if made, err := c.simple(ctx, "mkdir", "-m", "700", dir+".new"); err != nil || made.Code() != 0 {
			return Exit{}, err == nil, err
		}
		defer func() { c.remove(after(), dir+".new") }()
		if err := c.WriteFile(ctx, dir+".new/in", "wb", in.whole()); err != nil {
			return Exit{}, false, fmt.Errorf("the command's input: %w", err)
		}
	}
	argv := append([]string{"/bin/sh", "-c", groupScript, "vmctl", execScript, dir, cmd.User, cmd.Dir, kind}, cmd.Argv...)
	p, err := c.spawn(ctx, argv, append([]string{guestPath}, cmd.Env...), first, false)
	if err != nil {
		if e, ok := errors.AsType[*Error](err); ok && strings.Contains(e.Desc, "/bin/sh") {
			return Exit{}, false, errNoShell
		}
		return Exit{}, false, err
	}
	spool := &spool{c: c, dir: dir, stdout: cmd.Stdout, stderr: cmd.Stderr}
	defer func() { spool.close(after()) }()
	s, err := p.wait(ctx, func() error { return spool.drain(ctx) })
	if err != nil {
		if s.Exited || errors.Is(err, ErrRestarted) || Gone(err) {
			return Exit{}, false, err
		}
		return Exit{}, false, p.end(after(), err)
	}
	if err := spool.drain(ctx); err != nil {
		return Exit{}, false, err
	}
	if !spool.opened() {
		if s.Code != notSetUp {
			return Exit{}, false, fmt.Errorf("the command's output is not in %s", dir)
		}
		return Exit{}, true, nil
	}
	exit, err = s.exit()
	return exit, false, err
}

// simple runs a program of which the output does not matter.
func (c *Channel) simple(ctx context.Context, argv ...string) (Exit, error) {
	p, err := c.spawn(ctx, argv, []string{guestPath}, nil, false)
	if err != nil {
		return Exit{}, err
	}
	s, err := p.wait(ctx, nothing)
	if err != nil {
		return Exit{}, err
	}
	return s.exit()
}

// remove removes a directory of the guest, where it is still there.
func (c *Channel) remove(ctx context.Context, dir string) {
	ctx, cancel := context.WithTimeout(ctx, c.endTime/2)
	defer cancel()
	// It lies where the guest clears up by itself.
	_, _ = c.simple(ctx, "rm", "-rf", "--", dir)
}

// spool is what a command has written so far.
type spool struct {
	c              *Channel
	dir            string
	stdout, stderr io.Writer
	out, err       *File
}

func (s *spool) opened() bool { return s.out != nil && s.err != nil }

// drain passes on what was written since the last time.
func (s *spool) drain(ctx context.Context) error {
	if !s.opened() {
		if err := s.open(ctx); err != nil || !s.opened() {
			return err
		}
	}
	if _, err := s.out.CopyOut(ctx, s.stdout); err != nil {
		return err
	}
	_, err := s.err.CopyOut(ctx, s.stderr)
	return err
}

// open opens the files, where they are there, and takes their names away.
func (s *spool) open(ctx context.Context) (err error) {
	for _, f := range []struct {
		file **File
		name string
	}{{&s.out, "/out"}, {&s.err, "/err"}} {
		if *f.file != nil {
			continue
		}
		*f.file, err = s.c.Open(ctx, s.dir+f.name, "rb")
		if e, ok := errors.AsType[*Error](err); ok && strings.Contains(e.Desc, "No such file") {
			return nil
		}
		if err != nil {
			return err
		}
	}
	s.c.remove(ctx, s.dir)
	return nil
}

func (s *spool) close(ctx context.Context) {
	if !s.opened() {
		s.c.remove(ctx, s.dir)
		s.c.remove(ctx, s.dir+".new")
	}
	for _, f := range []*File{s.out, s.err} {
		if f != nil {
			f.abandon(ctx)
		}
	}
}

// runDirect is Run without files in the guest; why is the reason.
func (c *Channel) runDirect(ctx context.Context, cmd Command, why error) (Exit, error) {
	if cmd.User != "" || cmd.Dir != "" {
		return Exit{}, fmt.Errorf("the command runs only as the agent's own user and in its directory: %w", why)
	}
	in, err := c.firstInput(ctx, cmd.Stdin)
	if err != nil {
		return Exit{}, err
	}
	if in.rest != nil {
		return Exit{}, fmt.Errorf("the command's input is more than %d bytes: %w", maxInput, why)
	}
	env := cmd.Env
	if env != nil {
		env = append([]string{guestPath}, env...)
	}
	p, err := c.spawn(ctx, cmd.Argv, env, in.first, true)
	if err != nil {
		return Exit{}, err
	}
	s, err := p.wait(ctx, nothing)
	if err != nil {
		if errors.Is(err, ErrRestarted) || Gone(err) {
			return Exit{}, err
		}
		after, done := c.afterwards(ctx)
		defer done()
		return Exit{}, p.end(after(), err)
	}
	if err := c.write(ctx, cmd.Stdout, s.Out); err != nil {
		return Exit{}, err
	}
	if err := c.write(ctx, cmd.Stderr, s.Err); err != nil {
		return Exit{}, err
	}
	switch {
	case s.OutTruncated:
		return Exit{}, &CutError{"stdout"}
	case s.ErrTruncated:
		return Exit{}, &CutError{"stderr"}
	}
	return s.exit()
}

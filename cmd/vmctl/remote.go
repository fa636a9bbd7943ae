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
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// Of -H there is one rule: a command runs on that host, by the vmctl there, with
// what belongs to the host: disks, images, kernels, backups. What is read from the
// person who calls, or brought to them, is here: stdin and stdout, keys, user data,
// and what goes into guests and out of them.

// runsHere marks a command that runs here with -H, and has vmctl over there do what
// it needs: always, or else where it opens something on this host.
const (
	runsHere   = "runs-here"
	alwaysHere = "always"
	unlessText = "unless it prints"
)

const (
	// keysHere marks a flag that takes a public key, or a file of them.
	keysHere = "keys-here"
	// stdinHere marks a flag that takes a file, or - for stdin; and a command
	// whose third argument is a file, and without it stdin.
	stdinHere = "stdin-here"
)

// call is a command as it was typed.
type call struct {
	cmd   *cobra.Command
	flags []typedFlag
	args  []string
}

type typedFlag struct {
	flag  *pflag.Flag
	value string
}

// parseCall reads a command line without setting anything: some flags read a file
// as they are set. It says no to what is not for another host, or cannot be
// understood, which cobra then tells.
func parseCall(root *cobra.Command, line []string) (call, bool) {
	cmd, rest, err := root.Find(line)
	if err != nil || cmd == root {
		return call{}, false
	}
	cmd.InitDefaultHelpFlag()
	cmd.InheritedFlags() // which makes them flags of cmd
	c := call{cmd: cmd}
	err = cmd.Flags().ParseAll(rest, func(flag *pflag.Flag, value string) error {
		c.flags = append(c.flags, typedFlag{flag, value})
		return nil
	})
	c.args = cmd.Flags().Args()
	_, asked := c.flag("host")
	_, help := c.flag("help")
	return c, err == nil && asked && !help
}

// flag is the value that a flag has in the end.
func (c call) flag(name string) (value string, given bool) {
	for _, f := range c.flags {
		if f.flag.Name == name {
			value, given = f.value, true
		}
	}
	return value, given
}

// isHere says whether it is not simply run on the other host.
func (c call) isHere() bool {
	output, _ := c.flag("output")
	printed, _ := c.flag("print")
	switch c.cmd.Annotations[runsHere] {
	case alwaysHere:
		return true
	case unlessText:
		return output != string(jsonFormat) && printed != "true"
	}
	return false
}

// adopt takes over the flags that all commands have; no where cobra has something
// to say of them.
func (a *app) adopt(c call) bool {
	a.host, _ = c.flag("host")
	output, given := c.flag("output")
	return !given || a.ui.format.Set(output) == nil
}

// farCall is a command for another host.
type farCall struct {
	line  []string
	stdin string // the file of this host that is its stdin; "" for that of this one
}

// forFar is the command for the other host: without --host, with what it is to read
// from files of this one, and user before it: --user or nothing.
func (c call) forFar(user []string) (farCall, error) {
	// The path begins with "vmctl".
	out := farCall{line: append(user, strings.Fields(c.cmd.CommandPath())[1:]...)}
	args := c.args
	if _, marked := c.cmd.Annotations[stdinHere]; marked && len(args) == 3 {
		args, out.stdin = args[:2], args[2]
	}
	for _, f := range c.flags {
		values := []string{f.value}
		if _, marked := f.flag.Annotations[keysHere]; marked {
			var err error
			if values, err = publicKeys(f.value); err != nil {
				return farCall{}, flagError(c.cmd, fmt.Errorf("invalid argument %q for \"--%s\" flag: %w", f.value, f.flag.Name, err))
			}
		}
		if _, marked := f.flag.Annotations[stdinHere]; marked && f.value != "-" {
			values, out.stdin = []string{"-"}, f.value
		}
		if f.flag.Name == "host" {
			continue
		}
		for _, value := range values {
			out.line = append(out.line, "--"+f.flag.Name+"="+value)
		}
	}
	if len(args) > 0 {
		out.line = append(append(out.line, "--"), args...)
	}
	return out, nil
}

// far is another host, as ssh reaches it.
type far struct {
	ssh     string   // the program
	host    string   // as it was named
	options []string // ssh's
}

// hostPort is a host with a port, which ssh itself takes in a URI alone. Without
// brackets, an address of IPv6 has none.
var hostPort = regexp.MustCompile(`^((?:[^@/]*@)?(?:[^:/@]+|\[[^]/@]+\])):([0-9]+)$`)

// newFar finds what reaches the host that -H names.
func newFar(host string) (far, error) {
	// An empty one, of a variable that is not set, must not mean this host.
	_, name, found := strings.Cut(host, "@")
	if !found {
		name = host
	}
	if name == "" || strings.HasPrefix(host, "-") || strings.HasPrefix(name, "-") {
		return far{}, usageError{fmt.Errorf("--host: want [USER@]HOST[:PORT], got %q", host)}
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return far{}, withHint(err, "--host needs ssh: apt install openssh-client")
	}
	f := far{ssh: ssh, host: host}
	if m := hostPort.FindStringSubmatch(host); m != nil {
		f.host, f.options = strings.NewReplacer("[", "", "]", "").Replace(m[1]), []string{"-p", m[2]}
	}
	return f, nil
}

// findVmctl runs in a shell over there. Its arguments are what to say where there
// is no vmctl, and those of vmctl.
const findVmctl = `command -v vmctl >/dev/null 2>&1 || { printf "%s\n" "$0" >&2; exit 1; }; exec vmctl "$@"`

// argv is the command line of ssh that runs vmctl over there. ssh joins its
// arguments with spaces and has a shell read them, whichever the user has there:
// each is quoted, and the rest is done by sh.
func (f far) argv(out format, terminal bool, options, line []string) []string {
	argv := append([]string{f.ssh}, f.options...)
	argv = append(argv, options...)
	if terminal {
		// The console and questions need a terminal over there.
		argv = append(argv, "-t")
	} else {
		argv = append(argv, "-T")
	}
	argv = append(argv, "--", f.host, "exec", "sh", "-c", shellQuote(findVmctl), shellQuote(f.absent(out)))
	for _, arg := range line {
		argv = append(argv, shellQuote(arg))
	}
	return argv
}

// absent is what the other host says where it has no vmctl.
func (f far) absent(out format) string {
	var text bytes.Buffer
	u := ui{err: &text, format: out}
	u.fail(withHint(fmt.Errorf("vmctl is not installed on %s, or not in the PATH of an ssh session there", f.host),
		"-H runs the vmctl of that host"))
	return strings.TrimSuffix(text.String(), "\n")
}

// sshFailed is ssh's own exit status, which the command over there may have too.
const sshFailed = 255

// messages are what ssh itself says, apart from what the command over there does:
// a file in memory.
type messages struct{ f *os.File }

func newMessages() (messages, error) {
	fd, err := unix.MemfdCreate("messages of ssh", unix.MFD_CLOEXEC)
	if err != nil {
		return messages{}, err
	}
	return messages{os.NewFile(uintptr(fd), "messages of ssh")}, nil
}

// options are those of ssh.
func (m messages) options() []string {
	return []string{"-E", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.f.Fd())}
}

// text is what was said.
func (m messages) text() string {
	// Of memory, reading does not fail.
	text, _ := io.ReadAll(io.NewSectionReader(m.f, 0, maxMessages))
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\r", "")
}

// maxMessages is how much of it anybody reads, in bytes.
const maxMessages = 64 << 10

// farewell is the end of a session with a terminal, warning what does not keep ssh
// from going on.
var (
	farewell = regexp.MustCompile(`(?m)^(Shared c|C)onnection to \S+ closed\.\n?`)
	warning  = regexp.MustCompile(`(?m)^(Warning: |\*\* ).*\n?`)
)

// warnings is what was said while all went well.
func (m messages) warnings() string {
	return strings.TrimSpace(farewell.ReplaceAllString(m.text(), ""))
}

// failure is why ssh has failed, "" where it has not.
func (m messages) failure() string {
	return strings.TrimSpace(warning.ReplaceAllString(m.warnings(), ""))
}

func (m messages) close() { m.f.Close() }

// unreachable is the error of an ssh that has failed, nil where it was the command
// over there.
func (f far) unreachable(err error, said messages) error {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return err
	}
	switch text := said.failure(); {
	case exit.ExitCode() < 0:
		return fmt.Errorf("ssh to %s: %w", f.host, err)
	case exit.ExitCode() == sshFailed && text != "":
		return fmt.Errorf("cannot reach %s: %s", f.host, text)
	}
	return nil
}

// goFar runs a command on the host that -H names, and returns its exit status.
func (a *app) goFar(ctx context.Context, c call) (int, error) {
	f, err := newFar(a.host)
	if err != nil {
		return 0, err
	}
	there, err := c.forFar(a.userFlag())
	if err != nil {
		return 0, err
	}
	stdin := a.ui.in
	if there.stdin != "" {
		if stdin, err = os.Open(there.stdin); err != nil {
			return 0, given(there.stdin, err)
		}
		defer stdin.Close()
	}
	said, err := newMessages()
	if err != nil {
		return 0, err
	}
	defer said.close()
	// A password is never shown as it is typed, wherever stdout goes.
	terminal := isTerminal(stdin) && a.ui.format == textFormat && (isTerminal(a.ui.out) || c.cmd.Name() == "set-password")
	argv := f.argv(a.ui.format, terminal, said.options(), there.line)
	cmd := commandOfSSH(ctx, argv)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, a.ui.out, a.ui.err
	// With JSON, stderr has one value or nothing: it is not known yet who says it.
	var stderr bytes.Buffer
	if a.ui.format == jsonFormat {
		cmd.Stderr = &stderr
	}
	err = cmd.Run()
	if _, proxy := c.flag("proxy"); proxy && ctx.Err() != nil {
		return exitFailed, nil // ssh ends its ProxyCommand so
	}
	if err != nil && ctx.Err() != nil {
		return 0, withHint(errors.New("interrupted"), "what was begun on "+f.host+" may go on")
	}
	if err := f.unreachable(err, said); err != nil {
		return 0, err
	}
	if text := said.warnings(); text != "" && a.ui.format == textFormat {
		fmt.Fprintln(a.ui.err, text)
	}
	if _, err := a.ui.err.Write(stderr.Bytes()); err != nil {
		return 0, err
	}
	status := cmd.ProcessState.ExitCode()
	// It may be told to say nothing; no other command of ours has this status.
	if name := c.cmd.Name(); status == sshFailed && name != "exec" && name != "ssh" {
		return 0, withHint(fmt.Errorf("cannot reach %s: the connection was lost", f.host), "what was begun there may go on")
	}
	if status == exitUsage && a.ui.format == textFormat {
		a.compareVersions(ctx, f)
	}
	return status, nil
}

// compareTime is how long it may take to learn the version of another vmctl.
const compareTime = 5 * time.Second

// compareVersions tells where the vmctl over there is another than this one:
// what it does not understand may be right here.
func (a *app) compareVersions(ctx context.Context, f far) {
	ctx, cancel := context.WithTimeout(ctx, compareTime)
	defer cancel()
	var there struct{ Version string }
	if err := f.ask(ctx, &there, "version"); err == nil && there.Version != version {
		fmt.Fprintf(a.ui.err, "       that is vmctl %s of %s; this one is %s\n", there.Version, f.host, version)
	}
}

// ask runs vmctl over there, without any question to a person, and decodes its
// JSON. What it refuses with is ours too.
func (f far) ask(ctx context.Context, answer any, line ...string) error {
	var stdout bytes.Buffer
	if err := f.run(ctx, nil, &stdout, append([]string{"--output=json"}, line...)); err != nil {
		return err
	}
	if err := json.Unmarshal(stdout.Bytes(), answer); err != nil {
		return fmt.Errorf("want JSON from vmctl on %s, got %.80q", f.host, stdout.String())
	}
	return nil
}

// run runs vmctl over there, whose errors are asked for in JSON.
func (f far) run(ctx context.Context, stdin io.Reader, stdout io.Writer, line []string) error {
	said, err := newMessages()
	if err != nil {
		return err
	}
	defer said.close()
	var stderr bytes.Buffer
	argv := f.argv(jsonFormat, false, said.options(), line)
	cmd := commandOfSSH(ctx, argv)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, &stderr
	err = cmd.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		return nil
	}
	if err := f.unreachable(err, said); err != nil {
		return err
	}
	return f.refusal(stderr.Bytes(), cmd.ProcessState.ExitCode())
}

// refusal is the error that vmctl over there has ended with.
func (f far) refusal(stderr []byte, status int) error {
	var refused struct{ Error errorJSON }
	if i := bytes.IndexByte(stderr, '{'); i >= 0 && json.NewDecoder(bytes.NewReader(stderr[i:])).Decode(&refused) == nil && refused.Error.Message != "" {
		err := error(&statusedError{errors.New(refused.Error.Message), refused.Error.Status})
		if refused.Error.Hint != "" {
			err = withHint(err, refused.Error.Hint)
		}
		return err
	}
	text, hint, _ := strings.Cut(strings.TrimSpace(string(stderr)), "\n       ")
	if text, ok := strings.CutPrefix(text, "vmctl: "); ok {
		err := error(&statusedError{errors.New(text), status})
		if hint != "" {
			err = withHint(err, hint)
		}
		return err
	}
	return fmt.Errorf("vmctl on %s ended with exit status %d: %.400s", f.host, status, cmp.Or(text, "it says nothing"))
}

// completionTime is how long a completion may take on another host.
const completionTime = 5 * time.Second

// completeFar completes a command line for another host, by the vmctl there: only
// where a connection is open already, so that nobody waits for one, or is asked for
// a password. It says whether it did.
func (a *app) completeFar(ctx context.Context, args []string) bool {
	if len(args) < 2 || args[0] != cobra.ShellCompRequestCmd && args[0] != cobra.ShellCompNoDescRequestCmd {
		return false
	}
	host, words := cutHost(args[1 : len(args)-1])
	f, err := newFar(host)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	check := append(append([]string{}, f.options...), "-O", "check", "--", f.host)
	if err := exec.CommandContext(ctx, f.ssh, check...).Run(); err != nil {
		return false
	}
	var stdout bytes.Buffer
	line := append(append([]string{args[0]}, a.userFlag()...), words...)
	if err := f.run(ctx, nil, &stdout, append(line, args[len(args)-1])); err != nil {
		return false
	}
	// What is not written is not completed.
	_, _ = a.ui.out.Write(stdout.Bytes())
	return true
}

// cutHost takes --host out of the words of a command line; "" where it is not there.
func cutHost(words []string) (host string, rest []string) {
	for i := 0; i < len(words); i++ {
		word := words[i]
		long, isLong := strings.CutPrefix(word, "--host=")
		short, isShort := strings.CutPrefix(word, "-H")
		switch {
		case word == "--":
			return host, append(rest, words[i:]...)
		case isLong:
			host = long
		case isShort && short != "":
			host = short
		case (isShort || word == "--host") && i+1 < len(words):
			i++
			host = words[i]
		default:
			rest = append(rest, word)
		}
	}
	return host, rest
}

// userFlag is --user for the vmctl over there.
func (a *app) userFlag() []string {
	if a.user {
		return []string{"--" + userOption}
	}
	return nil
}

// share opens one connection of ssh for all that follow, so that a person is asked
// for a password once. done ends it. login is how long it may take to be let in, with a
// loginTimeout after that; 0 for as long as a person takes.
func share(ctx context.Context, ssh string, target []string, login time.Duration) (options []string, done func(), err error) {
	dir, err := os.MkdirTemp(runtimeDir(), "vmctl-ssh-") // mode 0700
	if err != nil {
		return nil, nil, err
	}
	said, err := newMessages()
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	socket := filepath.Join(dir, "mux")
	ctx, cancel := context.WithCancel(ctx)
	argv := append([]string{ssh, "-N", "-o", "ControlMaster=yes", "-o", "ControlPersist=no", "-S", socket}, said.options()...)
	master := commandOfSSH(ctx, append(argv, target...))
	var stderr bytes.Buffer // of a ProxyCommand
	master.Stderr = &stderr
	ended := make(chan error, 1)
	done = func() {
		cancel()
		<-ended
		said.close()
		os.RemoveAll(dir)
	}
	if err := master.Start(); err != nil {
		cancel()
		said.close()
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	go func() { ended <- master.Wait(); close(ended) }()
	entry := ctx
	if login > 0 {
		var stop context.CancelFunc
		entry, stop = context.WithTimeoutCause(ctx, login, loginTimeout(login))
		defer stop()
	}
	if err := awaitSocket(entry, socket, ended); err != nil {
		text := said.failure()
		done()
		if late, ok := errors.AsType[loginTimeout](err); ok {
			return nil, nil, late
		}
		return nil, nil, sshError(text, stderr.String(), err)
	}
	return []string{"-o", "ControlMaster=no", "-S", socket}, done, nil
}

// loginTimeout is how long a server was waited for that took a connection, and then
// let nobody in.
type loginTimeout time.Duration

func (t loginTimeout) Error() string {
	return fmt.Sprintf("not let in within %v", time.Duration(t))
}

// commandOfSSH is a command that ends with us, also where we are killed: what goes on
// over there would not be seen by anybody.
func commandOfSSH(ctx context.Context, argv []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return cmd
}

// sshError is why ssh has failed: what its ProxyCommand says, if that is ours, or it
// says itself.
func sshError(said, stderr string, err error) error {
	if text, ok := strings.CutPrefix(stderr, "vmctl: "); ok {
		said, _, _ = strings.Cut(text, "\n")
	}
	// Its own exit status is not that of vmctl.
	return errors.New(cmp.Or(said, strings.TrimSpace(stderr), "ssh: "+err.Error()))
}

// awaitSocket waits until ssh listens, which it does once it is let in.
func awaitSocket(ctx context.Context, socket string, ended <-chan error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(socket); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// shellQuote makes one word of s for any shell that knows single quotes.
func shellQuote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./:,@%+"
	// fish knows a backslash in quotes too, zsh a command's path by =COMMAND.
	if s != "" && s[0] != '=' && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.NewReplacer("'", `'\''`, `\`, `'\\'`).Replace(s) + "'"
}

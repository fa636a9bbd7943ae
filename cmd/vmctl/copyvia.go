package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/vmctl/vmctl/hypervisor/guestagent"
	"github.com/vmctl/vmctl/hypervisor/guestcopy"
)

// copyVia is how files get into a guest.
type copyVia string

const (
	viaAuto  copyVia = "auto"
	viaAgent copyVia = "agent"
	viaSSH   copyVia = "ssh"
)

// String, Set and Type make a copyVia a pflag.Value.
func (v *copyVia) String() string { return string(*v) }

func (v *copyVia) Set(s string) error {
	switch copyVia(s) {
	case viaAuto, viaAgent, viaSSH:
		*v = copyVia(s)
		return nil
	}
	return errors.New("want agent, ssh or auto")
}

func (v *copyVia) Type() string { return "WAY" }

// filesWhileRunning is why nothing is copied into a guest that does not run.
const filesWhileRunning = "files are copied while the VM runs"

// closedError is a way into a guest that does not work, and by which nothing has
// been done.
type closedError struct{ error }

func (e *closedError) Unwrap() error { return e.error }

// copyBy copies by the way that is asked for, or by the first that works.
func (a *app) copyBy(ctx context.Context, opts guestCopyOptions, name string, src, dst guestPath) (guestcopy.Result, copyVia, error) {
	if a.host != "" {
		r, err := a.copyByHost(ctx, opts, name, src, dst)
		return r, viaAgent, err
	}
	l, err := a.lookUp(ctx, name, filesWhileRunning, running, starting, saving)
	if err != nil {
		return guestcopy.Result{}, "", err
	}
	if opts.via == viaSSH {
		r, err := a.copyBySSH(ctx, opts, l, src, dst)
		return r, viaSSH, err
	}
	r, err := a.copyByAgent(ctx, opts, l, src, dst)
	if _, closed := errors.AsType[*closedError](err); !closed || opts.via == viaAgent || ctx.Err() != nil {
		return r, viaAgent, err
	}
	r, sshErr := a.copyBySSH(ctx, opts, l, src, dst)
	if _, closed := errors.AsType[*closedError](sshErr); closed {
		return r, "", fmt.Errorf("%w; nor by ssh: %v", err, sshErr)
	}
	return r, viaSSH, sshErr
}

func (a *app) copyByAgent(ctx context.Context, opts guestCopyOptions, l look, src, dst guestPath) (guestcopy.Result, error) {
	channel, err := a.agentOf(ctx, l)
	if err != nil {
		return guestcopy.Result{}, &closedError{err}
	}
	defer channel.Release()
	return a.copyThrough(ctx, &byAgent{Channel: channel, user: opts.user}, opts, src, dst)
}

// byAgent is the way into a guest by its agent.
type byAgent struct {
	*guestagent.Channel
	user string
	open bool // a script has run
}

func (g *byAgent) Run(ctx context.Context, script string, args []string, stdout io.Writer) (int, string, error) {
	var stderr bytes.Buffer
	exit, err := g.Channel.Run(ctx, guestagent.Command{
		Argv: append([]string{"/bin/sh", "-c", script, "vmctl"}, args...), User: g.user, Stdout: stdout, Stderr: &limited{&stderr},
	})
	if err != nil && !g.open {
		err = &closedError{err}
	}
	if err != nil {
		// Something may yet be written to stderr.
		return 0, "", err
	}
	g.open = true
	return exit.Code(), stderr.String(), nil
}

// WriteFile does not replace the file: it has an owner already.
func (g *byAgent) WriteFile(ctx context.Context, path string, r io.Reader) error {
	return g.Channel.WriteFile(ctx, path, "r+b", r)
}

// loginTime is how long a guest's sshd may take to let a copy in: one that takes the
// connection and then says nothing would be waited for without end. It is given
// another connection, and lastLoginTime.
const (
	loginTime     = time.Minute
	lastLoginTime = 3 * time.Minute
)

func (a *app) copyBySSH(ctx context.Context, opts guestCopyOptions, l look, src, dst guestPath) (guestcopy.Result, error) {
	ssh, settings, err := a.prepareSSH(ctx, l, opts.user)
	if err != nil {
		return guestcopy.Result{}, &closedError{err}
	}
	target := append(settings, "--", l.vm.Name+".vm")
	patience := loginTime
	if isTerminal(a.ui.in) {
		patience = lastLoginTime // a person may be typing a password
	}
	options, done, err := share(ctx, ssh, target, patience)
	if late, ok := errors.AsType[loginTimeout](err); ok && patience != lastLoginTime {
		a.ui.warnf("%s: the guest's ssh server: %v; trying once more", l.vm.Name, late)
		options, done, err = share(ctx, ssh, target, lastLoginTime)
	}
	if err != nil {
		return guestcopy.Result{}, &closedError{err}
	}
	defer done()
	return a.copyThrough(ctx, bySSH{append(append([]string{ssh}, options...), target...)}, opts, src, dst)
}

// bySSH is the way into a guest by ssh.
type bySSH struct{ argv []string }

func (g bySSH) run(ctx context.Context, stdin io.Reader, stdout io.Writer, script string, args []string) (int, string, error) {
	said, err := newMessages()
	if err != nil {
		return 0, "", err
	}
	defer said.close()
	words := []string{"exec", "sh", "-c", shellQuote(script), "vmctl"}
	for _, arg := range args {
		words = append(words, shellQuote(arg))
	}
	argv := append(append([]string{g.argv[0]}, said.options()...), g.argv[1:]...)
	cmd := commandOfSSH(ctx, append(argv, words...))
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, &limited{&stderr}
	err = cmd.Run()
	if ctx.Err() != nil {
		return 0, "", ctx.Err()
	}
	exit, ended := errors.AsType[*exec.ExitError](err)
	if err != nil && (!ended || exit.ExitCode() < 0 || exit.ExitCode() == sshFailed) {
		return 0, "", sshError(said.failure(), stderr.String(), err)
	}
	return cmd.ProcessState.ExitCode(), stderr.String(), nil
}

func (g bySSH) Run(ctx context.Context, script string, args []string, stdout io.Writer) (int, string, error) {
	return g.run(ctx, nil, stdout, script, args)
}

func (g bySSH) WriteFile(ctx context.Context, path string, r io.Reader) error {
	return asError(g.run(ctx, r, nil, `cat >"$1"`, []string{path}))
}

func (g bySSH) ReadFile(ctx context.Context, path string, w io.Writer) error {
	return asError(g.run(ctx, nil, w, `exec cat <"$1"`, []string{path}))
}

// asError is the error of a script in a guest.
func asError(code int, stderr string, err error) error {
	if err != nil || code == 0 {
		return err
	}
	return fmt.Errorf("in the guest: %s", cmp.Or(strings.TrimSpace(stderr), fmt.Sprintf("exit status %d", code)))
}

// copyByHost copies between files here and a guest on the host that -H names.
func (a *app) copyByHost(ctx context.Context, opts guestCopyOptions, name string, src, dst guestPath) (guestcopy.Result, error) {
	if opts.via == viaSSH {
		return guestcopy.Result{}, withHint(usageError{errors.New("--via ssh: not with --host, where it goes by the guest agent")},
			"vmctl -H "+a.host+" ssh-config "+name+" has scp reach the guest through that host")
	}
	f, err := newFar(a.host)
	if err != nil {
		return guestcopy.Result{}, err
	}
	options, done, err := share(ctx, f.ssh, append(f.options, "--", f.host), 0)
	if err != nil {
		return guestcopy.Result{}, fmt.Errorf("cannot reach %s: %w", f.host, err)
	}
	defer done()
	f.options = append(options, f.options...)
	g := byHost{f, a.userFlag(), nil, name}
	if opts.user != "" {
		g.guestUser = []string{"--user=" + opts.user}
	}
	return a.copyThrough(ctx, g, opts, src, dst)
}

// byHost is the way into a guest on another host, by its agent.
type byHost struct {
	far
	userFlag  []string // of vmctl
	guestUser []string // --user of its commands
	name      string
}

func (g byHost) line(command string, words ...string) []string {
	line := append(append([]string{}, g.userFlag...), command)
	return append(append(append(line, g.guestUser...), "--"), words...)
}

func (g byHost) Run(ctx context.Context, script string, args []string, stdout io.Writer) (int, string, error) {
	line := g.line("exec", append([]string{g.name, "/bin/sh", "-c", script, "vmctl"}, args...)...)
	var said bytes.Buffer
	err := g.run(ctx, nil, &said, append([]string{"--output=json"}, line...))
	var shown shownExec
	// It has a status of its own where the command has failed.
	if json.Unmarshal(said.Bytes(), &shown) != nil || shown.Name == "" {
		return 0, "", cmp.Or(err, fmt.Errorf("want JSON from vmctl on %s, got %.80q", g.host, said.String()))
	}
	_, err = io.WriteString(stdout, shown.Stdout+string(shown.StdoutBase64))
	return shown.ExitStatus, shown.Stderr + string(shown.StderrBase64), err
}

func (g byHost) WriteFile(ctx context.Context, path string, r io.Reader) error {
	return g.run(ctx, r, io.Discard, g.line("copy", "-", g.name+":"+path))
}

func (g byHost) ReadFile(ctx context.Context, path string, w io.Writer) error {
	return g.run(ctx, nil, w, g.line("copy", g.name+":"+path, "-"))
}

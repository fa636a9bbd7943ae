package guestagent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// agentProgram is the real agent, which runs as well outside of a guest.
const agentProgram = "/usr/sbin/qemu-ga"

// realAgent starts one and returns the channel to it. It is no part of what it
// shows where the agent is not installed (package qemu-guest-agent).
func realAgent(t *testing.T, options ...string) *Channel {
	t.Helper()
	if _, err := os.Stat(agentProgram); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "agent.sock")
	cmd := exec.Command(agentProgram, append([]string{"-m", "unix-listen", "-p", socket, "-t", dir, "-f", filepath.Join(dir, "pid"), "-l", filepath.Join(dir, "log")}, options...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return channelTo(t, socket)
}

func channelTo(t *testing.T, socket string) *Channel {
	c := NewChannel(func(ctx context.Context) (*Agent, error) {
		for {
			a, err := Dial(ctx, socket)
			if err == nil || ctx.Err() != nil || !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
				return a, err
			}
			time.Sleep(time.Millisecond)
		}
	})
	t.Cleanup(func() { c.Release() })
	c.tempDirs = []string{t.TempDir()}
	return c
}

// ran runs a command and returns what it wrote.
func ran(t *testing.T, c *Channel, cmd Command) (exit Exit, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	exit, failed := c.Run(t.Context(), cmd)
	if failed != nil {
		t.Fatal(failed)
	}
	for _, dir := range c.tempDirs {
		if left, _ := filepath.Glob(dir + "/vmctl-exec-*"); len(left) > 0 {
			t.Errorf("left behind: %s", left)
		}
	}
	return exit, out.String(), err.String()
}

func shell(script string, args ...string) Command {
	return Command{Argv: append([]string{"sh", "-c", script, "sh"}, args...)}
}

func TestRun(t *testing.T) {
	c := realAgent(t)
	for name, test := range map[string]struct {
		cmd         Command
		exit        Exit
		stdout, err string // err: what stderr contains
	}{
		"streams":     {shell("echo out; echo err >&2"), Exit{}, "out\n", "err\n"},
		"status":      {shell("exit 42"), Exit{Status: 42}, "", ""},
		"signal":      {shell("kill -TERM $$"), Exit{Status: 143}, "", ""},
		"no command":  {Command{Argv: []string{"no-such-program"}}, Exit{Status: 127}, "", "no-such-program"},
		"arguments":   {Command{Argv: []string{"printf", "%s|", "a b", "", "$HOME", "'", "-x", "é\n"}}, Exit{}, "a b||$HOME|'|-x|é\n|", ""},
		"input":       {Command{Argv: []string{"cat"}, Stdin: strings.NewReader("in\x00put\xff")}, Exit{}, "in\x00put\xff", ""},
		"empty input": {Command{Argv: []string{"wc", "-c"}, Stdin: strings.NewReader("")}, Exit{}, "0\n", ""},
		"no input":    {Command{Argv: []string{"cat"}}, Exit{}, "", ""},
		"home":        {shell("pwd; echo $HOME $USER"), Exit{}, "/root\n/root root\n", ""},
		"directory":   {Command{Argv: []string{"pwd"}, Dir: "/usr"}, Exit{}, "/usr\n", ""},
		"no such dir": {Command{Argv: []string{"pwd"}, Dir: "/no such"}, Exit{Status: 125}, "", "/no such"},
		"environment": {Command{Argv: []string{"sh", "-c", "echo $A $HOME"}, Env: []string{"A=b c", "HOME=/tmp"}}, Exit{}, "b c /tmp\n", ""},
		"user":        {Command{Argv: []string{"sh", "-c", "id -un; id -Gn; echo $USER; echo more >/dev/stdout; echo yet"}, User: "nobody"}, Exit{}, "nobody\nnogroup\nnobody\nmore\nyet\n", ""},
		"no user":     {Command{Argv: []string{"id"}, User: "nosuchuser"}, Exit{Status: 125}, "", "nosuchuser"},
		"group":       {shell(`read -r pid _ _ _ group _ </proc/$$/stat; [ $group != $PPID ] || echo $(umask)`), Exit{}, "0022\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			exit, stdout, stderr := ran(t, c, test.cmd)
			if exit != test.exit || stdout != test.stdout || !strings.Contains(stderr, test.err) || (test.err == "") != (stderr == "") {
				t.Errorf("got %+v, %q, %q, want %+v, %q, %q", exit, stdout, stderr, test.exit, test.stdout, test.err)
			}
		})
	}
}

// More than the agent keeps, and more than goes with a call.
func TestRunOfMuch(t *testing.T) {
	c := realAgent(t)
	much := strings.Repeat("0123456789abcdef", 3<<20/16)
	if _, stdout, _ := ran(t, c, Command{Argv: []string{"cat"}, Stdin: strings.NewReader(much)}); stdout != much {
		t.Errorf("of %d bytes came back %d", len(much), len(stdout))
	}
	const bytes = 20 << 20
	if _, stdout, _ := ran(t, c, Command{Argv: []string{"head", "-c", strconv.Itoa(bytes), "/dev/zero"}}); len(stdout) != bytes {
		t.Errorf("of %d bytes came %d", bytes, len(stdout))
	}
}

func TestRunWithoutFiles(t *testing.T) {
	c := realAgent(t, "-b", "guest-file-open")
	exit, stdout, stderr := ran(t, c, Command{Argv: []string{"/bin/sh", "-c", "cat; echo err >&2; echo $A; exit 3"}, Stdin: strings.NewReader("in\n"), Env: []string{"A=b"}})
	if exit.Code() != 3 || stdout != "in\nb\n" || stderr != "err\n" {
		t.Errorf("got %+v, %q, %q", exit, stdout, stderr)
	}
	_, err := c.Run(t.Context(), Command{Argv: []string{"/usr/bin/head", "-c", "17M", "/dev/zero"}, Stdout: io.Discard, Stderr: io.Discard})
	if cut, ok := errors.AsType[*CutError](err); !ok || cut.Stream != "stdout" {
		t.Errorf("got %v, want that stdout is cut", err)
	}
}

func TestRunIsNotAllowed(t *testing.T) {
	_, err := realAgent(t, "-b", "guest-exec").Run(t.Context(), shell("true"))
	if disabled, ok := errors.AsType[*DisabledError](err); !ok || disabled.Command != "guest-exec" || !disabled.Known {
		t.Errorf("got %v", err)
	}
}

// watched cancels once something is written to it.
type watched struct {
	bytes.Buffer
	cancel context.CancelCauseFunc
}

func (w *watched) Write(p []byte) (int, error) {
	defer w.cancel(context.DeadlineExceeded)
	return w.Buffer.Write(p)
}

// What is not waited for any more does not run on, nor does what it has started.
func TestRunEnds(t *testing.T) {
	c := realAgent(t)
	for name, script := range map[string]string{
		"that ends":     "sleep 1000 & echo $$ $!; wait",
		"that does not": "trap '' TERM; sleep 1000 & echo $$ $!; wait; sleep 1000",
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			out := &watched{cancel: cancel}
			cmd := shell(script)
			cmd.Stdout, cmd.Stderr = out, io.Discard
			if _, err := c.Run(ctx, cmd); !errors.Is(err, context.Canceled) || !errors.As(err, new(*EndedError)) {
				t.Fatalf("got %v", err)
			}
			pids := strings.Fields(out.String())
			if len(pids) != 2 {
				t.Fatalf("got %q", out.String())
			}
			for _, pid := range pids {
				for deadline := time.Now().Add(time.Minute); ; {
					stat, err := os.ReadFile("/proc/" + pid + "/stat")
					if err != nil || strings.Contains(string(stat), ") Z ") {
						break // a zombie is for whoever is process 1 here
					}
					if time.Now().After(deadline) {
						t.Fatalf("process %s runs on", pid)
					}
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
	}
}

// A long command lets others in.
func TestRunLetsOthersIn(t *testing.T) {
	c := realAgent(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		cmd := shell("echo; sleep 1000")
		cmd.Stdout, cmd.Stderr = writerFunc(func(p []byte) (int, error) { close(begun); return len(p), nil }), io.Discard
		_, err := c.Run(ctx, cmd)
		done <- err
	}()
	<-begun
	other := NewChannel(c.connect)
	other.tempDirs = c.tempDirs
	for range 3 {
		if _, stdout, _ := ran(t, other, Command{Argv: []string{"echo", "other"}}); stdout != "other\n" {
			t.Errorf("got %q", stdout)
		}
	}
	other.Release()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || !errors.As(err, new(*EndedError)) {
		t.Errorf("got %v", err)
	}
}

// What blocks here lets others in, and what waits for it ends with whoever waits.
func TestBlockedHere(t *testing.T) {
	c := realAgent(t)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(ctx context.Context, r io.Reader, w io.Writer) error{
		"file in":  func(ctx context.Context, r io.Reader, _ io.Writer) error { return c.WriteFile(ctx, path, "r+b", r) },
		"file out": func(ctx context.Context, _ io.Reader, w io.Writer) error { return c.ReadFile(ctx, path, w) },
		"input": func(ctx context.Context, r io.Reader, _ io.Writer) error {
			_, err := c.Run(ctx, Command{Argv: []string{"cat"}, Stdin: r, Stdout: io.Discard, Stderr: io.Discard})
			return err
		},
		"output": func(ctx context.Context, _ io.Reader, w io.Writer) error {
			_, err := c.Run(ctx, Command{Argv: []string{"echo"}, Stdout: w, Stderr: io.Discard})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			r, w := io.Pipe()
			defer r.Close()
			blocked, done := make(chan struct{}), make(chan error, 1)
			go func() {
				done <- do(ctx, readerFunc(func(p []byte) (int, error) { close(blocked); return r.Read(p) }),
					writerFunc(func(p []byte) (int, error) { close(blocked); return w.Write(p) }))
			}()
			select {
			case <-blocked:
			case err := <-done:
				t.Fatalf("it does not block: %v", err)
			}
			other := NewChannel(c.connect)
			if _, err := other.simple(t.Context(), "true"); err != nil {
				t.Error(err)
			}
			other.Release()
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) || errors.As(err, new(*LocalError)) || name == "input" && errors.As(err, new(*EndedError)) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A reader of the output that goes away is not the end of the machine: the
// command is ended.
func TestRunForNobody(t *testing.T) {
	cmd := shell("echo; sleep 1000")
	cmd.Stdout, cmd.Stderr = writerFunc(func([]byte) (int, error) { return 0, syscall.EPIPE }), io.Discard
	_, err := realAgent(t).Run(t.Context(), cmd)
	if !errors.Is(err, syscall.EPIPE) || !errors.As(err, new(*EndedError)) || Gone(err) {
		t.Errorf("got %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestFiles(t *testing.T) {
	c := realAgent(t)
	path := filepath.Join(t.TempDir(), "file")
	text := strings.Repeat("x\x00\xff", 1<<19)
	if err := c.WriteFile(t.Context(), path, "wb", strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	var back bytes.Buffer
	if err := c.ReadFile(t.Context(), path, &back); err != nil || back.String() != text {
		t.Errorf("%d of %d bytes, %v", back.Len(), len(text), err)
	}
	if err := c.ReadFile(t.Context(), path+"s", io.Discard); err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Errorf("got %v", err)
	}
}

// liar plays an agent with these answers, by command; "" is none at all.
func liar(t *testing.T, answers map[string]string) *Channel {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			lines := bufio.NewScanner(conn)
			answer(conn, lines)
			for lines.Scan() {
				for command, text := range answers {
					if strings.Contains(lines.Text(), `"`+command+`"`) && text != "" {
						fmt.Fprintln(conn, text)
					}
				}
			}
			conn.Close()
		}
	}()
	c := channelTo(t, path)
	c.endTime = time.Second
	return c
}

const ableAgent = `{"return": {"version": "9", "supported_commands": [
	{"name": "guest-exec", "enabled": true}, {"name": "guest-exec-status", "enabled": true}, {"name": "guest-file-open", "enabled": true},
	{"name": "guest-file-read", "enabled": true}, {"name": "guest-file-write", "enabled": true}, {"name": "guest-file-close", "enabled": true}]}}`

func TestRunByAHostileAgent(t *testing.T) {
	able := strings.ReplaceAll(ableAgent, "\n", "")
	for name, test := range map[string]struct {
		answers map[string]string
		want    string
	}{
		"no commands":    {map[string]string{"guest-info": `{"return": {}}`}, "the guest agent does not know guest-exec"},
		"garbage":        {map[string]string{"guest-info": `{"return": "all"}`}, "guest-info: json:"},
		"no PID":         {map[string]string{"guest-info": able, "guest-exec": `{"return": []}`}, "guest-exec: json:"},
		"another status": {map[string]string{"guest-info": able, "guest-exec": `{"return": {"pid": 1}}`, "guest-exec-status": `{"return": {"exited": true, "exitcode": 777}}`, "guest-file-open": `{"return": 5}`, "guest-file-read": `{"return": {"count": 0, "buf-b64": "", "eof": true}}`, "guest-file-close": `{"return": {}}`}, "exit status 777"},
		"forgotten":      {map[string]string{"guest-info": able, "guest-exec": `{"return": {"pid": 1}}`, "guest-exec-status": `{"error": {"class": "GenericError", "desc": "PID 1 does not exist"}}`}, "the guest agent has been started again meanwhile"},
		"more than asked": {map[string]string{"guest-info": able, "guest-exec": `{"return": {"pid": 1}}`, "guest-exec-status": `{"return": {"exited": false}}`, "guest-file-open": `{"return": 5}`,
			"guest-file-read": `{"return": {"count": 9, "buf-b64": "AAAA", "eof": false}}`, "guest-file-close": `{"return": {}}`}, "asked for 524288 bytes, it says 9 and sends 3"},
		"no base64": {map[string]string{"guest-info": able, "guest-exec": `{"return": {"pid": 1}}`, "guest-exec-status": `{"return": {"exited": false}}`, "guest-file-open": `{"return": 5}`,
			"guest-file-read": `{"return": {"count": 3, "buf-b64": "???", "eof": false}}`, "guest-file-close": `{"return": {}}`}, "illegal base64"},
		"no end": {map[string]string{"guest-info": able, "guest-exec": `{"return": {"pid": 1}}`, "guest-exec-status": `{"return": {"exited": false}}`, "guest-file-open": `{"return": 5}`,
			"guest-file-read": `{"return": {"count": 0, "buf-b64": "", "eof": false}}`, "guest-file-close": `{"return": {}}`}, "no data, and no end"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := liar(t, test.answers).Run(t.Context(), Command{Argv: []string{"true"}, Stdout: io.Discard, Stderr: io.Discard})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// A file's end that never comes ends with whoever waits for it.
func TestEndlessFile(t *testing.T) {
	c := liar(t, map[string]string{"guest-file-open": `{"return": 5}`, "guest-file-read": `{"return": {"count": 3, "buf-b64": "AAAA", "eof": false}}`, "guest-file-close": `{"return": {}}`})
	if err := c.ReadFile(soon(t), "/x", io.Discard); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestWriteToALiar(t *testing.T) {
	for _, count := range []string{"0", "-1", "4"} {
		c := liar(t, map[string]string{"guest-file-open": `{"return": 5}`, "guest-file-write": `{"return": {"count": ` + count + `, "eof": false}}`, "guest-file-close": `{"return": {}}`})
		if err := c.WriteFile(t.Context(), "/x", "wb", strings.NewReader("abc")); err == nil || !strings.Contains(err.Error(), "of 3 bytes, it says that it wrote "+count) {
			t.Errorf("got %v", err)
		}
	}
}

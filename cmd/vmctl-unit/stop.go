package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/hypervisor/guestagent"
	"github.com/vmctl/vmctl/units/bus"
)

const (
	// defaultStopTimeout is for a machine of which it is not known what it was
	// started with; the schema's default of stop_timeout.
	defaultStopTimeout = 3 * time.Minute
	// forever is longer than any machine is waited for, and still can be
	// counted with.
	forever = 10 * 365 * 24 * time.Hour
	// monitorTimeout is how long the monitor has, after the hypervisor's end,
	// to write down what it knows.
	monitorTimeout = 2 * time.Second
	// stopMargin is what systemd gives a stop beyond its own time, as the
	// drop-in does.
	stopMargin = 15 * time.Second
)

// stop ends the machine. It reads nothing but what the machine was started
// with: the definition may be broken or gone by now.
func (a app) stop(ctx context.Context) error {
	dir, err := openRuntimeDir(a.paths, a.vm)
	if err != nil {
		return err
	}
	defer dir.Close()
	defer a.waitForMonitor(dir)

	pid, err := strconv.Atoi(os.Getenv("MAINPID"))
	if err != nil {
		return nil // it has ended by itself
	}
	main, err := openProcess(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer main.close()

	s := a.newStopper(main, a.readEvents(dir))
	// The drop-in may be of another definition by now, or gone, and with it
	// the TimeoutStopSec= for the stop_timeout that the machine runs with.
	a.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (s.timeout + stopMargin).Microseconds()))
	if err := a.writeNote(dir, s.note); err != nil {
		a.warn("%v", err)
	}
	s.note.Cut = a.cut(ctx)
	note := s.stop(ctx)
	if err := a.writeNote(dir, note); err != nil {
		a.warn("%v", err)
	}
	if note.Ended == notEnded {
		return fmt.Errorf("process %d did not end", pid)
	}
	a.info("ended by %s after %v", note.Ended, note.Took.Round(time.Millisecond))
	return nil
}

// cut says why the guest is not asked to shut down; "" if it is. What the
// definition wants to be saved when the host goes down is saved by then.
func (a app) cut(ctx context.Context) string {
	const saved = "it is saved"
	a.endSaving(ctx)
	if a.standsSaved(ctx) {
		return saved
	}
	way := a.startedWith().onHostShutdown
	if way != "save" && way != "kill" || !a.hostGoesDown(ctx) {
		return ""
	}
	if way == "kill" {
		return "the host goes down"
	}
	if err := a.saveInStop(ctx); err != nil {
		a.warn("it is shut down, since it cannot be saved: %v", err)
		return ""
	}
	return saved
}

// hostGoesDown says whether the stop is for that, or the user's service manager
// ends.
func (a app) hostGoesDown(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	conn, err := bus.Dial(ctx, a.paths.User)
	if err == nil {
		defer conn.Close()
		var stopping bool
		if stopping, err = conn.Stopping(ctx); err == nil {
			return stopping
		}
	}
	a.warn("it is not known whether the host goes down: %v", err)
	return false
}

func (a app) waitForMonitor(dir runtimeDir) {
	m, err := a.monitorProcess(dir)
	if err != nil {
		return // it has ended
	}
	defer m.close()
	m.wait(monitorTimeout)
}

func (a app) writeNote(dir runtimeDir, n stopNote) error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return dir.put(a.paths.StopNote(a.vm), b, 0o600)
}

// newStopper makes the stopper of a machine's main process; heard is what the
// hypervisor has told.
func (a app) newStopper(main process, heard hypervisor.EventLog) *stopper {
	with := a.startedWith()
	hv, hasAgent := with.hv, with.hasAgent
	control := func(ctx context.Context, call func(hypervisor.Control) error) error {
		c, err := access.Connect(ctx, hv, a.paths.ControlSocket(a.vm))
		if err != nil {
			return err
		}
		defer c.Close()
		return call(c)
	}
	gone := make(chan struct{})
	go func() {
		for !main.wait(time.Hour) {
		}
		close(gone)
	}()
	return &stopper{
		status: func(ctx context.Context) (st hypervisor.Status, err error) {
			err = control(ctx, func(c hypervisor.Control) error { st, err = c.Status(ctx); return err })
			return heard.Status(st), err
		},
		resume: func(ctx context.Context) error {
			return control(ctx, func(c hypervisor.Control) error { return c.Resume(ctx) })
		},
		button: func(ctx context.Context) error {
			return control(ctx, func(c hypervisor.Control) error { return c.PowerButton(ctx) })
		},
		quit: func(ctx context.Context) error {
			return control(ctx, func(c hypervisor.Control) error { return c.Quit(ctx) })
		},
		agent: func(ctx context.Context) error {
			if !hasAgent {
				return errors.New("no channel to a guest agent")
			}
			socket, done, err := access.Socket(a.paths.AgentSocket(a.vm))
			if err != nil {
				return err
			}
			defer done()
			return shutdownByAgent(ctx, socket)
		},
		signal: main.signal,
		gone:   gone,
		say: func(format string, args ...any) {
			text := fmt.Sprintf(format, args...)
			a.info("stop: %s", text)
			a.notify("STATUS=Stopping: " + oneLine(text))
		},
		timeout: with.timeout,
	}
}

// shutdownByAgent is done once the agent has taken the request, which it says
// by answering nothing for a while: only that it is there has to be said soon.
func shutdownByAgent(ctx context.Context, socket string) error {
	hello, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	agent, err := guestagent.Dial(hello, socket)
	if err != nil {
		return err
	}
	defer agent.Close()
	return agent.Shutdown(ctx)
}

// started is what a stop has to know of the record of the start. It asks for no
// more, since another version of vmctl may have written the rest.
type started struct {
	Machine struct {
		Hypervisor string `json:"hypervisor"`
		Lifecycle  struct {
			StopTimeout    config.Duration `json:"stop_timeout"`
			OnHostShutdown string          `json:"on_host_shutdown"`
		} `json:"lifecycle"`
		GuestAgent config.GuestAgent `json:"guest_agent"`
	} `json:"machine"`
}

// startedWith is what a stop has to know of the definition that the machine was
// started with.
type startedWith struct {
	hv             hypervisor.Hypervisor
	timeout        time.Duration
	hasAgent       bool
	onHostShutdown string // "" where it is not known
}

func (a app) startedWith() startedWith {
	var s started
	b, err := os.ReadFile(a.paths.Record(a.vm))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.warn("%s: %v", a.paths.Record(a.vm), err)
	}
	hv, ok := all.ByName(s.Machine.Hypervisor)
	if !ok {
		hv = all.Table()[0]
	}
	with := startedWith{hv, time.Duration(s.Machine.Lifecycle.StopTimeout), s.Machine.GuestAgent.Enabled, s.Machine.Lifecycle.OnHostShutdown}
	switch {
	case with.timeout <= 0:
		with.timeout, with.hasAgent = defaultStopTimeout, true
	case s.Machine.Lifecycle.StopTimeout == config.Infinity:
		with.timeout = forever
	}
	return with
}

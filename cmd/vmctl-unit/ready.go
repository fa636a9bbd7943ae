package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/guestagent"
	"github.com/vmctl/vmctl/hypervisor/guestnotify"
)

// Whether a guest is ready, where its definition asks for that, is found out by a
// unit beside the machine's, vm-ready@NAME: by its guest agent, or by what the
// guest's service manager tells the monitor. Both leave it in paths.Readiness,
// from which the monitor has the machine's status.

// notifyName is the name of the socket that listens to the guest's service
// manager, and of the monitor's argument with it.
const notifyName = "notify"

const (
	readyPoll  = 500 * time.Millisecond // between two questions to a guest
	statusPoll = time.Second            // between two looks whether it is ready, for the status
)

// listenForGuest opens the socket at which the monitor hears from the guest.
func (a app) listenForGuest(m *config.Machine, plan *hypervisor.Plan) error {
	if plan.NotifyPort == 0 {
		return nil
	}
	if err := dropFiles(notifyName); err != nil {
		return err
	}
	f, err := guestnotify.Listen(plan.NotifyPort)
	if err != nil {
		return refuseProblems([]config.Problem{m.Problem("lifecycle.ready", `"notify" needs a vsock port of the host: %v`, err)})
	}
	return handOver(notifyName, []*os.File{f})
}

// awaitGuest keeps the status of a machine whose guest is waited for. The caller
// has the lock.
func (m *monitor) awaitGuest(ctx context.Context) {
	switch m.record.Machine.Lifecycle.Ready {
	case "agent":
		m.awaited = "waiting for the guest agent"
	case "notify":
		m.awaited = "waiting for the guest to have booted"
		if m.guest != 0 {
			go m.hear()
		}
	default:
		return
	}
	go m.followReadiness(ctx)
}

// hear takes what the guest's service manager says, until it says that the guest
// is up; after that, only that nobody in the guest waits for us.
func (m *monitor) hear() {
	var told time.Time // a guest may say as much as it likes
	trusted := guestnotify.FromGuest(m.record.Machine.Vsock.CID)
	if m.record.Plan.NotifySocket != "" {
		trusted = guestnotify.FromWhoMayConnect
	}
	err := guestnotify.Serve(m.guest, trusted, func(n guestnotify.Message) {
		m.mu.Lock()
		defer m.mu.Unlock()
		switch {
		case m.awaited == "":
		case n.Ready:
			b, err := json.Marshal(hypervisor.Readiness{Ready: true})
			if err == nil {
				err = replace(m.paths.Readiness(m.vm), b, 0o600)
			}
			if err != nil {
				m.warn("%v", err)
			}
		case n.Status != "" && time.Since(told) > statusPoll:
			told = time.Now()
			m.awaited = "waiting for the guest to have booted: " + n.Status
			m.notify("STATUS=" + m.running())
		}
	})
	m.warn("what the guest says is not heard any more: %v", err)
}

// followReadiness shows in the status what is found out about the guest.
func (m *monitor) followReadiness(ctx context.Context) {
	tick := time.NewTicker(statusPoll)
	defer tick.Stop()
	for {
		var r hypervisor.Readiness
		// Where it is not there yet, and where it is broken, nothing is known.
		b, err := os.ReadFile(m.paths.Readiness(m.vm))
		if err == nil && json.Unmarshal(b, &r) == nil && m.toldReady(r) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// toldReady says whether there is no more to come.
func (m *monitor) toldReady(r hypervisor.Readiness) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	text := ""
	if !r.Ready {
		text = "not ready: " + r.Text
	}
	if text == m.awaited {
		return r.Ready
	}
	m.awaited = text
	if !m.log.Ends(hypervisor.Paused) && !m.log.Ends(hypervisor.ShutDown) {
		m.notify("STATUS=" + m.running())
	}
	return r.Ready
}

// ready waits until the guest is ready, as the definition asks that the machine
// was started with.
func (a app) ready(ctx context.Context) error {
	record, err := readRecord(a.paths, a.vm)
	if err != nil {
		return err
	}
	dir, err := openRuntimeDir(a.paths, a.vm)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the machine does not run")
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	w := readyWait{app: a, dir: dir, record: record}
	l := record.Machine.Lifecycle
	if l.ReadyTimeout != config.Infinity {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(l.ReadyTimeout))
		defer cancel()
	}
	a.notify("STATUS=" + w.what() + " is waited for")
	r, err := w.wait(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		r.Text = fmt.Sprintf("%s took longer than %s", w.what(), l.ReadyTimeout)
		err = fmt.Errorf("%s took longer than lifecycle.ready_timeout, %s; the machine runs on", w.what(), l.ReadyTimeout)
	case err != nil:
		return err
	case l.Ready == "started":
		return nil
	}
	b, marshalErr := json.Marshal(r)
	if marshalErr != nil {
		return marshalErr
	}
	return errors.Join(err, dir.put(a.paths.Readiness(a.vm), b, 0o600))
}

// readyWait waits for one guest.
type readyWait struct {
	app
	dir    runtimeDir
	record hypervisor.Record
}

// what is waited for.
func (w readyWait) what() string {
	if w.record.Machine.Lifecycle.Ready == "agent" {
		return "the guest agent's answer"
	}
	return "the guest's boot"
}

// wait ends when the guest is ready, with an error where it will not be.
func (w readyWait) wait(ctx context.Context) (hypervisor.Readiness, error) {
	incoming := w.record.Incoming
	switch ready := w.record.Machine.Lifecycle.Ready; {
	case ready == "started":
		return hypervisor.Readiness{Ready: true}, nil
	case incoming != nil && incoming.Paused:
		return hypervisor.Readiness{Ready: true, Text: "it went on from a saved state, paused"}, nil
	case incoming != nil && ready == "notify":
		return hypervisor.Readiness{Ready: true, Text: "it went on from a saved state"}, nil
	}
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		ready, err := w.look(ctx)
		if ready || err != nil {
			return hypervisor.Readiness{Ready: ready}, err
		}
		select {
		case <-ctx.Done():
			return hypervisor.Readiness{}, ctx.Err()
		case <-tick.C:
		}
	}
}

// look says whether the guest is ready. The error is that it will not be.
func (w readyWait) look(ctx context.Context) (bool, error) {
	var told hypervisor.Readiness
	if err := w.dir.getJSON(w.paths.Readiness(w.vm), &told); err == nil && told.Ready {
		return true, nil
	}
	listens, err := w.listens(ctx)
	switch {
	case access.Nobody(err):
		return false, errors.New("the machine ended before its guest was ready")
	case w.record.Machine.Lifecycle.Ready == "notify":
		return false, w.monitorHears()
	case err != nil || !listens:
		return false, nil // its hypervisor may be busy
	}
	socket, done, err := access.Socket(w.paths.AgentSocket(w.vm))
	if err != nil {
		return false, nil
	}
	defer done()
	hello, cancel := context.WithTimeout(ctx, agentHello)
	defer cancel()
	agent, err := guestagent.Dial(hello, socket)
	if err != nil {
		return false, nil
	}
	return true, agent.Close()
}

// listens says whether anything in the guest listens where an agent would.
func (w readyWait) listens(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	c, err := access.Connect(ctx, w.startedWith().hv, w.paths.ControlSocket(w.vm))
	if err != nil {
		return false, err
	}
	defer c.Close()
	if watcher, ok := c.(hypervisor.AgentWatcher); ok {
		return watcher.AgentListens(ctx)
	}
	return true, nil
}

// monitorHears is an error where nobody would hear from the guest. Who writes the
// number of another process there has itself waited for.
func (w readyWait) monitorHears() error {
	b, err := w.dir.get(w.paths.MonitorPID(w.vm))
	if err != nil {
		return nil // is about to be there
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil
	}
	p, err := openProcess(pid)
	if errors.Is(err, unix.ESRCH) {
		return errors.New("its monitor, which would hear from the guest, has ended")
	}
	if err == nil {
		p.close()
	}
	return nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/console"
)

const (
	// sigPowerOff is SIGRTMIN+4, by which machinectl poweroff asks a machine's
	// leader to shut down (systemd-machined.service(8)). 34 is glibc's
	// SIGRTMIN, and so systemd's.
	sigPowerOff = syscall.Signal(34 + 4)

	controlTimeout = 5 * time.Second // for one call to the hypervisor
	// drainTimeout is how long after the hypervisor's end the rest of its
	// console is waited for.
	drainTimeout   = 2 * time.Second
	journalTimeout = time.Second // for the last lines

	minScrollback = 1 << 20 // bytes
)

// monitor is the process beside the hypervisor. If it dies, the machine runs
// on.
type monitor struct {
	app
	pid    int // of the hypervisor
	record hypervisor.Record
	hv     hypervisor.Hypervisor

	listener net.Listener
	events   net.Conn
	console  stream // nil where the machine has none
	guest    int    // listens to the guest's service manager; 0 where nobody does

	mu       sync.Mutex
	log      hypervisor.EventLog
	rebooted time.Time // the last time; not counted, since firmware may reset twice for one reboot
	awaited  string    // what the guest's start is waited for by, "" for nothing
}

// stream is our end of the console: of a socket pair, or a terminal.
type stream interface {
	io.Reader
	console.Input
}

// monitor is the command.
func (a app) monitor() error {
	m, err := a.newMonitor()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go m.signals(ctx)
	m.watch(ctx)
	return nil
}

func (a app) newMonitor() (*monitor, error) {
	record, err := readVMJSON(a.paths.VMJSON(a.vm))
	if err != nil {
		return nil, err
	}
	m := &monitor{app: a, record: record}
	if m.hv, err = hypervisorOf(record); err != nil {
		return nil, err
	}
	if err := m.parse(a.args); err != nil {
		return nil, err
	}
	m.log.PID = m.pid
	if err := m.writeLog(); err != nil {
		return nil, err
	}
	if err := replace(a.paths.MonitorPID(a.vm), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return nil, err
	}
	debug.FreeOSMemory() // what reading the definition took
	return m, nil
}

// parse reads PID [events=FD] [console=FD] [notify=FD]; descriptor 3 is the console's
// listening socket.
func (m *monitor) parse(args []string) (err error) {
	if len(args) == 0 {
		return errors.New("want monitor NAME PID [events=FD] [console=FD] [notify=FD]")
	}
	if m.pid, err = strconv.Atoi(args[0]); err != nil {
		return err
	}
	f := os.NewFile(firstDescriptor, "console.sock")
	m.listener, err = net.FileListener(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("descriptor %d: %w", firstDescriptor, err)
	}
	for _, arg := range args[1:] {
		use, number, _ := strings.Cut(arg, "=")
		fd, err := strconv.Atoi(number)
		if err != nil {
			return err
		}
		if use == notifyName { // of a kind that package net does not know
			m.guest = fd
			unix.CloseOnExec(fd)
			continue
		}
		f := os.NewFile(uintptr(fd), use)
		if hypervisor.Use(use) == hypervisor.Console && m.record.Plan.Terminal {
			m.console = f
			continue
		}
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
		switch hypervisor.Use(use) {
		case hypervisor.Events:
			m.events = conn
		case hypervisor.Console:
			m.console = conn
		}
	}
	if m.events == nil {
		return errors.New("no connection for events")
	}
	return nil
}

// watch serves the console and follows what happens, until the hypervisor has
// ended.
func (m *monitor) watch(ctx context.Context) {
	var input console.Input
	if m.console != nil {
		input = m.console
	}
	server := console.NewServer(max(minScrollback, int(m.record.Machine.Console.Scrollback)), input)
	go server.Serve(m.listener)
	lines := console.NewLines(m.logLine)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		if m.console != nil {
			m.readConsole(server, lines)
		}
	}()

	if err := m.hv.Watch(ctx, m.events, func(e hypervisor.Event) { m.happened(ctx, e) }); err != nil {
		m.warn("lost the hypervisor's events: %v", err)
		// The machine may run on without; its console ends with it.
		if m.console != nil {
			<-drained
		}
	}
	select {
	case <-drained:
	case <-time.After(drainTimeout):
	}
	m.listener.Close()
	server.Close()
	lines.Close(journalTimeout)
}

// readConsole takes what the guest writes, always and at once.
func (m *monitor) readConsole(server *console.Server, lines *console.Lines) {
	p := make([]byte, 4<<10)
	for {
		n, err := m.console.Read(p)
		server.Write(p[:n])
		if m.record.Machine.Console.Journal {
			lines.Write(p[:n])
		}
		if err != nil {
			// A terminal without anybody at its other end is EIO.
			if err != io.EOF && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EIO) {
				m.warn("read the console: %v", err)
			}
			return
		}
	}
}

// logLine writes a line of the console to the journal, under a name that tells
// the machines apart for who follows all. Where there is no journal, the
// scrollback has it.
func (m *monitor) logLine(line string) {
	journal.Send(line, journal.PriInfo, map[string]string{
		"VMCTL_VM":          m.vm,
		"VMCTL_STREAM":      "console",
		"SYSLOG_IDENTIFIER": m.vm + "/console",
	})
}

// happened tells systemd what the machine does, and keeps what cleanup has to
// know.
func (m *monitor) happened(ctx context.Context, e hypervisor.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch e.Kind {
	case hypervisor.Started:
		if m.record.Incoming == nil { // else its links may be others by now
			m.unplugCables()
		}
		// The console's socket listens since before the hypervisor was there.
		m.awaitGuest(ctx)
		m.notify("READY=1\nSTATUS=" + m.running())
	case hypervisor.Loading:
		// What has to be done before the CPUs may run is for root to do, once
		// systemd takes the machine for started.
		m.notify("READY=1\nSTATUS=Loading the saved state")
	case hypervisor.Resumed:
		if m.record.Incoming != nil {
			m.awaitGuest(ctx)
		}
		m.notify("STATUS=" + m.running())
	case hypervisor.Paused:
		if m.log.Ends(hypervisor.Panicked) {
			break // which is why
		}
		m.notify("STATUS=Paused")
	case hypervisor.Rebooted:
		m.rebooted = time.Now()
		m.notify("STATUS=" + m.running())
		m.log.Reboot()
	case hypervisor.Panicked:
		m.notify("STATUS=Guest panicked")
		if _, leaves := m.hv.(hypervisor.PanicWatcher); leaves {
			go m.onPanic()
		}
	case hypervisor.Watchdog:
		m.notify("STATUS=Guest did not feed its watchdog")
	case hypervisor.IOError:
		m.notify("STATUS=Disk error: " + oneLine(e.Detail))
	case hypervisor.ShutDown:
		m.notify("STATUS=Shut down")
	}
	if h, ok := happenings[e.Kind]; ok {
		m.event(h.kind, h.priority, strings.TrimSuffix(h.text+": "+e.Detail, ": "), e.Detail)
	}
	switch e.Kind {
	case hypervisor.Rebooted, hypervisor.AgentConnected, hypervisor.AgentDisconnected:
		// Not why it ends; and a guest could push out what is.
	default:
		m.log.Add(e)
	}
	if err := m.writeLog(); err != nil {
		m.warn("%v", err)
	}
}

// onPanic does what the definition wants when the guest has panicked, where the
// hypervisor does not. With "restart" it is cleanup that has the unit fail.
func (m *monitor) onPanic() {
	var err error
	switch m.record.Machine.Lifecycle.OnPanic {
	case "restart", "poweroff":
		err = m.control(context.Background(), hypervisor.Control.Quit)
	case "pause":
		err = m.control(context.Background(), hypervisor.Control.Pause)
	}
	if err != nil {
		m.warn("after the guest's panic: %v", err)
	}
}

// unplugCables has the guest see no carrier where a card's link is to be down.
// Nothing passes there anyway: of a card with an interface, that is down.
func (m *monitor) unplugCables() {
	for _, n := range m.record.Machine.NICs {
		if n.Link != "down" {
			continue
		}
		err := m.control(context.Background(), func(c hypervisor.Control, ctx context.Context) error {
			links, ok := c.(hypervisor.NICHotplug)
			if !ok {
				return errors.New("its hypervisor cannot set the link of a card")
			}
			return links.SetLink(ctx, n.Name, false)
		})
		if err != nil {
			m.warn("%s.link: %v", n.Key(), err)
		}
	}
}

// running is the status of a machine that runs.
func (m *monitor) running() string {
	text := "Running"
	if !m.rebooted.IsZero() {
		text += ", guest rebooted at " + m.rebooted.Format(time.DateTime)
	}
	if m.awaited != "" {
		text += ", " + m.awaited
	}
	return text
}

func (m *monitor) writeLog() error {
	b, err := json.Marshal(m.log)
	if err != nil {
		return err
	}
	return replace(m.paths.Events(m.vm), b, 0o600)
}

// replace writes a file of the machine's user, whole or not at all.
func replace(path string, content []byte, mode os.FileMode) error {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(temp, content, 0o600); err != nil {
		return err
	}
	if err := os.Chmod(temp, mode); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// signals does what machinectl asks of the leader of a machine. The others are
// not for the monitor: it ends with the hypervisor.
func (m *monitor) signals(ctx context.Context) {
	c := make(chan os.Signal, 4)
	signal.Notify(c, sigPowerOff, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	for s := range c {
		var err error
		switch s {
		case sigPowerOff:
			m.info("asked to power off: pressing the guest's power button")
			err = m.control(ctx, hypervisor.Control.PowerButton)
		case syscall.SIGINT:
			m.info("asked to reboot: pressing the guest's Ctrl-Alt-Del")
			err = m.control(ctx, ctrlAltDel)
		}
		if err != nil {
			m.warn("%v", err)
		}
	}
}

// ctrlAltDel asks the guest to reboot, or resets it where it has no keyboard.
func ctrlAltDel(c hypervisor.Control, ctx context.Context) error {
	if keys, ok := c.(hypervisor.KeySender); ok {
		return keys.SendKeys(ctx, 0, "ctrl", "alt", "delete")
	}
	return c.Reset(ctx)
}

// control makes one call on the control socket.
func (m *monitor) control(ctx context.Context, call func(hypervisor.Control, context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	c, err := m.hv.Control(ctx, m.paths.ControlSocket(m.vm))
	if err != nil {
		return err
	}
	defer c.Close()
	return call(c, ctx)
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"log"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// change is what has become of a machine.
type change int

const (
	vmCreated change = iota
	vmStarted
	vmStopped
	vmDeleted
)

// vmEvent is a change of a machine.
type vmEvent struct {
	change  change
	time    time.Time
	id      string
	name    string
	machine *machine // as it was then, nil where it is gone
}

const (
	// watchQueue is how many events may wait for a subscriber.
	watchQueue = 1024
	// watchTime is how often it is looked whether files have come or gone by other
	// hands than vmctl's.
	watchTime = time.Second
)

// watchers tells any number of subscribers what happens to machines. While there
// is one, it follows what vmctl events says, which has all starts and ends, in their
// order; whenever that may differ from what is there, what is there is looked up,
// and subscribers are told the difference.
type watchers struct {
	s *server

	mu     sync.Mutex
	subs   map[*subscriber]bool
	known  map[string]known // by name
	cancel context.CancelFunc
}

// known is what subscribers know of a machine.
type known struct {
	id string
	up bool // it was told that it has started
}

// subscriber is one of them.
type subscriber struct {
	events chan vmEvent
	lost   chan struct{} // closed when one could not be kept
	once   sync.Once
}

func newWatchers(s *server) *watchers {
	return &watchers{s: s, subs: map[*subscriber]bool{}}
}

// subscribe returns what there is, and a subscriber to what happens afterwards.
func (w *watchers) subscribe(ctx context.Context) (*subscriber, []*machine, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.subs) == 0 {
		w.begin()
	}
	present, err := w.reconcile(ctx)
	if err != nil {
		w.endUnused()
		return nil, nil, err
	}
	sub := &subscriber{events: make(chan vmEvent, watchQueue), lost: make(chan struct{})}
	w.subs[sub] = true
	return sub, present, nil
}

func (w *watchers) unsubscribe(sub *subscriber) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.subs, sub)
	w.endUnused()
}

// begin follows what happens from now on; w.mu is held.
func (w *watchers) begin() {
	ctx, cancel := context.WithCancel(w.s.ending)
	w.cancel, w.known = cancel, nil
	since := time.Now()
	w.s.background.Go(func() { w.follow(ctx, since) })
	w.s.background.Go(func() { w.poll(ctx) })
}

// endUnused ends following where nobody is subscribed; w.mu is held.
func (w *watchers) endUnused() {
	if len(w.subs) == 0 && w.cancel != nil {
		w.cancel()
		w.cancel = nil
	}
}

// isUp says whether a machine in a state counts as started.
func isUp(state string) bool {
	return state == running || state == paused || state == stopping || state == saving
}

// reconcile finds all machines, and tells subscribers what they do not know yet.
// w.mu is held.
func (w *watchers) reconcile(ctx context.Context) ([]*machine, error) {
	all, err := w.s.machines(ctx)
	if err != nil {
		return nil, err
	}
	now, gone := time.Now(), maps.Clone(w.known)
	first := w.known == nil
	if first {
		w.known = map[string]known{}
	}
	for _, m := range all {
		before, was := w.known[m.Name]
		if was && m.vm.ID == "" { // its definition cannot be read now
			m.knownAs = before.id
		}
		if was && before.id != m.id() { // deleted and made again
			w.forget(m.Name, now)
			was = false
		}
		delete(gone, m.Name)
		up := isUp(m.State)
		if was && (m.State == stopping || m.State == saving) {
			// Its end may have been told already.
			up = before.up
		}
		switch {
		case first:
			w.known[m.Name] = known{m.id(), up}
		case !was:
			w.known[m.Name] = known{m.id(), false}
			w.tell(vmEvent{vmCreated, m.created, m.id(), m.Name, m})
			w.turn(m, up, now)
		default:
			w.turn(m, up, now)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(gone)) {
		w.forget(name, now)
	}
	return all, nil
}

// turn tells that a machine has started or stopped, where that is news.
func (w *watchers) turn(m *machine, up bool, at time.Time) {
	k := w.known[m.Name]
	if k.up == up {
		return
	}
	w.known[m.Name] = known{k.id, up}
	if up {
		w.tell(vmEvent{vmStarted, at, k.id, m.Name, m})
	} else {
		w.tell(vmEvent{vmStopped, at, k.id, m.Name, m})
	}
}

// forget tells that a machine is gone.
func (w *watchers) forget(name string, at time.Time) {
	k, was := w.known[name]
	if !was {
		return
	}
	if k.up {
		w.tell(vmEvent{vmStopped, at, k.id, name, nil})
	}
	delete(w.known, name)
	w.tell(vmEvent{vmDeleted, at, k.id, name, nil})
}

func (w *watchers) tell(e vmEvent) {
	for sub := range w.subs {
		select {
		case sub.events <- e:
		default:
			sub.once.Do(func() { close(sub.lost) })
		}
	}
}

// poll notices files that come and go.
func (w *watchers) poll(ctx context.Context) {
	tick := time.NewTicker(watchTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		w.mu.Lock()
		if ctx.Err() == nil && w.known != nil && !w.sameNames() {
			if _, err := w.reconcile(ctx); err != nil {
				log.Printf("watching: %v", err)
			}
		}
		w.mu.Unlock()
	}
}

// sameNames says whether the machines known are those that are defined or run.
func (w *watchers) sameNames() bool {
	names := map[string]bool{}
	for _, dir := range w.s.paths.VMDirs {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if name, ok := strings.CutSuffix(e.Name(), ".toml"); ok {
				names[name] = true
			}
		}
	}
	for name, k := range w.known {
		if !names[name] && !k.up {
			return false
		}
	}
	for name := range names {
		if _, is := w.known[name]; !is && !w.masked(name) {
			return false
		}
	}
	return true
}

// masked says whether a definition is one of nothing.
func (w *watchers) masked(name string) bool {
	for _, dir := range w.s.paths.VMDirs {
		if info, err := os.Stat(dir + "/" + name + ".toml"); err == nil {
			return info.Size() == 0
		}
	}
	return true
}

// follow reads what vmctl events says, from a time on, until ctx ends.
func (w *watchers) follow(ctx context.Context, since time.Time) {
	for ctx.Err() == nil {
		last, err := w.followOnce(ctx, since)
		if ctx.Err() != nil {
			return
		}
		// As when journald is started again.
		log.Printf("vmctl events has ended, and is started again: %v", err)
		since = last
		select {
		case <-ctx.Done():
		case <-time.After(watchTime):
		}
	}
}

func (w *watchers) followOnce(ctx context.Context, since time.Time) (time.Time, error) {
	cmd := exec.CommandContext(ctx, w.s.commands.program, "-o", "json", "events", "--since", "@"+strconv.FormatInt(since.Unix(), 10))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return since, err
	}
	if err := cmd.Start(); err != nil {
		return since, err
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		var e journalEvent
		if json.Unmarshal(line, &e) == nil && e.VM != "" {
			since = e.Time
			w.happened(ctx, e)
		}
		if err != nil {
			return since, cmd.Wait()
		}
	}
}

// journalEvent is a line of vmctl events -o json.
type journalEvent struct {
	Time      time.Time `json:"time"`
	VM        string    `json:"vm"`
	Event     string    `json:"event"`
	Detail    string    `json:"detail"`
	Operation string    `json:"operation"`
	User      string    `json:"user"`
	Seconds   float64   `json:"seconds"`
	Failed    bool      `json:"failed"`
}

// happened tells what an event comes to.
func (w *watchers) happened(ctx context.Context, e journalEvent) {
	up := e.Event == "started"
	ended := e.Event == "ended" || e.Event == "stopped" || e.Event == "failed"
	defined := e.Event == "operation" && (e.Operation == "create" || e.Operation == "delete") && !e.Failed
	if !up && !ended && !defined {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() != nil || w.known == nil {
		return
	}
	k, is := w.known[e.VM]
	if !is || defined {
		if _, err := w.reconcile(ctx); err != nil {
			log.Printf("watching: %v", err)
		}
		return
	}
	if k.up == up {
		return
	}
	m, err := w.s.machineNamed(ctx, e.VM)
	if err != nil {
		log.Printf("watching %s: %v", e.VM, err)
		m = nil
	}
	w.known[e.VM] = known{k.id, up}
	if up {
		w.tell(vmEvent{vmStarted, e.Time, k.id, e.VM, m})
	} else {
		w.tell(vmEvent{vmStopped, e.Time, k.id, e.VM, m})
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

// world is a machine that behaves in some way, and what was done to it, with
// the time of each.
type world struct {
	start  time.Time
	status hypervisor.Status
	err    error         // of every call
	hangs  bool          // calls end with their context alone
	slow   bool          // the guest ends before the press of its button is answered
	agent  bool          // answers
	off    time.Duration // the guest needs to shut down once asked; 0: ignores it
	deaf   int           // presses of the button that the guest ignores first
	quits  bool
	terms  bool

	once *sync.Once
	gone chan struct{}
	did  []string
}

func (w *world) do(what string) {
	w.did = append(w.did, fmt.Sprintf("%v %s", time.Since(w.start).Round(time.Millisecond), what))
}

func (w *world) begin() { w.start, w.gone, w.once = time.Now(), make(chan struct{}), new(sync.Once) }

func (w *world) end() { w.once.Do(func() { close(w.gone) }) }

func (w *world) call(what string, then func()) func(context.Context) error {
	return func(ctx context.Context) error {
		if w.hangs {
			<-ctx.Done()
			return ctx.Err()
		}
		if w.err != nil {
			return w.err
		}
		w.do(what)
		then()
		return nil
	}
}

func (w *world) guestShutsDown() {
	if w.deaf--; w.deaf < 0 && w.off > 0 {
		time.AfterFunc(w.off, w.end)
	}
}

func (w *world) stopper(timeout time.Duration) *stopper {
	return &stopper{
		status: func(ctx context.Context) (hypervisor.Status, error) {
			if w.hangs {
				<-ctx.Done()
				return "", ctx.Err()
			}
			return w.status, w.err
		},
		resume: w.call("resume", func() {}),
		button: w.call("button", func() {
			w.guestShutsDown()
			if w.slow {
				<-w.gone
				time.Sleep(time.Second)
			}
		}),
		quit: w.call("quit", func() {
			if w.quits {
				w.end()
			}
		}),
		agent: func(ctx context.Context) error {
			if w.hangs {
				<-ctx.Done()
				return ctx.Err()
			}
			if !w.agent {
				return errors.New("no agent")
			}
			w.do("agent")
			w.guestShutsDown()
			return nil
		},
		signal: func(s unix.Signal) error {
			w.do(unix.SignalName(s))
			if s == unix.SIGKILL || w.terms {
				w.end()
			}
			return nil
		},
		gone:    w.gone,
		say:     func(string, ...any) {},
		timeout: timeout,
	}
}

func TestStop(t *testing.T) {
	presses := []string{"0s button", "2s button", "10s button", "30s button", "50s button", "1m10s button",
		"1m30s button", "1m50s button", "2m10s button", "2m30s button"}
	broken := errors.New("connection refused")
	for _, test := range []struct {
		name  string
		world world
		want  stopNote
		did   []string
	}{
		{"the guest shuts down", world{status: hypervisor.StatusRunning, off: time.Second},
			stopNote{Asked: "power button", Ended: endedByGuest, Took: time.Second}, []string{"0s button"}},
		{"the guest hears the third press", world{status: hypervisor.StatusRunning, off: time.Second, deaf: 2},
			stopNote{Asked: "power button", Ended: endedByGuest, Took: 11 * time.Second}, presses[:3]},
		{"the guest is faster than the answer", world{status: hypervisor.StatusRunning, off: time.Second, slow: true},
			stopNote{Asked: "power button", Ended: endedByGuest, Took: time.Second}, []string{"0s button"}},
		{"the agent answers", world{status: hypervisor.StatusRunning, agent: true, off: 5 * time.Second},
			stopNote{Asked: "guest agent", Ended: endedByGuest, Took: 5 * time.Second}, []string{"0s agent"}},
		{"the agent answers and nothing happens", world{status: hypervisor.StatusRunning, agent: true, off: time.Second, deaf: 1},
			stopNote{Asked: "guest agent", Ended: endedByGuest, Took: 11 * time.Second}, []string{"0s agent", "10s button"}},
		{"paused", world{status: hypervisor.StatusPaused, off: time.Second},
			stopNote{Asked: "power button", Ended: endedByGuest, Took: time.Second}, []string{"0s resume", "0s button"}},
		{"panicked", world{status: hypervisor.StatusPanicked, quits: true},
			stopNote{Ended: endedByQuit, Why: "the guest has panicked"}, []string{"0s quit"}},
		{"ignores the button", world{status: hypervisor.StatusRunning, quits: true},
			stopNote{Asked: "power button", Ended: endedByQuit, Why: "the guest has not shut down in 2m45s", Took: 165 * time.Second},
			append(slices.Clone(presses), "2m45s quit")},
		{"does not quit", world{status: hypervisor.StatusRunning, terms: true},
			stopNote{Asked: "power button", Ended: endedByTerm, Why: "the guest has not shut down in 2m45s", Took: 172500 * time.Millisecond},
			append(slices.Clone(presses), "2m45s quit", "2m52.5s SIGTERM")},
		{"ignores everything", world{status: hypervisor.StatusRunning},
			stopNote{Asked: "power button", Ended: endedByKill, Why: "the guest has not shut down in 2m45s", Took: 176250 * time.Millisecond},
			append(slices.Clone(presses), "2m45s quit", "2m52.5s SIGTERM", "2m56.25s SIGKILL")},
		{"control socket dead", world{err: broken, terms: true},
			stopNote{Ended: endedByTerm, Why: "the guest cannot be asked to shut down", Took: 10 * time.Second}, []string{"10s SIGTERM"}},
		{"control socket dead, the agent is not", world{err: broken, agent: true, off: 20 * time.Second},
			stopNote{Asked: "guest agent", Ended: endedByGuest, Took: 20 * time.Second}, []string{"0s agent"}},
		{"control socket hogged", world{hangs: true, terms: true},
			stopNote{Ended: endedByTerm, Why: "the guest cannot be asked to shut down", Took: 14 * time.Second}, []string{"14s SIGTERM"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &test.world
				w.begin()
				note := w.stopper(3 * time.Minute).stop(t.Context())
				time.Sleep(time.Minute) // the answer has come too
				if note != test.want {
					t.Errorf("got %+v\nwant %+v", note, test.want)
				}
				if !slices.Equal(w.did, test.did) {
					t.Errorf("did %q\nwant %q", w.did, test.did)
				}
			})
		})
	}
}

// However the machine behaves, it is over within the time given.
func TestStopIsInTime(t *testing.T) {
	for _, timeout := range []time.Duration{0, time.Second, 5 * time.Second, 30 * time.Second, 3 * time.Minute, time.Hour} {
		for _, w := range []world{
			{status: hypervisor.StatusRunning},
			{status: hypervisor.StatusPaused},
			{hangs: true},
			{err: errors.New("garbage")},
		} {
			synctest.Test(t, func(t *testing.T) {
				w.begin()
				note := w.stopper(timeout).stop(t.Context())
				if note.Ended != endedByKill || note.Took > timeout+time.Second {
					t.Errorf("%v, %+v: got %+v", timeout, w, note)
				}
			})
		}
	}
}

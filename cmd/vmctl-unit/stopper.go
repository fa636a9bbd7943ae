package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

// stopNote is how far a stop had to go: the content of paths.StopNote.
type stopNote struct {
	Asked string        `json:"asked,omitempty"` // how the guest was asked to shut down, if it was
	Ended ending        `json:"ended,omitempty"` // what ended the machine; "" while the stop goes on
	Why   string        `json:"why,omitempty"`   // the guest was not waited for, or not for longer
	Cut   string        `json:"cut,omitempty"`   // the guest was not to be asked
	Took  time.Duration `json:"took,omitempty"`
}

// ending is what ended a machine that was stopped.
type ending string

const (
	endedByGuest ending = "guest"
	endedByQuit  ending = "quit"
	endedByTerm  ending = "SIGTERM"
	endedByKill  ending = "SIGKILL"
	notEnded     ending = "nothing"
)

// stages are when a stop goes on to the next means, counted from its start.
type stages struct {
	quit, term, kill time.Duration
}

// stagesOf divides the time that a stop has in all: nearly all is the guest's.
func stagesOf(timeout time.Duration) stages {
	reserve := min(15*time.Second, timeout/3)
	return stages{
		quit: timeout - reserve,
		term: timeout - reserve/2,
		kill: timeout - reserve/4,
	}
}

// press is when the power button is pressed for the nth time (from 0), counted
// from the start: at once, again soon for a guest that was not ready to listen
// yet, then from time to time, since some guests drop what comes too early or
// ask for it twice.
func press(n int) time.Duration {
	early := []time.Duration{0, 2 * time.Second, 10 * time.Second}
	if n < len(early) {
		return early[n]
	}
	return early[len(early)-1] + time.Duration(n-len(early)+1)*20*time.Second
}

const (
	callTimeout  = 2 * time.Second        // for one call to the hypervisor
	agentTimeout = 700 * time.Millisecond // for the guest agent to say that it is there
	askTimeout   = 4 * time.Second        // for it to take the request, that included
	// giveUp is how long a hypervisor that does not answer is tried before it
	// is ended without the guest.
	giveUp = 10 * time.Second
)

// stopper ends one machine. What it does to the world is functions, so that
// its times can be tested.
type stopper struct {
	status  func(context.Context) (hypervisor.Status, error)
	resume  func(context.Context) error
	button  func(context.Context) error
	quit    func(context.Context) error
	agent   func(context.Context) error // asks the guest agent to shut down
	signal  func(unix.Signal) error     // to the main process
	gone    <-chan struct{}             // closed when the main process has ended
	say     func(format string, args ...any)
	timeout time.Duration

	start time.Time
	note  stopNote
}

// stop ends the machine in the time it has: by the guest, or by force.
func (s *stopper) stop(ctx context.Context) stopNote {
	s.start = time.Now()
	at := stagesOf(s.timeout)
	s.note.Ended = s.end(ctx, at)
	s.note.Took = time.Since(s.start)
	return s.note
}

func (s *stopper) end(ctx context.Context, at stages) ending {
	if s.note.Why = s.note.Cut; s.note.Why == "" {
		s.note.Why = s.ask(ctx, at.quit)
	}
	if s.note.Why == "" {
		return endedByGuest
	}
	s.say("%s: ending the hypervisor", s.note.Why)
	if err := s.call(ctx, s.quit); err != nil && err != errGone {
		s.say("the hypervisor does not quit: %v", err)
	} else if s.stage(at.quit, at.term) {
		return endedByQuit
	}
	s.say("sending SIGTERM")
	if err := s.signal(unix.SIGTERM); err != nil {
		s.say("SIGTERM: %v", err)
	}
	if s.stage(at.term, at.kill) {
		return endedByTerm
	}
	s.say("sending SIGKILL")
	if err := s.signal(unix.SIGKILL); err != nil {
		s.say("SIGKILL: %v", err)
	}
	if s.wait(max(s.timeout, time.Since(s.start)+time.Second)) {
		return endedByKill
	}
	return notEnded
}

// stage waits for the machine's end as long as the stage between two times
// lasts, or to its end where it began late.
func (s *stopper) stage(from, to time.Duration) bool {
	return s.wait(min(to, time.Since(s.start)+to-from))
}

// ask has the guest shut down and waits for it until the given time after the
// start. The answer is why not; "" if it has.
func (s *stopper) ask(ctx context.Context, until time.Duration) (why string) {
	status, err := s.running(ctx)
	switch {
	case err != nil:
		s.say("the hypervisor does not answer: %v", err)
	case status == hypervisor.StatusPanicked:
		return "the guest has panicked"
	case status == hypervisor.StatusStopping:
		s.say("the guest has shut down already")
	case status == hypervisor.StatusPaused:
		s.say("resuming the guest, so that it can shut down")
		if err := s.call(ctx, s.resume); err != nil {
			s.say("resume: %v", err)
		}
	}

	n, reached := 0, err == nil && status == hypervisor.StatusStopping
	if s.askAgent(ctx) {
		n, reached = 2, true // the button, in case that leads to nothing
	}
	for ; ; n++ {
		next := max(press(n), time.Since(s.start))
		if next >= until || !reached && next >= giveUp+callTimeout {
			break
		}
		if s.wait(next) {
			return ""
		}
		// A guest may be faster than the answer.
		if err := s.call(ctx, s.button); err != nil && err != errGone {
			s.say("the power button cannot be pressed: %v", err)
			continue
		}
		if s.note.Asked == "" {
			s.note.Asked = "power button"
		}
		if reached = true; n == 0 {
			s.say("pressed the power button")
		} else {
			s.say("pressed the power button again")
		}
	}
	if !reached {
		if s.wait(min(until, giveUp)) {
			return ""
		}
		return "the guest cannot be asked to shut down"
	}
	if s.wait(until) {
		return ""
	}
	return fmt.Sprintf("the guest has not shut down in %v", time.Since(s.start).Round(time.Second))
}

// running is the machine's status.
func (s *stopper) running(ctx context.Context) (hypervisor.Status, error) {
	got := make(chan hypervisor.Status, 1)
	err := s.call(ctx, func(ctx context.Context) error {
		status, err := s.status(ctx)
		got <- status
		return err
	})
	if err != nil {
		return "", err
	}
	return <-got, nil
}

// askAgent says whether the guest agent took the request. That there is none is
// the most common thing.
func (s *stopper) askAgent(ctx context.Context) bool {
	ctx, cancel := s.limit(ctx, askTimeout)
	defer cancel()
	if err := s.agent(ctx); err != nil {
		return false
	}
	s.note.Asked = "guest agent"
	s.say("asked the guest agent to shut down")
	return true
}

var errGone = errors.New("has ended")

// call makes one call to the hypervisor, no longer than the machine lives; the
// error is then errGone.
func (s *stopper) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := s.limit(ctx, callTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err := <-done:
		return err
	case <-s.gone:
		return errGone
	}
}

// limit bounds one call: it may not take more than a quarter of the time that
// is left for everything.
func (s *stopper) limit(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	left := s.timeout - time.Since(s.start)
	return context.WithTimeout(ctx, min(most, max(left/4, 20*time.Millisecond)))
}

// wait waits for the machine's end until the given time after the start.
func (s *stopper) wait(until time.Duration) bool {
	timer := time.NewTimer(max(0, until-time.Since(s.start)))
	defer timer.Stop()
	select {
	case <-s.gone:
		return true
	case <-timer.C:
		select {
		case <-s.gone:
			return true
		default:
			return false
		}
	}
}

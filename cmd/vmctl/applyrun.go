package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/bus"
)

// run does all steps. Up to the reload, one that fails ends it, and files are put
// back as they were; after that, what can be done is done.
func (p *applyPlan) run(ctx context.Context) error {
	var done []*applyStep
	var errs []error
	for _, s := range p.steps {
		if s.phase > phaseReload {
			break
		}
		if err := p.step(ctx, s); err != nil {
			// Whoever has interrupted it wants that all the more.
			p.takeBack(context.WithoutCancel(ctx), s, done)
			return p.leave(err)
		}
		done = append(done, s)
	}
	for _, s := range p.steps {
		if s.phase == phaseNetworks || s.phase == phaseLive {
			errs = append(errs, p.step(ctx, s))
		}
	}
	errs = append(errs, p.startAll(ctx)...)
	if p.conn != nil {
		errs = append(errs, p.findPending(ctx))
	}
	if err := worst(errs); err != nil {
		return p.leave(err)
	}
	return nil
}

// step does one, and says what has come of it.
func (p *applyPlan) step(ctx context.Context, s *applyStep) error {
	begun := time.Now()
	defer func() {
		if p.opts.progress && p.ui.format == jsonFormat {
			p.ui.tellProgress(s)
		}
	}()
	text, err := "", ctx.Err()
	if err == nil && s.do != nil {
		text, err = s.do(ctx)
	}
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	name := s.label()
	if s.Kind == config.KindVM && s.File != "" {
		p.note(map[string]string{"create": string(opCreate), "change": string(opEdit), "remove": string(opDelete)}[s.Action], "", s.Name, begun, err)
	}
	if err != nil {
		_, told := errors.AsType[*statusError](err)
		err = inName(s.Action, name, err)
		s.Result, s.Error = stepFailed, new(newErrorJSON(err))
		if !told {
			p.ui.errorf(err)
		}
		return err
	}
	s.Result = stepDone
	if text != "" {
		p.ui.printf("%s: %s", name, text)
	}
	return nil
}

// takeBack undoes what was done before a step that has failed: it puts the files
// back, and starts what was stopped. An image more is in nobody's way.
func (p *applyPlan) takeBack(ctx context.Context, failed *applyStep, done []*applyStep) {
	if failed.phase == phaseStop { // systemd goes on with it, or has done a part
		done = append(done, failed)
	}
	p.undoFiles(ctx, done)
	if failed.phase == phaseReload && p.conn != nil { // of which a part may be done
		if err := p.conn.Reload(ctx); err != nil {
			p.ui.warnf("systemd has to read the definitions again: %v", err)
		}
	}
	p.undoStops(ctx, done)
}

// undoFiles puts files back, the last first.
func (p *applyPlan) undoFiles(ctx context.Context, done []*applyStep) {
	for _, s := range slices.Backward(done) {
		if s.phase == phaseFiles {
			p.undo(ctx, s)
		}
	}
}

// undoStops starts what was stopped, all at once: no job waits until that of another
// has ended, and systemd keeps the order.
func (p *applyPlan) undoStops(ctx context.Context, done []*applyStep) {
	var wg sync.WaitGroup
	for _, s := range done {
		if s.phase == phaseStop {
			wg.Go(func() { p.undo(ctx, s) })
		}
	}
	wg.Wait()
}

func (p *applyPlan) undo(ctx context.Context, s *applyStep) {
	if s.undo != nil {
		text, err := "", error(nil)
		if s.intact != nil {
			err = s.intact()
		}
		if err == nil {
			text, err = s.undo(ctx)
		}
		if err != nil {
			p.ui.warnf("%s: %s is not taken back: %v", s.label(), s.Action, err)
			return
		}
		if text != "" {
			p.ui.printf("%s: %s", s.label(), text)
		}
	}
	if s.Result == stepDone {
		s.Result = stepLeft
	}
}

const (
	// boundlessTime is for what has no times of its own to be started in, or may take
	// forever: the wait for it cannot be interrupted.
	boundlessTime = 5 * time.Minute
	// systemdTime is what systemd may take beyond a machine's own times.
	systemdTime = 30 * time.Second
)

// takeBackTime is how long a machine may take to run again: with what is left of its
// stop, where that was interrupted.
func takeBackTime(m *config.Machine) time.Duration {
	if m == nil {
		return boundlessTime
	}
	stop, start := m.Lifecycle.StopTimeout, m.Lifecycle.StartTimeout
	if stop > config.Infinity-config.Duration(systemdTime)-start {
		return boundlessTime
	}
	return time.Duration(stop+start) + systemdTime
}

// startAgain takes the stop of a machine back.
func (p *applyPlan) startAgain(name string) func(context.Context) (string, error) {
	limit := func() time.Duration {
		m, _ := p.load(name) // its file is put back by now
		return takeBackTime(m)
	}
	return p.started(config.Unit(name), limit, func(ctx context.Context) (string, error) {
		return p.noted(opStart, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
			begun := time.Now()
			if err := forget(ctx, conn, name); err != nil {
				return "", err
			}
			if err := conn.Start(ctx, config.Unit(name)); err != nil {
				return "", p.startError(ctx, conn, name, begun, err)
			}
			return "started again", nil
		})(ctx, p.conn, name)
	})
}

// startNetworkAgain takes the stop of a network back.
func (p *applyPlan) startNetworkAgain(name string) func(context.Context) (string, error) {
	return p.started(config.NetworkUnit(name), func() time.Duration { return boundlessTime }, func(ctx context.Context) (string, error) {
		if err := p.conn.Start(ctx, config.NetworkUnit(name)); err != nil {
			return "", networkJobError(ctx, p.conn, name, err)
		}
		return "started again", nil
	})
}

// started has a unit started that a stop may not have got to.
func (p *applyPlan) started(unit string, limit func() time.Duration, start func(context.Context) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, limit())
		defer cancel()
		units, err := p.conn.Units(ctx, unit)
		if err == nil && len(units) > 0 && units[0].Active == "active" && units[0].Job == "" {
			return "", nil
		}
		return start(ctx)
	}
}

// goBack has a machine that could not be restarted run as it was, where it was a file
// of its own that has changed. What follows from a template or the like stays: others
// may run with it by now.
func (p *applyPlan) goBack(ctx context.Context, name string) {
	l, err := p.lookAt(ctx, p.conn, name)
	if err != nil || l.active() {
		return
	}
	found, err := p.takeBackOwn(ctx, name)
	if !found {
		p.ui.warnf("%s: does not run any more", name)
		return
	}
	text := ""
	if err == nil {
		err = p.conn.Reload(ctx)
	}
	if err == nil {
		text, err = p.startAgain(name)(ctx)
	}
	if err != nil {
		p.ui.warnf("%s: does not run any more, nor with the definition that it had: %v", name, err)
		return
	}
	p.ui.printf("%s: %s, with the definition that it had", name, text)
}

// takeBackOwn puts back what has changed of a machine's own files, if anything has: none
// of them where somebody else has changed one since, for half of a definition is
// nobody's.
func (p *applyPlan) takeBackOwn(ctx context.Context, name string) (found bool, err error) {
	own := slices.DeleteFunc(slices.Clone(p.steps), func(s *applyStep) bool {
		return s.Kind != config.KindVM || s.Name != name || s.undo == nil || s.Result != stepDone
	})
	for _, s := range own {
		if s.intact != nil {
			err = errors.Join(err, s.intact())
		}
	}
	if err != nil {
		return true, err
	}
	p.undoFiles(ctx, own)
	if slices.ContainsFunc(own, func(s *applyStep) bool { return s.Result == stepDone }) {
		err = errors.New("not all of its files are put back")
	}
	return len(own) > 0, err
}

// leave says what was not done, after err.
func (p *applyPlan) leave(err error) error {
	var left []string
	for _, s := range p.steps {
		if s.Result == "" {
			s.Result = stepLeft
		}
		if s.Result == stepLeft || s.Result == stepFailed {
			left = append(left, s.Action+" "+s.label())
		}
	}
	if len(left) > 0 {
		p.ui.notef("left: %s", joinSteps(left))
	}
	return &statusError{fmt.Errorf("not all could be done: %w", err), exitFailed}
}

// joinSteps is a list for one line, however long.
func joinSteps(left []string) string {
	const most = 8
	text := ""
	for i, s := range left {
		if i == most {
			return fmt.Sprintf("%s and %d more", text, len(left)-most)
		}
		if i > 0 {
			text += ", "
		}
		text += s
	}
	return text
}

// applyLive has a machine that runs take what it can as it runs.
func (p *applyPlan) applyLive(ctx context.Context, name string) (string, error) {
	l, err := p.lookAt(ctx, p.conn, name)
	if err != nil || !l.active() {
		return "does not run any more", err
	}
	looks, names := []look{l}, []string{name}
	var errs []error
	text := "its cards are as defined"
	set, keys, err := p.followSettings(ctx, p.conn, l, defaultSetTimeout)
	errs = append(errs, err)
	if err == nil && len(keys) > 0 {
		text = "has taken what is defined: " + strings.Join(keys, ", ")
	}
	for key, reason := range set.Waiting {
		text += "; " + key + " waits for a restart: " + reason
	}
	if len(p.differingCards(l)) > 0 {
		_, err := p.reloadCards(ctx, p.conn, looks, names)
		errs = append(errs, err)
	}
	if p.filtersPending(l) {
		_, err := p.reloadFilters(ctx, p.conn, looks, names)
		errs = append(errs, err)
	}
	return text, worst(errs)
}

// startAll starts and restarts machines: those first that others name in after,
// requires or wants, and those at once that do not.
func (p *applyPlan) startAll(ctx context.Context) []error {
	waiting := map[string]*applyStep{}
	for _, s := range p.steps {
		if s.phase == phaseStart {
			waiting[s.Name] = s
		}
	}
	if len(waiting) == 0 {
		return nil
	}
	var names []string
	for name := range waiting {
		names = append(names, name)
	}
	f := &freshener{app: p.app, conn: p.conn, host: p.host}
	f.freshen(ctx, names)
	var errs []error
	for len(waiting) > 0 {
		wave := p.ready(waiting)
		results := make([]error, len(wave))
		type one struct {
			step *applyStep
			err  *error
		}
		var all []one
		for i, s := range wave {
			delete(waiting, s.Name)
			all = append(all, one{s, &results[i]})
		}
		inParallel(all, func(o *one) {
			do, op := p.start, opStart
			if o.step.Action == string(opRestart) {
				do, op = p.restart, opRestart
			}
			o.step.do = func(ctx context.Context) (string, error) {
				return p.noted(op, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
					return do(ctx, conn, f, waitOptions{}, name)
				})(ctx, p.conn, o.step.Name)
			}
			*o.err = p.step(ctx, o.step)
			// An interrupted one systemd goes on with.
			if _, ended := errors.AsType[*restartError](*o.err); ended && ctx.Err() == nil {
				p.goBack(ctx, o.step.Name)
			}
		})
		errs = append(errs, results...)
	}
	return errs
}

// ready are those of the waiting that wait for no other of them.
func (p *applyPlan) ready(waiting map[string]*applyStep) []*applyStep {
	var wave, all []*applyStep
	for _, l := range p.looks {
		s := waiting[l.vm.Name]
		if s == nil {
			continue
		}
		all = append(all, s)
		m := l.vm.Machine
		others := slices.Concat(m.After, m.Requires, m.Wants)
		if !slices.ContainsFunc(others, func(name string) bool { return waiting[name] != nil }) {
			wave = append(wave, s)
		}
	}
	if len(wave) == 0 { // wants may go in circles
		return all
	}
	return wave
}

// findPending finds the machines that still run with an older definition.
func (p *applyPlan) findPending(ctx context.Context) error {
	looks, _, err := p.lookAll(ctx, p.conn)
	if err != nil {
		return err
	}
	p.pending = []string{}
	for _, l := range looks {
		if p.concerned[l.vm.Name] && l.active() && p.outdated(l, p.host) {
			p.pending = append(p.pending, l.vm.Name)
		}
	}
	return nil
}

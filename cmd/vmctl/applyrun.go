package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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
	p.undo(ctx, phaseFiles, done)
	if failed.phase == phaseReload && p.conn != nil { // of which a part may be done
		if err := p.conn.Reload(ctx); err != nil {
			p.ui.warnf("systemd has to read the definitions again: %v", err)
		}
	}
	p.undo(ctx, phaseStop, done)
}

func (p *applyPlan) undo(ctx context.Context, of phase, done []*applyStep) {
	for _, s := range slices.Backward(done) {
		if s.phase != of {
			continue
		}
		s.Result = stepLeft
		if s.undo == nil {
			continue
		}
		text, err := s.undo(ctx)
		if err != nil {
			s.Result = stepDone
			p.ui.warnf("%s: %s is not taken back: %v", s.label(), s.Action, err)
			continue
		}
		p.ui.printf("%s: %s", s.label(), text)
	}
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

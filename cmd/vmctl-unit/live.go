package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/guestagent"
	"github.com/vmctl/vmctl/hypervisor/operation"
	"github.com/vmctl/vmctl/units/bus"
)

// connect connects an operation to the machine's hypervisor; nil where none
// runs. The caller has the machine's lock.
func (a app) connect(ctx context.Context) (hypervisor.Control, error) {
	c, err := access.Connect(ctx, a.startedWith().hv, a.paths.JobSocket(a.vm))
	if access.Nobody(err) {
		return nil, nil
	}
	return c, err
}

// settled is connect for an operation that begins: it refuses a machine that is
// neither up nor down.
func (a app) settled(ctx context.Context) (hypervisor.Control, error) {
	c, err := a.connect(ctx)
	if c != nil || err != nil {
		return c, err
	}
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	units, err := conn.Units(ctx, config.Unit(a.vm))
	if err != nil {
		return nil, err
	}
	for _, u := range units {
		if err := down(u); u.Name == config.Unit(a.vm) && err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// down refuses a unit that does not run and is not down, or is about to change.
func down(u bus.UnitStatus) error {
	switch {
	case u.Active != "inactive" && u.Active != "failed":
		return operation.Refuse(operation.WrongState, "%s is %s (%s): wait until it is up or down", u.Name, u.Active, u.Sub)
	case u.Job != "":
		return operation.Refuse(operation.WrongState, "%s is %s, and systemd is about to %s it: wait until it has", u.Name, u.Active, u.Job)
	}
	return nil
}

const (
	// agentHello is how long the guest agent may take to answer.
	agentHello = 15 * time.Second
	// freezeTime is how long the guest may take to write out its file systems.
	freezeTime = 30 * time.Second
	// thawTime is how long the guest is asked to go on writing, again and
	// again. It is less than an operation has to end.
	thawTime = 45 * time.Second
	thawStep = time.Second
	// clockTime is how long the guest may take to set its clock.
	clockTime = 5 * time.Second
)

// agent connects to the guest agent, where one listens.
func (a app) agent(ctx context.Context, c hypervisor.Control) (*guestagent.Agent, error) {
	if w, ok := c.(hypervisor.AgentWatcher); ok {
		listens, err := w.AgentListens(ctx)
		if err != nil {
			return nil, err
		}
		if !listens {
			return nil, errors.New("no guest agent runs in the guest")
		}
	}
	socket, done, err := access.Socket(a.paths.AgentSocket(a.vm))
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, agentHello)
	defer cancel()
	agent, err := guestagent.Dial(ctx, socket)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, errors.New("the guest agent does not answer")
	}
	return agent, err
}

// freeze has the guest write out its file systems and hold back further writes.
// before is called when the agent is there, before anything is frozen, to note
// that [app.thaw] may have to be called: by whoever comes after, if we are
// killed, and by the caller also where freeze fails after that.
func (a app) freeze(ctx context.Context, c hypervisor.Control, before func() error) error {
	agent, err := a.agent(ctx, c)
	if err != nil {
		return err
	}
	defer agent.Close()
	if err := before(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTime)
	defer cancel()
	n, err := agent.Freeze(ctx)
	if err == nil && n == 0 {
		err = errors.New("the guest agent froze no file system")
	}
	return err
}

// thaw lets the guest write again, whatever it answers first: it may be freezing
// still. A guest that does not run any more has nothing to be thawed.
func (a app) thaw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, thawTime)
	defer cancel()
	for {
		err := a.thawOnce(ctx)
		if err == nil || access.Nobody(err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the guest's file systems may still be frozen: %w", err)
		case <-time.After(thawStep):
		}
	}
}

func (a app) thawOnce(ctx context.Context) error {
	socket, done, err := access.Socket(a.paths.AgentSocket(a.vm))
	if err != nil {
		return err
	}
	defer done()
	agent, err := guestagent.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer agent.Close()
	return agent.Thaw(ctx)
}

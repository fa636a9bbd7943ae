package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/guestagent"
)

// agentHello is how long a guest agent may take to answer at first.
const agentHello = 15 * time.Second

// agent finds the way to the guest agent of a machine that runs; reason says what
// the agent is for, where it does not.
func (a *app) agent(ctx context.Context, name, reason string) (*guestagent.Channel, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	l, err := a.lookAt(ctx, conn, name)
	if err != nil {
		return nil, err
	}
	return a.agentOf(ctx, l, reason)
}

// agentOf is agent of a machine that has been looked at.
func (a *app) agentOf(ctx context.Context, l look, reason string) (*guestagent.Channel, error) {
	name := l.vm.Name
	if err := runs(l, reason); err != nil {
		return nil, err
	}
	if m := l.machine(); m != nil && !m.GuestAgent.Enabled {
		return nil, withHint(&stateError{errors.New("the VM has no channel to a guest agent")},
			"guest_agent.enabled = true in its definition and a restart give it one")
	}
	// Where the hypervisor cannot say it, the agent is waited for.
	if listens, err := a.agentListens(ctx, l); err == nil && !listens {
		return nil, noAgent()
	}
	first := true
	return guestagent.NewChannel(func(ctx context.Context) (*guestagent.Agent, error) {
		socket, done, err := access.Socket(a.paths.AgentSocket(name))
		if err != nil {
			return nil, err
		}
		defer done()
		if first {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, agentHello)
			defer cancel()
		}
		agent, err := guestagent.Dial(ctx, socket)
		first = first && err != nil
		return agent, err
	}), nil
}

func noAgent() error {
	return withHint(&stateError{errors.New("no guest agent runs in the guest")},
		"install qemu-guest-agent there, or wait until the guest has booted: vmctl wait --for agent")
}

// runs refuses a machine in which nothing can be reached; reason says what is
// there while it runs.
func runs(l look, reason string) error {
	switch l.state {
	case running, starting, saving:
		if l.active() || l.unit.Active == "activating" {
			return nil
		}
	}
	return &transitionError{From: l.state, Reason: reason}
}

// agentListens says whether anything in the guest listens where an agent would.
func (a *app) agentListens(ctx context.Context, l look) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := a.control(ctx, l)
	if err != nil {
		return false, err
	}
	defer c.Close()
	w, ok := c.(hypervisor.AgentWatcher)
	if !ok {
		return true, nil // it cannot say, so it is worth while to wait
	}
	return w.AgentListens(ctx)
}

// agentError puts what an agent, or the end of its machine, has brought about
// into words.
func agentError(name string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", name, err)
	if _, ok := errors.AsType[*guestagent.DisabledError](err); ok {
		return withHint(&stateError{err}, "the agent's options in the guest say what it may do, in /etc/sysconfig/qemu-ga, /etc/qemu/qemu-ga.conf or the like")
	}
	if guestagent.Gone(err) || access.Nobody(err) {
		return &stateError{fmt.Errorf("%s: the VM has ended meanwhile: %w", name, err)}
	}
	return err
}

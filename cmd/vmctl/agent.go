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
)

// agentHello is how long a guest agent may take to answer at first.
const agentHello = 15 * time.Second

// agent finds the way to the guest agent of a machine that runs; reason says what
// the agent is for, where it does not.
func (a *app) agent(ctx context.Context, name, reason string) (*guestagent.Channel, error) {
	l, err := a.lookUp(ctx, name, reason, running, starting, saving)
	if err != nil {
		return nil, err
	}
	return a.agentOf(ctx, l)
}

// agentOf is agent of a machine that runs.
func (a *app) agentOf(ctx context.Context, l look) (*guestagent.Channel, error) {
	name := l.vm.Name
	if m := l.machine(); m != nil && !m.GuestAgent.Enabled && m.Hypervisor == config.CloudHypervisor {
		return nil, withHint(&stateError{errors.New("VMs of cloud-hypervisor have no channel to a guest agent")},
			"vmctl ssh "+name+" is the way in")
	} else if m != nil && !m.GuestAgent.Enabled {
		return nil, withHint(&stateError{errors.New("the VM has no channel to a guest agent")},
			"guest_agent.enabled = true in its definition and a restart give it one")
	}
	// Where the hypervisor cannot say it, the agent is waited for.
	if listens, err := a.agentListens(ctx, l); err == nil && !listens {
		return nil, noAgent()
	}
	first := true
	return guestagent.NewChannel(func(ctx context.Context) (*guestagent.Agent, error) {
		if first {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, agentHello)
			defer cancel()
		}
		agent, err := a.dialAgent(ctx, name)
		first = first && err != nil
		return agent, err
	}), nil
}

// dialAgent waits until a machine's guest agent answers.
func (a *app) dialAgent(ctx context.Context, name string) (*guestagent.Agent, error) {
	socket, done, err := access.Socket(a.paths.AgentSocket(name))
	if err != nil {
		return nil, err
	}
	defer done()
	return guestagent.Dial(ctx, socket)
}

// clockTime is how long a guest may take to set its clock.
const clockTime = 5 * time.Second

// setClock sets the clock of a guest whose CPUs were stopped, where its agent
// does that: it says whether.
func (a *app) setClock(ctx context.Context, l look) bool {
	if listens, err := a.agentListens(ctx, l); err != nil || !listens {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, clockTime)
	defer cancel()
	agent, err := a.dialAgent(ctx, l.vm.Name)
	if err != nil {
		return false
	}
	defer agent.Close()
	return agent.SetTime(ctx, time.Now()) == nil
}

func noAgent() error {
	return withHint(&stateError{errors.New("no guest agent runs in the guest")},
		"install qemu-guest-agent there, or wait until the guest has booted: vmctl wait --for agent")
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

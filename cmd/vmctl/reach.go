package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/all"
)

// lookUp finds a machine that is in one of states, or says that the command is
// not possible: why is a sentence for people.
func (a *app) lookUp(ctx context.Context, name, why string, states ...state) (look, error) {
	if err := checkName(name); err != nil {
		return look{}, err
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return look{}, err
	}
	defer conn.Close()
	l, err := a.lookAt(ctx, conn, name)
	if err != nil {
		return look{}, err
	}
	if !slices.Contains(states, l.state) {
		return look{}, &transitionError{From: l.state, Reason: why}
	}
	return l, nil
}

// displayOf is the display of a machine that runs.
func displayOf(l look) (config.Display, error) {
	m := l.machine()
	if m == nil {
		// And its definition neither.
		return config.Display{}, fmt.Errorf("what the VM was started with cannot be read: %w", fs.ErrPermission)
	}
	if m.Display.Type != "none" {
		return m.Display, nil
	}
	err := &stateError{errors.New(`the VM has no display: display.type is "none"`)}
	if l.vm.Machine != nil && l.vm.Machine.Display.Type != "none" {
		return config.Display{}, withHint(err, "its definition has one by now: vmctl restart "+l.vm.Name)
	}
	if m.Hypervisor == config.CloudHypervisor {
		return config.Display{}, withHint(err, "VMs of cloud-hypervisor have none: vmctl console "+l.vm.Name+" is the way in")
	}
	return config.Display{}, withHint(err, fmt.Sprintf("set display.type = \"vnc\" or \"spice\": vmctl edit %[1]s, then vmctl restart %[1]s", l.vm.Name))
}

// viewable is a machine with a display, and its hypervisor.
func (a *app) viewable(ctx context.Context, name string) (look, config.Display, hypervisor.DisplayControl, func(), error) {
	none := func(err error) (look, config.Display, hypervisor.DisplayControl, func(), error) {
		return look{}, config.Display{}, nil, nil, err
	}
	l, err := a.lookUp(ctx, name, "the display is there while the VM runs", running, paused, stopping, saving)
	if err != nil {
		return none(err)
	}
	d, err := displayOf(l)
	if err != nil {
		return none(err)
	}
	c, err := a.control(ctx, l)
	if err != nil {
		return none(asAbsent(l, err))
	}
	display, ok := c.(hypervisor.DisplayControl)
	if !ok {
		c.Close()
		return none(impossible("a display", l))
	}
	return l, d, display, func() { c.Close() }, nil
}

// asAbsent is an error of [app.control] with a state, where nothing answers.
func asAbsent(l look, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return &transitionError{From: l.state, Reason: "the hypervisor does not answer"}
	}
	return err
}

// commander connects to the socket for people's own commands. It serves one at
// a time.
func (a *app) commander(ctx context.Context, l look) (hypervisor.Control, hypervisor.Commander, error) {
	h, socket, done, err := a.ownSocket(l)
	if err != nil {
		return nil, nil, err
	}
	defer done()
	short, cancel := context.WithTimeout(ctx, othersTurn)
	defer cancel()
	c, err := h.Control(short, socket)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, nil, errOthersTurn
	}
	if err != nil {
		return nil, nil, asAbsent(l, err)
	}
	commander, ok := c.(hypervisor.Commander)
	if !ok {
		c.Close()
		return nil, nil, impossible("to send commands", l)
	}
	return c, commander, nil
}

// impossible is that the hypervisor of a machine that runs cannot do something.
func impossible(what string, l look) error {
	name := "its hypervisor"
	if m := l.machine(); m != nil {
		name = m.Hypervisor
	}
	return &stateError{hypervisor.Impossible(what, name)}
}

var errOthersTurn = &stateError{errors.New("somebody else has the monitor: it serves one at a time")}

// ownSocket finds the socket for people's own commands.
func (a *app) ownSocket(l look) (hypervisor.Hypervisor, string, func(), error) {
	name := "qemu"
	if m := l.machine(); m != nil {
		name = m.Hypervisor
	}
	h, ok := all.ByName(name)
	if !ok {
		return nil, "", nil, &unknownHypervisorError{name}
	}
	own := a.paths.QMPSocket(l.vm.Name)
	if _, ok := h.(hypervisor.Converser); !ok {
		own = a.paths.ControlSocket(l.vm.Name) // one for all, which serves several at once
	}
	socket, done, err := access.Socket(own)
	if err != nil {
		return nil, "", nil, asAbsent(l, err)
	}
	return h, socket, done, nil
}

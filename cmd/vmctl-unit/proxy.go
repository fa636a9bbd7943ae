package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/netsetup"
	"github.com/vmctl/vmctl/units/bus"
)

const (
	// proxyTime is for systemd to listen, or to end what listened.
	proxyTime = 30 * time.Second
	// proxyIdle is how long what connects a port with a guest waits for the next who
	// connects: systemd listens meanwhile.
	proxyIdle = "60s"
)

// proxyPrograms are where systemd-socket-proxyd(8) is.
var proxyPrograms = []string{"/usr/lib/systemd/systemd-socket-proxyd", "/lib/systemd/systemd-socket-proxyd"}

// proxyProgram is the one that this host has, "" for none.
func (a app) proxyProgram() string {
	for _, program := range proxyPrograms {
		if access.IsThere(a.paths.Root + program) {
			return program
		}
	}
	return ""
}

// proxy is the units for a port of the host's ::1 that is a guest's.
func (a app) proxy(nic string, port int) bus.Proxy {
	return bus.Proxy{
		Name:        config.ForwardUnit(a.vm, nic, port),
		Description: fmt.Sprintf("Port %d of ::1 for the virtual machine %s", port, a.vm),
		Of:          config.Unit(a.vm),
		Slice:       "machine.slice",
	}
}

// startProxies has systemd listen for a card that is plugged in.
func (a app) startProxies(ctx context.Context, nic config.NIC, proxies []netsetup.Proxy) error {
	if len(proxies) == 0 {
		return nil
	}
	return a.withProxies(ctx, func(ctx context.Context, conn *bus.Conn) error {
		for _, p := range proxies {
			unit := a.proxy(nic.Name, int(p.Listen.Port()))
			unit.Listen = p.Listen.String()
			unit.Argv = []string{a.proxyProgram(), "--exit-idle-time=" + proxyIdle, p.Guest.String()}
			if err := conn.StartProxy(ctx, unit); err != nil {
				return fmt.Errorf("listen on %s for %s: %w", p.Listen, nic.Key(), err)
			}
		}
		return nil
	})
}

// stopProxies ends what listens for cards, whether it is there or not.
func (a app) stopProxies(cards []config.NIC) error {
	var units []bus.Proxy
	for _, nic := range cards {
		for _, f := range nic.Forward {
			if nic.Network != "" && f.IsProxied() {
				units = append(units, a.proxy(nic.Name, f.HostPort))
			}
		}
	}
	if len(units) == 0 {
		return nil
	}
	return a.withProxies(context.Background(), func(ctx context.Context, conn *bus.Conn) error {
		var errs []error
		for _, unit := range units {
			errs = append(errs, conn.StopProxy(ctx, unit))
		}
		return errors.Join(errs...)
	})
}

func (a app) withProxies(ctx context.Context, do func(context.Context, *bus.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, proxyTime)
	defer cancel()
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	return do(ctx, conn)
}

// checkProxies says what of the host is in the way of ports of ::1.
func (a app) checkProxies(m *config.Machine) []config.Problem {
	var problems []config.Problem
	for _, nic := range m.NICs {
		for i, f := range nic.Forward {
			if nic.Network != "" && f.IsProxied() && a.proxyProgram() == "" {
				problems = append(problems, m.Problem(fmt.Sprintf("%s.forward[%d]", nic.Key(), i), "it needs systemd-socket-proxyd, which is not there (%s)", proxyPrograms[0]))
			}
		}
	}
	return problems
}

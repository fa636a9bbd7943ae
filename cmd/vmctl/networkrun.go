package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/bus"
)

// opReload is for messages: no state refuses it.
const opReload transition = "reload"

func newNetworkStartCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "start NAME...",
		Short: "Bring networks up",
		Long: `Bring networks up; machines do so by themselves with those that they are plugged
into. Where the definition has changed since systemd read it, systemd is reloaded
first.`,
		Example:           "  vmctl network start lan",
		Args:              someNetworks,
		ValidArgsFunction: a.completeNetworks,
		RunE:              func(cmd *cobra.Command, args []string) error { return runNetworkStart(cmd.Context(), a, args) },
	}
}

func runNetworkStart(ctx context.Context, a *app, names []string) error {
	return a.eachNetwork(ctx, opStart, names, func(ctx context.Context, conn *bus.Conn, l networkLook) (string, error) {
		if l.unit.Active == "active" {
			return "is up already", nil
		}
		file, err := a.findNetwork(l.file.Name)
		if err != nil {
			return "", err
		}
		if len(file.Problems) > 0 {
			return "", invalidFile(file.File, file.Problems)
		}
		for _, w := range file.Warnings {
			a.ui.warnf("%v", w)
		}
		unit := config.NetworkUnit(l.file.Name)
		if l.state == failed { // it may have reached the limit of starts; a person asks now
			if err := conn.ResetFailed(ctx, unit); err != nil && !errors.Is(err, bus.ErrNoSuchUnit) {
				return "", err
			}
		}
		if err := conn.Start(ctx, unit); err != nil {
			return "", networkJobError(ctx, conn, l.file.Name, err)
		}
		a.warnOfObstacles(file.Network)
		return "started", nil
	})
}

// networkJobError adds to a failed job what the network said last, and where to
// read on.
func networkJobError(ctx context.Context, conn *bus.Conn, name string, err error) error {
	if _, ok := errors.AsType[*bus.JobError](err); !ok {
		return err
	}
	unit := config.NetworkUnit(name)
	if p, propertiesErr := conn.Properties(ctx, unit); propertiesErr == nil && p.StatusText != "" {
		err = errors.New(printable(p.StatusText))
	}
	return withHint(err, "journalctl -u "+strings.TrimSuffix(unit, ".service")+" has more")
}

func newNetworkStopCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "stop NAME...",
		Short: "Take networks down: bridge, addresses, filters, DHCP",
		Long: `Take networks down, and all that was made for them. One on which machines run is
refused. Leases stay.`,
		Example:           "  vmctl network stop lan",
		Args:              someNetworks,
		ValidArgsFunction: a.completeNetworks,
		RunE:              func(cmd *cobra.Command, args []string) error { return runNetworkStop(cmd.Context(), a, force, args) },
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "shut down first what runs on it")
	return cmd
}

func runNetworkStop(ctx context.Context, a *app, force bool, names []string) error {
	return a.eachNetwork(ctx, opStop, names, func(ctx context.Context, conn *bus.Conn, l networkLook) (string, error) {
		machines := l.machines(true)
		if len(machines) > 0 && !force {
			return "", withHint(&transitionError{From: l.state, Reason: "machines that run are plugged into it: " + strings.Join(machines, ", ")},
				"vmctl network stop --force "+l.file.Name+" shuts them down first")
		}
		for _, name := range machines {
			text, err := a.stop(ctx, conn, stopOptions{}, name)
			if err != nil {
				return "", inName(string(opStop), name, err)
			}
			a.ui.printf("%s: %s", name, text)
		}
		unit := config.NetworkUnit(l.file.Name)
		if err := conn.Stop(ctx, unit); err != nil {
			return "", err
		}
		if err := conn.ResetFailed(ctx, unit); err != nil && !errors.Is(err, bus.ErrNoSuchUnit) {
			return "", err
		}
		return "stopped", nil
	})
}

func newNetworkReloadCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "reload NAME...",
		Short: "Bring networks that are up into line with their definitions",
		Long: `Bring networks that are up into line with their definitions, as far as that is
possible while machines run on them: filters, MTU, VXLAN, and what DHCP and DNS
answer from now on. Another subnet or bridge has to wait until the machines have
stopped.`,
		Example:           "  vmctl network reload lan",
		Args:              someNetworks,
		ValidArgsFunction: a.completeNetworks,
		RunE:              func(cmd *cobra.Command, args []string) error { return runNetworkReload(cmd.Context(), a, args) },
	}
}

func runNetworkReload(ctx context.Context, a *app, names []string) error {
	return a.eachNetwork(ctx, opReload, names, func(ctx context.Context, conn *bus.Conn, l networkLook) (string, error) {
		switch {
		case l.state != running:
			return "", &transitionError{From: l.state, Reason: "the network is not up"}
		case l.file.File == "":
			return "", a.networkNotFound(l.file.Name)
		case len(l.file.Problems) > 0:
			return "", invalidFile(l.file.File, l.file.Problems)
		}
		reload := conn.ReloadUnit
		if l.up != nil && l.file.Network.DHCP && !l.up.DHCP {
			reload = conn.Restart // only a start starts the service
		}
		if err := reload(ctx, config.NetworkUnit(l.file.Name)); err != nil {
			return "", networkJobError(ctx, conn, l.file.Name, err)
		}
		return "reloaded", nil
	})
}

// eachNetwork does an operation on several networks at once, which systemd knows
// as they are defined now.
func (a *app) eachNetwork(ctx context.Context, op transition, names []string, do func(context.Context, *bus.Conn, networkLook) (string, error)) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	looks, err := a.lookNetworks(ctx, conn)
	if err != nil {
		return err
	}
	byName, stale := map[string]networkLook{}, false
	for _, l := range looks {
		byName[l.file.Name] = l
	}
	for _, name := range names {
		l, there := byName[name]
		stale = stale || there && l.file.File != "" && a.networkStale(l.file)
	}
	if stale && op != opStop {
		if err := conn.Reload(ctx); err != nil {
			return err
		}
	}
	return a.eachOn(ctx, conn, op, names, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		if err := checkNetworkName(name); err != nil {
			return "", err
		}
		l, there := byName[name]
		if !there {
			return "", a.networkNotFound(name)
		}
		return do(ctx, conn, l)
	})
}

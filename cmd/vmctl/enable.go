package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units"
	"github.com/vmctl/vmctl/units/bus"
)

const (
	opEnable  transition = "enable"
	opDisable transition = "disable"
)

func newEnableCommand(a *app) *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "enable NAME...",
		Short: "Start VMs with the host from now on",
		Long: `Start VMs with the host from now on, as systemctl enable vm@NAME does: by a link,
not by the definition, whose autostart = true does the same.`,
		Example: `  vmctl enable web db
  vmctl enable --now web`,
		GroupID:           groupRun,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runEnable(cmd.Context(), a, now, args)
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "also start them now")
	return cmd
}

func newDisableCommand(a *app) *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "disable NAME...",
		Short: "Start VMs with the host no more",
		Long:  `Take back what vmctl enable did. autostart = true in a definition stays.`,
		Example: `  vmctl disable web
  vmctl disable --now web db`,
		GroupID:           groupRun,
		Args:              someNames,
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDisable(cmd.Context(), a, now, args)
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "also stop them now")
	return cmd
}

func runEnable(ctx context.Context, a *app, now bool, names []string) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	f := &freshener{app: a, conn: conn, host: a.probe()}
	if now {
		f.freshen(ctx, names)
	}
	var enabled atomic.Bool
	err = a.eachOn(ctx, conn, opEnable, names, a.noted(opEnable, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		if _, err := a.find(name); err != nil {
			return "", err
		}
		l, err := a.lookAt(ctx, conn, name)
		if err != nil {
			return "", err
		}
		if l.masked {
			return "", a.maskedError(l)
		}
		if err := conn.Enable(ctx, config.Unit(name)); err != nil {
			return "", err
		}
		enabled.Store(true)
		if !now {
			return "enabled", nil
		}
		text, err := a.start(ctx, conn, f, waitOptions{}, name)
		if already, ok := errors.AsType[*transitionError](err); ok {
			return "enabled, " + already.Reason, nil
		}
		return "enabled, " + text, err
	}))
	if a.user && enabled.Load() { // also where others could not be
		err = errors.Join(err, a.enableUsersTarget(ctx, conn))
	}
	return errors.Join(err, conn.Reload(ctx))
}

// enableUsersTarget has a user's service manager start what is enabled: of the
// system's, the package has seen to that.
func (a *app) enableUsersTarget(ctx context.Context, conn *bus.Conn) error {
	target, err := conn.Properties(ctx, units.Target)
	if err == nil && targetRemedy(target.UnitFileState) == "enable" {
		err = conn.Enable(ctx, units.Target)
	}
	if err == nil && !a.lingers() {
		a.ui.warnf("%s: %s", noLinger, enableLinger)
	}
	return err
}

func runDisable(ctx context.Context, a *app, now bool, names []string) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = a.eachOn(ctx, conn, opDisable, names, a.noted(opDisable, func(ctx context.Context, conn *bus.Conn, name string) (string, error) {
		l, err := a.lookAt(ctx, conn, name)
		if err != nil {
			return "", err
		}
		if err := conn.Disable(ctx, config.Unit(name)); err != nil {
			return "", err
		}
		text := "disabled"
		if l.vm.Autostart {
			text = "disabled, but its definition has autostart = true"
		}
		if !now {
			return text, nil
		}
		stopped, err := a.stop(ctx, conn, stopOptions{}, name)
		return text + ", " + stopped, err
	}))
	return errors.Join(err, conn.Reload(ctx))
}

// enableLink is what systemctl enable makes for a machine.
func (a *app) enableLink(name string) string {
	return filepath.Join(a.paths.EnableDir, units.Target+".wants", config.Unit(name))
}

// enabled are the machines that systemctl enable has linked to start with the
// host.
func (a *app) enabled() map[string]bool {
	// Before the first one is enabled, the directory does not exist.
	entries, _ := os.ReadDir(filepath.Join(a.paths.EnableDir, units.Target+".wants"))
	found := map[string]bool{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "vm@") {
			found[vmName(e.Name())] = true
		}
	}
	return found
}

package main

import (
	"cmp"
	"context"
	"os"
	"path/filepath"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/units/bus"
)

// app is the world as the commands see it.
type app struct {
	ui    *ui
	user  bool   // --user
	host  string // -H
	paths config.Paths
	root  string // VMCTL_ROOT: a directory that stands for /, "" outside of tests

	locks []*os.File // of machines whose disks are being changed
}

// newApp returns the app of this process.
func newApp() *app {
	root := os.Getenv("VMCTL_ROOT")
	return &app{
		ui:    &ui{in: os.Stdin, out: os.Stdout, err: os.Stderr, format: textFormat},
		paths: config.SystemPaths(root),
		root:  root,
	}
}

// settle makes the paths what --user and --host ask for.
func (a *app) settle() {
	switch {
	case a.host != "":
		// What is here is not what is there.
		a.paths = config.SystemPaths("/dev/null")
	case a.user:
		a.paths = userPaths()
	}
}

// settledPaths are the paths, for a completion, before which nobody has settled
// them.
func (a *app) settledPaths() config.Paths {
	a.settle()
	return a.paths
}

// userPaths are the paths of the calling user's service manager, with the
// defaults of the XDG base directory specification.
func userPaths() config.Paths {
	home := os.Getenv("HOME")
	runtimeDir := cmp.Or(os.Getenv("XDG_RUNTIME_DIR"), filepath.Join("/run/user", uid()))
	return config.UserPaths(
		cmp.Or(os.Getenv("XDG_CONFIG_HOME"), filepath.Join(home, ".config")),
		cmp.Or(os.Getenv("XDG_DATA_HOME"), filepath.Join(home, ".local/share")),
		runtimeDir)
}

// probe learns the facts about the host that a plan depends on.
func (a *app) probe() hypervisor.Host { return hypervisor.Probe(a.root) }

// noUserManager is what to do where a user's service manager does not answer,
// as after su or sudo, which are no logins.
const noUserManager = "log in as that user; or loginctl enable-linger, and export XDG_RUNTIME_DIR=/run/user/$(id -u)"

// dial connects to the service manager.
func (a *app) dial(ctx context.Context) (*bus.Conn, error) {
	conn, err := bus.Dial(ctx, a.user)
	if err != nil && !notPermitted(err) {
		if a.user {
			return nil, withHint(err, noUserManager)
		}
		return nil, withHint(err, "vmctl doctor looks for the cause")
	}
	return conn, err
}

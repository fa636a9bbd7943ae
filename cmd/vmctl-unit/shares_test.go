package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/units/bus"
)

// The end of a machine takes away what vmctl told systemd of its plugged shares, and
// nothing else: neither what an administrator has said of their units, nor what is of
// another machine; whatever the name of the directory.
func TestEndShares(t *testing.T) {
	runtime := filepath.Join(t.TempDir(), "a[b]*?")
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path="+t.TempDir()+"/none")
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	a := app{paths: config.UserPaths(t.TempDir(), t.TempDir(), runtime), vm: "web", err: io.Discard}
	plain, edited, foreign, other := config.ShareUnit("web", "plain"), config.ShareUnit("web", "edited"), config.ShareUnit("web", "foreign"), config.ShareUnit("web2", "plain")
	if got, err := a.pluggedServers(); len(got) > 0 || err != nil {
		t.Errorf("without the directory: %v, %v", got, err)
	}
	beside := func(unit string) string { return filepath.Join(a.paths.DropInDir, unit+".d", "override.conf") }
	for _, path := range []string{a.serverDropIn(plain), a.serverDropIn(edited), beside(edited), beside(foreign), a.serverDropIn(other)} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := a.pluggedServers(); !slices.Equal(got, []string{edited, plain}) || err != nil {
		t.Errorf("plugged in: %v, %v", got, err)
	}
	if err := a.endShares(t.Context()); err == nil {
		t.Error("that systemd could not be asked to end them was not told")
	}
	for path, want := range map[string]bool{
		filepath.Dir(a.serverDropIn(plain)): false,
		a.serverDropIn(edited):              false,
		beside(edited):                      true,
		beside(foreign):                     true,
		a.serverDropIn(other):               true,
	} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", path, err, want)
		}
	}
	if err := a.forgetServer(plain); err != nil {
		t.Errorf("what is gone: %v", err)
	}
}

// withShares is a hypervisor whose guest has the devices of some shares.
type withShares struct {
	hotControl
	names []string
}

func (c withShares) PluggedShares(context.Context) ([]string, error) { return c.names, nil }

// A guest that was asked to let go of a share may do so after the operation was killed:
// the end of its server is expected then.
func TestDetachShareKilled(t *testing.T) {
	share := config.Share{Name: "src"}
	server := hypervisor.Sidecar{Unit: config.ShareUnit("web", "src")}
	for _, asked := range []bool{true, false} {
		r := &live{app: app{paths: config.SystemPaths(t.TempDir()), vm: "web"}, started: &config.Machine{Name: "web"}, control: withShares{names: []string{"src"}}}
		if err := os.MkdirAll(filepath.Dir(r.paths.Changes("web")), 0o755); err != nil {
			t.Fatal(err)
		}
		r.changes.AttachedShare(share, server)
		if asked {
			r.changes.LeavingShare("src")
		}
		there, err := r.notePlugged(t.Context(), shareOperation{Share: share, Server: server})
		if !there || err != nil {
			t.Errorf("there: %v, %v", there, err)
		}
		saved, err := hypervisor.ReadChanges(r.paths, "web")
		if err != nil {
			t.Fatal(err)
		}
		if _, stays := saved.Sidecar(new(hypervisor.Plan), server.Unit); stays == asked {
			t.Errorf("asked: %v: its server is expected to stay: %v", asked, stays)
		}
	}
}

// A server that hangs in its end keeps what was plugged in loaded, which is not to be
// started for a share that the definition has by the same name.
func TestStaleServer(t *testing.T) {
	a := app{paths: config.SystemPaths(t.TempDir()), vm: "web"}
	unit := config.ShareUnit("web", "src")
	generated := "/run/systemd/generator/" + unit + ".d/50-vmctl.conf"
	path := a.serverDropIn(unit)
	for _, c := range []struct {
		placed bool
		loaded []string
		want   bool
	}{
		{false, nil, false},
		{false, []string{generated}, false},
		{false, []string{path}, true},
		{true, []string{generated}, true},
		{true, []string{path}, false},
	} {
		if err := os.RemoveAll(filepath.Dir(path)); err != nil {
			t.Fatal(err)
		}
		if c.placed {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := a.staleServer(bus.Properties{DropInPaths: c.loaded}, unit); got != c.want {
			t.Errorf("placed: %v, loaded: %v: %v", c.placed, c.loaded, got)
		}
	}
}

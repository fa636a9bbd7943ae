package main

import (
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// The names of a machine and a share together may be longer than the path of a
// socket can be.
func TestSidecarSocketOfLongNames(t *testing.T) {
	long := strings.Repeat("x", 63)
	a := app{paths: config.SystemPaths(t.TempDir()), vm: long}
	unit := config.ShareUnit(long, long)
	for _, dir := range []string{a.paths.RuntimeDir(long), a.paths.SidecarDir(unit)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := connectSidecar(a.paths, unit); err == nil {
		t.Fatal("connected to nobody")
	}
	listening, err := a.listenFor(unit)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listening)
	connected, err := connectSidecar(a.paths, unit)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(connected)
	served, _, err := unix.Accept(listening)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(served)
	info, err := os.Stat(a.paths.SidecarSocket(unit))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v, want mode 0600", info, err)
	}
	if len(unit) > 255 {
		t.Errorf("the unit's name has %d bytes, systemd takes 255", len(unit))
	}
}

func TestServeWithoutMachine(t *testing.T) {
	a := app{paths: config.SystemPaths(t.TempDir()), vm: "web"}
	if _, err := a.listenFor("vm-tpm@web.service"); err == nil || !strings.Contains(err.Error(), "web does not run") {
		t.Errorf("got %v", err)
	}
}

func TestCheckShared(t *testing.T) {
	root := t.TempDir()
	a := app{paths: config.SystemPaths(root)}
	state, dir, file, link := a.paths.StateDir("web"), root+"/srv/good", root+"/srv/file", root+"/srv/link"
	for _, d := range []string{state, dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(state, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir:           "",
		root + "/not": "does not exist on this host",
		file:          "is none",
		link:          "has files of the machines themselves in it (" + a.paths.State + ")",
		root:          "has files of the machines themselves in it (" + a.paths.State + ")",
		"/proc/self":  "is the kernel's",
	} {
		if got := a.checkShared(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// What a machine has left in the directory of its TPM leads root nowhere.
func TestGiveState(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("want root, which gives files away")
	}
	base := t.TempDir()
	secret, state := base+"/secret", base+"/tpm"
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, dir := app{}, runtimeDir{uid: 61200, gid: 61200}
	if err := a.giveState(dir, state); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(state+"/kept", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, state+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := a.giveState(dir, state); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]uint32{state: 61200, state + "/kept": 61200, secret: 0} {
		var s unix.Stat_t
		if err := unix.Stat(path, &s); err != nil || s.Uid != want {
			t.Errorf("%s is of user %d, want %d (%v)", path, s.Uid, want, err)
		}
	}
	var s unix.Stat_t
	if err := unix.Stat(state, &s); err != nil || s.Mode&0o7777 != 0o700 {
		t.Errorf("mode %o, want 700 (%v)", s.Mode, err)
	}
}

// Where systemd cannot be asked, what has ended was not stopped by anybody.
func TestEndedUnasked(t *testing.T) {
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path="+t.TempDir()+"/none")
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	paths := config.UserPaths(t.TempDir(), t.TempDir(), t.TempDir())
	a := app{paths: paths, vm: "web", err: io.Discard}
	unit := config.ShareUnit("web", "data")
	if a.wasStopped(t.Context(), unit) {
		t.Error("it is said that somebody has stopped it")
	}
	if !a.hasJob(t.Context(), unit, "stop") {
		t.Error("who must not err on the other side was told that there is no job")
	}
}

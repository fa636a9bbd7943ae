package main

import (
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// Which group sits down at a console is told by the socket, which a reload changes, and
// not by what the machine was started with.
func TestConsolePending(t *testing.T) {
	g, err := user.LookupGroup("adm")
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		t.Fatal(err)
	}
	a := &app{paths: config.SystemPaths(t.TempDir())}
	socket := a.paths.ConsoleSocket("web")
	pending := func(group string) bool {
		return a.consolePending(look{vm: config.VM{Name: "web", Machine: &config.Machine{Console: config.Console{Group: group}}}})
	}
	if pending("adm") || pending("") {
		t.Error("pending where nothing is to be seen")
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for mode, want := range map[os.FileMode]map[string]bool{
		0o600: {"": false, "adm": true, "root": true, "no-such-group": false},
		0o660: {"": true, "adm": false, "root": true, "no-such-group": false},
	} {
		if err := os.Chown(socket, -1, gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(socket, mode); err != nil {
			t.Fatal(err)
		}
		for group, want := range want {
			if pending(group) != want {
				t.Errorf("mode %o, group %q: pending is %v", mode, group, !want)
			}
		}
	}
}

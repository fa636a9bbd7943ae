package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"vmctl": main, "guest": guest, "tunnel": tunnel, "remote-viewer": remoteViewer})
}

// TestScripts runs testdata/*.txtar through the real main. $VMCTL_ROOT stands
// for the host's root directory; a QEMU lies in it that is never run.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"status": status, "await": await, "serve": serve},
		Setup: func(env *testscript.Env) error {
			root := filepath.Join(env.WorkDir, "root")
			env.Setenv("VMCTL_ROOT", root)
			// Where no bus listens, whatever the host has.
			env.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(env.WorkDir, "no-bus"))
			for _, dir := range []string{"usr/bin", "etc/vmctl/vms", "proc"} {
				if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
					return err
				}
			}
			for file, text := range map[string]string{
				"etc/machine-id": "0123456789abcdef0123456789abcdef\n",
				"proc/cpuinfo":   "processor\t: 0\nflags\t\t: fpu vmx\n",
			} {
				if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
					return err
				}
			}
			return os.WriteFile(filepath.Join(root, "usr/bin/qemu-system-x86_64"), []byte("#!/bin/false\n"), 0o755)
		},
	})
}

// serve serves a directory over HTTP, whose URL becomes $URL: serve DIRECTORY
func serve(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve DIRECTORY")
	}
	server := httptest.NewServer(http.FileServer(http.Dir(ts.MkAbs(args[0]))))
	ts.Defer(server.Close)
	ts.Setenv("URL", server.URL)
}

// status runs vmctl and wants this exit status: status N ARGUMENT...
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N ARGUMENT...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec("vmctl", args[1:]...)
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

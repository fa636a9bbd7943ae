package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestFar(t *testing.T) {
	for host, want := range map[string][]string{
		"alias":           {"alias"},
		"root@host2":      {"root@host2"},
		"root@host2:2222": {"root@host2", "-p", "2222"},
		"host2:22":        {"host2", "-p", "22"},
		"[::1]:22":        {"::1", "-p", "22"},
		"fe80::1":         {"fe80::1"},
		"ann@fe80::1":     {"ann@fe80::1"},
		"ssh://ann@h:22":  {"ssh://ann@h:22"},
	} {
		f, err := newFar(host)
		if got := append([]string{f.host}, f.options...); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %q, %v, want %q", host, got, err, want)
		}
	}
	for _, host := range []string{"", "-oProxyCommand=x", "root@-oProxyCommand=x", "root@"} {
		if _, err := newFar(host); err == nil || exitStatus(err) != exitUsage {
			t.Errorf("%q: got %v", host, err)
		}
	}
}

// What is typed is what the other host gets; only --host is taken out, and what is
// read here is read here.
func TestParseCall(t *testing.T) {
	for _, tt := range []struct {
		line, want []string // want nil: not for another host
	}{
		{[]string{"-H", "h", "list"}, []string{"list"}},
		{[]string{"list", "-qHh", "--state", "running,paused"}, []string{"list", "--quiet=true", "--state=running,paused"}},
		{[]string{"--host=h", "--user", "create", "web", "--set", "a=b", "--disk=1G", "--set", "c=d", "--ssh-key", "ssh-ed25519 AAAA me"},
			[]string{"create", "--user=true", "--set=a=b", "--disk=1G", "--set=c=d", "--ssh-key=ssh-ed25519 AAAA me", "--", "web"}},
		{[]string{"exec", "-H", "h", "web", "-n", "--", "ls", "-H", "x", "--", "y"}, []string{"exec", "--no-stdin=true", "--", "web", "ls", "-H", "x", "--", "y"}},
		{[]string{"disk", "list", "-Hh", "--", "-x"}, []string{"disk", "list", "--", "-x"}},
		{[]string{"list"}, nil},
		{[]string{"exec", "web", "--", "-H", "h"}, nil},
		{[]string{"-H", "h", "list", "--help"}, nil},
		{[]string{"-H", "h", "list", "--nosuch"}, nil},
		{[]string{"-H", "h", "nosuch"}, nil},
		{[]string{"-H", "h"}, nil},
		{[]string{"list", "-H"}, nil},
	} {
		c, ok := parseCall(newRootCommand(newApp()), tt.line)
		if ok != (tt.want != nil) {
			t.Errorf("%q: got %v", tt.line, ok)
		}
		if !ok {
			continue
		}
		if got, err := c.forFar(nil); err != nil || !slices.Equal(got.line, tt.want) {
			t.Errorf("%q: got %q, %v, want %q", tt.line, got.line, err, tt.want)
		}
	}
	// Every command says which it is.
	for _, tt := range []struct {
		line []string
		here bool
	}{
		{[]string{"view", "-H", "h", "web"}, true},
		{[]string{"view", "-H", "h", "web", "--web"}, true},
		{[]string{"view", "-H", "h", "web", "--print"}, false},
		{[]string{"view", "-H", "h", "web", "-o", "json"}, false},
		{[]string{"copy", "-H", "h", "a", "web:"}, true},
		{[]string{"screenshot", "-H", "h", "web"}, true},
		{[]string{"start", "-H", "h", "web"}, false},
	} {
		if c, ok := parseCall(newRootCommand(newApp()), tt.line); !ok || c.isHere() != tt.here {
			t.Errorf("%q: %v, here: %v", tt.line, ok, c.isHere())
		}
	}
}

func TestCutUser(t *testing.T) {
	for _, tt := range []struct {
		args, want []string
		user       bool
	}{
		{[]string{"--user", "exec", "--user", "ann", "web", "--", "id"}, []string{"exec", "--user", "ann", "web", "--", "id"}, true},
		{[]string{"-o", "json", "-H", "h", "--user", "nic", "attach", "web", "a", "--user"}, []string{"-o", "json", "-H", "h", "nic", "attach", "web", "a", "--user"}, true},
		{[]string{"exec", "--user", "ann", "web", "--", "id"}, []string{"exec", "--user", "ann", "web", "--", "id"}, false},
		{[]string{"list", "--user"}, []string{"list", "--user"}, false},
		{[]string{"__complete", "--user", "start", ""}, []string{"__complete", "start", ""}, true},
		{[]string{"--user"}, nil, true},
		{nil, nil, false},
	} {
		if got, user := cutUser(tt.args); user != tt.user || !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, %v", tt.args, got, user)
		}
	}
}

func TestCutHost(t *testing.T) {
	for _, tt := range []struct {
		words, want []string
		host        string
	}{
		{[]string{"-H", "h", "start"}, []string{"start"}, "h"},
		{[]string{"start", "-Hh", "web"}, []string{"start", "web"}, "h"},
		{[]string{"--host=h", "wait", "--for"}, []string{"wait", "--for"}, "h"},
		{[]string{"exec", "web", "--", "-H", "h"}, []string{"exec", "web", "--", "-H", "h"}, ""},
		{[]string{"list", "-H"}, []string{"list", "-H"}, ""},
	} {
		if host, got := cutHost(tt.words); host != tt.host || !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, %q", tt.words, host, got)
		}
	}
}

// A server that takes the connection and lets nobody in is waited for as long as was
// said, and told from one that refuses.
func TestShareNotLetIn(t *testing.T) {
	ssh := filepath.Join(t.TempDir(), "ssh")
	for script, late := range map[string]bool{"exec sleep 1000": true, "echo refused >&2; exit 255": false} {
		if err := os.WriteFile(ssh, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		login := time.Minute
		if late {
			login = 50 * time.Millisecond
		}
		_, _, err := share(t.Context(), ssh, []string{"--", "guest.vm"}, login)
		if _, got := errors.AsType[loginTimeout](err); err == nil || got != late {
			t.Errorf("%s: got %v", script, err)
		}
	}
}

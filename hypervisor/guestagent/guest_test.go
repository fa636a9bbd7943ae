package guestagent

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDescribe(t *testing.T) {
	a := answers(t,
		`{"return": {"version": "10.0.2"}}`,
		`{"return": {"host-name": "web"}}`,
		`{"return": {"id": "debian", "name": "Debian GNU/Linux", "pretty-name": "Debian GNU/Linux 13 (trixie)", "version-id": "13", "kernel-release": "6.12"}}`,
		`{"return": [{"mountpoint": "/srv", "type": "xfs", "name": "vdb", "disk": []}, {"mountpoint": "/", "type": "ext4", "name": "vda", "used-bytes": 5, "total-bytes": 9, "disk": []}]}`,
		`{"error": {"class": "CommandNotFound", "desc": "The command guest-get-users has not been found"}}`)
	g, err := a.Describe(t.Context())
	if err != nil || g.AgentVersion != "10.0.2" || g.HostName != "web" || g.OS != "Debian GNU/Linux 13 (trixie)" || g.OSID != "debian" || g.OSVersion != "13" || g.Kernel != "6.12" || len(g.Users) != 0 {
		t.Errorf("got %+v, %v", g, err)
	}
	if len(g.FileSystems) != 2 || g.FileSystems[0] != (FileSystem{"/", "ext4", "vda", 5, 9}) {
		t.Errorf("got %+v", g.FileSystems)
	}
}

func TestDescribeUsers(t *testing.T) {
	g, err := answers(t, `{"return": {"version": "10.0.2"}}`, `{"return": {}}`, `{"return": {}}`, `{"return": []}`,
		`{"return": [{"login-time": 1767323045.25, "user": "alice"}, {"login-time": 1767323100, "domain": "OFFICE", "user": "bob"}]}`).Describe(t.Context())
	want := []LoggedIn{
		{"alice", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)},
		{"bob", time.Date(2026, 1, 2, 3, 5, 0, 0, time.UTC)},
	}
	if err != nil || !slices.Equal(g.Users, want) {
		t.Errorf("got %v, %v, want %v", g.Users, err, want)
	}
}

func TestDescribeByAHostileAgent(t *testing.T) {
	many := strings.Repeat(`{"mountpoint": "/x", "total-bytes": -1},`, 999) + "{}"
	g, err := answers(t, `{"return": {"version": "`+strings.Repeat("9", 9999)+`"}}`, `{"return": {}}`, `{"return": {}}`,
		`{"return": [`+many+`]}`, `{"return": [{"user": "a", "login-time": 1e300}]}`).Describe(t.Context())
	if err != nil || len(g.AgentVersion) != maxWord || len(g.FileSystems) != maxTold || g.FileSystems[9].TotalBytes != 0 || g.Users[0].Since.Year() > 9999 {
		t.Errorf("got %+v, %v", g, err)
	}
	if _, err := answers(t, `{"return": "x"}`).Describe(t.Context()); err == nil {
		t.Error("no error of garbage")
	}
	if _, err := answers(t).Describe(soon(t)); err == nil {
		t.Error("no error of silence")
	}
}

func TestSetTime(t *testing.T) {
	for answer, fails := range map[string]bool{
		`{"return": {}}`: false,
		`{"error": {"class": "GenericError", "desc": "hwclock failed to set hardware clock to system time"}}`: false,
		`{"error": {"class": "GenericError", "desc": "Failed to set time to guest"}}`:                         true,
	} {
		if err := answers(t, answer).SetTime(t.Context(), time.Unix(5, 0)); (err != nil) != fails {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

func TestKeysAndPassword(t *testing.T) {
	c := liar(t, map[string]string{
		"guest-ssh-get-authorized-keys": `{"return": {"keys": ["ssh-ed25519 AAAA me"]}}`, "guest-ssh-add-authorized-keys": `{"return": {}}`,
		"guest-ssh-remove-authorized-keys": `{"return": {}}`, "guest-set-user-password": `{"error": {"class": "GenericError", "desc": "child process has failed"}}`,
	})
	if keys, err := c.SSHKeys(t.Context(), "root"); err != nil || len(keys) != 1 || keys[0] != "ssh-ed25519 AAAA me" {
		t.Errorf("got %q, %v", keys, err)
	}
	if err := c.AddSSHKeys(t.Context(), "root", []string{"x"}); err != nil {
		t.Error(err)
	}
	if err := c.RemoveSSHKeys(t.Context(), "root", []string{"x"}); err != nil {
		t.Error(err)
	}
	err := c.SetPassword(t.Context(), "root", "secret", false)
	if err == nil || !strings.Contains(err.Error(), "child process has failed") || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

package guestagent

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"
)

// SSHKeys are the public keys by which a user of the guest may log in.
func (c *Channel) SSHKeys(ctx context.Context, user string) ([]string, error) {
	var answer struct {
		Keys []string `json:"keys"`
	}
	err := c.call(ctx, "guest-ssh-get-authorized-keys", map[string]string{"username": user}, &answer, maxAnswer)
	return answer.Keys, err
}

// AddSSHKeys adds those of keys that a user of the guest has not.
func (c *Channel) AddSSHKeys(ctx context.Context, user string, keys []string) error {
	return c.call(ctx, "guest-ssh-add-authorized-keys", map[string]any{"username": user, "keys": keys}, nil, maxAnswer)
}

// RemoveSSHKeys takes keys from a user of the guest.
func (c *Channel) RemoveSSHKeys(ctx context.Context, user string, keys []string) error {
	return c.call(ctx, "guest-ssh-remove-authorized-keys", map[string]any{"username": user, "keys": keys}, nil, maxAnswer)
}

// SetPassword sets the password of a user of the guest; with hashed it is one of
// crypt(5).
func (c *Channel) SetPassword(ctx context.Context, user, password string, hashed bool) error {
	return c.call(ctx, "guest-set-user-password", map[string]any{
		"username": user, "password": base64.StdEncoding.EncodeToString([]byte(password)), "crypted": hashed,
	}, nil, maxAnswer)
}

// SetTime sets the guest's clock.
func (a *Agent) SetTime(ctx context.Context, t time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := a.call(ctx, "guest-set-time", map[string]int64{"time": t.UnixNano()}, nil)
	if e, ok := errors.AsType[*Error](err); ok && strings.Contains(e.Desc, "hwclock") {
		// The clock is set; what failed is to note it in the hardware's, by a
		// program that many guests have not got (qga/commands-posix.c of QEMU).
		return nil
	}
	return err
}

// maxTold bounds each list of what a guest tells of itself, and maxWord, in bytes,
// each word.
const maxTold, maxWord = 64, 256

// Guest is what a guest tells of itself; what it does not tell is empty.
type Guest struct {
	AgentVersion string       `json:"agent_version"`
	HostName     string       `json:"host_name"`
	OS           string       `json:"os"`         // for people: "Debian GNU/Linux 13 (trixie)"
	OSID         string       `json:"os_id"`      // ID of os-release(5), "mswindows"
	OSVersion    string       `json:"os_version"` // VERSION_ID of os-release(5)
	Kernel       string       `json:"kernel"`
	FileSystems  []FileSystem `json:"file_systems"`
	Users        []LoggedIn   `json:"users"` // who is logged in
}

// FileSystem is one that is mounted in a guest.
type FileSystem struct {
	Mountpoint string `json:"mountpoint"`
	Type       string `json:"type"`
	Device     string `json:"device"`
	UsedBytes  int64  `json:"used_bytes"`  // 0 where it does not tell
	TotalBytes int64  `json:"total_bytes"` // the same
}

// LoggedIn is a user who is logged in to a guest.
type LoggedIn struct {
	Name  string    `json:"name"`
	Since time.Time `json:"since"`
}

// Describe asks the guest what it tells of itself. An error is that the agent did
// not answer at all, or not in time: what it said by then is there.
func (a *Agent) Describe(ctx context.Context) (Guest, error) {
	g := Guest{FileSystems: []FileSystem{}, Users: []LoggedIn{}}
	var info Info
	var host struct {
		Name string `json:"host-name"`
	}
	var os struct {
		Name    string `json:"name"`
		Pretty  string `json:"pretty-name"`
		ID      string `json:"id"`
		Version string `json:"version-id"`
		Kernel  string `json:"kernel-release"`
	}
	var mounted []struct {
		Mountpoint string `json:"mountpoint"`
		Type       string `json:"type"`
		Name       string `json:"name"`
		Used       int64  `json:"used-bytes"`
		Total      int64  `json:"total-bytes"`
	}
	var users []struct {
		User  string  `json:"user"`
		Login float64 `json:"login-time"` // seconds since 1970
	}
	for _, ask := range []struct {
		command string
		result  any
	}{
		{"guest-info", &info}, {"guest-get-host-name", &host}, {"guest-get-osinfo", &os},
		{"guest-get-fsinfo", &mounted}, {"guest-get-users", &users},
	} {
		err := a.call(ctx, ask.command, nil, ask.result)
		if _, refused := errors.AsType[*Error](err); err != nil && !refused {
			return g, err
		}
	}
	g.AgentVersion, g.HostName = word(info.Version), word(host.Name)
	g.OS, g.OSID, g.OSVersion, g.Kernel = word(cmp.Or(os.Pretty, os.Name)), word(os.ID), word(os.Version), word(os.Kernel)
	for _, m := range mounted[:min(len(mounted), maxTold)] {
		g.FileSystems = append(g.FileSystems, FileSystem{word(m.Mountpoint), word(m.Type), word(m.Name), max(m.Used, 0), max(m.Total, 0)})
	}
	slices.SortFunc(g.FileSystems, func(a, b FileSystem) int { return strings.Compare(a.Mountpoint, b.Mountpoint) })
	for _, u := range users[:min(len(users), maxTold)] {
		// Years beyond these have no text in JSON.
		since := time.Unix(int64(min(max(u.Login, 0), 1<<33)), 0).UTC()
		g.Users = append(g.Users, LoggedIn{word(u.User), since})
	}
	return g, nil
}

// word is a text of a guest's that is not too long.
func word(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxWord)], "?") }

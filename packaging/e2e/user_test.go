//go:build e2e

package e2e

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A user's own service manager runs machines as the system's does: from a file
// below ~/.config to a guest, and back, without root.
func TestUserManager(t *testing.T) {
	t.Parallel()
	run(t, "useradd", "--create-home", "--shell", "/bin/bash", "ann")
	run(t, "loginctl", "enable-linger", "ann")
	t.Cleanup(func() {
		try("loginctl", "disable-linger", "ann")
		try("loginctl", "terminate-user", "ann")
		eventually(t, "ann is logged out", func() bool { return try("userdel", "--remove", "ann").code == 0 })
	})
	asAnn := func(argv ...string) []string {
		return append([]string{"runuser", "-u", "ann", "--", "sh", "-c", `export XDG_RUNTIME_DIR=/run/user/$(id -u); cd; exec "$@"`, "sh"}, argv...)
	}
	eventually(t, "ann's service manager runs", func() bool {
		return try(asAnn("systemctl", "--user", "is-system-running", "--wait")...).code == 0
	})

	content, err := os.ReadFile(image(t, filepath.Join(hostDir(t, "image-ann"), "golden.img"), "golden", 4*megabyte))
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{content: content, open: make(chan struct{})}
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	writeFile(t, "/home/ann/.config/vmctl/images.toml", "[of-ann]\nurl = \""+server.URL+"/golden.img\"\n")

	file := "/home/ann/.config/vmctl/vms/own.toml"
	// What runs beside it too; Debian 12's virtiofsd wants to be root.
	beside := "[tpm]\nenabled = true\n"
	if !olderSuite() {
		beside += "[share.here]\npath = \"/home/ann/shared\"\n"
		run(t, "install", "-d", "-o", "ann", "/home/ann/shared")
	}
	writeFile(t, file, littleGuest("cloud", "")+"lifecycle.stop_timeout = \"1min\"\n[disk.data]\nsize = \"1G\"\n[disk.root]\nimage = \"of-ann\"\n[nic.lan]\nuser = true\nforward = [\"127.0.0.1:7113:7\"]\n"+
		"[nic.spare]\nuser = true\nbackend = \"slirp\"\n"+beside) // by which more can be plugged in
	run(t, "chown", "-R", "ann:", "/home/ann/.config")
	run(t, asAnn("vmctl", "--user", "check")...)

	// systemd alone is told, of the definition and to start it. Its image is missing:
	// a unit of ann's gets it, and the start waits and tells.
	run(t, asAnn("systemctl", "--user", "daemon-reload")...)
	run(t, asAnn("systemctl", "--user", "start", "--no-block", "vm@own")...)
	eventually(t, "vm@own says how far the image is", func() bool {
		return strings.Contains(try(asAnn("systemctl", "--user", "status", "--no-pager", "vm@own")...).all(), "of-ann: downloading")
	})
	close(g.open)
	eventually(t, "the guest is ready", func() bool {
		return strings.Contains(try(asAnn("vmctl", "--user", "console", "--log", "own")...).all(), "vmctl-guest: ready")
	})
	contains(t, run(t, asAnn("vmctl", "--user", "list")...), "own", "running")
	shown := run(t, asAnn("vmctl", "--user", "show", "own")...)
	contains(t, shown, "2.0, serving", map[bool]string{true: "user (slirp)", false: "user (passt, serving)"}[os.Getenv("VMCTL_SUITE") == "bookworm"])
	eventually(t, "the guest answers", func() bool { return strings.HasPrefix(greeting("127.0.0.1:7113"), "hello from") })
	if strings.Contains(beside, "share") {
		contains(t, shown, "tag here, serving")
	}
	contains(t, run(t, asAnn("systemctl", "--user", "status", "vm@own")...), "active (running)", file)

	t.Run("commands", func(t *testing.T) { usersCommands(t, asAnn) })

	contains(t, run(t, asAnn("vmctl", "--user", "stop", "own")...), "guest shut down")
	exit := decode[map[string]any](t, run(t, asAnn("vmctl", "--user", "show", "-o", "json", "own")...))["exit"].(map[string]any)
	if exit["reason"] != "stop requested" {
		t.Errorf("exit %v, want stop requested", exit)
	}
	run(t, "test", "-s", "/home/ann/.local/share/vmctl/vms/own/disk-data.qcow2")
	contains(t, run(t, asAnn("vmctl", "--user", "image", "list")...), "of-ann", "own")
	if owner := run(t, "stat", "-c", "%U", "/home/ann/.local/share/vmctl/images/of-ann.img"); owner != "ann" {
		t.Errorf("the image belongs to %s", owner)
	}
	contains(t, fail(t, 4, asAnn("vmctl", "--user", "image", "delete", "--yes", "of-ann")...), "of-ann is what the disk of own stands on")
	fail(t, 3, "vmctl", "image", "show", "of-ann")
	// The system's machines are another matter.
	if out := run(t, "vmctl", "list"); strings.Contains(out, "own ") {
		t.Errorf("ann's machine in the system's list:\n%s", out)
	}
}

// usersCommands are those that work otherwise for a user than for the system, or
// that have another --user of their own.
func usersCommands(t *testing.T, asAnn func(...string) []string) {
	vmctl := func(argv ...string) []string { return asAnn(append([]string{"vmctl", "--user"}, argv...)...) }
	contains(t, fail(t, 4, vmctl("exec", "own", "--", "true")...), "no guest agent runs")
	contains(t, fail(t, 4, vmctl("copy", "--via", "agent", "/etc/hostname", "own:")...), "no guest agent runs")
	contains(t, fail(t, 4, vmctl("copy", "/etc/hostname", "own:")...), "no guest agent runs", "nor by ssh")
	run(t, vmctl("nic", "attach", "own", "second", "--user")...) // of slirp, as spare is
	contains(t, run(t, vmctl("nic", "list", "own")...), "second")
	run(t, vmctl("nic", "detach", "own", "second")...)
	run(t, vmctl("disk", "attach", "own", "more", "--size", "16M")...)
	contains(t, run(t, vmctl("disk", "list", "own")...), "more")
	run(t, vmctl("disk", "detach", "own", "more")...)
	if !olderSuite() { // by the shared memory of the share that it has
		run(t, asAnn("mkdir", "more")...)
		run(t, vmctl("share", "attach", "own", "more", "--path", "/home/ann/more")...)
		contains(t, run(t, vmctl("show", "own")...), "tag more, serving")
		run(t, vmctl("share", "detach", "own", "more")...)
	}
	run(t, vmctl("pause", "own")...)
	run(t, vmctl("resume", "own")...)
	contains(t, run(t, vmctl("events", "--no-follow", "own")...), "paused")
	contains(t, run(t, vmctl("history", "own")...), "pause", "ann")
	contains(t, run(t, vmctl("enable", "own")...), "enabled")
	contains(t, run(t, asAnn("systemctl", "--user", "list-dependencies", "--plain", "default.target")...), "vm@own.service")
	run(t, vmctl("disable", "own")...)
	run(t, asAnn("mkdir", "backups")...)
	contains(t, run(t, vmctl("backup", "create", "own", "backups")...), "own")
	contains(t, run(t, vmctl("backup", "verify", "backups")...), "sound")

	// What only root may is said by its key.
	contains(t, fail(t, 6, vmctl("create", "--nic", "bridge=br0", "bridged")...), "nic.lan: want user = true")
	contains(t, fail(t, 6, vmctl("create", "--nic", "network=default", "plugged")...), "nic.lan: want user = true")
	contains(t, fail(t, 2, vmctl("network", "list")...), "networks are the system's")
	run(t, vmctl("create", "--forward", "80:80", "low")...)
	const low = "want a port of the host from 1024 on"
	contains(t, run(t, vmctl("check", "low")...), "nic.lan.forward[0]: ", low)
	contains(t, fail(t, 1, vmctl("start", "low")...), "nic.lan.forward[0]: ", low)
	run(t, vmctl("delete", "--yes", "low")...)
}

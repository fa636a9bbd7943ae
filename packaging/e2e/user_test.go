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
	if os.Getenv("VMCTL_SUITE") != "bookworm" {
		beside += "[share.here]\npath = \"/home/ann/shared\"\n"
		run(t, "install", "-d", "-o", "ann", "/home/ann/shared")
	}
	writeFile(t, file, littleGuest("cloud", "")+"lifecycle.stop_timeout = \"1min\"\n[disk.data]\nsize = \"1G\"\n[disk.root]\nimage = \"of-ann\"\n"+beside)
	run(t, "chown", "-R", "ann:", "/home/ann/.config")
	run(t, asAnn("vmctl", "--user", "check")...)

	// Its image is missing: a unit of ann's gets it, and the start waits and tells.
	run(t, asAnn("vmctl", "--user", "start", "--no-wait", "own")...)
	eventually(t, "vm@own says how far the image is", func() bool {
		return strings.Contains(try(asAnn("systemctl", "--user", "status", "--no-pager", "vm@own")...).all(), "of-ann: downloading")
	})
	close(g.open)
	eventually(t, "the guest is ready", func() bool {
		return strings.Contains(try(asAnn("vmctl", "--user", "console", "--log", "own")...).all(), "vmctl-guest: ready")
	})
	contains(t, run(t, asAnn("vmctl", "--user", "list")...), "own", "running")
	shown := run(t, asAnn("vmctl", "--user", "show", "own")...)
	contains(t, shown, "2.0, serving")
	if strings.Contains(beside, "share") {
		contains(t, shown, "tag here, serving")
	}
	contains(t, run(t, asAnn("systemctl", "--user", "status", "vm@own")...), "active (running)", file)

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

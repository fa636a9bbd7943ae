package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// host makes files below a directory that stands for the host's root.
func host(t *testing.T, files ...string) *app {
	t.Helper()
	root := t.TempDir()
	for _, file := range files {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("cpus = 1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &app{paths: config.SystemPaths(root), root: root}
}

func TestPlanDeletion(t *testing.T) {
	files := []string{
		"etc/vmctl/vms/web.toml", "run/vmctl/vms/web.toml.d/10-more.toml", "etc/vmctl/vms/web2.toml",
		"var/lib/vmctl/vms/web/disk-root.qcow2", "var/lib/vmctl/vms/web/exit.json", "var/lib/vmctl/vms/web2/disk-root.qcow2",
	}
	machine := &config.Machine{Name: "web", Disks: []config.Disk{{Name: "root"}, {Name: "data", Path: "/srv/data.img"}}}
	tests := []struct {
		name          string
		keepDisks     bool
		removed, left string
	}{
		{"all", false,
			"/run/vmctl/vms/web.toml.d /etc/vmctl/vms/web.toml /var/lib/vmctl/vms/web/disk-root.qcow2 /var/lib/vmctl/vms/web", "/srv/data.img"},
		{"but disks", true,
			"/run/vmctl/vms/web.toml.d /etc/vmctl/vms/web.toml /var/lib/vmctl/vms/web/exit.json", "/var/lib/vmctl/vms/web/disk-root.qcow2 /srv/data.img"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := host(t, files...)
			d, err := a.planDeletion(look{vm: config.VM{Name: "web", Machine: machine}}, tt.keepDisks)
			if err != nil {
				t.Fatal(err)
			}
			shorten := func(paths []string) string { return strings.ReplaceAll(strings.Join(paths, " "), a.root, "") }
			if got := shorten(d.Removed); got != tt.removed {
				t.Errorf("removed:\n%s\nwant:\n%s", got, tt.removed)
			}
			if got := shorten(d.Left); got != tt.left {
				t.Errorf("left:\n%s\nwant:\n%s", got, tt.left)
			}
			if _, err := removeAll(d); err != nil {
				t.Fatal(err)
			}
			if names := a.names(); !slices.Equal(names, []string{"web2"}) {
				t.Errorf("definitions left: %q", names)
			}
			if _, err := os.Stat(a.paths.Disk("web2", "root", "qcow2")); err != nil {
				t.Errorf("another machine's disk: %v", err)
			}
		})
	}
}

func TestDeletionLeavesPackagesAlone(t *testing.T) {
	a := host(t, "usr/lib/vmctl/vms/web.toml", "etc/vmctl/vms/web.toml.d/10-more.toml")
	_, err := a.planDeletion(look{vm: config.VM{Name: "web"}}, false)
	if err == nil || !strings.Contains(err.Error(), "belongs to a package") {
		t.Errorf("got %v", err)
	}
}

// With --keep-disks what a disk may need stays; what another machine's disk
// stands on stays in any case.
func TestDeletionKeepsWhatIsNeeded(t *testing.T) {
	a := host(t, "etc/vmctl/vms/web.toml", "var/lib/vmctl/vms/web/disk-root.qcow2", "var/lib/vmctl/vms/web/nvram.fd",
		"var/lib/vmctl/vms/web/snapshots/one/disk-root.qcow2", "var/lib/vmctl/vms/web/exit.json", "var/lib/vmctl/vms/web/saved.json",
		"var/lib/vmctl/vms/web/.disk-root.qcow2.new", "var/lib/vmctl/vms/clone/x")
	l := look{vm: config.VM{Name: "web", Machine: &config.Machine{Name: "web"}}}
	d, err := a.planDeletion(l, true)
	if err != nil {
		t.Fatal(err)
	}
	state := a.paths.StateDir("web")
	if want := []string{state + "/disk-root.qcow2", state + "/nvram.fd", state + "/saved.json", state + "/snapshots"}; !slices.Equal(d.Left, want) {
		t.Errorf("left %q, want %q", d.Left, want)
	}
	if want := []string{filepath.Join(a.root, "etc/vmctl/vms/web.toml"), state + "/exit.json"}; !slices.Equal(d.Removed, want) {
		t.Errorf("removed %q, want %q", d.Removed, want)
	}

	if err := os.Remove(state + "/disk-root.qcow2"); err != nil {
		t.Fatal(err)
	}
	clone := a.paths.Disk("clone", "root", "qcow2")
	for _, argv := range [][]string{
		{"create", "-q", "-f", "qcow2", state + "/disk-root.qcow2", "1M"},
		{"create", "-q", "-f", "qcow2", "-b", state + "/disk-root.qcow2", "-F", "qcow2", clone},
	} {
		if out, err := exec.Command("qemu-img", argv...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %q: %s", argv, out)
		}
	}
	_, err = a.planDeletion(l, false)
	if exitStatus(err) != exitWrongState || !strings.Contains(err.Error(), "disk-root.qcow2 is what "+clone+" stands on") {
		t.Errorf("got %v", err)
	}
}

// What was cut off may be of files that stay: it is mended before.
func TestDeleteUnfinished(t *testing.T) {
	a := host(t)
	if _, err := operation.Begin(a.paths, "web", "backup restore", nil); err != nil {
		t.Fatal(err)
	}
	dir := a.paths.StateDir("web")
	if _, err := a.removeLocked(t.Context(), nil, "web", deletion{Removed: []string{dir}}); err == nil || !access.IsThere(dir) {
		t.Errorf("removed, %v", err)
	}
}

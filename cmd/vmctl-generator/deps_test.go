package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestDependencies keeps out of the generator what it must not be able to do,
// and what would make every boot slower.
func TestDependencies(t *testing.T) {
	banned := map[string]string{
		"github.com/spf13/cobra":            "a generator has no commands",
		"github.com/godbus/dbus/v5":         "a generator may talk to no other process",
		"github.com/coreos/go-systemd/v22/": "a generator may talk to no other process",
		"github.com/vishvananda/netlink":    "networks are made when a machine starts",
		"github.com/kdomanski/iso9660":      "seeds are written when a machine starts",
		"github.com/vmctl/vmctl/units/bus":  "a generator may talk to no other process",
		"github.com/vmctl/vmctl/cloudinit":  "seeds are written when a machine starts",
		"github.com/vmctl/vmctl/netsetup":   "networks are made when a machine starts",
		"os/user":                           "name services are not there yet: units name users, and never resolve them",
		"runtime/cgo":                       "it has to be static",
	}
	// archive/tar links os/user too, for files of whose owners nobody asks here: what
	// is banned is to be imported by a package of ours, or of others'.
	cmd := exec.Command("go", "list", "-deps", "-f", `{{if not .Standard}}{{.ImportPath}}{{"\n"}}{{join .Imports "\n"}}{{end}}`, ".")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		for path, why := range banned {
			if dep == path || strings.HasSuffix(path, "/") && strings.HasPrefix(dep, path) || strings.HasPrefix(dep, path+"/") {
				t.Errorf("links %s: %s", dep, why)
			}
		}
	}
}

package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestDependencies bounds what each monitor has in its memory, and what each
// start has to load.
func TestDependencies(t *testing.T) {
	banned := map[string]string{
		"github.com/spf13/cobra":     "people do not type these commands",
		"net/http":                   "the monitor speaks to sockets alone, and this is a megabyte of memory",
		"crypto/tls":                 "as net/http",
		"runtime/cgo":                "it has to be static",
		"github.com/vmctl/vmctl/cmd": "no command is another's library",
	}
	cmd := exec.Command("go", "list", "-deps", ".")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		if dep == "github.com/vmctl/vmctl/cmd/vmctl-unit" {
			continue
		}
		for path, why := range banned {
			if dep == path || strings.HasPrefix(dep, path+"/") {
				t.Errorf("links %s: %s", dep, why)
			}
		}
	}
}

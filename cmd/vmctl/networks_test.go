package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// TestDeleteNeededNetwork: a network that another lets in is not removed, which
// would break that one.
func TestDeleteNeededNetwork(t *testing.T) {
	a := host(t)
	for name, text := range map[string]string{"front": "subnet6 = \"fd00:1::/64\"\n", "back": "subnet6 = \"fd00:2::/64\"\nallow_from = [\"front\"]\n"} {
		file := config.Definition(a.paths.NetworkDirs[1], name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	look := func(name string) networkLook { return networkLook{file: config.NetworkFile{Name: name}} }
	if _, err := a.planNetworkDeletion(look("front")); err == nil || !strings.Contains(err.Error(), "the network back lets its guests in (allow_from)") {
		t.Errorf("front: %v", err)
	}
	if d, err := a.planNetworkDeletion(look("back")); err != nil || len(d.Removed) != 1 {
		t.Errorf("back: %v, %v", d, err)
	}
}

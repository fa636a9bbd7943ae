package main

import (
	"io"
	"os"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// What has been started since it was looked at is not removed.
func TestThrowAwayLooksAgain(t *testing.T) {
	a := app{paths: config.SystemPaths(t.TempDir()), err: io.Discard}
	if err := os.MkdirAll(a.paths.StateDir("web"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.paths.ThrowAway("web"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, still := range []bool{false, true} {
		removed, err := a.throwAway("web", func() bool { return still })
		if err != nil || removed != still || access.IsThere(a.paths.StateDir("web")) == still {
			t.Errorf("left still: %v; removed: %v, %v", still, removed, err)
		}
	}
}

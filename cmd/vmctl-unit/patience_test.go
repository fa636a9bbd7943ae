package main

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
)

// A start that is put off stays so across reloads, until it is over; what an operation
// on a machine that runs puts off is its own time alone.
func TestPutOff(t *testing.T) {
	for _, starting := range []bool{true, false} {
		var said []string
		a := app{paths: config.SystemPaths(t.TempDir()), vm: "web", starting: starting, notify: func(state string) { said = append(said, state) }}
		if err := os.MkdirAll(a.paths.RuntimeDir("web"), 0o755); err != nil {
			t.Fatal(err)
		}
		a.putOff(time.Second)
		a.putOff(time.Second)
		if got := strings.Join(said, " "); got != "EXTEND_TIMEOUT_USEC=1000000 EXTEND_TIMEOUT_USEC=1000000" {
			t.Errorf("said %s", got)
		}
		if _, err := os.Lstat(a.paths.PutOff("web")); (err == nil) != starting {
			t.Errorf("starting %v: %v", starting, err)
		}
		a.startedInTime()
		if _, err := os.Lstat(a.paths.PutOff("web")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("started, and %v", err)
		}
	}
}

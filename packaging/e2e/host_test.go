//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) all() string { return r.stdout + r.stderr }

// longest is how long a command may take that is not waited for otherwise: one that
// hangs ends its test alone, and not all that wait behind it.
const longest = 20 * time.Minute

// try runs a command, which may fail.
func try(argv ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Minute // a child of it may hold the pipes
	err := cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		r.code, r.stderr = -1, fmt.Sprintf("%snot ended after %v: killed\n", r.stderr, longest)
	case errors.As(err, &exit):
		r.code = exit.ExitCode()
	case err != nil:
		r.code, r.stderr = -1, err.Error()
	}
	return r
}

// run runs a command that has to succeed, and returns what it printed, without
// the last line's end.
func run(t testing.TB, argv ...string) string {
	t.Helper()
	r := try(argv...)
	if r.code != 0 {
		t.Fatalf("%s: exit status %d\n%s", strings.Join(argv, " "), r.code, r.all())
	}
	return strings.TrimSuffix(r.stdout, "\n")
}

// fail runs a command that has to fail with the given exit status, and returns
// what it printed to stderr.
func fail(t testing.TB, code int, argv ...string) string {
	t.Helper()
	r := try(argv...)
	if r.code != code {
		t.Fatalf("%s: exit status %d, want %d\n%s", strings.Join(argv, " "), r.code, code, r.all())
	}
	return r.stderr
}

// decode reads JSON that one of our commands printed.
func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	eventuallyIn(t, patience, what, ok)
}

func eventuallyIn(t testing.TB, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	for begun := time.Now(); !ok(); {
		waited := time.Since(begun)
		if waited > patience {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
		// What is long in coming is not asked for so often: asking takes time from it.
		time.Sleep(min(max(waited/20, 20*time.Millisecond), 200*time.Millisecond))
	}
}

// contains checks that a text has all of the parts.
func contains(t testing.TB, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("no %q in:\n%s", part, text)
		}
	}
}

// writeFile writes a file, and the directories above it.
func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

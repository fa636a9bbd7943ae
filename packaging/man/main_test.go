package main

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the page")

const page = "vmctl.toml.5"

func TestPageIsCurrent(t *testing.T) {
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(page, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(old, b.Bytes()) {
		t.Errorf("%s is not what packaging/man writes: go test ./packaging/man -update", page)
	}
}

func TestRoff(t *testing.T) {
	for s, want := range map[string]string{
		"plain":   "plain",
		".so x":   `\&.so x`,
		"'quoted": `\&'quoted`,
		`a\fBb-c`: `a\efBb\-c`,
	} {
		if got := roff(s); got != want {
			t.Errorf("%s: got %s, want %s", s, got, want)
		}
	}
}

// TestPagesAreSound has groff read every page.
func TestPagesAreSound(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip(err)
	}
	for _, file := range []string{page, "vmctl.8"} {
		out, err := exec.Command(groff, "-man", "-Tutf8", "-ww", "-z", file).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/units/bus"
)

// noUnits is a host where nothing runs.
type noUnits struct{}

func (noUnits) Units(context.Context, string) ([]bus.UnitStatus, error) { return nil, nil }

// BenchmarkList is all of vmctl list but the one call to systemd: 1,000
// definitions are read, checked and printed.
func BenchmarkList(b *testing.B) {
	root := b.TempDir()
	a := &app{ui: &ui{out: io.Discard, err: io.Discard, format: textFormat}, paths: config.SystemPaths(root), root: root}
	dir := a.paths.VMDirs[1]
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	for i := range 1000 {
		text := fmt.Sprintf("description = \"Machine %d\"\ncpus = 2\nmemory = \"2G\"\n[disk.root]\nsize = \"20G\"\n[nic.lan]\nuser = true\n", i)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("vm%04d.toml", i)), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		looks, _, err := a.lookAll(b.Context(), noUnits{})
		if err != nil {
			b.Fatal(err)
		}
		if err := printList(a, listOptions{}, a.rows(b.Context(), nil, a.see(looks), looks)); err != nil {
			b.Fatal(err)
		}
	}
}

package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"vmctl-generator": main})
}

// TestScripts runs testdata/*.txtar: definitions above, every unit and link
// below. -update rewrites what is below.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			// The host that the plans are for: a CPU with VMX, a systemd, QEMU.
			host := filepath.Join(env.WorkDir, "host")
			for file, text := range map[string]string{
				"usr/bin/qemu-system-x86_64":                  "",
				"usr/lib/systemd/libsystemd-shared-252.39.so": "",
				"proc/cpuinfo":   "flags\t\t: fpu vmx\n",
				"etc/machine-id": "0123456789abcdef0123456789abcdef\n",
			} {
				file = filepath.Join(host, file)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"tree": tree},
	})
}

// tree DIR FILE writes to FILE every file and link below DIR, as the
// generator's own dry run shows them.
func tree(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: tree DIR FILE")
	}
	dir := ts.MkAbs(args[0])
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		name := "/run/systemd/generator" + strings.TrimPrefix(path, dir)
		if d.Type()&os.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			b.WriteString("# " + name + " -> " + target + "\n")
			return err
		}
		text, err := os.ReadFile(path)
		b.WriteString("# " + name + "\n" + string(text))
		return err
	})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(b.String()), 0o644))
}

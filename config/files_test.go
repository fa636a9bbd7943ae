package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestHostileFiles puts what is no definition beside a good one: each is one
// problem with its name, none hurts the other or makes loading wait.
func TestHostileFiles(t *testing.T) {
	p := hostPaths(t)
	dir := p.VMDirs[1]
	at := func(name string) string { return filepath.Join(dir, name+".toml") }
	write(t, at("good"), "cpus = 2\n")
	write(t, at("large"), strings.Repeat("# ten megabytes\n", 10<<20/16))
	write(t, at("latin1"), "cpus = 2\ndescription = \"caf\xe9\"\n")
	write(t, at("utf16"), "\xff\xfec\x00p\x00u\x00s\x00")
	write(t, at("zeros"), strings.Repeat("\x00", 4096))
	write(t, at("nested"), "cpus = 2\na = "+strings.Repeat("{a=", 100_000))
	write(t, at("dotted"), strings.Repeat("a.", 100_000)+"a = 1")
	write(t, at("mistakes"), strings.Repeat("[a]\n", 1)+strings.Repeat("x", 1<<19)+" = 1\n")
	write(t, at("max"), "# "+strings.Repeat("x", 1<<20-14)+"\ncpus = 2\n")
	write(t, filepath.Join(dir, "sub.toml", "inner.toml"), "cpus = 3\n")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(syscall.Mkfifo(at("fifo"), 0o644))
	must(os.Symlink("/nowhere/at all", at("dangling")))
	must(os.Symlink("loop.toml", at("loop")))
	must(os.Symlink("/dev/null", at("masked")))
	must(os.Symlink("/dev/zero", at("device")))
	must(os.Symlink(at("good"), at("linked")))
	must(os.WriteFile(at("empty"), nil, 0o644))
	socket, err := net.Listen("unix", at("socket"))
	must(err)
	defer socket.Close()
	must(syscall.Mkfifo(filepath.Join(dir, "pipe.toml.d"), 0o644))
	write(t, at("pipe"), "cpus = 2\n")

	set, err := Load(p)
	must(err)
	want := map[string]string{
		"dangling": `/dangling.toml: want a file, got a symlink to "/nowhere/at all", which does not exist`,
		"device":   "/device.toml: want a regular file, got a device",
		"dotted":   "/dotted.toml:1: want at most 32 levels of brackets or parts of a key",
		"fifo":     "/fifo.toml: want a regular file, got a FIFO",
		"good":     "",
		"large":    "/large.toml: want a file of at most 1M, got 10485760 bytes",
		"latin1":   "/latin1.toml:2: want UTF-8, got other bytes",
		"linked":   "",
		"loop":     "/loop.toml: too many levels of symbolic links",
		"max":      "",
		"mistakes": "/mistakes.toml:1: a: unknown key",
		"nested":   "/nested.toml:2: want at most 32 levels of brackets or parts of a key",
		"pipe":     "/pipe.toml.d: not a directory",
		"socket":   "/socket.toml: want a regular file, got a socket",
		"sub":      "/sub.toml: want a regular file, got a directory",
		"utf16":    "/utf16.toml:1: want UTF-8, got other bytes",
		"zeros":    "/zeros.toml:1: files cannot contain NULL bytes; probably using UTF-16; TOML files must be UTF-8",
	}
	for _, vm := range set.VMs {
		got := ""
		for _, problem := range vm.Problems {
			got += strings.TrimPrefix(problem.Error(), dir)
		}
		if expected, ok := want[vm.Name]; !ok || got != expected {
			t.Errorf("%s: got %q, want %q", vm.Name, got, expected)
		}
		delete(want, vm.Name)
	}
	for name := range want {
		t.Errorf("%s was not loaded", name)
	}
	for name := range map[string]bool{"masked": true, "empty": true, "none": true, "../good": true, "Good": true, "": true} {
		if _, err := LoadVM(p, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("LoadVM(%q) gave %v, want fs.ErrNotExist", name, err)
		}
	}
}

// TestMasks hides a definition of the vendor's, and single drop-ins.
func TestMasks(t *testing.T) {
	p := hostPaths(t)
	run, etc, lib := p.VMDirs[0], p.VMDirs[1], p.VMDirs[2]
	link := func(file string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/dev/null", file); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(lib, "gone.toml"), "cpus = 2\n")
	link(filepath.Join(etc, "gone.toml"))
	write(t, filepath.Join(lib, "web.toml"), "cpus = 2\n")
	write(t, filepath.Join(lib, "web.toml.d/10.toml"), "cpus = 3\n")
	write(t, filepath.Join(lib, "web.toml.d/20.toml"), "memory = \"2G\"\n")
	write(t, filepath.Join(lib, "vms.toml.d/30.toml"), "accel = \"tcg\"\n")
	link(filepath.Join(etc, "web.toml.d/10.toml"))
	link(filepath.Join(run, "vms.toml.d/30.toml"))
	for range 2 {
		set, err := Load(p)
		if err != nil || len(set.VMs) != 1 || set.VMs[0].Machine == nil {
			t.Fatalf("got %+v, %v, want web alone", set, err)
		}
		if m := set.VMs[0].Machine; m.CPUs != 2 || m.Memory != 2<<30 || m.Accel != "auto" {
			t.Errorf("got cpus %d, memory %s, accel %s, want 2, 2G, auto", m.CPUs, m.Memory, m.Accel)
		}
	}
}

// TestLoadVM gives what Load gives.
func TestLoadVM(t *testing.T) {
	p := hostPaths(t)
	write(t, filepath.Join(p.VMDirs[1], "web.toml"), definition(1))
	write(t, filepath.Join(p.VMDirs[2], "web.toml.d/10.toml"), "memory = \"4G\"\n")
	write(t, filepath.Join(p.VMDirs[2], "vms.toml.d/10.toml"), "accel = \"tcg\"\ntemplate = \"base\"\n")
	write(t, filepath.Join(p.TemplateDirs[1], "base.toml"), "cpus = 7\n[nic.wan]\nuser = true\n")
	set, err := Load(p)
	if err != nil {
		t.Fatal(err)
	}
	one, err := LoadVM(p, "web")
	if err != nil {
		t.Fatal(err)
	}
	if a, b := difference(t, set.VMs[0].Machine), difference(t, one.Machine); string(a) != string(b) {
		t.Errorf("Load gave:\n%s\nLoadVM gave:\n%s", a, b)
	}
	if got := one.Machine.NICs[0].Name; got != "wan" {
		t.Errorf("the first card is %s, want that of the template", got)
	}
}

// TestLoadFile takes a file from anywhere, without drop-ins.
func TestLoadFile(t *testing.T) {
	p := hostPaths(t)
	write(t, filepath.Join(p.VMDirs[1], "web.toml.d/10.toml"), "memory = \"4G\"\n")
	write(t, filepath.Join(p.TemplateDirs[1], "base.toml"), "cpus = 7\n")
	dir := t.TempDir()
	good := filepath.Join(dir, "web.toml")
	write(t, good, "template = \"base\"\n")
	vm := LoadFile(p, good)
	if vm.Name != "web" || vm.Machine == nil || vm.Machine.CPUs != 7 || vm.Machine.Memory != 1<<30 {
		t.Errorf("got %+v", vm)
	}
	for name, want := range map[string]string{
		"Web.toml":  "want a name of",
		"none.toml": "no such file or directory",
		"void.toml": "want a definition, got an empty file",
		"bad.toml":  "want true or false",
	} {
		file := filepath.Join(dir, name)
		switch name {
		case "bad.toml":
			write(t, file, "autostart = 1\n")
		case "void.toml":
			write(t, file, "")
		}
		vm := LoadFile(p, file)
		if len(vm.Problems) != 1 || vm.Machine != nil || !strings.Contains(vm.Problems[0].Text, want) || vm.Problems[0].File != file {
			t.Errorf("%s: got %v, want %q", name, vm.Problems, want)
		}
	}
}

// TestNoHost loads where nothing is installed.
func TestNoHost(t *testing.T) {
	set, err := Load(SystemPaths(filepath.Join(t.TempDir(), "none")))
	if err != nil || len(set.VMs)+len(set.Problems)+len(set.Networks) != 0 || set.Settings.Hypervisor != "qemu" {
		t.Errorf("got %+v, %v", set, err)
	}
}

// TestManyMistakes does not tell as many problems as a file has lines.
func TestManyMistakes(t *testing.T) {
	p := hostPaths(t)
	write(t, filepath.Join(p.VMDirs[1], "a.toml"), numbered(20_000, "x%d = 1\n"))
	write(t, filepath.Join(p.VMDirs[1], "b.toml"), numbered(20_000, "[disk.d%d]\n"))
	set, err := Load(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range set.VMs {
		if n := len(vm.Problems); n != maxMistakes+1 {
			t.Errorf("%s has %d problems, want %d", vm.Name, n, maxMistakes+1)
		}
	}
}

// TestManyAtOnce loads enough machines for several goroutines, which share a
// template and a drop-in with a mistake.
func TestManyAtOnce(t *testing.T) {
	p := hostPaths(t)
	for i := range 200 {
		write(t, filepath.Join(p.VMDirs[1], fmt.Sprintf("vm-%03d.toml", i)), fmt.Sprintf("template = \"t%d\"\n", i%2))
	}
	write(t, filepath.Join(p.VMDirs[1], "vms.toml.d/10.toml"), "\ncpus = 0\n")
	write(t, filepath.Join(p.TemplateDirs[1], "t0.toml"), "memory = 1\ntemplate = \"t1\"\n")
	write(t, filepath.Join(p.TemplateDirs[1], "t1.toml"), "accel = 1\n")
	set, err := Load(p)
	if err != nil || len(set.VMs) != 200 {
		t.Fatal(err, len(set.VMs))
	}
	for i, vm := range set.VMs {
		if n := len(vm.Problems); n != 3-i%2 {
			t.Errorf("%s has %d problems: %v", vm.Name, n, vm.Problems)
		}
		one, err := LoadVM(p, vm.Name)
		if err != nil || !slices.Equal(one.Problems, vm.Problems) {
			t.Errorf("%s: Load gave %v, LoadVM %v, %v", vm.Name, vm.Problems, one.Problems, err)
		}
	}
}

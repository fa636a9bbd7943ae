package cloudinit

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
)

// machine is one with a value of every kind that the seed is made from.
func machine() *config.Machine {
	return &config.Machine{
		Name: "web",
		UUID: "a0b1c2d3-0000-8000-8000-000000000001",
		NICs: []config.NIC{{Name: "lan", User: true, MAC: "52:54:00:00:00:01"}},
		CloudInit: config.CloudInit{
			Enabled:      true,
			User:         "alice",
			SSHKeys:      []string{"ssh-ed25519 AAAA <alice@example.org> & co"},
			PasswordHash: "$y$j9T$abc$def",
		},
	}
}

// build makes the image and leaves it in a file.
func build(t *testing.T, m *config.Machine) ([]byte, string) {
	t.Helper()
	image, err := Build(m, ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "seed.iso")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return image, file
}

// run returns what a program prints; a host without it cannot run the test.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip(err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestBuildGivesTheSameBytes(t *testing.T) {
	first, _ := build(t, machine())
	// The library stamps the time in hundredths of a second.
	time.Sleep(20 * time.Millisecond)
	second, _ := build(t, machine())
	if !bytes.Equal(first, second) {
		t.Error("two images of one machine differ")
	}
}

func TestBuildLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	build(t, machine())
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("left in TMPDIR: %s", e.Name())
	}
}

func TestLabelIsCidata(t *testing.T) {
	_, file := build(t, machine())
	got := run(t, "blkid", "-p", "-o", "export", file)
	if !strings.Contains(got, "LABEL=cidata\n") || !strings.Contains(got, "TYPE=iso9660\n") {
		t.Errorf("blkid says:\n%s", got)
	}
}

func TestOthersReadWhatWasWritten(t *testing.T) {
	m := machine()
	m.CloudInit.UserData = config.Text("#!/bin/sh\necho \"ünïcode\"\t'$HOME' %s\r\n" + strings.Repeat("x", 5000))
	files, err := Files(m, ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	_, image := build(t, m)
	for _, f := range files {
		if got := run(t, "isoinfo", "-i", image, "-x", "/"+f.Name+";1"); got != string(f.Data) {
			t.Errorf("%s: got %q, want %q", f.Name, got, f.Data)
		}
	}
}

func TestKernelMountsIt(t *testing.T) {
	files, err := Files(machine(), ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	_, image := build(t, machine())
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "iso9660", "-o", "loop,ro", image, dir).CombinedOutput(); err != nil {
		t.Skipf("loop mounts are not possible here: %s", out)
	}
	defer run(t, "umount", dir)
	for _, f := range files {
		got, err := os.ReadFile(filepath.Join(dir, f.Name))
		if err != nil || !bytes.Equal(got, f.Data) {
			t.Errorf("%s: got %q, %v", f.Name, got, err)
		}
	}
}

func TestCloudInitAcceptsIt(t *testing.T) {
	files, err := Files(machine(), ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "user-data")
	if err := os.WriteFile(file, files[0].Data, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "cloud-init", "schema", "--config-file", file)
}

func BenchmarkBuild(b *testing.B) {
	for b.Loop() {
		if _, err := Build(machine(), ReadFile); err != nil {
			b.Fatal(err)
		}
	}
}

package hypervisortest

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestGuest: QEMU, which takes such images too, shows that the guest is what it is
// said to be.
func TestGuest(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, Guest(), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "monitor")
	cmd := exec.CommandContext(t.Context(), qemu, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", "tcg",
		"-m", "64M", "-kernel", kernel, "-serial", "stdio", "-monitor", "unix:"+socket+",server=on,wait=off")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	r := bufio.NewReader(out)
	expect := func(text string) {
		t.Helper()
		var got strings.Builder
		for !strings.HasSuffix(got.String(), text) {
			b, err := r.ReadByte()
			if err != nil {
				t.Fatalf("%v after %q, want %q", err, got.String(), text)
			}
			got.WriteByte(b)
		}
	}
	say := func(text string) {
		if _, err := io.WriteString(in, text); err != nil {
			t.Fatal(err)
		}
	}
	expect(GuestUp)
	say("echo")
	expect("echo")
	say("kx")
	expect("x")
	say("w")
	expect("x")
	say("r")
	expect(GuestUp)

	// The power button: of no effect before "b", and remembered by nobody.
	monitor, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer monitor.Close()
	press := func() {
		if _, err := io.WriteString(monitor, "system_powerdown\n"); err != nil {
			t.Fatal(err)
		}
	}
	press()
	say("echo")
	expect("echo")
	say("b")
	expect("b")
	press()
	if err := cmd.Wait(); err != nil {
		t.Errorf("powering off: %v", err)
	}
}

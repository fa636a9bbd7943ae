package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/image/pull"
)

// openTerminal makes a terminal: the program's side, and that of the person who
// sits at it.
func openTerminal(t *testing.T) (program, person *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program, person
}

// terminal is a terminal and what is read on its other side, once it is closed.
func terminal(t *testing.T) (tty *os.File, shown func() string) {
	t.Helper()
	tty, master := openTerminal(t)
	return tty, func() string {
		tty.Close()
		b, _ := io.ReadAll(master) // ends with EIO
		return string(b)
	}
}

var (
	quarter = pull.Progress{Phase: pull.Downloading, Done: 100 << 20, Total: 400 << 20, Rate: 10 << 20}
	broken  = pull.Progress{Phase: pull.Retrying, Done: 100 << 20, Total: 400 << 20, Err: errors.New("no luck")}
)

// On a terminal there is one line, which is drawn again and again, and none in the
// end.
func TestPullProgressOnTerminal(t *testing.T) {
	tty, shown := terminal(t)
	u := &ui{err: tty, out: io.Discard, format: textFormat}
	s := pullProgress{ui: u, name: "debian-13", printed: time.Now()}
	s.report(quarter)
	s.report(quarter) // too soon
	s.report(broken)
	u.clearLine()
	const erase = "\r\x1b[K"
	want := erase + "debian-13: downloading 25 % of 400 MiB, 10 MiB/s, 30s left" +
		erase + "debian-13: connection broken, trying again 25 % of 400 MiB: no luck" + erase
	if got := shown(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Elsewhere there is a line now and then, and one for each thing that happens.
func TestPullProgressElsewhere(t *testing.T) {
	for format, want := range map[format]string{
		textFormat: "vmctl: debian-13: downloading 25 % of 400 MiB, 10 MiB/s, 30s left\nvmctl: debian-13: connection broken, trying again 25 % of 400 MiB: no luck\n",
		jsonFormat: "",
	} {
		var b strings.Builder
		s := pullProgress{ui: &ui{err: &b, out: io.Discard, format: format}, name: "debian-13", printed: time.Now()}
		s.report(quarter) // too soon
		s.printed = s.printed.Add(-printStep)
		s.report(quarter)
		s.report(broken)
		if b.String() != want {
			t.Errorf("%v: got %q, want %q", format, b.String(), want)
		}
	}
}

// What does not fit is not written at all, and what was there stays.
func TestExportWithoutRoom(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	if err := unix.Mount("vmctl-test", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	a := &app{paths: config.SystemPaths(root), ui: &ui{err: io.Discard, out: io.Discard, format: textFormat}}
	file := filepath.Join(root, "golden.img")
	if err := os.WriteFile(file, bytes.Repeat([]byte("golden.."), 1<<17), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := runImageImport(t.Context(), a, pullOptions{}, file); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "out")
	if err := os.WriteFile(target, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"", "qcow2"} {
		err := runImageExport(t.Context(), a, exportOptions{format: format, force: true}, "golden", target)
		if err == nil || !strings.HasPrefix(err.Error(), "export golden: ") || !strings.Contains(err.Error(), "o space left on device") {
			t.Errorf("%q: got %v", format, err)
		}
		if b, err := os.ReadFile(target); err != nil || string(b) != "before" {
			t.Errorf("%q: %q, %v", format, b, err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("%q: left %v, %v", format, entries, err)
		}
	}
}

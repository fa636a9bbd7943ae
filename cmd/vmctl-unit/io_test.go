package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

// What a disk could not read or write is told, with the disk and why.
func TestDiskErrorIsTold(t *testing.T) {
	h := newHost(t)
	// The firmware tries to boot from it first.
	h.define(h.definition() + `
[hypervisor_options]
extra_args = [
  "-blockdev", "driver=null-co,node-name=null,size=1048576",
  "-blockdev", "driver=blkdebug,node-name=disk-bad,image=null,inject-error.0.event=none,inject-error.0.errno=5",
  "-device", "virtio-blk-pci,drive=disk-bad,bootindex=0",
]
`)
	h.start()
	h.notify.wait(t, "STATUS=Disk error: disk bad: read: Input/output error")
}

// What is chosen for disks is told, kept, and what the hypervisor is given.
func TestIOIsChosen(t *testing.T) {
	h := newHost(t)
	cannot := filepath.Join(h.paths.Root, "ramfs")
	h.mkdir(cannot, 0o755)
	if err := unix.Mount("vmctl-test", cannot, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(cannot, unix.MNT_DETACH) })
	h.mkdir(cannot, 0o755)
	data := filepath.Join(cannot, "data.img")
	h.write(data, "", 0o666)
	if err := errors.Join(unix.Truncate(data, 1<<20), unix.Chmod(data, 0o666)); err != nil {
		t.Fatal(err)
	}
	definition := func(more string) {
		h.define(fmt.Sprintf("accel = \"tcg\"\nmemory = \"64M\"\nvsock.enabled = false\n[disk.boot]\npath = %q\n[disk.data]\npath = %q\n%s\n", h.disk, data, more))
	}
	definition("")
	p := h.start()
	var r hypervisor.Record
	h.readJSON(h.paths.VMJSON(h.vm), &r)
	if len(r.IO) != 2 || !r.IO[0].Direct || r.IO[1].Direct || r.IO[1].AIO != hypervisor.Threads {
		t.Fatalf("chosen: %+v", r.IO)
	}
	if _, mode := h.stat(h.paths.VMJSON(h.vm)); mode != 0o600 {
		t.Errorf("vm.json has the mode %o", mode)
	}
	for _, want := range []string{
		"disk boot: " + h.disk + ": direct I/O by " + r.IO[0].AIO,
		"disk data: " + data + ": the host's page cache by threads (" + data + " cannot do direct I/O: invalid argument)",
	} {
		if !strings.Contains(h.log(), want) {
			t.Errorf("%q was not told, but %s", want, h.log())
		}
	}
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.cleanup(p)

	// What cannot be is refused, and not started again.
	definition(`cache = "none"`)
	h.newRuntimeDir()
	h.must(nil, "prepare", h.vm)
	p = h.run()
	p.Wait()
	want := `disk.data.cache: "none" needs direct I/O, ` + data + `: ` + data + ` cannot do direct I/O: invalid argument; use "auto" or "writeback"`
	if got := h.log(); p.ProcessState.ExitCode() != exitConfig || !strings.Contains(got, want) {
		t.Errorf("exit status %d, %s", p.ProcessState.ExitCode(), got)
	}
}

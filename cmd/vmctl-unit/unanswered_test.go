package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// unanswered stands between operations and the hypervisor: the first command
// named so is done, but nothing that comes after it reaches who asked. asked is
// closed then.
func (h host) unanswered(command string) (asked chan struct{}) {
	h.Helper()
	path := h.paths.JobSocket(h.vm)
	behind := filepath.Join(filepath.Dir(path), "behind.sock")
	if err := os.Rename(path, behind); err != nil {
		h.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { l.Close() })
	asked = make(chan struct{})
	go func() {
		for first := true; ; first = false {
			asker, err := l.AcceptUnix()
			if err != nil {
				return
			}
			qmp, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: behind, Net: "unix"})
			if err != nil {
				asker.Close()
				return
			}
			if !first {
				command = "\x00"
			}
			between(asker, qmp, command, asked)
		}
	}()
	return asked
}

// between copies in both directions, files too, until the asker has gone.
func between(asker, qmp *net.UnixConn, command string, asked chan struct{}) {
	defer asker.Close()
	defer qmp.Close()
	silent := make(chan struct{})
	go func() {
		p := make([]byte, 64<<10)
		for {
			n, err := qmp.Read(p)
			select {
			case <-silent:
				close(asked)
				io.Copy(io.Discard, qmp)
				return
			default:
			}
			if err != nil {
				return
			}
			asker.Write(p[:n])
		}
	}()
	p, oob := make([]byte, 64<<10), make([]byte, 1024)
	for {
		n, k, _, _, err := asker.ReadMsgUnix(p, oob)
		if err != nil || n == 0 {
			return
		}
		if bytes.Contains(p[:n], []byte(`"execute":"`+command+`"`)) {
			close(silent)
		}
		qmp.WriteMsgUnix(p[:n], oob[:k], nil)
		if messages, err := unix.ParseSocketControlMessage(oob[:k]); err == nil {
			for _, m := range messages {
				files, _ := unix.ParseUnixRights(&m)
				for _, fd := range files {
					unix.Close(fd)
				}
			}
		}
	}
}

// interrupt does something to a disk, ends that when it has asked, and returns
// its error, "" for none.
func (h host) interrupt(asked chan struct{}, what string, q hypervisor.DiskRequest) string {
	h.Helper()
	q.Timeout = time.Minute
	cmd := h.operation(what, q)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	select {
	case <-asked:
	case <-time.After(time.Minute):
		h.Error("it was not asked")
	}
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	err := operation.Follow(&out, func(operation.Progress) {}, func(string) {}, nil)
	if err == nil {
		return ""
	}
	return err.Error()
}

func (h host) unfinished() *operation.Record {
	h.Helper()
	r, err := operation.Unfinished(h.paths, h.vm)
	if err != nil {
		h.Fatal(err)
	}
	return r
}

// Who asked for a disk is ended before the answer comes: the hypervisor has it,
// so it stays the guest's, with its file, and is known.
func TestAttachUnanswered(t *testing.T) {
	for _, made := range []bool{true, false} {
		h := newHost(t)
		h.start()
		path := h.paths.Disk(h.vm, "data", "qcow2")
		table := "size = \"1M\"\n"
		if !made {
			path = h.guestFile("data.img", 1<<20)
			table = "format = \"raw\"\npath = \"" + path + "\"\n"
		}
		q := hypervisor.DiskRequest{Disk: h.parseDisk("data", table)}
		if got := h.interrupt(h.unanswered("device_add"), hypervisor.DiskAttach, q); got != "" {
			t.Errorf("got %q", got)
		}
		if _, there := h.plugged()["data"]; !there {
			t.Fatal("it is not there, so this tests nothing")
		}
		if !access.IsThere(path) {
			t.Error("the file of a disk in use was removed")
		}
		if c := h.changes(); len(c.Disks) != 1 || h.unfinished() != nil {
			t.Errorf("changed are %+v; unfinished is %v", c, h.unfinished())
		}
		held, err := os.ReadFile(h.paths.Grants(h.vm))
		if err != nil || !made && !strings.Contains(string(held), `"disk.data.path"`) {
			t.Errorf("the machine holds %s, %v", held, err)
		}
	}
}

// Before its device is there, nothing of it stays.
func TestAttachUnansweredEarly(t *testing.T) {
	h := newHost(t)
	h.start()
	made := h.parseDisk("made", "size = \"1M\"\nbus = \"usb\"\n")
	if got := h.interrupt(h.unanswered("blockdev-add"), hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: made}); got == "" {
		t.Error("no error")
	}
	if access.IsThere(h.paths.Disk(h.vm, "made", "qcow2")) || !h.changes().None() || h.unfinished() != nil {
		t.Errorf("left are %+v, %v, or the file", h.changes(), h.unfinished())
	}
	if got := h.operate(hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: made}); got != "" {
		t.Errorf("again: %s", got)
	}
}

func TestInsertUnanswered(t *testing.T) {
	h := newHost(t)
	first, second := h.guestFile("first.iso", 1<<20), h.guestFile("second.iso", 2<<20)
	h.define(h.definition() + "\n[disk.cd]\nmedia = \"cdrom\"\npath = \"" + first + "\"\n")
	h.start()
	q := hypervisor.DiskRequest{Disk: config.Disk{Name: "cd", Path: second, Format: "raw"}}
	if got := h.interrupt(h.unanswered("blockdev-insert-medium"), hypervisor.DiskInsert, q); !strings.Contains(got, "the drive is empty now") {
		t.Errorf("got %q", got)
	}
	if c := h.changes(); h.plugged()["cd"] != 0 || len(c.Empty) != 1 || h.unfinished() != nil {
		t.Errorf("in the drive are %d bytes; changed are %+v", h.plugged()["cd"], c)
	}
}

// fix has nobody replace what is noted of changes, as on a full file system,
// until done is called.
func (h host) fix() (done func()) {
	h.Helper()
	path := h.paths.Changes(h.vm)
	if !access.IsThere(path) {
		h.write(path, "{}", 0o644)
	}
	if err := unix.Mount(path, path, "", unix.MS_BIND, ""); err != nil {
		h.Fatal(err)
	}
	mounted := true
	done = func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(path, 0); err != nil {
				h.Error(err)
			}
		}
	}
	h.Cleanup(done)
	return done
}

// What could not be noted is known to be unfinished, and is noted when it can be.
func TestChangesNotNoted(t *testing.T) {
	h := newHost(t)
	h.define(h.definition() + "\n[disk.cd]\nmedia = \"cdrom\"\npath = \"" + h.guestFile("first.iso", 1<<20) + "\"\n")
	h.start()
	made := hypervisor.DiskRequest{Disk: h.parseDisk("made", "size = \"1M\"\nbus = \"usb\"\n")}
	for _, test := range []struct {
		what  string
		q     hypervisor.DiskRequest
		noted func(hypervisor.Changes) bool
	}{
		{hypervisor.DiskAttach, made, func(c hypervisor.Changes) bool { return len(c.Disks) == 1 }},
		{hypervisor.DiskEject, hypervisor.DiskRequest{Disk: config.Disk{Name: "cd"}}, func(c hypervisor.Changes) bool { return len(c.Empty) == 1 }},
	} {
		done := h.fix()
		for range 2 {
			if got := h.operate(test.what, test.q); got == "" {
				t.Errorf("%s: no error", test.what)
			}
			if h.unfinished() == nil {
				t.Errorf("%s: nothing is to be mended", test.what)
			}
		}
		done()
		h.must(nil, "mend", h.vm)
		if c := h.changes(); !test.noted(c) || h.unfinished() != nil {
			t.Errorf("%s: mended, changed are %+v", test.what, c)
		}
	}
	if got := h.operate(hypervisor.DiskAttach, made); !strings.Contains(got, "has a disk named made already") {
		t.Errorf("got %q", got)
	}
	if got := h.operate(hypervisor.DiskDetach, made); got != "" {
		t.Error(got)
	}
}

// A start waits for what is done to the disks.
func TestPrepareWaits(t *testing.T) {
	h := newHost(t)
	_, unlock, err := operation.Lock(h.paths, h.vm, "a snapshot")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ended := make(chan int)
	go func() {
		_, status := h.do(nil, "prepare", h.vm)
		ended <- status
	}()
	h.notify.wait(t, "STATUS=Waiting: a snapshot, process ")
	h.notify.wait(t, "EXTEND_TIMEOUT_USEC=")
	unlock()
	if status := <-ended; status != 0 {
		t.Errorf("exit status %d", status)
	}
}

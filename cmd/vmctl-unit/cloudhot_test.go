package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// TestCloudDisks: disks are plugged into a machine of cloud-hypervisor's and taken
// out while it runs, and what is noted of that is what it has.
func TestCloudDisks(t *testing.T) {
	h := newCloudHost(t, "")
	p := h.start()
	data := h.parseDisk("data", "size = \"1M\"\nformat = \"raw\"\n")
	if err := h.operate(hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: data}); err != "" {
		t.Fatal(err)
	}
	file := h.paths.Disk(h.vm, "data", "raw")
	if s, err := os.Stat(file); err != nil || s.Size() != 1<<20 {
		t.Errorf("got %v, %v", s, err)
	}
	if _, there := h.plugged()["data"]; !there || len(h.changes().Disks) != 1 {
		t.Errorf("plugged in is %v, noted %v", h.plugged(), h.changes())
	}
	if err := h.operate(hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: data}); !strings.Contains(err, "has a disk named data already") {
		t.Errorf("got %q", err)
	}
	h.control(func(ctx context.Context, c hypervisor.Control) error {
		return c.(hypervisor.DiskHotplug).ResizeDisk(ctx, hypervisor.HotDisk{Disk: data}, 2<<20)
	})
	if s, err := os.Stat(file); err != nil || s.Size() != 2<<20 {
		t.Errorf("got %v, %v", s, err)
	}

	qcow2 := h.parseDisk("other", "size = \"1M\"\nformat = \"qcow2\"\n")
	if err := h.operate(hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: qcow2}); !strings.Contains(err, "not supported by cloud-hypervisor while it is written to") {
		t.Errorf("got %q", err)
	}

	// A guest that does not let go of it, and then does.
	h.say("deaf", "deaf\r\n")
	request := hypervisor.DiskRequest{Disk: data, Timeout: 200 * time.Millisecond}
	if err := h.operate(hypervisor.DiskDetach, request); !strings.Contains(err, "the guest has not let go of data") {
		t.Errorf("got %q", err)
	}
	if leaving := h.changes().Leaving; len(leaving) != 1 {
		t.Errorf("leaving is %q", leaving)
	}
	h.ask("willing", "willing\r\n")
	request.Timeout = time.Minute
	if err := h.operate(hypervisor.DiskDetach, request); err != "" {
		t.Error(err)
	}
	if _, there := h.plugged()["data"]; there || !h.changes().None() {
		t.Errorf("plugged in is %v, noted %v", h.plugged(), h.changes())
	}

	// What it was started with can be taken out too.
	root := h.parseDisk("root", "path = \""+h.disk+"\"\nformat = \"raw\"\n")
	if err := h.operate(hypervisor.DiskDetach, hypervisor.DiskRequest{Disk: root}); err != "" {
		t.Error(err)
	}
	if gone := h.changes().Gone; len(gone) != 1 || gone[0] != "root" {
		t.Errorf("gone is %q", gone)
	}
	p.Process.Kill()
	h.cleanup(p)
}

// TestCloudDiskElsewhere: of a file that a machine did not see at its start, it sees
// that alone, for as long as it has the disk.
func TestCloudDiskElsewhere(t *testing.T) {
	h := newCloudHost(t, "")
	p := h.start()
	file := filepath.Join(h.paths.Root, "disks", "other.img") // in a directory that is closed to it
	h.write(file, strings.Repeat("x", 512), 0o600)
	other := h.parseDisk("other", "path = \""+file+"\"\nformat = \"raw\"\n")
	shown := h.paths.ShownFile(h.vm, "disk.other")
	attach := func(d config.Disk, refused string) {
		t.Helper()
		if err := h.operate(hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: d}); refused == "" && err != "" || !strings.Contains(err, refused) {
			t.Errorf("got %q, want %q", err, refused)
		}
	}
	seen := func() string {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/root%s", p.Process.Pid, shown))
		return string(b)
	}
	attach(other, "")
	if got := seen(); len(got) != 512 || !hasACL(file) {
		t.Errorf("it sees %q, access %v", got, hasACL(file))
	}
	if s, err := os.Stat(shown); err != nil || s.Size() != 0 {
		t.Errorf("the host has %v, %v", s, err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.Process.Pid)); err != nil || !strings.Contains(string(b), shown+" rw,nosuid,noexec") {
		t.Errorf("%v: %s", err, b)
	}
	attach(h.parseDisk("twice", "path = \""+file+"\"\nformat = \"raw\"\n"), "is another disk of this machine already")
	attach(h.parseDisk("copy", "path = \""+file+"\"\nformat = \"raw\"\nephemeral = true\n"), "disk.copy.ephemeral: a copy of "+file)
	attach(h.parseDisk("written", "path = \""+file+"\"\nformat = \"qcow2\"\n"), "not supported by cloud-hypervisor while it is written to")
	attach(h.parseDisk("gone", "path = \"/nowhere.img\"\nformat = \"raw\"\n"), "/nowhere.img does not exist")
	h.say("reboot", "guest is up\r\n")
	if got := seen(); len(got) != 512 {
		t.Errorf("after a reboot it sees %q", got)
	}
	if err := h.operate(hypervisor.DiskDetach, hypervisor.DiskRequest{Disk: other, Timeout: time.Minute}); err != "" {
		t.Fatal(err)
	}
	h.nothingLeft(shown, file)
	// Who listens on its socket is another.
	h.inGroup(p.Process.Pid, "vm@other.service")
	attach(other, "is in /vm.slice/vm@other.service: want one of vm@"+h.vm+".service")
	h.nothingLeft(shown, file)
	h.inGroup(p.Process.Pid, config.Unit(h.vm))
	if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.Process.Pid)); strings.Contains(string(b), shown) {
		t.Errorf("it is still mounted: %s", b)
	}

	other.Readonly = true
	attach(other, "")
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.Process.Pid)); err != nil || !strings.Contains(string(b), shown+" ro,nosuid,noexec") {
		t.Errorf("%v: %s", err, b)
	}
	p.Process.Kill()
	h.cleanup(p)
	h.nothingLeft(shown, file)
}

func hasACL(file string) bool {
	n, err := unix.Getxattr(file, "system.posix_acl_access", nil)
	return err == nil && n > 0
}

// nothingLeft checks that a file is not shown any more, nor may the machine have it.
func (h host) nothingLeft(shown, file string) {
	h.Helper()
	if _, err := os.Lstat(shown); !errors.Is(err, fs.ErrNotExist) || hasACL(file) {
		h.Errorf("left is %v, access %v", err, hasACL(file))
	}
	if held, err := os.ReadFile(h.paths.Grants(h.vm)); err == nil && strings.Contains(string(held), file) {
		h.Errorf("the machine holds %s", held)
	}
}

// TestCloudEndsMeanwhile: a machine ends while it is given something, which its
// clean-up does not know of yet: of that nothing is left either.
func TestCloudEndsMeanwhile(t *testing.T) {
	h := newCloudHost(t, "")
	p := h.start()
	p.Process.Kill()
	h.cleanup(p)
	file, socket := filepath.Join(h.paths.Root, "disks", "other.img"), filepath.Join(h.paths.Root, "disks", "peer.sock")
	h.write(file, strings.Repeat("x", 512), 0o600)
	peer, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	a := h.inside()
	data, card := h.parseDisk("other", "path = \""+file+"\"\nformat = \"raw\"\n"), h.card("peer", "vhost_user = \""+socket+"\"\n")
	for _, test := range []struct {
		file  hypervisor.File
		agree func() (there bool, err error)
	}{
		{hypervisor.File{Key: "disk.other.path", Path: file, Write: true, At: h.paths.ShownFile(h.vm, data.Key())},
			func() (bool, error) { return a.agreeOnDisk(t.Context(), diskOperation{Disk: data}) }},
		{hypervisor.File{Key: "nic.peer.vhost_user", Path: socket, Write: true, Socket: true, At: h.paths.ShownFile(h.vm, card.Key())},
			func() (bool, error) { return a.agreeOnNIC(t.Context(), nicOperation{NIC: card}) }},
	} {
		r := &live{app: a}
		_, err := r.show(t.Context(), test.file, access.User{UID: vmUser, GID: vmUser}, func(hypervisor.File, *os.File) error { return nil })
		if err == nil || !access.IsThere(test.file.At) || !hasACL(test.file.Path) {
			t.Fatalf("%s was not left, so this tests nothing: %v", test.file.Path, err)
		}
		if there, err := test.agree(); there || err != nil {
			t.Errorf("got %v, %v", there, err)
		}
		h.nothingLeft(test.file.At, test.file.Path)
	}
}

// TestCloudDisksKilled kills operations at any moment: what is noted is what the
// hypervisor has, and a disk that is nowhere has left no file.
func TestCloudDisksKilled(t *testing.T) {
	h := newCloudHost(t, "")
	p := h.start()
	file := filepath.Join(h.paths.Root, "disks", "other.img")
	h.write(file, strings.Repeat("x", 512), 0o600)
	for _, definition := range []string{"size = \"1M\"\nformat = \"raw\"\n", "path = \"" + file + "\"\nformat = \"raw\"\n"} {
		killDisks(h, h.parseDisk("data", definition))
	}
	p.Process.Kill()
	h.cleanup(p)
}

func killDisks(h host, data config.Disk) {
	t := h.TB
	shown := h.paths.ShownFile(h.vm, data.Key())
	for range 8 {
		what := hypervisor.DiskAttach
		if _, there := h.plugged()["data"]; there {
			what = hypervisor.DiskDetach
		}
		cmd := h.operation(what, hypervisor.DiskRequest{Disk: data})
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rand.N(80 * time.Millisecond))
		cmd.Process.Kill()
		cmd.Wait()
		h.must(nil, "mend", h.vm)
		_, there := h.plugged()["data"]
		if noted := len(h.changes().Disks) == 1; there != noted || h.unfinished() != nil {
			t.Fatalf("after %s: there: %v, noted: %v, unfinished: %v", what, there, noted, h.unfinished())
		}
		if _, err := os.Lstat(shown); (err == nil) != (there && data.Path != "") {
			t.Fatalf("after %s: there: %v, shown: %v", what, there, err)
		}
	}
	if _, there := h.plugged()[data.Name]; there {
		if err := h.operate(hypervisor.DiskDetach, hypervisor.DiskRequest{Disk: data, Timeout: time.Minute}); err != "" {
			t.Fatal(err)
		}
	}
}

// TestCloudNICs: the same of cards.
func TestCloudNICs(t *testing.T) {
	makeBridge(t)
	h := newCloudHost(t, "")
	h.define("cpus = 2\n" + h.definition())
	p := h.start()
	lan := h.card("lan", "bridge = \"br0\"\nqueues = 2\n")
	h.nic(hypervisor.NICAttach, lan, "")
	if !h.agree(lan) {
		t.Fatal("the card is not there")
	}
	h.nic(hypervisor.NICAttach, lan, "has a card named lan already")
	down := lan
	down.Link = "down"
	h.nic(hypervisor.NICSet, down, "not supported by cloud-hypervisor, whose cards are always plugged in")
	h.nic(hypervisor.NICAttach, h.card("user", "user = true\n"), "not supported by cloud-hypervisor")
	h.nic(hypervisor.NICDetach, lan, "")
	if h.agree(lan) {
		t.Fatal("the card is there")
	}
	for range 8 {
		what := hypervisor.NICAttach
		if h.agree(lan) {
			what = hypervisor.NICDetach
		}
		cmd := h.nicOperation(what, lan)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rand.N(80 * time.Millisecond))
		cmd.Process.Kill()
		cmd.Wait()
		h.must(nil, "mend", h.vm)
		h.agree(lan)
	}
	p.Process.Kill()
	h.cleanup(p)
}

// TestCloudPeer: a card with a vhost-user peer, whose socket a machine that runs is
// shown, where the peer can map its memory.
func TestCloudPeer(t *testing.T) {
	h := newCloudHost(t, "[memory_options]\nshared = true\n")
	socket := filepath.Join(h.paths.Root, "disks", "peer.sock")
	peer, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	p := h.start()
	card := h.card("peer", "vhost_user = \""+socket+"\"\n")
	h.nic(hypervisor.NICAttach, card, "")
	shown := h.paths.ShownFile(h.vm, "nic.peer")
	if s, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", p.Process.Pid, shown)); err != nil || s.Mode().Type() != fs.ModeSocket {
		t.Errorf("it sees %v, %v", s, err)
	}
	h.nic(hypervisor.NICDetach, card, "")
	if _, err := os.Lstat(shown); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left is %v", err)
	}
	peer.Close()
	h.nic(hypervisor.NICAttach, card, "nic.peer.vhost_user: "+socket+" does not exist")
	p.Process.Kill()
	h.cleanup(p)

	h = newCloudHost(t, "")
	p = h.start()
	h.nic(hypervisor.NICAttach, card, "started with memory that no other process can map")
	p.Process.Kill()
	h.cleanup(p)
}

// TestCloudSet: CPUs, memory and the balloon change while it runs, as far as there is
// room, and the guest is willing.
func TestCloudSet(t *testing.T) {
	h := newCloudHost(t, "")
	h.define("cpus = 1\ncpu.max = 4\nmemory = \"256M\"\nmemory_options.max = \"512M\"\n" + h.definition())
	p := h.start()
	set := func(cpus int, memory config.Size) (r hypervisor.SetResult) {
		t.Helper()
		out, err := h.setOperation(cpus, memory).Output()
		if err != nil {
			t.Fatal(err)
		}
		if err := operation.Follow(strings.NewReader(string(out)), func(operation.Progress) {}, func(string) {}, &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := set(2, 300<<20); r.CPUs != 2 || r.Memory != 300<<20 || len(r.Waiting) != 0 {
		t.Errorf("got %+v", r)
	}
	if live := h.changes().Live; live == nil || live.CPUs != 2 || live.Memory != 300<<20 {
		t.Errorf("noted is %+v", live)
	}
	if r := set(5, 1<<30); r.CPUs != 2 || r.Memory != 300<<20 || !strings.Contains(r.Waiting["cpus"], "room for 4 CPUs") || !strings.Contains(r.Waiting["memory"], "room for 512 MiB") {
		t.Errorf("got %+v", r)
	}
	if r := set(1, 256<<20); r.CPUs != 1 || r.Memory != 256<<20 || len(r.Waiting) != 0 {
		t.Errorf("got %+v", r)
	}
	h.control(func(ctx context.Context, c hypervisor.Control) error {
		return c.(hypervisor.Resizer).SetBalloon(ctx, 128<<20)
	})
	if s := h.sizes(); s.Balloon != 128<<20 || s.StartMemory != 256<<20 || s.MaxMemory != 512<<20 || s.MaxCPUs != 4 {
		t.Errorf("got %+v", s)
	}
	for i := range 6 {
		cmd := h.setOperation(1+i%4, config.Size(256+2*i)<<20)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rand.N(60 * time.Millisecond))
		cmd.Process.Kill()
		cmd.Wait()
		h.must(nil, "mend", h.vm)
		s, live := h.sizes(), h.changes().Live
		if live == nil || live.CPUs != s.CPUs || int64(live.Memory) != s.Memory || h.unfinished() != nil {
			t.Fatalf("noted is %+v, it has %+v", live, s)
		}
	}
	p.Process.Kill()
	h.cleanup(p)
}

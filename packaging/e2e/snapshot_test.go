//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// snapshotRow is a snapshot as vmctl tells of it.
type snapshotRow struct {
	Name, Parent, State, Tag, Directory, Description string
	Quiesced, Scheduled, Current                     bool
	Disks                                            []struct{ Name, Path string }
	Files                                            []string
}

// snapshots are those of the machine.
func (v *vm) snapshots() map[string]snapshotRow {
	v.t.Helper()
	rows := map[string]snapshotRow{}
	for _, r := range decode[[]snapshotRow](v.t, run(v.t, "vmctl", "snapshot", "list", "-o", "json", v.name)) {
		rows[r.Name] = r
	}
	return rows
}

// snapshotNames are their names, sorted.
func (v *vm) snapshotNames() string {
	v.t.Helper()
	return strings.Join(strings.Fields(run(v.t, "vmctl", "snapshot", "list", "-q", v.name)), " ")
}

// tags are the snapshots inside of an image.
func tags(t testing.TB, path string) []string {
	t.Helper()
	info := decode[struct{ Snapshots []struct{ Name string } }](t, run(t, "qemu-img", "info", "-U", "--output=json", path))
	tags := []string{}
	for _, s := range info.Snapshots {
		tags = append(tags, s.Name)
	}
	return tags
}

// quietImage checks that an image is sound, and what snapshots it has.
func quietImage(t testing.TB, path string, tagged ...string) {
	t.Helper()
	// 3 is room that is taken for nothing: no data is wrong.
	if r := try("qemu-img", "check", path); r.code != 0 && r.code != 3 {
		t.Errorf("qemu-img check %s: %s", path, r.all())
	}
	if got := tags(t, path); !slices.Equal(got, tagged) {
		t.Errorf("%s has the snapshots %q, want %q", path, got, tagged)
	}
}

// unlocked checks that nothing of an operation is left.
func (v *vm) unlocked() {
	v.t.Helper()
	eventually(v.t, "no unit works on "+v.name, func() bool {
		return strings.TrimSpace(run(v.t, "systemctl", "list-units", "--no-legend", "--all", "--plain", "vm-snapshot@"+v.name+".service")) == ""
	})
	if _, err := os.Stat(v.stateDir() + "/operation.json"); err == nil {
		v.t.Errorf("an operation is left: %s", run(v.t, "cat", v.stateDir()+"/operation.json"))
	}
	left, _ := filepath.Glob(v.stateDir() + "/snapshots/.*.new")
	if len(left) > 0 {
		v.t.Errorf("%q is left", left)
	}
}

// writeAll and readAll are about all disks of the guest by their serial numbers.
func (v *vm) writeAll(text string, disks ...string) {
	v.t.Helper()
	seen := v.guestDisks(disks...)
	for _, d := range disks {
		v.write(seen[d], text+" on "+d)
	}
}

func (v *vm) readAll(text string, disks ...string) {
	v.t.Helper()
	seen := v.guestDisks(disks...)
	for _, d := range disks {
		if got := v.read(seen[d]); got != text+" on "+d {
			v.t.Errorf("%s: the guest reads %q, want %q", d, got, text+" on "+d)
		}
	}
}

// What is on several disks, and the UEFI variables, are back after a restore to a
// running and to a stopped machine; who was taken after whom is known.
func TestSnapshotRestore(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "snapshot")
	given := filepath.Join(dir, "given.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", given, "4M")
	run(t, "qemu-img", "snapshot", "-c", "foreign", given)
	disks := []string{"first", "second", "given"}
	definition := fmt.Sprintf(`boot.firmware = "uefi"
[disk.first]
size = "8M"
[disk.second]
size = "8M"
bus = "scsi"
[disk.given]
path = %q
[disk.scratch]
size = "8M"
ephemeral = true
[disk.cd]
path = %q
media = "cdrom"
`, given, image(t, filepath.Join(dir, "cd.img"), "cd", megabyte))
	v := newVM(t, "snapshot", definition)
	v.patience = 10 * time.Minute
	contains(t, fail(t, 4, "vmctl", "snapshot", "create", v.name, "early"), "disk.first: ", "does not exist: the machine has not been started with it yet")
	v.boot()
	v.writeAll("one", disks...)
	created := run(t, "vmctl", "snapshot", "create", v.name, "one", "--description", "the first", "--quiesce", "skip")
	if created != "snapshot: snapshot one created" {
		t.Errorf("create says %q", created)
	}
	contains(t, fail(t, 4, "vmctl", "snapshot", "create", v.name, "one"), "a snapshot is named one already")
	contains(t, fail(t, 4, "vmctl", "snapshot", "create", v.name, "--quiesce", "require"), "no guest agent runs in the guest")
	one := v.snapshots()["one"]
	if one.State != "running" || one.Parent != "" || !one.Current || one.Description != "the first" || len(one.Disks) != 3 || len(one.Files) != 1 {
		t.Errorf("the first snapshot is %+v", one)
	}
	v.readAll("one", disks...) // it runs on
	v.writeAll("two", disks...)
	auto := try("vmctl", "snapshot", "create", v.name, "two")
	contains(t, auto.all(), "snapshot two created", "as after a loss of power: no guest agent runs in the guest")
	v.writeAll("three", disks...)

	// To a running machine: it is ended and started again.
	contains(t, fail(t, 2, "vmctl", "snapshot", "restore", v.name, "one"), "it runs and is ended at once", "--yes")
	contains(t, fail(t, 3, "vmctl", "snapshot", "restore", "--yes", v.name, "onne"), "no snapshot of snapshot is named onne", `did you mean "one"?`)
	contains(t, run(t, "vmctl", "snapshot", "restore", "--yes", v.name, "one"), "restored to snapshot one", "started")
	v.expectReady()
	v.readAll("one", disks...)
	v.writeAll("four", disks...)

	// To a stopped one, with its UEFI variables.
	run(t, "vmctl", "stop", v.name)
	contains(t, run(t, "vmctl", "snapshot", "create", v.name, "four"), "created")
	four := v.snapshots()["four"]
	if four.State != "stopped" || four.Parent != "one" {
		t.Errorf("taken of a stopped machine, after a restore: %+v", four)
	}
	variables, err := filepath.Glob(v.stateDir() + "/nvram.*")
	if err != nil || len(variables) != 1 {
		t.Fatalf("the UEFI variables: %q, %v", variables, err)
	}
	before := run(t, "sha256sum", variables[0])
	run(t, "dd", "if=/dev/urandom", "of="+variables[0], "bs=1k", "count=4", "conv=notrunc", "status=none")
	contains(t, run(t, "vmctl", "snapshot", "restore", "--yes", v.name, "two"), "restored")
	run(t, "vmctl", "snapshot", "restore", "--yes", v.name, "four")
	for _, file := range []string{v.snapshots()["four"].Directory + "/" + filepath.Base(variables[0]), variables[0]} {
		if got := run(t, "sha256sum", file); got[:64] != before[:64] {
			t.Errorf("%s does not have the UEFI variables as they were", file)
		}
	}
	run(t, "vmctl", "start", v.name)
	v.expectReady()
	v.readAll("four", disks...)
	run(t, "vmctl", "snapshot", "restore", "--yes", v.name, "two")
	v.expectReady()
	v.readAll("two", disks...)

	contains(t, run(t, "vmctl", "snapshot", "tree", v.name), "└── one", "    ├── two *", "    └── four")
	// Live and not; what was taken after it has its parent.
	run(t, "vmctl", "snapshot", "delete", "--yes", v.name, "one")
	v.readAll("two", disks...)
	run(t, "vmctl", "stop", v.name)
	if rows := v.snapshots(); rows["two"].Parent != "" || rows["four"].Parent != "" || len(rows) != 2 {
		t.Errorf("after the deletion: %+v", rows)
	}
	quietImage(t, given, "foreign", v.snapshots()["two"].Tag, v.snapshots()["four"].Tag)
	run(t, "vmctl", "snapshot", "delete", "--yes", "--all", v.name)
	quietImage(t, given, "foreign")
	quietImage(t, v.stateDir()+"/disk-first.qcow2")
	v.unlocked()

	// Other disks than then.
	run(t, "vmctl", "snapshot", "create", v.name, "base")
	v.define(littleGuest("cloud", "") + definition + "[disk.new]\nsize = \"4M\"\n")
	contains(t, fail(t, 4, "vmctl", "snapshot", "restore", "--yes", v.name, "base"), "disk.new: it was added since", "--force")
	forced := try("vmctl", "snapshot", "restore", "--yes", "--force", v.name, "base")
	contains(t, forced.all(), "restored to snapshot base", "disk.new: it was added since")
	v.define(littleGuest("cloud", "") + definition + "[disk.raw]\nsize = \"4M\"\nformat = \"raw\"\n")
	contains(t, fail(t, 4, "vmctl", "snapshot", "create", v.name), "disk.raw.format: a raw disk cannot take part in snapshots: convert it to qcow2")
	run(t, "vmctl", "delete", "--yes", v.name)
	if _, err := os.Stat(v.stateDir()); err == nil {
		t.Error("the state directory is left")
	}
}

// Where one of several disks has no room, none is taken, and the guest goes on.
func TestSnapshotOnFullDisk(t *testing.T) {
	newerSuiteOnly(t, "what runs out of space is ours, and done with enough of it on both")
	t.Parallel()
	dir := hostDir(t, "snapshot-full")
	run(t, "mount", "-t", "tmpfs", "-o", "size=2M,mode=0755", "tmpfs", dir)
	t.Cleanup(func() { run(t, "umount", "-l", dir) })
	small := filepath.Join(dir, "small.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", small, "4M")
	v := newVM(t, "snapshot-full", fmt.Sprintf("[disk.big]\nsize = \"8M\"\n[disk.small]\npath = %q\n", small))
	v.boot()
	v.writeAll("before", "big", "small")
	fill := func() {
		t.Helper()
		try("dd", "if=/dev/zero", "of="+dir+"/fill", "bs=4k", "status=none")
	}
	for _, live := range []bool{true, false} {
		if !live {
			run(t, "vmctl", "stop", v.name)
		}
		fill()
		contains(t, fail(t, 1, "vmctl", "snapshot", "create", v.name, "full"), "No space left on device")
		v.unlocked()
		if names := v.snapshotNames(); names != "" {
			t.Errorf("the snapshots %q are there", names)
		}
		for _, path := range []string{v.stateDir() + "/disk-big.qcow2", small} {
			if got := tags(t, path); len(got) > 0 {
				t.Errorf("%s has the snapshots %q", path, got)
			}
		}
		if live {
			v.readAll("before", "big", "small")
		}
		run(t, "rm", dir+"/fill")
	}
	quietImage(t, small)
	run(t, "vmctl", "snapshot", "create", v.name, "room")
	v.boot()
	v.readAll("before", "big", "small")
	run(t, "vmctl", "stop", v.name)
}

// A timer takes snapshots, and keeps as many as it is told to, and all that
// people took.
func TestSnapshotSchedule(t *testing.T) {
	t.Parallel()
	v := newVM(t, "snapshot-timer", "snapshots.schedule = \"*-*-* 03:00:00\"\nsnapshots.keep = 2\n[disk.root]\nsize = \"8M\"\n")
	timer, service := "vm-scheduled-snapshot@snapshot-timer.timer", "vm-scheduled-snapshot@snapshot-timer.service"
	t.Cleanup(func() { try("systemctl", "stop", timer) })
	v.boot()
	contains(t, run(t, "systemctl", "list-timers", "--all", "--no-pager", timer), timer, service)
	contains(t, run(t, "systemctl", "cat", timer), "OnCalendar=*-*-* 03:00:00")
	if wanted := run(t, "systemctl", "show", "-P", "WantedBy", timer); !strings.Contains(wanted, "timers.target") {
		t.Errorf("the timer is wanted by %q", wanted)
	}
	run(t, "vmctl", "snapshot", "create", v.name, "by-hand", "--quiesce", "skip")
	run(t, "systemctl", "start", service)
	run(t, "systemctl", "start", service)
	run(t, "vmctl", "stop", v.name)
	run(t, "systemctl", "start", service)
	rows, scheduled := v.snapshots(), 0
	for _, r := range rows {
		if r.Scheduled {
			scheduled++
		}
	}
	if _, ok := rows["by-hand"]; !ok || scheduled != 2 || len(rows) != 3 {
		t.Errorf("there are %+v", rows)
	}
	if got := tags(t, v.stateDir()+"/disk-root.qcow2"); len(got) != 3 {
		t.Errorf("the image has the snapshots %q", got)
	}
	contains(t, run(t, "vmctl", "check", v.name), "1 definition checked, ")
	// A schedule that is gone, and one that is new, of a machine that does not run.
	state := func(want string) {
		t.Helper()
		if got := try("systemctl", "is-active", timer).all(); strings.TrimSpace(got) != want {
			t.Errorf("the timer is %s, want %s", got, want)
		}
	}
	state("active")
	v.define(littleGuest("cloud", "") + "[disk.root]\nsize = \"8M\"\n")
	run(t, "vmctl", "reload", v.name)
	state("inactive")
	v.define(littleGuest("cloud", "") + "snapshots.schedule = \"daily\"\n[disk.root]\nsize = \"8M\"\n")
	run(t, "systemctl", "daemon-reload")
	run(t, "vmctl", "reload", v.name)
	state("active")
	v.define(littleGuest("cloud", "") + "snapshots.schedule = \"Mon..Fun 22:30\"\n[disk.root]\nsize = \"8M\"\n")
	contains(t, try("vmctl", "check", v.name).all(), "snapshots.schedule: systemd does not understand it")
}

// Whoever is killed at whatever moment, the disks are whole afterwards, what is
// on them is of one moment, and nothing stays locked.
func TestSnapshotKilled(t *testing.T) {
	newerSuiteOnly(t, "what is cut off is ours, and done undisturbed on both")
	t.Parallel()
	v := newVM(t, "snapshot-killed", "lifecycle.restart = \"no\"\n[disk.a]\nsize = \"64M\"\n[disk.b]\nsize = \"64M\"\n")
	v.boot()
	v.writeAll("start", "a", "b")
	run(t, "vmctl", "snapshot", "create", v.name, "start", "--quiesce", "skip")
	v.writeAll("now", "a", "b")
	paths := []string{v.stateDir() + "/disk-a.qcow2", v.stateDir() + "/disk-b.qcow2"}
	victims := []string{"vmctl", "helper", "QEMU"}
	for i := range 20 {
		victim := victims[i%len(victims)]
		name := fmt.Sprintf("round-%d", i)
		cmd := exec.Command("vmctl", "snapshot", "create", v.name, name, "--quiesce", "skip")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		v.killOne(victim, cmd)
		err := cmd.Wait()
		t.Logf("%s: %s was killed: %v", name, victim, err)
		if victim == "QEMU" {
			v.waitState("failed", "inactive")
			eventually(t, "the operation has ended", func() bool {
				return try("systemctl", "is-active", "--quiet", "vm-snapshot@"+v.name+".service").code != 0
			})
			run(t, "systemctl", "reset-failed", v.unit())
			v.boot()
		}
		v.unlocked()
		want := []string{}
		for _, s := range v.sortedSnapshots() {
			want = append(want, s.Tag)
		}
		for _, path := range paths {
			if got := tags(t, path); !slices.Equal(got, want) {
				t.Errorf("%s has the snapshots %q, want %q", path, got, want)
			}
		}
		v.readAll("now", "a", "b")
	}
	run(t, "vmctl", "stop", v.name)
	for _, path := range paths {
		if r := try("qemu-img", "check", path); r.code != 0 && r.code != 3 {
			t.Errorf("qemu-img check %s: %s", path, r.all())
		}
	}

	// Restores, of a machine that does not run.
	run(t, "vmctl", "snapshot", "create", v.name, "now")
	for i := range 20 {
		to := []string{"start", "now"}[i%2]
		cmd := exec.Command("vmctl", "snapshot", "restore", "--yes", v.name, to)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond)
		v.killOne(victims[i%2], cmd)
		t.Logf("restore to %s: %s was killed: %v", to, victims[i%2], cmd.Wait())
		v.unlocked()
		texts := []string{qcowText(t, paths[0]), qcowText(t, paths[1])}
		if !(texts[0] == "start on a" && texts[1] == "start on b") && !(texts[0] == "now on a" && texts[1] == "now on b") {
			t.Fatalf("the disks hold %q", texts)
		}
		for _, path := range paths {
			if r := try("qemu-img", "check", path); r.code != 0 && r.code != 3 {
				t.Errorf("qemu-img check %s: %s", path, r.all())
			}
		}
	}
	run(t, "vmctl", "snapshot", "restore", "--yes", "--start", v.name, "start")
	v.expectReady()
	v.readAll("start", "a", "b")
	run(t, "vmctl", "stop", v.name)
}

// sortedSnapshots are the machine's, the oldest first.
func (v *vm) sortedSnapshots() []snapshotRow {
	v.t.Helper()
	return decode[[]snapshotRow](v.t, run(v.t, "vmctl", "snapshot", "list", "-o", "json", v.name))
}

// killOne kills a command of vmctl's, what it has started, or the hypervisor.
func (v *vm) killOne(victim string, cmd *exec.Cmd) {
	v.t.Helper()
	switch victim {
	case "vmctl":
		cmd.Process.Signal(syscall.SIGKILL)
	case "QEMU":
		run(v.t, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", v.unit())
	case "helper":
		// Where there is none yet, or no more, that is a moment too.
		try("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "vm-snapshot@"+v.name+".service")
	}
}

// qcowText is the text with which a disk in a qcow2 image begins.
func qcowText(t testing.TB, path string) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	run(t, "qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=512", "count=1", "if="+path, "of="+raw)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}

// A real guest agent freezes the guest's file systems for a snapshot, and they
// are thawed again, also where who had them frozen is killed.
func TestSnapshotQuiesced(t *testing.T) {
	newerSuiteOnly(t, "a guest is frozen for a backup on both, by the same means")
	t.Parallel()
	from := os.Getenv("VMCTL_DEBIAN")
	dir := t.TempDir()
	disk := filepath.Join(dir, "root.qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", filepath.Join(from, "disk.raw"), disk)
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "key"))
	v := newVMFrom(t, "quiesced", fmt.Sprintf(`
cpus = 2
memory = "768M"
[boot]
kernel = %q
initrd = %q
cmdline = "console=ttyS0 root=/dev/vda rw quiet no_timer_check"
[disk.root]
path = %q
[nic.lan]
user = true
forward = ["127.0.0.1:2223:22/tcp"]
[cloud_init]
hostname = "quiesced"
user = "alice"
ssh_keys = [%q]
`, filepath.Join(from, "vmlinuz"), filepath.Join(from, "initrd"), disk, run(t, "cat", filepath.Join(dir, "key.pub"))))
	v.patience = 15 * time.Minute
	v.start()
	inside := func(command string) result {
		return try("ssh", "-q", "-i", filepath.Join(dir, "key"), "-p", "2223", "-o", "StrictHostKeyChecking=no",
			"-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=60", "-o", "ServerAliveInterval=30", "alice@127.0.0.1", command)
	}
	eventuallyIn(t, v.patience, "the guest agent runs", func() bool { return inside("systemctl is-active qemu-guest-agent").code == 0 })
	writes := func() {
		t.Helper()
		eventually(t, "the guest writes", func() bool { return inside("date >stamp && sync stamp").code == 0 })
	}
	if r := inside("echo before >file && sync file"); r.code != 0 {
		t.Fatal(r.all())
	}
	run(t, "vmctl", "snapshot", "create", v.name, "quiet", "--quiesce", "require")
	if !v.snapshots()["quiet"].Quiesced {
		t.Errorf("not quiesced: %+v", v.snapshots())
	}
	writes()

	// Killed while the guest is frozen, as the note of the operation tells.
	for killed, missed := 0, 0; killed < 3; {
		cmd := exec.Command("vmctl", "snapshot", "create", v.name, "killed", "--quiesce", "require")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			cmd.Wait()
		}()
		hit := false
		for over := false; !hit && !over; {
			var note struct{ Detail struct{ Frozen bool } }
			b, _ := os.ReadFile(v.stateDir() + "/operation.json")
			if json.Unmarshal(b, &note) == nil && note.Detail.Frozen {
				time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
				try("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "vm-snapshot@"+v.name+".service")
				hit = true
			}
			select {
			case <-ended:
				over = true
			case <-time.After(time.Millisecond):
			}
		}
		<-ended
		if hit {
			killed++
		} else if missed++; missed > 20 {
			t.Fatal("the guest is never seen frozen")
		}
		v.unlocked()
		writes()
		if slices.Contains(strings.Fields(v.snapshotNames()), "killed") {
			run(t, "vmctl", "snapshot", "delete", "--yes", v.name, "killed")
		}
	}
	if r := inside("echo after >file && sync file"); r.code != 0 {
		t.Fatal(r.all())
	}
	run(t, "vmctl", "snapshot", "restore", "--yes", v.name, "quiet")
	eventuallyIn(t, v.patience, "the file is what it was", func() bool { return strings.TrimSpace(inside("cat file").stdout) == "before" })
	run(t, "vmctl", "stop", v.name)
}

// A machine restored with its memory goes on where it was, with the disks that it
// had at that moment, as often as one likes.
func TestSnapshotMemory(t *testing.T) {
	t.Parallel()
	v := newVM(t, "snapshot-memory", "[disk.data]\nsize = \"8M\"\n")
	v.boot()
	v.count()
	contains(t, fail(t, 2, "vmctl", "snapshot", "create", v.name, "--memory", "--quiesce", "require"), "want either --memory or --quiesce=require")
	run(t, "vmctl", "snapshot", "create", v.name, "alive", "--memory")
	taken := v.lastTick()
	v.ticks(taken + 10) // it runs on
	v.isNotSaved()
	for range 2 {
		contains(t, run(t, "vmctl", "snapshot", "restore", "--yes", v.name, "alive"), "restored to snapshot alive", "started")
		eventually(t, "the guest counts on from where it was", func() bool {
			n := v.lastTick()
			return n > 0 && n < taken+10
		})
		n := v.lastTick()
		v.ticks(n)
		if strings.Count(v.shown(), "vmctl-guest: ready") != 1 {
			t.Error("the guest has booted again")
		}
		v.isNotSaved()
	}
	run(t, "vmctl", "stop", v.name)

	// Of the disks alone: it boots.
	run(t, "vmctl", "snapshot", "restore", "--yes", "--disks-only", "--start", v.name, "alive")
	v.expectReady()
	run(t, "vmctl", "kill", v.name)
	v.define(littleGuest("cloud", "") + "cpus = 2\n[disk.data]\nsize = \"8M\"\n")
	contains(t, fail(t, 4, "vmctl", "snapshot", "restore", "--yes", v.name, "alive"), "the definition has changed since", "--disks-only")
	v.define(littleGuest("cloud", "") + "[disk.data]\nsize = \"8M\"\n[disk.scratch]\nsize = \"8M\"\nephemeral = true\n")
	run(t, "vmctl", "snapshot", "delete", "--yes", v.name, "alive")
	v.boot()
	contains(t, fail(t, 4, "vmctl", "snapshot", "create", v.name, "--memory"), "disk.scratch.ephemeral: the disk is made anew at each start")
	run(t, "vmctl", "kill", v.name)
}

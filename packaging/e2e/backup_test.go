//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// madeBackup is what vmctl backup and vmctl backup list say of one, as JSON.
type madeBackup struct {
	ID        string
	Directory string
	Bytes     int64
	Full      bool
	Quiesced  bool
	Disks     []struct {
		Disk, Parent, Reason string
		Bytes                int64
	}
	LeftOut     []string `json:"left_out"`
	NotQuiesced string   `json:"not_quiesced"`
}

// disk is how a disk was backed up: "full: REASON", or "incremental".
func (b madeBackup) disk(name string) string {
	for _, d := range b.Disks {
		if d.Disk == name {
			if d.Parent != "" {
				return "incremental"
			}
			return "full: " + d.Reason
		}
	}
	return "none"
}

func (v *vm) backup(target string, options ...string) madeBackup {
	v.t.Helper()
	return decode[madeBackup](v.t, run(v.t, append([]string{"vmctl", "-o", "json", "backup", v.name, target}, options...)...))
}

// sameContent checks that a backup of a disk holds what an image does.
func sameContent(t *testing.T, b madeBackup, disk, format, image string) {
	t.Helper()
	run(t, "qemu-img", "compare", "-f", "qcow2", "-F", format, "-U", filepath.Join(b.Directory, "disk-"+disk+".qcow2"), image)
}

// A machine is backed up while it runs and while it does not, each time no more
// than has changed where that is known, and else all.
func TestBackup(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "backup")
	target := filepath.Join(dir, "target")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	raw := image(t, filepath.Join(dir, "data.img"), "before", 16*megabyte)
	cd := image(t, filepath.Join(dir, "cd.iso"), "cd", megabyte)
	v := newVM(t, "backup", fmt.Sprintf(`
lifecycle.restart = "no"
[disk.root]
size = "64M"
[disk.data]
path = %q
format = "raw"
bus = "scsi"
[disk.cd]
path = %q
format = "raw"
media = "cdrom"
bus = "scsi"
[disk.forgets]
size = "1M"
ephemeral = true
`, raw, cd))
	contains(t, fail(t, 4, "vmctl", "backup", v.name, target), "disk-root.qcow2 does not exist: it is made at the first start")
	v.boot()
	disks := v.guestDisks("root", "data")
	fill := func(disk string, at, megabytes int) {
		t.Helper()
		v.typeLine(fmt.Sprintf("dd if=/dev/urandom of=/dev/%s bs=1M seek=%d count=%d conv=fsync 2>/dev/null; echo filled $?", disks[disk].name, at, megabytes))
		v.expect(`filled 0`)
	}
	fill("root", 0, 8)
	v.write(disks["data"], "one")

	first := v.backup(target)
	for _, disk := range []string{"root", "data"} {
		if got := first.disk(disk); got != "full: the first" {
			t.Errorf("disk %s: %s", disk, got)
		}
	}
	if got := strings.Join(first.LeftOut, ", "); got != "cd (read-only), forgets (ephemeral)" {
		t.Errorf("left out: %s", got)
	}
	if first.Quiesced || first.NotQuiesced == "" {
		t.Errorf("without an agent it was frozen: %+v", first)
	}

	v.write(disks["root"], "two")
	v.write(disks["data"], "two")
	second := v.backup(target)
	for _, d := range second.Disks {
		if d.Parent != first.ID || d.Bytes > megabyte {
			t.Errorf("the second backup: %+v", d)
		}
	}

	// Of the same moment, and while it runs no different from while it does not.
	fill("root", 4, 2)
	run(t, "systemctl", "stop", v.unit())
	third := v.backup(target)
	if got := third.disk("root"); got != "incremental" {
		t.Errorf("after a clean stop: %s", got)
	}
	if got := third.disk("data"); !strings.HasPrefix(got, "full: raw keeps in mind") {
		t.Errorf("a raw disk after a stop: %s", got)
	}
	root := v.stateDir() + "/disk-root.qcow2"
	sameContent(t, third, "root", "qcow2", root)
	sameContent(t, third, "data", "raw", raw)

	v.boot()
	fill("root", 20, 1)
	fourth := v.backup(target)
	if got := fourth.disk("root"); got != "incremental" {
		t.Errorf("started again: %s", got)
	}
	fill("root", 30, 1)
	run(t, "kill", "-KILL", fmt.Sprint(v.mainPID()))
	v.waitState("failed")
	fifth := v.backup(target)
	if got := fifth.disk("root"); !strings.HasPrefix(got, "full: what was written since is not known") {
		t.Errorf("after it was killed: %s", got)
	}
	sameContent(t, fifth, "root", "qcow2", root)
	if got := v.backup(target, "--full").disk("root"); got != "full: asked for" {
		t.Errorf("with --full: %s", got)
	}
	if got := v.backup(target).disk("root"); got != "incremental" {
		t.Errorf("after that: %s", got)
	}

	// Nothing is left of those that went before but what they are.
	contains(t, run(t, "vmctl", "backup", "verify", target), v.name+"/"+first.ID+": sound", v.name+"/"+fifth.ID+": sound")
	if all := decode[[]madeBackup](t, run(t, "vmctl", "-o", "json", "backup", "list", target)); len(all) != 7 || all[0].ID != first.ID {
		t.Errorf("listed: %+v", all)
	}
	damaged := filepath.Join(first.Directory, "disk-root.qcow2")
	f, err := os.OpenFile(damaged, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("x"), 2*megabyte)
	f.Close()
	contains(t, fail(t, 1, "vmctl", "backup", "verify", target), damaged+" has changed since it was written")
	contains(t, fail(t, 4, "vmctl", "backup", "delete", "--yes", first.Directory), "stands on it")
	run(t, "vmctl", "backup", "prune", "--yes", "--keep", "2", target)
	if all := decode[[]madeBackup](t, run(t, "vmctl", "-o", "json", "backup", "list", target)); len(all) != 2 {
		t.Errorf("left: %+v", all)
	}
	contains(t, fail(t, 3, "vmctl", "backup", v.name, dir+"/none"), "does not exist")
	fail(t, 2, "vmctl", "backup", v.name, raw)
	fail(t, 3, "vmctl", "backup", "no-such", target)
}

// A backup can be cancelled, there is one at a time, and a target that is too
// small is no harm to the guest.
func TestBackupCancelled(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "backup-cancelled")
	v := newVM(t, "backup-cancelled", "[disk.root]\nsize = \"64M\"\n")
	v.boot()
	disk := v.guestDisks()["root"]
	v.typeLine(fmt.Sprintf("dd if=/dev/urandom of=/dev/%s bs=1M count=16 conv=fsync 2>/dev/null; echo filled $?", disk.name))
	v.expect(`filled 0`)
	v.backup(dir)
	v.typeLine(fmt.Sprintf("dd if=/dev/urandom of=/dev/%s bs=1M count=16 conv=fsync 2>/dev/null; echo filled $?", disk.name))
	v.expect(`filled 0`)

	slow := make(chan result, 1)
	go func() { slow <- try("vmctl", "backup", v.name, dir, "--limit", "64K") }()
	unit := "vm-backup@" + v.name + ".service"
	eventually(t, "the backup copies", func() bool {
		found, _ := filepath.Glob(dir + "/" + v.name + "/.*.new/disk-root.qcow2")
		return len(found) == 1
	})
	contains(t, fail(t, 4, "vmctl", "backup", v.name, dir), "under way")
	v.write(disk, "while it is copied")
	run(t, "systemctl", "stop", unit)
	if r := <-slow; r.code == 0 {
		t.Errorf("a cancelled backup was made: %s", r.all())
	}
	if left, _ := filepath.Glob(dir + "/" + v.name + "/.*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if got := v.read(disk); got != "while it is copied" {
		t.Errorf("the guest reads %q", got)
	}
	if got := v.backup(dir).disk("root"); got != "incremental" {
		t.Errorf("after a cancelled one: %s", got)
	}

	small := hostDir(t, "backup-small")
	run(t, "mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small)
	t.Cleanup(func() { try("umount", "-l", small) })
	contains(t, fail(t, 1, "vmctl", "backup", v.name, small), "no space for up to", "disk.root in "+small)
	if left, _ := filepath.Glob(small + "/" + v.name + "/*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	v.write(disk, "still runs")
	if got := v.backup(dir).disk("root"); got != "incremental" {
		t.Errorf("after one that failed: %s", got)
	}
	sameContent(t, v.backup(dir), "root", "qcow2", v.stateDir()+"/disk-root.qcow2")
}

// A backup becomes again what it was: the same machine, another one beside it, or
// one of which nothing is left.
func TestBackupRestore(t *testing.T) {
	newerSuiteOnly(t, "a backup is made on both, and restored from its files by ourselves")
	t.Parallel()
	dir := hostDir(t, "backup-restore")
	target := filepath.Join(dir, "target")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	data := image(t, filepath.Join(dir, "real.img"), "before", 4*megabyte)
	run(t, "chown", "1234:4321", data)
	run(t, "chmod", "640", data)
	link := filepath.Join(dir, "data.img")
	if err := os.Symlink(data, link); err != nil {
		t.Fatal(err)
	}
	v := newVM(t, "backup-restore", fmt.Sprintf(`
boot.firmware = "uefi"
autostart = false
[disk.root]
size = "32M"
[disk.data]
path = %q
format = "raw"
`, link))
	copied := &vm{t: t, name: "backup-copy", screen: newScreen(t, "backup-copy")}
	t.Cleanup(copied.remove)
	v.boot()
	disks := v.guestDisks()
	backups := map[string]madeBackup{}
	for _, text := range []string{"one", "two"} {
		v.write(disks["root"], "root "+text)
		v.write(disks["data"], "data "+text)
		backups[text] = v.backup(target)
	}
	restore := func(which string, options ...string) []string {
		return append([]string{"vmctl", "backup", "restore", backups[which].Directory}, options...)
	}
	contains(t, fail(t, 4, restore("one", "--yes")...), "cannot replace the disks of a VM that runs")
	run(t, "systemctl", "stop", v.unit())
	fail(t, 2, restore("one")...)
	run(t, restore("one", "--yes")...)
	if got := run(t, "stat", "-c", "%u:%g %a", data); got != "1234:4321 640" {
		t.Errorf("a disk by path is %s", got)
	}
	if got := imageText(t, data); got != "data one" {
		t.Errorf("its file holds %q", got)
	}
	reads := func(v *vm, text string) {
		t.Helper()
		disks := v.guestDisks()
		for _, disk := range []string{"root", "data"} {
			if got := v.read(disks[disk]); got != disk+" "+text {
				t.Errorf("%s of %s: the guest reads %q, want %q", disk, v.name, got, text)
			}
		}
	}
	v.boot()
	reads(v, "one")
	if got := v.backup(target).disk("root"); !strings.HasPrefix(got, "full: what was written since is not known") {
		t.Errorf("after it was restored: %s", got)
	}

	// Beside it, while it runs.
	fail(t, 4, restore("two", "--as", v.name)...)
	contains(t, run(t, restore("two", "--as", copied.name)...), copied.stateDir()+"/disk-data.raw")
	copied.boot()
	reads(copied, "two")
	run(t, "systemctl", "stop", v.unit(), copied.unit())
	contains(t, run(t, "vmctl", "show", copied.name), copied.stateDir()+"/disk-data.raw")

	// Nothing is left of it.
	run(t, "vmctl", "delete", "--yes", v.name)
	if err := os.Remove(data); err != nil {
		t.Fatal(err)
	}
	os.Remove(link)
	contains(t, run(t, restore("two", "--yes")...), v.file())
	v.boot()
	reads(v, "two")
	run(t, "systemctl", "stop", v.unit())

	// What is not whole is not restored, and nothing is touched.
	f, err := os.OpenFile(filepath.Join(backups["one"].Directory, "disk-data.qcow2"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("x"), 70000)
	f.Close()
	contains(t, fail(t, 1, restore("two", "--yes")...), "disk-data.qcow2 has changed since it was written")
	v.boot()
	reads(v, "two")
}

// Whoever is killed while a backup is made, and whenever: the next one is right.
func TestBackupSurvivesKills(t *testing.T) {
	newerSuiteOnly(t, "what is cut off is ours, and done undisturbed on both")
	t.Parallel()
	dir := hostDir(t, "backup-kills")
	v := newVM(t, "backup-kills", "lifecycle.restart = \"no\"\n[disk.root]\nsize = \"32M\"\n")
	unit := "vm-backup@" + v.name + ".service"
	root := v.stateDir() + "/disk-root.qcow2"
	v.boot()
	running := true
	change := func() {
		t.Helper()
		at := rand.IntN(30)
		if !running {
			run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -P %d %dM 1M", rand.IntN(256), at), root)
			return
		}
		v.typeLine(fmt.Sprintf("dd if=/dev/urandom of=/dev/%s bs=1M seek=%d count=1 conv=fsync 2>/dev/null; echo changed $?", v.guestDisks()["root"].name, at))
		v.expect(`changed 0`)
	}
	kinds := map[string]int{}
	right := func(what string) {
		t.Helper()
		waitEnded(t, unit)
		b := v.backup(dir)
		kinds[strings.SplitN(b.disk("root"), ":", 2)[0]]++
		sameContent(t, b, "root", "qcow2", root)
		if left, _ := filepath.Glob(dir + "/" + v.name + "/.*"); len(left) > 0 {
			t.Errorf("%s: left are %v", what, left)
		}
		if _, err := os.Stat(v.stateDir() + "/operation.json"); err == nil {
			t.Errorf("%s: not mended", what)
		}
	}
	right("the first")
	kills := []string{"unit", "unit", "unit", "vmctl", "qemu", "unit", "unit", "qemu", "vmctl", "unit", "unit",
		"stop", "unit", "all", "all", "unit", "all", "unit", "all", "unit", "all"}
	for _, who := range kills {
		if who == "stop" {
			run(t, "systemctl", "stop", v.unit())
			running = false
			continue
		}
		change()
		cmd := exec.Command("vmctl", "backup", v.name, dir, "--limit", "2M")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		eventually(t, "the backup runs, or is over already", func() bool {
			return len(ended) > 0 || run(t, "systemctl", "show", "-P", "ActiveState", unit) == "active"
		})
		time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
		switch who {
		case "vmctl":
			cmd.Process.Kill()
		case "unit": // of which the operation's process is the first
			try("systemctl", "kill", "--signal=KILL", "--kill-who=main", unit)
		case "all": // and the helper with it
			try("systemctl", "kill", "--signal=KILL", unit)
		case "qemu":
			run(t, "kill", "-KILL", fmt.Sprint(v.mainPID()))
			v.waitState("failed")
		}
		<-ended
		if who == "qemu" {
			right("killed: qemu, while it does not run")
			v.boot()
		}
		change()
		right("killed: " + who)
	}
	if kinds["incremental"] == 0 {
		t.Error("all of them were full")
	}
	t.Logf("backups after a kill: %v", kinds)
	contains(t, run(t, "vmctl", "backup", "verify", dir), ": sound")
	run(t, "systemctl", "stop", v.unit())
	v.boot()
}

// Whoever is killed while a backup is restored, and whenever: the disks are all of
// before or all of the backup, and nothing else is left.
func TestRestoreSurvivesKills(t *testing.T) {
	newerSuiteOnly(t, "what is cut off is ours, and done undisturbed on both")
	t.Parallel()
	dir := hostDir(t, "restore-kills")
	target := filepath.Join(dir, "target")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	data := image(t, filepath.Join(dir, "data.img"), "", 16*megabyte)
	v := newVM(t, "restore-kills", fmt.Sprintf("[disk.root]\nsize = \"16M\"\n[disk.data]\npath = %q\nformat = \"raw\"\n", data))
	unit := "vm-restore@" + v.name + ".service"
	v.start()
	run(t, "systemctl", "stop", v.unit())
	root := v.stateDir() + "/disk-root.qcow2"
	var backups []madeBackup
	for pattern := range 2 {
		write := fmt.Sprintf("write -q -P %d 0 12M", pattern+1)
		run(t, "qemu-io", "-f", "qcow2", "-c", write, root)
		run(t, "qemu-io", "-f", "raw", "-c", write, data)
		backups = append(backups, v.backup(target))
	}
	is := func(b madeBackup, disk, format, path string) bool {
		return try("qemu-img", "compare", "-f", "qcow2", "-F", format, filepath.Join(b.Directory, "disk-"+disk+".qcow2"), path).code == 0
	}
	ends := map[string]int{}
	for i := range 14 {
		from, to := backups[(i+1)%2], backups[i%2]
		if is(to, "root", "qcow2", root) { // the last one was taken back
			from, to = to, from
		}
		cmd := exec.Command("vmctl", "backup", "restore", "--yes", to.Directory)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond)
		switch i % 3 {
		case 0:
			try("systemctl", "kill", "--signal=KILL", "--kill-who=main", unit)
		case 1:
			try("systemctl", "kill", "--signal=KILL", unit)
		case 2:
			cmd.Process.Kill()
		}
		cmd.Wait()
		waitEnded(t, unit)
		if i%3 == 1 { // what mends may have been killed too: whoever comes next does it
			run(t, "/usr/libexec/vmctl/vmctl-unit", "mend", v.name)
		}
		switch {
		case is(to, "root", "qcow2", root) && is(to, "data", "raw", data):
			ends["restored"]++
		case is(from, "root", "qcow2", root) && is(from, "data", "raw", data):
			ends["as before"]++
		default:
			t.Errorf("after %d: the disks are neither of the one backup nor of the other", i)
		}
		for _, d := range []string{dir, v.stateDir()} {
			if left, _ := filepath.Glob(d + "/.*"); len(left) > 0 {
				t.Errorf("after %d: left are %v", i, left)
			}
		}
		if _, err := os.Stat(v.stateDir() + "/operation.json"); err == nil {
			t.Errorf("after %d: not mended", i)
		}
	}
	t.Logf("after a kill: %v", ends)
	run(t, "vmctl", "backup", "restore", "--yes", backups[0].Directory)
	v.boot()
}

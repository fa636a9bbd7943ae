//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// hollow is a machine with nothing in it that could hear the power button, and
// which is not waited for long: what matters is what its hypervisor is given.
const hollow = "memory = \"64M\"\nlifecycle.stop_timeout = \"1s\"\n"

func diskTable(name, path string) string {
	return fmt.Sprintf("[disk.%s]\npath = %q\n", name, path)
}

// rights are owner, mode and access control list of files.
func rights(t *testing.T, files ...string) string {
	t.Helper()
	return run(t, append([]string{"stat", "-c", "%n %u:%g %a"}, files...)...) + "\n" +
		run(t, append([]string{"getfacl", "-p", "-n"}, files...)...)
}

// Files that nobody but their owner may reach are given to a machine for as
// long as it runs, and to nobody else, however it ends. Not parallel: others
// have disks in the same directories.
func TestAccessIsTakenBack(t *testing.T) {
	secret := hostDir(t, "secret")
	listed := hostDir(t, "listed")
	var files []string
	disk := func(path string) string {
		image(t, path, "", megabyte)
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, filepath.Dir(path), path)
		return path
	}
	for _, dir := range []string{"/root/e2e-disks", "/home/e2e/disks", "/tmp/e2e-disks"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
	}
	definition := hollow +
		diskTable("a", disk("/root/e2e-disks/a.img")) +
		diskTable("b", disk("/home/e2e/disks/b.img")) +
		diskTable("c", disk("/tmp/e2e-disks/c.img")) +
		diskTable("d", disk(secret+"/deep/er/d.img")) +
		diskTable("e", disk(listed+"/e.img"))
	files = append(files, "/root", "/home/e2e", "/home", "/tmp", "/srv", secret, secret+"/deep")
	run(t, "chmod", "700", secret, secret+"/deep", "/home/e2e")
	run(t, "chmod", "2710", secret+"/deep/er")
	run(t, "chown", "nobody:daemon", secret+"/deep/er/d.img")
	run(t, "chmod", "640", secret+"/deep/er/d.img")
	// Lists that somebody has made stay as well.
	run(t, "setfacl", "-m", "u:daemon:rw,g:games:r,m::r", listed+"/e.img")
	run(t, "setfacl", "-m", "u:daemon:x", "-m", "d:u:daemon:rw", listed)
	before := rights(t, files...)

	v := newVMFrom(t, "access", definition)
	same := func(when string) {
		t.Helper()
		if after := rights(t, files...); after != before {
			t.Errorf("%s, want as before:\n%s\ngot:\n%s", when, before, after)
		}
		if _, err := os.Stat(v.stateDir() + "/grants.json"); err == nil {
			t.Errorf("%s: the note of what was given is left", when)
		}
	}
	v.start()
	if rights(t, files...) == before {
		t.Error("while it runs: nothing was given, and it works")
	}
	run(t, "systemctl", "stop", v.unit())
	same("after a stop")

	run(t, "systemctl", "start", v.unit())
	v.kill(syscall.SIGKILL)
	// Restarted, or about to be.
	run(t, "systemctl", "stop", v.unit())
	same("after being killed")

	// With all that belongs to its unit, which may include the clean-up: then
	// the next machine that starts or stops sees to it.
	run(t, "systemctl", "start", v.unit())
	run(t, "systemctl", "stop", v.unit())
	if got := v.exitReason(); got != "stop timed out" {
		t.Errorf("reason %q, want stop timed out", got)
	}
	run(t, "systemctl", "start", v.unit())
	run(t, "systemctl", "kill", "--signal=KILL", v.unit())
	run(t, "systemctl", "stop", v.unit())
	if got := v.exitReason(); got != "killed" {
		t.Errorf("reason %q, want killed", got)
	}
	next := newVMFrom(t, "access-next", hollow)
	next.start()
	same("after being killed with its unit")

	// prepare is killed when it has given a part.
	dropIn := "/run/systemd/system/" + v.unit() + ".d/60-crash.conf"
	writeFile(t, dropIn, fmt.Sprintf(`[Service]
ExecStartPre=
ExecStartPre=+/usr/bin/strace -f -qq -o /dev/null -e trace=setxattr,fsetxattr -e inject=setxattr,fsetxattr:signal=KILL:when=4 /usr/libexec/vmctl/vmctl-unit prepare %s
Restart=no
`, v.name))
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(dropIn)) })
	run(t, "systemctl", "daemon-reload")
	if r := try("systemctl", "start", v.unit()); r.code == 0 {
		t.Fatal("started, though prepare was to be killed")
	}
	contains(t, v.journal(), "Control process exited, code=killed")
	same("after a crash of prepare")
	if err := os.Remove(dropIn); err != nil {
		t.Fatal(err)
	}
	v.start()
	run(t, "vmctl", "stop", v.name)
	same("after a last stop")
}

// A file that lies where the machine's user may read is given nothing.
func TestNothingIsGivenThatIsNotNeeded(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "readable")
	cd := image(t, dir+"/cd.iso", "", megabyte)
	before := rights(t, cd, dir)
	v := newVMFrom(t, "readable", hollow+diskTable("cd", cd)+"media = \"cdrom\"\nbus = \"sata\"\n")
	v.start()
	if after := rights(t, cd, dir); after != before {
		t.Errorf("given: %s", after)
	}
}

// A disk is one machine's, by whatever name, and the other is told whose.
func TestSameDisk(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "same")
	disk := image(t, dir+"/disk.img", "", megabyte)
	if err := os.Symlink("disk.img", dir+"/soft.img"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(disk, dir+"/hard.img"); err != nil {
		t.Fatal(err)
	}
	one := newVMFrom(t, "same-one", hollow+diskTable("root", disk))
	two := newVMFrom(t, "same-two", hollow+diskTable("data", dir+"/soft.img"))
	three := newVMFrom(t, "same-three", hollow+diskTable("data", dir+"/hard.img")+"readonly = true\n")
	one.start()
	for _, v := range []*vm{two, three} {
		if r := try("systemctl", "start", v.unit()); r.code == 0 {
			t.Errorf("%s started with the disk of another", v.name)
		}
		contains(t, run(t, "sh", "-c", "systemctl status "+v.unit()+" || true"), "disk.data.path:", "is in use by vm@same-one")
		contains(t, v.journal(), v.file()+":4: disk.data.path:", "is in use by vm@same-one")
		contains(t, fail(t, 1, "vmctl", "start", v.name), "is in use by vm@same-one")
	}
	if one.property("ActiveState") != "active" {
		t.Error("the first one does not run any more")
	}
	run(t, "systemctl", "stop", one.unit())
	run(t, "systemctl", "reset-failed", two.unit(), three.unit())

	// At the same instant one of them has it, whichever.
	run(t, "systemctl", "start", "--no-block", one.unit(), two.unit())
	one.waitState("active", "failed")
	two.waitState("active", "failed")
	winner, loser := one, two
	if one.property("ActiveState") == "failed" {
		winner, loser = two, one
	}
	if a, b := winner.property("ActiveState"), loser.property("ActiveState"); a != "active" || b != "failed" {
		t.Errorf("%s is %s, %s is %s; want one to run", winner.name, a, loser.name, b)
	}
	contains(t, loser.journal(), "is in use by vm@"+winner.name)
	run(t, "systemctl", "stop", winner.unit())

	// What both share knowingly, both have; so do readers.
	one.define(hollow + diskTable("root", disk) + "shareable = true\n")
	two.define(hollow + diskTable("data", disk) + "shareable = true\n")
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "reset-failed", loser.unit())
	run(t, "systemctl", "start", one.unit(), two.unit())
	run(t, "systemctl", "stop", one.unit(), two.unit())
	one.define(hollow + diskTable("root", disk) + "readonly = true\n")
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "start", one.unit(), three.unit())
}

// A disk that another program works on is refused with its name, and others
// cannot work on ours.
func TestImageLocks(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "locks")
	disk := filepath.Join(dir, "disk.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "8M")
	v := newVMFrom(t, "locks", hollow+diskTable("root", disk))
	v.start()
	if r := try("qemu-img", "resize", "-q", disk, "16M"); r.code == 0 || !strings.Contains(r.stderr, "lock") {
		t.Errorf("qemu-img resize of a disk in use: %d, %s", r.code, r.stderr)
	}
	run(t, "systemctl", "stop", v.unit())

	socket := dir + "/nbd.sock"
	run(t, "qemu-nbd", "--fork", "--persistent", "--pid-file="+dir+"/nbd.pid", "--socket="+socket, "-f", "qcow2", disk)
	pid := run(t, "cat", dir+"/nbd.pid")
	defer try("kill", pid)
	contains(t, fail(t, 1, "vmctl", "start", v.name), "disk.root.path: "+disk+" is in use by qemu-nbd, process "+pid)
}

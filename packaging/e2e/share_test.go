//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// shareUnit is what serves a machine's share.
func (v *vm) shareUnit(share string) string { return config.ShareUnit(v.name, share) }

// typed has the guest's shell run a line that prints a word when it is done, and
// returns what it has shown before that.
func (v *vm) typed(line string) string {
	v.t.Helper()
	v.marks++
	before := len(v.shown())
	// Put together by the shell, so that the echo of what is typed is not it.
	v.typeLine(fmt.Sprintf(": ; %s; echo done-''%d", line, v.marks)) // all of it for busybox
	v.expect(fmt.Sprintf(`done-%d`, v.marks))
	v.expect(`# `)
	return v.shown()[before:]
}

// Directories of the host: written to from both sides, read-only as the host says,
// for two machines at once; what serves them is confined, and ends with its
// machine however that ends.
func TestShares(t *testing.T) {
	t.Parallel()
	base := hostDir(t, "shares")
	rw, ro := base+"/with space, comma, ünï %n $HOME:x", base+"/ro"
	for _, dir := range []string{rw, ro} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, rw+"/from-host", "hello guest\n")
	writeFile(t, ro+"/kept", "as it was\n")
	if err := os.Chown(rw+"/from-host", 1234, 1234); err != nil {
		t.Fatal(err)
	}
	shares := fmt.Sprintf("[share.rw]\npath = %q\ncache = \"never\"\n[share.ro]\npath = %q\nreadonly = true\ntag = \"the-ro\"\n", rw, ro)
	v := newVM(t, "shares-a", shares)
	other := newVM(t, "shares-b", "[share.same]\npath = \""+rw+"\"\ncache = \"never\"\n")
	v.start()
	other.start()
	v.expectReady()
	other.expectReady()

	contains(t, v.typed("mkdir -p /m /r; mount -t virtiofs rw /m && cat /m/from-host && stat -c 'owner %u' /m/from-host"), "hello guest", "owner 1234")
	v.typed("echo from the guest >/m/from-guest; echo more >>/m/from-host; mkdir /m/d; chown 77 /m/d; chmod 4755 /m/from-guest")
	contains(t, run(t, "cat", rw+"/from-guest"), "from the guest")
	contains(t, run(t, "cat", rw+"/from-host"), "more")
	if got := run(t, "stat", "-c", "%u %a", rw+"/d"); got != "77 755" {
		t.Errorf("the guest's directory: %s, want 77 755", got)
	}
	// No program of the guest's gives its rights to who runs it on the host.
	if got := run(t, "stat", "-c", "%a", rw+"/from-guest"); strings.HasPrefix(got, "4") {
		t.Errorf("the guest made a program setuid: %s", got)
	}
	contains(t, v.typed("mknod /m/node b 254 0"), "not permitted")
	contains(t, other.typed("mkdir -p /m; mount -t virtiofs same /m; cat /m/from-guest; echo from b >/m/from-b"), "from the guest")
	contains(t, v.typed("cat /m/from-b"), "from b")

	// Whatever the guest says of its mount.
	contains(t, v.typed("mount -t virtiofs the-ro /r; mount -o remount,rw /r; cat /r/kept; echo x >/r/kept; rm -f /r/kept; touch /r/new"), "as it was", "Read-only file system")
	if got := run(t, "ls", ro) + run(t, "cat", ro+"/kept"); got != "keptas it was" {
		t.Errorf("the read-only directory: %q", got)
	}

	shown := run(t, "vmctl", "show", v.name)
	contains(t, shown, "Share rw:", rw+", tag rw, serving", "Share ro:", "tag the-ro, read-only, serving")
	for _, share := range []string{"rw", "ro"} {
		if level := exposureOf(t, v.shareUnit(share)); level > 2.0 {
			t.Errorf("%s: exposure %v, want at most 2.0", v.shareUnit(share), level)
		}
	}
	socket := config.SystemPaths("").SidecarSocket(v.shareUnit("rw"))
	if got := run(t, "stat", "-c", "%a %u", socket); got != "600 "+processStatus(t, v.mainPID(), "Uid")[:5] {
		t.Errorf("the socket: %s, want 600 and the machine's user", got)
	}
	// Where QEMU and virtiofsd can, files stay open while the machine is saved.
	v.typed("(sleep 1; exec 9>>/m/open; echo before >&9; while [ ! -e /m/go-on ]; do sleep 1; done; echo after >&9; touch /m/gone-on) & true")
	eventually(t, "the guest has a file open", func() bool { return strings.Contains(try("cat", rw+"/open").stdout, "before") })
	if olderSuite() {
		contains(t, fail(t, 4, "vmctl", "save", v.name), "vhost-user-fs")
	} else {
		run(t, "vmctl", "save", v.name)
		run(t, "vmctl", "start", v.name)
	}
	writeFile(t, rw+"/go-on", "")
	eventually(t, "the guest goes on", func() bool { return try("test", "-e", rw+"/gone-on").code == 0 })
	if got := run(t, "cat", rw+"/open"); got != "before\nafter" {
		t.Errorf("the file that was open: %q", got)
	}

	// One that dies: the machine says so, and runs on. A restart mends it.
	kill(t, unitPID(t, v.shareUnit("rw")))
	eventually(t, "the machine says that its share is lost", func() bool {
		return strings.Contains(v.journal(), "share.rw: virtiofsd has ended (killed KILL)")
	})
	contains(t, run(t, "vmctl", "show", v.name), "tag rw, lost", "read-only, serving")
	contains(t, v.typed("cat /r/kept"), "as it was")
	run(t, "systemctl", "restart", v.unit())
	v.expectReady()
	contains(t, v.typed("mkdir -p /m; mount -t virtiofs rw /m; cat /m/from-b"), "from b")

	// The hypervisor is killed: with it goes what is beside it, and comes again.
	before := unitPID(t, v.shareUnit("rw"))
	kill(t, v.mainPID())
	v.expectReady()
	if after := unitPID(t, v.shareUnit("rw")); after == before || after == 0 {
		t.Errorf("virtiofsd is process %d after a crash, was %d", after, before)
	}
	contains(t, v.typed("mkdir -p /m; mount -t virtiofs rw /m; cat /m/from-b"), "from b")
	if strings.Count(v.journal(), "virtiofsd has ended") != 1 {
		t.Errorf("a share of a machine that has ended is called lost:\n%s", v.journal())
	}

	// Without its definition it still takes all with it.
	if err := os.Remove(other.file()); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "stop", other.unit())
	run(t, "systemctl", "stop", v.unit())
	for _, unit := range []string{v.shareUnit("rw"), v.shareUnit("ro"), other.shareUnit("same")} {
		eventually(t, unit+" has ended", func() bool { return run(t, "systemctl", "show", "-P", "ActiveState", unit) == "inactive" })
	}
	if out := run(t, "sh", "-c", "ls /run/vmctl/beside"); strings.Contains(out, "shares-") {
		t.Errorf("left: %s", out)
	}

	// What is not there is said before anything is started.
	moved := rw + "-moved"
	if err := os.Rename(rw, moved); err != nil {
		t.Fatal(err)
	}
	text := fail(t, 1, "vmctl", "start", v.name)
	contains(t, text, "share.rw.path: want a directory", "does not exist on this host")
	writeFile(t, rw, "a file")
	contains(t, fail(t, 1, "vmctl", "start", v.name), "which is none")
	if err := os.Remove(rw); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/var/lib/vmctl", rw); err != nil {
		t.Fatal(err)
	}
	contains(t, fail(t, 1, "vmctl", "start", v.name), "has files of the machines themselves in it")
}

// unitPID is the main process of a unit, 0 for none.
func unitPID(t testing.TB, unit string) int {
	t.Helper()
	pid, err := strconv.Atoi(run(t, "systemctl", "show", "-P", "MainPID", unit))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func kill(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil || pid == 0 {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// A share as a user of the host: all that the guest does there is that user's.
func TestShareAsUser(t *testing.T) {
	t.Parallel()
	run(t, "useradd", "--create-home", "sharer")
	t.Cleanup(func() { run(t, "userdel", "--remove", "sharer") })
	dir := "/home/sharer/own"
	run(t, "install", "-d", "-o", "sharer", "-m", "700", dir)
	writeFile(t, dir+"/of-root", "secret\n")
	run(t, "chmod", "600", dir+"/of-root")
	mapped := hostDir(t, "mapped")
	writeFile(t, mapped+"/of-root", "of the host\n")
	writeFile(t, mapped+"/of-guest", "of the guest\n")
	for _, file := range []string{mapped, mapped + "/of-guest"} {
		if err := os.Chown(file, 100000, 200000); err != nil {
			t.Fatal(err)
		}
	}
	v := newVM(t, "share-user", "[share.own]\npath = \""+dir+"\"\nuser = \"sharer\"\n"+
		"[share.mapped]\npath = \""+mapped+"\"\nuid_map = [\"0:100000:1000\"]\ngid_map = [\"0:200000:1000\"]\n")
	if olderSuite() {
		contains(t, try("vmctl", "check", v.name).all(), "share.own.user: not supported by the virtiofsd of this host, /usr/lib/qemu/virtiofsd",
			"share.mapped.uid_map: not supported by the virtiofsd of this host")
		return
	}
	v.boot()
	contains(t, v.typed("mkdir /m; mount -t virtiofs own /m; echo x >/m/a; mkdir /m/d; chmod 777 /m/d; cat /m/of-root; id"), "Permission denied")
	if got := run(t, "stat", "-c", "%U %G", dir+"/a"); got != "sharer sharer" {
		t.Errorf("what the guest's root wrote is of %s, want sharer", got)
	}
	// Another one, with the guest's users as others of the host.
	shown := v.typed("mkdir /n; mount -t virtiofs mapped /n; stat -c '%n %u:%g' /n/of-root /n/of-guest; echo x >/n/new; echo x >/n/theirs; chown 5:7 /n/theirs; chown 2000 /n/new")
	contains(t, shown, "/n/of-root 65534:65534", "/n/of-guest 0:0", "chown: /n/new:")
	if got := run(t, "stat", "-c", "%n %u:%g", mapped+"/new", mapped+"/theirs"); got != mapped+"/new 100000:200000\n"+mapped+"/theirs 100005:200007" {
		t.Errorf("what the guest wrote: %s", got)
	}
	if level := exposureOf(t, v.shareUnit("mapped")); level > 2.0 {
		t.Errorf("%s: exposure %v, want at most 2.0", v.shareUnit("mapped"), level)
	}
	if processStatus(t, unitPID(t, v.shareUnit("own")), "CapEff") != "0000000000000000" {
		t.Error("virtiofsd has privileges")
	}
	run(t, "systemctl", "stop", v.unit())
}

// A TPM keeps its state with its machine: through restarts, snapshots, and the
// end of swtpm.
func TestTPM(t *testing.T) {
	t.Parallel()
	v := newVM(t, "tpm", "tpm.enabled = true\n[disk.root]\nsize = \"64M\"\n")
	v.boot()
	v.typeLine("tpm")
	v.expect(`tpm version 2`)
	v.expect(`tpm pcr0 [0-9A-F]{64}`)
	key := v.expect(`tpm key ([0-9a-f]{16})`)[0]
	v.typeLine("tpm-write first")
	v.expect(`tpm wrote`)
	contains(t, run(t, "vmctl", "show", v.name), "TPM:", "2.0, serving")
	unit := config.TPMUnit(v.name)
	if level := exposureOf(t, unit); level > 1.0 {
		t.Errorf("%s: exposure %v, want at most 1.0", unit, level)
	}
	state := filepath.Join(v.stateDir(), "tpm")
	user := processStatus(t, v.mainPID(), "Uid")[:5]
	if got := run(t, "stat", "-c", "%a %u", state, state+"/tpm2-00.permall"); got != "700 "+user+"\n600 "+user {
		t.Errorf("state: %s, want 700 and 600 of user %s", got, user)
	}
	// The hypervisor does not see it.
	if out := try("nsenter", "-t", strconv.Itoa(v.mainPID()), "-m", "ls", state); strings.Contains(out.stdout, "permall") {
		t.Errorf("the hypervisor sees the TPM's state: %s", out.all())
	}

	// swtpm dies: said, and mended by a restart, with what was in it.
	kill(t, unitPID(t, unit))
	eventually(t, "the machine says that its TPM is lost", func() bool {
		return strings.Contains(v.journal(), "tpm: swtpm has ended (killed KILL)")
	})
	contains(t, run(t, "vmctl", "show", v.name), "2.0, lost")
	run(t, "vmctl", "snapshot", "create", v.name, "one")
	run(t, "systemctl", "restart", v.unit())
	v.expectReady()
	v.typeLine("tpm")
	v.expect(`tpm key ` + key)
	v.typeLine("tpm-read")
	v.expect(`tpm holds "first"`)
	v.typeLine("tpm-write second")
	v.expect(`tpm wrote`)

	// QEMU is killed: no swtpm is left, and its successor has the state.
	kill(t, v.mainPID())
	v.expectReady()
	v.typeLine("tpm-read")
	v.expect(`tpm holds "second"`)
	run(t, "systemctl", "stop", v.unit())
	eventually(t, "swtpm has ended", func() bool { return run(t, "systemctl", "show", "-P", "ActiveState", unit) == "inactive" })

	// What was in it belongs to the snapshot.
	run(t, "vmctl", "snapshot", "restore", "--yes", v.name, "one")
	v.boot()
	v.typeLine("tpm-read")
	v.expect(`tpm holds "first"`)
	v.typeLine("tpm")
	v.expect(`tpm key ` + key)

	// And to a backup, from which another machine is made.
	target := hostDir(t, "tpm-backup")
	run(t, "vmctl", "snapshot", "delete", "--yes", v.name, "one")
	run(t, "vmctl", "backup", v.name, target)
	run(t, "systemctl", "stop", v.unit())
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	run(t, "sh", "-c", "vmctl backup restore --yes "+target+"/"+v.name+"/*Z")
	v.boot()
	v.typeLine("tpm-read")
	v.expect(`tpm holds "first"`)

	// It goes on in a machine that was saved.
	run(t, "vmctl", "save", v.name)
	run(t, "vmctl", "start", v.name)
	v.typeLine("tpm-read")
	v.expect(`tpm holds "first"`)
	run(t, "vmctl", "delete", "--yes", "--force", v.name)
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("the TPM's state is left: %v", err)
	}
}

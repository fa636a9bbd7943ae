//go:build e2e

package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
)

// littleFlags are the flags of vmctl run that boot the little guest.
func littleFlags() []string {
	dir := filepath.Join(os.Getenv("VMCTL_GUEST"), "cloud")
	return []string{"--memory", "256M", "--kernel", dir + "/vmlinuz", "--initrd", dir + "/initrd", "--cmdline", "console=ttyS0 quiet no_timer_check"}
}

// importImage stores an image that begins with a text, until the end of the test.
func importImage(t testing.TB, name, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), name+".img")
	writeFile(t, file, text+"\x00")
	if err := os.Truncate(file, 4*megabyte); err != nil {
		t.Fatal(err)
	}
	run(t, "vmctl", "image", "import", file)
	t.Cleanup(func() { try("vmctl", "image", "delete", "--yes", name) }) // which may still be needed
}

// vmRun is vmctl run with the little guest.
func vmRun(t testing.TB, image string, flags ...string) *vm {
	t.Helper()
	name := run(t, append(append([]string{"vmctl", "run", image}, littleFlags()...), flags...)...)
	v := &vm{t: t, name: name, screen: newScreen(t, name)}
	t.Cleanup(func() {
		v.remove()
		os.RemoveAll(v.runFile())
	})
	return v
}

// runFile is where vmctl run writes the definition.
func (v *vm) runFile() string { return "/run/vmctl/vms/" + v.name + ".toml" }

// isGone waits until nothing is left of the machine, and systemd has forgotten
// its unit.
func (v *vm) isGone() {
	v.t.Helper()
	paths := config.SystemPaths("")
	for _, path := range []string{v.runFile(), v.stateDir(), v.runtimeDir(), paths.Generated(v.name)} {
		eventually(v.t, path+" is gone", func() bool {
			_, err := os.Lstat(path)
			return os.IsNotExist(err)
		})
	}
	eventually(v.t, "systemd has forgotten "+v.unit(), func() bool {
		return !strings.Contains(run(v.t, "systemctl", "list-units", "--all", "--plain", "--no-legend", v.unit()), v.unit())
	})
	contains(v.t, fail(v.t, 3, "vmctl", "show", v.name), "no VM is named "+v.name)
}

// A machine from an image, by one command and without a reload of systemd, two
// of one image at once. What they write is their own, and goes with them.
func TestRunRemove(t *testing.T) {
	importImage(t, "run-golden", "golden")
	// What no generator makes is gone after a reload.
	mark := config.SystemPaths("").GeneratorDir + "/e2e-mark"
	writeFile(t, mark, "")
	one := vmRun(t, "run-golden", "--rm", "--name", "run-one", "--disk", "8M", "--set", "disk.data.size=1M")
	two := vmRun(t, "run-golden", "--rm", "-d")
	if _, err := os.Stat(mark); err != nil {
		t.Error("systemd was reloaded")
	}
	if one.name != "run-one" || !strings.HasPrefix(two.name, "run-golden-") {
		t.Errorf("names %q, %q", one.name, two.name)
	}
	contains(t, run(t, "cat", two.runFile()), "remove_on_stop = true")
	contains(t, run(t, "vmctl", "list"), one.name, two.name)
	contains(t, run(t, "systemctl", "cat", one.unit()), "CollectMode=inactive-or-failed", "/run/systemd/generator/vm@run-one.service.d/50-vmctl.conf")
	if need := one.property("NeedDaemonReload"); need != "no" {
		t.Errorf("NeedDaemonReload=%s", need)
	}
	contains(t, fail(t, 4, append([]string{"vmctl", "run", "run-golden", "--name", "run-one"}, littleFlags()...)...),
		"run run-golden: the name run-one is taken: /run/vmctl/vms/run-one.toml is there")
	// What a reload makes of it is what it was started with.
	run(t, "systemctl", "daemon-reload")
	if _, err := os.Stat(mark); err == nil {
		t.Error("the mark tells of no reload")
	}
	if pending := one.show()["pending_changes"]; pending != false {
		t.Errorf("pending changes %v after a reload", pending)
	}
	for _, v := range []*vm{one, two} {
		v.expectReady()
		root := v.guestDisks()["root"]
		if got := v.read(root); got != "golden" {
			t.Errorf("%s: the disk begins with %q", v.name, got)
		}
		v.write(root, "of "+v.name)
	}

	// It survives a restart, which is no end, with what it has written.
	run(t, "vmctl", "restart", one.name)
	one.expectReady()
	if got := one.read(one.guestDisks()["root"]); got != "of run-one" {
		t.Errorf("after a restart the disk begins with %q", got)
	}
	contains(t, run(t, "vmctl", "stop", one.name), "run-one: stopped")
	one.isGone()

	// The guest powers off by itself.
	waiting := exec.Command("vmctl", "wait", "--for", "stopped", two.name)
	var said strings.Builder
	waiting.Stdout = &said
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	two.typeLine("poweroff")
	two.isGone()
	if err := waiting.Wait(); err != nil {
		t.Errorf("vmctl wait: %v", err)
	}
	contains(t, said.String(), two.name+": stopped")
	if left := run(t, "vmctl", "image", "show", "-o", "json", "run-golden"); !strings.Contains(left, `"children": []`) {
		t.Errorf("somebody stands on the image: %s", left)
	}
}

// However it ends, nothing is left: crash, kill of all of it with the clean-up,
// a start that fails.
func TestRunRemoveFailed(t *testing.T) {
	importImage(t, "run-failed", "golden")
	crashed := vmRun(t, "run-failed", "--rm")
	if err := syscall.Kill(crashed.mainPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	crashed.isGone()

	// A port that somebody has.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	forward := fmt.Sprintf("127.0.0.1:%d:22", l.Addr().(*net.TCPAddr).Port)
	failing := &vm{t: t, name: "run-fails", screen: newScreen(t, "run-fails")}
	defer failing.screen.close()
	stderr := fail(t, 1, append([]string{"vmctl", "run", "run-failed", "--rm", "--name", failing.name, "--forward", forward}, littleFlags()...)...)
	contains(t, stderr, "run run-fails: ", "listens on", "nothing of it is left; journalctl -u vm@run-fails has more")
	failing.isGone()
	contains(t, failing.journal(), "listens on")

	// With the clean-up killed too, and with who would have started it: the next
	// start of any machine removes what is left.
	killed := vmRun(t, "run-failed", "--rm")
	run(t, "systemctl", "kill", "--signal=KILL", "--kill-whom=all", killed.unit())
	killed.waitState("inactive", "failed")
	paths := config.SystemPaths("")
	writeFile(t, paths.ThrowAway("run-orphan"), "")
	writeFile(t, "/run/vmctl/vms/run-orphan.toml", "lifecycle.remove_on_stop = true\n[disk.x]\nsize = \"1M\"\n")
	writeFile(t, "/run/vmctl/vms/run-kept.toml", "lifecycle.remove_on_stop = true\n[disk.x]\nsize = \"1M\"\n") // a person's, not started yet
	t.Cleanup(func() { os.Remove("/run/vmctl/vms/run-kept.toml") })
	other := vmRun(t, "run-failed", "--rm")
	killed.isGone()
	orphan := &vm{t: t, name: "run-orphan", screen: killed.screen}
	orphan.isGone()
	if _, err := os.Stat("/run/vmctl/vms/run-kept.toml"); err != nil {
		t.Error(err)
	}
	run(t, "vmctl", "stop", "--grace", "0s", other.name)
	other.isGone()
}

// Whenever who makes a machine is killed, it is there whole, or what is left of it
// goes with the next start.
func TestRunKilled(t *testing.T) {
	importImage(t, "run-killed", "golden")
	for i := range 12 {
		name := fmt.Sprintf("run-killed-%d", i)
		cmd := exec.Command("vmctl", append([]string{"run", "--rm", "--name", name, "run-killed"}, littleFlags()...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
	}
	time.Sleep(time.Second) // until systemd has read what the killed have asked for
	eventually(t, "systemd has done what they asked for", func() bool {
		return !strings.Contains(run(t, "systemctl", "list-jobs", "--no-legend"), "run-killed")
	})
	running := strings.Fields(run(t, "vmctl", "list", "-q", "--state", "running"))
	for _, name := range running {
		if strings.HasPrefix(name, "run-killed") {
			run(t, "vmctl", "kill", name)
		}
	}
	last := vmRun(t, "run-killed", "--rm", "--name", "run-killed-last")
	left := run(t, "sh", "-c", "ls -A /run/vmctl/vms /var/lib/vmctl/vms | grep run-killed | sort -u")
	if left != "run-killed-last\nrun-killed-last.toml" {
		t.Errorf("left:\n%s", left)
	}
	run(t, "vmctl", "kill", last.name)
	last.isGone()
}

// Without --rm it stays when it ends, until it is deleted.
func TestRunStays(t *testing.T) {
	importImage(t, "run-stays", "golden")
	v := vmRun(t, "run-stays", "--name", "run-stays-a")
	v.expectReady()
	v.write(v.guestDisks()["root"], "kept")
	run(t, "vmctl", "stop", v.name)
	run(t, "systemctl", "start", v.unit()) // without a reload
	v.expectReady()
	if got := v.read(v.guestDisks()["root"]); got != "kept" {
		t.Errorf("the disk begins with %q", got)
	}
	contains(t, fail(t, 4, "vmctl", "delete", "--yes", v.name), "cannot delete a running VM")
	run(t, "vmctl", "delete", "--yes", "--force", v.name)
	v.isGone()
}

// A file of the host is not written to, and an image that is not stored is
// pulled, by its short name or a URL.
func TestRunSources(t *testing.T) {
	dir := hostDir(t, "run-sources")
	file := image(t, filepath.Join(dir, "mine.img"), "mine", megabyte)
	v := vmRun(t, file, "--rm")
	v.expectReady()
	if !strings.HasPrefix(v.name, "mine-") {
		t.Errorf("named %s", v.name)
	}
	v.write(v.guestDisks()["root"], "overwritten")
	run(t, "vmctl", "stop", v.name)
	v.isGone()
	if got := imageText(t, file); got != "mine" {
		t.Errorf("the file begins with %q", got)
	}

	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	table := "/etc/vmctl/images.toml.d/e2e-run.toml"
	writeFile(t, table, "[e2e-run]\nurl = \""+server.URL+"/mine.img\"\n")
	t.Cleanup(func() {
		os.Remove(table)
		run(t, "vmctl", "image", "delete", "--yes", "e2e-run", "mine")
	})
	for _, source := range []string{"e2e-run", server.URL + "/mine.img"} {
		v := vmRun(t, source, "--rm")
		v.expectReady()
		if got := v.read(v.guestDisks()["root"]); got != "mine" {
			t.Errorf("%s: the disk begins with %q", source, got)
		}
		run(t, "vmctl", "stop", v.name)
		v.isGone()
	}
}

// Whatever is wrong is said, and nothing is left.
func TestRunRefused(t *testing.T) {
	importImage(t, "run-refused", "golden")
	before := try("sh", "-c", "ls -A /run/vmctl/vms /var/lib/vmctl/vms").stdout
	for _, tt := range []struct {
		code int
		want string
		argv []string
	}{
		{3, "no image is named no-such", []string{"no-such"}},
		{3, "no file is named ./no-such.img", []string{"./no-such.img"}},
		{2, "want an image, got the directory /srv/", []string{"/srv/"}},
		{2, `want a size such as "512M" or "20G", got "much"`, []string{"run-refused", "--memory", "much"}},
		{6, "disk.root.size: the image run-refused has 4M, the disk is to have 1M", []string{"run-refused", "--disk", "1M"}},
		{2, "unknown flag: --colour", []string{"run-refused", "--colour"}},
		{2, "want a name of", []string{"run-refused", "--name", "No"}},
		{6, "cpu.pinning", []string{"run-refused", "--set", `cpu.pinning=["0"]`}},
		{2, "want one image", []string{"run-refused", "again"}},
	} {
		contains(t, fail(t, tt.code, append([]string{"vmctl", "run", "--rm"}, tt.argv...)...), tt.want)
	}
	contains(t, fail(t, 7, "runuser", "-u", "nobody", "--", "vmctl", "run", "--rm", "run-refused"), "run it as root")
	contains(t, fail(t, 7, "runuser", "-u", "nobody", "--", "vmctl", "create", "refused"), "run it as root")
	if after := try("sh", "-c", "ls -A /run/vmctl/vms /var/lib/vmctl/vms").stdout; after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// Where there is no space, for the definition or for the disk, nothing is left
// either.
func TestRunNoSpace(t *testing.T) {
	importImage(t, "run-full", "golden")
	for _, tt := range []struct{ dir, options, want string }{
		{"/run/vmctl/vms", "nr_inodes=1", "no space left on device"},
		{"/var/lib/vmctl/vms", "size=64k,mode=711", "No space left on device"},
	} {
		run(t, "mkdir", "-p", tt.dir)
		run(t, "mount", "-t", "tmpfs", "-o", tt.options, "tmpfs", tt.dir)
		r := try(append([]string{"vmctl", "run", "--rm", "--name", "run-full-a", "run-full"}, littleFlags()...)...)
		left := run(t, "ls", "-A", tt.dir)
		run(t, "umount", tt.dir)
		if r.code != 1 || left != "" {
			t.Errorf("%s: exit status %d, left %q", tt.dir, r.code, left)
		}
		contains(t, r.stderr, tt.want)
	}
	v := &vm{t: t, name: "run-full-a", screen: newScreen(t, "run-full-a")}
	defer v.screen.close()
	v.isGone()
}

// From a definition that is not there to one that is gone again.
func TestCreateStartDelete(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "create")
	given := image(t, filepath.Join(dir, "given.img"), "given", megabyte)
	flags := append([]string{"--start", "--nic", "user", "--disk", "8M", "--set", "disk.given.path=" + given}, littleFlags()...)
	v := &vm{t: t, name: "created", screen: newScreen(t, "created")}
	t.Cleanup(v.remove)
	said := run(t, append([]string{"vmctl", "create", v.name}, flags...)...)
	contains(t, said, "created: created /etc/vmctl/vms/created.toml", "created: started")
	v.expectReady()
	disks := v.guestDisks()
	v.write(disks["root"], "own")
	v.write(disks["given"], "kept")
	contains(t, fail(t, 4, append([]string{"vmctl", "create", v.name}, flags...)...), "the name created is taken")
	run(t, "vmctl", "stop", v.name)
	// All that can lie there, and what is another's.
	for _, file := range []string{"nvram.fd", "saved.zst", "saved.json", "snapshots/one/disk-root.qcow2", ".disk-root.qcow2.new", "tpm/state"} {
		writeFile(t, filepath.Join(v.stateDir(), file), "x")
	}
	run(t, "vmctl", "delete", "--yes", v.name)
	for _, path := range []string{v.file(), v.stateDir()} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is there", path)
		}
	}
	if got := imageText(t, given); got != "kept" {
		t.Errorf("what it was given begins with %q", got)
	}
	contains(t, fail(t, 3, "vmctl", "delete", "--yes", v.name), "no VM is named created")
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

// stat is owner and mode of a file.
func (h host) stat(path string) (uid uint32, mode uint32) {
	h.Helper()
	var s unix.Stat_t
	if err := unix.Lstat(path, &s); err != nil {
		h.Fatalf("%s: %v", path, err)
	}
	return s.Uid, s.Mode & 0o7777
}

func (h host) definition() string {
	h.Helper()
	b, err := os.ReadFile(filepath.Join(h.paths.VMDirs[1], h.vm+".toml"))
	if err != nil {
		h.Fatal(err)
	}
	return string(b)
}

func TestPrepare(t *testing.T) {
	h := newHost(t)
	h.define(h.definition() + `
[disk.data]
size = "1G"
[disk.scratch]
size = "1G"
ephemeral = true

[cloud_init]
user_data = """
#cloud-config
password: very-secret
"""

[credentials]
"db.password" = "very-secret"
`)
	before, _ := h.stat(h.disk)
	h.must(nil, "prepare", h.vm)

	for _, test := range []struct {
		path string
		uid  uint32
		mode uint32
	}{
		{h.paths.Disk(h.vm, "data", "qcow2"), vmUser, 0o600},
		{h.paths.Disk(h.vm, "scratch", "qcow2"), vmUser, 0o600},
		{h.paths.Seed(h.vm), vmUser, 0o600},
		{h.paths.Credential(h.vm, "db.password"), vmUser, 0o400},
		{h.paths.VMJSON(h.vm), vmUser, 0o600},
		{h.paths.StateDir(h.vm), 0, 0o755},
		{h.paths.Record(h.vm), 0, 0o600},
		{h.paths.Grants(h.vm), 0, 0o600},
	} {
		if uid, mode := h.stat(test.path); uid != test.uid || mode != test.mode {
			t.Errorf("%s: owner %d, mode %o; want %d, %o", test.path, uid, mode, test.uid, test.mode)
		}
	}
	if uid, _ := h.stat(h.disk); uid != before {
		t.Errorf("the disk changed its owner to %d", uid)
	}
	public, err := os.ReadFile(h.paths.VMJSON(h.vm))
	if err != nil || strings.Contains(string(public), "very-secret") {
		t.Errorf("vm.json has a secret: %v\n%s", err, public)
	}

	h.must(nil, "cleanup", h.vm)
	for _, gone := range []string{h.paths.Disk(h.vm, "scratch", "qcow2"), h.paths.Grants(h.vm)} {
		if _, err := os.Lstat(gone); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	h.stat(h.paths.Disk(h.vm, "data", "qcow2"))
}

// What is wrong is said with file, line and key, everything at once, and run
// refuses with the status that is not followed by a restart.
func TestPrepareRefuses(t *testing.T) {
	h := newHost(t)
	dir := filepath.Dir(h.disk)
	file := filepath.Join(h.paths.VMDirs[1], h.vm+".toml")
	h.define(fmt.Sprintf(`accel = "tcg"
[vsock]
enabled = false
[boot]
kernel = "%[1]s/vmlinuz"
[disk.a]
path = "%[1]s"
[disk.b]
path = "%[1]s/boot.img"
format = "qcow2"
`, dir))
	wants := []string{
		file + ":5: boot.kernel: " + dir + "/vmlinuz does not exist",
		file + ":7: disk.a.path: want a file or block device, " + dir + " is a directory",
		file + ":9: disk.b.path: want a qcow2 image, " + h.disk + " is not one",
	}
	out := h.must(nil, "prepare", h.vm)
	refused, status := h.do(nil, "run", h.vm, "--", "/bin/false")
	for _, out := range []string{out, refused} {
		if out != strings.Join(wants, "\n")+"\n" {
			t.Errorf("got:\n%swant:\n%s", out, strings.Join(wants, "\n"))
		}
	}
	if status != exitConfig {
		t.Errorf("run: exit status %d", status)
	}
	h.notify.wait(t, "STATUS="+wants[0]+" (and 2 more)")

	h.must([]string{"SERVICE_RESULT=exit-code", "EXIT_CODE=exited", "EXIT_STATUS=78"}, "cleanup", h.vm)
	if e := h.exit(); e.Reason != hypervisor.NotStarted || e.Detail != wants[0] {
		t.Errorf("got %+v", e)
	}
}

// The machine's user reaches its state directory, even where no tmpfiles.d made
// those above it and under the unit's umask.
func TestPrepareMakesStateDir(t *testing.T) {
	h := newHost(t)
	if err := os.RemoveAll(filepath.Dir(h.paths.State)); err != nil {
		t.Fatal(err)
	}
	defer unix.Umask(unix.Umask(0o077))
	h.must(nil, "prepare", h.vm)
	for path, want := range map[string]uint32{
		filepath.Dir(h.paths.State): 0o755,
		h.paths.State:               0o711,
		h.paths.StateDir(h.vm):      0o755,
		h.paths.Record(h.vm):        0o600,
	} {
		if _, mode := h.stat(path); mode != want {
			t.Errorf("%s: mode %o, want %o", path, mode, want)
		}
	}
}

// A start uses what systemd has read, or nothing.
func TestPrepareByDigest(t *testing.T) {
	h := newHost(t)
	h.must(nil, "prepare", h.vm)
	var first hypervisor.Record
	h.readJSON(h.paths.Record(h.vm), &first)

	for _, change := range []func(){
		func() { h.define(strings.Replace(h.definition(), `"64M"`, `"96M"`, 1)) },
		func() { h.define("cpus = 0") },
		func() { os.Remove(filepath.Join(h.paths.VMDirs[1], h.vm+".toml")) },
	} {
		change()
		out := h.must(nil, "prepare", h.vm, "--digest", first.Digest)
		if !strings.Contains(out, "starting with what systemd has") {
			t.Errorf("the change was not told of: %s", out)
		}
		var again hypervisor.Record
		h.readJSON(h.paths.Record(h.vm), &again)
		if again.Digest != first.Digest || again.Machine.Memory != 64<<20 {
			t.Errorf("started with another definition: %+v", again)
		}
	}
	out := h.must(nil, "prepare", h.vm, "--digest", "0123456789abcdef")
	if !strings.Contains(out, "run systemctl daemon-reload") {
		t.Errorf("an unknown digest: %s", out)
	}
}

// Credentials survive a restart by the record.
func TestPrepareByRecordKeepsCredentials(t *testing.T) {
	h := newHost(t)
	h.define(h.definition() + "\n[credentials]\n\"x\" = \"secret\"\n")
	h.must(nil, "prepare", h.vm)
	var first hypervisor.Record
	h.readJSON(h.paths.Record(h.vm), &first)
	want, err := os.ReadFile(h.paths.Credential(h.vm, "x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(h.paths.RuntimeDir(h.vm)); err != nil {
		t.Fatal(err)
	}
	h.newRuntimeDir()
	h.define("broken")
	h.must(nil, "prepare", h.vm, "--digest", first.Digest)
	got, err := os.ReadFile(h.paths.Credential(h.vm, "x"))
	if err != nil || string(got) != string(want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

// The runtime directory belongs to a process that may be hostile: what it
// leaves there leads root nowhere else.
func TestHostileRuntimeDir(t *testing.T) {
	h := newHost(t)
	victim := filepath.Join(h.paths.Root, "victim")
	h.write(victim, "untouched", 0o600)
	dir := h.paths.RuntimeDir(h.vm)
	for _, path := range []string{h.paths.VMJSON(h.vm), h.paths.Refused(h.vm), h.paths.StopNote(h.vm)} {
		for _, name := range []string{path, filepath.Join(dir, "."+filepath.Base(path)+".new")} {
			if err := os.Symlink(victim, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := unix.Mkfifo(h.paths.Events(h.vm), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/run/systemd/private", h.paths.ControlSocket(h.vm)); err != nil {
		t.Fatal(err)
	}
	h.write(h.paths.MonitorPID(h.vm), "1", 0o666)

	h.must(nil, "prepare", h.vm)
	h.must(nil, "stop", h.vm)
	h.must(nil, "cleanup", h.vm)
	if uid, mode := h.stat(victim); uid != 0 || mode != 0o600 {
		t.Errorf("owner %d, mode %o", uid, mode)
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "untouched" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestRefuse(t *testing.T) {
	h := newHost(t)
	out, status := h.do(nil, "refuse", h.vm, "/etc/vmctl/vms/web.toml:1: cpus: want at least 1, got 0")
	if status != exitConfig || out != "/etc/vmctl/vms/web.toml:1: cpus: want at least 1, got 0\n" {
		t.Errorf("exit status %d: %q", status, out)
	}
	h.notify.wait(t, "STATUS=/etc/vmctl/vms/web.toml:1: cpus")
	h.notify.wait(t, "ERRNO=22")
	if out, status = h.do(nil, "refuse", h.vm); status != exitConfig || !strings.Contains(out, "no valid definition of web") {
		t.Errorf("exit status %d: %q", status, out)
	}
}

func TestUsage(t *testing.T) {
	h := newHost(t)
	for _, args := range [][]string{{}, {"stop"}, {"nonsense", "web"}, {"stop", "../etc"}, {"--what", "stop", "web"}} {
		if out, status := h.do(nil, args...); status != exitUsage || out == "" {
			t.Errorf("%q: exit status %d: %q", args, status, out)
		}
	}
}

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// exposure is what systemd-analyze security makes of a running unit, 0 to 10.
func (v *vm) exposure() float64 {
	v.t.Helper()
	return exposureOf(v.t, v.unit())
}

func exposureOf(t testing.TB, unit string) float64 {
	t.Helper()
	text := run(t, "systemd-analyze", "security", "--no-pager", unit)
	_, rest, ok := strings.Cut(text, "Overall exposure level for "+unit+": ")
	level, err := strconv.ParseFloat(strings.Fields(rest + " none")[0], 64)
	if !ok || err != nil {
		t.Fatalf("no exposure level: %s", text)
	}
	return level
}

// processStatus is a line of a process' status.
func processStatus(t *testing.T, pid int, key string) string {
	t.Helper()
	for _, line := range strings.Split(run(t, "cat", fmt.Sprintf("/proc/%d/status", pid)), "\n") {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s of process %d", key, pid)
	return ""
}

// The unit is as closed as it is promised to be, and both of its processes
// have a user of the machine's own and nothing more than that.
func TestConfined(t *testing.T) {
	t.Parallel()
	dir := hostDir(t, "confined")
	closed := newVMFrom(t, "confined", hollow+diskTable("root", image(t, dir+"/disk.img", "", megabyte)))
	open := newVMFrom(t, "confined-net", hollow+"[nic.lan]\nuser = true\nbackend = \"slirp\"\n")
	home := newVMFrom(t, "confined-home", hollow+diskTable("root", image(t, "/root/e2e-confined.img", "", megabyte)))
	defer os.Remove("/root/e2e-confined.img")
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "start", closed.unit(), open.unit(), home.unit())
	for v, limit := range map[*vm]float64{closed: 1.0, open: 1.5, home: 1.0} {
		level := v.exposure()
		t.Logf("%s: exposure %.1f", v.name, level)
		if level > limit {
			t.Errorf("%s: exposure %.1f, want at most %.1f", v.name, level, limit)
		}
	}
	users := map[string]bool{}
	for _, v := range []*vm{closed, open, home} {
		for _, pid := range []int{v.mainPID(), v.monitorPID()} {
			for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
				if got := processStatus(t, pid, set); strings.Trim(got, "0") != "" {
					t.Errorf("%s: process %d has %s %s", v.name, pid, set, got)
				}
			}
			if got := processStatus(t, pid, "Seccomp"); got != "2" {
				t.Errorf("%s: process %d: Seccomp %s, want 2", v.name, pid, got)
			}
			if got := processStatus(t, pid, "NoNewPrivs"); got != "1" {
				t.Errorf("%s: process %d: NoNewPrivs %s, want 1", v.name, pid, got)
			}
			if got := strings.Fields(processStatus(t, pid, "Uid"))[0]; got == "0" {
				t.Errorf("%s: process %d is root's", v.name, pid)
			}
		}
		users[processStatus(t, v.mainPID(), "Uid")] = true
	}
	if len(users) != 3 {
		t.Errorf("three machines have %d users", len(users))
	}
}

// probe is run in place of the hypervisor, in its sandbox, and says what it can
// do that it should not be able to.
const probe = `
can() { what=$1; shift; if "$@" >/dev/null 2>&1; then echo "can $what"; else echo "cannot $what"; fi; }
v=$1 pid=$2 own=$3 disk=$4
can "read its own disk" head -c 1 "$own"
can "write its own disk" sh -c ': >>"$1"' - "$own"
can "read another's disk" head -c 1 "$disk"
can "write another's disk" sh -c ': >>"$1"' - "$disk"
can "list another's state" ls "/var/lib/vmctl/vms/$v"
can "read another's definition" head -c 1 "/var/lib/vmctl/vms/$v/definition.json"
can "read its own definition of root's" head -c 1 "/var/lib/vmctl/vms/probe/definition.json"
can "list another's runtime directory" ls "/run/vmctl/vm/$v/"
can "read another's seed" head -c 1 "/run/vmctl/vm/$v/cloudinit.iso"
can "signal another" kill -0 "$pid"
can "signal process 1" kill -0 1
can "see another's process" test -e "/proc/$pid"
can "see process 1" test -e /proc/1/status
can "read shadow" head -c 1 /etc/shadow
can "read the definitions' secrets" head -c 1 "/etc/vmctl/vms/$v.toml.d/secret.toml"
can "write the system" sh -c ': >/usr/bin/x'
can "write etc" sh -c ': >/etc/x'
can "write var" sh -c ': >/var/lib/x'
can "list root's home" ls /root/marker
can "list homes" ls /home/marker
for dir in /run/vmctl/vm/probe /var/lib/vmctl/vms/probe /tmp /var/tmp /dev/shm; do
	can "execute what it wrote to $dir" sh -c 'cp /usr/bin/true "$1/x" && chmod +x "$1/x" && "$1/x"' - $dir
done
can "execute its disk" sh -c 'cat /usr/bin/true >$1 && chmod +x $1 && $1' - /var/lib/vmctl/vms/probe/disk-made.raw
can "make a namespace" unshare -U true
can "mount" mount -t tmpfs tmpfs /mnt
can "become root" setpriv --reuid=0 true
can "make a device" mknod /tmp/x b 8 0
can "read the kernel's log" dmesg
can "reach the network" sh -c 'exec 3<>/dev/tcp/127.0.0.1/9'
can "see the host's network" grep -q host-e2e0 /proc/net/dev
can "talk to D-Bus" busctl list
echo "probe done"
`

// A machine whose hypervisor was taken over reaches nothing of another's, of
// the host's, nor of root's. Not parallel: the probe is a unit of its own.
func TestSandboxHolds(t *testing.T) {
	dir := hostDir(t, "held")
	victim := newVMFrom(t, "victim", hollow+diskTable("root", image(t, dir+"/victim.img", "victim", megabyte))+
		"[cloud_init]\n")
	own := image(t, dir+"/probe.img", "probe", megabyte)
	for _, file := range []string{own, dir + "/victim.img"} {
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, marker := range []string{"/root/marker", "/home/marker"} {
		writeFile(t, marker, "")
		defer os.Remove(marker)
	}
	writeFile(t, victim.file()+".d/secret.toml", "")
	if err := os.Chmod(victim.file()+".d/secret.toml", 0o600); err != nil {
		t.Fatal(err)
	}
	victim.start()
	v := newVMFrom(t, "probe", hollow+diskTable("root", own)+"[disk.made]\nsize = \"1M\"\nformat = \"raw\"\n")
	script := filepath.Join("/usr/share", "e2e-probe")
	writeFile(t, script, probe)
	defer os.Remove(script)
	dropIn := "/run/systemd/system/" + v.unit() + ".d/90-probe.conf"
	writeFile(t, dropIn, fmt.Sprintf(`[Service]
Type=exec
ExecStart=
ExecStart=/usr/bin/bash %s %s %d %s %s
ExecStartPost=
Restart=no
`, script, victim.name, victim.mainPID(), own, dir+"/victim.img"))
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(dropIn)) })
	v.start()
	var said string
	eventually(t, "the probe is through", func() bool {
		said = run(t, "journalctl", "-o", "cat", "--no-pager", "_SYSTEMD_INVOCATION_ID="+v.property("InvocationID"))
		return strings.Contains(said, "probe done")
	})
	for _, line := range strings.Split(said, "\n") {
		can, isCan := strings.CutPrefix(line, "can ")
		cannot, isCannot := strings.CutPrefix(line, "cannot ")
		switch {
		case isCan && !strings.HasSuffix(can, "its own disk"):
			t.Errorf("a machine's process can %s", can)
		case isCannot && strings.HasSuffix(cannot, "its own disk"):
			t.Errorf("a machine's process cannot %s", cannot)
		}
	}

	// By its user alone, without the mounts of the sandbox, it is no better.
	uid := strings.Fields(processStatus(t, victim.mainPID(), "Uid"))[0]
	disk := dir + "/victim.img"
	run(t, "setpriv", "--reuid="+uid, "--clear-groups", "head", "-c", "1", disk)
	for _, other := range []string{"65534", "61184", fmt.Sprint(1 + atoi(t, uid))} {
		as := []string{"setpriv", "--reuid=" + other, "--regid=" + other, "--clear-groups"}
		for _, file := range []string{disk, victim.runtimeDir() + "/cloudinit.iso", config.SystemPaths("").Record(victim.name)} {
			if r := try(append(as, "head", "-c", "1", file)...); r.code == 0 {
				t.Errorf("user %s reads %s", other, file)
			}
		}
	}
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What is secret in a definition is nowhere where others can read.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	const hash, password, credential, fileSecret = "$6$salt$E2EHASH", "E2EUSERDATA", "E2ECREDENTIAL", "E2EFILESECRET"
	dir := hostDir(t, "secrets")
	writeFile(t, dir+"/secret", fileSecret)
	if err := os.Chmod(dir+"/secret", 0o600); err != nil {
		t.Fatal(err)
	}
	v := newVMFrom(t, "secrets", hollow+fmt.Sprintf(`
[cloud_init]
vendor_data = "#cloud-config\n# %s\n"
user = "alice"
password_hash = %q
[credentials]
"e2e.value" = %q
"e2e.file" = { file = %q }
[disk.root]
pth = "/nowhere"
`, password, hash, credential, dir+"/secret"))
	if err := os.Chmod(v.file(), 0o600); err != nil {
		t.Fatal(err)
	}
	secrets := []string{"E2EHASH", password, credential, fileSecret}
	hidden := func(where, text string) {
		t.Helper()
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %s", where, secret)
			}
		}
	}
	everywhere := func(when string) {
		t.Helper()
		cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range cmdlines {
			text, err := os.ReadFile(file)
			if err == nil && !strings.Contains(string(text), "e2e.test") {
				hidden(when+": "+file, string(text))
			}
		}
		hidden(when+": systemctl cat", run(t, "systemctl", "cat", v.unit()))
		hidden(when+": systemctl show", run(t, "systemctl", "show", v.unit()))
		hidden(when+": systemctl status", try("systemctl", "status", v.unit()).all())
		hidden(when+": the journal", run(t, "journalctl", "-b", "-o", "verbose", "--no-pager", "--since=-5min"))
		for _, argv := range [][]string{{"vmctl", "show", v.name}, {"vmctl", "show", "-o", "json", v.name}, {"vmctl", "render", v.name},
			{"vmctl", "check", v.name}, {"vmctl", "list", "-o", "json"}, {"vmctl", "logs", v.name}} {
			hidden(when+": "+strings.Join(argv, " "), try(argv...).all())
		}
		// Files that others than their owner may read, of systemd's and ours.
		found := try("sh", "-c", "find /run/systemd /run/vmctl /var/lib/vmctl /tmp /var/tmp -xdev -type f -perm /044 -exec grep -lE '"+strings.Join([]string{"E2EHASH", password, credential, fileSecret}, "|")+"' {} +")
		if found.stdout != "" {
			t.Errorf("%s: everybody can read secrets in %s", when, found.stdout)
		}
	}
	// Broken first: a message must not quote what is secret either.
	run(t, "systemctl", "daemon-reload")
	fail(t, 1, "systemctl", "start", v.unit())
	everywhere("broken")

	definition, err := os.ReadFile(v.file())
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(definition), "[disk.root]")
	v.define(text)
	v.start()
	everywhere("running")
	// They have come to where they belong.
	seed, err := os.ReadFile(v.runtimeDir() + "/cloudinit.iso")
	if err != nil || !strings.Contains(string(seed), hash) || !strings.Contains(string(seed), password) {
		t.Errorf("the seed lacks what it was made of: %v", err)
	}
	run(t, "systemctl", "stop", v.unit())
	everywhere("stopped")
}

// Quadlet's generator beside ours: both work in one reload.
func TestQuadletBeside(t *testing.T) {
	if olderSuite() {
		t.Skip("Debian 12's podman has no generator")
	}
	file := "/etc/containers/systemd/beside.container"
	writeFile(t, file, "[Container]\nImage=localhost/none\nExec=/bin/true\n")
	defer func() {
		os.Remove(file)
		run(t, "systemctl", "daemon-reload")
	}()
	v := newVMFrom(t, "beside", hollow)
	v.start()
	contains(t, run(t, "systemctl", "cat", "beside.service"), file, "podman")
	if got := run(t, "systemctl", "show", "-P", "LoadState", "beside.service"); got != "loaded" {
		t.Errorf("the container's unit is %s", got)
	}
	if got := v.state(); got != "running" {
		t.Errorf("the machine is %s", got)
	}
}

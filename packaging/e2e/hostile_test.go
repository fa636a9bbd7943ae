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

// badDefinition is one that cannot work, and what has to be said of it.
type badDefinition struct {
	name string
	toml string
	want string // in what vmctl check says
	// runtime says that the definition is right as such: vmctl check warns at
	// most, and what is wrong is found when the machine is started.
	runtime bool
	start   string // in what is said at the start; want if empty
}

// Whatever a definition asks for, the answer is one sentence with file, line
// and key, and nothing is left behind.
func TestBadDefinitions(t *testing.T) {
	newerSuiteOnly(t, "what is refused is refused by ourselves, before the hypervisor")
	t.Parallel()
	dir := hostDir(t, "bad")
	if err := syscall.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	raw := image(t, dir+"/raw.img", "", megabyte)
	qcow := dir + "/really-qcow2.img"
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", qcow, "1M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", dir+"/backed.qcow2")
	truncated := dir + "/truncated.qcow2"
	writeFile(t, truncated, "QFI\xfb\x00\x00")
	// Whoever may write a directory must not choose what file of root's is
	// given to a machine.
	run(t, "install", "-d", "-o", "nobody", dir+"/foreign")
	run(t, "ln", "-s", "/etc/shadow", dir+"/foreign/disk.img")
	run(t, "chown", "-h", "nobody", dir+"/foreign/disk.img")

	disk := func(path string) string { return diskTable("root", path) }
	shadow := rights(t, "/etc/shadow", "/etc")
	for _, bad := range []badDefinition{
		{name: "no-cpus", toml: "cpus = 0", want: ":1: cpus: want"},
		{name: "few-cpus", toml: "cpus = -3", want: ":1: cpus: want"},
		{name: "many-cpus", toml: "cpus = 9999999999999999999999", want: ":1: "},
		{name: "text-cpus", toml: `cpus = "2"`, want: ":1: cpus: want"},
		{name: "no-memory", toml: `memory = "0"`, want: ":1: memory: want"},
		{name: "less-memory", toml: `memory = "-1G"`, want: ":1: memory: want"},
		{name: "much-memory", toml: `memory = "99999999999999999999T"`, want: ":1: memory: want"},
		{name: "unit-memory", toml: `memory = "1 potato"`, want: ":1: memory: want"},
		{name: "all-memory", toml: `memory = "4096T"`, runtime: true, start: "memory"},
		{name: "less-disk", toml: "[disk.root]\nsize = \"-5G\"", want: ":2: disk.root.size: want"},
		{name: "much-disk", toml: "[disk.root]\nsize = \"2049T\"", want: ":2: disk.root.size: want"},
		{name: "relative", toml: disk("disk.img"), want: ":2: disk.root.path: want"},
		{name: "no-name", toml: "[disk.\"../../etc\"]\nsize = \"1G\"", want: ":1: disk."},
		{name: "dots", toml: disk("/srv/../etc/shadow"), want: ":2: disk.root.path: want"},
		{name: "directory", toml: disk(dir), runtime: true, start: ":2: disk.root.path: want a file or block device, " + dir + " is a directory"},
		{name: "fifo", toml: disk(dir + "/fifo"), runtime: true, start: ":2: disk.root.path: want a file or block device, " + dir + "/fifo is a FIFO"},
		{name: "null", toml: disk("/dev/null"), runtime: true, start: ":2: disk.root.path: want a file or block device, /dev/null is a character device"},
		{name: "socket", toml: disk("/run/systemd/notify"), runtime: true, start: ":2: disk.root.path: want a file or block device, /run/systemd/notify is a socket"},
		{name: "missing", toml: disk(dir + "/none.img"), runtime: true, want: ":2: disk.root.path: warning: " + dir + "/none.img does not exist", start: ":2: disk.root.path: " + dir + "/none.img does not exist"},
		{name: "no-kernel", toml: "[boot]\nkernel = \"/boot/no such kernel\"", runtime: true, want: ":2: boot.kernel: warning: /boot/no such kernel does not exist", start: ":2: boot.kernel: /boot/no such kernel does not exist"},
		{name: "dir-kernel", toml: "[boot]\nkernel = \"/boot\"", runtime: true, start: ":2: boot.kernel: want a file, /boot is a directory"},
		{name: "no-initrd", toml: "[boot]\ninitrd = \"/boot/none\"", want: ":2: boot.initrd: "},
		{name: "is-qcow2", toml: disk(qcow), runtime: true, start: ":2: disk.root.path: " + qcow + ` is a qcow2 image, not raw: write format = "qcow2"`},
		{name: "is-raw", toml: disk(raw) + `format = "qcow2"`, runtime: true, start: ":2: disk.root.path: want a qcow2 image, " + raw + " is not one"},
		{name: "truncated", toml: disk(truncated), runtime: true, start: ":2: disk.root.path: "},
		{name: "backed", toml: disk(dir + "/backed.qcow2"), runtime: true, start: "/etc/shadow: the machine's user may not read"},
		{name: "link", toml: disk(dir + "/foreign/disk.img"), runtime: true, start: "a symbolic link of user 65534 leads to /etc/shadow, which belongs to user 0"},
		{name: "firmware", toml: "[boot]\nfirmware = \"/no/firmware.fd\"", runtime: true, want: "/no/firmware.fd does not exist"},
		{name: "seed", toml: "[cloud_init]\nuser_data = \"/no/user-data\"", runtime: true, want: "/no/user-data"},
		{name: "secret", toml: "[credentials]\nx = { file = \"/no/secret\" }", runtime: true, start: "/no/secret"},
		{name: "not-toml", toml: "cpus = = 2", want: ":1: "},
		{name: "not-utf8", toml: "description = \"\xff\xfe\"", want: ":1: "},
		{name: "null-byte", toml: "description = \"a\x00b\"", want: ":1: "},
		{name: "long", toml: "# " + strings.Repeat("x", 10<<20), want: "want a file of at most"},
		{name: "deep", toml: "x = " + strings.Repeat("[", 100000), want: ":1: "},
		{name: "newline", toml: `description = "a\nb"`, want: ":1: description: want"},
		{name: "address", toml: "[nic.lan]\nuser = true\nforward = [\"99999:22\"]", want: ":3: nic.lan.forward: want"},
		{name: "mac", toml: "[nic.lan]\nuser = true\nmac = \"01:00:00:00:00:01\"", want: ":3: nic.lan.mac: want"},
		{name: "contract", toml: "[service]\nExecStop = \"/bin/true\"", want: ":2: service.ExecStop: "},
		{name: "injection", toml: "[service]\nNice = \"1\\nUser=root\"", want: ":2: service.Nice: "},
	} {
		t.Run(bad.name, func(t *testing.T) { bad.test(t) })
	}
	if after := rights(t, "/etc/shadow", "/etc"); after != shadow {
		t.Errorf("/etc/shadow: %s, was %s", after, shadow)
	}
}

func (bad badDefinition) test(t *testing.T) {
	v := newVMFrom(t, "bad-"+bad.name, bad.toml+"\n")
	check := try("vmctl", "check", v.name)
	code, start := 6, bad.start
	if bad.runtime {
		code = 0
	}
	if start == "" {
		start = bad.want
	}
	if check.code != code {
		t.Errorf("vmctl check: exit status %d, want %d", check.code, code)
	}
	contains(t, check.all(), bad.want)
	oneSentence(t, "vmctl check", check.all())

	started := try("vmctl", "start", v.name)
	if started.code == 0 || !bad.runtime && started.code != code {
		t.Errorf("vmctl start: exit status %d", started.code)
	}
	contains(t, started.stderr, start)
	oneSentence(t, "vmctl start", started.stderr)
	if !bad.runtime {
		contains(t, check.all(), v.file()+":")
		return // it has not come as far as systemd
	}

	contains(t, try("systemctl", "status", "--lines=30", v.unit()).stdout, start)
	try("systemctl", "stop", v.unit()) // it may be about to be started again
	if _, err := os.Stat(v.runtimeDir()); err == nil {
		t.Errorf("%s is left", v.runtimeDir())
	}
	left, err := filepath.Glob(v.stateDir() + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range left {
		if name := filepath.Base(file); name != "exit.json" && name != "definition.json" {
			t.Errorf("%s is left", file)
		}
	}
	if tasks := v.property("TasksCurrent"); tasks != "[not set]" && tasks != "0" {
		t.Errorf("%s processes are left", tasks)
	}
}

// oneSentence checks that a message is for people: short lines, nothing of a
// program's insides.
func oneSentence(t *testing.T, what, text string) {
	t.Helper()
	if lines := strings.Count(text, "\n"); lines > 5 || len(text) > 2000 {
		t.Errorf("%s: %d lines, %d bytes: %.300s", what, lines, len(text), text)
	}
	for _, inside := range []string{"panic:", "goroutine", "runtime error", "%!", "<nil>"} {
		if strings.Contains(text, inside) {
			t.Errorf("%s: %q in %.300s", what, inside, text)
		}
	}
}

// What is no file cannot be a definition, and keeps no other from being read.
func TestNoDefinitionFile(t *testing.T) {
	t.Parallel()
	good := newVMFrom(t, "good-beside", hollow)
	for _, bad := range []struct {
		name string
		make func(path string) error
		want string
	}{
		{"bad-fifo", func(p string) error { return syscall.Mkfifo(p, 0o644) }, "FIFO"},
		{"bad-dir", func(p string) error { return os.Mkdir(p, 0o755) }, "directory"},
		{"bad-link", func(p string) error { return os.Symlink("/no/such/file", p) }, ""},
		{"bad-zero", func(p string) error { return os.Symlink("/dev/zero", p) }, "device"},
	} {
		v := newVMFrom(t, bad.name, "")
		if err := os.Remove(v.file()); err != nil {
			t.Fatal(err)
		}
		if err := bad.make(v.file()); err != nil {
			t.Fatal(err)
		}
		r := try("vmctl", "check", bad.name)
		if r.code != 6 && r.code != 3 {
			t.Errorf("%s: vmctl check: exit status %d\n%s", bad.name, r.code, r.all())
		}
		contains(t, r.all(), v.file(), bad.want)
		if r := try("vmctl", "start", bad.name); r.code != 6 && r.code != 3 {
			t.Errorf("%s: vmctl start: exit status %d\n%s", bad.name, r.code, r.all())
		}
	}
	badName := "/etc/vmctl/vms/Bad_Name.toml"
	writeFile(t, badName, hollow)
	defer os.Remove(badName)
	contains(t, try("vmctl", "check").all(), badName)
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "start", good.unit())
	fail(t, 1, "systemctl", "start", "vm@bad-fifo")
	contains(t, try("systemctl", "status", "vm@bad-fifo").stdout, "/etc/vmctl/vms/bad-fifo.toml", "FIFO")
}

// hostileName has everything that means something to TOML, systemd, QEMU or a
// shell.
const hostileName = `a, b=c,,d "e" 'f' %i %n $HOME ${x} :g; \h\x41 {"j"} üñ☃ #k`

// Names as long as they may be, and paths of anything.
func TestHostilePaths(t *testing.T) {
	newerSuiteOnly(t, "names and paths are quoted for both in the same way")
	t.Parallel()
	name := "a-0--" + strings.Repeat("x", 53) + "-last"
	if len(name) != 63 {
		t.Fatalf("%d bytes", len(name))
	}
	dir := hostDir(t, hostileName)
	guest := filepath.Join(os.Getenv("VMCTL_GUEST"), "cloud")
	kernel, initrd := filepath.Join(dir, "vmlinuz "+hostileName), filepath.Join(dir, "initrd "+hostileName)
	run(t, "cp", guest+"/vmlinuz", kernel)
	run(t, "cp", guest+"/initrd", initrd)
	root := image(t, filepath.Join(dir, "root "+hostileName), "in a hostile place", megabyte)
	cd := image(t, filepath.Join(dir, "cd "+hostileName), "a CD", megabyte)
	long := "d-" + strings.Repeat("y", 61)
	v := newVMFrom(t, name, fmt.Sprintf(`
description = %q
memory = "256M"
[boot]
kernel = %q
initrd = %q
cmdline = %q
[disk.root]
path = %q
[disk.cd]
path = %q
bus = "scsi"
media = "cdrom"
[disk.again]
path = %q
ephemeral = true
[disk.%s]
size = "8M"
serial = "a,b=c \"d\" 50%%"
[nic.%s]
user = true
[cloud_init]
user_data = %q
`, hostileName, kernel, initrd, "console=ttyS0 quiet no_timer_check x="+hostileName, root, cd, cd, long, long, "#cloud-config\n# "+hostileName+"\n"))
	v.boot()
	contains(t, v.shown(), "# "+hostileName)
	disks := v.guestDisks("root", "scsi cdrom", "again")
	if got := v.read(disks["root"]); got != "in a hostile place" {
		t.Errorf("the guest reads %q", got)
	}
	if got := v.read(disks["scsi cdrom"]); got != "a CD" {
		t.Errorf("the guest reads %q", got)
	}
	v.write(disks["again"], "ephemeral")
	v.write(disks["root"], "written")
	v.typeLine("cat /proc/cmdline")
	v.expect(`x=`)
	contains(t, v.shown(), "x="+hostileName)
	contains(t, run(t, "systemctl", "status", v.unit()), hostileName)
	contains(t, run(t, "vmctl", "list"), name, hostileName)
	run(t, "vmctl", "stop", name)
	if got := v.exitReason(); got != "stop requested" {
		t.Errorf("reason %q", got)
	}
	if got := imageText(t, root); got != "written" {
		t.Errorf("the file holds %q", got)
	}
	if got := imageText(t, cd); got != "a CD" {
		t.Errorf("the CD holds %q", got)
	}
}

// A full disk of the host is said at the start, and at run time it pauses the
// guest until there is room again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	v := newVM(t, "full", `
[disk.big]
size = "64M"
format = "raw"
`)
	state := v.stateDir()
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func(options string) {
		t.Helper()
		run(t, "mount", "-t", "tmpfs", "-o", options, "tmpfs", state)
	}
	t.Cleanup(func() { try("umount", state) })
	mount("size=4k,mode=755")
	writeFile(t, state+"/ballast", strings.Repeat("x", 4096))
	run(t, "systemctl", "daemon-reload")
	if r := try("systemctl", "start", v.unit()); r.code == 0 {
		t.Error("started on a full disk")
	}
	contains(t, try("systemctl", "status", v.unit()).stdout, state, "no space left on device")
	run(t, "systemctl", "stop", v.unit())
	text := fail(t, 1, "vmctl", "start", v.name)
	contains(t, text, state, "no space left on device")
	oneSentence(t, "vmctl start", text)
	run(t, "vmctl", "stop", v.name)
	run(t, "umount", state)

	mount("size=2M,mode=755")
	v.boot()
	v.typeLine("dd if=/dev/urandom of=/dev/vda bs=64k count=80 oflag=direct && echo filled")
	eventually(t, "the guest pauses", func() bool { return v.state() == "paused" })
	if got := v.property("ActiveState"); got != "active" {
		t.Errorf("the unit is %s", got)
	}
	run(t, "mount", "-o", "remount,size=64M", state)
	run(t, "vmctl", "resume", v.name)
	v.expect(`\nfilled`)
	run(t, "vmctl", "stop", v.name)
	if got := v.exitReason(); got != "stop requested" {
		t.Errorf("reason %q", got)
	}
}

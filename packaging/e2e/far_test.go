//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// farHost has an sshd let somebody without any rights here be root on what is
// another host to them, and returns its name and how they call vmctl.
func farHost(t *testing.T) (host string, asBob func(argv ...string) []string) {
	t.Helper()
	host, user := "far-"+strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")), "bob"
	if try("id", user).code != 0 {
		run(t, "useradd", "--create-home", user)
	}
	dir, err := os.MkdirTemp("/home/"+user, "far-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	listener.Close()
	for _, key := range []string{"host", "bob"} {
		run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", dir+"/"+key)
	}
	writeFile(t, dir+"/editor", "#!/bin/sh\nsed -i s/first/second/ \"$1\"\n")
	run(t, "chmod", "755", dir+"/editor")
	writeFile(t, dir+"/sshd_config", fmt.Sprintf(`
ListenAddress 127.0.0.1:%d
HostKey %[2]s/host
AuthorizedKeysFile %[2]s/bob.pub
PidFile none
PermitRootLogin yes
StrictModes no
UsePAM no
SetEnv EDITOR=%[2]s/editor
`, port, dir))
	run(t, "chown", "-R", "bob:", dir)
	config := "/etc/ssh/ssh_config.d/" + host + ".conf"
	writeFile(t, config, fmt.Sprintf(`Host %s
HostName 127.0.0.1
Port %d
User root
IdentityFile %s/bob
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
`, host, port, dir))
	t.Cleanup(func() { os.Remove(config) })
	run(t, "install", "-d", "/run/sshd")
	sshd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", dir+"/sshd_config")
	var said bytes.Buffer
	sshd.Stderr = &said
	sshd.WaitDelay = 10 * time.Second // its connections write there too
	if err := sshd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		sshd.Process.Kill()
		sshd.Wait()
		if t.Failed() {
			t.Logf("sshd: %s", said.String())
		}
	})
	asBob = func(argv ...string) []string {
		return append([]string{"setpriv", "--reuid=bob", "--regid=bob", "--clear-groups", "env", "-C", dir, "HOME=/home/bob", "USER=bob", "XDG_RUNTIME_DIR="}, argv...)
	}
	eventually(t, "sshd lets bob in", func() bool { return try(asBob("ssh", host, "true")...).code == 0 })
	return host, asBob
}

// begun is a command that goes on, and of which something was read.
type begun struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *lines
	stderr bytes.Buffer
}

// lines is what a command has written so far.
type lines struct{ bytes chan []byte }

func (l *lines) Write(p []byte) (int, error) {
	l.bytes <- bytes.Clone(p)
	return len(p), nil
}

func begin(t *testing.T, argv ...string) *begun {
	t.Helper()
	b := &begun{t: t, cmd: exec.Command(argv[0], argv[1:]...), stdout: &lines{make(chan []byte, 10000)}}
	b.cmd.Stdout, b.cmd.Stderr = b.stdout, &b.stderr
	var err error
	if b.stdin, err = b.cmd.StdinPipe(); err == nil {
		err = b.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.cmd.Process.Kill() })
	return b
}

// expect waits until the command has written text.
func (b *begun) expect(text string) {
	b.t.Helper()
	var all []byte
	eventually(b.t, fmt.Sprintf("%q comes", text), func() bool {
		select {
		case p := <-b.stdout.bytes:
			all = append(all, p...)
		default:
		}
		return bytes.Contains(all, []byte(text))
	})
}

// gone waits until no process has words in its command line.
func gone(t *testing.T, words string) {
	t.Helper()
	eventually(t, "no process has "+words+" in its command line", func() bool { return try("pgrep", "-f", words).code == 1 })
}

// reachedFromAfar does with a Debian guest, and a machine of its own, what is done
// with -H, as somebody who may do nothing here. It depends on no version of systemd
// or QEMU.
func reachedFromAfar(t *testing.T, v *vm) {
	if olderSuite() {
		return
	}
	host, asBob := farHost(t)
	dir := run(t, asBob("pwd")...)
	vmctl := func(argv ...string) []string { return asBob(append([]string{"vmctl", "-H", host}, argv...)...) }
	contains(t, fail(t, 7, asBob("vmctl", "stop", v.name)...), "not permitted")

	// What is shown, and what is refused.
	contains(t, run(t, vmctl("list")...), v.name, "running")
	if got := decode[map[string]any](t, run(t, vmctl("show", "-o", "json", v.name)...))["state"]; got != "running" {
		t.Errorf("state %v", got)
	}
	contains(t, fail(t, 3, vmctl("show", "nosuch")...), "vmctl: no VM is named nosuch")
	refused := decode[struct {
		Error struct{ Status int }
	}](t, fail(t, 4, vmctl("resume", "-o", "json", v.name)...))
	if refused.Error.Status != 4 {
		t.Errorf("refused with %+v", refused)
	}
	contains(t, fail(t, 1, asBob("vmctl", "-H", "127.0.0.1:1", "list")...), "vmctl: cannot reach 127.0.0.1: ssh: connect to host 127.0.0.1 port 1: Connection refused")
	contains(t, fail(t, 1, asBob("vmctl", "-H", "nobody@"+host, "list")...), "cannot reach nobody@"+host, "Permission denied")

	// A machine from its definition to its end.
	writeFile(t, dir+"/keys", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPkxYzVnmBrXnLbhjVBUlBcgmCwb4rAZYmTSkTZhzdzi bob\n")
	const name = "made-from-afar"
	t.Cleanup(func() { try("vmctl", "kill", name); try("vmctl", "delete", "--yes", name) })
	run(t, vmctl("create", name, "--memory", "64M", "--description", "the first's one", "--ssh-key", "keys", "--set", "lifecycle.stop_timeout=5s")...)
	contains(t, run(t, "vmctl", "show", name), "the first's one")
	contains(t, run(t, "vmctl", "render", name, "-o", "json")+run(t, "cat", "/etc/vmctl/vms/"+name+".toml"), "AAAAIPkxYzVnmBrXnLbhjVBUlBcgmCwb4rAZYmTSkTZhzdzi bob")
	run(t, "script", "-qec", strings.Join(vmctl("edit", name), " "), "/dev/null")
	contains(t, run(t, "vmctl", "show", name), "the second's one")
	contains(t, run(t, vmctl("start", name)...), name+": ")
	contains(t, fail(t, 4, vmctl("start", name)...), "invalid transition from running")
	run(t, vmctl("kill", name)...)
	contains(t, run(t, vmctl("delete", "--yes", name)...), name)

	// Into the guest: commands with their streams and status, files of bob's.
	got := try(vmctl("exec", v.name, "-n", "--", "sh", "-c", `echo "it's $1"; echo err >&2; exit 255`, "sh", "a  b")...)
	if got.code != 255 || got.stdout != "it's a  b\n" || got.stderr != "err\n" {
		t.Errorf("got %+v", got)
	}
	run(t, asBob("sh", "-c", "head -c 700000 /dev/urandom >noise && mkdir -p d/e && cp noise d/e && chmod 640 noise")...)
	if got := run(t, asBob("sh", "-c", "vmctl -H "+host+" exec "+v.name+" -- cat <noise | cmp - noise")...); got != "" {
		t.Error(got)
	}
	contains(t, run(t, vmctl("copy", "noise", v.name+":/root/from-afar")...), v.name+":/root/from-afar: 683.6K copied")
	run(t, vmctl("copy", "-r", "-u", "alice", "d", v.name+":afar")...)
	if got := run(t, "vmctl", "exec", v.name, "-n", "--", "stat", "-c", "%a %U %s", "/root/from-afar", "/home/alice/afar/e/noise"); got != "640 root 700000\n644 alice 700000" {
		t.Errorf("in the guest: %s", got)
	}
	run(t, vmctl("copy", v.name+":from-afar", "back")...)
	run(t, vmctl("copy", "-r", v.name+":/home/alice/afar", "backdir")...)
	run(t, asBob("sh", "-c", "cmp noise back && diff -r d backdir && vmctl -H "+host+" copy "+v.name+":from-afar - | cmp - noise")...)
	contains(t, fail(t, 1, vmctl("copy", v.name+":/no/such", "back")...), "No such file")
	contains(t, fail(t, 3, vmctl("copy", "noise", "nosuch:")...), "no VM is named nosuch")

	// ssh to the guest through that host.
	run(t, "sh", "-c", "cat "+dir+"/bob.pub | vmctl ssh-key add "+v.name+" alice")
	writeFile(t, dir+"/config", run(t, vmctl("ssh-config", v.name)...)+"\n  IdentityFile "+dir+"/bob\n")
	got = try(asBob("ssh", "-F", "config", "-l", "alice", v.name+".vm."+host, "id -un; exit 5")...)
	if got.code != 5 || got.stdout != "alice\n" || got.stderr != "" {
		t.Errorf("got %+v", got)
	}

	// What goes on ends over there when it is interrupted here, and when it is killed.
	logs := begin(t, vmctl("logs", "-f", v.name)...)
	logs.expect(v.name)
	logs.cmd.Process.Signal(syscall.SIGINT)
	if err := logs.cmd.Wait(); err == nil || !strings.Contains(logs.stderr.String(), "vmctl: interrupted") {
		t.Errorf("%v: %s", err, logs.stderr.String())
	}
	gone(t, "journalctl.*unit=vm@"+v.name+".service.*--follow")
	sleep := begin(t, vmctl("exec", "-n", v.name, "--", "sh", "-c", "echo asleep; sleep 4321")...)
	sleep.expect("asleep")
	sleep.cmd.Process.Kill()
	sleep.cmd.Wait()
	eventually(t, "the command in the guest has ended", func() bool {
		return try("vmctl", "exec", v.name, "-n", "--", "pgrep", "-f", "sleep 432[1]").code == 1
	})
	gone(t, "vmctl exec .*sleep 4321")

	copying := begin(t, vmctl("copy", "-", v.name+":/root/from-afar")...)
	io.WriteString(copying.stdin, "the beginning of something")
	eventually(t, "it is on its way", func() bool {
		return try("vmctl", "exec", v.name, "-n", "--", "sh", "-c", "ls -A /root | grep vmctl-copy").code == 0
	})
	copying.cmd.Process.Kill()
	copying.cmd.Wait()
	gone(t, "vmctl copy .*vmctl-copy")
	gone(t, "/ssh .*"+host)
	if got := run(t, "vmctl", "exec", v.name, "-n", "--", "stat", "-c", "%s", "/root/from-afar"); got != "700000" {
		t.Errorf("a copy that was cut off has left %s bytes", got)
	}

	// With a terminal.
	console := begin(t, "script", "-qec", strings.Join(vmctl("console", v.name), " "), "/dev/null")
	console.expect("Ctrl-] q leaves")
	io.WriteString(console.stdin, "\x1dq")
	if err := console.cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, console.stderr.String())
	}

	// Names complete where a connection is open.
	complete := asBob("vmctl", "__complete", "-H", host, "stop", "") // as shells do
	if got := run(t, complete...); strings.Contains(got, v.name) {
		t.Errorf("completed %s", got)
	}
	mux := filepath.Join(dir, "mux")
	run(t, "sh", "-c", "echo '  ControlPath "+mux+"' >>/etc/ssh/ssh_config.d/"+host+".conf")
	run(t, asBob("ssh", "-f", "-N", "-M", host)...)
	t.Cleanup(func() { try(asBob("ssh", "-O", "exit", host)...) })
	eventually(t, "names complete", func() bool { // which does not wait for long
		return strings.Contains(try(complete...).stdout, v.name)
	})
	contains(t, run(t, vmctl("list", "-q")...), v.name)
	got = try(vmctl("exec", v.name, "-n", "--", "sh", "-c", "exit 255")...)
	if got.code != 255 || got.stderr != "" {
		t.Errorf("got %+v", got)
	}
}

// viewedFromAfar looks at a display through ssh.
func (v *vm) viewedFromAfar(t *testing.T) {
	if olderSuite() {
		return // nothing of it depends on a version
	}
	host, asBob := farHost(t)
	contains(t, run(t, asBob("vmctl", "-H", host, "screenshot", v.name, "afar.png")...), v.name+": written to afar.png (")
	contains(t, fail(t, 4, asBob("vmctl", "-H", host, "screenshot", v.name, "afar.png")...), "is there already")
	data, err := os.ReadFile(run(t, asBob("pwd")...) + "/afar.png")
	if err != nil {
		t.Fatal(err)
	}
	decodePicture(t, data)
	contains(t, fail(t, 2, asBob("vmctl", "-H", host, "screenshot", "--head", "9", v.name, "-")...), "--head: want a monitor")

	writeFile(t, "/usr/share/novnc/vnc.html", "the page")
	t.Cleanup(func() { os.RemoveAll("/usr/share/novnc") })
	p := v.page(t, "-H", host)
	_, to, _ := p.get(p.client, p.address.String())
	settings, err := url.ParseQuery(strings.TrimPrefix(to, "/vnc.html#"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := p.connect("http://" + p.address.Host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shakeVNC(conn, settings.Get("password")); err != nil {
		t.Error(err)
	}
	conn.Close()
	if err := <-p.ended; err != nil {
		t.Errorf("the browser left: %v, %s", err, p.stderr)
	}
	gone(t, "ssh -N .*"+v.name+"/display.sock")
}

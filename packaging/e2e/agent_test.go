//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

// reached reaches into a Debian guest with an agent, by which alice logs in with
// ssh.
func reached(t *testing.T, v *vm, ssh []string) {
	t.Run("exec", func(t *testing.T) { execInGuest(t, v) })
	t.Run("api", func(t *testing.T) { executedByAPI(t, v) })
	t.Run("copy", func(t *testing.T) { copied(t, v) })
	t.Run("ssh", func(t *testing.T) { loggedIn(t, v) })
	t.Run("show", func(t *testing.T) { described(t, v) })
	t.Run("afar", func(t *testing.T) { reachedFromAfar(t, v) })
	t.Run("hung", func(t *testing.T) { hung(t, v, ssh) })
}

// described sees what the agent tells, and sets what it can set.
func described(t *testing.T, v *vm) {
	exec := func(command string) string { return run(t, "vmctl", "exec", v.name, "-n", "--", "sh", "-c", command) }
	eventually(t, "it tells of itself at once", func() bool {
		guest, _ := v.show()["guest"].(map[string]any)
		mounted, _ := guest["file_systems"].([]any)
		return guest["host_name"] == "deb13" && guest["os_id"] == "debian" && len(mounted) > 0
	})
	run(t, "sh", "-c", "echo 'new secret' | vmctl set-password "+v.name+" alice")
	if got := exec("getent shadow alice | cut -d: -f2 | head -c 2"); got != "$y" {
		t.Errorf("the password is %q", got)
	}
	run(t, "sh", "-c", "echo ssh-ed25519 AAAAtest me | vmctl ssh-key add "+v.name+" alice")
	contains(t, run(t, "vmctl", "ssh-key", "list", v.name, "alice"), "AAAAtest")
	run(t, "sh", "-c", "echo ssh-ed25519 AAAAtest me | vmctl ssh-key remove "+v.name+" alice")
	if got := run(t, "vmctl", "ssh-key", "list", v.name, "alice"); strings.Contains(got, "AAAAtest") {
		t.Errorf("left: %s", got)
	}
	// Who did that is kept, but not what is secret in it.
	history := run(t, "vmctl", "history", v.name)
	contains(t, history, "  exec  ", "  set-password  ", "  ssh-key add  ", "  ssh-key remove  ", "  root  ")
	if strings.Contains(history, "AAAAtest") {
		t.Errorf("the history has keys:\n%s", history)
	}
	exec("date -s 2001-01-01")
	run(t, "vmctl", "pause", v.name)
	contains(t, run(t, "vmctl", "resume", v.name), "clock set")
	if got := exec("date +%Y"); got == "2001" {
		t.Error("the clock is not set")
	}
}

// hung has an agent that listens and says nothing: it costs a clear error, and
// nothing else.
func hung(t *testing.T, v *vm, ssh []string) {
	run(t, append(ssh, "sudo pkill -STOP -x qemu-ga")...)
	contains(t, fail(t, 5, "vmctl", "exec", v.name, "-n", "--", "true"), "the guest agent does not answer")
	// Files have another way.
	run(t, "rm", v.stateDir()+"/ssh/known_hosts")
	if got := run(t, "vmctl", "copy", "-u", "alice", v.name+":/etc/hostname", "-"); got != "deb13" {
		t.Errorf("copied %s", got)
	}
	if guest := v.show()["guest"]; guest != nil {
		t.Errorf("it says %v", guest)
	}
	run(t, append(ssh, "sudo pkill -CONT -x qemu-ga")...)
	run(t, "vmctl", "exec", v.name, "-n", "--", "true")
}

// loggedIn logs in by the machine's own key, that the agent gives to the guest,
// through a forward.
func loggedIn(t *testing.T, v *vm) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(try("vmctl", "exec", v.name, "-n", "--", "sh", "-c", "uptime; journalctl -b -u ssh -n 50 --no-pager; ss -tnp").all())
			t.Log(try("ss", "-tnp").all())
		}
	})
	contains(t, run(t, "vmctl", "wait", "--for", "agent", v.name), "agent")
	contains(t, run(t, "vmctl", "wait", "--for", "address", v.name), "address")
	contains(t, run(t, "vmctl", "wait", "--for", "ssh", v.name), "ssh")
	contains(t, run(t, "vmctl", "ssh", "--print", v.name), "ProxyCommand=vmctl ssh --proxy "+v.name)
	if got := try("vmctl", "ssh", "-l", "alice", v.name, "--", "id -un; exit 7"); got.code != 7 || got.stdout != "alice\n" {
		t.Errorf("got %+v", got)
	}
	dir := t.TempDir()
	writeFile(t, dir+"/config", run(t, "vmctl", "ssh-config", v.name))
	run(t, "vmctl", "ssh", v.name, "--", "true")
	run(t, "scp", "-q", "-F", dir+"/config", dir+"/config", v.name+".vm:scp")
	run(t, "sh", "-c", "vmctl copy "+v.name+":scp - | cmp - "+dir+"/config")
	// Files too, by the same ways of checking them.
	run(t, "sh", "-c", "cd "+dir+" && mkdir -p d/e && head -c 300000 /dev/urandom >d/e/noise && chmod 640 d/e/noise")
	contains(t, run(t, "vmctl", "copy", "--via", "ssh", "-u", "alice", dir+"/d/e/noise", v.name+":it's noise"), "/home/alice/it's noise: 293K copied")
	run(t, "vmctl", "copy", "--via", "ssh", "-u", "alice", "-r", dir+"/d", v.name+":by-ssh")
	run(t, "vmctl", "copy", "--via", "ssh", "-u", "alice", "-r", v.name+":by-ssh", dir+"/back")
	run(t, "diff", "-r", dir+"/d", dir+"/back")
	if got := decode[struct{ Via string }](t, run(t, "vmctl", "copy", "-o", "json", "--via", "ssh", v.name+":/home/alice/it's noise", dir+"/noise")); got.Via != "ssh" {
		t.Errorf("by %+v", got)
	}
	run(t, "cmp", dir+"/noise", dir+"/d/e/noise")
	if got := run(t, "vmctl", "exec", v.name, "-n", "--", "stat", "-c", "%a %U", "/home/alice/it's noise"); got != "640 alice" {
		t.Errorf("in the guest: %s", got)
	}
	contains(t, fail(t, 1, "vmctl", "copy", "--via", "ssh", "-u", "alice", dir+"/noise", v.name+":/etc/"), "in the guest: ", "ermission denied")
	contains(t, fail(t, 1, "vmctl", "copy", "--via", "ssh", "-u", "nobody", dir+"/noise", v.name+":"), "Permission denied (publickey")
	// Nobody else has the key, and another guest is noticed.
	key := v.stateDir() + "/ssh/id_ed25519"
	if got := run(t, "stat", "-c", "%a %U", v.stateDir()+"/ssh", key); got != "700 root\n600 root" {
		t.Errorf("modes: %s", got)
	}
	run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", dir+"/other")
	run(t, "sh", "-c", "echo "+v.name+" $(cut -d' ' -f1,2 "+dir+"/other.pub) >"+v.stateDir()+"/ssh/known_hosts")
	contains(t, fail(t, 255, "vmctl", "ssh", v.name, "--", "true"), "Host key verification failed")
}

func execInGuest(t *testing.T, v *vm) {
	exec := func(args ...string) []string { return append([]string{"vmctl", "exec", v.name, "-n"}, args...) }
	got := try(exec("--", "sh", "-c", "echo out; echo err >&2; exit 42")...)
	if got.code != 42 || got.stdout != "out\n" || got.stderr != "err\n" {
		t.Errorf("got %+v", got)
	}
	if got := run(t, exec("--user", "alice", "--env", "A=b c", "--workdir", "/usr", "--", "sh", "-c", "id -un; echo $A $HOME; pwd")...); got != "alice\nb c /home/alice\n/usr" {
		t.Errorf("as alice: %q", got)
	}
	if got := run(t, "sh", "-c", "printf 'a\\nb' | vmctl exec "+v.name+" -- wc -c"); got != "3" {
		t.Errorf("3 bytes of input are %s", got)
	}
	// More than goes with one call, and than the agent itself keeps.
	if got := run(t, "sh", "-c", "head -c 600000 /dev/zero | vmctl exec "+v.name+" -- sh -c 'cat; head -c 17M /dev/zero' | wc -c"); got != "18425792" {
		t.Errorf("600000 bytes and 17 MiB are %s", got)
	}
	contains(t, fail(t, 5, exec("--timeout", "1s", "--", "sleep", "1000")...), "was ended in the guest")
	if got := try(exec("--", "pgrep", "-x", "sleep")...); got.code != 1 {
		t.Errorf("it runs on: %s", got.all())
	}
	shown := decode[struct {
		Status int `json:"exit_status"`
		Stdout string
	}](t, try(append(exec("-o", "json"), "--", "sh", "-c", "echo out; kill -KILL $$")...).stdout)
	if shown.Status != 137 || shown.Stdout != "out\n" {
		t.Errorf("got %+v", shown)
	}
	// It may see the place of its own output, which goes once that is opened.
	eventually(t, "nothing is left behind in the guest", func() bool {
		return !strings.Contains(run(t, exec("--", "sh", "-c", "sleep 1; ls /var/tmp")...), "vmctl")
	})
}

func copied(t *testing.T, v *vm) {
	dir := t.TempDir()
	run(t, "sh", "-c", "cd "+dir+" && mkdir -p d/e && head -c 700000 /dev/urandom >d/e/noise && ln -s e/noise d/link && chmod 750 d/e/noise && touch -d @1000000000 d/e/noise")
	run(t, "vmctl", "copy", dir+"/d/e/noise", v.name+":")
	run(t, "vmctl", "copy", "-r", "-u", "alice", dir+"/d", v.name+":in")
	if got := run(t, "vmctl", "exec", v.name, "-n", "--", "stat", "-c", "%a %U %Y %s", "/root/noise", "/home/alice/in/e/noise"); got != "750 root 1000000000 700000\n750 alice 1000000000 700000" {
		t.Errorf("in the guest: %s", got)
	}
	run(t, "vmctl", "copy", "-r", v.name+":/home/alice/in", dir+"/back")
	run(t, "diff", "-r", dir+"/d", dir+"/back")
	run(t, "sh", "-c", "vmctl copy "+v.name+":noise - | cmp - "+dir+"/d/e/noise && vmctl copy - "+v.name+":noise </dev/null")
	if got := run(t, "vmctl", "copy", "-o", "json", v.name+":noise", dir+"/empty"); decode[struct{ Bytes int64 }](t, got).Bytes != 0 {
		t.Errorf("got %s", got)
	}
	contains(t, fail(t, 1, "vmctl", "copy", v.name+":/no/such", dir), "No such file")
	fail(t, 2, "vmctl", "copy", dir+"/d", dir)
}

// Without an agent to ask, it is said at once and why.
func TestNoAgent(t *testing.T) {
	newerSuiteOnly(t, "what is said is said by ourselves")
	t.Parallel()
	v := newVM(t, "noagent", "[nic.lan]\nuser = true\n")
	contains(t, fail(t, 4, "vmctl", "exec", v.name, "--", "true"), "invalid transition from stopped")
	fail(t, 3, "vmctl", "exec", "nosuchvm", "--", "true")
	fail(t, 2, "vmctl", "exec", v.name)
	contains(t, fail(t, 4, "vmctl", "copy", v.name+":/etc/hostname", "-"), "invalid transition from stopped")
	contains(t, fail(t, 4, "vmctl", "ssh", v.name), "invalid transition from stopped")
	v.boot()
	contains(t, fail(t, 4, "vmctl", "exec", v.name, "--", "true"), "no guest agent runs in the guest")
	contains(t, fail(t, 4, "vmctl", "ssh", "--proxy", v.name), "no way to its ssh server is known")
	contains(t, fail(t, 5, "vmctl", "wait", "--for", "agent", "--timeout", "1s", v.name), "not yet agent")
	v.typeLine("until ip address add 203.0.113.78/32 dev eth0; do sleep 1; done")
	v.expect(`# `)
	// The little guest's agent can do next to nothing.
	v.typeLine("agent")
	eventually(t, "it is told that the agent has connected", func() bool {
		return strings.Contains(run(t, "vmctl", "events", "--no-follow", v.name), "agent-connected")
	})
	v.expect(`guest agent answers`)
	contains(t, fail(t, 1, "vmctl", "exec", v.name, "--", "true"), "guest-info")
	// Nobody else knows the guest's address.
	eventually(t, "vmctl list has what the agent says", func() bool {
		return decode[[]struct {
			Sources map[string]string `json:"address_sources"`
		}](t, run(t, "vmctl", "list", "-o", "json", v.name))[0].Sources["203.0.113.78"] == "agent"
	})
	run(t, "vmctl", "pause", v.name)
	contains(t, fail(t, 4, "vmctl", "exec", v.name, "--", "true"), "invalid transition from paused")
	run(t, "vmctl", "kill", v.name)
	v.define(littleGuest("cloud", "") + "[guest_agent]\nenabled = false\n")
	v.boot()
	contains(t, fail(t, 4, "vmctl", "exec", v.name, "--", "true"), "the VM has no channel to a guest agent", "guest_agent.enabled")
}

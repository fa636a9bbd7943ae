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
	t.Run("copy", func(t *testing.T) { copied(t, v) })
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
	for _, left := range strings.Fields(run(t, exec("--", "ls", "/var/tmp")...)) {
		if strings.HasPrefix(left, "vmctl") {
			t.Errorf("left behind: %s", left)
		}
	}
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
	t.Parallel()
	v := newVM(t, "noagent", "")
	contains(t, fail(t, 4, "vmctl", "exec", v.name, "--", "true"), "invalid transition from stopped")
	fail(t, 3, "vmctl", "exec", "nosuchvm", "--", "true")
	fail(t, 2, "vmctl", "exec", v.name)
	contains(t, fail(t, 4, "vmctl", "copy", v.name+":/etc/hostname", "-"), "invalid transition from stopped")
	v.boot()
	contains(t, fail(t, 4, "vmctl", "exec", v.name, "--", "true"), "no guest agent runs in the guest")
	// The little guest's agent can do next to nothing.
	v.typeLine("agent")
	v.expect(`guest agent answers`)
	contains(t, fail(t, 1, "vmctl", "exec", v.name, "--", "true"), "guest-info")
	run(t, "vmctl", "pause", v.name)
	contains(t, fail(t, 4, "vmctl", "exec", v.name, "--", "true"), "invalid transition from paused")
	run(t, "vmctl", "kill", v.name)
	v.define(littleGuest("cloud", "") + "[guest_agent]\nenabled = false\n")
	v.boot()
	contains(t, fail(t, 4, "vmctl", "exec", v.name, "--", "true"), "the VM has no channel to a guest agent", "guest_agent.enabled")
}

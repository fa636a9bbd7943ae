//go:build e2e

package e2e

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/config"
)

// readyState is what systemd says of what waits for a machine's guest.
func (v *vm) readyState(property string) string {
	return run(v.t, "systemctl", "show", "-P", property, config.ReadyUnit(v.name))
}

// A machine whose guest has to be ready runs before that, and others come after
// it. It takes the little guest, whose agent begins when it is told to.
func TestReady(t *testing.T) {
	t.Parallel()
	db := newVM(t, "rdb", "[lifecycle]\nready = \"agent\"\nready_timeout = \"infinity\"\nrestart_delay = \"100ms\"\n")
	web := newVMFrom(t, "rweb", firmwareOnly+"after = [\"rdb\"]\n")
	strict := newVMFrom(t, "rstrict", firmwareOnly+"requires = [\"rdb\"]\n")
	run(t, "systemctl", "daemon-reload")

	// Not by vmctl, which would wait.
	run(t, "systemctl", "start", db.unit())
	db.expectReady()
	waits := func() bool { return db.readyState("ActiveState") == "activating" && db.readyState("MainPID") != "0" }
	eventually(t, "it is waited for", waits)
	contains(t, db.property("StatusText"), "Running, waiting for the guest agent")
	contains(t, run(t, "vmctl", "list"), "not ready: the guest agent is waited for")
	if got := db.state(); got != "running" {
		t.Errorf("state %s", got)
	}
	contains(t, fail(t, 5, "vmctl", "wait", "--for", "ready", "--timeout", "1s", db.name), "timed out, not yet ready")

	t.Run("kill", func(t *testing.T) {
		pid := db.readyState("MainPID")
		run(t, "systemctl", "kill", "-s", "KILL", config.ReadyUnit(db.name))
		eventually(t, "it is waited for again", func() bool { return waits() && db.readyState("MainPID") != pid })
	})
	t.Run("stop while waiting", func(t *testing.T) {
		run(t, "systemctl", "stop", db.unit())
		if got := db.exitReason(); got != "stop requested" {
			t.Errorf("reason %q: the guest was not shut down", got)
		}
		if got := db.readyState("ActiveState"); got != "inactive" {
			t.Errorf("what waits is %s", got)
		}
	})

	started := make(chan result, 3)
	go func() { started <- try("vmctl", "start", db.name) }()
	db.expectReady()
	eventually(t, "it is waited for", waits)
	go func() { started <- try("vmctl", "start", web.name) }()
	go func() { started <- try("systemctl", "start", strict.unit()) }()
	for _, v := range []*vm{web, strict} {
		eventually(t, v.name+" is to start", func() bool { return v.property("Job") != "0" && v.property("Job") != "" })
		if got := v.property("ActiveState"); got != "inactive" {
			t.Errorf("%s is %s before its turn", v.name, got)
		}
	}
	db.typeLine("agent")
	for range 3 {
		if r := <-started; r.code != 0 {
			t.Errorf("exit status %d: %s", r.code, r.all())
		}
	}
	if got := db.property("StatusText"); got != "Running" {
		eventually(t, "it says so", func() bool { return db.property("StatusText") == "Running" })
	}
	run(t, "vmctl", "wait", "--for", "ready", db.name)
	if shown := db.show(); shown["ready"] != true || shown["not_ready"] != "" {
		t.Errorf("shows %v, %v", shown["ready"], shown["not_ready"])
	}
	run(t, "vmctl", "kill", strict.name)

	t.Run("crash", func(t *testing.T) {
		run(t, "kill", "-KILL", strconv.Itoa(db.mainPID()))
		db.expectReady()
		eventually(t, "it is waited for again", waits)
		if got := web.state(); got != "running" {
			t.Errorf("what comes after it is %s", got)
		}
		db.typeLine("agent")
		eventually(t, "it is ready again", func() bool { return db.readyState("Result") == "success" && db.show()["ready"] == true })
	})
	run(t, "vmctl", "stop", db.name)
	if got := db.exitReason(); got != "stop requested" {
		t.Errorf("reason %q", got)
	}

	t.Run("time-out", func(t *testing.T) {
		db.define(firmwareOnly + "[lifecycle]\nready = \"agent\"\nready_timeout = \"2s\"\n")
		contains(t, fail(t, 5, "vmctl", "start", db.name), "it runs, but its guest is not ready: the guest agent's answer took longer than 2s", "vmctl wait --for ready rdb")
		if got := db.state(); got != "running" {
			t.Errorf("state %s", got)
		}
		eventually(t, "the status says so", func() bool {
			return strings.Contains(db.property("StatusText"), "not ready: the guest agent's answer took longer than 2s")
		})
		contains(t, run(t, "systemctl", "status", "--lines", "3", db.unit()), "not ready")
		contains(t, fail(t, 1, "vmctl", "start", strict.name), "rdb, which it requires, is not ready: the guest agent's answer took longer than 2s")
		if got := web.state(); got != "running" {
			t.Errorf("what comes after it is %s", got)
		}
		run(t, "vmctl", "kill", db.name, web.name)
	})
	t.Run("notify", func(t *testing.T) {
		if _, err := os.Stat("/dev/vhost-vsock"); err == nil {
			t.Skip("this host has vhost-vsock")
		}
		db.define(firmwareOnly + "[lifecycle]\nready = \"notify\"\n")
		contains(t, fail(t, 6, "vmctl", "start", db.name), `lifecycle.ready: "notify" needs vsock, and this host has no /dev/vhost-vsock`)
	})
}

//go:build e2e

package e2e

import (
	"os"
	"strings"
	"testing"
)

// cgroupFile is what the kernel says in a file of the machine's cgroup.
func (v *vm) cgroupFile(name string) string {
	v.t.Helper()
	text, err := os.ReadFile("/sys/fs/cgroup" + v.property("ControlGroup") + "/" + name)
	if err != nil {
		v.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// limited waits until the kernel holds the machine to what is wanted: systemd tells
// it of a change a little after it has answered.
func (v *vm) limited(want map[string]string) {
	v.t.Helper()
	for name, text := range want {
		eventually(v.t, name+" is "+text, func() bool { return v.cgroupFile(name) == text })
	}
}

// Limits are what the kernel keeps a machine to, whatever becomes of its
// definition while it runs. Not for a container, which may have no controllers:
// see run.
func TestLimits(t *testing.T) {
	sector := make([]byte, 512)
	// mov ecx, 1<<27; next: dec ecx; jnz next; cli; hlt: it keeps its CPU busy for a
	// while, and is quiet then.
	copy(sector, "\x66\xb9\x00\x00\x00\x08\x66\x49\x75\xfc\xfa\xf4")
	sector[510], sector[511] = 0x55, 0xaa
	writeFile(t, "/etc/systemd/system/guests.slice", "[Slice]\nMemoryMax=1G\n")
	definition := hollow + `
lifecycle.restart_delay = "0s"
[resources]
slice = "guests.slice"
cpu_quota = "50%"
cpu_weight = 50
allowed_cpus = "0"
memory_max = "400M"
memory_high = "300M"
memory_low = "32M"
memory_swap_max = 0
tasks_max = 200
io_read_max = ["/dev/vda 20M"]
io_write_iops_max = ["/dev/vda 500"]
` + diskTable("root", image(t, hostDir(t, "limits")+"/busy.img", string(sector), megabyte))
	v := newVMFrom(t, "limits", definition)
	v.start()
	if got := v.property("ControlGroup"); !strings.HasPrefix(got, "/guests.slice/") {
		t.Errorf("cgroup %s", got)
	}
	disk := run(t, "cat", "/sys/block/vda/dev")
	defined := map[string]string{
		"cpu.max": "50000 100000", "cpu.weight": "50", "cpuset.cpus": "0", "pids.max": "200",
		"memory.max": "419430400", "memory.high": "314572800", "memory.low": "33554432", "memory.swap.max": "0",
		"io.max": disk + " rbps=20000000 wbps=max riops=max wiops=500",
	}
	v.limited(defined)
	eventually(t, "it was held up", func() bool {
		return !strings.Contains(v.cgroupFile("cpu.stat"), "nr_throttled 0\n")
	})

	t.Run("usage", func(t *testing.T) {
		usage := v.show()["usage"].(map[string]any)
		for _, key := range []string{"cpu_seconds", "memory_bytes", "io_read_bytes"} {
			if n, ok := usage[key].(float64); !ok || n <= 0 {
				t.Errorf("%s is %v", key, usage[key])
			}
		}
		text := run(t, "vmctl", "metrics")
		if got := metric(t, text, `vmctl_vm_cpu_seconds_total{vm="limits"}`); got <= 0 {
			t.Errorf("metrics tell of %v s of CPU:\n%s", got, text)
		}
	})

	// Live, and back to what the file says.
	t.Run("set", func(t *testing.T) {
		pid := v.mainPID()
		contains(t, run(t, "vmctl", "set", v.name, "resources.cpu_quota=40%", "resources.memory_max=500M", "resources.tasks_max=300", "resources.io_read_max=/dev/vda 10M"),
			"resources.cpu_quota changed")
		v.limited(map[string]string{"cpu.max": "40000 100000", "memory.max": "524288000", "pids.max": "300", "memory.high": "314572800",
			"io.max": disk + " rbps=10000000 wbps=max riops=max wiops=500"})
		contains(t, run(t, "systemctl", "cat", v.unit()), "MemoryMax=500M")
		contains(t, fail(t, 6, "vmctl", "set", v.name, "resources.memory_max=32M"), "resources.memory_max: want more than memory (64M)")
		// As little as the guest has is for the next start, with all that is set beside.
		contains(t, run(t, "vmctl", "set", v.name, "memory=32M", "resources.memory_max=48M", "resources.memory_high=400M"),
			"resources.memory_max changed, waits for a restart: the guest has 64M", "resources.memory_high changed, waits for a restart")
		v.limited(map[string]string{"memory.max": "524288000", "memory.high": "314572800"})
		run(t, "vmctl", "unset", v.name, "memory", "resources.memory_high", "resources.cpu_quota", "resources.memory_max", "resources.tasks_max", "resources.io_read_max")
		v.limited(defined)
		if now := v.mainPID(); now != pid {
			t.Errorf("process %d is %d now", pid, now)
		}
	})

	// A file that is broken while it runs, and a systemd that begins anew.
	t.Run("kept", func(t *testing.T) {
		read := func(verb string) {
			t.Helper()
			run(t, "systemctl", verb)
			v.property("ActiveState") // when it answers, it has told the kernel what it would
			v.limited(defined)
		}
		v.define("memory = \n")
		read("daemon-reload")
		os.Remove(v.file())
		read("daemon-reload")
		v.define(definition)
		read("daemon-reexec")
	})

	t.Run("out of memory", func(t *testing.T) {
		v.t = t
		kill := func(how func(), want string) {
			t.Helper()
			pid := v.property("MainPID")
			how()
			eventually(t, "it was started again", func() bool {
				now := v.property("MainPID")
				return now != pid && now != "0" && v.property("ActiveState") == "active"
			})
			if got := v.exitDetail(); got != want {
				t.Errorf("it ended: %s, want %s", got, want)
			}
		}
		// No definition can ask for as little as that.
		kill(func() { writeFile(t, "/sys/fs/cgroup"+v.property("ControlGroup")+"/memory.max", "16M") },
			"killed: out of memory: a limit of the unit or of the host was reached")
		v.limited(defined)
		contains(t, run(t, "vmctl", "show", v.name), "out of memory")
		kill(func() { run(t, "kill", "-KILL", v.property("MainPID")) }, "killed: by SIGKILL")
	})
	v.t = t
	run(t, "vmctl", "stop", v.name)
}

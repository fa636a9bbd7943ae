//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

const mebi = 1 << 20

// balloonNow is what vmctl balloon says.
type balloonNow struct {
	Balloon int64 `json:"balloon_bytes"`
	Added   int64 `json:"added_bytes"`
	Memory  int64 `json:"memory_bytes"`
}

func (v *vm) balloon() balloonNow {
	v.t.Helper()
	return decode[balloonNow](v.t, run(v.t, "vmctl", "balloon", v.name, "-o", "json"))
}

// guestHas waits until the guest counts so many CPUs and, in MiB, at least so much
// memory and less than most.
func (v *vm) guestHas(cpus, least, most int) {
	v.t.Helper()
	v.marks++
	v.typeLine(fmt.Sprintf(`while m=$(($(grep MemTotal /proc/meminfo | tr -dc 0-9)/1024)); [ $m -lt %d -o $m -ge %d ]; do sleep 0.2; done; echo has-%d-$(grep -c ^processor /proc/cpuinfo)-`, least, most, v.marks))
	if got := v.expect(fmt.Sprintf(`has-%d-(\d+)-`, v.marks))[0]; got != fmt.Sprint(cpus) {
		v.t.Errorf("the guest has %s CPUs, want %d", got, cpus)
	}
}

// listed is what list says of the CPUs, memory and pending changes.
func (v *vm) listed(cpus int, memory int64, pending bool) {
	v.t.Helper()
	shown := v.show()
	if shown["cpus"] != float64(cpus) || shown["memory_bytes"] != float64(memory) || shown["pending_changes"] != pending {
		v.t.Errorf("it has %v CPUs, %v bytes, pending %v; want %d, %d, %v", shown["cpus"], shown["memory_bytes"], shown["pending_changes"], cpus, memory, pending)
	}
}

// CPUs and memory come and go while the guest runs, and are what it goes on with
// after it was saved.
func TestSet(t *testing.T) {
	t.Parallel()
	v := newVMFrom(t, "set", littleGuest("cloud", "memhp_default_state=online_movable")+"cpu.max = 3\nmemory_options.max = \"768M\"\n[disk.data]\nsize = \"8M\"\n")
	v.boot()
	set := func(assignments ...string) string {
		t.Helper()
		return run(t, append([]string{"vmctl", "set", v.name}, assignments...)...)
	}
	online := func() {
		v.typeLine("echo 1 >/sys/devices/system/cpu/cpu1/online; echo online-$((1))-")
		v.expect("online-1-")
	}
	taken := func(memory int64) {
		t.Helper()
		eventually(t, fmt.Sprintf("the guest has %d bytes", memory), func() bool { return v.balloon().Memory == memory })
	}

	got := set("cpus=2", "memory=512M")
	contains(t, got, "set: cpus changed", "set: memory changed")
	if strings.Contains(got, "restart") {
		t.Errorf("said: %s", got)
	}
	v.listed(2, 512*mebi, false)
	online()
	taken(512 * mebi)
	v.guestHas(2, 390, 512)

	run(t, "vmctl", "balloon", v.name, "--timeout", "2min", "128M")
	contains(t, run(t, "vmctl", "balloon", v.name), "set: the guest has 384M of 512M")
	run(t, "vmctl", "balloon", v.name, "--timeout", "2min", "256M")
	fail(t, 2, "vmctl", "balloon", v.name, "1G")

	t.Run("saved", func(t *testing.T) {
		run(t, "vmctl", "save", v.name)
		run(t, "vmctl", "start", v.name)
		v.listed(2, 512*mebi, false)
		v.guestHas(2, 390, 512)
		if strings.Count(v.shown(), "vmctl-guest: ready") != 1 {
			t.Error("the guest has booted again")
		}
		// And again, of what was loaded.
		set("memory=640M")
		taken(640 * mebi)
		run(t, "vmctl", "save", v.name)
		run(t, "vmctl", "start", v.name)
		v.listed(2, 640*mebi, false)
		v.guestHas(2, 520, 640)
	})
	t.Run("less", func(t *testing.T) {
		contains(t, set("memory=384M"), "set: memory changed")
		taken(384 * mebi)
		v.guestHas(2, 270, 384)
		// QEMU that emulates may crash of it; where it does not, the CPU goes at once.
		got := run(t, "vmctl", "set", v.name, "--timeout", "2min", "cpus=1")
		if strings.Contains(got, "restart") {
			contains(t, got, "cpus changed, waits for a restart: QEMU ", ", which emulates its CPUs, may crash after it has taken one out")
			v.guestHas(2, 270, 384)
			v.listed(2, 384*mebi, true)
			contains(t, run(t, "vmctl", "diff", v.name), "cpus")
			run(t, "vmctl", "unset", v.name, "memory")
			run(t, "vmctl", "restart", v.name)
			v.expectReady()
			set("memory=384M")
			taken(384 * mebi)
		}
		v.guestHas(1, 270, 384)
		v.listed(1, 384*mebi, false)
		// Less than it was started with it has by a restart alone.
		contains(t, set("memory=128M"), "memory changed, waits for a restart: it was started with 256 MiB")
		v.listed(1, 384*mebi, true)
		contains(t, run(t, "vmctl", "diff", v.name), "memory")
		contains(t, run(t, "vmctl", "unset", v.name, "memory", "cpus"), "set: memory changed")
		v.listed(1, 256*mebi, false)
	})
	t.Run("others", func(t *testing.T) {
		contains(t, set("description=a b"), "description changed")
		if got := v.property("Description"); got != "a b" {
			t.Errorf("described as %q", got)
		}
		contains(t, set("boot.cmdline=quiet", "resources.cpu_weight=50"), "boot.cmdline changed, waits for a restart", "resources.cpu_weight changed")
		contains(t, run(t, "vmctl", "list"), "running*")
		contains(t, fail(t, 3, "vmctl", "unset", v.name, "cpus"), "no key that vmctl set has set is named cpus")
		run(t, "vmctl", "unset", v.name, "boot.cmdline")
		v.listed(1, 256*mebi, false)
		contains(t, fail(t, 2, "vmctl", "set", v.name, "cpus=many"), "cpus: want")
		contains(t, fail(t, 2, "vmctl", "set", v.name, "nosuch=1"), "nosuch: ")
		contains(t, fail(t, 6, "vmctl", "set", v.name, "cpus=9"), "cpu.max: want at least cpus (9)")
		v.listed(1, 256*mebi, false)
		dir := "/etc/vmctl/vms/" + v.name + ".toml.d"
		writeFile(t, dir+"/99-person.toml", "cpus = 1\n")
		contains(t, fail(t, 4, "vmctl", "set", v.name, "cpus=2"), "cpus: "+dir+"/99-person.toml:1 says what it is, after "+dir+"/95-set.toml")
		os.Remove(dir + "/99-person.toml")
		contains(t, fail(t, 6, "vmctl", "set", v.name, "disk.dta.iops=5"), "disk.dta: ", "set has no disk dta yet; it has ", "data")
		run(t, "vmctl", "unset", v.name, "description", "resources.cpu_weight")
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	})
	t.Run("limits", func(t *testing.T) {
		if got := set("disk.data.iops=500"); !strings.Contains(got, "disk.data.iops changed") || strings.Contains(got, "restart") {
			t.Errorf("said: %s", got)
		}
		contains(t, run(t, "vmctl", "disk", "throttle", v.name, "data"), "500 operations/s")
		v.listed(1, 256*mebi, false)
		// By hand it is told until it stops, and left alone.
		run(t, "vmctl", "disk", "throttle", v.name, "data", "--iops", "300")
		v.listed(1, 256*mebi, true)
		contains(t, run(t, "vmctl", "diff", v.name), "disk.data.iops  300        500")
		run(t, "vmctl", "reload", v.name)
		contains(t, run(t, "vmctl", "disk", "throttle", v.name, "data"), "300 operations/s")
		contains(t, run(t, "vmctl", "history", v.name), "disk throttle disk.data")
		// It goes on with what is defined by now, after it was saved too.
		run(t, "vmctl", "save", v.name)
		set("disk.data.bandwidth_read=3M")
		run(t, "vmctl", "start", v.name)
		contains(t, run(t, "vmctl", "disk", "throttle", v.name, "data"), "500 operations/s, 3M/s read")
		v.listed(1, 256*mebi, false)
		run(t, "vmctl", "unset", v.name, "disk.data.bandwidth_read")
	})
	// What people write is taken too, once they say so.
	t.Run("by hand", func(t *testing.T) {
		writeFile(t, "/etc/vmctl/vms/"+v.name+".toml.d/50-hand.toml", "memory = \"512M\"\nconsole.journal = false\n[disk.data]\nbandwidth = \"10M\"\niops = 7\n")
		// But for what was set: of that it is told that it does not hold.
		overridden := "50-hand.toml:5: disk.data.iops: "
		contains(t, run(t, "vmctl", "check", v.name), overridden+"warning: does not hold, since vmctl has set it otherwise in /etc/vmctl/vms/set.toml.d/95-set.toml:")
		contains(t, try("vmctl", "diff", v.name).all(), overridden)
		r := try("vmctl", "reload", v.name)
		contains(t, r.stderr, overridden)
		got := r.stdout
		contains(t, got, "set: memory changed", "set: disk.data.bandwidth changed", "set: runs with an older definition; vmctl restart set applies the new one")
		taken(512 * mebi)
		contains(t, run(t, "vmctl", "disk", "throttle", v.name, "data"), "500 operations/s, 10M/s")
		contains(t, run(t, "vmctl", "disk", "list", v.name), "500 operations/s, 10M/s")
		contains(t, run(t, "vmctl", "show", v.name), "/50-hand.toml\n", "/95-set.toml\n", ", 500 operations/s, 10M/s\n")
		writeFile(t, "/etc/vmctl/vms/"+v.name+".toml.d/50-hand.toml", "memory = \"512M\"\n")
		contains(t, run(t, "vmctl", "reload", v.name), "set: disk.data.bandwidth changed")
		v.listed(1, 512*mebi, false)
	})
	run(t, "vmctl", "stop", v.name)
	contains(t, set("cpus=2", "memory=512M"), "cpus changed, from the next start on")
	run(t, "vmctl", "start", v.name)
	v.expectReady()
	v.guestHas(2, 390, 512)
	v.listed(2, 512*mebi, false)
}

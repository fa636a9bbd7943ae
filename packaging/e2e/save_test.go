//go:build e2e

package e2e

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// counting begins a counter in the guest, which writes each number to its disk
// before it shows it.
const counting = `i=0; while true; do i=$((i+1)); echo $i | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null; echo tick-$i-; sleep 0.2; done`

// newCounter is a machine whose guest counts.
func newCounter(t *testing.T, name, keys, tables string) *vm {
	t.Helper()
	return newVM(t, name, keys+"[disk.data]\nsize = \"8M\"\nformat = \"raw\"\n"+tables)
}

// count has the guest begin to count.
func (v *vm) count() {
	v.t.Helper()
	v.typeLine(counting)
	v.expect(`tick-3-`)
}

// ticks waits until the guest counts on after a number, and returns how far it
// is.
func (v *vm) ticks(after int) int {
	v.t.Helper()
	for {
		if n := atoi2(v.expect(`tick-(\d+)-`)[0]); n > after {
			return n
		}
	}
}

// lastTick is the last number that the guest has shown.
func (v *vm) lastTick() int {
	v.t.Helper()
	text := v.shown()
	i := strings.LastIndex(text, "tick-")
	for i >= 0 {
		if number, _, whole := strings.Cut(text[i+len("tick-"):], "-"); whole {
			if n := atoi2(number); n > 0 {
				return n
			}
		}
		i = strings.LastIndex(text[:i], "tick-")
	}
	return 0
}

func atoi2(s string) int { n, _ := strconv.Atoi(s); return n }

// onDisk is the number on the counter's disk.
func (v *vm) onDisk() int {
	v.t.Helper()
	return atoi2(strings.TrimSpace(imageText(v.t.(*testing.T), filepath.Join(v.stateDir(), "disk-data.raw"))))
}

// isSaved checks that the machine is saved, and its unit ended well.
func (v *vm) isSaved() {
	v.t.Helper()
	if got := v.state(); got != "saved" {
		v.t.Errorf("state %s, want saved", got)
	}
	v.ended("inactive", "success", "saved")
}

// isNotSaved checks that nothing is left of a saved state.
func (v *vm) isNotSaved() {
	v.t.Helper()
	left, err := filepath.Glob(v.stateDir() + "/*saved*")
	hidden, _ := filepath.Glob(v.stateDir() + "/.*saved*")
	if left = append(left, hidden...); err != nil || len(left) > 0 {
		v.t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(v.stateDir() + "/operation.json"); err == nil {
		v.t.Error("the operation has not ended")
	}
}

// A guest goes on where it was when it was saved.
func TestSave(t *testing.T) {
	t.Parallel()
	v := newCounter(t, "save", "", "[disk.scratch]\nsize = \"8M\"\nephemeral = true\n")
	fail(t, 4, "vmctl", "save", v.name)
	v.boot()
	v.count()
	contains(t, run(t, "vmctl", "save", v.name), "saved (")
	v.isSaved()
	n := v.lastTick()
	if got := v.onDisk(); got < n || got > n+1 {
		t.Errorf("%d is on the disk after %d", got, n)
	}
	// What is not possible says so, and why.
	for _, op := range []string{"stop", "pause", "resume", "save", "kill", "restart"} {
		contains(t, fail(t, 4, "vmctl", op, v.name), "invalid transition from saved")
	}
	contains(t, run(t, "vmctl", "list"), "saved")

	run(t, "vmctl", "start", v.name)
	if got := v.state(); got != "running" {
		t.Errorf("state %s after it was loaded, want running", got)
	}
	v.ticks(n)
	v.isNotSaved()
	if strings.Count(v.shown(), "vmctl-guest: ready") != 1 {
		t.Error("the guest has booted again")
	}

	// By systemd's own means, and once more.
	run(t, "vmctl", "save", v.name)
	n = v.lastTick()
	run(t, "systemctl", "start", v.unit())
	v.ticks(n)
	v.isNotSaved()

	// A paused guest is paused again.
	run(t, "vmctl", "pause", v.name)
	run(t, "vmctl", "save", v.name)
	v.isSaved()
	run(t, "vmctl", "start", v.name)
	if got := v.state(); got != "paused" {
		t.Errorf("state %s, want paused", got)
	}
	n = v.lastTick()
	run(t, "vmctl", "resume", v.name)
	v.ticks(n)

	// What is discarded begins anew.
	run(t, "vmctl", "save", v.name)
	contains(t, run(t, "vmctl", "reset", v.name), "discarded")
	v.isNotSaved()
	if got := v.state(); got != "stopped" {
		t.Errorf("state %s, want stopped", got)
	}
	run(t, "vmctl", "start", v.name)
	v.expectReady()
	run(t, "vmctl", "stop", v.name)
	v.ended("inactive", "success", "stop requested")
}

// What does not belong together any more is not loaded.
func TestSavedThatCannotBeLoaded(t *testing.T) {
	t.Parallel()
	v := newCounter(t, "unloadable", "", "")
	v.boot()
	v.count()
	run(t, "vmctl", "save", v.name)
	n := v.lastTick()
	refused := func(what ...string) {
		t.Helper()
		r := try("vmctl", "start", v.name)
		if r.code == 0 {
			t.Fatalf("it was started in spite of %v", what)
		}
		contains(t, r.all(), what...)
		v.waitState("failed", "inactive")
		if got := v.state(); got != "saved" {
			t.Errorf("state %s, want saved", got)
		}
	}

	definition, err := os.ReadFile(v.file())
	if err != nil {
		t.Fatal(err)
	}
	v.define("cpus = 2\n" + string(definition))
	refused("its definition has changed since", "vmctl reset "+v.name)
	v.define(string(definition))

	disk := filepath.Join(v.stateDir(), "disk-data.raw")
	was, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := os.Chtimes(disk, now, now); err != nil {
		t.Fatal(err)
	}
	refused("does not fit its disks", disk+" was written to")
	if err := os.Chtimes(disk, was.ModTime(), was.ModTime()); err != nil {
		t.Fatal(err)
	}

	// A damage anywhere is found before the guest runs.
	state := filepath.Join(v.stateDir(), "saved.zst")
	whole, err := os.ReadFile(state)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{1000, len(whole) / 2, len(whole) - 3} {
		damaged := append([]byte{}, whole...)
		damaged[at] ^= 0xff
		if err := os.WriteFile(state, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		refused("the saved state was not loaded")
		eventually(t, "the start that systemd tries is refused", func() bool {
			return v.property("ActiveState") == "failed" && strings.Contains(v.exitDetail(), "could not be loaded")
		})
	}
	if err := os.WriteFile(state, whole[:len(whole)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	refused(state+" had ", "bytes, and has")
	if err := os.WriteFile(state, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "vmctl", "start", v.name)
	v.ticks(n)
	v.isNotSaved()
}

// What has no state that could be saved runs on.
func TestSaveOfWhatCannotBeSaved(t *testing.T) {
	t.Parallel()
	v := newVM(t, "unsavable", "[disk.fast]\nsize = \"8M\"\nbus = \"nvme\"\n")
	v.boot()
	contains(t, fail(t, 4, "vmctl", "save", v.name), "cannot be saved", "nvme")
	v.typeLine("cat /proc/uptime")
	v.expect(`\d+\.\d+`)
	if got := v.state(); got != "running" {
		t.Errorf("state %s, want running", got)
	}
	v.isNotSaved()
}

// Without room for the state the guest runs on.
func TestSaveToFullDisk(t *testing.T) {
	newerSuiteOnly(t, "what runs out of space is ours, and done with enough of it on both")
	t.Parallel()
	v := newCounter(t, "full-save", "", "")
	if err := os.MkdirAll(v.stateDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-t", "tmpfs", "-o", "size=24M", "tmpfs", v.stateDir())
	t.Cleanup(func() { run(t, "umount", "-l", v.stateDir()) })
	v.boot()
	v.count()
	run(t, "dd", "if=/dev/urandom", "of="+v.stateDir()+"/filler", "bs=1M", "count=12")
	contains(t, fail(t, 1, "vmctl", "save", v.name), "no space left on device")
	v.ticks(v.lastTick())
	v.isNotSaved()
	run(t, "systemctl", "kill", "--signal=KILL", v.unit())
	run(t, "systemctl", "stop", v.unit())
}

// saveInBackground begins to save, and returns what waits for its end.
func (v *vm) saveInBackground() (wait func()) {
	v.t.Helper()
	cmd := exec.Command("vmctl", "save", v.name)
	if err := cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	return func() { _ = cmd.Wait() } // it may have been cut off
}

// goesOn checks that the guest counts on, from its saved state where there is
// one, and returns whether it is the same run of the guest.
func (v *vm) goesOn(n int) {
	v.t.Helper()
	waitEnded(v.t, "vm-save@"+v.name+".service")
	eventually(v.t, v.name+" is at rest", func() bool {
		switch v.state() {
		case "running":
			return true
		case "saved":
			v.waitState("inactive", "failed")
			return try("vmctl", "start", v.name).code == 0
		}
		return false
	})
	v.isNotSaved()
	v.ticks(n)
}

// However a saving is cut off, the guest runs on or is saved, never both.
func TestSaveCutOff(t *testing.T) {
	newerSuiteOnly(t, "what is cut off is ours, and done undisturbed on both")
	t.Parallel()
	v := newCounter(t, "cut-save", "", "")
	v.boot()
	v.count()
	begun := time.Now()
	run(t, "vmctl", "save", v.name)
	long := time.Since(begun)
	n := v.lastTick()
	run(t, "vmctl", "start", v.name)
	n = v.ticks(n)

	for i := range 12 {
		wait := v.saveInBackground()
		time.Sleep(time.Duration(rand.Int64N(int64(long))))
		// The helper, the one that waits for it, or a stop by systemd's means.
		pid := atoi2(run(t, "systemctl", "show", "-P", "MainPID", "vm-save@"+v.name+".service"))
		switch {
		case pid == 0:
		case i%4 == 3:
			try("systemctl", "stop", "vm-save@"+v.name+".service")
		default:
			_ = syscall.Kill(pid, syscall.SIGKILL) // if it is there still
		}
		wait()
		waitEnded(v.t, "vm-save@"+v.name+".service")
		t.Logf("cut off %d: %s", i, v.state())
		v.goesOn(n)
		if n = v.lastTick(); v.onDisk() < n-1 {
			t.Errorf("%d is on the disk after %d", v.onDisk(), n)
		}
	}
	if strings.Count(v.shown(), "vmctl-guest: ready") != 1 {
		t.Error("the guest has booted again")
	}
}

// A hypervisor that is killed while it is saved starts anew, or goes on; one that
// is killed while it loads goes on in the end.
func TestSaveKilled(t *testing.T) {
	newerSuiteOnly(t, "what is cut off is ours, and done undisturbed on both")
	t.Parallel()
	v := newCounter(t, "kill-save", "lifecycle.restart_delay = \"1s\"\n", "")
	v.boot()
	v.count()
	begun := time.Now()
	run(t, "vmctl", "save", v.name)
	long := time.Since(begun)
	begun = time.Now()
	run(t, "vmctl", "start", v.name)
	load := time.Since(begun)

	for i := range 4 {
		disk := v.onDisk()
		wait := v.saveInBackground()
		time.Sleep(time.Duration(rand.Int64N(int64(long))))
		v.killHypervisor()
		seen := len(v.shown())
		wait()
		t.Logf("killed while it was saved, %d: booted %v", i, v.goesOnOrBoots(seen))
		if got := v.onDisk(); got < disk && got > 3 {
			t.Errorf("%d is on the disk, where %d was", got, disk)
		}
	}
	for i := range 4 {
		run(t, "vmctl", "save", v.name)
		run(t, "systemctl", "start", "--no-block", v.unit())
		time.Sleep(time.Duration(rand.Int64N(int64(load))))
		state := v.state()
		if state == "loading" {
			v.killHypervisor()
		}
		seen := len(v.shown())
		t.Logf("killed while it was %s, %d: booted %v", state, i, v.goesOnOrBoots(seen))
	}
}

// killHypervisor kills it, if there is one.
func (v *vm) killHypervisor() {
	v.t.Helper()
	if pid := v.mainPID(); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by now
		eventually(v.t, "it is dead", func() bool { return v.mainPID() != pid })
	}
}

// goesOnOrBoots waits until the guest counts, on or anew; seen is how much of its
// console was there before.
func (v *vm) goesOnOrBoots(seen int) (booted bool) {
	v.t.Helper()
	waitEnded(v.t, "vm-save@"+v.name+".service")
	eventually(v.t, v.name+" runs", func() bool {
		state, active := v.state(), v.property("ActiveState")
		if state == "saved" && (active == "inactive" || active == "failed") {
			try("vmctl", "start", v.name)
		}
		return state == "running"
	})
	v.isNotSaved()
	run(v.t, "systemctl", "reset-failed", v.unit())
	eventually(v.t, "the guest has booted, or counts", func() bool {
		text := v.shown()[seen:]
		booted = strings.Contains(text, "vmctl-guest: ready")
		return booted || strings.Contains(text, "tick-")
	})
	if booted {
		v.expectReady()
		v.count()
	}
	return booted
}

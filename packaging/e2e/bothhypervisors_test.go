//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vmctl/vmctl/hypervisor/hypervisortest"
)

// guestUp is what the guest says that both hypervisors can boot; see
// [hypervisortest.Guest] for the bytes that it obeys.
var guestUp = strings.TrimSpace(hypervisortest.GuestUp)

// chosen is a hypervisor by which machines run, and its line in a definition, the only
// one in which those differ that are by another.
type chosen struct{ name, line string }

var byQEMU = chosen{"qemu", "hypervisor = \"qemu\"\n"}

// byCloud is cloud-hypervisor itself.
func byCloud(t *testing.T) chosen {
	cloudItself(t)
	return chosen{"cloud", "hypervisor = \"cloud-hypervisor\"\n"}
}

// byStandin is what stands in for it. It is held to the same as the real one, so that
// it can be believed where that cannot run.
func byStandin(t *testing.T) chosen {
	return chosen{"standin", fmt.Sprintf("hypervisor = \"cloud-hypervisor\"\nhypervisor_options.binary = %q\n", cloudStandin(t))}
}

// sameOfBoth is the rest of a definition, the same for both; more begins with keys of
// the top level, if it has any.
func sameOfBoth(kernel, more string) string {
	return fmt.Sprintf("memory = \"64M\"\nboot.kernel = %q\nlifecycle.restart_delay = \"200ms\"\n%s[disk.root]\nsize = \"16M\"\nformat = \"raw\"\n", kernel, more)
}

// TestBothHypervisors: what is promised of a machine's life holds by each hypervisor.
func TestBothHypervisors(t *testing.T) {
	t.Parallel()
	for _, by := range []chosen{byQEMU, byStandin(t)} {
		t.Run(by.name, func(t *testing.T) { lives(t, by) })
	}
}

// TestCloudHypervisorLife: the same by cloud-hypervisor itself.
func TestCloudHypervisorLife(t *testing.T) { lives(t, byCloud(t)) }

func lives(t *testing.T, by chosen) {
	kernel := guestKernel(t)
	for _, c := range []struct {
		name, more string
		test       func(*vm)
	}{
		{"console", "", (*vm).keepsItsConsole},
		{"pause", "", (*vm).pausesAndResumes},
		{"save", "", (*vm).isSavedAndGoesOn},
		{"off", "", (*vm).staysOff},
		{"always", "lifecycle.restart = \"always\"\n", (*vm).neverStaysOff},
		{"button", "", (*vm).hearsItsButton},
		{"deaf", "lifecycle.stop_timeout = \"4s\"\n", (*vm).ignoresItsButton},
		{"ended", "", (*vm).isEnded},
		{"crash", "", (*vm).startsAfterACrash},
		{"panic", "", (*vm).startsAfterAPanic},
		{"panic-off", "lifecycle.on_panic = \"poweroff\"\n", (*vm).staysOffAfterAPanic},
		{"panic-pause", "lifecycle.on_panic = \"pause\"\n", (*vm).isPausedByAPanic},
		{"refused", "lifecycle.restart = \"no\"\nhypervisor_options.extra_args = [\"--no-such-option\"]\n", (*vm).doesNotStart},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(newVMFrom(t, "both-"+by.name+"-"+c.name, by.line+sameOfBoth(kernel, c.more)))
		})
	}
}

// guestKernel is the file of the guest that both hypervisors can boot.
func guestKernel(t *testing.T) string {
	t.Helper()
	kernel := filepath.Join(hostDir(t, t.Name()), "kernel")
	if err := os.WriteFile(kernel, hypervisortest.Guest(), 0o644); err != nil {
		t.Fatal(err)
	}
	return kernel
}

// up starts the machine and waits for its guest.
func (v *vm) up() {
	v.t.Helper()
	v.start()
	v.expect(guestUp)
}

// hears has the guest heed its power button.
func (v *vm) hears() {
	v.t.Helper()
	v.typeLine("b")
	v.expect("b")
}

// is checks the machine's state.
func (v *vm) is(state string) {
	v.t.Helper()
	if got := v.state(); got != state {
		v.t.Errorf("state %s, want %s", got, state)
	}
}

// sameProcess runs what leaves the hypervisor's process alone.
func (v *vm) sameProcess(what func()) {
	v.t.Helper()
	before := v.mainPID()
	what()
	if after := v.mainPID(); after != before || after == 0 {
		v.t.Errorf("process %d, was %d", after, before)
	}
}

// otherProcess runs what ends the hypervisor's process, after which systemd starts
// another, and checks why that was.
func (v *vm) otherProcess(reason string, what func()) {
	v.t.Helper()
	before := v.mainPID()
	what()
	v.expect(guestUp)
	v.waitState("active") // a guest is faster than systemd
	if after := v.mainPID(); after == before || after == 0 {
		v.t.Errorf("process %d, was %d", after, before)
	}
	if got := v.exitReason(); got != reason {
		v.t.Errorf("reason %q, want %q", got, reason)
	}
}

// Several people at the console see the same, what was before they came too, and stay
// at it where the guest reboots, or is reset; so does what it says in the journal.
func (v *vm) keepsItsConsole() {
	v.up()
	v.is("running")
	if level := v.exposure(); level > 1.0 {
		v.t.Errorf("exposure %.1f, want at most 1.0", level)
	}
	v.typeLine("so it is")
	v.expect("so it is")
	second := newScreen(v.t, v.name)
	defer second.close()
	second.expect(guestUp)
	second.expect("so it is")
	second.typeLine("to all")
	second.expect("to all")
	v.expect("to all")
	v.sameProcess(func() {
		v.typeLine("kT")
		v.typeLine("r")
		v.expect(guestUp)
		second.expect(guestUp)
		v.typeLine("<w>")
		second.expect(`<\?>`) // it has forgotten
		run(v.t, "vmctl", "reset", v.name)
		v.expect(guestUp)
		second.expect(guestUp)
	})
	contains(v.t, v.property("StatusText"), "guest rebooted")
	for what, text := range map[string]func() string{
		"journal":    func() string { return v.journal() },
		"scrollback": func() string { return run(v.t, "vmctl", "console", "--log", v.name) },
	} {
		eventually(v.t, "all boots are in the "+what, func() bool {
			return strings.Count(text(), guestUp) == 3 && strings.Contains(text(), "to all")
		})
	}
}

// A paused guest does nothing, goes on where it was, and can be stopped.
func (v *vm) pausesAndResumes() {
	v.up()
	v.hears()
	v.typeLine("kT")
	v.expect("T")
	v.sameProcess(func() {
		run(v.t, "vmctl", "pause", v.name)
		v.is("paused")
		v.typeLine("<w>")
		before := v.shown()
		contains(v.t, fail(v.t, 4, "vmctl", "pause", v.name), "VM is already paused")
		if v.shown() != before {
			v.t.Error("a paused guest wrote to its console")
		}
		run(v.t, "vmctl", "resume", v.name)
		v.expect("<T>")
		run(v.t, "vmctl", "pause", v.name)
		run(v.t, "vmctl", "start", v.name) // resumes it
		v.is("running")
	})
	run(v.t, "vmctl", "pause", v.name)
	contains(v.t, run(v.t, "vmctl", "stop", v.name), "stop requested: the guest shut down in ", "(power button)")
	v.ended("inactive", "success", "stop requested")
}

// A guest goes on with what it had in its memory, paused where it was paused.
func (v *vm) isSavedAndGoesOn() {
	v.up()
	v.typeLine("kT")
	v.expect("T")
	if !v.saves() {
		return
	}
	v.start()
	v.is("running")
	v.typeLine("<w>")
	v.expect("<T>")
	v.isNotSaved()
	run(v.t, "vmctl", "pause", v.name)
	v.saves()
	v.start()
	v.is("paused")
	run(v.t, "vmctl", "resume", v.name)
	v.typeLine("<w>")
	v.expect("<T>")
	v.saves()
	contains(v.t, run(v.t, "vmctl", "reset", v.name), "discarded")
	v.up()
}

// saves has the machine saved, where that can be.
func (v *vm) saves() bool {
	v.t.Helper()
	if r := try("vmctl", "save", v.name); strings.Contains(r.stderr, "GetNestedState") {
		v.t.Log("NOT TRIED: saving, as this KVM does not give its state to be saved")
		return false
	} else if r.code != 0 {
		v.t.Fatalf("save: exit status %d: %s", r.code, r.all())
	}
	v.isSaved()
	return true
}

// A guest that powers off stays off.
func (v *vm) staysOff() {
	v.up()
	v.typeLine("p")
	v.waitState("inactive", "failed")
	v.ended("inactive", "success", "guest power-off")
}

// But where it is always to run.
func (v *vm) neverStaysOff() {
	v.up()
	v.otherProcess("guest power-off", func() { v.typeLine("p") })
	v.hears()
	run(v.t, "vmctl", "stop", v.name)
	v.ended("inactive", "success", "stop requested")
}

// The power button shuts a guest down that listens to it.
func (v *vm) hearsItsButton() {
	v.up()
	v.hears()
	contains(v.t, run(v.t, "vmctl", "stop", v.name), "stop requested: the guest shut down in ", "(power button)")
	v.ended("inactive", "success", "stop requested")
}

// A guest that does not is ended in the time that it has.
func (v *vm) ignoresItsButton() {
	v.up()
	run(v.t, "systemctl", "stop", v.unit())
	v.ended("inactive", "success", "stop timed out")
	contains(v.t, run(v.t, "vmctl", "show", v.name), "the guest has not shut down in")
}

// A signal to end, and vmctl kill, end it for good.
func (v *vm) isEnded() {
	v.up()
	v.kill(syscall.SIGTERM)
	v.waitState("inactive", "failed")
	v.ended("inactive", "success", "killed")
	v.up()
	run(v.t, "vmctl", "kill", v.name)
	v.ended("inactive", "success", "killed")
}

// However a hypervisor crashes, it runs again.
func (v *vm) startsAfterACrash() {
	v.up()
	v.otherProcess("killed", func() { v.kill(syscall.SIGKILL) })
	v.otherProcess("hypervisor error", func() { v.kill(syscall.SIGABRT) })
	if got := v.property("NRestarts"); got != "2" {
		v.t.Errorf("%s restarts, want 2", got)
	}
}

// So it does where its guest panics,
func (v *vm) startsAfterAPanic() {
	v.up()
	v.otherProcess("guest panic", func() { v.typeLine("n") })
}

// unless that is to be its end,
func (v *vm) staysOffAfterAPanic() {
	v.up()
	v.typeLine("n")
	v.waitState("inactive", "failed")
	v.ended("inactive", "success", "guest panic")
}

// or it is to wait for somebody.
func (v *vm) isPausedByAPanic() {
	v.up()
	v.sameProcess(func() {
		v.typeLine("n")
		run(v.t, "vmctl", "wait", "--for", "paused", v.name)
		contains(v.t, v.property("StatusText"), "panicked")
		if got := v.show()["error"]; got != "guest panic" {
			v.t.Errorf("error %v, want guest panic", got)
		}
		run(v.t, "vmctl", "reset", v.name)
		v.expect(guestUp)
		v.is("running")
	})
	v.typeLine("n")
	run(v.t, "vmctl", "wait", "--for", "paused", v.name)
	run(v.t, "vmctl", "stop", v.name)
	v.ended("inactive", "success", "guest panic")
	contains(v.t, v.journal(), "the guest has panicked: ending the hypervisor")
}

// What a hypervisor does not take is said in its own words.
func (v *vm) doesNotStart() {
	contains(v.t, fail(v.t, 1, "vmctl", "start", v.name), "hypervisor error: ", "no-such-option")
	v.ended("failed", "exit-code", "hypervisor error")
}

// TestHypervisorSwitched: one definition, by QEMU and by cloud-hypervisor, shows the
// same but for what is the hypervisor's own.
func TestHypervisorSwitched(t *testing.T) {
	newerSuiteOnly(t, "what is shown of a machine depends on neither systemd nor QEMU")
	t.Parallel()
	showsTheSame(t, byStandin(t))
}

// TestCloudHypervisorSwitched: the same by cloud-hypervisor itself.
func TestCloudHypervisorSwitched(t *testing.T) { showsTheSame(t, byCloud(t)) }

func showsTheSame(t *testing.T, by chosen) {
	run(t, "ip", "tuntap", "add", "e2e-switched", "mode", "tap", "multi_queue")
	t.Cleanup(func() { run(t, "ip", "link", "delete", "e2e-switched") })
	rest := sameOfBoth(guestKernel(t), "cpus = 2\nguest_agent.enabled = false\ntpm.enabled = true\nballoon.enabled = true\n") +
		fmt.Sprintf("[share.src]\npath = %q\n[nic.lan]\ntap = \"e2e-switched\"\n", hostDir(t, t.Name()+"-shared"))
	v := newVMFrom(t, "switched", byQEMU.line+rest)
	shown := func() map[string]any {
		v.up()
		s := v.show()
		run(t, "vmctl", "kill", v.name)
		v.waitState("failed", "inactive")
		if s["state"] != "running" || s["hypervisor"] != s["definition"].(map[string]any)["hypervisor"] {
			t.Errorf("state %v, hypervisor %v", s["state"], s["hypervisor"])
		}
		for _, own := range []string{"hypervisor", "pid", "started_at", "usage", "exit"} {
			delete(s, own)
		}
		definition := s["definition"].(map[string]any)
		delete(definition, "hypervisor")
		delete(definition, "hypervisor_options")
		delete(definition["boot"].(map[string]any), "firmware") // whose defaults are others
		delete(definition["watchdog"].(map[string]any), "model")
		delete(s["sockets"].(map[string]any), "qmp")
		for _, disk := range s["disks"].([]any) {
			delete(disk.(map[string]any), "allocated_bytes") // cloud-hypervisor tries what it can free
		}
		return s
	}
	first := shown()
	v.define(by.line + rest)
	second := shown()
	for _, key := range slices.Sorted(maps.Keys(first)) {
		if !reflect.DeepEqual(first[key], second[key]) {
			t.Errorf("%s:\nby qemu %v\nby %s %v", key, first[key], by.name, second[key])
		}
	}
	if len(first) != len(second) {
		t.Errorf("%d keys by qemu, %d by %s", len(first), len(second), by.name)
	}
}

// TestHypervisorsExclude: a disk that a machine of one hypervisor writes to is no
// other's, whichever runs that.
func TestHypervisorsExclude(t *testing.T) {
	t.Parallel()
	exclude(t, byStandin(t))
}

// TestCloudHypervisorExcludes: the same by cloud-hypervisor itself.
func TestCloudHypervisorExcludes(t *testing.T) { exclude(t, byCloud(t)) }

func exclude(t *testing.T, by chosen) {
	kernel := guestKernel(t)
	for _, pair := range [][2]chosen{{byQEMU, by}, {by, byQEMU}, {by, by}} {
		has, wants := pair[0], pair[1]
		t.Run(has.name+"-"+wants.name, func(t *testing.T) {
			disk := image(t, filepath.Join(hostDir(t, t.Name()), "disk"), "", megabyte)
			machine := func(name string, by chosen, more string) *vm {
				return newVMFrom(t, "lock-"+name, fmt.Sprintf("%smemory = \"64M\"\nboot.kernel = %q\nlifecycle.restart = \"no\"\n[disk.root]\npath = %q\nformat = \"raw\"\n%s", by.line, kernel, disk, more))
			}
			first, second, reader := machine("first", has, ""), machine("second", wants, ""), machine("reader", wants, "readonly = true\n")
			first.up()
			for _, other := range []*vm{second, reader} {
				contains(t, fail(t, 1, "vmctl", "start", other.name), disk+" is in use by vm@"+first.name)
			}
			// By the lock itself, where nobody looks ahead.
			contains(t, try("qemu-io", "-f", "raw", "-c", "write 0 512", disk).all(), "Failed to ", "lock")
			run(t, "vmctl", "kill", first.name)
			second.up()
		})
	}
	// What none writes to several may read; but QEMU lets nobody have locked all of it.
	disk := image(t, filepath.Join(hostDir(t, t.Name()+"-read"), "disk"), "", megabyte)
	reader := func(name string, by chosen) *vm {
		return newVMFrom(t, "read-"+name, fmt.Sprintf("%smemory = \"64M\"\nboot.kernel = %q\nlifecycle.restart = \"no\"\n[disk.root]\npath = %q\nformat = \"raw\"\nreadonly = true\n", by.line, kernel, disk))
	}
	for _, v := range []*vm{reader("first", byQEMU), reader("second", by), reader("third", by)} {
		v.up()
	}
	contains(t, fail(t, 1, "vmctl", "start", reader("fourth", byQEMU).name), disk+" is in use by vm@read-")
}

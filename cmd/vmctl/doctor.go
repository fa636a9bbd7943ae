package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/cloudhypervisor"
	"github.com/vmctl/vmctl/units"
)

func newDoctorCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps VMs from running well, and say what to do",
		Long: `Look for what keeps VMs from running, or from running well, on this host. Each
check is one line, ok, warn or fail, with what to do next. Nothing is changed.
The exit status is 1 where a check fails.`,
		Example: `  vmctl doctor
  vmctl -H root@host2 doctor`,
		GroupID:           groupLook,
		Args:              noArguments,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd.Context(), a) },
	}
}

// verdict is how a check came out.
type verdict string

const (
	verdictOK   verdict = "ok"
	verdictWarn verdict = "warn"
	verdictFail verdict = "fail"
)

// check is one line of vmctl doctor.
type check struct {
	Name    string  `json:"name"`
	Verdict verdict `json:"verdict"`
	Text    string  `json:"text"`
	Next    string  `json:"next"` // what to do, "" where nothing
}

func runDoctor(ctx context.Context, a *app) error {
	checks := examine(a.gather(ctx))
	if a.ui.format == jsonFormat {
		if err := a.ui.json(checks); err != nil {
			return err
		}
	}
	failures := 0
	for _, c := range checks {
		a.ui.printf("%-4s  %s: %s", c.Verdict, c.Name, c.Text)
		if c.Next != "" {
			a.ui.printf("      %s", c.Next)
		}
		if c.Verdict == verdictFail {
			failures++
		}
	}
	if failures > 0 {
		return &statusError{fmt.Errorf("%s failed", count(failures, "check")), exitFailed}
	}
	return nil
}

// oldestSystemd is the oldest major version that is tested.
const oldestSystemd = 252

// lowSpace is less than what a small machine writes in a day, in bytes.
const lowSpace = 1 << 30

// examine decides what the facts mean. What only systemd knows is left out
// where it does not answer.
func examine(f facts) []check {
	checks := []check{
		checkSystemd(f),
		checkInstalled(f),
		checkQEMU(f),
		checkCloud(f),
		checkAccel(f),
		checkFirmware(f),
		checkNode(f, "tun", "/dev/net/tun", "cards on bridges and networks need it", "modprobe tun"),
		checkNode(f, "vhost-net", "/dev/vhost-net", "without it networks are slower", "modprobe vhost-net"),
		checkNode(f, "vhost-vsock", "/dev/vhost-vsock", "without it guests have no vsock", "modprobe vhost-vsock"),
		checkCgroup(f),
		checkMachined(f),
		checkSpace(f),
		checkDefinitions(f),
		checkStale(f),
	}
	if !f.user {
		checks = append(checks,
			checkProgram(f, "nft", "there are no networks", "apt install nftables"),
			checkProgram(f, "dnsmasq", "networks give out no addresses", "apt install dnsmasq-base"),
			checkModules(f), checkFirewalls(f))
	}
	if f.busErr == nil {
		checks = append(checks, checkFailed(f), checkLeftovers(f), checkTarget(f))
	}
	return checks
}

func checkSystemd(f facts) check {
	const name = "systemd"
	switch {
	case f.busErr != nil && notPermitted(f.busErr):
		return check{name, verdictFail, f.busErr.Error(), "run it as root"}
	case f.busErr != nil && f.user:
		return check{name, verdictFail, f.busErr.Error(), noUserManager}
	case f.busErr != nil:
		return check{name, verdictFail, f.busErr.Error(), "vmctl needs systemd as PID 1; apt install dbus where only the bus is missing"}
	case f.SystemdMajor < oldestSystemd:
		return check{name, verdictWarn, "version " + f.Systemd + " is older than what is tested", fmt.Sprintf("%d or newer is known to work", oldestSystemd)}
	}
	return check{name, verdictOK, "version " + f.Systemd, ""}
}

func checkInstalled(f facts) check {
	const name = "installation"
	if len(f.missing) > 0 {
		return check{name, verdictFail, "not there: " + strings.Join(f.missing, ", "), "make install, or install the package again"}
	}
	return check{name, verdictOK, "generator, helper and unit template are there", ""}
}

func checkQEMU(f facts) check {
	const name = "qemu"
	switch {
	case f.QEMUPath == "":
		return check{name, verdictFail, "qemu-system-x86_64 is not installed", "apt install qemu-system-x86 qemu-utils"}
	case f.QEMU == "":
		return check{name, verdictFail, f.QEMUPath + " does not tell its version", f.QEMUPath + " --version tells why"}
	}
	return check{name, verdictOK, "version " + f.QEMU, ""}
}

// What doctor says of how cloud-hypervisor and its firmware are got.
const (
	getCloud         = "few distributions have a package: take cloud-hypervisor-static of https://github.com/cloud-hypervisor/cloud-hypervisor/releases as /usr/local/bin/cloud-hypervisor, mode 755"
	getCloudFirmware = "put CLOUDHV.fd of https://github.com/cloud-hypervisor/edk2/releases into /usr/local/share/cloud-hypervisor (Debian newer than 13: apt install cloudhv-efi-x86-64)"
	getKVM           = "modprobe kvm_intel || modprobe kvm_amd"
	getCPU           = "enable it in the firmware, or nested virtualization in the host above"
)

// checkCloud is about the second hypervisor, which few have, and nobody has to.
func checkCloud(f facts) check {
	const name = "cloud-hypervisor"
	c := f.Cloud
	version := "version " + c.Version
	lacks := ""
	if c.Version != "" {
		lacks = cloudhypervisor.Lacks(c.Version)
	}
	switch {
	case c.Path == "" && c.wanted:
		return check{name, verdictFail, "not installed, but a VM wants it", getCloud}
	case c.Path == "":
		return check{name, verdictOK, "not installed, and no VM needs it", ""}
	case c.Version == "" && c.wanted:
		return check{name, verdictFail, c.Path + " does not tell its version, so its VMs do not start", c.Path + " --version tells why"}
	case c.Version == "":
		return check{name, verdictWarn, c.Path + " does not tell its version", c.Path + " --version tells why"}
	case c.wanted && !f.Nodes[hypervisor.KVM]:
		return check{name, verdictFail, version + ", but there is no " + hypervisor.KVM + ", and it runs VMs by KVM alone", getKVM}
	case lacks != "":
		return check{name, verdictWarn, version + " " + lacks, getCloud}
	case c.wantsFirmware && len(c.Firmware) == 0:
		return check{name, verdictWarn, version + ", but no firmware: it boots kernels alone", getCloudFirmware}
	case c.wanted && !f.Virtualization:
		return check{name, verdictWarn, version + ", but the CPU has no VMX or SVM: KVM may not work, and it cannot do without", getCPU}
	}
	return check{name, verdictOK, version, ""}
}

// checkAccel is about QEMU, which alone can do without KVM.
func checkAccel(f facts) check {
	const name = "acceleration"
	switch {
	case f.Accel == "kvm":
		return check{name, verdictOK, "kvm", ""}
	case f.Virtualization:
		return check{name, verdictWarn, "there is no /dev/kvm, so QEMU's guests run by slow software emulation", getKVM}
	}
	return check{name, verdictWarn, "the CPU has no VMX or SVM, so QEMU's guests run by slow software emulation", getCPU}
}

func checkFirmware(f facts) check {
	const name = "uefi"
	if f.Firmware == 0 {
		return check{name, verdictWarn, `no firmware for firmware = "uefi"`, "apt install ovmf"}
	}
	return check{name, verdictOK, count(f.Firmware, "image"), ""}
}

func checkNode(f facts, name, node, without, next string) check {
	if !f.Nodes[node] {
		return check{name, verdictWarn, "no " + node + ": " + without, next}
	}
	return check{name, verdictOK, node, ""}
}

func checkCgroup(f facts) check {
	const name = "cgroup"
	if f.CgroupVersion != 2 {
		return check{name, verdictWarn, "no version 2 tree, so limits of [resources] do not hold", "boot with systemd.unified_cgroup_hierarchy=1"}
	}
	var without []string
	for _, c := range []string{"cpu", "io", "memory", "pids"} {
		if !slices.Contains(f.Controllers, c) {
			without = append(without, c)
		}
	}
	if len(without) > 0 {
		return check{name, verdictWarn, "no controller for " + strings.Join(without, ", ") + ", so such limits do not hold", "boot without cgroup_disable= and cgroup v1 mounts"}
	}
	return check{name, verdictOK, "version 2 with " + strings.Join(f.Controllers, ", "), ""}
}

func checkMachined(f facts) check {
	const name = "machined"
	if !f.machinedPresent {
		return check{name, verdictWarn, "not installed, so machinectl does not know the VMs", "apt install systemd-container"}
	}
	return check{name, verdictOK, "installed", ""}
}

func checkSpace(f facts) check {
	const name = "space"
	text := sizeText(f.StateFreeBytes) + " free for " + f.Paths["state"]
	if f.StateFreeBytes < lowSpace {
		return check{name, verdictWarn, text, "guests stop when their disks cannot grow: make room"}
	}
	return check{name, verdictOK, text, ""}
}

func checkDefinitions(f facts) check {
	const name = "definitions"
	if len(f.problems) > 0 {
		return check{name, verdictFail, fmt.Sprintf("%s, the first: %v", count(len(f.problems), "problem"), f.problems[0]), "vmctl check shows all"}
	}
	return check{name, verdictOK, "no problem", ""}
}

func checkStale(f facts) check {
	const name = "reload"
	if len(f.stale) > 0 {
		return check{name, verdictWarn, "systemd has not read the definition of " + some(f.stale), "vmctl reload"}
	}
	return check{name, verdictOK, "systemd knows the definitions as they are", ""}
}

func checkFailed(f facts) check {
	const name = "failed"
	if len(f.failed) > 0 {
		return check{name, verdictWarn, some(f.failed) + " failed", "vmctl show " + f.failed[0] + " tells why"}
	}
	return check{name, verdictOK, "no VM has failed", ""}
}

func checkLeftovers(f facts) check {
	const name = "leftovers"
	if len(f.leftovers) > 0 {
		return check{name, verdictWarn, "state without definition: " + some(f.leftovers), "vmctl show " + f.leftovers[0] + " shows it, vmctl delete " + f.leftovers[0] + " removes it"}
	}
	return check{name, verdictOK, "nothing is left of VMs that are gone", ""}
}

// targetRemedy is what systemctl has to do to a target that starts nothing in
// the state of its file, "" where it does.
func targetRemedy(state string) string {
	switch state {
	case "disabled":
		return "enable"
	case "masked", "masked-runtime":
		return "unmask"
	}
	return ""
}

func checkTarget(f facts) check {
	const name = "autostart"
	command := "systemctl"
	if f.user {
		command += " --user"
	}
	if next := targetRemedy(f.target); next != "" && len(f.withHost) > 0 {
		return check{name, verdictWarn, units.Target + " is " + f.target + ", so " + some(f.withHost) + " will not start with the host", command + " " + next + " " + units.Target}
	}
	if f.user && !f.lingers {
		return check{name, verdictWarn, noLinger, enableLinger}
	}
	return check{name, verdictOK, count(len(f.withHost), "VM") + " to start with the host", ""}
}

// some is a list of names that stays short.
func some(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

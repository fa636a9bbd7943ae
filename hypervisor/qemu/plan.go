// Package qemu runs machines by QEMU's qemu-system-x86_64: the command line,
// the control of a running machine by QMP, and the reading of its events.
//
// The command line is the same for every QEMU from 7.2 to 11.1, so that no
// program has to be run to plan one: a plan opens no file and starts nothing.
// What changes the images of a machine that does not run starts a QEMU without
// a guest, and gives it the files that its caller has opened (offline.go).
//
// The package knows QEMU's syntaxes and no unit, bus or network.
package qemu

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/guestnotify"
)

const program = "qemu-system-x86_64"

// QEMU is the hypervisor.
type QEMU struct{}

// Name is "qemu".
func (QEMU) Name() string { return "qemu" }

// Plan implements [hypervisor.Hypervisor].
func (QEMU) Plan(m *config.Machine, host hypervisor.Host, paths config.Paths) (*hypervisor.Plan, []config.Problem) {
	p := &planner{m: m, host: host, paths: paths, plan: &hypervisor.Plan{}}
	p.program()
	p.identity()
	p.accelerator()
	p.machine()
	p.cpu()
	p.memory()
	p.lifecycle()
	p.boot()
	p.monitors()
	p.serial()
	p.devices()
	p.seed()
	p.spareMemory()
	p.spares()
	p.checkTransports()
	p.arg(m.HypervisorOptions.ExtraArgs...)
	if len(p.problems) > 0 {
		return nil, p.problems
	}
	return p.plan, nil
}

// planner gathers one plan. Its methods add to it, each for one theme, or add
// problems.
type planner struct {
	m     *config.Machine
	host  hypervisor.Host
	paths config.Paths

	plan     *hypervisor.Plan
	problems []config.Problem

	kvm, tcg bool // accelerators that the command line names
	bootable []string

	ports       int  // PCIe root ports handed out
	slots       int  // slots of the root bus handed out
	scsi, usb   int  // devices on those buses; 0: no controller yet
	sata, ide   int  // devices on those buses
	floppies    int  // floppy drives
	transports  int  // virtio devices
	virtConsole bool // the virtio-serial controller is there

	hot *hotPlace // of a disk that is plugged in while the machine runs; nil for a whole plan
}

func (p *planner) arg(args ...string) { p.plan.Argv = append(p.plan.Argv, args...) }

// problem notes that the machine cannot be planned because of key.
func (p *planner) problem(key, format string, args ...any) {
	p.problems = append(p.problems, p.m.Problem(key, format, args...))
}

// refuse notes that key asks for what is not built yet.
func (p *planner) refuse(key string) { p.problem(key, "not supported by qemu yet") }

// refuseIf does so for each key that is set.
func (p *planner) refuseIf(set bool, key string) {
	if set {
		p.refuse(key)
	}
}

func (p *planner) warn(format string, args ...any) {
	p.plan.Warnings = append(p.plan.Warnings, fmt.Sprintf(format, args...))
}

// descriptor hands QEMU one more open descriptor and returns its number.
func (p *planner) descriptor(use hypervisor.Use, path string) int {
	return p.inherit(hypervisor.Descriptor{Use: use, Path: path})
}

func (p *planner) inherit(d hypervisor.Descriptor) int {
	p.plan.Descriptors = append(p.plan.Descriptors, d)
	return 2 + len(p.plan.Descriptors)
}

// node lets QEMU open a device node of the host, which belongs to group.
func (p *planner) node(path, group string) {
	if !slices.Contains(p.plan.Devices, path) {
		p.plan.Devices = append(p.plan.Devices, path)
	}
	if !slices.Contains(p.plan.Groups, group) {
		p.plan.Groups = append(p.plan.Groups, group)
	}
}

// file lets QEMU read a file that key names.
func (p *planner) file(key, path string) {
	p.plan.Files = append(p.plan.Files, hypervisor.File{Key: key, Path: path})
}

func (p *planner) program() {
	binary := p.m.HypervisorOptions.Binary
	if binary == "" {
		binary = p.host.Programs[program]
	}
	if binary == "" {
		p.problem("hypervisor", "%s was not found on this host; install it (Debian: qemu-system-x86), or name it by hypervisor_options.binary", program)
	}
	p.arg(binary)
}

// identity is what QEMU does for every machine: no defaults of its own, no
// configuration of the host, no display, no privileges.
func (p *planner) identity() {
	p.arg("-name", options("guest="+p.m.Name))
	p.arg("-nodefaults", "-no-user-config", "-display", "none", "-msg", "timestamp=on")
	p.arg("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
}

// monitors are four, since a QMP socket serves one client at a time: vmctl's
// monitor process, vmctl's own short calls, what takes long, and people.
func (p *planner) monitors() {
	connected := func(id string, fd int) { p.qmp(id, "fd="+strconv.Itoa(fd)) }
	listening := func(id string, fd int) { p.qmp(id, "fd="+strconv.Itoa(fd), "server=on", "wait=off") }
	connected("events", p.descriptor(hypervisor.Events, ""))
	listening("control", p.descriptor(hypervisor.Listen, p.paths.ControlSocket(p.m.Name)))
	listening("job", p.descriptor(hypervisor.Listen, p.paths.JobSocket(p.m.Name)))
	listening("qmp", p.descriptor(hypervisor.Listen, p.paths.QMPSocket(p.m.Name)))
}

func (p *planner) qmp(id string, socket ...string) {
	p.arg("-chardev", options(append([]string{"socket", "id=" + id}, socket...)...))
	p.arg("-qmp", "chardev:"+id)
}

// lifecycle says what QEMU does when the guest ends, panics or stops feeding
// its watchdog. A panic ends QEMU with an error, for systemd to restart it.
func (p *planner) lifecycle() {
	l := p.m.Lifecycle
	onPanic := map[string]string{"restart": "exit-failure", "poweroff": "shutdown", "pause": "pause", "ignore": "none"}[l.OnPanic]
	if onPanic == "" {
		p.refuse("lifecycle.on_panic")
	}
	p.ready()
	watchdog := "none"
	if p.m.Watchdog.Enabled {
		watchdog = p.m.Watchdog.Action
	}
	p.arg("-action", options("reboot=reset", "shutdown=poweroff", "panic="+onPanic, "watchdog="+watchdog))
	p.arg("-rtc", "base=utc")
}

// ready lets the guest say that it is ready, where that is asked for. The port of
// the host is the guest's address: no other machine has that.
func (p *planner) ready() {
	const key = "lifecycle.ready"
	switch p.m.Lifecycle.Ready {
	case "started", "agent":
		return
	case "notify":
	default:
		p.refuse(key)
		return
	}
	taken := func(c config.Credential) bool { return c.Name == guestnotify.CredentialName }
	switch v := p.m.Vsock; {
	case p.microvm():
		p.problem(key, `"notify" is not supported by qemu for machine = "microvm", which has no SMBIOS; use "agent"`)
	case v.Enabled == "false":
		p.problem(key, `"notify" needs vsock: want vsock.enabled = "auto", got "false"`)
	case !p.host.Nodes[vsockNode]:
		p.problem(key, `"notify" needs vsock, and this host has no %s; load the module vhost_vsock, or use "agent"`, vsockNode)
	case v.CID < 1024:
		// Ports below that are root's, and a user's own machines are not.
		p.problem("vsock.cid", `want at least 1024 with lifecycle.ready = "notify", got %d`, v.CID)
	case slices.ContainsFunc(p.m.Credentials, taken):
		p.problem("credentials."+guestnotify.CredentialName, `lifecycle.ready = "notify" sets it`)
	default:
		p.plan.NotifyPort = v.CID
		p.arg("-smbios", options("type=11", "value="+guestnotify.Credential(v.CID)))
	}
}

// devices goes through every device of the machine. What it does not know is
// refused.
//
// Cards come before disks: the numbers of their PCIe buses are part of their
// names in many guests, and must not depend on how many disks there are.
func (p *planner) devices() {
	for _, n := range p.m.NICs {
		p.nic(n)
	}
	for _, d := range p.m.Devices() {
		switch d := d.(type) {
		case config.NIC: // above
		case config.Serial: // see serial
		case config.Disk:
			p.disk(d)
		case config.Credential:
			p.credential(d)
		case config.GuestAgent:
			p.guestAgent()
		case config.Vsock:
			p.vsock(d)
		case config.Watchdog:
			p.watchdog(d)
		case config.RNG:
			p.rng()
		case config.Balloon:
			p.balloon(d)
		case config.Display:
			p.display(d)
		case config.Share:
			p.share(d)
		case config.PCI:
			p.hostPCI(d)
		case config.USB:
			p.hostUSB(d)
		case config.TPM:
			p.tpm()
		default:
			p.refuse(d.Key())
		}
	}
	p.panicDevice()
	p.generationID()
}

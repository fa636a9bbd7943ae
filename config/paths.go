package config

import (
	"fmt"
	"hash/fnv"
	"path/filepath"
	"strconv"
	"strings"
)

// Paths is every place that vmctl reads from or writes to. All of them are
// made here and nowhere else.
type Paths struct {
	User bool // of a user's service manager, not the system's

	VMDirs       []string // definitions, highest precedence first
	TemplateDirs []string // the same for templates
	NetworkDirs  []string // the same for networks

	SecurityGroupDirs []string // the same for security groups; none of a user's own
	SettingsDirs      []string // directories of vmctl.toml and vmctl.toml.d, highest precedence first

	ImageTableDirs []string // directories of images.toml and images.toml.d, highest precedence first

	Images         string // stored images
	State          string // one directory for each machine's disks, NVRAM, records
	Runtime        string // one directory for each running machine
	NetworkRuntime string // one directory for each network that is up; root's
	NetworkState   string // one directory for each network's leases; its service's
	Addresses      string // one file for each network: which card has which address; root's
	Names          string // one file of hosts(5) for each card in a network; root's

	Forwarding    string // what has been switched for networks; root's
	FilterRuntime string // one file for each running machine: what its cards are held to; root's

	Sidecars string // directories of the sockets of what runs beside machines (Sidecar)

	Locks   string // one file for each machine that something is being done to
	Libexec string // directory of vmctl-unit

	API string // certificates of vmctl-api, and who may do what by them; none of a user's own

	GeneratorDir string // where systemd has the generator write
	DropInDir    string // where a drop-in works without a reload, for a unit not yet loaded
	EnableDir    string // where systemctl enable puts its links
	MachineID    string // file with the host's id
	Root         string // "" or a directory that stands for / (tests)

	drafts map[string]*source // files as they are going to be (With); nil for one that goes
}

// SystemPaths are the paths of the system's service manager below root, which
// is "" except in tests.
func SystemPaths(root string) Paths {
	at := func(p string) string { return root + p }
	trees := func(kind string) []string {
		return []string{at("/run/vmctl/" + kind), at("/etc/vmctl/" + kind), at("/usr/lib/vmctl/" + kind)}
	}
	return Paths{
		VMDirs:            trees("vms"),
		TemplateDirs:      trees("templates"),
		NetworkDirs:       trees("networks"),
		SecurityGroupDirs: trees("security-groups"),
		SettingsDirs:      []string{at("/run/vmctl"), at("/etc/vmctl"), at("/usr/lib/vmctl")},
		ImageTableDirs:    []string{at("/run/vmctl"), at("/etc/vmctl"), at("/usr/lib/vmctl")},
		Images:            at("/var/lib/vmctl/images"),
		State:             at("/var/lib/vmctl/vms"),
		Runtime:           at("/run/vmctl/vm"),
		Sidecars:          at("/run/vmctl/beside"),
		Locks:             at("/run/vmctl/lock"),
		NetworkRuntime:    at("/run/vmctl/network"),
		NetworkState:      at("/var/lib/vmctl/networks"),
		Addresses:         at("/var/lib/vmctl/addresses"),
		Names:             at("/run/vmctl/hosts"),
		FilterRuntime:     at("/run/vmctl/filter"),
		Forwarding:        at("/run/vmctl/forwarding/switched.json"),
		Libexec:           "/usr/libexec/vmctl",
		GeneratorDir:      at("/run/systemd/generator"),
		DropInDir:         at("/run/systemd/system"),
		EnableDir:         at("/etc/systemd/system"),
		MachineID:         at("/etc/machine-id"),
		API:               at("/etc/vmctl/api"),
		Root:              root,
	}
}

// UserPaths are the paths of a user's service manager (see the XDG base
// directory specification for the arguments).
func UserPaths(configHome, dataHome, runtimeDir string) Paths {
	trees := func(kind string) []string {
		return []string{filepath.Join(runtimeDir, "vmctl", kind), filepath.Join(configHome, "vmctl", kind)}
	}
	return Paths{
		User:         true,
		VMDirs:       trees("vms"),
		TemplateDirs: trees("templates"),
		NetworkDirs:  trees("networks"),
		SettingsDirs: []string{filepath.Join(runtimeDir, "vmctl"), filepath.Join(configHome, "vmctl")},
		// The system's own too: names of distributions are nobody's secret.
		ImageTableDirs: []string{filepath.Join(runtimeDir, "vmctl"), filepath.Join(configHome, "vmctl"), "/run/vmctl", "/etc/vmctl", "/usr/lib/vmctl"},
		Images:         filepath.Join(dataHome, "vmctl/images"),
		State:          filepath.Join(dataHome, "vmctl/vms"),
		Runtime:        filepath.Join(runtimeDir, "vmctl/vm"),
		Sidecars:       filepath.Join(runtimeDir, "vmctl/beside"),
		Locks:          filepath.Join(runtimeDir, "vmctl/lock"),
		Libexec:        "/usr/libexec/vmctl",
		GeneratorDir:   filepath.Join(runtimeDir, "systemd/generator"),
		DropInDir:      filepath.Join(runtimeDir, "systemd/user"),
		EnableDir:      filepath.Join(configHome, "systemd/user"),
		MachineID:      "/etc/machine-id",
	}
}

// Image is a stored image, whatever its format: that is in its record, so that
// the path is known before the image is there.
func (p Paths) Image(image string) string { return filepath.Join(p.Images, image+".img") }

// ImageRecord is what is known of a stored image. Without it, the image is not
// stored.
func (p Paths) ImageRecord(image string) string { return filepath.Join(p.Images, image+".json") }

// ImageTemp is a file of an image that is not stored yet. No stored image has
// such a name. kind is "part" for what has been downloaded so far, "part.json"
// for what that is a part of, "new" for an image being made, "record" for
// its record, "lock" for the lock of who does any of that.
func (p Paths) ImageTemp(image, kind string) string {
	return filepath.Join(p.Images, "."+image+"."+kind)
}

// ImageUnit is the name of the unit that pulls an image for a machine.
func ImageUnit(image string) string { return "vm-image@" + image + ".service" }

// NetworkUnit is the name of a network's unit.
func NetworkUnit(network string) string { return "vm-network@" + network + ".service" }

// NetworkDir exists while a network is up.
func (p Paths) NetworkDir(network string) string { return filepath.Join(p.NetworkRuntime, network) }

// NetworkJSON is the definition that the network is up with.
func (p Paths) NetworkJSON(network string) string {
	return filepath.Join(p.NetworkRuntime, network, "network.json")
}

// NetworkService is the configuration of the network's DHCP and DNS service.
func (p Paths) NetworkService(network string) string {
	return filepath.Join(p.NetworkRuntime, network, "dnsmasq.conf")
}

// NetworkLeft is there while a network stays although its unit has ended,
// because machines are plugged in.
func (p Paths) NetworkLeft(network string) string {
	return filepath.Join(p.NetworkRuntime, network, "left")
}

// NetworkHosts is the directory of what the service knows of cards, one file
// for each.
func (p Paths) NetworkHosts(network string) string {
	return filepath.Join(p.NetworkRuntime, network, "hosts")
}

// NetworkLeases is what the service has given out.
func (p Paths) NetworkLeases(network string) string {
	return filepath.Join(p.NetworkState, network, "leases")
}

// Filters is what the cards of a machine that runs may send and get, by card
// ([Filter]).
func (p Paths) Filters(vm string) string { return filepath.Join(p.FilterRuntime, vm+".json") }

// NetworkAddresses is which card has which address in a network.
func (p Paths) NetworkAddresses(network string) string {
	return filepath.Join(p.Addresses, network+".json")
}

// CardNames is the file of hosts(5) with the name of a card's guest, while the
// machine runs. No name of either has a dot.
func (p Paths) CardNames(vm, nic string) string { return filepath.Join(p.Names, vm+"."+nic) }

// OperationUnit is the name of the unit that does something to a machine's disks
// or state: kind is "save", "snapshot", "backup" or "restore".
func OperationUnit(kind, vm string) string { return "vm-" + kind + "@" + vm + ".service" }

// SnapshotTimer is the name of the timer that takes snapshots of a machine by its
// schedule, and SnapshotService that of what it starts.
func SnapshotTimer(vm string) string   { return "vm-scheduled-snapshot@" + vm + ".timer" }
func SnapshotService(vm string) string { return "vm-scheduled-snapshot@" + vm + ".service" }

// ShareUnit is the name of the unit that serves a shared directory to a machine.
func ShareUnit(vm, share string) string { return "vm-virtiofsd@" + vm + ":" + share + ".service" }

// TPMUnit is the name of the unit that is a machine's TPM.
func TPMUnit(vm string) string { return "vm-tpm@" + vm + ".service" }

// PasstUnit is the name of the unit that is the network of a machine's card.
func PasstUnit(vm, card string) string { return "vm-passt@" + vm + ":" + card + ".service" }

// ForwardUnit is the name of the units, without what says which they are, that have a
// port of the host's ::1 for a machine's card.
func ForwardUnit(vm, card string, port int) string {
	return "vm-forward@" + vm + ":" + card + ":" + strconv.Itoa(port)
}

// SidecarDir exists while a unit that runs beside a machine does.
func (p Paths) SidecarDir(unit string) string {
	return filepath.Join(p.Sidecars, strings.TrimSuffix(unit, ".service"))
}

// SidecarSocket is the socket in a SidecarDir. Its path may be longer than that of a
// socket can be.
func (p Paths) SidecarSocket(unit string) string { return filepath.Join(p.SidecarDir(unit), "socket") }

// Lock is the file that is locked by whoever changes a machine's disks or
// state.
func (p Paths) Lock(vm string) string { return filepath.Join(p.Locks, vm) }

// Unit is the name of a machine's unit.
func Unit(vm string) string { return "vm@" + vm + ".service" }

// ReadyUnit is the name of the unit that waits until a machine's guest is ready.
func ReadyUnit(vm string) string { return "vm-ready@" + vm + ".service" }

// StateDir is what belongs to one machine: disks made by vmctl, UEFI
// variables, the record it was last started with (see hypervisor.Record) and
// why it ended. It belongs to root; only single files in it are the machine's.
func (p Paths) StateDir(vm string) string { return filepath.Join(p.State, vm) }

// Disk is the file of a disk made by vmctl. format is "qcow2" or "raw".
func (p Paths) Disk(vm, disk, format string) string {
	return filepath.Join(p.State, vm, "disk-"+disk+"."+format)
}

// DiskFile is the file of a disk of a definition: its own, or the one made by
// vmctl.
func (p Paths) DiskFile(vm string, d Disk) string {
	if d.Path != "" {
		return d.Path
	}
	return p.Disk(vm, d.Name, d.Format)
}

// NVRAM is the machine's UEFI variable store; format is "raw" or "qcow2". With
// Secure Boot it is another one: what a guest could write to before holds no keys
// that anybody can trust.
func (p Paths) NVRAM(m *Machine, format string) string {
	name := "nvram"
	if m.Boot.SecureBoot {
		name += "-secure"
	}
	ext := "fd"
	if format == "qcow2" {
		ext = "qcow2"
	}
	return filepath.Join(p.State, m.Name, name+"."+ext)
}

// TPM is the directory with the state of the machine's TPM, its user's alone, and
// TPMState the file in it that outlives the machine's end.
func (p Paths) TPM(vm string) string      { return filepath.Join(p.State, vm, "tpm") }
func (p Paths) TPMState(vm string) string { return filepath.Join(p.TPM(vm), "tpm2-00.permall") }

// ThrowAway marks the state directory of a machine that is removed when it ends
// (package throwaway).
func (p Paths) ThrowAway(vm string) string { return filepath.Join(p.State, vm, "throw-away") }

// Generated is the directory of the drop-in that the generator writes.
func (p Paths) Generated(vm string) string { return filepath.Join(p.GeneratorDir, Unit(vm)+".d") }

// Definition is a machine's file in one of VMDirs.
func Definition(dir, vm string) string { return filepath.Join(dir, vm+suffix) }

// Record is where prepare keeps the definition that the machine was started
// with, readable by root only.
func (p Paths) Record(vm string) string { return filepath.Join(p.State, vm, "definition.json") }

// Changes is what has changed of the disks of a running machine since its start
// (hypervisor.Changes).
func (p Paths) Changes(vm string) string { return filepath.Join(p.State, vm, "changes.json") }

// Claims is what a machine that runs has and no other can have ([Machine.Claims]).
func (p Paths) Claims(vm string) string { return filepath.Join(p.State, vm, "claims.json") }

// Grants is where the access given to files outside of the state directory is
// noted, so that it can be taken back after a crash.
func (p Paths) Grants(vm string) string { return filepath.Join(p.State, vm, "grants.json") }

// HostDevices is where it is noted which devices of the host the machine was given
// (package hostdevice).
func (p Paths) HostDevices(vm string) string {
	return filepath.Join(p.State, vm, "host-devices.json")
}

// Operation is where it is noted what is being done to the machine's disks and
// state, so that it can be mended after a crash (package operation).
func (p Paths) Operation(vm string) string { return filepath.Join(p.State, vm, "operation.json") }

// SavedState is the running machine that vmctl save has put away: memory and
// devices, compressed. Without SavedRecord, which is written last, it is not
// one.
func (p Paths) SavedState(vm string) string { return filepath.Join(p.State, vm, "saved.zst") }

// Scratch is a directory in which the machine's hypervisor writes, and from which it
// reads, what is kept elsewhere (hypervisor.Plan). It is the machine's user's.
func (p Paths) Scratch(vm string) string { return filepath.Join(p.State, vm, "scratch") }

// Shown is the directory of the files of the host that the machine is shown while it
// runs: each at ShownFile of the device that it is for ("disk.NAME"), a name that
// leaves a Unix socket room for its path. In the machine's mounts alone there is more
// than an empty file.
func (p Paths) Shown(vm string) string { return filepath.Join(p.State, vm, "shown") }

// ShownFile is a file in Shown.
func (p Paths) ShownFile(vm, device string) string {
	name := fnv.New64a()
	name.Write([]byte(device))
	return filepath.Join(p.Shown(vm), fmt.Sprintf("%016x", name.Sum64()))
}

// SavedRecord says what SavedState is of.
func (p Paths) SavedRecord(vm string) string { return filepath.Join(p.State, vm, "saved.json") }

// Snapshots is the directory of the machine's snapshots, Snapshot that of one.
func (p Paths) Snapshots(vm string) string { return filepath.Join(p.State, vm, "snapshots") }

// Snapshot is the directory of one snapshot.
func (p Paths) Snapshot(vm, snapshot string) string {
	return filepath.Join(p.Snapshots(vm), snapshot)
}

// Exit is where it is kept why the machine last ended.
func (p Paths) Exit(vm string) string { return filepath.Join(p.State, vm, "exit.json") }

// RuntimeDir exists while the machine's unit is active. It belongs to the
// machine's user; nothing in it may be trusted by root.
func (p Paths) RuntimeDir(vm string) string { return filepath.Join(p.Runtime, vm) }

// Runtime files of one machine. All stay under the 107 bytes that a Unix
// socket's path may have, for every legal name: 15 + 63 + 1 + 15.
func (p Paths) runtimeFile(vm, name string) string { return filepath.Join(p.Runtime, vm, name) }

// VMJSON is the definition that the machine runs with, secrets left out.
func (p Paths) VMJSON(vm string) string { return p.runtimeFile(vm, "vm.json") }

// Refused is where prepare notes, one in a line, the problems with which the
// main process has to refuse to start: systemd's RestartPreventExitStatus=
// looks at nothing but that.
func (p Paths) Refused(vm string) string { return p.runtimeFile(vm, "refused") }

// Claimed is there once the machine's record is that of this run, and was compared
// with those of others.
func (p Paths) Claimed(vm string) string { return p.runtimeFile(vm, "claimed") }

// PutOff is there while a start takes longer than start_timeout, and may.
func (p Paths) PutOff(vm string) string { return p.runtimeFile(vm, "put-off") }

// Seed is the cloud-init seed.
func (p Paths) Seed(vm string) string { return p.runtimeFile(vm, "cloudinit.iso") }

// ConsoleSocket is where the monitor serves the console (package console).
func (p Paths) ConsoleSocket(vm string) string { return p.runtimeFile(vm, "console.sock") }

// ControlSocket is the hypervisor's control socket for vmctl's own short
// calls: QMP for QEMU, REST for cloud-hypervisor.
func (p Paths) ControlSocket(vm string) string { return p.runtimeFile(vm, "control.sock") }

// JobSocket is a control socket for what takes long: whoever has the machine's
// lock (package operation) may keep it.
func (p Paths) JobSocket(vm string) string { return p.runtimeFile(vm, "job.sock") }

// QMPSocket is a QMP socket of its own for people and tools.
func (p Paths) QMPSocket(vm string) string { return p.runtimeFile(vm, "qmp.sock") }

// DisplaySocket is where viewers of the graphical display connect.
func (p Paths) DisplaySocket(vm string) string { return p.runtimeFile(vm, "display.sock") }

// AgentSocket is the channel to the guest agent.
func (p Paths) AgentSocket(vm string) string { return p.runtimeFile(vm, "agent.sock") }

// VsockSocket is where connections to and from the guest's vsock are made, of a
// hypervisor that has them on Unix sockets: that of a port of the host's is beside
// it, with an underscore and the port's number after the name.
func (p Paths) VsockSocket(vm string) string { return p.runtimeFile(vm, "vsock.sock") }

// Credential is the file with one credential for the guest.
func (p Paths) Credential(vm, name string) string { return p.runtimeFile(vm, "credential."+name) }

// LoadNote is where it is noted how the loading of a saved state ended. Who loads
// has it locked.
func (p Paths) LoadNote(vm string) string { return p.runtimeFile(vm, "load") }

// Events is where the monitor notes what the hypervisor said about its end.
func (p Paths) Events(vm string) string { return p.runtimeFile(vm, "events.json") }

// StopNote is where vmctl-unit stop notes how far it had to go.
func (p Paths) StopNote(vm string) string { return p.runtimeFile(vm, "stop.json") }

// Readiness tells whether the guest is ready, as lifecycle.ready asks: a
// hypervisor.Readiness.
func (p Paths) Readiness(vm string) string { return p.runtimeFile(vm, "ready.json") }

// MonitorPID is the monitor's process id, a decimal number.
func (p Paths) MonitorPID(vm string) string { return p.runtimeFile(vm, "monitor.pid") }

// Unshareable is why no guest may have a directory of the host, "" where one may.
// dir is clean, and no link.
func (p Paths) Unshareable(dir string) string {
	if dir == "/" {
		return "is all of the host"
	}
	for _, kernel := range []string{"/proc", "/sys", "/dev"} {
		if isWithin(dir, kernel) {
			return "is the kernel's"
		}
	}
	for _, own := range []string{p.State, p.Images, p.Runtime, p.Sidecars, p.Locks} {
		if isWithin(dir, own) || isWithin(own, dir) {
			return "has files of the machines themselves in it (" + own + ")"
		}
	}
	return ""
}

// isWithin says whether file is dir or below it.
func isWithin(file, dir string) bool {
	return file == dir || strings.HasPrefix(file, dir+"/")
}

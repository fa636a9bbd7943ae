package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/cloudhypervisor"
	"github.com/vmctl/vmctl/units"
	"github.com/vmctl/vmctl/units/bus"
)

// facts are what info tells of a host, and what doctor decides by.
type facts struct {
	Vmctl           string            `json:"vmctl"`
	Systemd         string            `json:"systemd"`       // whole version; "" where it does not answer
	SystemdMajor    int               `json:"systemd_major"` // 0 where not known
	QEMU            string            `json:"qemu"`          // version; "" where it is not installed
	QEMUPath        string            `json:"qemu_path"`
	Cloud           cloudFacts        `json:"cloud_hypervisor"`
	CPUs            int               `json:"cpus"`
	MemoryBytes     int64             `json:"memory_bytes"`
	Virtualization  bool              `json:"cpu_virtualization"` // VMX or SVM
	Accel           string            `json:"accel"`              // what accel = "auto" comes to: "kvm" or "tcg"
	Nodes           map[string]bool   `json:"nodes"`              // device nodes
	Firmware        int               `json:"firmware"`           // UEFI images found
	CgroupVersion   int               `json:"cgroup_version"`
	Controllers     []string          `json:"cgroup_controllers"`
	Hugepages       []hugepages       `json:"hugepages"`
	StateFreeBytes  int64             `json:"state_free_bytes"`
	Paths           map[string]string `json:"paths"`
	VMs             map[state]int     `json:"vms"` // number in each state; null where systemd does not answer
	user            bool              // asked of a user's own service manager
	lingers         bool              // that manager starts with the host, and stays
	busErr          error             // why systemd does not answer
	missing         []string          // files of ours that are not installed
	problems        []config.Problem  // of definitions
	stale           []string          // machines whose definition systemd has not read
	failed          []string          // machines that have failed
	leftovers       []string          // names of which something is left without a definition
	withHost        []string          // machines that start with the host
	target          string            // whether systemd starts what does: "enabled", "disabled", …; "" where not known
	machinedPresent bool
	network         hostNetwork
}

// cloudFacts are those about cloud-hypervisor.
type cloudFacts struct {
	Version  string   `json:"version"` // "" where it is not installed
	Path     string   `json:"path"`
	Features []string `json:"features"`
	Firmware []string `json:"firmware"` // images found, best first
	wanted   bool     // by a definition that names no other program

	wantsFirmware bool // by a definition that boots no kernel, and names no firmware
}

// hugepages are the huge pages of one size.
type hugepages struct {
	SizeBytes int64 `json:"size_bytes"`
	Total     int   `json:"total"`
	Free      int   `json:"free"`
}

// gather finds the facts. What cannot be found is left empty: that is a fact
// as well.
func (a *app) gather(ctx context.Context) facts {
	host := a.probe()
	f := facts{
		user:           a.user,
		lingers:        a.lingers(),
		Vmctl:          version,
		SystemdMajor:   host.Systemd,
		QEMUPath:       host.Programs["qemu-system-x86_64"],
		Virtualization: host.CPUVirtualization,
		Accel:          "tcg",
		Nodes:          host.Nodes,
		Firmware:       len(host.Firmware),
		Hugepages:      readHugepages(a.root + "/sys/kernel/mm/hugepages"),
		Paths: map[string]string{
			"definitions": strings.Join(a.paths.VMDirs, ":"),
			"images":      a.paths.Images,
			"state":       a.paths.State,
			"runtime":     a.paths.Runtime,
		},
	}
	if host.CPUVirtualization && host.Nodes[hypervisor.KVM] {
		f.Accel = "kvm"
	}
	f.CPUs, f.MemoryBytes = readMachine(a.root)
	f.CgroupVersion, f.Controllers = readCgroup(a.root)
	if f.QEMUPath != "" {
		f.QEMU = qemuVersion(ctx, a.root+f.QEMUPath)
	}
	f.Cloud = cloudFacts{Path: host.Programs["cloud-hypervisor"], Features: []string{}, Firmware: slices.Concat([]string{}, host.CloudFirmware)}
	if f.Cloud.Path != "" {
		// That it does not tell is a fact as well.
		release, features, _ := cloudhypervisor.Version(ctx, a.root+f.Cloud.Path)
		f.Cloud.Version, f.Cloud.Features = release, append(f.Cloud.Features, features...)
	}
	f.StateFreeBytes = freeBytes(a.paths.State)
	f.missing = a.missingFiles()
	_, err := os.Stat(a.root + "/usr/lib/systemd/systemd-machined")
	f.machinedPresent = err == nil
	if !a.user {
		f.network = a.gatherNetwork(ctx)
	}
	a.gatherVMs(ctx, &f, host)
	return f
}

// gatherVMs finds what there is to say of machines.
func (a *app) gatherVMs(ctx context.Context, f *facts, host hypervisor.Host) {
	// Load has no errors that a file could cause.
	set, err := config.Load(a.paths)
	if err != nil {
		f.busErr = err
		return
	}
	f.problems = set.Problems
	for _, vm := range set.VMs {
		if m := vm.Machine; m != nil && m.Hypervisor == config.CloudHypervisor && m.HypervisorOptions.Binary == "" {
			f.Cloud.wanted = true
			f.Cloud.wantsFirmware = f.Cloud.wantsFirmware || m.Boot.Kernel == "" && m.Boot.Firmware == "uefi"
		}
		p := a.plan(vm, host)
		f.problems = append(f.problems, p.Problems...)
		if len(p.Problems) == 0 && a.generated(vm.Name) != p.dropIn() {
			f.stale = append(f.stale, vm.Name)
		}
	}
	f.problems = append(f.problems, sharedProblems(set)...)
	config.SortProblems(f.problems)

	conn, err := a.dial(ctx)
	if err != nil {
		f.busErr = err
		return
	}
	defer conn.Close()
	f.busErr = a.gatherUnits(ctx, f, conn)
}

// gatherUnits finds what systemd says.
func (a *app) gatherUnits(ctx context.Context, f *facts, conn *bus.Conn) error {
	var err error
	f.Systemd, f.SystemdMajor, err = conn.Version(ctx)
	if err != nil {
		return err
	}
	looks, _, err := a.lookAll(ctx, conn)
	if err != nil {
		return err
	}
	f.VMs = map[state]int{}
	for _, s := range states {
		f.VMs[s] = 0
	}
	enabled := a.enabled()
	for _, l := range looks {
		if l.isLeftover() {
			f.leftovers = append(f.leftovers, l.vm.Name)
			continue
		}
		f.VMs[l.state]++
		if l.state == failed {
			f.failed = append(f.failed, l.vm.Name)
		}
		if enabled[l.vm.Name] || l.vm.Autostart {
			f.withHost = append(f.withHost, l.vm.Name)
		}
	}
	target, err := conn.Properties(ctx, units.Target)
	f.target = target.UnitFileState
	return err
}

// lingers says whether the user's service manager starts with the host and stays
// when the user logs out; yes where that cannot be seen.
func (a *app) lingers() bool {
	who, err := user.Current()
	return err != nil || access.IsThere(filepath.Join(a.root, "/var/lib/systemd/linger", who.Username))
}

// noLinger is what is so without, and enableLinger what to do.
const (
	noLinger     = "your VMs start when you log in, and end when you log out"
	enableLinger = "loginctl enable-linger has them start with the host, and stay"
)

// missingFiles are the files of ours that systemd needs and that are not
// installed.
func (a *app) missingFiles() []string {
	kind, generator := "system", "system-generators/vmctl-generator"
	if a.user {
		kind, generator = "user", "user-generators/vmctl-user-generator"
	}
	var missing []string
	for _, alternatives := range [][]string{
		{a.root + a.paths.Libexec + "/vmctl-unit"},
		systemdFiles(a.root, generator),
		systemdFiles(a.root, kind+"/vm@.service"),
		systemdFiles(a.root, kind+"/vm-image@.service"),
		systemdFiles(a.root, kind+"/vm-ready@.service"),
		systemdFiles(a.root, kind+"/vm-scheduled-snapshot@.service"),
		systemdFiles(a.root, kind+"/vms.target"),
	} {
		if !anyExists(alternatives) {
			missing = append(missing, alternatives[len(alternatives)-1])
		}
	}
	return missing
}

// systemdFiles is where a file of systemd's may lie.
func systemdFiles(root, name string) []string {
	var all []string
	for _, dir := range []string{"/etc/systemd/", "/usr/local/lib/systemd/", "/usr/lib/systemd/"} {
		all = append(all, root+dir+name)
	}
	return all
}

func anyExists(paths []string) bool {
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

// readMachine is the number of CPUs that are online and the memory in bytes.
func readMachine(root string) (cpus int, memory int64) {
	cpuinfo, _ := os.ReadFile(root + "/proc/cpuinfo")
	for line := range strings.Lines(string(cpuinfo)) {
		if strings.HasPrefix(line, "processor") {
			cpus++
		}
	}
	meminfo, _ := os.ReadFile(root + "/proc/meminfo")
	for line := range strings.Lines(string(meminfo)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			memory = kib << 10
		}
	}
	return cpus, memory
}

// readCgroup is the version of the cgroup tree and the controllers of its
// root. In version 1, systemd cannot limit what vmctl asks for.
func readCgroup(root string) (version int, controllers []string) {
	text, err := os.ReadFile(root + "/sys/fs/cgroup/cgroup.controllers")
	if err == nil {
		return 2, append([]string{}, strings.Fields(string(text))...)
	}
	if _, err := os.Stat(root + "/sys/fs/cgroup"); errors.Is(err, fs.ErrNotExist) {
		return 0, []string{}
	}
	return 1, []string{}
}

// readHugepages reads sysfs: one directory for each size, hugepages-2048kB.
func readHugepages(dir string) []hugepages {
	all := []hugepages{}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		digits := strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB")
		kib, err := strconv.ParseInt(digits, 10, 64)
		if err != nil {
			continue
		}
		all = append(all, hugepages{
			SizeBytes: kib << 10,
			Total:     readNumber(filepath.Join(dir, e.Name(), "nr_hugepages")),
			Free:      readNumber(filepath.Join(dir, e.Name(), "free_hugepages")),
		})
	}
	return all
}

// readNumber is the number in a file, 0 where there is none.
func readNumber(path string) int {
	text, _ := os.ReadFile(path)
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

// qemuVersion asks QEMU: "QEMU emulator version 10.0.2 (Debian …)". It is "" where
// that does not tell.
func qemuVersion(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(out), "version ")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return ""
	}
	return fields[0]
}

// freeBytes is what is free in the file system of dir, or of the nearest
// directory above it that exists.
func freeBytes(dir string) int64 {
	var st syscall.Statfs_t
	for {
		if err := syscall.Statfs(dir, &st); err == nil {
			return int64(st.Bavail) * st.Bsize
		}
		if dir == "/" || dir == "." {
			return 0
		}
		dir = filepath.Dir(dir)
	}
}

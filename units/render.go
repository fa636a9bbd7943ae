package units

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// stopMargin is what TimeoutStopSec= adds to stop_timeout: vmctl-unit stop
// ends the machine by itself in stop_timeout, and systemd steps in only where
// that failed.
const stopMargin = 15 * time.Second

// maxRestartDelay bounds the back-off between two restarts.
const maxRestartDelay = 30 * time.Second

// Render returns what systemd has to be told about a machine without
// problems, planned by its hypervisor; digest is hypervisor.Digest of both.
// The problems are values that no unit file can hold. It is pure.
func Render(vm config.VM, plan *hypervisor.Plan, digest string, env Env) ([]File, []config.Problem) {
	m := vm.Machine
	d := &dropIn{vm: vm, env: env}
	d.begin(defaultDescription(vm))
	d.dependencies(plan)
	if m.Lifecycle.RemoveOnStop {
		// Nothing of it is left then, so neither is the mark of a failure.
		d.put("CollectMode", "inactive-or-failed")
	}
	d.settings("unit", m.Unit)

	d.section("Service")
	for _, w := range plan.Warnings {
		d.comment("Warning: " + w)
	}
	if !env.Paths.User {
		d.put("User", User(vm.Name))
	} else if m.Console.Group != "" {
		d.refuse("console.group", "not supported for machines of a user, whose directories nobody else may look into")
	}
	d.put("ExecStartPre", d.privileged("prepare")+" --digest "+digest)
	d.command(d.helper("run")+" --", plan.Argv)
	d.put("ExecStartPost", d.privileged("register"))
	if plan.Noise != "" && env.Systemd >= 253 {
		v, err := raw("~" + plan.Noise)
		d.set("", "LogFilterPatterns", v, err)
	}
	d.lifecycle(m.Lifecycle)
	d.sandbox(plan)
	if !env.Paths.User {
		d.mounts(plan)
	}
	d.resources(m.Resources)
	d.settings("service", m.Service)

	if len(d.problems) > 0 {
		return nil, d.problems
	}
	files := []File{d.file()}
	for _, s := range plan.Sidecars {
		file, problems := sidecar(vm, s, env)
		if len(problems) > 0 {
			return nil, problems
		}
		files = append(files, file)
	}
	if m.Snapshots.Scheduled() {
		timer, link, problems := snapshotTimer(vm, env)
		if len(problems) > 0 {
			return nil, problems
		}
		files = append(files, timer, link)
	}
	if vm.Autostart {
		files = append(files, autostart(vm.Name, env))
	}
	return files, nil
}

// dependencies orders the machine after others and after the mounts that hold
// its files.
func (d *dropIn) dependencies(plan *hypervisor.Plan) {
	m := d.vm.Machine
	list := func(setting string, vms []string) {
		var names []string
		for _, vm := range vms {
			if unit := config.Unit(vm); !slices.Contains(names, unit) {
				names = append(names, unit)
			}
		}
		if names != nil {
			d.put(setting, strings.Join(names, " "))
		}
	}
	list("Requires", m.Requires)
	list("Wants", m.Wants)
	// Requires= without After= would start both at once, and not notice that
	// the other one failed.
	list("After", slices.Concat(m.After, m.Requires))
	d.readiness()
	d.networks()
	d.drivers(plan)
	if m.Snapshots.Scheduled() {
		// For a timer that is new since the host started.
		d.put("Wants", config.SnapshotTimer(d.vm.Name))
	}

	paths := []string{d.env.Paths.StateDir(d.vm.Name)}
	for _, f := range plan.Files {
		if !isDevice(f.Path) && !within(f.Path, "/usr") && !d.own(f.Path) && !slices.Contains(paths, f.Path) {
			paths = append(paths, f.Path)
		}
	}
	for _, p := range paths {
		v, err := path(p)
		d.set("", "RequiresMountsFor", v, err)
	}
}

// readiness has the guest waited for where the definition asks for it, and by
// the machines that come after it. That is a unit of its own: a machine whose own
// is starting still is not shut down at a stop, but cut off.
func (d *dropIn) readiness() {
	m := d.vm.Machine
	if m.Lifecycle.Ready != "started" {
		d.put("Wants", config.ReadyUnit(d.vm.Name))
	}
	units := func(vms []string) string {
		var names []string
		for _, vm := range vms {
			if unit := config.ReadyUnit(vm); !slices.Contains(names, unit) {
				names = append(names, unit)
			}
		}
		return strings.Join(names, " ")
	}
	// Whether those machines ask for it, they know themselves.
	if names := units(m.Requires); names != "" {
		d.put("Requires", names)
	}
	if names := units(slices.Concat(m.After, m.Requires)); names != "" {
		d.put("After", names)
	}
}

// networks has the networks up before the machine is plugged into them, which
// prepare makes sure of. With Requires=, a DHCP service that is started again
// after a crash would have systemd start the machines again too.
func (d *dropIn) networks() {
	var names []string
	for _, n := range d.vm.Machine.NICs {
		if unit := config.NetworkUnit(n.Network); n.Network != "" && !slices.Contains(names, unit) {
			names = append(names, unit)
		}
	}
	if names != nil {
		d.put("Wants", strings.Join(names, " "))
		d.put("After", strings.Join(names, " "))
	}
}

// drivers has drivers of the kernel loaded before systemd looks for their numbers,
// which it does for DeviceAllow= when the unit starts.
func (d *dropIn) drivers(plan *hypervisor.Plan) {
	load := func(module string) {
		d.put("Wants", "modprobe@"+module+".service")
		d.put("After", "modprobe@"+module+".service")
	}
	if slices.ContainsFunc(d.vm.Machine.NICs, func(n config.NIC) bool { return n.Macvtap != "" }) {
		load("macvtap")
	}
	if len(plan.PCI) > 0 {
		load("vfio_pci")
	}
}

// lifecycle says how long starting and stopping may take, and what starts the
// machine again.
func (d *dropIn) lifecycle(l config.Lifecycle) {
	// For each of ExecStartPre=, ExecStart= until READY=1, and ExecStartPost=.
	// After a reload systemd counts it from when the unit began to start, whatever
	// it had been put off to (257: service_coldplug_timeout).
	if d.env.PutOff {
		d.put("TimeoutStartSec", "infinity")
	} else {
		d.put("TimeoutStartSec", span(l.StartTimeout))
	}
	d.put("TimeoutStopSec", span(sum(l.StopTimeout, config.Duration(stopMargin))))
	d.put("Restart", l.Restart)
	d.put("RestartSec", span(l.RestartDelay))
	if d.env.Systemd >= 254 && l.RestartDelay > 0 && l.RestartDelay < config.Duration(maxRestartDelay) {
		d.put("RestartSteps", "4")
		d.put("RestartMaxDelaySec", span(config.Duration(maxRestartDelay)))
	}
}

// sandbox opens what the plan needs of what the template closes, and closes
// what only newer versions can.
func (d *dropIn) sandbox(plan *hypervisor.Plan) {
	if plan.Internet {
		d.put("RestrictAddressFamilies", "AF_INET AF_INET6")
	}
	if len(plan.USB) > 0 {
		// The library that finds devices listens for their coming and going.
		d.put("RestrictAddressFamilies", "AF_NETLINK")
	}
	if plan.PlaceMemory {
		d.put("SystemCallFilter", "@resources")
	}
	if plan.Landlock {
		d.put("SystemCallFilter", "landlock_create_ruleset landlock_add_rule landlock_restrict_self")
	}
	if plan.LockMemory {
		d.put("LimitMEMLOCK", "infinity")
	}
	if d.env.Paths.User {
		return // the rest is the system's template alone
	}
	if plan.Internet {
		d.put("PrivateNetwork", "no")
	} else {
		d.put("IPAddressDeny", "any")
	}
	if len(plan.Argv) > 0 && !within(plan.Argv[0], "/usr") {
		// A hypervisor of one's own has its libraries anywhere.
		d.put("NoExecPaths", "")
		d.put("ExecPaths", "")
	}
	if d.env.Systemd >= 257 {
		d.put("ProtectControlGroups", "strict")
	}
	if len(plan.Groups) > 0 {
		d.put("SupplementaryGroups", strings.Join(plan.Groups, " "))
	}
	for _, node := range plan.Devices {
		d.device("", node, "rw")
	}
	// Which nodes these are is known at the start: prepare gives access to those.
	if len(plan.PCI) > 0 {
		d.put("DeviceAllow", "/dev/vfio/vfio rw")
		d.put("DeviceAllow", "char-vfio rw")
		d.put("BindPaths", "-/dev/vfio")
	}
	if len(plan.USB) > 0 {
		d.put("DeviceAllow", "char-usb_device rw")
		d.put("BindPaths", "-/dev/bus/usb")
	}
	// For prepare, which is in the same control group; the machine itself does not
	// see the nodes. That of a macvtap is made by prepare, where the host has none.
	if slices.ContainsFunc(d.vm.Machine.NICs, func(n config.NIC) bool { return n.HasInterface() && n.Macvtap == "" }) {
		d.put("DeviceAllow", "/dev/net/tun rw")
	}
	if slices.ContainsFunc(d.vm.Machine.NICs, func(n config.NIC) bool { return n.Macvtap != "" }) {
		d.put("DeviceAllow", "char-macvtap rwm")
	}
	if slices.ContainsFunc(plan.Descriptors, func(f hypervisor.Descriptor) bool { return f.Use == hypervisor.Vhost }) {
		d.put("DeviceAllow", hypervisor.VhostNet+" rw")
	}
}

// mounts shows the machine its own state directory and the files that its
// definition names, and nothing else of what the template hides. The "-"
// leaves it to prepare to say what is missing: without it not even the stop
// would run.
func (d *dropIn) mounts(plan *hypervisor.Plan) {
	if state := d.env.Paths.State; bindable(state) != state {
		d.refuse("", "want a directory for the machines' state without quotes and control characters, got %q", state)
	} else if !within(state, "/var/lib/vmctl") {
		// The colon ends the path here even in quotes.
		v, err := path(strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace(state) + ":ro")
		d.set("", "TemporaryFileSystem", v, err)
	}
	d.bind("", d.env.Paths.StateDir(d.vm.Name), true)
	for _, s := range plan.Sidecars {
		if s.State != "" { // is not for the hypervisor to see
			v, err := path("-" + filepath.Dir(s.State))
			d.set("", "InaccessiblePaths", v, err)
		}
	}
	if slices.ContainsFunc(plan.Files, func(f hypervisor.File) bool { return within(f.Path, "/root") }) {
		d.homes()
	}

	for i, f := range plan.Files {
		same := func(o hypervisor.File) bool { return o.Path == f.Path }
		if slices.IndexFunc(plan.Files, same) != i || d.own(f.Path) || within(f.Path, "/usr") {
			continue
		}
		if slices.Contains(strings.Split(f.Path, "/"), "..") {
			d.refuse(f.Key, `want a path without "..", got %q`, f.Path)
			continue
		}
		write := slices.ContainsFunc(plan.Files, func(o hypervisor.File) bool { return same(o) && o.Write })
		switch {
		case isDevice(f.Path) && write:
			d.device(f.Key, f.Path, "rw")
		case isDevice(f.Path):
			d.device(f.Key, f.Path, "r")
		default:
			d.bind(f.Key, f.Path, write)
		}
	}
}

// homes hides the homes as ProtectHome=tmpfs of the template does, but for the
// mode: there, /root can be searched by root alone, so no machine would reach
// a file below it.
func (d *dropIn) homes() {
	d.put("ProtectHome", "no")
	d.put("TemporaryFileSystem", "/home:ro,mode=0755 /root:ro,mode=0755 /run/user:ro,mode=0755")
}

// device gives the machine a device node; access is "r" or "rw".
func (d *dropIn) device(key, node, access string) {
	v, err := path(node)
	d.set(key, "DeviceAllow", v+" "+access, err)
	d.bind(key, node, true)
}

// bind shows the machine a file of the host, under its own name.
func (d *dropIn) bind(key, file string, write bool) {
	name := "BindReadOnlyPaths"
	if write {
		name = "BindPaths"
	}
	if shown := bindable(file); shown != file {
		// Where that is /home itself, what hides it still makes it read-only.
		d.open(key, file, write)
		if !d.hidden(file) {
			return
		}
		file = shown
	}
	v, err := path("-" + file)
	d.set(key, name, v, err)
}

// open lets the machine write to a file that it sees.
func (d *dropIn) open(key, file string, write bool) {
	if write {
		v, err := path("-" + file)
		d.set(key, "ReadWritePaths", v, err)
	}
}

// hidden says whether the template, or mounts, hides file from the machine.
func (d *dropIn) hidden(file string) bool {
	for _, dir := range []string{"/home", "/root", "/run/user", "/tmp", "/var/tmp", "/dev", "/var/lib/vmctl", d.env.Paths.State} {
		if within(file, dir) {
			return true
		}
	}
	return false
}

// bindable is file, or the nearest directory above it that can be bound: from
// systemd 255 on, mounts are handed to the process that makes them in a form
// that loses quotes and chokes on control characters, whereupon no command of
// the unit runs, not even the stop (tried with 257).
func bindable(file string) string {
	bad := strings.IndexFunc(file, func(r rune) bool { return r == '"' || r == '\'' || r < ' ' || r == 0x7f })
	if bad < 0 {
		return file
	}
	return file[:strings.LastIndexByte(file[:bad], '/')]
}

// own says whether file is in the machine's own state or runtime directory.
func (d *dropIn) own(file string) bool {
	return within(file, d.env.Paths.StateDir(d.vm.Name)) || within(file, d.env.Paths.RuntimeDir(d.vm.Name))
}

// resources are passed on in systemd's own notation.
func (d *dropIn) resources(r config.Resources) {
	for _, s := range []struct {
		key, name string
		values    []string
	}{
		{"slice", "Slice", []string{r.Slice}},
		{"cpu_quota", "CPUQuota", []string{r.CPUQuota}},
		{"cpu_weight", "CPUWeight", []string{r.CPUWeight}},
		{"allowed_cpus", "AllowedCPUs", []string{r.AllowedCPUs}},
		{"allowed_memory_nodes", "AllowedMemoryNodes", []string{r.AllowedMemoryNodes}},
		{"memory_max", "MemoryMax", []string{r.MemoryMax}},
		{"memory_high", "MemoryHigh", []string{r.MemoryHigh}},
		{"memory_min", "MemoryMin", []string{r.MemoryMin}},
		{"memory_low", "MemoryLow", []string{r.MemoryLow}},
		{"memory_swap_max", "MemorySwapMax", []string{r.MemorySwapMax}},
		{"io_weight", "IOWeight", []string{r.IOWeight}},
		{"io_read_max", "IOReadBandwidthMax", r.IOReadMax},
		{"io_write_max", "IOWriteBandwidthMax", r.IOWriteMax},
		{"io_read_iops_max", "IOReadIOPSMax", r.IOReadIOPSMax},
		{"io_write_iops_max", "IOWriteIOPSMax", r.IOWriteIOPSMax},
		{"tasks_max", "TasksMax", []string{r.TasksMax}},
		{"nice", "Nice", []string{r.Nice}},
		{"oom_score_adjust", "OOMScoreAdjust", []string{r.OOMScoreAdjust}},
	} {
		for _, value := range s.values {
			if value != "" {
				v, err := raw(value)
				d.set("resources."+s.key, s.name, v, err)
			}
		}
	}
}

// settings are passed on as they are; table is "unit" or "service".
func (d *dropIn) settings(table string, settings []config.Setting) {
	for _, s := range settings {
		key := table + "." + s.Name
		if !isSettingName(s.Name) {
			d.refuse(key, "want the name of a setting, got %q", s.Name)
			continue
		}
		v, err := raw(s.Value)
		d.set(key, s.Name, v, err)
	}
}

// isSettingName says whether s can stand before the "=" of a unit file: what
// else is in it could begin a setting or a section of its own.
func isSettingName(s string) bool {
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_') {
			return false
		}
	}
	return s != ""
}

// within says whether file is dir or below it.
func within(file, dir string) bool {
	return file == dir || strings.HasPrefix(file, strings.TrimSuffix(dir, "/")+"/")
}

// isDevice says whether file is a device node, by its name: the file systems
// that are mounted below /dev hold plain files.
func isDevice(file string) bool {
	return within(file, "/dev") && !within(file, "/dev/shm") && !within(file, "/dev/hugepages")
}

// sum adds two spans of time, either of which may be infinite.
func sum(a, b config.Duration) config.Duration {
	if a == config.Infinity || b == config.Infinity || a > config.Infinity-b {
		return config.Infinity
	}
	return a + b
}

// span writes a span of time for systemd, which knows microseconds.
func span(d config.Duration) string {
	switch t := time.Duration(d); {
	case d == config.Infinity:
		return "infinity"
	case t%time.Second == 0:
		return fmt.Sprintf("%ds", t/time.Second)
	case t%time.Millisecond == 0:
		return fmt.Sprintf("%dms", t/time.Millisecond)
	default:
		return fmt.Sprintf("%dus", t.Microseconds())
	}
}

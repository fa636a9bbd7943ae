//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
)

// The benchmarks measure what packaging/BENCHMARKS.md promises, with the
// programs as they are installed. Times are medians: what else the host does
// then matters least.

// samples are what was measured, each in the same unit.
type samples []float64

func (s *samples) add(d time.Duration) { *s = append(*s, float64(d)/float64(time.Millisecond)) }

func (s samples) median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// only reports the metric, and leaves out the mean time that go test adds.
func only(b *testing.B, value float64, unit string) {
	b.ReportMetric(value, unit)
	b.ReportMetric(0, "ns/op")
}

// took runs a command that has to succeed, and returns how long it took.
func took(b *testing.B, argv ...string) time.Duration {
	b.Helper()
	begun := time.Now()
	run(b, argv...)
	return time.Since(begun)
}

// usualMachine is a machine as people write them: the things that most have.
const usualMachine = `description = "Web server %[1]d"
autostart = true
cpus = 2
memory = "1G"

[disk.root]
path = "/srv/images/vm-%[1]d.qcow2"

[disk.data]
size = "20G"

[nic.lan]
user = true
forward = ["%[2]d:22/tcp"]

[cloud_init]
ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA root@host"]

[lifecycle]
stop_timeout = "2min"

[resources]
cpu_quota = "200%%"
`

// usualContainer is the same for a container.
const usualContainer = `[Unit]
Description=Web server %[1]d

[Container]
Image=docker.io/library/nginx:latest
PublishPort=%[2]d:22
Volume=/srv/images/vm-%[1]d:/srv
Environment=A=1 B=2

[Service]
TimeoutStopSec=2min
CPUQuota=200%%

[Install]
WantedBy=multi-user.target
`

// define writes n files into dir, by their number, and takes them away at the
// end.
func define(b *testing.B, n int, dir, name, text string) {
	b.Helper()
	for i := range n {
		file := filepath.Join(dir, fmt.Sprintf(name, i))
		writeFile(b, file, fmt.Sprintf(text, i, 10000+i))
		b.Cleanup(func() { os.Remove(file) })
	}
}

const vmDir = "/etc/vmctl/vms"

// BenchmarkGenerator is what a reload costs: the generator with many
// definitions, and Quadlet, which does the same for containers, with as many.
func BenchmarkGenerator(b *testing.B) {
	const dir = "/usr/lib/systemd/system-generators/"
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprintf("vmctl/%d", n), func(b *testing.B) {
			define(b, n, vmDir, "bench-%d.toml", usualMachine)
			generate(b, n, dir+"vmctl-generator")
		})
		b.Run(fmt.Sprintf("quadlet/%d", n), func(b *testing.B) {
			containers := b.TempDir()
			define(b, n, containers, "bench-%d.container", usualContainer)
			b.Setenv("QUADLET_UNIT_DIRS", containers)
			generate(b, n, dir+"podman-system-generator")
		})
	}
}

// generate runs a generator, whose units go into memory as systemd has it.
func generate(b *testing.B, n int, generator string) {
	var cpu samples
	peak := 0.0
	for b.Loop() {
		out, err := os.MkdirTemp("/run", "bench")
		if err != nil {
			b.Fatal(err)
		}
		cmd := exec.Command(generator, out, out, out)
		if text, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, text[:min(len(text), 1000)])
		}
		state := cmd.ProcessState
		cpu.add(state.UserTime() + state.SystemTime())
		peak = max(peak, float64(state.SysUsage().(*syscall.Rusage).Maxrss)/1024)
		made, _ := filepath.Glob(out + "/*bench-*")
		if len(made) != n {
			b.Fatalf("%s made %d units, want %d", generator, len(made), n)
		}
		if err := os.RemoveAll(out); err != nil {
			b.Fatal(err)
		}
	}
	only(b, cpu.median(), "cpu-ms")
	b.ReportMetric(peak, "peak-MB")
}

// BenchmarkCommand is commands on a host with 1,000 definitions, from the
// shell's view.
func BenchmarkCommand(b *testing.B) {
	define(b, 1000, vmDir, "bench-%d.toml", usualMachine)
	for name, argv := range map[string][]string{
		"true":           {"/bin/true"}, // what starting a process takes
		"version":        {"vmctl", "version"},
		"complete-verb":  {"vmctl", "__complete", "st"},
		"complete-names": {"vmctl", "__complete", "start", "bench-"},
		"list":           {"vmctl", "list"},
		"list-json":      {"vmctl", "list", "-o", "json"},
	} {
		b.Run(name, func(b *testing.B) {
			var s samples
			for b.Loop() {
				s.add(took(b, argv...))
			}
			only(b, s.median(), "ms")
		})
	}
}

// benchMachine is a machine whose guest is only firmware that finds nothing to
// boot: what is measured is not what a guest does.
const benchMachine = `memory = "256M"
[lifecycle]
restart_delay = "100ms"
[unit]
StartLimitIntervalSec = 0
`

// BenchmarkStart compares, in turns, vmctl start, systemctl start of the same
// unit, and systemctl start of a unit with nothing but the hypervisor's
// command line, each until QMP answers.
func BenchmarkStart(b *testing.B) {
	v := newVMFrom(b, "bench", benchMachine)
	bare := newBareUnit(b, v.name)
	run(b, "systemctl", "daemon-reload")
	var byVmctl, bySystemctl, byBare samples
	for b.Loop() {
		for s, start := range map[*samples]func() time.Duration{
			&byVmctl:     func() time.Duration { return took(b, "vmctl", "start", v.name) },
			&bySystemctl: func() time.Duration { return took(b, "systemctl", "start", v.unit()) },
		} {
			s.add(start() + answers(b, v.runtimeDir()+"/qmp.sock"))
			run(b, "vmctl", "kill", v.name)
		}
		byBare.add(took(b, "systemctl", "start", bare.unit) + answers(b, bare.socket))
		run(b, "systemctl", "stop", bare.unit)
	}
	only(b, byVmctl.median(), "vmctl-ms")
	b.ReportMetric(bySystemctl.median(), "systemctl-ms")
	b.ReportMetric(byBare.median(), "bare-ms")
	b.ReportMetric(byVmctl.median()/byBare.median(), "vmctl/bare")
}

// answers waits until QMP answers on a socket, and returns how long that was.
func answers(b *testing.B, socket string) time.Duration {
	b.Helper()
	for begun := time.Now(); time.Since(begun) < patience; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			continue
		}
		var greeting struct{ QMP *json.RawMessage }
		err = json.NewDecoder(conn).Decode(&greeting)
		conn.Close()
		if err == nil && greeting.QMP != nil {
			return time.Since(begun)
		}
	}
	b.Fatalf("no answer on %s", socket)
	return 0
}

// bareUnit is a unit with a hypervisor's command line and nothing else.
type bareUnit struct{ unit, socket string }

// newBareUnit takes the command line from a machine. What it gets as open
// descriptors from vmctl has to be paths in the bare unit.
func newBareUnit(b *testing.B, name string) bareUnit {
	var rendered struct{ Argv []string }
	if err := json.Unmarshal([]byte(run(b, "vmctl", "render", "-o", "json", name)), &rendered); err != nil {
		b.Fatal(err)
	}
	u := bareUnit{unit: "bare.service", socket: "/run/bare/qmp.sock"}
	descriptor := regexp.MustCompile(`id=(\w+),fd=\d+(,server=on,wait=off)?`)
	var line bytes.Buffer
	for _, arg := range rendered.Argv {
		arg = descriptor.ReplaceAllString(arg, "id=$1,path=/run/bare/$1.sock,server=on,wait=off")
		line.WriteString(" " + strconv.Quote(strings.ReplaceAll(arg, "%", "%%")))
	}
	file := "/etc/systemd/system/" + u.unit
	writeFile(b, file, "[Service]\nType=exec\nRuntimeDirectory=bare\nExecStart="+strings.TrimSpace(line.String())+"\n")
	b.Cleanup(func() {
		try("systemctl", "stop", u.unit)
		os.Remove(file)
		try("systemctl", "daemon-reload")
	})
	return u
}

// BenchmarkCrash kills the hypervisor and waits until it is executed again;
// restart_delay is taken off.
func BenchmarkCrash(b *testing.B) {
	const delay = 100 * time.Millisecond
	v := newVMFrom(b, "bench", benchMachine)
	var s samples
	for b.Loop() {
		// A start by hand resets what systemd makes of repeated crashes.
		run(b, "vmctl", "start", v.name)
		pid := v.mainPID()
		group := "/sys/fs/cgroup" + v.property("ControlGroup") + "/cgroup.procs"
		begun := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			b.Fatal(err)
		}
		for !runsAgain(group, pid) {
			if time.Since(begun) > patience {
				b.Fatal("it is not executed again")
			}
			time.Sleep(time.Millisecond)
		}
		s.add(time.Since(begun) - delay)
		v.waitState("active")
		run(b, "vmctl", "kill", v.name)
	}
	only(b, s.median(), "ms")
}

// runsAgain says whether a control group has a hypervisor other than that of
// before.
func runsAgain(group string, before int) bool {
	pids, _ := os.ReadFile(group)
	for _, pid := range strings.Fields(string(pids)) {
		exe, _ := os.Readlink("/proc/" + pid + "/exe")
		if pid != strconv.Itoa(before) && strings.HasPrefix(filepath.Base(exe), "qemu-system-") {
			return true
		}
	}
	return false
}

// BenchmarkMonitor is the memory that the monitor of a machine has for itself,
// once a guest has written to its console and somebody has looked at it. Two
// machines run, so that the program itself is shared as it is on real hosts.
func BenchmarkMonitor(b *testing.B) {
	v := newVM(b, "bench", "")
	other := newVM(b, "bench-too", "")
	v.boot()
	other.boot()
	pid := strings.TrimSpace(run(b, "cat", config.SystemPaths("").MonitorPID(v.name)))
	// A program that is not on the disk yet counts as written memory.
	syscall.Sync()
	private := map[string]float64{}
	for b.Loop() {
		rollup, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(rollup)) {
			var name string
			var kib float64
			if n, _ := fmt.Sscanf(line, "%s %f kB", &name, &kib); n == 2 {
				private[name] = kib / 1024
			}
		}
	}
	only(b, private["Private_Dirty:"]+private["Private_Clean:"], "private-MB")
}

// BenchmarkResident counts the processes of vmctl while no machine runs.
func BenchmarkResident(b *testing.B) {
	n := 0
	for b.Loop() {
		n = 0
		exes, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, link := range exes {
			if exe, _ := os.Readlink(link); strings.HasPrefix(filepath.Base(exe), "vmctl") {
				n++
			}
		}
	}
	only(b, float64(n), "processes")
}

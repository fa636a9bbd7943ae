//go:build e2e

package e2e

import (
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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
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
// boot: what is measured is not what a guest does. %q stands for restart_delay.
const benchMachine = `memory = "256M"
[lifecycle]
restart_delay = %q
[unit]
StartLimitIntervalSec = 0
`

// BenchmarkStart compares, in turns, four ways to a hypervisor whose QMP
// answers: vmctl start, systemctl start of the same unit, and systemctl start of
// the same command line alone, in the same sandbox and in none. What comes after
// that, until the command returns, is in the metrics that end in "-done".
func BenchmarkStart(b *testing.B) {
	v := newVMFrom(b, "bench", fmt.Sprintf(benchMachine, "2s"))
	run(b, "systemctl", "daemon-reload")
	newBareUnit(b, v, "bare", false)
	newBareUnit(b, v, "boxed", true)
	run(b, "systemctl", "daemon-reload")
	ways := []struct {
		name, socket string
		start, end   []string
	}{
		{"vmctl", v.runtimeDir() + "/qmp.sock", []string{"vmctl", "start", v.name}, []string{"vmctl", "kill", v.name}},
		{"systemctl", v.runtimeDir() + "/qmp.sock", []string{"systemctl", "start", v.unit()}, []string{"vmctl", "kill", v.name}},
		{"boxed", "/run/boxed/qmp.sock", []string{"systemctl", "start", "boxed"}, []string{"systemctl", "stop", "boxed"}},
		{"bare", "/run/bare/qmp.sock", []string{"systemctl", "start", "bare"}, []string{"systemctl", "stop", "bare"}},
	}
	answered, done := make([]samples, len(ways)), make([]samples, len(ways))
	for b.Loop() {
		for i, w := range ways {
			returned := make(chan result)
			begun := time.Now()
			go func() { returned <- try(w.start...) }()
			answers(b, w.socket)
			answered[i].add(time.Since(begun))
			if r := <-returned; r.code != 0 {
				b.Fatalf("%v: %s", w.start, r.all())
			}
			done[i].add(time.Since(begun))
			run(b, w.end...)
		}
	}
	for i, w := range ways {
		only(b, answered[i].median(), w.name+"-ms")
		b.ReportMetric(done[i].median(), w.name+"-done-ms")
	}
}

// answers waits until QMP answers on a socket.
func answers(b *testing.B, socket string) {
	b.Helper()
	for begun := time.Now(); time.Since(begun) < patience; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			continue
		}
		var greeting struct{ QMP *json.RawMessage }
		// What listens may not be the hypervisor yet, and never be it.
		conn.SetDeadline(time.Now().Add(patience))
		err = json.NewDecoder(conn).Decode(&greeting)
		conn.Close()
		if err == nil && greeting.QMP != nil {
			return
		}
	}
	b.Fatalf("no answer on %s", socket)
}

// BenchmarkRun makes a machine from a stored image, which is a new disk on it,
// and waits until its QMP answers; "-done" is when the command returns.
func BenchmarkRun(b *testing.B) {
	importImage(b, "bench-image", "golden")
	v := &vm{t: b, name: "bench-run"}
	var answered, done samples
	for b.Loop() {
		returned := make(chan result)
		begun := time.Now()
		go func() {
			returned <- try("vmctl", "run", "--rm", "-d", "--name", v.name, "--memory", "256M", "bench-image")
		}()
		answers(b, v.runtimeDir()+"/qmp.sock")
		answered.add(time.Since(begun))
		if r := <-returned; r.code != 0 {
			b.Fatal(r.all())
		}
		done.add(time.Since(begun))
		run(b, "vmctl", "kill", v.name)
		v.isGone()
	}
	only(b, answered.median(), "ms")
	b.ReportMetric(done.median(), "done-ms")
}

// newBareUnit makes a unit of a machine's command line and, where it is boxed,
// what its unit has of settings, but for what vmctl does before and after. The
// descriptors that the hypervisor gets from vmctl have to be paths there.
func newBareUnit(b *testing.B, v *vm, name string, boxed bool) {
	var rendered struct{ Argv []string }
	if err := json.Unmarshal([]byte(run(b, "vmctl", "render", "-o", "json", v.name)), &rendered); err != nil {
		b.Fatal(err)
	}
	descriptor := regexp.MustCompile(`id=(\w+),fd=\d+(,server=on,wait=off)?`)
	var text strings.Builder
	text.WriteString("[Service]\n")
	if boxed {
		for line := range strings.Lines(run(b, "systemctl", "cat", v.unit())) {
			if regexp.MustCompile(`^(Dynamic|Private|Protect|Restrict|NoNew|Capab|Ambient|UMask|Keyring|RemoveIPC|Temporary|NoExec|ExecPaths|Device|IPAddress|ProcSub|Lock|MemoryDeny|SystemCall|Slice|Bind)\w*=`).MatchString(line) {
				text.WriteString(strings.ReplaceAll(line, "%i", v.name))
			}
		}
	}
	text.WriteString("Type=exec\nRuntimeDirectory=" + name + "\nExecStart=")
	for _, arg := range rendered.Argv {
		arg = descriptor.ReplaceAllString(arg, "id=$1,path=/run/"+name+"/$1.sock,server=on,wait=off")
		text.WriteString(strconv.Quote(strings.ReplaceAll(arg, "%", "%%")) + " ")
	}
	file := "/etc/systemd/system/" + name + ".service"
	writeFile(b, file, text.String()+"\n")
	b.Cleanup(func() {
		try("systemctl", "stop", name)
		os.Remove(file)
		try("systemctl", "daemon-reload")
	})
}

// BenchmarkCrash kills the hypervisor and waits until it is executed again;
// restart_delay is taken off. A delay other than 0 is a timer of systemd's, which
// lets those be late by up to 250 ms to wake the CPU seldom.
func BenchmarkCrash(b *testing.B) {
	for _, delay := range []time.Duration{0, 100 * time.Millisecond} {
		b.Run(delay.String(), func(b *testing.B) { crash(b, delay) })
	}
}

func crash(b *testing.B, delay time.Duration) {
	v := newVMFrom(b, "bench", fmt.Sprintf(benchMachine, fmt.Sprintf("%dms", delay.Milliseconds())))
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

// BenchmarkAPI is what a call takes that systemd starts the service for, and ListVms
// with 1,000 definitions, by one caller and by eight at once.
func BenchmarkAPI(b *testing.B) {
	b.Run("first-answer", func(b *testing.B) {
		var s samples
		for b.Loop() {
			run(b, "systemctl", "stop", "vmctl-api.service")
			// A socket that starts its service 20 times within 2 s is closed (systemd.socket(5)).
			time.Sleep(100 * time.Millisecond)
			begun := time.Now()
			if _, err := mvirt.NewVmServiceClient(dialAPI(b, apiSocket)).GetVersion(b.Context(), &mvirt.GetVersionRequest{}); err != nil {
				b.Fatal(err)
			}
			s.add(time.Since(begun))
		}
		only(b, s.median(), "ms")
	})
	b.Run("list", func(b *testing.B) {
		define(b, 1000, vmDir, "bench-%d.toml", usualMachine)
		for _, callers := range []int{1, 8} {
			b.Run(fmt.Sprint(callers), func(b *testing.B) { listVMs(b, callers) })
		}
	})
}

// listVMs has as many callers at once call ListVms.
func listVMs(b *testing.B, callers int) {
	var mu sync.Mutex
	var s samples
	for b.Loop() {
		var wg sync.WaitGroup
		for range callers {
			api := mvirt.NewVmServiceClient(dialAPI(b, apiSocket))
			wg.Go(func() {
				begun := time.Now()
				if list, err := api.ListVms(b.Context(), &mvirt.ListVmsRequest{}); err != nil || len(list.Vms) < 1000 {
					b.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				s.add(time.Since(begun))
			})
		}
		wg.Wait()
	}
	only(b, s.median(), "ms")
}

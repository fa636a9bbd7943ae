package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/netsetup"
)

var (
	metadataLine = regexp.MustCompile(`^# (TYPE|UNIT|HELP) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$`)
	sampleLine   = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$`)
	labelPair    = regexp.MustCompile(`^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)`)
)

// checkOpenMetrics holds text to the rules of OpenMetrics 1.0 for counters and
// gauges, and returns the samples: value by name and labels.
func checkOpenMetrics(t testing.TB, text string) map[string]float64 {
	t.Helper()
	body, ok := strings.CutSuffix(text, "# EOF\n")
	if !ok || strings.Contains(body, "# EOF") {
		t.Errorf("does not end with one # EOF: %q", text[max(0, len(text)-100):])
	}
	samples := map[string]float64{}
	seen := map[string]bool{}
	var name string
	var about map[string]string
	inSamples := false
	for line := range strings.Lines(body) {
		line, whole := strings.CutSuffix(line, "\n")
		if !whole || strings.Contains(line, "\r") {
			t.Errorf("line without its end: %q", line)
		}
		if m := metadataLine.FindStringSubmatch(line); m != nil {
			if m[2] != name {
				if seen[m[2]] {
					t.Errorf("%s is in two places", m[2])
				}
				name, about, inSamples = m[2], map[string]string{}, false
				seen[name] = true
			}
			if _, twice := about[m[1]]; twice || inSamples {
				t.Errorf("misplaced: %s", line)
			}
			about[m[1]] = m[3]
			switch {
			case m[1] == "TYPE" && m[3] != "counter" && m[3] != "gauge":
				t.Errorf("unknown type: %s", line)
			case m[1] == "UNIT" && !strings.HasSuffix(name, "_"+m[3]):
				t.Errorf("%s does not end with its unit %s", name, m[3])
			case m[1] == "HELP" && regexp.MustCompile(`\\([^n\\"]|$)`).MatchString(m[3]):
				t.Errorf("bad escape: %s", line)
			case m[1] == "TYPE" && m[3] == "counter" && strings.HasSuffix(name, "_total"):
				t.Errorf("the family of a counter is called %s", name)
			}
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("not a sample: %q", line)
			continue
		}
		inSamples = true
		if want := map[string]string{"counter": name + "_total", "gauge": name}[about["TYPE"]]; m[1] != want {
			t.Errorf("a sample of %s is called %s, want %q", name, m[1], want)
		}
		labels := map[string]bool{}
		for rest := m[2]; rest != ""; {
			p := labelPair.FindStringSubmatch(rest)
			if p == nil || labels[p[1]] || p[3] == "," && len(p[0]) == len(rest) {
				t.Errorf("bad labels: %q", line)
				break
			}
			labels[p[1]] = true
			rest = rest[len(p[0]):]
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil || about["TYPE"] == "counter" && !(value >= 0) {
			t.Errorf("bad value: %q", line)
		}
		key := m[1] + "{" + m[2] + "}"
		if _, twice := samples[key]; twice {
			t.Errorf("twice: %s", key)
		}
		samples[key] = value
	}
	return samples
}

// machinesMeasured are one that runs, one that does not answer, one stopped.
func machinesMeasured() []measured {
	started := time.Date(2026, 1, 1, 12, 0, 0, 500e6, time.UTC)
	machine := &config.Machine{Name: "web", CPUs: 2, Memory: 1 << 30, Hypervisor: "qemu", MachineType: "q35"}
	l := look{vm: config.VM{Name: "web"}, state: running, record: &hypervisor.Record{Machine: machine}}
	l.unit.Name, l.unit.Active = "vm@web.service", "active"
	web := measured{
		look: l, at: started.Add(time.Minute), started: started, cpuSeconds: new(1.25), memory: new(uint64(3 << 30)), pid: 1 << 30, answered: true,
		usage: usage{Restarts: 3, IOReadBytes: new(uint64(7))},
		disks: map[string]hypervisor.DiskTraffic{"root": {ReadBytes: 1, WriteBytes: 2, Reads: 3, Writes: 4}, "data": {}},
		nics:  []shownNIC{{Name: "lan", Traffic: &netsetup.Traffic{RxBytes: 10, TxBytes: 20, RxDropped: 1}}, {Name: "user"}},
		guest: &hypervisor.GuestMemory{Actual: 1 << 29, Free: new(uint64(5))},
	}
	hung := measured{look: l, at: started, started: started, pid: 1 << 30}
	hung.look.vm.Name = "hung"
	off := measured{look: look{vm: config.VM{Name: "off"}, state: stopped}}
	return []measured{web, hung, off}
}

func TestMetricFamilies(t *testing.T) {
	all := machinesMeasured()
	a := newApp()
	a.root = t.TempDir()
	var families []family
	for _, some := range [][]family{stateFamilies(all), cpuFamilies(all), a.memoryFamilies(all), diskFamilies(all), networkFamilies(all), newApp().nodeFamilies()} {
		families = append(families, some...)
	}
	samples := checkOpenMetrics(t, string(openMetrics(families)))
	for sample, want := range map[string]float64{
		`vmctl_vms{state="running"}`:                                                    2,
		`vmctl_vms{state="failed"}`:                                                     0,
		`vmctl_vm_up{vm="web"}`:                                                         1,
		`vmctl_vm_up{vm="off"}`:                                                         0,
		`vmctl_vm_state{vm="off",state="stopped"}`:                                      1,
		`vmctl_vm_state{vm="off",state="running"}`:                                      0,
		`vmctl_vm_answers{vm="web"}`:                                                    1,
		`vmctl_vm_answers{vm="hung"}`:                                                   0,
		`vmctl_vm_start_time_seconds{vm="web"}`:                                         1767268800.5,
		`vmctl_vm_uptime_seconds{vm="web"}`:                                             60,
		`vmctl_vm_restarts_total{vm="web"}`:                                             3,
		`vmctl_vm_cpus{vm="web"}`:                                                       2,
		`vmctl_vm_cpu_seconds_total{vm="web"}`:                                          1.25,
		`vmctl_vm_memory_balloon_max_bytes{vm="web"}`:                                   1 << 30,
		`vmctl_vm_memory_balloon_actual_bytes{vm="web"}`:                                1 << 29,
		`vmctl_vm_memory_cgroup_bytes{vm="web"}`:                                        3 << 30,
		`vmctl_vm_memory_guest_free_bytes{vm="web"}`:                                    5,
		`vmctl_vm_disk_read_bytes_total{vm="web",disk="root"}`:                          1,
		`vmctl_vm_disk_write_ops_total{vm="web",disk="root"}`:                           4,
		`vmctl_vm_disk_write_ops_total{vm="web",disk="data"}`:                           0,
		`vmctl_vm_io_read_bytes_total{vm="web"}`:                                        7,
		`vmctl_vm_net_rx_bytes_total{vm="web",nic="lan"}`:                               10,
		`vmctl_vm_net_rx_drops_total{vm="web",nic="lan"}`:                               1,
		`vmctl_vm_info{vm="web",hypervisor="qemu",machine="q35",unit="vm@web.service"}`: 1,
	} {
		if got, there := samples[sample]; !there || got != want {
			t.Errorf("%s is %v (%v), want %v", sample, got, there, want)
		}
	}
	for sample := range samples {
		for _, unknown := range []string{`nic="user"`, `vm_memory_rss_bytes{`, `guest_total`, `vmctl_vm_cpus{vm="off"`, `disk_read_bytes_total{vm="hung"`} {
			if strings.Contains(sample, unknown) {
				t.Errorf("what nobody knows is known: %s", sample)
			}
		}
	}
	if samples[`vmctl_node_memory_total_bytes{}`] == 0 || samples[`vmctl_node_cpus{}`] == 0 {
		t.Error("nothing is known of this host")
	}
	older := string(prometheusText(families))
	for _, want := range []string{
		"# HELP vmctl_vm_cpu_seconds_total CPU time of the host that the VM's processes have used since its start.\n# TYPE vmctl_vm_cpu_seconds_total counter\nvmctl_vm_cpu_seconds_total{vm=\"web\"} 1.25\n",
		"# TYPE vmctl_vm_cpus gauge\n",
	} {
		if !strings.Contains(older, want) {
			t.Errorf("no %q in:\n%s", want, older)
		}
	}
	if strings.Contains(older, "UNIT") || strings.Contains(older, "EOF") {
		t.Error("OpenMetrics in the older format")
	}
}

func TestOpenMetricsEscapes(t *testing.T) {
	f := newFamily(gaugeType, "vmctl_x_bytes", "Help.")
	f.add(1e300, "path", "a\\b\"c\nd\xff", "other", "ü{},=")
	f.add(1<<60, "path", "second", "other", "")
	samples := checkOpenMetrics(t, string(openMetrics([]family{*f})))
	for key, want := range map[string]float64{`vmctl_x_bytes{path="a\\b\"c\nd` + "\uFFFD" + `",other="ü{},="}`: 1e300, `vmctl_x_bytes{path="second",other=""}`: 1 << 60} {
		if samples[key] != want {
			t.Errorf("%s is %v, want %v, in %v", key, samples[key], want, samples)
		}
	}
}

func TestMetricsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "vmctl.prom")
	f := newFamily(counterType, "vmctl_x", "Help.")
	f.add(1)
	for range 2 {
		if err := writeMetricsFile(file, []family{*f}); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "# HELP vmctl_x_total Help.\n# TYPE vmctl_x_total counter\nvmctl_x_total 1\n" {
		t.Errorf("%v: %s", err, b)
	}
	if left, _ := filepath.Glob(filepath.Dir(file) + "/*"); len(left) != 1 {
		t.Errorf("beside it there is %q", left)
	}
	err := writeMetricsFile(filepath.Dir(file)+"/no/such", nil)
	if err == nil || !strings.Contains(err.Error(), "want a file in a directory that exists") {
		t.Error(err)
	}
}

// exporterAt serves metrics at an address, until nobody is connected for idle.
func exporterAt(t *testing.T, idle time.Duration, collect func(context.Context) ([]family, error)) (url string, ended <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	e := &exporter{collect: collect, warn: func(string, ...any) {}}
	go func() { done <- e.serve(t.Context(), l, idle) }()
	return "http://" + l.Addr().String(), done
}

func TestExporter(t *testing.T) {
	calls := 0
	var broken error
	url, ended := exporterAt(t, 500*time.Millisecond, func(context.Context) ([]family, error) {
		calls++
		f := newFamily(counterType, "vmctl_x_seconds", "Help.")
		f.add(1)
		return []family{*f}, broken
	})
	get := func(method, path, accept string) (int, string, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", accept)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, answer.Header.Get("Content-Type"), string(body)
	}
	broken = errors.New("systemd does not answer")
	if status, _, body := get("GET", "/metrics", ""); status != 503 || !strings.Contains(body, "systemd does not answer") {
		t.Errorf("%d %s", status, body)
	}
	broken = nil
	status, kind, body := get("GET", "/metrics", "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5")
	if status != 200 || !strings.HasPrefix(kind, "application/openmetrics-text; version=1.0.0") {
		t.Errorf("%d %s", status, kind)
	}
	checkOpenMetrics(t, body)
	status, kind, body = get("GET", "/metrics", "*/*")
	if status != 200 || !strings.HasPrefix(kind, "text/plain; version=0.0.4") || strings.Contains(body, "EOF") {
		t.Errorf("%d %s %s", status, kind, body)
	}
	if status, _, _ := get("POST", "/metrics", ""); status != 405 {
		t.Errorf("POST: %d", status)
	}
	if status, _, body := get("GET", "/", ""); status != 404 || !strings.Contains(body, "/metrics") {
		t.Errorf("/: %d %s", status, body)
	}
	// Not each that asks at the same time has all found again.
	if calls > 3 {
		t.Errorf("collected %d times", calls)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A client that announces a body, and then neither sends it nor leaves, does not
// keep the process.
func TestExporterIsNotKept(t *testing.T) {
	t.Parallel()
	url, ended := exporterAt(t, 500*time.Millisecond, func(context.Context) ([]family, error) { return nil, nil })
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestServeMetricsWantsSocket(t *testing.T) {
	a := newApp()
	err := a.serveMetrics(t.Context(), time.Second)
	if exitStatus(err) != exitUsage || !strings.Contains(err.Error(), "want one stream socket from systemd, got 0") {
		t.Error(err)
	}
}

// BenchmarkMetrics is all of vmctl metrics for 1,000 machines that run, but what
// systemd and the hypervisors take to answer.
func BenchmarkMetrics(b *testing.B) {
	a := newApp()
	web := machinesMeasured()[0]
	var all []measured
	for i := range 1000 {
		m := web
		m.look.vm.Name = fmt.Sprintf("vm%04d", i)
		all = append(all, m)
	}
	for b.Loop() {
		families := append(stateFamilies(all), cpuFamilies(all)...)
		families = append(families, a.memoryFamilies(all)...)
		families = append(families, diskFamilies(all)...)
		families = append(families, networkFamilies(all)...)
		openMetrics(append(families, a.nodeFamilies()...))
	}
}

//go:build e2e

package e2e

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// metric is a number that vmctl metrics tells; -1 where it does not.
func metric(t testing.TB, text, sample string) float64 {
	t.Helper()
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(sample) + ` (\S+)$`).FindStringSubmatch(text)
	if found == nil {
		return -1
	}
	v, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// metrics: what monitoring is told of two machines of which the first has a card on
// a network, by hand, over HTTP and as a file.
func metrics(t testing.TB, one, two *vm) {
	t.Helper()
	of := func(v *vm, name string) string { return name + `{vm="` + v.name + `"}` }
	known := func(text string) {
		t.Helper()
		for _, sample := range []string{
			of(one, "vmctl_vm_up"), of(one, "vmctl_vm_answers"), of(two, "vmctl_vm_up"), `vmctl_vm_state{vm="` + one.name + `",state="running"}`,
			of(one, "vmctl_vm_cpu_seconds_total"), of(one, "vmctl_vm_uptime_seconds"), of(one, "vmctl_vm_memory_rss_bytes"),
			of(one, "vmctl_vm_memory_balloon_actual_bytes"), `vmctl_vm_net_rx_bytes_total{vm="` + one.name + `",nic="lan"}`,
			"vmctl_node_memory_free_bytes", `vmctl_vms{state="running"}`,
		} {
			if metric(t, text, sample) <= 0 {
				t.Errorf("%s is %v, in:\n%s", sample, metric(t, text, sample), text)
			}
		}
		if got := metric(t, text, of(one, "vmctl_vm_restarts_total")); got < 0 {
			t.Errorf("restarts are not told: %v", got)
		}
	}
	text := run(t, "vmctl", "metrics")
	known(text)
	if !strings.HasSuffix(text, "\n# EOF") {
		t.Errorf("does not end as it should: %q", text[max(0, len(text)-80):])
	}
	// The guest has a driver for its balloon, and has been asked now.
	eventually(t, "the guest tells of its memory", func() bool {
		return metric(t, run(t, "vmctl", "metrics"), of(one, "vmctl_vm_memory_guest_total_bytes")) > 64<<20
	})

	// Nothing runs until somebody asks, nor when nobody does any more.
	writeFile(t, "/run/systemd/system/vmctl-metrics-exporter.service.d/idle.conf", "[Service]\nExecStart=\nExecStart=vmctl metrics --serve --idle 2s\n")
	t.Cleanup(func() { os.RemoveAll("/run/systemd/system/vmctl-metrics-exporter.service.d") })
	run(t, "systemctl", "start", "vmctl-metrics.socket")
	t.Cleanup(func() { try("systemctl", "stop", "vmctl-metrics.socket", "vmctl-metrics-exporter.service") })
	scrape := func() string {
		t.Helper()
		answer, err := http.Get("http://127.0.0.1:9768/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != 200 {
			t.Fatalf("%d %v: %s", answer.StatusCode, err, body)
		}
		return string(body)
	}
	known(scrape())

	// One that hangs is told as such, and costs the others nothing.
	pid := two.mainPID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	eventually(t, "the second machine does not answer", func() bool { return metric(t, scrape(), of(two, "vmctl_vm_answers")) == 0 })
	known(scrape())
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it ends when nobody asks", func() bool {
		return run(t, "systemctl", "show", "-P", "ActiveState", "vmctl-metrics-exporter.service") == "inactive"
	})
	known(scrape())

	// For the textfile collector.
	const dir = "/var/lib/prometheus/node-exporter"
	if r := try("systemctl", "start", "vmctl-metrics.service"); r.code == 0 {
		t.Error("metrics went into a directory that is not there")
	}
	contains(t, run(t, "journalctl", "-u", "vmctl-metrics.service", "-o", "cat", "--no-pager"), "want a file in a directory that exists, "+dir+" does not")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll("/var/lib/prometheus") })
	run(t, "systemctl", "start", "vmctl-metrics.timer")
	t.Cleanup(func() { try("systemctl", "stop", "vmctl-metrics.timer", "vmctl-metrics.service") })
	eventually(t, "the timer has metrics written", func() bool { return try("test", "-s", dir+"/vmctl.prom").code == 0 })
	content, err := os.ReadFile(dir + "/vmctl.prom")
	if err != nil {
		t.Fatal(err)
	}
	known(string(content))
	if got := run(t, "stat", "-c", "%a", dir+"/vmctl.prom"); got != "644" {
		t.Errorf("the file has mode %s, want 644", got)
	}

	for _, unit := range []string{"vmctl-metrics.service", "vmctl-metrics-exporter.service"} {
		if level := exposureOf(t, unit); level > 2.0 {
			t.Errorf("%s: exposure %v, want at most 2.0", unit, level)
		}
	}
	if state := run(t, "systemctl", "list-unit-files", "--no-legend", "vmctl-metrics.*"); strings.Contains(strings.ReplaceAll(state, "disabled enabled", ""), " enabled") {
		t.Errorf("on without having been asked for: %s", state)
	}
}

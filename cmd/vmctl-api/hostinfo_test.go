package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
)

// hostFiles makes the files of a host, "" for a directory.
func hostFiles(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		if text == "" {
			dir = path
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if text == "" {
			continue
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func wantMessage(t *testing.T, what string, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("%s:\n%v, want\n%v", what, got, want)
	}
}

func TestHostInfo(t *testing.T) {
	root := t.TempDir()
	cpu := func(id, socket, core string) string {
		return "processor\t: " + id + "\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\ncpu MHz\t\t: 2100.517\nphysical id\t: " + socket + "\ncore id\t\t: " + core + "\nflags\t\t: fpu vmx\n\n"
	}
	hostFiles(t, root, map[string]string{
		"proc/loadavg":              "0.50 1.25 2.00 1/234 5678",
		"proc/uptime":               "4242.17 8000.00",
		"proc/sys/kernel/hostname":  "host1",
		"proc/sys/kernel/osrelease": "6.12.0",
		// Two sockets of one core with two threads, and of one.
		"proc/cpuinfo": cpu("0", "0", "0") + cpu("1", "0", "0") + cpu("2", "1", "0"),
		"proc/stat":    "cpu  0 0 0 0\ncpu0 100 0 100 800 0 0 0 0\ncpu1 0 0 0 1000 0 0 0 0\ncpu2 0 0 0 1000 0 0 0 0",
		"proc/meminfo": "MemTotal:        4096 kB\nMemAvailable:    2048 kB\nCached:          512 kB\nSwapTotal:       1000 kB\nSwapFree:         400 kB\n" +
			"HugePages_Total:       8\nHugePages_Free:        3\nHugepagesize:       2048 kB",
		"sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "3000000",
		"sys/devices/system/cpu/cpu2/node1":                    "",
		"sys/devices/system/node/node0/meminfo":                "Node 0 MemTotal:       3072 kB\nNode 0 MemFree:        1024 kB",
		"sys/devices/system/node/node0/cpu0":                   "",
		"sys/devices/system/node/node0/cpu1":                   "",
		"sys/devices/system/node/node1/meminfo":                "Node 1 MemTotal:       1024 kB\nNode 1 MemFree:        512 kB",
		"sys/devices/system/node/node1/cpu2":                   "",
		"sys/block/sda/size":                                   "2048",
		"sys/block/sda/device/model":                           "Disk 9000  ",
		"sys/block/sda/device/serial":                          "S1",
		"sys/block/sr0/size":                                   "0",
		"sys/block/sr0/device/model":                           "an empty drive",
		"sys/block/loop0/size":                                 "8",
		"sys/block/nvme0n1/size":                               "4096",
		"sys/block/nvme0n1/device/hwmon3/temp1_input":          "41850",
	})
	h := newHostInfo(root)
	info := h.info()
	if info.TotalCpus != 3 || info.TotalMemoryMb != 4 || info.Load_1 != 0.5 || info.Load_5 != 1.25 || info.Load_15 != 2 {
		t.Errorf("%v", info)
	}
	wantMessage(t, "host", info.Host, &mvirt.HostInfo{Hostname: "host1", KernelVersion: "6.12.0", UptimeSeconds: 4242})
	wantMessage(t, "CPUs", info.Cpu, &mvirt.CpuInfo{
		Model: "Xeon", Vendor: "GenuineIntel", PhysicalCores: 2, LogicalCores: 3, Sockets: 2, Flags: []string{"fpu", "vmx"},
		Cores: []*mvirt.CpuCore{{Id: 0, FrequencyMhz: 2100, UsagePercent: 20}, {Id: 1, FrequencyMhz: 3000}, {Id: 2, FrequencyMhz: 2100, NumaNode: 1}},
	})
	wantMessage(t, "memory", info.Memory, &mvirt.MemoryInfo{
		TotalBytes: 4 << 20, AvailableBytes: 2 << 20, CachedBytes: 512 << 10, SwapTotalBytes: 1000 << 10, SwapUsedBytes: 600 << 10,
		HugepagesTotal: 8, HugepagesFree: 3, HugepageSizeKb: 2048,
	})
	if len(info.NumaNodes) != 2 {
		t.Fatalf("nodes %v", info.NumaNodes)
	}
	wantMessage(t, "node 0", info.NumaNodes[0], &mvirt.NumaNode{Id: 0, TotalMemoryBytes: 3 << 20, FreeMemoryBytes: 1 << 20, CpuIds: []uint32{0, 1}})
	wantMessage(t, "node 1", info.NumaNodes[1], &mvirt.NumaNode{Id: 1, TotalMemoryBytes: 1 << 20, FreeMemoryBytes: 512 << 10, CpuIds: []uint32{2}})
	if len(info.Disks) != 2 {
		t.Fatalf("disks %v", info.Disks)
	}
	wantMessage(t, "a disk with a temperature", info.Disks[0], &mvirt.DiskInfo{Device: "/dev/nvme0n1", SizeBytes: 2 << 20, TemperatureCelsius: new(int32(41))})
	wantMessage(t, "a disk", info.Disks[1], &mvirt.DiskInfo{Device: "/dev/sda", Model: "Disk 9000", Serial: "S1", SizeBytes: 1 << 20})

	// Use is what a CPU did since the host was started, and then between two looks that are not too near one another; what
	// does not change is not read again.
	hostFiles(t, root, map[string]string{
		"proc/stat":    "cpu0 175 0 100 825 0 0 0 0\ncpu1 0 0 0 1050 50 0 0 0\ncpu2 50 0 50 1000 0 0 0 0",
		"proc/cpuinfo": cpu("0", "0", "0"),
	})
	use := func() (out []float32) {
		for _, c := range h.info().Cpu.Cores {
			out = append(out, c.UsagePercent)
		}
		return out
	}
	h.used = time.Now()
	if got := use(); len(got) != 3 || got[0] != 20 {
		t.Errorf("at once: %v", got)
	}
	h.used = time.Time{}
	if got := use(); len(got) != 3 || got[0] != 75 || got[1] != 0 || got[2] != 100 {
		t.Errorf("after a time: %v", got)
	}
	os.RemoveAll(root + "/sys/block/sda")
	if n := len(h.info().Disks); n != 2 {
		t.Errorf("%d disks, looked for again at once", n)
	}
	h.looks = time.Time{}
	if n := len(h.info().Disks); n != 1 {
		t.Errorf("%d disks after a time, want 1", n)
	}
}

// Of a host that says nothing, nothing is told, and all the rest.
func TestHostInfoOfNothing(t *testing.T) {
	info := newHostInfo(t.TempDir()).info()
	if info.TotalCpus != 0 || info.Memory.TotalBytes != 0 || len(info.Disks) != 0 || strings.Contains(info.Host.Hostname, "/") {
		t.Errorf("%v", info)
	}
}

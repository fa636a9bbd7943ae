package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmctl/vmctl/cmd/vmctl-api/proto/mvirt"
)

// hostInfo finds facts about a host in its /proc and /sys. mvirt's pages ask for
// them every other second: what does not change, and the use of CPUs, which is
// between two looks, are kept.
type hostInfo struct {
	root string

	mu    sync.Mutex
	cpu   *mvirt.CpuInfo
	disks []*mvirt.DiskInfo
	looks time.Time           // when disks were looked for
	ticks map[string]cpuTicks // by CPU, when use was last told
	use   map[string]float32  // percent
	used  time.Time
}

const (
	disksTime = time.Minute     // disks are looked for again
	useTime   = 2 * time.Second // over which the use of CPUs is taken, at least
)

func newHostInfo(root string) *hostInfo { return &hostInfo{root: strings.TrimSuffix(root, "/")} }

func (s *mvirtService) GetSystemInfo(ctx context.Context, _ *mvirt.GetSystemInfoRequest) (*mvirt.SystemInfo, error) {
	all, err := s.rows(ctx)
	if err != nil {
		return nil, err
	}
	info := s.host.info()
	for _, r := range all {
		if stateOf(r.State) == mvirt.VmState_VM_STATE_RUNNING {
			info.AllocatedCpus += uint32(r.CPUs)
			info.AllocatedMemoryMb += uint64(r.MemoryBytes / mebibyte)
		}
	}
	return info, nil
}

func (h *hostInfo) info() *mvirt.SystemInfo {
	h.mu.Lock()
	defer h.mu.Unlock()
	info := &mvirt.SystemInfo{
		Host:      h.hostname(),
		Cpu:       h.cpuInfo(),
		Memory:    h.memory(),
		NumaNodes: h.nodes(),
		Disks:     h.diskInfo(),
		Nics:      h.nics(),
	}
	info.TotalCpus = info.Cpu.LogicalCores
	info.TotalMemoryMb = info.Memory.TotalBytes / mebibyte
	load := strings.Fields(h.read("/proc/loadavg"))
	for i, to := range []*float32{&info.Load_1, &info.Load_5, &info.Load_15} {
		if i < len(load) {
			n, _ := strconv.ParseFloat(load[i], 32)
			*to = float32(n)
		}
	}
	return info
}

// read is the content of a file, "" where it cannot be read.
func (h *hostInfo) read(path string) string {
	b, _ := os.ReadFile(h.root + path)
	return strings.TrimSpace(string(b))
}

func (h *hostInfo) number(path string) uint64 { return number(h.read(path)) }

func number(text string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	return n
}

func (h *hostInfo) hostname() *mvirt.HostInfo {
	uptime, _, _ := strings.Cut(h.read("/proc/uptime"), ".")
	return &mvirt.HostInfo{
		Hostname:      h.read("/proc/sys/kernel/hostname"),
		KernelVersion: h.read("/proc/sys/kernel/osrelease"),
		UptimeSeconds: number(uptime),
	}
}

// cpuInfo reads /proc/cpuinfo once, and what changes of it each time.
func (h *hostInfo) cpuInfo() *mvirt.CpuInfo {
	if h.cpu == nil {
		h.cpu = h.readCPUs()
	}
	h.measureUse()
	out := &mvirt.CpuInfo{
		Model: h.cpu.Model, Vendor: h.cpu.Vendor, Flags: h.cpu.Flags,
		PhysicalCores: h.cpu.PhysicalCores, LogicalCores: h.cpu.LogicalCores, Sockets: h.cpu.Sockets,
	}
	for _, c := range h.cpu.Cores {
		id := strconv.FormatUint(uint64(c.Id), 10)
		core := &mvirt.CpuCore{Id: c.Id, FrequencyMhz: c.FrequencyMhz, NumaNode: c.NumaNode, UsagePercent: h.use["cpu"+id]}
		if khz := h.number("/sys/devices/system/cpu/cpu" + id + "/cpufreq/scaling_cur_freq"); khz > 0 {
			core.FrequencyMhz = khz / 1000
		}
		out.Cores = append(out.Cores, core)
	}
	return out
}

func (h *hostInfo) readCPUs() *mvirt.CpuInfo {
	c := &mvirt.CpuInfo{}
	sockets, cores := map[string]bool{}, map[string]bool{}
	var core *mvirt.CpuCore
	socket := ""
	for line := range strings.Lines(h.read("/proc/cpuinfo")) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "processor":
			core = &mvirt.CpuCore{Id: uint32(number(value))}
			core.NumaNode = h.nodeOf(core.Id)
			c.Cores = append(c.Cores, core)
		case "model name":
			c.Model = value
		case "vendor_id":
			c.Vendor = value
		case "flags":
			if c.Flags == nil {
				c.Flags = strings.Fields(value)
			}
		case "cpu MHz":
			mhz, _ := strconv.ParseFloat(value, 64)
			if core != nil {
				core.FrequencyMhz = uint64(mhz)
			}
		case "physical id":
			socket = value
			sockets[socket] = true
		case "core id":
			cores[socket+":"+value] = true
		}
	}
	c.LogicalCores = uint32(len(c.Cores))
	c.Sockets, c.PhysicalCores = uint32(max(1, len(sockets))), uint32(len(cores))
	if len(cores) == 0 { // a kernel that does not say
		c.PhysicalCores = c.LogicalCores
	}
	return c
}

// nodeOf is the NUMA node of a CPU.
func (h *hostInfo) nodeOf(cpu uint32) uint32 {
	found, _ := filepath.Glob(h.root + "/sys/devices/system/cpu/cpu" + strconv.FormatUint(uint64(cpu), 10) + "/node*")
	if len(found) == 0 {
		return 0
	}
	return uint32(number(strings.TrimPrefix(filepath.Base(found[0]), "node")))
}

// cpuTicks is what a CPU has done so far (proc_stat(5)).
type cpuTicks struct{ busy, all uint64 }

// measureUse works out how busy CPUs were since they were last looked at.
func (h *hostInfo) measureUse() {
	if time.Since(h.used) < useTime {
		return
	}
	now := map[string]cpuTicks{}
	for line := range strings.Lines(h.read("/proc/stat")) {
		f := strings.Fields(line)
		if len(f) < 8 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		var t cpuTicks
		for i, text := range f[1:min(len(f), 9)] {
			n := number(text)
			t.all += n
			if i != 3 && i != 4 { // idle, iowait
				t.busy += n
			}
		}
		now[f[0]] = t
	}
	h.use = map[string]float32{}
	for cpu, t := range now {
		if before := h.ticks[cpu]; t.all > before.all && t.busy >= before.busy {
			h.use[cpu] = 100 * float32(t.busy-before.busy) / float32(t.all-before.all)
		}
	}
	h.ticks, h.used = now, time.Now()
}

// fields reads "Name:   12 kB" lines, in kB or as they are.
func (h *hostInfo) fields(path string) map[string]uint64 {
	out := map[string]uint64{}
	for line := range strings.Lines(h.read(path)) {
		key, value, _ := strings.Cut(line, ":")
		// Those of nodes begin with "Node 0 ".
		if f := strings.Fields(key); len(f) > 0 {
			key = f[len(f)-1]
		}
		out[key] = number(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
	}
	return out
}

func (h *hostInfo) memory() *mvirt.MemoryInfo {
	const kib = 1024
	f := h.fields("/proc/meminfo")
	return &mvirt.MemoryInfo{
		TotalBytes:     f["MemTotal"] * kib,
		AvailableBytes: f["MemAvailable"] * kib,
		CachedBytes:    f["Cached"] * kib,
		SwapTotalBytes: f["SwapTotal"] * kib,
		SwapUsedBytes:  (f["SwapTotal"] - f["SwapFree"]) * kib,
		HugepagesTotal: f["HugePages_Total"],
		HugepagesFree:  f["HugePages_Free"],
		HugepageSizeKb: f["Hugepagesize"],
	}
}

func (h *hostInfo) nodes() []*mvirt.NumaNode {
	const kib = 1024
	var out []*mvirt.NumaNode
	found, _ := filepath.Glob(h.root + "/sys/devices/system/node/node[0-9]*")
	for _, dir := range found {
		at := strings.TrimPrefix(dir, h.root)
		f := h.fields(at + "/meminfo")
		n := &mvirt.NumaNode{
			Id:               uint32(number(strings.TrimPrefix(filepath.Base(dir), "node"))),
			TotalMemoryBytes: f["MemTotal"] * kib, FreeMemoryBytes: f["MemFree"] * kib,
		}
		cpus, _ := filepath.Glob(dir + "/cpu[0-9]*")
		for _, cpu := range cpus {
			n.CpuIds = append(n.CpuIds, uint32(number(strings.TrimPrefix(filepath.Base(cpu), "cpu"))))
		}
		slices.Sort(n.CpuIds)
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b *mvirt.NumaNode) int { return int(a.Id) - int(b.Id) })
	return out
}

// diskInfo are the disks of the host: block devices that are a device's.
func (h *hostInfo) diskInfo() []*mvirt.DiskInfo {
	if time.Since(h.looks) < disksTime {
		return h.disks
	}
	h.disks, h.looks = nil, time.Now()
	found, _ := filepath.Glob(h.root + "/sys/block/*/device")
	for _, device := range found {
		at := strings.TrimPrefix(filepath.Dir(device), h.root)
		const sector = 512 // whatever the disk's own is
		d := &mvirt.DiskInfo{
			Device:    "/dev/" + filepath.Base(at),
			Model:     h.read(at + "/device/model"),
			Serial:    h.read(at + "/device/serial"),
			SizeBytes: h.number(at+"/size") * sector,
		}
		if d.SizeBytes == 0 { // an empty drive
			continue
		}
		temperatures, _ := filepath.Glob(h.root + at + "/device/hwmon*/temp1_input")
		inner, _ := filepath.Glob(h.root + at + "/device/hwmon/hwmon*/temp1_input")
		for _, file := range append(temperatures, inner...) {
			d.TemperatureCelsius = new(int32(h.number(strings.TrimPrefix(file, h.root)) / 1000))
		}
		h.disks = append(h.disks, d)
	}
	return h.disks
}

// nics are the network interfaces of the host, without those of machines' own.
func (h *hostInfo) nics() []*mvirt.NicInfo {
	all, _ := net.Interfaces()
	var out []*mvirt.NicInfo
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		at := "/sys/class/net/" + i.Name
		n := &mvirt.NicInfo{
			Name: i.Name, Mac: i.HardwareAddr.String(), IsUp: i.Flags&net.FlagUp != 0,
			Duplex:  h.read(at + "/duplex"),
			RxBytes: h.number(at + "/statistics/rx_bytes"), TxBytes: h.number(at + "/statistics/tx_bytes"),
		}
		// -1 where nothing is plugged in.
		if speed := h.number(at + "/speed"); speed > 0 {
			n.SpeedMbps = new(uint32(speed))
		}
		if driver, err := os.Readlink(h.root + at + "/device/driver"); err == nil {
			n.Driver = filepath.Base(driver)
		}
		addresses, _ := i.Addrs()
		for _, a := range addresses {
			ip, ok := a.(*net.IPNet)
			switch {
			case !ok:
			case ip.IP.To4() != nil:
				n.Ipv4 = append(n.Ipv4, ip.String())
			default:
				n.Ipv6 = append(n.Ipv6, ip.String())
			}
		}
		out = append(out, n)
	}
	return out
}

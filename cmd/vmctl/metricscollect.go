package main

import (
	"context"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// questioning is for how long hypervisors are asked, all of them together: who
// scrapes metrics waits ten seconds, where nothing else is said.
const questioning = 5 * time.Second

// collectMetrics finds all that there is to tell.
func (a *app) collectMetrics(ctx context.Context) ([]family, error) {
	began := time.Now()
	conn, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	asking, cancel := context.WithTimeout(ctx, questioning)
	defer cancel()
	looks, set, err := a.lookAll(asking, conn)
	if err != nil {
		return nil, err
	}
	all := a.measure(ctx, asking, conn, looks, askDisks, askMemory)
	families := slices.Concat(
		stateFamilies(all), cpuFamilies(all), a.memoryFamilies(all), diskFamilies(all), networkFamilies(all), a.nodeFamilies())
	problems := newFamily(gaugeType, "vmctl_definition_problems", "What is wrong with definitions, for which their VMs do not start.")
	problems.add(float64(len(set.Problems)))
	build := newFamily(gaugeType, "vmctl_build_info", "The version of vmctl; always 1.")
	build.add(1, "version", version)
	took := newFamily(gaugeType, "vmctl_collect_duration_seconds", "How long it took to find all this.")
	took.add(time.Since(began).Seconds())
	return append(families, *problems, *build, *took), nil
}

// stateFamilies are what machines do.
func stateFamilies(all []measured) []family {
	up := newFamily(gaugeType, "vmctl_vm_up", "Whether the VM's hypervisor runs.")
	in := newFamily(gaugeType, "vmctl_vm_state", "1 for the state that the VM is in, 0 for the others.")
	info := newFamily(gaugeType, "vmctl_vm_info", "What the VM is; always 1.")
	answers := newFamily(gaugeType, "vmctl_vm_answers", "Whether the hypervisor of a VM that runs answers.")
	started := newFamily(gaugeType, "vmctl_vm_start_time_seconds", "When the VM was started, in seconds since 1970.")
	uptime := newFamily(gaugeType, "vmctl_vm_uptime_seconds", "For how long the VM has run.")
	restarts := newFamily(counterType, "vmctl_vm_restarts", "How often systemd has started the VM again since somebody did.")
	counts := newFamily(gaugeType, "vmctl_vms", "Number of VMs in each state.")
	number := map[state]int{}
	for _, m := range all {
		name := m.look.vm.Name
		number[m.look.state]++
		up.add(oneIf(m.look.active()), "vm", name)
		for _, s := range states {
			in.add(oneIf(s == m.look.state), "vm", name, "state", string(s))
		}
		if machine := m.look.machine(); machine != nil {
			info.add(1, "vm", name, "hypervisor", machine.Hypervisor, "machine", machine.MachineType, "unit", m.look.unit.Name)
		}
		if m.pid == 0 {
			continue
		}
		answers.add(oneIf(m.answered), "vm", name)
		started.add(float64(m.started.UnixMicro())/1e6, "vm", name)
		uptime.add(max(0, m.at.Sub(m.started).Seconds()), "vm", name)
		restarts.add(float64(m.usage.Restarts), "vm", name)
	}
	for _, s := range states {
		counts.add(float64(number[s]), "state", string(s))
	}
	return []family{*counts, *up, *in, *info, *answers, *started, *uptime, *restarts}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func cpuFamilies(all []measured) []family {
	cpus := newFamily(gaugeType, "vmctl_vm_cpus", "Virtual CPUs of the VM.")
	used := newFamily(counterType, "vmctl_vm_cpu_seconds", "CPU time of the host that the VM's processes have used since its start.")
	for _, m := range all {
		if machine := m.look.machine(); machine != nil {
			cpus.add(float64(machine.CPUs), "vm", m.look.vm.Name)
		}
		if m.cpuSeconds != nil {
			used.add(*m.cpuSeconds, "vm", m.look.vm.Name)
		}
	}
	return []family{*cpus, *used}
}

func (a *app) memoryFamilies(all []measured) []family {
	assigned := newFamily(gaugeType, "vmctl_vm_memory_balloon_max_bytes", "Memory of the guest by its definition.")
	actual := newFamily(gaugeType, "vmctl_vm_memory_balloon_actual_bytes", "Memory of the guest without what its balloon holds.")
	rss := newFamily(gaugeType, "vmctl_vm_memory_rss_bytes", "Memory of the host that the hypervisor has mapped.")
	group := newFamily(gaugeType, "vmctl_vm_memory_cgroup_bytes", "Memory of the host that the VM's control group is charged with, caches included.")
	total := newFamily(gaugeType, "vmctl_vm_memory_guest_total_bytes", "Memory that the guest's kernel manages, by the guest.")
	free := newFamily(gaugeType, "vmctl_vm_memory_guest_free_bytes", "Memory that nothing in the guest uses, by the guest.")
	available := newFamily(gaugeType, "vmctl_vm_memory_guest_available_bytes", "Memory that the guest could use without swapping, by the guest.")
	for _, m := range all {
		name := m.look.vm.Name
		if machine := m.look.machine(); machine != nil {
			assigned.add(float64(machine.Memory), "vm", name)
		}
		group.addKnown(m.memory, "vm", name)
		rss.addKnown(residentBytes(a.root, m.pid), "vm", name)
		if g := m.guest; g != nil {
			actual.add(float64(g.Actual), "vm", name)
			total.addKnown(g.Total, "vm", name)
			free.addKnown(g.Free, "vm", name)
			available.addKnown(g.Available, "vm", name)
		}
	}
	return []family{*assigned, *actual, *rss, *group, *total, *free, *available}
}

// residentBytes is what a process has mapped of the host's memory, nil where
// that is not known.
func residentBytes(root string, pid int) *uint64 {
	if pid == 0 {
		return nil
	}
	text, err := os.ReadFile(root + "/proc/" + strconv.Itoa(pid) + "/statm")
	fields := strings.Fields(string(text)) // in pages: size, resident, …
	if err != nil || len(fields) < 2 {
		return nil
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return nil
	}
	return new(pages * uint64(os.Getpagesize()))
}

func diskFamilies(all []measured) []family {
	read := newFamily(counterType, "vmctl_vm_disk_read_bytes", "What the guest has read from the disk.")
	written := newFamily(counterType, "vmctl_vm_disk_write_bytes", "What the guest has written to the disk.")
	reads := newFamily(counterType, "vmctl_vm_disk_read_ops", "How often the guest has read from the disk.")
	writes := newFamily(counterType, "vmctl_vm_disk_write_ops", "How often the guest has written to the disk.")
	hostRead := newFamily(counterType, "vmctl_vm_io_read_bytes", "What the VM's processes have read from the host's devices.")
	hostWritten := newFamily(counterType, "vmctl_vm_io_write_bytes", "What the VM's processes have written to the host's devices.")
	for _, m := range all {
		name := m.look.vm.Name
		for _, disk := range slices.Sorted(maps.Keys(m.disks)) {
			d := m.disks[disk]
			read.add(float64(d.ReadBytes), "vm", name, "disk", disk)
			written.add(float64(d.WriteBytes), "vm", name, "disk", disk)
			reads.add(float64(d.Reads), "vm", name, "disk", disk)
			writes.add(float64(d.Writes), "vm", name, "disk", disk)
		}
		hostRead.addKnown(m.usage.IOReadBytes, "vm", name)
		hostWritten.addKnown(m.usage.IOWriteBytes, "vm", name)
	}
	return []family{*read, *written, *reads, *writes, *hostRead, *hostWritten}
}

func networkFamilies(all []measured) []family {
	rxBytes := newFamily(counterType, "vmctl_vm_net_rx_bytes", "What the guest has received by the card.")
	txBytes := newFamily(counterType, "vmctl_vm_net_tx_bytes", "What the guest has sent by the card.")
	rxPackets := newFamily(counterType, "vmctl_vm_net_rx_packets", "Packets that the guest has received by the card.")
	txPackets := newFamily(counterType, "vmctl_vm_net_tx_packets", "Packets that the guest has sent by the card.")
	rxDropped := newFamily(counterType, "vmctl_vm_net_rx_drops", "Packets to the guest that were dropped.")
	txDropped := newFamily(counterType, "vmctl_vm_net_tx_drops", "Packets of the guest that were dropped.")
	rxErrors := newFamily(counterType, "vmctl_vm_net_rx_errors", "Packets to the guest that went wrong.")
	txErrors := newFamily(counterType, "vmctl_vm_net_tx_errors", "Packets of the guest that went wrong.")
	for _, m := range all {
		for _, n := range m.nics {
			if n.Traffic == nil {
				continue
			}
			labels := []string{"vm", m.look.vm.Name, "nic", n.Name}
			rxBytes.add(float64(n.Traffic.RxBytes), labels...)
			txBytes.add(float64(n.Traffic.TxBytes), labels...)
			rxPackets.add(float64(n.Traffic.RxPackets), labels...)
			txPackets.add(float64(n.Traffic.TxPackets), labels...)
			rxDropped.add(float64(n.Traffic.RxDropped), labels...)
			txDropped.add(float64(n.Traffic.TxDropped), labels...)
			rxErrors.add(float64(n.Traffic.RxErrors), labels...)
			txErrors.add(float64(n.Traffic.TxErrors), labels...)
		}
	}
	return []family{*rxBytes, *txBytes, *rxPackets, *txPackets, *rxDropped, *txDropped, *rxErrors, *txErrors}
}

// nodeFamilies are about the host. Disks ("state") and images may be in the same
// file system.
func (a *app) nodeFamilies() []family {
	load := newFamily(gaugeType, "vmctl_node_load1", "Processes of the host that run or want to, over one minute.")
	if text, err := os.ReadFile(a.root + "/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(text), " ")
		if v, err := strconv.ParseFloat(first, 64); err == nil {
			load.add(v)
		}
	}
	cpus := newFamily(gaugeType, "vmctl_node_cpus", "CPUs of the host.")
	n, _ := readMachine(a.root)
	cpus.add(float64(n))
	total := newFamily(gaugeType, "vmctl_node_memory_total_bytes", "Memory of the host.")
	free := newFamily(gaugeType, "vmctl_node_memory_free_bytes", "Memory of the host that is available without swapping.")
	memory := readMeminfo(a.root)
	total.addKnown(memory["MemTotal"])
	free.addKnown(memory["MemAvailable"])
	size := newFamily(gaugeType, "vmctl_node_storage_total_bytes", "Size of the file system with the VMs' disks, or the images.")
	left := newFamily(gaugeType, "vmctl_node_storage_free_bytes", "What is free in it.")
	for _, pool := range []struct{ name, dir string }{{"state", a.paths.State}, {"images", a.paths.Images}} {
		var st syscall.Statfs_t
		if syscall.Statfs(pool.dir, &st) == nil {
			size.add(float64(st.Blocks)*float64(st.Bsize), "pool", pool.name, "path", pool.dir)
			left.add(float64(st.Bavail)*float64(st.Bsize), "pool", pool.name, "path", pool.dir)
		}
	}
	return []family{*load, *cpus, *total, *free, *size, *left}
}

// readMeminfo is /proc/meminfo, in bytes.
func readMeminfo(root string) map[string]*uint64 {
	all := map[string]*uint64{}
	text, _ := os.ReadFile(root + "/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		if f := strings.Fields(rest); len(f) == 2 && f[1] == "kB" {
			if kib, err := strconv.ParseUint(f[0], 10, 64); err == nil {
				all[name] = new(kib << 10)
			}
		}
	}
	return all
}

package main

import (
	"context"
	"slices"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/units/bus"
)

// measured is what a machine has used since its start, at one time. nil is what is
// not known, everywhere here.
type measured struct {
	look       look
	at         time.Time
	started    time.Time // of what runs; zero where nothing does
	cpuSeconds *float64
	memory     *uint64 // bytes
	// By the guest where the hypervisor tells, else by the unit.
	diskRead, diskWritten *uint64 // bytes
	received, sent        *uint64 // bytes, over all cards with an interface on the host

	pid      int // of the hypervisor; 0 where none runs
	usage    usage
	answered bool // the hypervisor did
	disks    map[string]hypervisor.DiskTraffic
	nics     []shownNIC
	guest    *hypervisor.GuestMemory
}

// question is what a hypervisor is asked about a machine.
type question func(context.Context, hypervisor.Control, *measured)

// measure measures machines, all at once. Their hypervisors are asked until the
// context asking ends.
func (a *app) measure(ctx, asking context.Context, conn *bus.Conn, looks []look, questions ...question) []measured {
	seen := a.see(looks)
	all := make([]measured, len(looks))
	for i, l := range looks {
		all[i].look = l
	}
	inParallel(all, func(m *measured) {
		m.at = time.Now()
		if !m.look.active() {
			return
		}
		p, err := conn.Properties(ctx, m.look.unit.Name)
		if err != nil || p.MainPID == 0 {
			return // it has just ended
		}
		u := newUsage(p)
		m.pid, m.usage = p.MainPID, u
		m.started, m.cpuSeconds, m.memory, m.diskRead, m.diskWritten = p.ActiveEnterTimestamp, u.CPUSeconds, u.MemoryBytes, u.IOReadBytes, u.IOWriteBytes
		a.askHypervisor(asking, m, questions)
		if m.disks != nil {
			m.diskRead, m.diskWritten = diskTraffic(m.disks)
		}
		m.nics = seen.nics(m.look, nil)
		m.received, m.sent = networkTraffic(m.nics)
	})
	return all
}

// askHypervisor asks what the unit does not tell. One that does not answer costs
// no more than its patience.
func (a *app) askHypervisor(ctx context.Context, m *measured, questions []question) {
	if m.look.status == "" {
		return // it has just not answered
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := a.control(ctx, m.look)
	if err != nil {
		return
	}
	defer c.Close()
	m.answered = true
	for _, ask := range questions {
		ask(ctx, c, m)
	}
}

// askDisks asks what a guest has read and written.
func askDisks(ctx context.Context, c hypervisor.Control, m *measured) {
	meter, ok := c.(hypervisor.DiskMeter)
	if !ok {
		return
	}
	// What is not told is not known.
	m.disks, _ = meter.DiskTraffic(ctx)
}

// askMemory asks what a guest says of its memory.
func askMemory(ctx context.Context, c hypervisor.Control, m *measured) {
	meter, ok := c.(hypervisor.MemoryMeter)
	if !ok {
		return
	}
	if g, err := meter.GuestMemory(ctx); err == nil {
		m.guest = &g
	}
}

// diskTraffic is that of all disks of a machine, in bytes.
func diskTraffic(disks map[string]hypervisor.DiskTraffic) (read, written *uint64) {
	read, written = new(uint64), new(uint64)
	for _, d := range disks {
		*read += d.ReadBytes
		*written += d.WriteBytes
	}
	return read, written
}

func networkTraffic(nics []shownNIC) (received, sent *uint64) {
	for _, n := range nics {
		if n.Traffic == nil {
			continue
		}
		if received == nil {
			received, sent = new(uint64), new(uint64)
		}
		*received += n.Traffic.RxBytes
		*sent += n.Traffic.TxBytes
	}
	return received, sent
}

// sample is one machine in vmctl top -o json: what it has used since its start,
// and what it uses. The names of its fields stay.
type sample struct {
	Name             string   `json:"name"`
	State            state    `json:"state"`
	CPUs             int      `json:"cpus"`
	CPUPercent       *float64 `json:"cpu_percent"` // 100: all of one CPU of the host
	CPUSeconds       *float64 `json:"cpu_seconds"`
	MemoryBytes      int64    `json:"memory_bytes"`      // that the guest has
	MemoryUsedBytes  *uint64  `json:"memory_used_bytes"` // of the host
	DiskReadBytes    *uint64  `json:"disk_read_bytes"`
	DiskWrittenBytes *uint64  `json:"disk_written_bytes"`
	DiskReadRate     *float64 `json:"disk_read_bytes_per_second"`
	DiskWriteRate    *float64 `json:"disk_written_bytes_per_second"`
	RxBytes          *uint64  `json:"rx_bytes"` // received by the guest
	TxBytes          *uint64  `json:"tx_bytes"`
	RxRate           *float64 `json:"rx_bytes_per_second"`
	TxRate           *float64 `json:"tx_bytes_per_second"`

	NICs []sampleNIC `json:"nics"` // of what runs
}

// sampleNIC is one card in vmctl top -o json.
type sampleNIC struct {
	Name      string   `json:"name"`
	Interface string   `json:"interface"` // of the host; "" where it has none
	RxBytes   *uint64  `json:"rx_bytes"`
	TxBytes   *uint64  `json:"tx_bytes"`
	RxRate    *float64 `json:"rx_bytes_per_second"`
	TxRate    *float64 `json:"tx_bytes_per_second"`
}

// newSample is what a machine uses by two measurements of it; before may be of
// another run, or of nothing.
func newSample(before, now measured) sample {
	s := sample{
		Name: now.look.vm.Name, State: now.look.state, CPUSeconds: now.cpuSeconds, MemoryUsedBytes: now.memory,
		DiskReadBytes: now.diskRead, DiskWrittenBytes: now.diskWritten, RxBytes: now.received, TxBytes: now.sent,
		NICs: []sampleNIC{},
	}
	for _, n := range now.nics {
		card := sampleNIC{Name: n.Name, Interface: n.Interface}
		card.RxBytes, card.TxBytes = networkTraffic([]shownNIC{n})
		s.NICs = append(s.NICs, card)
	}
	if m := now.look.machine(); m != nil {
		s.CPUs, s.MemoryBytes = m.CPUs, int64(m.Memory)
	}
	if now.started.IsZero() || !now.started.Equal(before.started) {
		return s
	}
	seconds := now.at.Sub(before.at).Seconds()
	if before.cpuSeconds != nil && now.cpuSeconds != nil && seconds > 0 {
		s.CPUPercent = new(max(0, 100*(*now.cpuSeconds-*before.cpuSeconds)/seconds))
	}
	rate := func(before, now *uint64) *float64 {
		if before == nil || now == nil || *now < *before || seconds <= 0 {
			return nil
		}
		return new(float64(*now-*before) / seconds)
	}
	s.DiskReadRate, s.DiskWriteRate = rate(before.diskRead, now.diskRead), rate(before.diskWritten, now.diskWritten)
	s.RxRate, s.TxRate = rate(before.received, now.received), rate(before.sent, now.sent)
	for i := range s.NICs {
		n := &s.NICs[i]
		received, sent := networkTraffic(slices.DeleteFunc(slices.Clone(before.nics), func(o shownNIC) bool { return o.Name != n.Name }))
		n.RxRate, n.TxRate = rate(received, n.RxBytes), rate(sent, n.TxBytes)
	}
	return s
}

// newSamples compares machines with those of an earlier measurement.
func newSamples(before, now []measured) []sample {
	was := map[string]measured{}
	for _, m := range before {
		was[m.look.vm.Name] = m
	}
	all := []sample{}
	for _, m := range now {
		all = append(all, newSample(was[m.look.vm.Name], m))
	}
	return all
}

package main

import (
	"context"
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
}

// measure measures machines, all at once.
func (a *app) measure(ctx context.Context, conn *bus.Conn, looks []look) []measured {
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
		m.started, m.cpuSeconds, m.memory, m.diskRead, m.diskWritten = p.ActiveEnterTimestamp, u.CPUSeconds, u.MemoryBytes, u.IOReadBytes, u.IOWriteBytes
		if read, written := a.diskTraffic(ctx, m.look); read != nil {
			m.diskRead, m.diskWritten = read, written
		}
		m.received, m.sent = networkTraffic(seen.nics(m.look, nil))
	})
	return all
}

// diskTraffic is what a guest has read and written.
func (a *app) diskTraffic(ctx context.Context, l look) (read, written *uint64) {
	if l.status == "" {
		return nil, nil // a hypervisor that has just not answered
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := a.control(ctx, l)
	if err != nil {
		return nil, nil
	}
	defer c.Close()
	meter, ok := c.(hypervisor.DiskMeter)
	if !ok {
		return nil, nil
	}
	all, err := meter.DiskTraffic(ctx)
	if err != nil {
		return nil, nil
	}
	read, written = new(uint64), new(uint64)
	for _, d := range all {
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
}

// newSample is what a machine uses by two measurements of it; before may be of
// another run, or of nothing.
func newSample(before, now measured) sample {
	s := sample{
		Name: now.look.vm.Name, State: now.look.state, CPUSeconds: now.cpuSeconds, MemoryUsedBytes: now.memory,
		DiskReadBytes: now.diskRead, DiskWrittenBytes: now.diskWritten, RxBytes: now.received, TxBytes: now.sent,
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

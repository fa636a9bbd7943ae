package config

import (
	"cmp"
	"fmt"
	"slices"
)

// LiveSettings are the settings of a definition that a machine can take while it
// runs: by its hypervisor, where that can, or by systemd, when that reads them.
type LiveSettings struct {
	CPUs        int       `json:"cpus"`
	Memory      Size      `json:"memory"`
	Description string    `json:"description,omitempty"`
	Autostart   bool      `json:"autostart,omitempty"`
	Resources   Resources `json:"resources"`

	// Disks are the limits of each disk.
	Disks map[string]DiskLimits `json:"disks,omitempty"`
}

// DiskLimits are those of a disk, per second; 0 for none. Those for all operations
// exclude those for reads and writes.
type DiskLimits struct {
	IOPS           int64 `json:"iops"`
	IOPSRead       int64 `json:"iops_read"`
	IOPSWrite      int64 `json:"iops_write"`
	Bandwidth      int64 `json:"bandwidth_bytes"`
	BandwidthRead  int64 `json:"bandwidth_read_bytes"`
	BandwidthWrite int64 `json:"bandwidth_write_bytes"`
}

// Limits are those that a definition gives to the disk.
func (d Disk) Limits() DiskLimits {
	return DiskLimits{
		IOPS: d.IOPS, IOPSRead: d.IOPSRead, IOPSWrite: d.IOPSWrite,
		Bandwidth: int64(d.Bandwidth), BandwidthRead: int64(d.BandwidthRead), BandwidthWrite: int64(d.BandwidthWrite),
	}
}

// withLimits are disks of which those in limits have these.
func withLimits(disks []Disk, limits map[string]DiskLimits) []Disk {
	disks = slices.Clone(disks)
	for i, d := range disks {
		if l, has := limits[d.Name]; has {
			disks[i].IOPS, disks[i].IOPSRead, disks[i].IOPSWrite = l.IOPS, l.IOPSRead, l.IOPSWrite
			disks[i].Bandwidth, disks[i].BandwidthRead, disks[i].BandwidthWrite = Size(l.Bandwidth), Size(l.BandwidthRead), Size(l.BandwidthWrite)
		}
	}
	return disks
}

// Live are those of a machine.
func (m *Machine) Live() LiveSettings {
	s := LiveSettings{CPUs: m.CPUs, Memory: m.Memory, Description: m.Description, Autostart: m.Autostart, Resources: m.Resources}
	for _, d := range m.Disks {
		if s.Disks == nil {
			s.Disks = map[string]DiskLimits{}
		}
		s.Disks[d.Name] = d.Limits()
	}
	return s
}

// WithLive is a machine that differs from m in those alone. What of the resources
// is for a process as it starts stays.
func (m *Machine) WithLive(s LiveSettings) *Machine {
	out := *m
	out.CPUs, out.Memory, out.Description, out.Autostart, out.Resources = s.CPUs, s.Memory, s.Description, s.Autostart, s.Resources
	out.Disks = withLimits(m.Disks, s.Disks)
	out.Resources.Slice, out.Resources.Nice, out.Resources.OOMScoreAdjust = m.Resources.Slice, m.Resources.Nice, m.Resources.OOMScoreAdjust
	return &out
}

// Settings are what can be changed of a card while the machine runs, beside what it may
// send and get: "link up, 10M/s in, no limit out".
func (n NIC) Settings() string {
	rate := func(r Size, way string) string {
		if r == 0 {
			return "no limit " + way
		}
		return r.String() + "/s " + way
	}
	return fmt.Sprintf("link %s, %s, %s", cmp.Or(n.Link, "up"), rate(n.RateIn, "in"), rate(n.RateOut, "out"))
}

// WithSettings is a card that has the settings of another.
func (n NIC) WithSettings(of NIC) NIC {
	n.Link, n.RateIn, n.RateOut = of.Link, of.RateIn, of.RateOut
	return n
}

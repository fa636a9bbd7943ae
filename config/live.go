package config

// LiveSettings are the settings of a definition that a machine can take while it
// runs: by its hypervisor, where that can, or by systemd, when that reads them.
type LiveSettings struct {
	CPUs        int       `json:"cpus"`
	Memory      Size      `json:"memory"`
	Description string    `json:"description,omitempty"`
	Autostart   bool      `json:"autostart,omitempty"`
	Resources   Resources `json:"resources"`
}

// Live are those of a machine.
func (m *Machine) Live() LiveSettings {
	return LiveSettings{CPUs: m.CPUs, Memory: m.Memory, Description: m.Description, Autostart: m.Autostart, Resources: m.Resources}
}

// WithLive is a machine that differs from m in those alone. What of the resources
// is for a process as it starts stays.
func (m *Machine) WithLive(s LiveSettings) *Machine {
	out := *m
	out.CPUs, out.Memory, out.Description, out.Autostart, out.Resources = s.CPUs, s.Memory, s.Description, s.Autostart, s.Resources
	out.Resources.Slice, out.Resources.Nice, out.Resources.OOMScoreAdjust = m.Resources.Slice, m.Resources.Nice, m.Resources.OOMScoreAdjust
	return &out
}

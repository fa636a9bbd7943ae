package bus

import (
	"context"
	"errors"
)

// Machine is how a machine is made known to machined.
type Machine struct {
	Name       string
	UUID       [16]byte
	Leader     int   // process that machinectl poweroff and reboot signal; its unit is the machine's
	Interfaces []int // indices of the host's interfaces that belong to it
}

// RegisterMachine makes a machine known to machined, until its unit ends.
func (c *Conn) RegisterMachine(ctx context.Context, m Machine) error {
	if c.direct {
		return errors.New("register " + m.Name + ": machined is only reached over D-Bus, which does not run")
	}
	ifindices := make([]int32, len(m.Interfaces))
	for i, n := range m.Interfaces {
		ifindices[i] = int32(n)
	}
	err := c.calls.Object("org.freedesktop.machine1", "/org/freedesktop/machine1").
		CallWithContext(ctx, "org.freedesktop.machine1.Manager.RegisterMachineWithNetwork", 0,
			m.Name, m.UUID[:], "vmctl", "vm", uint32(m.Leader), "", ifindices).Err
	return named("register "+m.Name, err)
}

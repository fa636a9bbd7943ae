package bus

import (
	"context"
	"errors"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Machine is how a machine is made known to machined.
type Machine struct {
	Name       string
	UUID       [16]byte
	Leader     int   // process that machinectl poweroff and reboot signal; its unit is the machine's
	Interfaces []int // indices of the host's interfaces that belong to it
}

const (
	machined = "org.freedesktop.machine1"
	manager  = machined + ".Manager"
)

// RegisterMachine makes a machine known to machined, until its unit ends.
//
// machined keeps a machine whose unit is started again at once, with the
// leader that it had: such a one makes room.
func (c *Conn) RegisterMachine(ctx context.Context, m Machine) error {
	if c.direct {
		return errors.New("register " + m.Name + ": machined is only reached over D-Bus, which does not run")
	}
	err := c.registerMachine(ctx, m)
	if exists(err) && c.isLeft(ctx, m.Name) {
		// It may just have gone by itself.
		c.machined().CallWithContext(ctx, manager+".UnregisterMachine", 0, m.Name)
		err = c.registerMachine(ctx, m)
	}
	return named("register "+m.Name, err)
}

// exists says whether an error is that machined has a machine of that name, or
// for that unit.
func exists(err error) bool {
	remote, ok := errors.AsType[godbus.Error](err)
	return ok && (remote.Name == machined+".MachineExists" || remote.Name == "System.Error.EEXIST")
}

func (c *Conn) machined() godbus.BusObject {
	return c.calls.Object(machined, "/org/freedesktop/machine1")
}

func (c *Conn) registerMachine(ctx context.Context, m Machine) error {
	ifindices := make([]int32, len(m.Interfaces))
	for i, n := range m.Interfaces {
		ifindices[i] = int32(n)
	}
	return c.machined().CallWithContext(ctx, manager+".RegisterMachineWithNetwork", 0,
		m.Name, m.UUID[:], "vmctl", "vm", uint32(m.Leader), "", ifindices).Err
}

// isLeft says whether machined knows a machine of ours, or none any more,
// whose leader has ended.
func (c *Conn) isLeft(ctx context.Context, name string) bool {
	var path godbus.ObjectPath
	if err := c.machined().CallWithContext(ctx, manager+".GetMachine", 0, name).Store(&path); err != nil {
		return true
	}
	var known map[string]godbus.Variant
	if err := c.calls.Object(machined, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", 0, machined+".Machine").Store(&known); err != nil {
		return true
	}
	service, _ := known["Service"].Value().(string)
	leader, _ := known["Leader"].Value().(uint32)
	return service == "vmctl" && unix.Kill(int(leader), 0) == unix.ESRCH
}

package bus

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Machine is how a machine is made known to machined.
type Machine struct {
	Name       string
	UUID       [16]byte
	Leader     int   // process that machinectl poweroff and reboot signal; its unit is the machine's
	Interfaces []int // indices of the host's interfaces that belong to it
	// VsockCID is the address by which ssh machine/NAME reaches the guest
	// (systemd-ssh-proxy(1)); 0 for none. systemd 252 does not know of any.
	VsockCID uint32
}

const (
	machined = "org.freedesktop.machine1"
	manager  = machined + ".Manager"
	// machinedSocket is where machined of systemd 257 and newer is called by
	// varlink: D-Bus has no way to tell it of vsock.
	machinedSocket = "/run/systemd/machine/io.systemd.Machine"
	machinedMethod = "io.systemd.Machine."
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
	if remote, ok := errors.AsType[*varlinkError](err); ok {
		return remote.Name == machinedMethod+"MachineExists"
	}
	remote, ok := errors.AsType[godbus.Error](err)
	return ok && (remote.Name == machined+".MachineExists" || remote.Name == "System.Error.EEXIST")
}

func (c *Conn) machined() godbus.BusObject {
	return c.calls.Object(machined, "/org/freedesktop/machine1")
}

func (c *Conn) registerMachine(ctx context.Context, m Machine) error {
	if m.VsockCID != 0 {
		err := c.registerVsock(ctx, m)
		if err == nil || exists(err) {
			return err
		}
		// An older one, or another: without vsock, it is known all the same.
	}
	ifindices := make([]int32, len(m.Interfaces))
	for i, n := range m.Interfaces {
		ifindices[i] = int32(n)
	}
	return c.machined().CallWithContext(ctx, manager+".RegisterMachineWithNetwork", 0,
		m.Name, m.UUID[:], "vmctl", "vm", uint32(m.Leader), "", ifindices).Err
}

// registerVsock registers a machine by varlink.
func (c *Conn) registerVsock(ctx context.Context, m Machine) error {
	// The socket is there while machined is, which D-Bus starts.
	if err := c.machined().CallWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0).Err; err != nil {
		return err
	}
	return varlink(ctx, machinedSocket, machinedMethod+"Register", map[string]any{
		"name": m.Name, "id": hex.EncodeToString(m.UUID[:]), "service": "vmctl", "class": "vm", "leader": m.Leader,
		"vSockCid": m.VsockCID, "sshAddress": fmt.Sprintf("vsock/%d", m.VsockCID),
	})
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

package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	sddbus "github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// allowedDevice is an element of DeviceAllow= (systemd.resource-control(5)): D-Bus type
// (ss).
type allowedDevice struct{ Path, Access string }

// blockPrefix begins the names of the devices that a unit which runs was let open:
// by number, so that no name has to be looked up, nor can lead to another device.
const blockPrefix = "/dev/block/"

// blockName is the name of a block device of a number.
func blockName(device uint64) string {
	return fmt.Sprintf("%s%d:%d", blockPrefix, unix.Major(device), unix.Minor(device))
}

// AllowBlockDevice lets a unit that runs open a block device, beside those of its
// settings, until [Conn.DenyBlockDevice] or, where [Conn.ForgetBlockDevices] is called
// after it has ended, its next start.
func (c *Conn) AllowBlockDevice(ctx context.Context, unit string, device uint64, write bool) error {
	access := "r"
	if write {
		access = "rw"
	}
	err := c.systemd.SetUnitPropertiesContext(ctx, unit, true, deviceAllow(allowedDevice{blockName(device), access}))
	return named("let "+unit+" open a device", err)
}

func deviceAllow(list ...allowedDevice) sddbus.Property {
	return sddbus.Property{Name: "DeviceAllow", Value: godbus.MakeVariant(append([]allowedDevice{}, list...))}
}

// DenyBlockDevice takes back what AllowBlockDevice gave, if it did. What a process has
// open it keeps.
func (c *Conn) DenyBlockDevice(ctx context.Context, unit string, device uint64) error {
	list, err := c.allowedDevices(ctx, unit)
	if err != nil {
		return err
	}
	is := func(d allowedDevice) bool { return d.Path == blockName(device) }
	if !slices.ContainsFunc(list, is) {
		return nil
	}
	// An empty list empties systemd's, and any other one is added to it.
	set := []sddbus.Property{deviceAllow()}
	if left := slices.DeleteFunc(list, is); len(left) > 0 {
		set = append(set, deviceAllow(left...))
	}
	return named("take a device back from "+unit, c.systemd.SetUnitPropertiesContext(ctx, unit, true, set...))
}

// allowedDevices are all that a unit may open beside what each may.
func (c *Conn) allowedDevices(ctx context.Context, unit string) (list []allowedDevice, err error) {
	has, err := c.systemd.GetUnitTypePropertyContext(ctx, unit, "Service", "DeviceAllow")
	if err != nil {
		return nil, named("look at "+unit, err)
	}
	rows, _ := has.Value.Value().([][]any)
	for _, row := range rows {
		path, _ := row[0].(string)
		access, _ := row[1].(string)
		list = append(list, allowedDevice{path, access})
	}
	return list, nil
}

// devicesFile is where systemd writes what it was told of a unit's devices.
func devicesFile(unit string, user bool) string {
	return filepath.Join(controlDirs(user)[0], unit+".d", "50-DeviceAllow.conf")
}

// HasBlockDevices says whether something of [Conn.AllowBlockDevice] is left for a
// unit's next start.
func HasBlockDevices(unit string, user bool) bool {
	text, err := os.ReadFile(devicesFile(unit, user))
	return err == nil && bytes.Contains(text, []byte("DeviceAllow="+blockPrefix))
}

// ForgetBlockDevices has systemd forget what a unit that has ended was let open.
func (c *Conn) ForgetBlockDevices(ctx context.Context, unit string) error {
	file := devicesFile(unit, c.user)
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take devices back from %s: %w", unit, err)
	}
	// Only without any other.
	os.Remove(filepath.Dir(file))
	return c.Reload(ctx)
}

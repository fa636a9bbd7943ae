package bus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	sddbus "github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// limits are what a cgroup holds a unit to (systemd.resource-control(5)): the name
// of each as a setting and as a property.
var limits = []struct{ setting, property string }{
	{"CPUQuota", "CPUQuotaPerSecUSec"}, {"CPUWeight", "CPUWeight"},
	{"AllowedCPUs", "AllowedCPUs"}, {"AllowedMemoryNodes", "AllowedMemoryNodes"},
	{"MemoryMin", "MemoryMin"}, {"MemoryLow", "MemoryLow"}, {"MemoryHigh", "MemoryHigh"}, {"MemoryMax", "MemoryMax"}, {"MemorySwapMax", "MemorySwapMax"},
	{"IOWeight", "IOWeight"}, {"TasksMax", "TasksMax"},
	{"IOReadBandwidthMax", "IOReadBandwidthMax"}, {"IOWriteBandwidthMax", "IOWriteBandwidthMax"},
	{"IOReadIOPSMax", "IOReadIOPSMax"}, {"IOWriteIOPSMax", "IOWriteIOPSMax"},
}

// DeviceLimit is one of I/O: for the disk of a path, bytes or operations per second;
// [Unset] for none.
type DeviceLimit struct {
	Path  string
	Limit uint64
}

// Overrides are the files of limits that somebody has set for a unit by systemctl
// set-property, beside the unit's own files.
func (c *Conn) Overrides(unit string) ([]string, error) {
	var files []string
	for _, dir := range controlDirs(c.user) {
		for _, l := range limits {
			file := filepath.Join(dir, unit+".d", "50-"+l.setting+".conf")
			if _, err := os.Lstat(file); err == nil {
				files = append(files, file)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
	}
	return files, nil
}

// HoldToLimits has a unit that runs be held to the limits that systemd has read for
// it. What it reads anew it keeps to itself, until the unit starts again (tried with
// 252 and 257): only what is set over D-Bus reaches the kernel. Those in overrides,
// as [Conn.Overrides] gives them, stay as they are. gone are disks that were
// limited before, by the setting: nothing else takes that back. memory are bytes that
// the unit is known to need: limits that are not above would end it; then nothing is
// done, since limits of memory reach the kernel together, and they are returned, by
// the setting.
func (c *Conn) HoldToLimits(ctx context.Context, unit string, overrides []string, gone map[string][]string, memory int64) (tooSmall []string, err error) {
	read, err := c.systemd.GetUnitTypePropertiesContext(ctx, unit, "Service")
	if err != nil {
		return nil, named("look at "+unit, err)
	}
	var set []sddbus.Property
	for _, l := range limits {
		value, known := read[l.property]
		if !known || slices.ContainsFunc(overrides, func(file string) bool { return filepath.Base(file) == "50-"+l.setting+".conf" }) {
			continue
		}
		if bytes, ok := value.(uint64); ok && bytes <= uint64(memory) && (l.setting == "MemoryMax" || l.setting == "MemoryHigh") {
			tooSmall = append(tooSmall, l.setting)
		}
		if strings.HasPrefix(l.setting, "IO") && l.setting != "IOWeight" {
			value = deviceLimits(value, gone[l.setting])
		}
		set = append(set, sddbus.Property{Name: l.property, Value: godbus.MakeVariant(value)})
	}
	if len(tooSmall) > 0 {
		return tooSmall, nil
	}
	err = c.systemd.SetUnitPropertiesContext(ctx, unit, true, set...)
	return nil, errors.Join(named("limit "+unit, err), c.RemoveOverrides(ctx, unit, overrides))
}

// deviceLimits are limits of I/O as systemd takes them, none for paths that are gone.
func deviceLimits(read any, gone []string) []DeviceLimit {
	list := []DeviceLimit{}
	rows, _ := read.([][]any)
	for _, row := range rows {
		path, _ := row[0].(string)
		limit, _ := row[1].(uint64)
		list = append(list, DeviceLimit{path, limit})
	}
	for _, path := range gone {
		if !slices.ContainsFunc(list, func(l DeviceLimit) bool { return l.Path == path }) {
			list = append(list, DeviceLimit{path, Unset})
		}
	}
	return list
}

// RemoveOverrides removes what [Conn.HoldToLimits] has written for a unit, which would
// hold against its definition: all files of limits until the next boot, but those in
// keep.
func (c *Conn) RemoveOverrides(ctx context.Context, unit string, keep []string) error {
	files, err := c.Overrides(unit)
	if err != nil || len(files) == 0 {
		return err
	}
	runtime := controlDirs(c.user)[0]
	written := slices.DeleteFunc(files, func(file string) bool {
		return !strings.HasPrefix(file, runtime+"/") || slices.Contains(keep, file)
	})
	if len(written) == 0 {
		return nil
	}
	for _, file := range written {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("take back limits of %s: %w", unit, err)
		}
		// Only without any other.
		os.Remove(filepath.Dir(file))
	}
	return c.Reload(ctx)
}

package hostdevice

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// wantUnused refuses a device, by its directory in sysfs, without which this host
// would lose a disk that it uses or the way that it is reached by.
func (h Host) wantUnused(what, dir string) error {
	device, err := filepath.EvalSymlinks(h.paths.Root + dir)
	if err != nil {
		return err
	}
	below := func(path string) bool {
		real, err := filepath.EvalSymlinks(path)
		return err == nil && strings.HasPrefix(real, device+"/")
	}
	for _, disk := range h.glob("/sys/block/*") {
		if !below(disk) && !h.anyNVMePath(disk, below) {
			continue
		}
		if use := h.diskUse(disk); use != "" {
			return fmt.Errorf("%s has the disk %s, which the host uses: %s", what, filepath.Base(disk), use)
		}
	}
	routes := h.defaultRoutes()
	for _, nic := range h.glob("/sys/class/net/*") {
		if !below(nic) {
			continue
		}
		for name := filepath.Base(nic); name != ""; name = h.target("/sys/class/net/" + name + "/master") {
			if routes[name] {
				return fmt.Errorf("%s is the interface %s, by which the host's default route goes", what, filepath.Base(nic))
			}
		}
	}
	return nil
}

// anyNVMePath says whether one of the controllers by which a disk is reached is
// meant: where NVMe has several paths the disk itself hangs below none of them, but
// below a subsystem with a link to each.
func (h Host) anyNVMePath(disk string, meant func(path string) bool) bool {
	real, err := filepath.EvalSymlinks(disk)
	if err != nil || !strings.Contains(real, "/nvme-subsystem/") {
		return false
	}
	controllers, _ := filepath.Glob(filepath.Dir(real) + "/nvme*")
	for _, c := range controllers {
		if meant(c) {
			return true
		}
	}
	return false
}

// defaultRoutes are the interfaces with one (proc_net(5)).
func (h Host) defaultRoutes() map[string]bool {
	found := map[string]bool{}
	for _, line := range strings.Split(h.read("/proc/net/route"), "\n") {
		if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			found[f[0]] = true
		}
	}
	for _, line := range strings.Split(h.read("/proc/net/ipv6_route"), "\n") {
		if f := strings.Fields(line); len(f) > 9 && f[1] == "00" && f[9] != "lo" {
			found[f[9]] = true
		}
	}
	return found
}

// diskUse says what the host does with a disk, "" for nothing. The unit's device
// policy keeps us from asking for the disk itself (open(2), O_EXCL).
func (h Host) diskUse(disk string) string {
	mounts := strings.Split(h.read("/proc/self/mountinfo"), "\n")
	swaps := strings.Split(h.read("/proc/swaps"), "\n")
	for _, dir := range append(h.glob(strings.TrimPrefix(disk, h.paths.Root)+"/*/partition"), disk+"/-") {
		dir = filepath.Dir(dir)
		name := filepath.Base(dir)
		if holders, _ := os.ReadDir(dir + "/holders"); len(holders) > 0 {
			return name + " is part of " + holders[0].Name()
		}
		number := h.read(strings.TrimPrefix(dir, h.paths.Root) + "/dev")
		for _, line := range mounts { // proc_pid_mountinfo(5)
			before, after, _ := strings.Cut(line, " - ")
			at, by := strings.Fields(before), strings.Fields(after)
			if len(at) > 4 && len(by) > 1 && (at[2] == number || by[1] == "/dev/"+name) {
				return name + " is mounted on " + at[4]
			}
		}
		for _, line := range swaps {
			if f := strings.Fields(line); len(f) > 0 && f[0] == "/dev/"+name {
				return name + " is swap"
			}
		}
	}
	return ""
}

func (h Host) glob(pattern string) []string {
	found, _ := filepath.Glob(h.paths.Root + pattern)
	return found
}

package netsetup

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// plugMacvtap makes a macvtap interface on an interface of the host, and opens
// its queues. Unlike a TAP interface it stays until [Unplug].
func plugMacvtap(s CardState) (queues []*os.File, err error) {
	lower, err := netlink.LinkByName(s.Lower)
	if notFound(err) {
		return nil, fmt.Errorf("want the interface %s, the host has no such interface", s.Lower)
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", s.Lower, err)
	}
	switch attrs := lower.Attrs(); {
	case s.MTU > attrs.MTU:
		return nil, fmt.Errorf("want an mtu of at most %d, that of %s, got %d", attrs.MTU, s.Lower, s.MTU)
	case attrs.Flags&net.FlagUp == 0:
		return nil, fmt.Errorf("%[1]s is down: ip link set %[1]s up", s.Lower)
	}
	// What a crash has left.
	if err := removeMacvtap(s.Interface); err != nil {
		return nil, err
	}
	link, err := makeMacvtap(s, lower)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeAll(queues)
			err = errors.Join(err, removeMacvtap(s.Interface))
		}
	}()
	if err := mark(link, s.AltName); err != nil {
		return nil, err
	}
	if queues, err = openMacvtap(link, s.Queues); err != nil {
		return nil, err
	}
	return queues, setLink(s, link)
}

func makeMacvtap(s CardState, lower netlink.Link) (netlink.Link, error) {
	mac, err := net.ParseMAC(string(s.MAC))
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.HardwareAddr = s.Interface, lower.Attrs().Index, mac
	attrs.MTU = s.MTU
	if s.MTU == 0 {
		attrs.MTU = lower.Attrs().MTU
	}
	err = netlink.LinkAdd(&netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: attrs, Mode: macvtapMode(s.Mode)}})
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("no macvtap can be put on %s: it is on a bridge or in a bond, or another is on it that wants to be alone", s.Lower)
	case errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("no macvtap can be put on %s in the mode %s: one of a mode that does not go with that is on it, or it has no Ethernet", s.Lower, s.Mode)
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, fmt.Errorf("the host's kernel has no macvtap: %w", err)
	case err != nil:
		return nil, fmt.Errorf("put the macvtap %s on %s: %w", s.Interface, s.Lower, err)
	}
	return netlink.LinkByName(s.Interface)
}

func macvtapMode(mode string) netlink.MacvlanMode {
	switch mode {
	case "vepa":
		return netlink.MACVLAN_MODE_VEPA
	case "private":
		return netlink.MACVLAN_MODE_PRIVATE
	case "passthru":
		return netlink.MACVLAN_MODE_PASSTHRU
	}
	return netlink.MACVLAN_MODE_BRIDGE
}

// nodeDir is where a device node is made that the kernel has not made.
func nodeDir(name string) string { return "/dev/.vmctl-" + name }

// removeMacvtap removes the macvtap interface of a card, if there is one, and what
// was left when its node was being opened. That it is ours its name says: nobody
// else has such names for such interfaces.
func removeMacvtap(name string) error {
	if err := os.RemoveAll(nodeDir(name)); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if link.Type() != "macvtap" {
		return fmt.Errorf("the host has an interface %s of type %s that is not vmctl's", name, link.Type())
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("remove the interface %s: %w", name, err)
	}
	return nil
}

// openMacvtap opens the queues of a macvtap interface by its device node. That
// is made by the kernel in /dev, if devtmpfs is there, which in a container it is
// not.
func openMacvtap(link netlink.Link, queues int) ([]*os.File, error) {
	name := link.Attrs().Name
	tap := "tap" + strconv.Itoa(link.Attrs().Index)
	number, err := deviceNumber(filepath.Join("/sys/class/net", name, tap, "dev"))
	if err != nil {
		return nil, fmt.Errorf("find the device of %s: %w", name, err)
	}
	node := "/dev/" + tap
	var stat unix.Stat_t
	if err := unix.Stat(node, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFCHR || stat.Rdev != number {
		// A directory that only root looks into. /run takes no devices.
		dir := nodeDir(name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		node = dir + "/tap"
		if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(number)); err != nil {
			return nil, fmt.Errorf("make the device node of %s: %w", name, err)
		}
	}
	files, err := openQueues(node, name, queues, queues > 1)
	if err != nil {
		return nil, fmt.Errorf("open the macvtap %s: %w", name, err)
	}
	return files, nil
}

// deviceNumber reads "246:1".
func deviceNumber(file string) (uint64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(strings.TrimSpace(string(b)), "%d:%d", &major, &minor); err != nil {
		return 0, fmt.Errorf("%s: want MAJOR:MINOR, got %q", file, b)
	}
	return unix.Mkdev(major, minor), nil
}

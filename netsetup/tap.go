package netsetup

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tunNode is by what TAP interfaces are made and opened.
const tunNode = "/dev/net/tun"

// openTap opens the queues of a new TAP interface, which goes with the last of
// them (Documentation/networking/tuntap.rst of the kernel).
func openTap(name string, queues int) ([]*os.File, error) {
	files, err := openQueues(tunNode, name, queues, queues > 1)
	if err != nil {
		return nil, fmt.Errorf("make the TAP interface %s: %w", name, err)
	}
	return files, nil
}

// openQueues opens a node of the host's several times, each time as a queue of
// the interface.
func openQueues(node, name string, queues int, multi bool) ([]*os.File, error) {
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	var files []*os.File
	for range queues {
		fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("open %s: %w", node, err)
		}
		files = append(files, os.NewFile(uintptr(fd), name))
		request, err := unix.NewIfreq(name)
		if err == nil {
			request.SetUint16(flags)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err != nil {
			closeAll(files)
			return nil, err
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// plugTap opens the queues of a TAP interface of the host's own, and leaves it
// as it is.
func plugTap(s CardState) ([]*os.File, error) {
	tap, err := hostTap(s.Interface)
	if err != nil {
		return nil, err
	}
	multi := tap.Flags&netlink.TUNTAP_MULTI_QUEUE != 0
	switch attrs := tap.Attrs(); {
	case s.Queues > 1 && !multi:
		return nil, fmt.Errorf("want a TAP interface made for several queues (ip tuntap add dev %[1]s mode tap multi_queue) for queues = %[2]d, %[1]s has one", s.Interface, s.Queues)
	case tap.Queues+tap.DisabledQueues > 0:
		return nil, fmt.Errorf("the TAP interface %s is in use by another process", s.Interface)
	case s.MTU > attrs.MTU:
		return nil, fmt.Errorf("want an mtu of at most %d, that of the TAP interface %s, got %d", attrs.MTU, s.Interface, s.MTU)
	}
	queues, err := openQueues(tunNode, s.Interface, s.Queues, multi)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("the TAP interface %s is in use by another process", s.Interface)
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("the TAP interface %[1]s is not this user's (ip tuntap add dev %[1]s mode tap user NAME): %[2]w", s.Interface, err)
	case err != nil:
		return nil, fmt.Errorf("open the TAP interface %s: %w", s.Interface, err)
	}
	// Had it gone meanwhile, another would have been made.
	if now, err := hostTap(s.Interface); err != nil || now.Index != tap.Index {
		closeAll(queues)
		return nil, fmt.Errorf("the TAP interface %s was removed just now", s.Interface)
	}
	return queues, nil
}

// hostTap finds a TAP interface of the host.
func hostTap(name string) (*netlink.Tuntap, error) {
	link, err := netlink.LinkByName(name)
	if notFound(err) {
		return nil, fmt.Errorf("want the TAP interface %[1]s, the host has no such interface (ip tuntap add dev %[1]s mode tap makes one)", name)
	}
	if err != nil {
		return nil, fmt.Errorf("find the TAP interface %s: %w", name, err)
	}
	tap, ok := link.(*netlink.Tuntap)
	if !ok {
		return nil, fmt.Errorf("want the TAP interface %s, it is an interface of type %s", name, link.Type())
	}
	if tap.Mode != netlink.TUNTAP_MODE_TAP {
		return nil, fmt.Errorf("want the TAP interface %s, it is a TUN interface, which has no Ethernet", name)
	}
	return tap, nil
}

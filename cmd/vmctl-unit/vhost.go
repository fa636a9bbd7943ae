package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

// Where the host's kernel moves the packets of a card (vhost-net), a plan has a
// descriptor for each of its queues, as far as could be known when systemd read the
// definition: modules are loaded, and containers have nodes, or not, later. So the
// descriptors are opened when the machine starts, all of a card or none, and with
// none QEMU is not told of any.

// openVhost opens the node as often as a plan wants for a card.
func openVhost(node string, ds []hypervisor.Descriptor, card string) ([]*os.File, error) {
	var files []*os.File
	for _, d := range ds {
		if d.Use != hypervisor.Vhost || d.Card != card {
			continue
		}
		fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			closeList(files)
			return nil, fmt.Errorf("open %s: %w", node, err)
		}
		files = append(files, os.NewFile(uintptr(fd), node))
	}
	return files, nil
}

// withoutVhost is a command line without the options whose descriptors could not
// be had.
func withoutVhost(argv []string, ds []hypervisor.Descriptor, stored map[string][]int) []string {
	var out []string
	for _, arg := range argv {
		for _, d := range ds {
			if d.Use == hypervisor.Vhost && len(stored[vhostName(d.Card)]) == 0 {
				arg = strings.Replace(arg, d.Option, "", 1)
			}
		}
		out = append(out, arg)
	}
	return out
}

// vhostDescriptor is the next of a card. Where there are none, another file keeps
// the place: the numbers of those behind it stand in the command line.
func vhostDescriptor(stored map[string][]int, card string) (int, error) {
	name := vhostName(card)
	if len(stored[name]) == 0 {
		return unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	fd := stored[name][0]
	stored[name] = stored[name][1:]
	return fd, nil
}

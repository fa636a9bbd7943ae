package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// index is what the RAM disk says of its modules (see mkinitrd).
type index struct {
	depends map[string][]string // of each module
	aliases [][2]string         // pattern of device ids, module
}

func parseIndex(text string) index {
	x := index{depends: map[string][]string{}}
	for line := range strings.Lines(text) {
		switch f := strings.Fields(line); {
		case len(f) >= 2 && f[0] == "module":
			x.depends[f[1]] = f[2:]
		case len(f) == 3 && f[0] == "alias":
			x.aliases = append(x.aliases, [2]string{f[1], f[2]})
		}
	}
	return x
}

// wanted returns the modules that drive a device with one of these ids.
func (x index) wanted(ids []string) []string {
	var want []string
	for _, alias := range x.aliases {
		for _, id := range ids {
			// Ids hold no slashes, so path's patterns are the kernel's.
			if ok, err := path.Match(alias[0], id); ok && err == nil {
				want = append(want, alias[1])
				break
			}
		}
	}
	return want
}

// params returns what the kernel's command line gives to a module.
func params(cmdline []string, module string) string {
	var ps []string
	for _, word := range cmdline {
		name, value, ok := strings.Cut(word, ".")
		if ok && strings.ReplaceAll(name, "-", "_") == module {
			ps = append(ps, value)
		}
	}
	return strings.Join(ps, " ")
}

// loader loads modules, each once.
type loader struct {
	index   index
	cmdline []string
	tried   map[string]bool
	errs    []error
}

// loadModules loads what no device asks for by its id, then what the devices
// ask for, until no further device appears; and from then on what devices ask
// for that come later, as those behind a USB hub do.
func loadModules(cmdline []string) []error {
	text, err := os.ReadFile("/modules/index")
	if err != nil {
		return []error{err}
	}
	l := &loader{index: parseIndex(string(text)), cmdline: cmdline, tried: map[string]bool{}}
	events, err := listenDevices()
	if err != nil {
		return []error{fmt.Errorf("listening for devices: %w", err)}
	}
	for _, name := range []string{"isofs", "evdev"} {
		l.load(name)
	}
	if params(cmdline, "virtio_mmio") != "" {
		l.load("virtio_mmio") // its devices are known by its parameters alone
	}
	for before := -1; before != len(l.tried); {
		before = len(l.tried)
		l.loadFor(deviceIDs())
	}
	errs := l.errs
	go l.follow(events)
	return errs
}

func (l *loader) loadFor(ids []string) {
	for _, name := range l.index.wanted(ids) {
		l.load(name)
	}
}

// listenDevices opens a socket on which the kernel tells of devices.
func listenDevices() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, err
	}
	const kernelGroup = 1
	return fd, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup})
}

// follow loads what devices ask for that the kernel tells of. A message is
// pairs NAME=VALUE, each with a zero byte after it.
func (l *loader) follow(events int) {
	message := make([]byte, 8192)
	for {
		n, err := unix.Read(events, message)
		if err != nil {
			continue // messages were lost, or a signal came
		}
		for pair := range bytes.SplitSeq(message[:n], []byte{0}) {
			if id, ok := bytes.CutPrefix(pair, []byte("MODALIAS=")); ok {
				l.loadFor([]string{string(id)})
			}
		}
	}
}

func (l *loader) load(name string) {
	if l.tried[name] {
		return
	}
	l.tried[name] = true
	for _, dep := range l.index.depends[name] {
		l.load(dep)
	}
	err := insert(name, params(l.cmdline, name))
	switch {
	case err == nil, errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENODEV):
	case errors.Is(err, fs.ErrNotExist) && l.index.depends[name] == nil: // built into the kernel
	default:
		l.errs = append(l.errs, fmt.Errorf("loading %s: %w", name, err))
	}
}

func insert(name, params string) error {
	f, err := os.Open("/modules/" + name + ".ko")
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), params, 0)
}

// deviceIDs returns the ids of the devices that the kernel knows of, each once.
func deviceIDs() []string {
	var ids []string
	for _, file := range glob("/sys/bus/*/devices/*/modalias") {
		if id := readLine(file); id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

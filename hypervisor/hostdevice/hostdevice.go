// Package hostdevice finds PCI and USB devices of the host that machines are
// given, and says why one cannot be. It takes PCI devices from the drivers of the
// host, and gives them back.
//
// What is taken is noted in paths.HostDevices before it is, so that it is given
// back after a crash as well. Who calls it is root.
package hostdevice

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// vfio is the driver that lets a process have a PCI device.
const vfio = "vfio-pci"

// Host is the devices of a host.
type Host struct {
	paths config.Paths
	write func(file, text string) error // into a file of the kernel
}

// New returns the devices of the host below paths.Root.
func New(paths config.Paths) Host { return Host{paths, writeKernel} }

func writeKernel(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// note is what a machine has: the content of paths.HostDevices.
type note struct {
	PCI    []bound  `json:"pci,omitempty"`
	Groups []string `json:"groups,omitempty"` // IOMMU groups
	USB    []string `json:"usb,omitempty"`    // device nodes
}

// bound is a PCI device that was taken from a driver, "" for none.
type bound struct {
	Address string `json:"address"`
	Driver  string `json:"driver,omitempty"`
}

// Take finds the devices of a machine, and has the PCI devices among them taken
// over by vfio-pci. It returns the nodes by which the machine's user reaches
// them. All are taken or, where there are refusals or an error, none. What the
// machine has from before is given back first.
func (h Host) Take(vm string, plan *hypervisor.Plan) ([]hypervisor.File, []access.Refusal, error) {
	if err := h.GiveBack(vm); err != nil {
		return nil, nil, err
	}
	if len(plan.PCI)+len(plan.USB) == 0 {
		return nil, nil, nil
	}
	unlock, err := h.lock()
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	others, err := h.others(vm)
	if err != nil {
		return nil, nil, err
	}
	n, files, refusals := h.choose(plan, others)
	if len(refusals) > 0 {
		return nil, refusals, nil
	}
	if err := h.writeNote(vm, n); err != nil {
		return nil, nil, err
	}
	for _, b := range n.PCI {
		if err := h.bind(b); err != nil {
			return nil, nil, errors.Join(err, h.giveBack(vm))
		}
	}
	return files, nil, nil
}

// Refusals says why a machine could not have its devices, were it to start now. It
// takes none, and needs no privileges; what other machines have is left out where
// the caller may not see that.
func (h Host) Refusals(vm string, plan *hypervisor.Plan) []access.Refusal {
	if len(plan.PCI)+len(plan.USB) == 0 {
		return nil
	}
	others, _ := h.others(vm)
	_, _, refusals := h.choose(plan, others)
	return refusals
}

// choose finds each device, or why the machine cannot have it.
func (h Host) choose(plan *hypervisor.Plan, others map[string]note) (n note, files []hypervisor.File, refusals []access.Refusal) {
	node := func(key, path string) {
		files = append(files, hypervisor.File{Key: key, Path: path, Write: true, Device: true})
	}
	var addresses []string
	for _, d := range plan.PCI {
		addresses = append(addresses, d.Address)
	}
	for _, d := range plan.PCI {
		p, err := h.choosePCI(d.Address, addresses, others)
		if err != nil {
			refusals = append(refusals, access.Refusal{Key: d.Key, Text: err.Error()})
			continue
		}
		if p.driver != vfio {
			n.PCI = append(n.PCI, bound{p.address, p.driver})
		}
		if !slices.Contains(n.Groups, p.group) {
			n.Groups = append(n.Groups, p.group)
			node(d.Key, "/dev/vfio/"+p.group)
		}
	}
	for _, d := range plan.USB {
		path, err := h.chooseUSB(d, others)
		if err == nil && slices.Contains(n.USB, path) {
			err = fmt.Errorf("want each device once, got %s by two names", path)
		}
		if err != nil {
			refusals = append(refusals, access.Refusal{Key: d.Key, Text: err.Error()})
			continue
		}
		n.USB = append(n.USB, path)
		node(d.Key, path)
	}
	return n, files, refusals
}

// GiveBack gives back to the host what a machine had. It is no error where that
// is nothing.
func (h Host) GiveBack(vm string) error {
	if !access.IsThere(h.paths.HostDevices(vm)) {
		return nil
	}
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return h.giveBack(vm)
}

func (h Host) giveBack(vm string) error {
	n, err := h.readNote(vm)
	if err != nil {
		return err
	}
	for _, b := range n.PCI {
		if err := h.release(b); err != nil {
			return err
		}
	}
	if err := os.Remove(h.paths.HostDevices(vm)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lock keeps others from choosing at the same time. No machine has such a name.
func (h Host) lock() (unlock func(), err error) {
	return access.LockFile(h.paths.Lock(".host-devices"), unix.LOCK_EX)
}

// others are the notes of the other machines that run.
func (h Host) others(but string) (map[string]note, error) {
	entries, err := os.ReadDir(h.paths.Runtime)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	all := map[string]note{}
	for _, e := range entries {
		if e.Name() == but || config.CheckName(e.Name()) != nil {
			continue
		}
		n, err := h.readNote(e.Name())
		if err != nil {
			return nil, err
		}
		all[e.Name()] = n
	}
	return all, nil
}

func (h Host) readNote(vm string) (n note, err error) {
	b, err := os.ReadFile(h.paths.HostDevices(vm))
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return n, err
	}
	if err := json.Unmarshal(b, &n); err != nil {
		return n, fmt.Errorf("%s: %w", h.paths.HostDevices(vm), err)
	}
	return n, nil
}

// writeNote is on the disk itself before anything is taken.
func (h Host) writeNote(vm string, n note) error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := access.MakeStateDir(h.paths, vm); err != nil {
		return err
	}
	return access.WriteFile(h.paths.HostDevices(vm), b, 0o600, true)
}

// read is the content of a file of the kernel, "" where it cannot be had.
func (h Host) read(path string) string {
	b, err := os.ReadFile(h.paths.Root + path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// target is the last part of what a link of the kernel leads to, "" for none.
func (h Host) target(path string) string {
	to, err := os.Readlink(h.paths.Root + path)
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

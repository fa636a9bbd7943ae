package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
)

// dropInMark begins the drop-ins that vmctl disk writes. Another file by the
// same name is a person's, and left alone.
const dropInMark = "# Written by vmctl disk"

// diskDropIn is a change of what a definition says of one disk.
type diskDropIn struct {
	file string
	text string // "": no file
	was  string // what is there now
	plan planned
}

// planDropIn works out what a machine's definition would be with a drop-in for a
// disk, with "" without it. The error is what would be wrong with it.
func (a *app) planDropIn(vm config.VM, file, text string) (diskDropIn, error) {
	d := diskDropIn{file: file, text: text}
	old, err := os.ReadFile(d.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	d.was = string(old)
	if d.was != "" && !strings.HasPrefix(d.was, dropInMark) {
		return d, &stateError{fmt.Errorf("%s was not written by vmctl, which leaves it alone: change it by hand", d.file)}
	}
	with, err := config.LoadVMWith(a.paths, vm.Name, d.file, text)
	if err != nil {
		return d, err
	}
	d.plan = a.plan(with, a.probe())
	if len(d.plan.Problems) > 0 {
		return d, draftError(d.file, d.plan.Problems)
	}
	return d, nil
}

// write makes the change. systemd does not know of it yet.
func (d diskDropIn) write() error {
	if d.text == d.was {
		return nil
	}
	if d.text == "" {
		if err := os.Remove(d.file); err != nil {
			return err
		}
		// Of others' drop-ins it is not empty.
		_ = os.Remove(filepath.Dir(d.file))
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(d.file), 0o755); err != nil {
		return err
	}
	return access.WriteFile(d.file, []byte(d.text), 0o644, true)
}

// dropInText is a drop-in of a disk's keys.
func dropInText(who string, draft *config.Draft) string {
	return dropInMark + " " + who + ": vmctl disk detach --persist takes it back\n\n" + draft.Text()
}

// withoutDisk is the drop-in after which a definition has not got a disk: none,
// where only that of vmctl has it.
func (a *app) withoutDisk(vm config.VM, disk string) (string, error) {
	without, err := config.LoadVMWith(a.paths, vm.Name, a.paths.DeviceDropIn(vm, "disk."+disk), "")
	if err != nil {
		return "", err
	}
	// Where it is broken without it, it may be because the disk is in it.
	if without.Machine != nil && !hasDisk(without.Machine, disk) {
		return "", nil
	}
	draft := config.NewDraft()
	if err := draft.Set("disk."+disk+".enabled", "false"); err != nil {
		return "", err
	}
	return dropInText("detach", draft), nil
}

func hasDisk(m *config.Machine, name string) bool {
	for _, d := range m.Disks {
		if d.Name == name {
			return true
		}
	}
	return false
}

package units

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"

	"github.com/vmctl/vmctl/config"
)

// Env is what units depend on beside their definitions.
type Env struct {
	Paths   config.Paths
	Systemd int  // major version; 0 where it is not known: nothing newer than 252 is used then
	PutOff  bool // the machine is being started, which may take longer than its start_timeout
}

// EnvOf is that of one machine; root is the directory that stands for /, "" for none.
func EnvOf(root string, paths config.Paths, systemd int, vm string) Env {
	_, err := os.Lstat(filepath.Join(root, paths.PutOff(vm)))
	return Env{Paths: paths, Systemd: systemd, PutOff: err == nil}
}

// File is a file or a link below the directory that systemd has a generator
// write to.
type File struct {
	Name string // relative, with slashes
	Text string // of a file
	Link string // target of a link; "" for a file
}

// Target starts the machines that start with the host.
const Target = "vms.target"

// DropIn is the name of a machine's drop-in, relative to a directory of units.
func DropIn(vm string) string { return DropInOf(config.Unit(vm)) }

// DropInOf is the name of vmctl's drop-in of a unit, relative to a directory of units.
func DropInOf(unit string) string { return unit + ".d/50-vmctl.conf" }

// User is the user that a machine runs as under the system's service manager.
// Without one of its own, every instance of the template would share the
// dynamic user "vm". The names of users end at 31 characters: a longer one is
// cut and made unique by a hash, with underscores, which no machine's name
// has.
func User(vm string) string {
	if name := "vm-" + vm; len(name) <= 31 {
		return name
	}
	sum := sha256.Sum256([]byte(vm))
	return "vm_" + vm[:17] + "_" + hex.EncodeToString(sum[:5])
}

// autostart is the link that starts a machine with the host.
func autostart(vm string, env Env) File {
	template := "/usr/lib/systemd/system/vm@.service"
	if env.Paths.User {
		template = "/usr/lib/systemd/user/vm@.service"
	}
	return File{Name: Target + ".wants/" + config.Unit(vm), Link: template}
}

package access

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// MakeStateDir makes a machine's state directory, root's: the machine's user
// gets single files in it.
func MakeStateDir(paths config.Paths, vm string) error {
	// The unit's UMask= is for the hypervisor, but holds here too, where it
	// would keep the machine's user out.
	defer unix.Umask(unix.Umask(0o022))
	if err := os.MkdirAll(filepath.Dir(paths.State), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(paths.State, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir := paths.StateDir(vm)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o755) // made by somebody else
}

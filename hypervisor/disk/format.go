package disk

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
)

// InOtherFormat is the problem with a disk of a machine's own that is to be made and is
// there in another format, so that it would seem lost; nil where it is not.
func InOtherFormat(m *config.Machine, n hypervisor.NewFile) *config.Problem {
	if _, err := os.Lstat(n.Path); n.Ephemeral || n.Copy != "" || !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, format := range []string{QCOW2, Raw} {
		other := strings.TrimSuffix(n.Path, "."+n.Format) + "." + format
		if _, err := os.Lstat(other); other == n.Path || err != nil {
			continue
		}
		p := m.Problem(n.Key+".format", "want the format of the disk that is there already, %s, got %q: name that, or have it converted (vmctl disk convert %s %s), or move the file away for a new disk",
			other, n.Format, m.Name, strings.TrimPrefix(n.Key, "disk."))
		return &p
	}
	return nil
}

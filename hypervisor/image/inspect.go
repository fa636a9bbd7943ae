package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/disk"
)

// Formats are those that can be stored.
var Formats = []string{"qcow2", "raw", "vmdk", "vdi", "vpc", "vhdx"}

// Inspector looks at images that came from anywhere.
type Inspector struct {
	QemuImg string // the program; for other formats than qcow2 and raw
}

// inspectTime is how long a look may take: an image can be made so that it
// takes forever.
const inspectTime = 30 * time.Second

// Inspect finds out an image's format, by its first bytes, and the size of the
// disk in it, in bytes. It refuses an image that names another file: it could be
// any file of the host. A format that is given is not found out but checked.
func (i Inspector) Inspect(ctx context.Context, f *os.File, format string) (string, int64, error) {
	is, err := disk.Format(f)
	if err != nil {
		return "", 0, err
	}
	if is == "luks" { // a disk that its guest has encrypted
		is = disk.Raw
	}
	switch {
	case !slices.Contains(Formats, is):
		return "", 0, fmt.Errorf("want an image of the format %s, got %s", strings.Join(Formats, ", "), is)
	case format != "" && format != is && !(format == disk.Raw && is == "vpc"):
		return "", 0, fmt.Errorf("want a %s image, got %s", format, is)
	case format != "":
		is = format
	}
	size, err := i.size(ctx, f, is)
	return is, size, err
}

func (i Inspector) size(ctx context.Context, f *os.File, format string) (int64, error) {
	switch format {
	case disk.Raw:
		st, err := f.Stat()
		if err == nil && st.Size() == 0 {
			err = errors.New("the image is empty")
		}
		if err != nil {
			return 0, err
		}
		return st.Size(), nil
	case disk.QCOW2:
		return qcow2Size(f)
	case "vmdk":
		if err := disk.CheckVMDK(f); err != nil {
			return 0, err
		}
	}
	return i.ask(ctx, f, format)
}

func qcow2Size(f *os.File) (int64, error) {
	h, err := disk.ReadHeader(f)
	switch {
	case err != nil:
		return 0, err
	case h.Version != 2 && h.Version != 3:
		return 0, fmt.Errorf("want version 2 or 3 of qcow2, got %d", h.Version)
	case h.Backing != "":
		return 0, fmt.Errorf("the image stands on another file, %q: want one that is whole (qemu-img convert makes it so)", h.Backing)
	case h.DataFile:
		return 0, errors.New("the image has its content in another file: want one that is whole (qemu-img convert makes it so)")
	case h.Encrypted:
		return 0, errors.New("the image is encrypted by qcow2's own means, for which no key can be given")
	case h.Size <= 0:
		return 0, errors.New("broken qcow2 header")
	}
	return h.Size, nil
}

// ask has qemu-img tell the size, as nobody, who can open nothing but the image.
func (i Inspector) ask(ctx context.Context, f *os.File, format string) (int64, error) {
	if i.QemuImg == "" {
		return 0, fmt.Errorf("%s images are looked into by qemu-img, which is not installed (Debian: qemu-utils)", format)
	}
	ctx, cancel := context.WithTimeout(ctx, inspectTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, i.QemuImg, "info", "--output=json", "-f", format, "/proc/self/fd/3")
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{f}
	if os.Getuid() == 0 {
		// It opens the file again, by its mode.
		if err := f.Chmod(0o644); err != nil {
			return 0, err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: hypervisor.Nobody, Gid: hypervisor.Nobody}}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return 0, fmt.Errorf("not a sound %s image: %w: %s", format, err, line)
	}
	var info struct {
		Size    int64  `json:"virtual-size"`
		Backing string `json:"backing-filename"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return 0, fmt.Errorf("what qemu-img says: %w", err)
	}
	if info.Backing != "" {
		return 0, fmt.Errorf("the image stands on another file, %q: want one that is whole (qemu-img convert makes it so)", info.Backing)
	}
	return info.Size, nil
}

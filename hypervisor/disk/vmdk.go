package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
)

// Where a sparse VMDK file has its description (QEMU's block/vmdk.c), in bytes.
const (
	vmdkCapacity    = 12 // in the header: sectors of the disk, 8 bytes
	vmdkDescription = 0x200
	vmdkDescLength  = 20 * 512
)

// CheckVMDK refuses a description that may name other files. QEMU reads the
// extents of one where the header has no capacity of its own, and a parent
// always.
func CheckVMDK(image *os.File) error {
	b := make([]byte, vmdkDescription+vmdkDescLength)
	n, err := image.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return err
	}
	b = b[:n]
	switch {
	case bytes.HasPrefix(b, []byte("# Disk")):
		return errors.New("the image is a description of other files: want one that is whole (qemu-img convert makes it so)")
	case bytes.HasPrefix(b, []byte("KDMV")) && (n < vmdkCapacity+8 || binary.LittleEndian.Uint64(b[vmdkCapacity:]) == 0):
		return errors.New("the image has its content in other files: want one that is whole (qemu-img convert makes it so)")
	case bytes.Contains(b, []byte("parentFileNameHint")):
		return errors.New("the image stands on another file: want one that is whole (qemu-img convert makes it so)")
	}
	return nil
}

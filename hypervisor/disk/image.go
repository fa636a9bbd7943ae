// Package disk knows disk images: what format a file has, and how a machine's
// own disks are made. New images are made by qemu-img.
//
// It knows nothing of machines, nor who may read what.
package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Format of an image: "raw", or the name that QEMU gives it.
const (
	Raw   = "raw"
	QCOW2 = "qcow2"
)

// signatures are the bytes by which a format is known.
var signatures = []struct {
	format string
	at     int64 // offset in bytes; negative: from the end
	magic  string
}{
	{QCOW2, 0, "QFI\xfb"},
	{"qed", 0, "QED\x00"},
	{"vmdk", 0, "KDMV"},
	{"vmdk", 0, "COWD"},
	{"vmdk", 0, "# Disk DescriptorFile"},
	{"vdi", 64, "\x7f\x10\xda\xbe"},
	{"vhdx", 0, "vhdxfile"},
	{"vpc", 0, "conectix"},
	{"vpc", -512, "conectix"}, // of fixed size: at the end only
	{"luks", 0, "LUKS\xba\xbe"},
}

// Format tells the format of an image by its first bytes. What has none that
// is known is raw. A guest can write those bytes: the answer is good for
// finding a mistake, not for deciding how to read the image.
func Format(image *os.File) (string, error) {
	for _, s := range signatures {
		got, err := readAt(image, s.at, len(s.magic))
		if err != nil {
			return "", err
		}
		if string(got) == s.magic {
			return s.format, nil
		}
	}
	return Raw, nil
}

// readAt reads up to n bytes at an offset, counted from the end if negative.
func readAt(f *os.File, at int64, n int) ([]byte, error) {
	if at < 0 {
		end, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return nil, err
		}
		if at += end; at < 0 {
			return nil, nil
		}
	}
	b := make([]byte, n)
	n, err := f.ReadAt(b, at)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

// Check says what is wrong with an image that is said to have a format.
func Check(image *os.File, format string) error {
	is, err := Format(image)
	if err != nil {
		return err
	}
	switch {
	case is == format, format == Raw && readableRaw(is):
		return nil
	case format == Raw:
		// The guest would see the image's inner tables, and destroy them.
		return fmt.Errorf("%s is a %s image, not raw: write format = %q", image.Name(), is, is)
	default:
		return fmt.Errorf("want a %s image, %s is not one", format, image.Name())
	}
}

// readableRaw says whether an image of a known format makes sense as raw too:
// a disk that the guest itself has encrypted, or a fixed VHD, whose content is
// plain.
func readableRaw(format string) bool { return format == "luks" || format == "vpc" }

// Header is what the beginning of a qcow2 image says.
type Header struct {
	Version   int
	Size      int64  // of the disk, in bytes
	Backing   string // the file behind it, as it is written there; "" if there is none
	DataFile  bool   // the content is in another file
	Encrypted bool
	Snapshots int // that the image itself holds

	BackingFormat string // "" where it is not said
}

// maxBacking is how long the name of a backing file may be (QEMU's
// docs/interop/qcow2.txt).
const maxBacking = 1023

// featureDataFile is the bit of incompatible_features that says so.
const featureDataFile = 1 << 2

// extensionBackingFormat is the header extension with the format of the backing
// file.
const extensionBackingFormat = 0xe2792aca

// ReadHeader reads the header of a qcow2 image.
func ReadHeader(image *os.File) (Header, error) {
	b, err := readAt(image, 0, 104)
	if err != nil {
		return Header{}, err
	}
	if len(b) < 72 || !bytes.HasPrefix(b, []byte("QFI\xfb")) {
		return Header{}, errors.New("not a qcow2 image")
	}
	h := Header{
		Version:   int(binary.BigEndian.Uint32(b[4:])),
		Size:      int64(binary.BigEndian.Uint64(b[24:])),
		Encrypted: binary.BigEndian.Uint32(b[32:]) != 0,
		Snapshots: int(binary.BigEndian.Uint32(b[60:])),
	}
	extensions := int64(72)
	if h.Version >= 3 && len(b) == 104 {
		h.DataFile = binary.BigEndian.Uint64(b[72:])&featureDataFile != 0
		extensions = int64(binary.BigEndian.Uint32(b[100:]))
	}
	at, n := int64(binary.BigEndian.Uint64(b[8:])), binary.BigEndian.Uint32(b[16:])
	if at == 0 {
		return h, nil
	}
	if at < 0 || n > maxBacking {
		return Header{}, errors.New("broken qcow2 header")
	}
	name, err := readAt(image, at, int(n))
	if err != nil {
		return Header{}, err
	}
	h.Backing = string(name)
	h.BackingFormat, err = backingFormat(image, extensions, at)
	return h, err
}

// backingFormat looks for the format of the backing file among the extensions of
// the header, which lie between two offsets.
func backingFormat(image *os.File, from, to int64) (string, error) {
	const most = 64 // extensions, of which QEMU knows five
	for range most {
		if from+8 > to {
			break
		}
		head, err := readAt(image, from, 8)
		if err != nil || len(head) < 8 {
			return "", err
		}
		kind, n := binary.BigEndian.Uint32(head), int64(binary.BigEndian.Uint32(head[4:]))
		if kind == 0 || n > to-from {
			break
		}
		if kind == extensionBackingFormat {
			format, err := readAt(image, from+8, int(min(n, 16)))
			return string(format), err
		}
		from += 8 + (n+7)&^7
	}
	return "", nil
}

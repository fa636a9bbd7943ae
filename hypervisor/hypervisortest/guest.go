package hypervisortest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
)

// guestCode is testdata/guest.s, assembled.
const guestCode = "fcbc00001800e8000000005e81c665000000ac84c0741ae802000000ebf4" +
	"88c466bafd03eca82074fb66baf80388e0eec366ba0106eca801751d66ba" +
	"fd03eca80174ee66baf803ec3c70740b3c72741ae8c9ffffffebda66ba00" +
	"06b034ee66ba040666b8002066efebedb0fee664ebfa6775657374206973" +
	"2075700d0a00"

// GuestUp is what [Guest] says on the serial port when it has started.
const GuestUp = "guest is up\r\n"

// Guest is a kernel for tests: an ELF image with a PVH entry, which needs a CPU and
// a serial port; see testdata/guest.s.
func Guest() []byte {
	const (
		at       = 0x100000 // address of the code
		head     = 0x1000   // offset of the code in the file
		notes    = 0x200    // offset of the note
		noteType = 18       // XEN_ELFNOTE_PHYS32_ENTRY
	)
	code, err := hex.DecodeString(guestCode)
	if err != nil {
		panic(err) // a mistake in the constant
	}
	var note bytes.Buffer
	put := func(b *bytes.Buffer, values ...any) {
		for _, v := range values {
			// Values of fixed sizes and a buffer: nothing can fail.
			if err := binary.Write(b, binary.LittleEndian, v); err != nil {
				panic(err)
			}
		}
	}
	put(&note, uint32(4), uint32(8), uint32(noteType), []byte("Xen\x00"), uint64(at))
	var b bytes.Buffer
	put(&b, []byte("\x7fELF\x02\x01\x01"), make([]byte, 9), // 64 bits, little-endian
		uint16(2), uint16(62), uint32(1), // executable, x86-64
		uint64(at), uint64(64), uint64(0), uint32(0), // entry, headers, no sections
		uint16(64), uint16(56), uint16(2), uint16(64), uint16(0), uint16(0))
	program := func(kind, flags uint32, offset, address, size, align uint64) {
		put(&b, kind, flags, offset, address, address, size, size, align)
	}
	program(1, 7, head, at, uint64(len(code)), 0x1000)
	program(4, 4, notes, 0, uint64(note.Len()), 4)
	image := make([]byte, head+len(code))
	copy(image, b.Bytes())
	copy(image[notes:], note.Bytes())
	copy(image[head:], code)
	return image
}

package hypervisortest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
)

// guestCode is testdata/guest.s, assembled.
const guestCode = "fcbc00001800c705000018003f00000031ede8000000005e81c655010000" +
	"ac84c0741ae802000000ebf488c466bafd03eca82074fb66baf80388e0ee" +
	"c385ed741981fd00060000750b89ea66edf6c4017559eb06f64500017551" +
	"66bafd03eca80174dae83d0000003c70743f3c72744e3c6e74503c620f84" +
	"870000003c6b74103c777505a000001800e89cffffffebad66bafd03eca8" +
	"0174f7e807000000a200001800ebe466baf803ecc366ba0006b034ee66ba" +
	"040666b8002066efebedb0fee664ebfabb0000008089d8e8280000003d36" +
	"1b1100741181c30008000081fb0000018075e4f4ebfd8d4310e808000000" +
	"83e0f0c60001ebed66baf80cef66bafc0cedc3b800000080e8ebffffff3d" +
	"8680c029751666ba020666b8000166efbd00060000b062e95fffffffc705" +
	"f000e0feff010000bb10000000891d0000c0fec7051000c0fe4000000043" +
	"891d0000c0fec7051000c0fe000000004383fb4075d9bd2002e0feb062e9" +
	"1dffffff67756573742069732075700d0a00"

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

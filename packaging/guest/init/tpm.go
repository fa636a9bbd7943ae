package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Commands and constants of TPM 2.0 (TCG: TPM 2.0 Library, part 2).
const (
	tpmDevice = "/dev/tpmrm0"

	tpmNVDefineSpace = 0x12a
	tpmCreatePrimary = 0x131
	tpmNVWrite       = 0x137
	tpmNVRead        = 0x14e

	tpmOwner       = 0x40000001
	tpmEndorsement = 0x4000000b
	tpmPassword    = 0x40000009 // a session

	tpmNVDefined = 0x14c // the error that the index is there already
	tpmIndex     = 0x01500001
	tpmIndexSize = 32 // bytes
)

// tpmError is a response code.
type tpmError uint32

func (e tpmError) Error() string { return fmt.Sprintf("the TPM answers 0x%x", uint32(e)) }

// tpmCall sends a command whose handles have no password, and returns what comes
// after the answer's header. It is written by the order of fields.
func tpmCall(code uint32, handles []uint32, parameters ...any) ([]byte, error) {
	var body bytes.Buffer
	put := func(fields ...any) {
		for _, f := range fields {
			// No error: all are numbers, or slices of bytes.
			_ = binary.Write(&body, binary.BigEndian, f)
		}
	}
	put(handles)
	put(uint32(9), uint32(tpmPassword), uint16(0), uint8(0), uint16(0)) // the first is authorized
	put(parameters...)
	var command bytes.Buffer
	for _, f := range []any{uint16(0x8002), uint32(10 + body.Len()), code, body.Bytes()} {
		_ = binary.Write(&command, binary.BigEndian, f)
	}

	// Not by package os, which would not wait: then there is nothing to be read
	// until the TPM is done.
	fd, err := unix.Open(tpmDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", tpmDevice, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, command.Bytes()); err != nil {
		return nil, err
	}
	answer := make([]byte, 4096)
	n, err := unix.Read(fd, answer)
	if err != nil {
		return nil, err
	}
	if n < 10 {
		return nil, fmt.Errorf("the TPM answers with %d bytes", n)
	}
	if rc := binary.BigEndian.Uint32(answer[6:]); rc != 0 {
		return nil, tpmError(rc)
	}
	return answer[10:n], nil
}

// sized is what begins with its own size in bytes, 16 bits of it, at the start
// of b.
func sized(b []byte) ([]byte, error) {
	if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
		return nil, fmt.Errorf("the TPM's answer is cut off")
	}
	return b[2 : 2+int(binary.BigEndian.Uint16(b))], nil
}

// tpm says what TPM there is. The key is derived from the seed in its state, and
// so is the same as long as that is.
func (g *guest) tpm([]string) error {
	g.say("tpm version %s", readLine("/sys/class/tpm/tpm0/tpm_version_major"))
	g.say("tpm pcr0 %s", readLine("/sys/class/tpm/tpm0/pcr-sha256/0"))
	template := []any{
		uint16(0x23), uint16(0x0b), uint32(0x30072), uint16(0), // ECC, SHA-256, restricted decryption key
		uint16(0x06), uint16(128), uint16(0x43), // AES-128-CFB
		uint16(0x10), uint16(0x03), uint16(0x10), // P-256
		uint16(0), uint16(0),
	}
	size := 0
	for _, f := range template {
		size += binary.Size(f)
	}
	parameters := append([]any{uint16(4), uint32(0), uint16(size)}, template...)
	answer, err := tpmCall(tpmCreatePrimary, []uint32{tpmEndorsement}, append(parameters, uint16(0), uint32(0))...)
	if err != nil {
		return err
	}
	if len(answer) < 8 {
		return fmt.Errorf("the TPM's answer is cut off")
	}
	public, err := sized(answer[8:]) // after the key's handle, and the size of parameters
	if err != nil {
		return err
	}
	sum := sha256.Sum256(public)
	g.say("tpm key %s", hex.EncodeToString(sum[:8]))
	return nil
}

// tpmWrite writes a text to a place in the TPM.
func (g *guest) tpmWrite(args []string) error {
	text := make([]byte, tpmIndexSize)
	copy(text, strings.Join(args, " "))
	// Read and written by the owner, or by the place's own password, which is empty.
	_, err := tpmCall(tpmNVDefineSpace, []uint32{tpmOwner}, uint16(0),
		uint16(14), uint32(tpmIndex), uint16(0x0b), uint32(0x02060006), uint16(0), uint16(tpmIndexSize))
	if err != nil && err != tpmError(tpmNVDefined) {
		return err
	}
	if _, err := tpmCall(tpmNVWrite, []uint32{tpmOwner, tpmIndex}, uint16(tpmIndexSize), text, uint16(0)); err != nil {
		return err
	}
	g.say("tpm wrote")
	return nil
}

// tpmRead prints what tpmWrite wrote.
func (g *guest) tpmRead([]string) error {
	answer, err := tpmCall(tpmNVRead, []uint32{tpmOwner, tpmIndex}, uint16(tpmIndexSize), uint16(0))
	if err != nil {
		return err
	}
	if len(answer) < 4 {
		return fmt.Errorf("the TPM's answer is cut off")
	}
	text, err := sized(answer[4:]) // after the size of parameters
	if err != nil {
		return err
	}
	g.say("tpm holds %q", strings.TrimRight(string(text), "\x00"))
	return nil
}

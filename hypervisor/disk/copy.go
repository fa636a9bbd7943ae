package disk

import (
	"bytes"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Clone makes to, an empty file, share the blocks of from. It says whether the
// file system can; nothing has happened where not.
func Clone(to, from *os.File) bool {
	return unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil
}

// CopyFile copies a file to an empty one, without its zeros; blocks are shared
// where the file system can.
func CopyFile(to *os.File, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if Clone(to, in) {
		return nil
	}
	return CopySparse(to, in)
}

// sparseBlock is what is left out of a file where it is all zeros, in bytes.
const sparseBlock = 64 << 10

// CopySparse writes r to out, an empty file, without its zeros.
func CopySparse(out *os.File, r io.Reader) error {
	block := make([]byte, sparseBlock)
	zeros := make([]byte, sparseBlock)
	for at := int64(0); ; {
		n, end := fill(r, block)
		if !bytes.Equal(block[:n], zeros[:n]) {
			if _, err := out.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if end == io.EOF {
			return out.Truncate(at)
		}
		if end != nil {
			return end
		}
	}
}

// fill is io.ReadFull, but for the error of a short block, which is r's own:
// that of an archive that is cut short is not that of one that has ended.
func fill(r io.Reader, block []byte) (n int, err error) {
	for n < len(block) && err == nil {
		var k int
		k, err = r.Read(block[n:])
		n += k
	}
	return n, err
}

package pull

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// archives are the bytes by which a compressed file is known.
var archives = []struct{ kind, magic string }{
	{"xz", "\xfd7zXZ\x00"},
	{"gzip", "\x1f\x8b\x08"},
	{"zstd", "\x28\xb5\x2f\xfd"},
}

// archive says how a file is compressed, "" where it is not.
func archive(f *os.File) (string, error) {
	b := make([]byte, 6)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	for _, a := range archives {
		if bytes.HasPrefix(b[:n], []byte(a.magic)) {
			return a.kind, nil
		}
	}
	return "", nil
}

// unpack writes to out what is in a file that is compressed, or plain ("").
func (p Puller) unpack(ctx context.Context, out, in *os.File, kind string) error {
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if kind == "" && unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil // shares the blocks, on a file system that can
	}
	phase := Unpacking
	if kind == "" {
		phase = Copying
	}
	m := p.meter(phase, 0, st.Size())
	r, err := decompressor(kind, m.reader(ctx, in))
	if err != nil {
		return err
	}
	defer r.Close()
	return copySparse(out, r)
}

// maxWindow bounds the memory that unpacking takes, in bytes: 128 MiB is what
// zstd --ultra -22 needs.
const maxWindow = 128 << 20

func decompressor(kind string, r io.Reader) (io.ReadCloser, error) {
	switch kind {
	case "xz":
		d, err := xz.NewReader(r)
		return io.NopCloser(d), err
	case "gzip":
		return gzip.NewReader(r)
	case "zstd":
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// sparseBlock is what is left out of a file where it is all zeros, in bytes.
const sparseBlock = 64 << 10

// copySparse writes r to out, an empty file, without its zeros.
func copySparse(out *os.File, r io.Reader) error {
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

package pull

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/vmctl/vmctl/hypervisor/disk"
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
	if kind == "" && disk.Clone(out, in) {
		return nil
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
	return disk.CopySparse(out, r)
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

package cloudinit

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/kdomanski/iso9660"

	"github.com/vmctl/vmctl/config"
)

// label is the volume label by which cloud-init finds a NoCloud seed.
const label = "cidata"

// Build returns m's seed as an ISO 9660 image: a pure function of what
// [Files] returns, so that an image need only be written where it differs.
//
// While it works, the files lie in a directory of mode 0700 below $TMPDIR: a
// caller that may have secrets in them points that to a private place.
func Build(m *config.Machine, read func(path string) ([]byte, error)) ([]byte, error) {
	files, err := Files(m, read)
	if err != nil {
		return nil, err
	}
	image, err := writeImage(files)
	if err != nil {
		return nil, fmt.Errorf("building the cloud-init seed: %w", err)
	}
	return image, nil
}

// writeImage makes the image. The library (v0.4.0) mangles long names and
// panics or escapes its directory on odd ones; ours are four fixed short ones.
func writeImage(files []File) (_ []byte, err error) {
	w, err := iso9660.NewWriter()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Cleanup()) }()
	for _, f := range files {
		if err := w.AddFile(bytes.NewReader(f.Data), f.Name); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	var b bytes.Buffer
	if err := w.WriteTo(&b, label); err != nil {
		return nil, err
	}
	return zeroStamps(b.Bytes())
}

// The primary volume descriptor is the 17th sector of 2048 bytes (ECMA-119,
// 8.4). Its times of creation, modification and becoming effective are those
// that the library sets to now, whatever the content.
var stamps = [...]int{16*2048 + 813, 16*2048 + 830, 16*2048 + 864}

// noStamp is the notation of a time that is not given (ECMA-119, 8.4.26.1).
const noStamp = "0000000000000000\x00"

// zeroStamps makes the volume's times say that they are not given.
func zeroStamps(image []byte) ([]byte, error) {
	const descriptor = 16*2048 + 1
	if len(image) < 17*2048 || string(image[descriptor:descriptor+5]) != "CD001" {
		return nil, errors.New("no volume descriptor where ISO 9660 has it")
	}
	for _, at := range stamps {
		copy(image[at:], noStamp)
	}
	return image, nil
}

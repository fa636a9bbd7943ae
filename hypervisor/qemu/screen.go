package qemu

import (
	"context"
	"errors"
	"fmt"
	"image"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// maxScreenshot is how large a picture may be, in bytes: 16384 by 5461 pixels.
const maxScreenshot = 256 << 20

// Authorize implements [hypervisor.DisplayControl].
func (c *control) Authorize(ctx context.Context, kind, password string, valid time.Duration) error {
	// An earlier password is of no use from here on, and until both are done
	// nobody knows the new one.
	if err := c.run(ctx, "set_password", map[string]string{"protocol": kind, "password": password}, nil); err != nil {
		return err
	}
	return c.run(ctx, "expire_password", map[string]string{"protocol": kind, "time": "+" + strconv.Itoa(int(valid.Seconds()))}, nil)
}

// Screenshot implements [hypervisor.DisplayControl]. QEMU writes into a file
// without a name that it is handed, so there is none to be found in its place.
func (c *control) Screenshot(ctx context.Context, head int) (_ image.Image, err error) {
	fd, err := unix.MemfdCreate("screenshot", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "screenshot")
	defer file.Close()
	// QEMU takes it for one that is to be written to alone.
	forQEMU, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer forQEMU.Close()
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := c.runWith(ctx, forQEMU, "add-fd", nil, &set); err != nil {
		return nil, err
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		err = errors.Join(err, c.run(undo, "remove-fd", map[string]int{"fdset-id": set.ID}, nil))
	}()
	arguments := map[string]any{"filename": fmt.Sprintf("/dev/fdset/%d", set.ID), "device": "video", "head": head}
	if err := c.run(ctx, "screendump", arguments, nil); err != nil {
		return nil, err
	}
	return readPPM(file)
}

// readPPM reads a picture as QEMU writes them: "P6", width, height and 255 on
// lines of their own, then three bytes for each pixel.
func readPPM(file *os.File) (image.Image, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxScreenshot {
		return nil, fmt.Errorf("a picture of %d bytes", info.Size())
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(io.NewSectionReader(file, 0, info.Size()), data); err != nil {
		return nil, err
	}
	return decodePPM(data)
}

func decodePPM(data []byte) (image.Image, error) {
	var header [4]string // P6, width, height, 255
	rest := data
	for i := range header {
		end := 0
		for end < len(rest) && end < 20 && rest[end] != ' ' && rest[end] != '\n' {
			end++
		}
		if end == len(rest) {
			return nil, errors.New("want a PPM picture, got something else")
		}
		header[i], rest = string(rest[:end]), rest[end+1:]
	}
	width, err1 := strconv.Atoi(header[1])
	height, err2 := strconv.Atoi(header[2])
	const most = 1 << 15 // pixels each way
	if header[0] != "P6" || header[3] != "255" || err1 != nil || err2 != nil ||
		width < 1 || height < 1 || width > most || height > most || len(rest) != 3*width*height {
		return nil, fmt.Errorf("want a PPM picture, got one of %d bytes that begins with %q", len(data), header)
	}
	picture := image.NewNRGBA(image.Rect(0, 0, width, height))
	for i := range width * height {
		copy(picture.Pix[4*i:], rest[3*i:3*i+3])
		picture.Pix[4*i+3] = 0xff
	}
	return picture, nil
}

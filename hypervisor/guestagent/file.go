package guestagent

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
)

// piece is how much of a file goes with one call, in bytes: with what base64
// and JSON add it is less than an answer may be.
const piece = 512 << 10

// File is a file of the guest that the agent has open.
type File struct {
	c      *Channel
	handle int64
	path   string
}

// Open opens a file of the guest; mode is that of fopen(3). One that is a FIFO or
// a terminal may hold the agent up for good: it is for the caller to know.
func (c *Channel) Open(ctx context.Context, path, mode string) (*File, error) {
	f := &File{c: c, path: path}
	if err := c.call(ctx, "guest-file-open", map[string]string{"path": path, "mode": mode}, &f.handle, maxAnswer); err != nil {
		return nil, err
	}
	return f, nil
}

// Read reads at most one piece into p. At the end of the file, which may grow,
// it is io.EOF.
func (f *File) Read(ctx context.Context, p []byte) (int, error) {
	want := min(len(p), piece)
	var answer struct {
		Count int64  `json:"count"`
		Data  string `json:"buf-b64"`
		EOF   bool   `json:"eof"`
	}
	if err := f.c.call(ctx, "guest-file-read", map[string]int64{"handle": f.handle, "count": int64(want)}, &answer, maxAnswer); err != nil {
		return 0, err
	}
	data, err := base64.StdEncoding.DecodeString(answer.Data)
	switch {
	case err != nil:
		return 0, fmt.Errorf("guest agent: guest-file-read: %w", err)
	case answer.Count != int64(len(data)) || len(data) > want:
		return 0, fmt.Errorf("guest agent: guest-file-read: asked for %d bytes, it says %d and sends %d", want, answer.Count, len(data))
	case len(data) == 0 && !answer.EOF:
		return 0, fmt.Errorf("guest agent: guest-file-read of %s: no data, and no end", f.path)
	case len(data) == 0:
		return 0, io.EOF
	}
	return copy(p, data), nil
}

// Write writes all of p.
func (f *File) Write(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		part := p[:min(len(p), piece)]
		var answer struct {
			Count int64 `json:"count"`
		}
		if err := f.c.call(ctx, "guest-file-write", map[string]any{"handle": f.handle, "buf-b64": part}, &answer, maxAnswer); err != nil {
			return err
		}
		if answer.Count <= 0 || answer.Count > int64(len(part)) {
			return fmt.Errorf("guest agent: guest-file-write of %s: of %d bytes, it says that it wrote %d", f.path, len(part), answer.Count)
		}
		p = p[answer.Count:]
	}
	return nil
}

// Close closes the file; what is not written by then fails with it.
func (f *File) Close(ctx context.Context) error {
	return f.c.call(ctx, "guest-file-close", map[string]int64{"handle": f.handle}, nil, maxAnswer)
}

// abandon closes a file that nobody wants any more, also where ctx has ended.
func (f *File) abandon(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.c.endTime/2)
	defer cancel()
	// The agent has too many open files at worst, until it is started again.
	_ = f.Close(ctx)
}

// CopyOut writes what is left of the file to w.
func (f *File) CopyOut(ctx context.Context, w io.Writer) (int64, error) {
	buffer := make([]byte, piece)
	var total int64
	for {
		n, err := f.Read(ctx, buffer)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		if err := f.c.write(ctx, w, buffer[:n]); err != nil {
			return total, err
		}
		total += int64(n)
	}
}

// WriteFile makes a file of the guest of what r gives; mode is that of fopen(3).
func (c *Channel) WriteFile(ctx context.Context, path, mode string, r io.Reader) error {
	f, err := c.Open(ctx, path, mode)
	if err != nil {
		return err
	}
	buffer := make([]byte, piece)
	for {
		n, end, err := c.read(ctx, r, buffer)
		if err == nil {
			err = f.Write(ctx, buffer[:n])
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			f.abandon(ctx)
			return err
		}
		if end {
			return f.Close(ctx)
		}
	}
}

// ReadFile writes what a file of the guest has to w.
func (c *Channel) ReadFile(ctx context.Context, path string, w io.Writer) error {
	f, err := c.Open(ctx, path, "rb")
	if err != nil {
		return err
	}
	defer f.abandon(ctx)
	_, err = f.CopyOut(ctx, w)
	return err
}

package disk

import (
	"context"
	"os"
)

// CreateSnapshot takes a snapshot inside of a qcow2 image that nothing uses. The
// layer's file is open for reading and writing, as for all that follow.
func (i Img) CreateSnapshot(ctx context.Context, l Layer, tag string) error {
	return i.snapshot(ctx, l, "-c", tag)
}

// ApplySnapshot makes an image's content, and its size, what they were.
func (i Img) ApplySnapshot(ctx context.Context, l Layer, tag string) error {
	return i.snapshot(ctx, l, "-a", tag)
}

// DeleteSnapshot removes a snapshot from an image.
func (i Img) DeleteSnapshot(ctx context.Context, l Layer, tag string) error {
	return i.snapshot(ctx, l, "-d", tag)
}

func (i Img) snapshot(ctx context.Context, l Layer, what, tag string) error {
	return i.onOne(ctx, l, func(source string) []string { return []string{"snapshot", "-q", what, tag, source} })
}

// RemoveBitmap removes a dirty bitmap from an image.
func (i Img) RemoveBitmap(ctx context.Context, l Layer, bitmap string) error {
	return i.onOne(ctx, l, func(source string) []string { return []string{"bitmap", "--remove", source, bitmap} })
}

// FreeLeaks gives back what a qcow2 image takes for nothing, since something was
// cut off while it was changed.
func (i Img) FreeLeaks(ctx context.Context, l Layer) error {
	return i.onOne(ctx, l, func(source string) []string { return []string{"check", "-q", "-r", "leaks", source} })
}

// onOne runs qemu-img on one image, whatever that stands on.
func (i Img) onOne(ctx context.Context, l Layer, args func(source string) []string) error {
	source, err := Chain{l}.source(firstDescriptor)
	if err != nil {
		return err
	}
	_, err = i.run(ctx, nil, []*os.File{l.File}, args(source)...)
	return err
}

package hypervisor

import (
	"context"
	"os"
)

// DiskCopier copies disks as all of them are at one moment, while a guest may
// write to them: a [Control], or what a [DiskOpener] returns. A disk is named by
// its key in the definition, e.g. "disk.root"; "boot.firmware" are the UEFI
// variables. One copying at a time.
type DiskCopier interface {
	// InspectDisk says what there is of a disk. The error is fs.ErrNotExist
	// where the machine has no such disk.
	InspectDisk(ctx context.Context, key string) (DiskState, error)

	// BeginCopy begins to copy; when it returns, the moment has passed that
	// the copies are as of.
	BeginCopy(ctx context.Context, copies []DiskCopy, bytesPerSecond int64) error

	// Copying says how far the copies are, in bytes, and whether they have
	// ended; the error is why one has failed, and with it all.
	Copying(ctx context.Context) (done, total int64, ended bool, err error)

	// EndCopy takes back, finished or not, what BeginCopy has made, but for
	// the bitmaps. It may be called at any time, also by who has not begun: a
	// guest that was paused because its writes could not be copied goes on.
	EndCopy(ctx context.Context) error

	// RemoveBitmap removes a bitmap. It is no error where there is none.
	RemoveBitmap(ctx context.Context, key, bitmap string) error
}

// DiskState is what there is of a disk.
type DiskState struct {
	Format      string // of the image
	VirtualSize int64  // bytes
	Allocated   int64  // bytes that the image and those that it stands on take
	// KeepsBitmaps says whether bitmaps survive the hypervisor's clean end.
	KeepsBitmaps bool
	Bitmaps      []Bitmap
}

// Bitmap keeps in mind what was written to a disk since it was made.
type Bitmap struct {
	Name        string
	Sound       bool  // knows of every write
	Dirty       int64 // bytes written since
	Granularity int64 // bytes
}

// DiskCopy is how to copy one disk.
type DiskCopy struct {
	Key string
	// Target is an empty qcow2 image of the disk's size. QEMU gets the open
	// file, which is open for reading and writing.
	Target *os.File
	// Since is the bitmap of what is to be copied; "" for all.
	Since string
	// Bitmap is one that is made at the moment of the copy; "" for none.
	Bitmap string
}

// BitmapGranularity is that of bitmaps made by [DiskCopier], in bytes.
const BitmapGranularity = 64 << 10

// DiskOpener is a Hypervisor that can copy disks while the machine does not run.
type DiskOpener interface {
	// OpenDisks opens disks, and keeps everybody else from writing to them
	// until Close.
	OpenDisks(ctx context.Context, host Host, disks []OpenDisk) (OpenedDisks, error)
}

// OpenedDisks are disks of a machine that does not run.
type OpenedDisks interface {
	DiskCopier
	Close() error
}

// OpenDisk is a disk that is opened: its images, from the top down.
type OpenDisk struct {
	Key    string
	Images []OpenImage
}

// OpenImage is an image by its open file: for reading and writing, for the one
// at the top of a qcow2 disk, which keeps bitmaps.
type OpenImage struct {
	File   *os.File
	Format string
	Write  bool
}

package disk

import (
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

// tryBytes is how much is read to try direct I/O: as much, and from an address
// as aligned, as any file system asks for.
const tryBytes = 4096

// TryDirect tries direct I/O on a file and, with chain, on the files that qcow2
// images name behind it. It needs no more than the right to read, and is safe
// with more: it changes nothing, takes no lock, opens files and block devices
// alone, and follows no name in a file that is not said to be qcow2.
func TryDirect(path, format string, chain bool) hypervisor.DirectIO {
	if format == "vmdk" {
		// Its descriptor names other files.
		return hypervisor.DirectIO{Unwise: "a vmdk image may have its content elsewhere"}
	}
	works := hypervisor.DirectIO{Works: true}
	for range MaxChain {
		h, d := tryOne(path, format)
		if !d.Works {
			return d
		}
		works.Unwise = cmp.Or(works.Unwise, d.Unwise)
		if h.Backing == "" || !chain {
			return works
		}
		if h.BackingFormat == "" {
			return hypervisor.DirectIO{Unwise: path + " does not say of which format is what it stands on"}
		}
		backing, err := Backing(path, h)
		if err != nil {
			return hypervisor.DirectIO{Unwise: err.Error()}
		}
		path, format = backing, h.BackingFormat
	}
	return hypervisor.DirectIO{Unwise: "the images behind it never end"}
}

// tryOne tries one file and returns its header, where it is of qcow2.
func tryOne(path, format string) (h Header, d hypervisor.DirectIO) {
	not := func(err error) (Header, hypervisor.DirectIO) {
		return Header{}, hypervisor.DirectIO{Unwise: err.Error()}
	}
	// What it is comes before it is opened: some devices act on that alone.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return not(&os.PathError{Op: "open", Path: path, Err: err})
	}
	defer unix.Close(fd)
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil {
		return not(err)
	}
	if kind := s.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFBLK {
		return not(fmt.Errorf("%s is neither a file nor a block device", path))
	}
	opened := fmt.Sprintf("/proc/self/fd/%d", fd)
	if format == QCOW2 {
		f, err := os.Open(opened)
		if err != nil {
			return not(err)
		}
		defer f.Close()
		if h, err = ReadHeader(f); err != nil {
			return not(fmt.Errorf("%s: %w", path, err))
		}
		if h.DataFile {
			return not(fmt.Errorf("%s has its content elsewhere", path))
		}
	}
	if err := readDirect(opened); err != nil {
		return not(fmt.Errorf("%s cannot do direct I/O: %w", path, err))
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return not(err)
	}
	return h, hypervisor.DirectIO{Works: true, Unwise: unwise(int64(fs.Type))}
}

// unwise says why direct I/O is better left alone on a file system, "" where
// there is no reason.
func unwise(fsType int64) string {
	const zfs = 0x2fc12fc1 // no constant of the kernel's: it is not in it
	switch fsType {
	case unix.BTRFS_SUPER_MAGIC:
		// A guest may change a block while it is being written.
		return "btrfs finds wrong checksums after direct I/O"
	case zfs:
		return "zfs locks up under direct I/O, or does without it silently"
	}
	return ""
}

// readDirect reads the beginning of a file past the page cache.
func readDirect(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A mapping of its own is aligned, which memory of Go's need not be.
	page, err := unix.Mmap(-1, 0, tryBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(page)
	for {
		_, err = unix.Pread(fd, page, 0)
		if err != unix.EINTR {
			return err
		}
	}
}

// ringEntries is how many requests the rings are tried with: as many as QEMU
// has.
const ringEntries = 1024

// TryEngines tries what the kernel lets this process do, and with it the
// program that it becomes, as far as that program is linked to the library of
// each; builtIn says that it makes their system calls itself. Where the kernel lets it have io_uring, Linux AIO is taken to work too:
// to try that costs tens of milliseconds, in which the kernel takes it back.
func TryEngines(program string, builtIn bool) hypervisor.Engines {
	linked := map[string]bool{"liburing": true, "libaio": true}
	if !builtIn {
		linked = libraries(program)
	}
	ring := tryURing() == nil
	return hypervisor.Engines{
		IOURing: linked["liburing"] && ring,
		Native:  linked["libaio"] && (ring || tryNative() == nil),
	}
}

// libraries are the names of the libraries that a program asks for, without
// version; none of what is no ELF file.
func libraries(program string) map[string]bool {
	names := map[string]bool{}
	f, err := elf.Open(program)
	if err != nil {
		return names
	}
	defer f.Close()
	imported, err := f.ImportedLibraries()
	if err != nil {
		return names
	}
	for _, lib := range imported {
		name, _, _ := strings.Cut(lib, ".so")
		names[name] = true
	}
	return names
}

// tryURing makes a ring and lets it go again (io_uring_setup(2)).
func tryURing() error {
	var params [120]byte // struct io_uring_params, all of it zero
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ringEntries, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}

// tryNative makes a context of Linux AIO and lets it go again (io_setup(2)).
func tryNative() error {
	var context uint64
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, ringEntries, uintptr(unsafe.Pointer(&context)), 0); errno != 0 {
		return errno
	}
	if _, _, errno := unix.Syscall(unix.SYS_IO_DESTROY, uintptr(context), 0, 0); errno != 0 {
		return errors.New("io_destroy: " + errno.Error())
	}
	return nil
}

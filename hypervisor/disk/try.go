package disk

import (
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

// tryBytes is how much is read to try direct I/O: as much, and from an address
// as aligned, as any file system asks for.
const tryBytes = 4096

// maxChain is how many images may stand on each other where a chain is
// followed; a longer one goes in circles, or is nothing that anybody wants to
// read.
const maxChain = 200

// TryDirect tries direct I/O on a file and, with chain, on the files that qcow2
// images name behind it. It needs no more than the right to read. It changes
// nothing, and takes no lock.
func TryDirect(path, format string, chain bool) hypervisor.DirectIO {
	if format == "vmdk" {
		// Its descriptor names other files.
		return hypervisor.DirectIO{Unwise: "a vmdk image may have its content elsewhere"}
	}
	works := hypervisor.DirectIO{Works: true}
	for range maxChain {
		backing, d := tryOne(path, format)
		if !d.Works {
			return d
		}
		works.Unwise = cmp.Or(works.Unwise, d.Unwise)
		if backing == "" || !chain {
			return works
		}
		if !filepath.IsAbs(backing) {
			backing = filepath.Join(filepath.Dir(path), backing)
		}
		// As qcow2, where it is that: a guest that writes such a header to its
		// raw image gains no more than that another file is read in vain.
		path, format = backing, QCOW2
	}
	return hypervisor.DirectIO{Unwise: "the images behind it never end"}
}

// tryOne tries one file and returns the name of the one behind it.
func tryOne(path, format string) (backing string, d hypervisor.DirectIO) {
	// Not blocking: for what is no file.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", hypervisor.DirectIO{Unwise: err.Error()}
	}
	defer f.Close()
	if format == QCOW2 {
		// What has no such header has no file behind it.
		if h, err := ReadHeader(f); err == nil {
			if h.DataFile {
				return "", hypervisor.DirectIO{Unwise: path + " has its content elsewhere"}
			}
			backing = h.Backing
		}
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return "", hypervisor.DirectIO{Unwise: err.Error()}
	}
	if err := readDirect(path); err != nil {
		return "", hypervisor.DirectIO{Unwise: fmt.Sprintf("%s cannot do direct I/O: %v", path, err)}
	}
	return backing, hypervisor.DirectIO{Works: true, Unwise: unwise(int64(fs.Type))}
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
// each.
func TryEngines(program string) hypervisor.Engines {
	linked := libraries(program)
	return hypervisor.Engines{
		IOURing: linked["liburing"] && tryURing() == nil,
		Native:  linked["libaio"] && tryNative() == nil,
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

package main

import (
	"fmt"
	"io"
)

// archive writes a cpio archive of the format "newc", the one that the kernel
// unpacks (its Documentation/driver-api/early-userspace/buffer-format.rst).
// The first error is kept and returned by close. Inode numbers count up and
// times are zero, so that the same content gives the same bytes.
type archive struct {
	w      io.Writer
	offset int
	inode  int
	err    error
}

const (
	typeDir  = 0o040000
	typeChar = 0o020000
	typeFile = 0o100000
)

func newArchive(w io.Writer) *archive { return &archive{w: w} }

func (a *archive) dir(name string) { a.entry(name, typeDir|0o755, 0, 0, nil) }

func (a *archive) charDevice(name string, major, minor int) {
	a.entry(name, typeChar|0o600, major, minor, nil)
}

func (a *archive) file(name string, perm int, content []byte) {
	a.entry(name, typeFile|perm, 0, 0, content)
}

func (a *archive) close() error {
	a.inode = -1 // the trailer has inode 0
	a.entry("TRAILER!!!", 0, 0, 0, nil)
	return a.err
}

func (a *archive) entry(name string, mode, major, minor int, content []byte) {
	a.inode++
	const uid, gid, links, mtime, devMajor, devMinor, check = 0, 0, 1, 0, 0, 0, 0
	header := "070701"
	for _, field := range []int{
		a.inode, mode, uid, gid, links, mtime, len(content),
		devMajor, devMinor, major, minor, len(name) + 1, check,
	} {
		header += fmt.Sprintf("%08X", field)
	}
	a.write([]byte(header + name + "\x00"))
	a.pad()
	a.write(content)
	a.pad()
}

// pad fills up to a multiple of four bytes.
func (a *archive) pad() { a.write(make([]byte, (4-a.offset%4)%4)) }

func (a *archive) write(b []byte) {
	if a.err != nil {
		return
	}
	var n int
	n, a.err = a.w.Write(b)
	a.offset += n
}

package main

import (
	"fmt"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vmctl/vmctl/hypervisor"
)

// stdio are a hypervisor's standard input and output: nothing and the log, or a
// terminal.
type stdio struct {
	in, out int // out -1: as it is
	ours    int // the other end of the terminal, -1 for none
}

// openStdio opens what the hypervisor has as its standard input and output. Of a
// terminal it has two descriptors that are opened apart: it sets that for reading
// to O_NONBLOCK, and what a guest writes while the monitor is busy would be lost
// on one that is.
func openStdio(terminal bool) (stdio, error) {
	if !terminal {
		null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return stdio{null, -1, -1}, err
	}
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return stdio{}, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return stdio{}, fmt.Errorf("unlock the terminal: %w", err)
	}
	s := stdio{ours: master}
	for _, fd := range []*int{&s.in, &s.out} {
		if *fd, err = peer(master); err != nil {
			return stdio{}, fmt.Errorf("open the terminal: %w", err)
		}
	}
	if _, err := term.MakeRaw(s.in); err != nil { // passes on what is written as it is
		return stdio{}, fmt.Errorf("terminal: %w", err)
	}
	return s, nil
}

// peer opens the other end of a terminal, not by its path, which is another in
// another mount of devpts.
func peer(master int) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// console is the terminal as what the monitor gets.
func (s stdio) console() ends { return ends{hypervisor.Console, -1, s.ours} }

// place puts them where the hypervisor has them.
func (s stdio) place() error {
	if err := unix.Dup3(s.in, 0, 0); err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	if s.out < 0 {
		return nil
	}
	if err := unix.Dup3(s.out, 1, 0); err != nil {
		return fmt.Errorf("standard output: %w", err)
	}
	return nil
}

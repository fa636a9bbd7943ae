package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// systemd keeps open files for a unit, and gives them to its main process
// (sd_pid_notify_with_fds(3), FDSTORE=): so a process before it, which is root
// and sees the host's network, opens for it what it could not open itself.

// storeFiles has systemd keep files for the main process, by a name.
func storeFiles(name string, files []*os.File) error {
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	// systemd would watch them, and drop a TAP interface that has no link yet.
	if err := notifyWith("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fds...); err != nil {
		return fmt.Errorf("hand files to systemd: %w", err)
	}
	return barrier()
}

// dropFiles has systemd close what it keeps by a name.
func dropFiles(name string) error {
	if err := notifyWith("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
		return fmt.Errorf("take files back from systemd: %w", err)
	}
	return barrier()
}

// dropTaken has systemd close what this process has by now: with the queues it would
// keep the interface of a card that is detached, and with the guest's way to the
// monitor have the guest wait for one that has ended.
func dropTaken(stored map[string][]int) error {
	for name := range stored {
		if !strings.HasPrefix(name, queuePrefix) && name != notifyName {
			continue
		}
		if err := notifyWith("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
			return fmt.Errorf("take files back from systemd: %w", err)
		}
	}
	return nil
}

// barrier returns when systemd has read what was sent before.
func barrier() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = notifyWith("BARRIER=1", int(w.Fd()))
	w.Close()
	if err != nil {
		return err
	}
	// systemd closes its end.
	if n, _ := r.Read(make([]byte, 1)); n != 0 {
		return errors.New("systemd answered a barrier")
	}
	return nil
}

// notifyWith is sd_notify(3) with open files.
func notifyWith(state string, fds ...int) error {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendmsg(int(fd), []byte(state), unix.UnixRights(fds...), nil, 0)
		return sent != unix.EAGAIN
	})
	return errors.Join(err, sent)
}

// storedFiles are the files that systemd kept for this process, by name, each
// name's in the order in which they were stored (sd_listen_fds(3)).
func storedFiles() (map[string][]int, error) {
	stored := map[string][]int{}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return stored, nil
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	if len(names) != n {
		return nil, fmt.Errorf("want the names of %d descriptors, got %q", n, os.Getenv("LISTEN_FDNAMES"))
	}
	for i, name := range names {
		stored[name] = append(stored[name], firstDescriptor+i)
	}
	return stored, nil
}

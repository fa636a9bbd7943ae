package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// process is a process that is held by a descriptor, so that its number cannot
// come to mean another.
type process struct {
	pid, fd int
}

func openProcess(pid int) (process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return process{pid, fd}, nil
}

func (p process) close() { unix.Close(p.fd) }

func (p process) signal(s unix.Signal) error {
	err := unix.PidfdSendSignal(p.fd, s, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // has ended
	}
	return err
}

// wait waits until the process has ended, at most so long, and says whether it
// has.
func (p process) wait(limit time.Duration) bool {
	end := time.Now().Add(limit)
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		left := max(0, time.Until(end))
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if n > 0 || err != nil && err != unix.EINTR {
			return true
		}
		if left == 0 {
			return false
		}
	}
}

// monitorProcess finds the machine's monitor. Its number is in a file that the
// machine's user can write: it is believed for a process of the unit's own.
func (a app) monitorProcess(dir runtimeDir) (process, error) {
	b, err := dir.get(a.paths.MonitorPID(a.vm))
	if err != nil {
		return process{}, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return process{}, fmt.Errorf("monitor: no process number: %q", b)
	}
	p, err := openProcess(pid)
	if err != nil {
		return process{}, err
	}
	own, err := cgroup("/proc/self")
	if err == nil {
		var its string
		if its, err = cgroup(fmt.Sprintf("/proc/%d", pid)); err == nil && its != own {
			err = fmt.Errorf("monitor: process %d is in %s, not in %s", pid, its, own)
		}
	}
	if err != nil {
		p.close()
		return process{}, err
	}
	return p, nil
}

// unitProcess holds a process by its number, which the machine's user can have had a
// say in: it is believed for a process of the machine's unit.
func (a app) unitProcess(pid int) (process, error) {
	p, err := openProcess(pid)
	if err != nil {
		return process{}, err
	}
	its, err := cgroup(fmt.Sprintf("%s/proc/%d", a.paths.Root, pid))
	if err == nil && !slices.Contains(strings.Split(its, "/"), config.Unit(a.vm)) {
		err = fmt.Errorf("process %d is in %s: want one of %s", pid, its, config.Unit(a.vm))
	}
	if err != nil {
		p.close()
		return process{}, err
	}
	return p, nil
}

// cgroup is a process' control group as systemd made it; process is its directory in
// /proc. Commands of a unit may be in a group ".control" of their own below it.
func cgroup(process string) (string, error) {
	b, err := os.ReadFile(process + "/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		for _, hierarchy := range []string{"0::", "1:name=systemd:"} {
			if path, ok := strings.CutPrefix(line, hierarchy); ok && path != "/" {
				return strings.TrimSuffix(path, "/.control"), nil
			}
		}
	}
	return "/", nil
}

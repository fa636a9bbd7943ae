package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/all"
)

const (
	firstDescriptor = 3
	maxDescriptors  = 384
	backlog         = 16
)

// inherited are the descriptors that this process has from systemd, and the
// numbers that are kept free for those that the hypervisor will have.
type inherited struct {
	reserved []int
	stored   map[string][]int // by the name under which prepare had them kept
	err      error
}

// reserveDescriptors keeps the numbers that the hypervisor will have free from
// everything else, for the command "run": the Go runtime opens descriptors of
// its own at any time, and to replace one of those would crash it. What systemd
// kept for the machine has those numbers, and gets others.
func reserveDescriptors(args []string) (in inherited) {
	if !slices.Contains(args, "run") {
		return in
	}
	var null int
	if null, in.err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); in.err != nil {
		return in
	}
	freed := map[int]bool{null: true}
	if in.stored, in.err = storedFiles(); in.err != nil {
		return in
	}
	for _, fds := range in.stored {
		for i, fd := range fds {
			if fds[i], in.err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstDescriptor+maxDescriptors); in.err != nil {
				return in
			}
			if in.err = unix.Dup3(null, fd, unix.O_CLOEXEC); in.err != nil {
				return in
			}
			freed[fd] = true
		}
	}
	for fd := firstDescriptor; len(in.reserved) < maxDescriptors; fd++ {
		if !freed[fd] {
			var got int
			if got, in.err = unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, fd); in.err != nil {
				return in
			}
			fd = got
		}
		in.reserved = append(in.reserved, fd)
	}
	return in
}

// run chooses how the disks are read and written, opens what the hypervisor
// inherits, starts the monitor, and becomes the hypervisor.
func (a app) run(in inherited) error {
	if in.err != nil {
		return fmt.Errorf("reserve descriptors for the hypervisor: %w", in.err)
	}
	if len(a.args) < 2 || a.args[0] != "--" {
		return errors.New("want run NAME -- COMMAND…")
	}
	argv := a.args[1:]
	if refused, err := os.ReadFile(a.paths.Refused(a.vm)); err == nil {
		return refusal{strings.Split(string(refused), "\n")}
	}
	record, err := readVMJSON(a.paths.VMJSON(a.vm))
	if err != nil {
		return err
	}
	if record.Incoming != nil {
		// What it was saved with, whatever plans are like by now.
		argv = record.Plan.Argv
	}
	if argv, err = a.chooseIO(&record, argv); err != nil {
		return err
	}
	if argv, err = a.fit(record, argv); err != nil {
		return err
	}
	ds := record.Plan.Descriptors
	if record.Incoming != nil {
		if argv, ds, err = a.withIncoming(record, argv); err != nil {
			return err
		}
	}
	if len(ds) > len(in.reserved) {
		return fmt.Errorf("want %d descriptors for the hypervisor, there is room for %d", len(ds), len(in.reserved))
	}
	for i := range ds {
		if in.reserved[i] != firstDescriptor+i {
			return fmt.Errorf("descriptor %d is open already", firstDescriptor+i)
		}
	}

	argv = withoutVhost(argv, ds, in.stored)
	ends, err := openDescriptors(a.paths, ds, in.stored)
	if err != nil {
		return err
	}
	if err := dropTaken(in.stored); err != nil {
		return err
	}
	stdio, err := openStdio(record.Plan.Terminal)
	if err != nil {
		return err
	}
	if stdio.ours >= 0 {
		ends = append(ends, stdio.console())
	}
	console, err := listen(a.paths.ConsoleSocket(a.vm))
	if err != nil {
		return err
	}
	guest := in.stored[notifyName]
	if path := record.Plan.NotifySocket; path != "" {
		fd, err := listen(path)
		if err != nil {
			return err
		}
		guest = []int{fd}
	}
	if err := a.startMonitor(console, ends, guest); err != nil {
		return fmt.Errorf("start the monitor: %w", err)
	}
	if err := a.startLoader(ends); err != nil {
		return fmt.Errorf("start the loading: %w", err)
	}
	// All but these close by themselves at the exec.
	for i, end := range ends[:len(ds)] {
		if err := unix.Dup3(end.hypervisor, firstDescriptor+i, 0); err != nil {
			return fmt.Errorf("descriptor %d: %w", firstDescriptor+i, err)
		}
	}
	if err := stdio.place(); err != nil {
		return err
	}
	return fmt.Errorf("execute %s: %w", argv[0], syscall.Exec(argv[0], argv, append(os.Environ(), record.Plan.Env...)))
}

// withIncoming has the hypervisor go on from the saved state: by a command line and
// descriptors.
func (a app) withIncoming(record hypervisor.Record, argv []string) ([]string, []hypervisor.Descriptor, error) {
	ds := record.Plan.Descriptors
	hv, err := hypervisorOf(record)
	if err != nil {
		return nil, nil, err
	}
	if unpacker, ok := hv.(hypervisor.StateUnpacker); ok {
		argv, err := a.unpackState(record, unpacker, argv)
		return argv, ds, err
	}
	ds = append(slices.Clip(ds), hypervisor.Descriptor{Use: hypervisor.State})
	argv, err = withState(record, hv, argv, firstDescriptor+len(ds)-1)
	return argv, ds, err
}

// hypervisorOf is the hypervisor of a machine, which an older or newer version of
// ours may have recorded.
func hypervisorOf(record hypervisor.Record) (hypervisor.Hypervisor, error) {
	hv, ok := all.ByName(record.Machine.Hypervisor)
	if !ok {
		return nil, fmt.Errorf("no such hypervisor: %s", record.Machine.Hypervisor)
	}
	return hv, nil
}

// fit makes the command line fit the program that is there and the sandbox.
func (a app) fit(record hypervisor.Record, argv []string) ([]string, error) {
	hv, err := hypervisorOf(record)
	if err != nil {
		return nil, err
	}
	fitter, ok := hv.(hypervisor.Fitter)
	if !ok {
		return argv, nil
	}
	release, err := fitter.Release(context.Background(), argv[0])
	if err != nil {
		return nil, refusal{[]string{err.Error()}}
	}
	fitted, notes, err := fitter.Fit(argv, release)
	if err != nil {
		return nil, refusal{strings.Split(err.Error(), "\n")}
	}
	for _, note := range notes {
		a.warn("%v", note)
	}
	return fitted, nil
}

// readVMJSON reads what prepare has left for the machine's user.
func readVMJSON(path string) (hypervisor.Record, error) {
	var r hypervisor.Record
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, errors.New("the machine was not prepared")
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if r.Machine == nil || r.Plan == nil {
		return r, fmt.Errorf("%s: no machine or no plan in it", path)
	}
	return r, nil
}

// ends are the two ends of a descriptor; ours, the monitor's or the loader's, is
// -1 where there is only one.
type ends struct {
	use              hypervisor.Use
	hypervisor, ours int
}

func openDescriptors(paths config.Paths, ds []hypervisor.Descriptor, stored map[string][]int) ([]ends, error) {
	var all []ends
	for _, d := range ds {
		e := ends{use: d.Use, ours: -1}
		var err error
		switch d.Use {
		case hypervisor.Listen:
			e.hypervisor, err = listen(d.Path)
			for _, name := range d.Links {
				if err == nil {
					err = link(d.Path, name)
				}
			}
		case hypervisor.Connect:
			e.hypervisor, err = connectSidecar(paths, d.Unit)
		case hypervisor.Events, hypervisor.Console:
			var pair [2]int
			pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			e.hypervisor, e.ours = pair[0], pair[1]
		case hypervisor.Queue:
			name := queueName(d.Card)
			if len(stored[name]) == 0 {
				err = fmt.Errorf("card %s: systemd has kept no interface for it", d.Card)
				break
			}
			e.hypervisor, stored[name] = stored[name][0], stored[name][1:]
		case hypervisor.Vhost:
			e.hypervisor, err = vhostDescriptor(stored, d.Card)
		case hypervisor.State:
			var pipe [2]int
			err = unix.Pipe2(pipe[:], unix.O_CLOEXEC)
			e.hypervisor, e.ours = pipe[0], pipe[1]
		default:
			err = fmt.Errorf("descriptor for %q: not known", d.Use)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// listen opens a Unix stream socket that only its own user and root connect
// to. Clients may connect at once: they wait until somebody accepts.
func listen(path string) (int, error) {
	if err := removeFile(path); err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return -1, fmt.Errorf("bind %s: %w", path, err)
	}
	if err := unix.Chmod(path, 0o600); err != nil {
		return -1, fmt.Errorf("chmod %s: %w", path, err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return -1, fmt.Errorf("listen %s: %w", path, err)
	}
	return fd, nil
}

// link gives a socket another name.
func link(path, name string) error {
	if err := removeFile(name); err != nil {
		return err
	}
	return os.Link(path, name)
}

// startMonitor starts the monitor with its ends of the sockets. It becomes a
// child of this process' parent, the service manager, and not of the
// hypervisor, which would not know what to do with it.
func (a app) startMonitor(console int, all []ends, guest []int) error {
	files := []uintptr{uintptr(console)}
	args := []string{"monitor", a.vm, strconv.Itoa(os.Getpid())}
	for _, e := range all {
		if e.ours >= 0 && e.use != hypervisor.State {
			args = append(args, fmt.Sprintf("%s=%d", e.use, firstDescriptor+len(files)))
			files = append(files, uintptr(e.ours))
		}
	}
	for _, fd := range guest {
		args = append(args, fmt.Sprintf("%s=%d", notifyName, firstDescriptor+len(files)))
		files = append(files, uintptr(fd))
	}
	// One thread and little garbage: there is one monitor for each machine.
	return a.spawn(args, files, "GOMAXPROCS=1", "GOGC=20")
}

// spawn starts a command of this program beside this process, with files from
// descriptor 3 on.
func (a app) spawn(args []string, more []uintptr, env ...string) error {
	argv := []string{"vmctl-unit"}
	if a.paths.User {
		argv = append(argv, "--user")
	}
	if a.paths.Root != "" {
		argv = append(argv, "--root="+a.paths.Root)
	}
	argv = append(argv, args...)
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	files := append([]uintptr{uintptr(null), 1, 2}, more...)
	// By its path and not /proc/self/exe, which would also be its name.
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	_, err = syscall.ForkExec(exe, argv, &syscall.ProcAttr{
		Env:   append(os.Environ(), env...),
		Files: files,
		Sys:   &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT},
	})
	return err
}

package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
)

var _ hypervisor.DiskOpener = QEMU{}

// offline is a QEMU without a machine, for the disks of one that does not run.
type offline struct {
	*control
	exited chan error
	stderr *bytes.Buffer
}

// OpenDisks implements [hypervisor.DiskOpener]. QEMU is given every image as an
// open file, and runs as a user who can open no other.
func (QEMU) OpenDisks(ctx context.Context, host hypervisor.Host, disks []hypervisor.OpenDisk) (hypervisor.OpenedDisks, error) {
	path := host.Programs[program]
	if path == "" {
		return nil, fmt.Errorf("%s was not found on this host; install it (Debian: qemu-system-x86)", program)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs, ours := os.NewFile(uintptr(pair[0]), "qmp"), os.NewFile(uintptr(pair[1]), "qmp")
	defer theirs.Close()
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	o := &offline{control: new(control), exited: make(chan error, 1), stderr: new(bytes.Buffer)}
	cmd := exec.Command(path, offlineArgs(disks)...)
	cmd.Dir = "/"
	cmd.Stderr = o.stderr
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	for _, d := range disks {
		for _, i := range d.Images {
			cmd.ExtraFiles = append(cmd.ExtraFiles, i.File)
		}
	}
	// Ended by SIGTERM it puts its bitmaps away.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: hypervisor.Nobody, Gid: hypervisor.Nobody}
	}
	if err := start(cmd, o.exited); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	theirs.Close() // else the end of QEMU would not be seen
	o.session, err = newSession(ctx, conn, o.note)
	if err != nil {
		conn.Close()
		cmd.Process.Kill()
		<-o.exited
		if said := strings.TrimSpace(o.stderr.String()); said != "" {
			return nil, errors.New(named(said, disks))
		}
		return nil, err
	}
	return o, nil
}

// start starts a program that ends with this process: the signal comes at the
// end of the thread that has started it.
func start(cmd *exec.Cmd, exited chan<- error) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			exited <- cmd.Wait()
		}
	}()
	return <-started
}

// Descriptors of the program: that of QMP, then the images.
const firstDescriptor = 3

func offlineArgs(disks []hypervisor.OpenDisk) []string {
	args := []string{"-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", options("socket", "id=qmp", fmt.Sprintf("fd=%d", firstDescriptor)), "-qmp", "chardev:qmp"}
	fd := firstDescriptor + 1
	for _, d := range disks {
		nodes := offlineNodes(d, fd)
		for range d.Images {
			args = append(args, "-add-fd", options(fmt.Sprintf("fd=%d", fd), fmt.Sprintf("set=%d", fd)))
			fd++
		}
		for _, n := range nodes {
			args = append(args, "-blockdev", jsonArg(n))
		}
	}
	return args
}

// offlineNodes are the nodes of one disk, from the bottom up; its descriptors
// are numbered from fd on.
func offlineNodes(d hypervisor.OpenDisk, fd int) []any {
	top, name, err := nodeOf(d.Key)
	if err != nil {
		panic(err) // callers have it from a definition
	}
	var nodes []any
	var backing *string
	for i := len(d.Images) - 1; i >= 0; i-- {
		image := d.Images[i]
		// No other node begins so.
		file := blockNode{Driver: "file", Name: fmt.Sprintf("f%d-%s", i, name), Filename: fmt.Sprintf("/dev/fdset/%d", fd+i), Locking: "on", ReadOnly: !image.Write}
		if s, err := image.File.Stat(); err == nil && s.Mode()&os.ModeDevice != 0 {
			file.Driver = "host_device"
		}
		node := fmt.Sprintf("b%d-%s", i, name)
		if i == 0 {
			node = top
		}
		format := blockNode{Driver: image.Format, Name: node, File: file.Name, ReadOnly: !image.Write}
		if image.Format == "qcow2" {
			// Never what the header says.
			nodes = append(nodes, file, struct {
				blockNode
				Backing *string `json:"backing"`
			}{format, backing})
		} else {
			nodes = append(nodes, file, format)
		}
		backing = &node
	}
	return nodes
}

// named is a message of QEMU's with the names of files for their descriptors.
func named(message string, disks []hypervisor.OpenDisk) string {
	fd := firstDescriptor + 1
	var pairs []string
	for _, d := range disks {
		for _, i := range d.Images {
			pairs = append([]string{fmt.Sprintf("/dev/fdset/%d", fd), i.File.Name()}, pairs...) // longer numbers first
			fd++
		}
	}
	return strings.NewReplacer(pairs...).Replace(message)
}

// Close ends QEMU, which puts the bitmaps away.
func (o *offline) Close() error {
	err := o.Quit(context.Background())
	o.control.Close()
	if exit := <-o.exited; err == nil && exit != nil {
		err = fmt.Errorf("%w: %s", exit, strings.TrimSpace(o.stderr.String()))
	}
	return err
}

var _ io.Closer = (*offline)(nil)

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/operation"
)

// A machine that runs sees of the host what its sandbox was made with. A file that it
// is given later is mounted for it alone: over an empty file of its state directory,
// which it sees anyway, and which the rules that its hypervisor confines itself by
// let it use. Without that file the mount is gone, in all namespaces (mount_namespaces(7)),
// as it is with the machine's last process.

// show gives the machine's user access to a file, and has the machine see it at f.At.
// With an error, what was given may be left: hide takes it back.
func (r *live) show(f hypervisor.File, user access.User, inspect func(hypervisor.File, *os.File) error) (*os.File, error) {
	if err := checkShown(f); err != nil {
		return nil, err
	}
	file, err := access.Give(r.paths, r.vm, user, f, inspect)
	if err != nil {
		return nil, err
	}
	if err := r.mount(file, f); err != nil {
		file.Close()
		return nil, fmt.Errorf("show the machine %s: %w", f.Path, err)
	}
	return file, nil
}

// checkShown refuses a file that a machine which sees it could not open: of the host's
// devices, its control group lets it open those of its definition at its start.
func checkShown(f hypervisor.File) error {
	var s unix.Stat_t
	if err := unix.Stat(f.Path, &s); err == nil && s.Mode&unix.S_IFMT == unix.S_IFBLK {
		return operation.Refuse(operation.WrongState, "%s: the running machine may not open the block device %s, as it was started without it: it has it by a restart alone", f.Key, f.Path)
	}
	return nil
}

// hide takes back what was shown for a device, which the machine has not got any more,
// and the access that it had for it.
func (r *live) hide(device string) error {
	return errors.Join(access.Drop(r.paths, r.vm, device, ""), removeFile(r.paths.ShownFile(r.vm, device)))
}

// hideAll takes back all that was shown to a machine that has ended.
func (a app) hideAll() error { return os.RemoveAll(a.paths.Shown(a.vm)) }

// mount mounts a file at f.At in the machine's namespace.
func (r *live) mount(file *os.File, f hypervisor.File) error {
	if err := makeMountPoint(f.At); err != nil {
		return err
	}
	tree, err := unix.OpenTree(int(file.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}
	if !f.Write {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	pid, err := access.Peer(r.paths.JobSocket(r.vm))
	if err != nil {
		return err
	}
	return inMountsOf(pid, func() error {
		return os.NewSyscallError("move_mount", unix.MoveMount(tree, "", unix.AT_FDCWD, f.At, unix.MOVE_MOUNT_F_EMPTY_PATH))
	})
}

// makeMountPoint makes an empty file. What is left of an attempt that was cut off goes,
// and with it what is mounted there.
func makeMountPoint(path string) error {
	defer unix.Umask(unix.Umask(0o022)) // the machine has to come by its directory
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := removeFile(path); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o600)
}

// inMountsOf calls do in the mount namespace of a process.
func inMountsOf(pid int, do func() error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	theirs, err := ns.Stat()
	if err != nil {
		return err
	}
	ours, err := os.Stat("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	if os.SameFile(theirs, ours) {
		return errors.New("the machine has no mounts of its own, as its unit's PrivateMounts= gives it: a drop-in has taken its sandbox away")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
				return os.NewSyscallError("setns", err)
			}
			return do()
		}()
	}()
	return <-done
}

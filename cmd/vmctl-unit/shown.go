package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/units/bus"
)

// A machine that runs sees of the host what its sandbox was made with. A file that it
// is given later is mounted for it alone: over an empty file of its state directory,
// which it sees anyway, and which the rules that its hypervisor confines itself by
// let it use. Without that file the mount is gone, in all namespaces (mount_namespaces(7)),
// as it is with the machine's last process.

// show gives the machine's user access to a file, and has the machine see it at f.At.
// With an error, what was given may be left: hide takes it back.
func (r *live) show(ctx context.Context, f hypervisor.File, user access.User, inspect func(hypervisor.File, *os.File) error) (*os.File, error) {
	file, err := access.Give(r.paths, r.vm, user, f, inspect)
	if err != nil {
		return nil, err
	}
	// First what hide knows it by.
	if err = makeMountPoint(f.At); err == nil {
		err = r.allow(ctx, file, f.Write)
	}
	if err == nil {
		err = r.mount(file, f)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("show the machine %s: %w", f.Path, err)
	}
	return file, nil
}

// allow lets the machine's control group open a block device, of which it may open
// those alone that it was started with.
func (r *live) allow(ctx context.Context, file *os.File, write bool) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	device, is := blockDevice(info)
	if !is {
		return nil
	}
	conn, err := bus.Dial(ctx, r.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.AllowBlockDevice(ctx, config.Unit(r.vm), device, write)
}

// blockDevice is the number of a file that is a block device.
func blockDevice(info fs.FileInfo) (number uint64, is bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	return s.Rdev, ok && s.Mode&unix.S_IFMT == unix.S_IFBLK
}

// hide takes back what was shown for a device, which the machine has not got any more,
// and the access that it had for it. path is that of a disk's file, or of a card's
// socket. A machine that has ended may have had all taken back before it was shown this.
func (a app) hide(ctx context.Context, device, path string) error {
	shown := a.paths.ShownFile(a.vm, device)
	var err error
	if access.IsThere(shown) {
		err = a.deny(ctx, path)
	}
	return errors.Join(err, access.Drop(a.paths, a.vm, device, ""), removeFile(shown))
}

// deny takes back what allow gave. Of a device whose node is gone that stays until the
// machine ends.
func (a app) deny(ctx context.Context, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	device, is := blockDevice(info)
	if !is {
		return nil
	}
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.DenyBlockDevice(ctx, config.Unit(a.vm), device)
}

// hideAll takes back all that was shown to a machine that has ended.
func (a app) hideAll(ctx context.Context) error {
	return errors.Join(os.RemoveAll(a.paths.Shown(a.vm)), a.forgetDevices(ctx))
}

// forgetDevices has the next start not let the machine open what this run was let.
func (a app) forgetDevices(ctx context.Context) error {
	if !bus.HasBlockDevices(config.Unit(a.vm), a.paths.User) {
		return nil
	}
	conn, err := bus.Dial(ctx, a.paths.User)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.ForgetBlockDevices(ctx, config.Unit(a.vm))
}

// mount mounts a file at f.At in the machine's namespace.
func (r *live) mount(file *os.File, f hypervisor.File) error {
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
	// The socket is in a directory of the machine's user.
	p, err := r.unitProcess(pid)
	if err != nil {
		return err
	}
	defer p.close()
	return inMountsOf(p, func() error {
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

// inMountsOf calls do in the mount namespace of a process, which has to run yet.
func inMountsOf(p process, do func() error) error {
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/ns/mnt", p.pid))
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
			if err := unix.Setns(p.fd, unix.CLONE_NEWNS); err != nil {
				return os.NewSyscallError("setns", err)
			}
			return do()
		}()
	}()
	return <-done
}

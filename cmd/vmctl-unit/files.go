package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

// maxUntrusted bounds what is read of a file that a machine's user can write,
// in bytes.
const maxUntrusted = 16 << 20

// runtimeDir is a machine's runtime directory as root has to see it: it, and
// whatever is in it, belongs to a process that may have been taken over. No
// name in it leads out of it, and nothing in it is waited for.
type runtimeDir struct {
	*os.Root
	uid, gid int
}

func openRuntimeDir(paths config.Paths, vm string) (runtimeDir, error) {
	root, err := os.OpenRoot(paths.RuntimeDir(vm))
	if err != nil {
		return runtimeDir{}, err
	}
	var s unix.Stat_t
	dir, err := root.Open(".")
	if err == nil {
		err = unix.Fstat(int(dir.Fd()), &s)
		dir.Close()
	}
	if err != nil {
		root.Close()
		return runtimeDir{}, fmt.Errorf("stat %s: %w", paths.RuntimeDir(vm), err)
	}
	return runtimeDir{root, int(s.Uid), int(s.Gid)}, nil
}

// put replaces a file, given by its path as [config.Paths] has it, whole or
// not at all, and gives it to the machine's user.
func (d runtimeDir) put(path string, content []byte, mode os.FileMode) error {
	name := filepath.Base(path)
	temp := "." + name + ".new"
	if err := d.RemoveAll(temp); err != nil {
		return err
	}
	f, err := d.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Chown(d.uid, d.gid); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	return d.Rename(temp, name)
}

// get reads a file.
func (d runtimeDir) get(path string) ([]byte, error) {
	f, err := d.OpenFile(filepath.Base(path), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !s.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxUntrusted+1))
	if err == nil && len(b) > maxUntrusted {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxUntrusted)
	}
	return b, err
}

// getJSON reads a file into v.
func (d runtimeDir) getJSON(path string, v any) error {
	b, err := d.get(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

package main

import (
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// journalDenied is the error of a caller who may read nothing of the host's
// journal: journalctl says little of that, and nothing by its exit status. Anybody
// may read what a user's own manager logs.
func (a *app) journalDenied() error {
	if a.user {
		return nil
	}
	for _, dir := range []string{"/run/log/journal", "/var/log/journal"} {
		files, _ := filepath.Glob(filepath.Join(a.root+dir, "*", "system.journal"))
		for _, file := range files {
			if err := unix.Faccessat(unix.AT_FDCWD, file, unix.R_OK, unix.AT_EACCESS); errors.Is(err, fs.ErrPermission) {
				return withHint(&fs.PathError{Op: "open", Path: file, Err: err}, "run it as root, or as a member of the group systemd-journal")
			}
		}
	}
	return nil
}

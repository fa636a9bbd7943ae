package units

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write writes files below dir, which is new or empty: a file that exists is
// an error, since it has another source. It goes on after an error, so that
// one machine does not cost the others their units.
func Write(dir *os.Root, files []File) error {
	var errs []error
	for _, f := range files {
		if err := write(dir, f); err != nil {
			errs = append(errs, fmt.Errorf("writing %s: %w", f.Name, err))
		}
	}
	return errors.Join(errs...)
}

func write(dir *os.Root, f File) error {
	// No name of ours is deeper. With thousands of machines MkdirAll is felt.
	if err := dir.Mkdir(filepath.Dir(f.Name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return create(dir, f)
}

func create(dir *os.Root, f File) error {
	if f.Link != "" {
		err := dir.Symlink(f.Link, f.Name)
		if errors.Is(err, fs.ErrExist) {
			// Wanted twice is wanted.
			if target, err := dir.Readlink(f.Name); err == nil && target == f.Link {
				return nil
			}
		}
		return err
	}
	file, err := dir.OpenFile(f.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = file.WriteString(f.Text)
	return errors.Join(err, file.Close())
}

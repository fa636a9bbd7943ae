package guestcopy

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// pack writes an archive of what is in a directory. What is neither a file, a
// directory nor a symbolic link is left out.
func pack(dir string, w io.Writer) error {
	archive := tar.NewWriter(w)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return packOne(archive, root, name, info)
	})
	return errors.Join(err, archive.Close())
}

func packOne(archive *tar.Writer, root *os.Root, name string, info fs.FileInfo) error {
	var link string
	var err error
	switch {
	case info.Mode().IsRegular(), info.IsDir():
	case info.Mode()&fs.ModeSymlink != 0:
		if link, err = root.Readlink(name); err != nil {
			return err
		}
	default:
		return nil
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name = "./" + filepath.ToSlash(name)
	header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(archive, f, header.Size); err != nil {
		return fmt.Errorf("%s: it is changing: %w", name, err)
	}
	return nil
}

// unpack writes what an archive of size bytes has into a directory, and nothing
// outside of it. Files are those of whoever unpacks; devices and the like are left
// out. The files have no more bytes than the archive: holes, which it could have
// for nothing, count as well.
func unpack(r io.Reader, dir string, size int64) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	archive := tar.NewReader(r)
	// Those of a directory are set when nothing more goes into it.
	var dirs []*tar.Header
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("the guest's archive: %w", err)
		}
		if size -= header.Size; size < 0 {
			return errors.New("the guest's archive: its files have more bytes than it has itself")
		}
		if header.Typeflag == tar.TypeDir {
			dirs = append(dirs, header)
		}
		if err := unpackOne(root, archive, header); err != nil {
			return fmt.Errorf("the guest's archive: %w", err)
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := attributes(root, dirs[i]); err != nil {
			return err
		}
	}
	// What follows the end belongs to what is compared.
	_, err = io.Copy(io.Discard, r)
	return err
}

func unpackOne(root *os.Root, archive *tar.Reader, header *tar.Header) error {
	name := filepath.Clean(header.Name)
	switch header.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, 0o700); err != nil {
			return err
		}
		return nil
	case tar.TypeSymlink:
		return root.Symlink(header.Linkname, name)
	case tar.TypeLink:
		return root.Link(filepath.Clean(header.Linkname), name)
	case tar.TypeReg:
	default:
		return nil
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, archive)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return attributes(root, header)
}

// attributes gives a file what is left of the mode of an entry, and its time.
func attributes(root *os.Root, header *tar.Header) error {
	name := filepath.Clean(header.Name)
	if err := root.Chmod(name, hostMode(header.FileInfo().Mode())); err != nil {
		return err
	}
	return root.Chtimes(name, header.ModTime, header.ModTime)
}

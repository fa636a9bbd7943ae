package access

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestSocket(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	l, err := net.Listen("unix", at("control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	safe, done, err := Socket(at("control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", safe)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	done()

	if err := os.Symlink("control.sock", at("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "file"} {
		if _, _, err := Socket(at(name)); err == nil {
			t.Errorf("%s was taken for a socket", name)
		}
	}
	if _, _, err := Socket(at("none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

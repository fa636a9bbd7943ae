package cloudinit

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"

	"github.com/vmctl/vmctl/config"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestFiles runs every testdata/*.txtar: web.toml and the files it names above,
// the seed or the error below. "/HERE" stands for the directory of the files.
func TestFiles(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, archive := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(archive), ".txtar"), func(t *testing.T) {
			golden(t, archive)
		})
	}
}

// golden runs one archive.
func golden(t *testing.T, archive string) {
	a, err := txtar.ParseFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var input []txtar.File
	want := map[string]string{}
	for _, f := range a.Files {
		if strings.HasPrefix(f.Name, "want/") {
			want[f.Name] = string(f.Data)
			continue
		}
		input = append(input, f)
		text := strings.ReplaceAll(string(f.Data), "/HERE", dir)
		if err := os.WriteFile(filepath.Join(dir, f.Name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := seedOf(t, dir)
	if *update {
		a.Files = append(input, got...)
		if err := os.WriteFile(archive, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, f := range got {
		if want[f.Name] != string(f.Data) {
			t.Errorf("%s:\n%s\nwant:\n%s", f.Name, f.Data, want[f.Name])
		}
		delete(want, f.Name)
	}
	for name := range want {
		t.Errorf("%s was not made", name)
	}
}

// seedOf returns the seed of dir's web.toml, or its error, as golden files.
func seedOf(t *testing.T, dir string) []txtar.File {
	vm := config.LoadFile(config.SystemPaths(dir), filepath.Join(dir, "web.toml"))
	if vm.Machine == nil {
		t.Fatal(vm.Problems)
	}
	files, err := Files(vm.Machine, ReadFile)
	if err != nil {
		text := strings.ReplaceAll(err.Error(), dir, "/HERE")
		return []txtar.File{{Name: "want/error", Data: []byte(text + "\n")}}
	}
	var got []txtar.File
	for _, f := range files {
		data := bytes.ReplaceAll(f.Data, []byte(dir), []byte("/HERE"))
		if !bytes.HasSuffix(data, []byte("\n")) {
			data = fmt.Appendln(data)
		}
		got = append(got, txtar.File{Name: "want/" + f.Name, Data: data})
	}
	return got
}

func TestReadFileRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, MaxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, big, dir, "/dev/zero", filepath.Join(dir, "absent")} {
		if _, err := ReadFile(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got error %v", path, err)
		}
	}
}

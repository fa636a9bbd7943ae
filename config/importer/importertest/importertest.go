// Package importertest is the tests that each importer goes through.
package importertest

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/config/importer"
)

var update = flag.Bool("update", false, "rewrite what the golden files want")

// Convert is what an importer is.
type Convert func(file string, data []byte) (importer.Result, error)

// want is the last part of a golden file; the other parts are imported one by one.
const want = "want"

// Golden imports each part of testdata/*.txtar, and compares all definitions, and
// what is told as not carried over, with the last part.
func Golden(t *testing.T, convert Convert) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got, again bytes.Buffer
			var wanted []byte
			for _, f := range archive.Files {
				if f.Name == want {
					wanted = f.Data
					continue
				}
				write(&got, f, convert)
				write(&again, f, convert)
			}
			if !bytes.Equal(got.Bytes(), again.Bytes()) {
				t.Error("importing twice gave two results")
			}
			if *update {
				archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == want })
				archive.Files = append(archive.Files, txtar.File{Name: want, Data: got.Bytes()})
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !bytes.Equal(got.Bytes(), wanted) {
				t.Errorf("got:\n%s\nwant:\n%s", got.Bytes(), wanted)
			}
		})
	}
}

func write(b *bytes.Buffer, f txtar.File, convert Convert) {
	all, err := convert(f.Name, f.Data)
	if err != nil {
		fmt.Fprintf(b, "# error: %v\n", err)
	}
	for _, n := range all.NotCarried {
		fmt.Fprintf(b, "# %s\n", n)
	}
	for _, d := range all.Definitions {
		fmt.Fprintf(b, "# %s %s\n%s", d.Kind, d.Name, d.Draft.Text())
		for _, n := range d.NotCarried {
			fmt.Fprintf(b, "# %s\n", n)
		}
	}
}

// Fuzz wants of any text either definitions that can be read again or a problem that
// names the file. What the golden files have is where it begins.
func Fuzz(f *testing.F, convert Convert) {
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range archive.Files {
			if part.Name != want {
				f.Add(part.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := convert("file", data)
		if err != nil {
			if p, ok := errors.AsType[config.Problem](err); !ok || p.File != "file" || p.Text == "" {
				t.Fatalf("%#v is no problem of the file", err)
			}
			return
		}
		for _, d := range all.Definitions {
			if err := config.CheckName(d.Name); err != nil {
				t.Fatal(err)
			}
			paths := config.SystemPaths(t.TempDir())
			file, _ := config.EnvironmentFileOf(paths, d.Kind, d.Name, "file", d.Draft.Text())
			with := paths.With([]config.EnvironmentFile{file}, nil)
			if d.Kind == config.KindVM {
				set, err := config.Load(with)
				if err != nil || len(set.VMs) != 1 {
					t.Fatalf("%v, %d machines:\n%s", err, len(set.VMs), d.Draft.Text())
				}
			}
		}
	})
}

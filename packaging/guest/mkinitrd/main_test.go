package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestArchiveIsReadByCpio(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("no cpio here")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/true\nodd"), 0o755); err != nil {
		t.Fatal(err)
	}
	mods := []*module{{name: "a", depends: []string{"b"}, content: []byte("module a"), aliases: []string{"pci:v1*", "pci:v2*"}}}
	o := options{out: "x", init: program}
	var first, second bytes.Buffer
	for _, w := range []*bytes.Buffer{&first, &second} {
		if err := writeArchive(w, o, mods); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same content gave different archives")
	}

	cmd := exec.Command(cpio, "-idm", "--quiet", "--no-absolute-filenames", "init", "modules/*")
	cmd.Dir = dir
	cmd.Stdin = &first
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	for name, want := range map[string]string{
		"init":          "#!/bin/true\nodd",
		"modules/a.ko":  "module a",
		"modules/index": "module a b\nalias pci:v1* a\nalias pci:v2* a\n",
	} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
}

func TestParseModinfo(t *testing.T) {
	info := strings.Join([]string{
		"license=GPL", "depends=virtio-ring,virtio", "alias=virtio:d00000002v*", "alias=virtio:d00000002v*", "name=x", "",
	}, "\x00")
	depends, aliases := parseModinfo([]byte(info))
	if want := []string{"virtio_ring", "virtio"}; !reflect.DeepEqual(depends, want) {
		t.Errorf("depends: got %q, want %q", depends, want)
	}
	if want := []string{"virtio:d00000002v*"}; !reflect.DeepEqual(aliases, want) {
		t.Errorf("aliases: got %q, want %q", aliases, want)
	}
	if depends, _ := parseModinfo([]byte("depends=\x00")); depends != nil {
		t.Errorf("no dependencies: got %q", depends)
	}
}

func TestModuleName(t *testing.T) {
	for file, want := range map[string]string{
		"virtio_blk.ko": "virtio_blk", "usb-storage.ko.xz": "usb_storage", "a-b.ko.zst": "a_b", "modules.dep": "", "x.c": "",
	} {
		if got, ok := moduleName(file); got != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", file, got, ok, want)
		}
	}
}

func TestBuiltinIsPassedOverAndMissingIsNamed(t *testing.T) {
	tree := &tree{files: map[string]string{}, builtin: map[string]bool{"atkbd": true}}
	mods, missing, err := tree.choose([]string{"atkbd", "not-there"})
	if err != nil || len(mods) != 0 || !reflect.DeepEqual(missing, []string{"not_there"}) {
		t.Errorf("got %v, %q, %v", mods, missing, err)
	}
}

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmctl/vmctl/hypervisor/image"
	"github.com/vmctl/vmctl/hypervisor/image/pull"
)

// importImage stores an image with this content.
func (h host) importImage(name string, content string) {
	h.Helper()
	file := filepath.Join(h.paths.Root, name)
	h.write(file, content, 0o600)
	p := pull.New(image.Store{Paths: h.paths}, "qemu-img", "test")
	if _, _, err := p.Pull(h.Context(), pull.Request{Name: name, File: file}); err != nil {
		h.Fatal(err)
	}
}

// backing is what a disk stands on, and its size, as qemu-img sees it.
func (h host) info(disk string) string {
	h.Helper()
	out, err := exec.Command("qemu-img", "info", h.paths.Disk(h.vm, disk, "qcow2")).CombinedOutput()
	if err != nil {
		h.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestPrepareImages(t *testing.T) {
	h := newHost(t)
	h.importImage("base", strings.Repeat("golden..", 1<<17)) // 1 MiB
	boot := h.definition()
	h.define(boot + "[disk.root]\nimage = \"base\"\nsize = \"2M\"\n[disk.scratch]\nimage = \"base\"\nephemeral = true\n")
	h.must(nil, "prepare", h.vm)
	for _, disk := range []string{"root", "scratch"} {
		if uid, mode := h.stat(h.paths.Disk(h.vm, disk, "qcow2")); uid != vmUser || mode != 0o600 {
			t.Errorf("%s: owner %d, mode %o", disk, uid, mode)
		}
		if info := h.info(disk); !strings.Contains(info, "backing file: "+h.paths.Image("base")+"\nbacking file format: raw\n") {
			t.Errorf("%s: %s", disk, info)
		}
	}
	if info := h.info("root"); !strings.Contains(info, "virtual size: 2 MiB") {
		t.Errorf("root: %s", info)
	}
	if uid, mode := h.stat(h.paths.Image("base")); uid != 0 || mode != 0o444 {
		t.Errorf("the image: owner %d, mode %o", uid, mode)
	}
	h.must(nil, "cleanup", h.vm)
	children, err := image.Store{Paths: h.paths}.Children()
	if err != nil || len(children["base"]) != 1 || children["base"][0].Path != h.paths.Disk(h.vm, "root", "qcow2") {
		t.Errorf("children %v, %v", children, err)
	}

	// What does not fit is refused, with everything else at once.
	h.importImage("other", "x")
	file := filepath.Join(h.paths.VMDirs[1], h.vm+".toml")
	refused := func(tables string, wants ...string) {
		t.Helper()
		h.define(boot + tables)
		out := h.must(nil, "prepare", h.vm)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != len(wants) {
			t.Errorf("%d lines, want %d:\n%s", len(lines), len(wants), out)
			return
		}
		for i, want := range wants {
			if !strings.HasPrefix(lines[i], file+":") || !strings.Contains(lines[i], want) {
				t.Errorf("got %s, want %s", lines[i], want)
			}
		}
	}
	disk := h.paths.Disk(h.vm, "root", "qcow2")
	refused("[disk.root]\nimage = \"other\"\n",
		"disk.root.image: the disk is there already and stands on "+h.paths.Image("base")+", not on "+h.paths.Image("other"))
	refused("[disk.root]\nsize = \"4M\"\n",
		"disk.root: the disk is there already and stands on "+h.paths.Image("base")+", but the definition names no image: name it again, or move "+disk+" away for a new disk")
	refused("[disk.root]\nimage = \"base\"\nformat = \"raw\"\n",
		"disk.root.format: want the format of the disk that is there already, "+disk+", got \"raw\": name that, or have it converted (vmctl disk convert web root), or move the file away for a new disk")
	refused("[disk.new]\npath = \""+h.paths.Image("base")+"\"\nformat = \"raw\"\n",
		"disk.new.path: "+h.paths.Image("base")+" is the stored image base, which is never written to: want image = \"base\" for a disk that begins with it")
	overlay := filepath.Join(h.paths.Root, "overlay.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", h.paths.Image("base"), "-F", "raw", overlay).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	refused("[disk.new]\npath = \""+overlay+"\"\n",
		"disk.new.path: "+overlay+" stands on the stored image base, which the machine sees by its name alone: want image = \"base\" for a disk that does, or a file that is whole")
	// What another machine's disk stands on is not written to, by whatever name.
	golden, linked := filepath.Join(h.paths.Root, "golden.raw"), filepath.Join(h.paths.Root, "linked.raw")
	h.write(golden, strings.Repeat("x", 1<<20), 0o600)
	if err := os.Symlink(golden, linked); err != nil {
		t.Fatal(err)
	}
	child := filepath.Join(h.paths.Root, "child.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", "golden.raw", "-F", "raw", child).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h.write(filepath.Join(h.paths.VMDirs[1], "other.toml"), "[disk.root]\npath = \""+child+"\"\n", 0o644)
	refused("[disk.new]\npath = \""+linked+"\"\nformat = \"raw\"\n",
		"disk.new.path: want a file that no other disk stands on, or readonly = true or ephemeral = true: "+linked+" is what the disk "+child+" of machine other stands on, which any write would break")
	refused("[disk.new]\nimage = \"none\"\n", "disk.new.image: no image is stored by the name none, and it is none that can be pulled: vmctl image import FILE --name none")
	refused("[disk.new]\nimage = \"base\"\nsize = \"512K\"\n", "disk.new.size: want at least 1M, the size of the image base, got 512K")

	// Cut off from its image by hand it needs none, not even that it is there.
	if out, err := exec.Command("qemu-img", "rebase", "-b", "", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := (image.Store{Paths: h.paths}).Delete("base"); err != nil {
		t.Fatal(err)
	}
	h.define(boot + "[disk.root]\nimage = \"base\"\n")
	h.must(nil, "prepare", h.vm)
	if _, err := os.Stat(h.paths.VMJSON(h.vm)); err != nil {
		t.Error(err)
	}
}

// A raw disk is a copy of its image, and does not stand in the way of what
// happens to that.
func TestPrepareRawCopy(t *testing.T) {
	h := newHost(t)
	content := strings.Repeat("golden..", 1<<17)
	h.importImage("base", content)
	h.define(h.definition() + "[disk.root]\nimage = \"base\"\nsize = \"2M\"\nformat = \"raw\"\n")
	h.must(nil, "prepare", h.vm)
	file := h.paths.Disk(h.vm, "root", "raw")
	if b, err := os.ReadFile(file); err != nil || len(b) != 2<<20 || string(b[:len(content)]) != content {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if uid, mode := h.stat(file); uid != vmUser || mode != 0o600 {
		t.Errorf("owner %d, mode %o", uid, mode)
	}
	h.must(nil, "cleanup", h.vm)
	if err := (image.Store{Paths: h.paths}).Delete("base"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.must(nil, "prepare", h.vm)
	if b, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(b), "mine") {
		t.Errorf("the disk was made anew: %v", err)
	}
}

// A machine runs from its image, and what is changed behind the store's back is
// noticed before it is used.
func TestImageChanged(t *testing.T) {
	h := newHost(t)
	h.importImage("base", strings.Repeat("golden..", 1<<17))
	h.define(h.definition() + "[disk.root]\nimage = \"base\"\n")
	p := h.start()
	h.must([]string{"MAINPID="}, "cleanup", h.vm)
	p.Process.Kill()
	p.Wait()
	if err := os.Truncate(h.paths.Image("base"), 4096); err != nil {
		t.Fatal(err)
	}
	out := h.must(nil, "prepare", h.vm)
	if !strings.Contains(out, "disk.root.image: the stored image base: "+h.paths.Image("base")+" has changed: it was stored with 1048576 bytes and has 4096") {
		t.Error(out)
	}
}

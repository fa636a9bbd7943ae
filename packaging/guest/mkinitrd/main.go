// Mkinitrd writes the initial RAM disk of the guest that vmctl's demo and
// tests start: an init program, and kernel modules chosen by name with all
// that they depend on.
//
//	mkinitrd -o INITRD -init PROGRAM -modules DIR [-busybox PROGRAM] MODULE…
//
// DIR is a kernel's module directory (…/lib/modules/VERSION) as it comes out
// of the package. Nothing has to be prepared in it: names, dependencies and
// aliases are read from the modules themselves, not from what depmod writes.
// A module that is built into the kernel is passed over; one that this kernel
// does not have is left out, and said so.
//
// What the init program finds in the archive:
//
//	/init, /bin/busybox      the programs
//	/modules/NAME.ko         the modules, never compressed
//	/modules/index           one line per module with what it depends on,
//	                         dependencies first, and one line per alias:
//	                           module NAME DEPENDENCY…
//	                           alias PATTERN NAME
package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

type options struct {
	out, init, busybox, modules string
	names                       []string
}

func main() {
	var o options
	flag.StringVar(&o.out, "o", "", "initrd to write; compressed where it ends with .gz")
	flag.StringVar(&o.init, "init", "", "static program that becomes /init")
	flag.StringVar(&o.busybox, "busybox", "", "static busybox, optional")
	flag.StringVar(&o.modules, "modules", "", "directory of the kernel's modules")
	flag.Parse()
	o.names = flag.Args()
	if err := run(o, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "mkinitrd:", err)
		os.Exit(1)
	}
}

func run(o options, warnings io.Writer) error {
	if o.out == "" || o.init == "" || o.modules == "" {
		return errors.New("-o, -init and -modules are needed")
	}
	tree, err := openTree(o.modules)
	if err != nil {
		return err
	}
	mods, missing, err := tree.choose(o.names)
	if err != nil {
		return err
	}
	for _, name := range missing {
		fmt.Fprintf(warnings, "mkinitrd: this kernel has no module %s\n", name)
	}
	var buf bytes.Buffer
	if err := writeArchive(&buf, o, mods); err != nil {
		return err
	}
	return replaceFile(o.out, buf.Bytes())
}

func writeArchive(w io.Writer, o options, mods []*module) error {
	if !strings.HasSuffix(o.out, ".gz") {
		return writeFiles(w, o, mods)
	}
	// Decompression is paid at every boot of a guest whose CPU is software.
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := writeFiles(z, o, mods); err != nil {
		return err
	}
	return z.Close()
}

func writeFiles(w io.Writer, o options, mods []*module) error {
	a := newArchive(w)
	for _, dir := range []string{"bin", "dev", "modules", "proc", "run", "sys", "tmp"} {
		a.dir(dir)
	}
	// The kernel opens it for init before init can mount devtmpfs.
	a.charDevice("dev/console", 5, 1)

	programs := []struct{ name, from string }{{"init", o.init}, {"bin/busybox", o.busybox}}
	for _, p := range programs {
		if p.from == "" {
			continue
		}
		content, err := os.ReadFile(p.from)
		if err != nil {
			return err
		}
		a.file(p.name, 0o755, content)
	}
	for _, m := range mods {
		a.file("modules/"+m.name+".ko", 0o644, m.content)
	}
	a.file("modules/index", 0o644, index(mods))
	return a.close()
}

func index(mods []*module) []byte {
	var b bytes.Buffer
	for _, m := range mods {
		fmt.Fprintln(&b, strings.Join(append([]string{"module", m.name}, m.depends...), " "))
	}
	for _, m := range mods {
		for _, alias := range m.aliases {
			fmt.Fprintf(&b, "alias %s %s\n", alias, m.name)
		}
	}
	return b.Bytes()
}

// replaceFile writes the file whole or not at all.
func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".initrd-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	w := bufio.NewWriter(f)
	_, err = w.Write(content)
	if err := errors.Join(err, w.Flush(), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

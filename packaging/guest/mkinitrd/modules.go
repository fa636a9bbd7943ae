package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// module is a loadable kernel module.
type module struct {
	name    string // with underscores, as the kernel calls it
	content []byte // an ELF file
	depends []string
	aliases []string // patterns of device ids
}

// tree is a kernel's module directory.
type tree struct {
	files   map[string]string // module name to file
	builtin map[string]bool
}

func openTree(dir string) (*tree, error) {
	t := &tree{files: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(d.Name()); ok && !d.IsDir() {
			t.files[name] = file
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for modules: %w", err)
	}
	if len(t.files) == 0 {
		return nil, fmt.Errorf("no modules below %s", dir)
	}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, line := range strings.Fields(string(list)) {
		if name, ok := moduleName(path.Base(line)); ok {
			t.builtin[name] = true
		}
	}
	return t, nil
}

// moduleName returns the kernel's name for a module file.
func moduleName(file string) (string, bool) {
	for _, ending := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if base, ok := strings.CutSuffix(file, ending); ok {
			return strings.ReplaceAll(base, "-", "_"), true
		}
	}
	return "", false
}

// choose reads the named modules and what they depend on, dependencies first.
// missing are the names that this kernel has neither as a module nor built in.
func (t *tree) choose(names []string) (mods []*module, missing []string, err error) {
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		if seen[name] || t.builtin[name] {
			return nil
		}
		seen[name] = true
		file, ok := t.files[name]
		if !ok {
			missing = append(missing, name)
			return nil
		}
		m, err := readModule(name, file)
		if err != nil {
			return fmt.Errorf("reading %s: %w", file, err)
		}
		for _, dep := range m.depends {
			if err := add(dep); err != nil {
				return err
			}
		}
		mods = append(mods, m)
		return nil
	}
	for _, name := range names {
		if err := add(strings.ReplaceAll(name, "-", "_")); err != nil {
			return nil, nil, err
		}
	}
	return mods, missing, nil
}

func readModule(name, file string) (*module, error) {
	content, err := decompress(file)
	if err != nil {
		return nil, err
	}
	object, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := object.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	m := &module{name: name, content: content}
	m.depends, m.aliases = parseModinfo(info)
	return m, nil
}

// parseModinfo reads what a module says of itself: key=value pairs that end
// with a zero byte.
func parseModinfo(info []byte) (depends, aliases []string) {
	for pair := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(pair), "=")
		switch key {
		case "depends":
			for dep := range strings.SplitSeq(value, ",") {
				if dep != "" {
					depends = append(depends, strings.ReplaceAll(dep, "-", "_"))
				}
			}
		case "alias":
			// Aliases with spaces do not exist, and would break the index.
			if !strings.ContainsAny(value, " \n") && !slices.Contains(aliases, value) {
				aliases = append(aliases, value)
			}
		}
	}
	return depends, aliases
}

// decompress returns the content of a module file. The standard library reads
// neither xz nor zstd; their programs are on every machine that builds guests.
func decompress(file string) ([]byte, error) {
	var program string
	switch filepath.Ext(file) {
	case ".xz":
		program = "xz"
	case ".zst":
		program = "zstd"
	case ".gz":
		program = "gzip"
	default:
		return os.ReadFile(file)
	}
	cmd := exec.Command(program, "-dc", file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

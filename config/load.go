package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// VM is one definition as it was found: the machine, or what is wrong with it.
type VM struct {
	Name     string
	File     string    // main file: the one with the highest precedence
	Machine  *Machine  // nil where there are problems
	Problems []Problem // in file order
	// Warnings are what may be a mistake in how this machine and others go
	// together, but keeps none of them from being started. [Load] finds them.
	Warnings []Problem
	// Overridden are keys of the files that do not hold, as a drop-in that vmctl keeps
	// says otherwise: those of files that were changed after it.
	Overridden []Problem
	// Files are those that it was made of, in the order in which they were merged:
	// templates, the main file, drop-ins.
	Files []string
	// Autostart is what the files say, also where there are problems: a machine
	// that was to start with the host is missed then.
	Autostart bool
	// ID is [Machine.ID], also where there are problems; "" where the files cannot be
	// read.
	ID string

	// broken is what of a machine with problems could be read; nil where that is
	// nothing, or all. It names others that may not exist all the same.
	broken *Machine

	// changed is when one of its own files last did, templates and drop-ins for
	// all left out.
	changed time.Time
}

// newest is when what is in no file yet changed: after all others.
var newest = time.Unix(1<<40, 0)

// Set is every definition of a host.
type Set struct {
	VMs      []VM // by name
	Networks []NetworkFile
	Groups   []SecurityGroupFile
	Settings Settings  // of the host
	Problems []Problem // of files that belong to no machine: settings, bad file names
}

// suffix of the files that are read; that of drop-in directories is ".toml.d".
const suffix = ".toml"

// common is the name under which drop-ins for all machines lie.
const common = "vms"

// Load reads every definition, and checks each and all together. What is
// wrong stands in the set; the error is of nothing that a file could cause.
func Load(p Paths) (*Set, error) {
	l := newLoader(p)
	set, names := l.all()
	crossCheck(p, set, names)
	SortProblems(set.Problems)
	return set, nil
}

// ProblemsAmong are those that a definition, which is in no file yet, would have
// together with all others: it is blamed for what it and another must not share.
func ProblemsAmong(p Paths, vm VM) []Problem {
	set, names := newLoader(p).all()
	set.VMs = slices.DeleteFunc(set.VMs, func(other VM) bool { return other.Name == vm.Name })
	vm.changed = newest
	set.VMs = append(set.VMs, vm)
	crossCheck(p, set, append(names, vm.Name))
	return set.VMs[len(set.VMs)-1].Problems
}

// all reads every definition, each by itself. names are those of all
// definitions, with those that are masked.
func (l *loader) all() (set *Set, names []string) {
	p := l.paths
	found, problems := p.search(p.VMDirs)
	if l.draft != nil {
		at := p.find(p.VMDirs, l.draft.name())
		at.file = l.draft.file
		found[l.draft.name()] = at
	}
	networks, more := newNetworkLoader(p, l.machineID).all()
	groups, evenMore := LoadSecurityGroups(p)
	set = &Set{Networks: networks, Groups: groups, Settings: l.settings, Problems: slices.Concat(l.problems, problems, more, evenMore)}

	names = slices.Sorted(maps.Keys(found))
	vms := make([]*VM, len(names))
	each(len(names), func(i int) { vms[i] = l.vm(names[i], found[names[i]]) })
	for _, vm := range vms {
		if vm != nil {
			set.VMs = append(set.VMs, *vm)
		}
	}
	return set, names
}

// each calls f for every number below n, on as many processors as there are.
func each(n int, f func(int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), n/16+1) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// LoadVM reads one definition, without the checks that concern other
// machines. The error is fs.ErrNotExist where no such definition exists, or
// it is masked.
func LoadVM(p Paths, name string) (VM, error) {
	if err := CheckName(name); err != nil {
		return VM{}, fmt.Errorf("machine %s: %w (%w)", show(name), fs.ErrNotExist, err)
	}
	at := p.find(p.VMDirs, name)
	if at.file == "" {
		return VM{}, fmt.Errorf("machine %s: %w: no %s%s in %s", name, fs.ErrNotExist, name, suffix, strings.Join(p.VMDirs, ", "))
	}
	vm := newLoader(p).vm(name, at)
	if vm == nil {
		return VM{}, fmt.Errorf("machine %s: %w: masked by %s", name, fs.ErrNotExist, at.file)
	}
	return *vm, nil
}

// LoadFile reads one file as a definition of its own, wherever it lies; the
// machine is named after it. Drop-ins are left out, templates are not. For
// vmctl check FILE.
func LoadFile(p Paths, file string) VM {
	name := strings.TrimSuffix(filepath.Base(file), suffix)
	if want := wantName(name); want != "" {
		return VM{Name: name, File: file, Problems: []Problem{badName(file, want)}}
	}
	l := newLoader(p)
	main := readSource(file, false)
	if main.masked {
		return VM{Name: name, File: file, Problems: []Problem{{File: file, Text: "want a definition, got an empty file"}}}
	}
	return l.build(name, []*source{main})
}

func badName(file, want string) Problem {
	return Problem{File: file, Text: fmt.Sprintf("want %s before %s as the file's name, got %s", want, suffix, show(filepath.Base(file)))}
}

// entry is where the files of one name were found.
type entry struct {
	file    string   // with the highest precedence; "" where there are drop-ins only
	dropIns []string // directories, highest precedence first
}

// search lists the definitions in dirs by name.
func (p Paths) search(dirs []string) (map[string]entry, []Problem) {
	found := map[string]entry{}
	dropIns := map[string][]string{}
	var problems []Problem
	for _, dir := range dirs {
		list, err := p.list(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, Problem{File: dir, Text: cause(err).Error()})
		}
		for _, e := range list {
			file := filepath.Join(dir, e)
			name, isFile := strings.CutSuffix(e, suffix)
			base, isDir := strings.CutSuffix(e, suffix+".d")
			switch {
			case strings.HasPrefix(e, "."):
				// Hidden: an editor's, as everywhere.
			case isDir:
				dropIns[base] = append(dropIns[base], file)
			case isFile && wantName(name) != "":
				problems = append(problems, badName(file, wantName(name)))
			case isFile && found[name].file == "":
				found[name] = entry{file: file}
			}
		}
	}
	for name, at := range found {
		at.dropIns = dropIns[name]
		found[name] = at
	}
	return found, problems
}

// find looks for one name in dirs, without listing them.
func (p Paths) find(dirs []string, name string) entry {
	var at entry
	for _, dir := range dirs {
		file := filepath.Join(dir, name+suffix)
		if at.file == "" && p.isThere(file) {
			at.file = file
		}
		at.dropIns = append(at.dropIns, file+".d")
	}
	return at
}

// dropIns reads the drop-ins of the directories, in the order of their names.
// Of several with one name the first directory's is taken; one that is empty
// or a link to /dev/null takes the place of the others and says nothing.
func (p Paths) dropIns(dirs []string) []*source {
	files := map[string]string{}
	var out []*source
	for _, dir := range dirs {
		list, err := p.list(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			out = append(out, &source{file: dir, dropIn: true, tree: newTree(0), problem: &Problem{File: dir, Text: cause(err).Error()}})
		}
		for _, name := range list {
			if strings.HasSuffix(name, suffix) && !strings.HasPrefix(name, ".") && files[name] == "" {
				files[name] = filepath.Join(dir, name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if s := p.source(files[name], true); !s.masked {
			out = append(out, s)
		}
	}
	return out
}

// loader holds what is read once for all machines.
type loader struct {
	paths     Paths
	schema    *table // of Machine
	machineID string
	settings  Settings
	problems  []Problem // of the settings
	common    []*source // drop-ins for all machines
	draft     *source   // a definition that is not written yet; nil for none

	mu        sync.Mutex
	templates map[string]*layers
}

func newLoader(p Paths) *loader {
	l := &loader{
		paths:     p,
		schema:    schemaOf(reflect.TypeFor[Machine]()),
		common:    p.dropIns(p.find(p.VMDirs, common).dropIns),
		templates: map[string]*layers{},
	}
	l.settings, l.problems = loadSettings(p)
	l.machineID = machineID(p)
	return l
}

// machineID is the host's id. Without one, what is derived from it is the same
// on every such host, which is no reason not to run.
func machineID(p Paths) string {
	id, _ := os.ReadFile(p.MachineID)
	return strings.TrimSpace(string(id))
}

// vm reads one definition with its drop-ins; nil where it is masked.
func (l *loader) vm(name string, at entry) *VM {
	main := l.draft
	if main == nil || main.file != at.file {
		main = l.paths.source(at.file, false)
	}
	if main.masked {
		return nil
	}
	vm := l.build(name, slices.Concat([]*source{main}, l.common, l.paths.dropIns(at.dropIns)))
	return &vm
}

// build makes a machine of its main file and drop-ins, in the order in which
// they are merged.
func (l *loader) build(name string, own []*source) VM {
	vm := VM{Name: name, File: own[0].file}
	files := layered(own)
	if under, _ := files.tree.node("template").(string); under != "" && len(files.problems) == 0 {
		files = l.over(under, files, nil)
	}
	var arguments []Argument
	if len(files.problems) == 0 {
		files, arguments = files.withParameters(name, len(own))
	}
	for _, s := range own {
		if !slices.Contains(l.common, s) && s.changed.After(vm.changed) {
			vm.changed = s.changed
		}
	}
	vm.Autostart, _ = files.tree.node("autostart").(bool)
	vm.Overridden = overridden(own)
	for _, s := range files.sources {
		vm.Files = append(vm.Files, s.file)
	}
	if vm.Problems = files.problems; len(vm.Problems) == 0 {
		vm.Machine, vm.Problems = l.machine(name, files)
		vm.ID = vm.Machine.ID()
		vm.Machine.Parameters = arguments
	}
	if len(vm.Problems) > 0 {
		vm.Machine, vm.broken = nil, vm.Machine
	}
	SortProblems(vm.Problems)
	return vm
}

// layers are files merged into one tree.
type layers struct {
	origin
	tree     *tree
	problems []Problem
}

func layered(sources []*source) layers {
	out := layers{origin: origin{sources: sources}, tree: newTree(0)}
	for _, s := range sources {
		if s.problem != nil {
			out.problems = append(out.problems, *s.problem)
		}
		out.tree = merged(out.tree, s.tree)
	}
	return out
}

// over merges files over the template that they name. chain are the templates
// that led there.
func (l *loader) over(name string, files layers, chain []string) layers {
	problem := func(format string, args ...any) layers {
		files.problems = append(files.problems, files.problem("template", "template", fmt.Sprintf(format, args...)))
		return files
	}
	if want := wantName(name); want != "" {
		return problem("want %s, got %s", want, show(name))
	}
	if slices.Contains(chain, name) {
		return problem("want templates without a loop, got %s", strings.Join(append(chain, name), " → "))
	}
	t := l.template(name, chain)
	if t == nil {
		known, _ := l.paths.search(l.paths.TemplateDirs)
		delete(known, name) // which is masked
		return problem("want a template that exists, got %s: no %s%s in %s%s", show(name), name, suffix, strings.Join(l.paths.TemplateDirs, ", "),
			didYouMean(name, slices.Sorted(maps.Keys(known))))
	}
	return layers{
		origin:   origin{sources: slices.Concat(t.sources, files.sources)},
		tree:     merged(t.tree, files.tree),
		problems: slices.Concat(t.problems, files.problems),
	}
}

// template reads a template, with the templates below it; nil where it does
// not exist.
func (l *loader) template(name string, chain []string) *layers {
	if len(chain) > 0 {
		// Not kept: what is said of a loop depends on where it was entered.
		return l.readTemplate(name, chain)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.templates[name]
	if !ok {
		t = l.readTemplate(name, nil)
		l.templates[name] = t
	}
	return t
}

func (l *loader) readTemplate(name string, chain []string) *layers {
	at := l.paths.find(l.paths.TemplateDirs, name)
	if at.file == "" {
		return nil
	}
	main := l.paths.source(at.file, false)
	if main.masked {
		return nil
	}
	t := layered(append([]*source{main}, l.paths.dropIns(at.dropIns)...))
	if under, _ := t.tree.node("template").(string); under != "" && len(t.problems) == 0 {
		t = l.over(under, t, append(slices.Clone(chain), name))
	}
	return &t
}

// origin knows where each key of a machine was written.
type origin struct {
	sources []*source           // in the order of merging
	filled  map[string][]string // the parameters that were used, by key
}

// locate returns the file and line of a key, or of the nearest table above it
// that was written. A value is where it was written last. A table is blamed on
// the main file where that has it: a drop-in only adds to it.
func (o origin) locate(key string) (file string, line int) {
	for ; key != ""; key = above(key) {
		for _, s := range slices.Backward(o.sources) {
			if s.places == nil {
				continue
			}
			at, ok := s.places()[key]
			if ok && (line == 0 || !s.dropIn) {
				file, line = s.file, at.line
			}
			if ok && (!at.table || !s.dropIn) {
				return file, line
			}
		}
		if line > 0 {
			return file, line
		}
	}
	for _, s := range o.sources {
		if !s.dropIn {
			file = s.file
		}
	}
	return file, 0
}

// above returns the key of the table or list that key is in.
func above(key string) string { return key[:max(0, strings.LastIndexAny(key, ".["))] }

func (o origin) problem(key, at, text string) Problem {
	p := Problem{Key: key, Text: text}
	p.File, p.Line = o.locate(at)
	p.Text += o.used(key)
	return p
}

// Problem makes a problem of this machine, with the file and line where key
// (dotted) was written; a key that was not written gets the line of the
// nearest table above it that was, or the main file without a line.
func (m *Machine) Problem(key, format string, args ...any) Problem {
	text := fmt.Sprintf(format, args...)
	if m.origin == nil {
		return Problem{Key: key, Text: text}
	}
	return m.origin.problem(key, key, text)
}

// Redacted returns a copy of m in which every value that the schema calls
// secret, and the value of every credential, is replaced by "***" (an empty
// one stays empty; a [Text] that names a file stays).
func (m *Machine) Redacted() *Machine {
	r := *m
	c := &r.CloudInit
	for _, t := range []*Text{&c.UserData, &c.MetaData, &c.NetworkConfig, &c.VendorData} {
		if _, file := t.Path(); !file && *t != "" {
			*t = "***"
		}
	}
	c.PasswordHash = Secret(c.PasswordHash.String())
	r.Credentials = slices.Clone(m.Credentials)
	for i := range r.Credentials {
		r.Credentials[i].Value = Secret(r.Credentials[i].Value.String())
	}
	return &r
}

// machine makes a machine of merged files.
func (l *loader) machine(name string, files layers) (*Machine, []Problem) {
	m := new(Machine)
	v := reflect.ValueOf(m).Elem()
	v.Set(l.schema.zero)
	m.Name, m.origin = name, &files.origin
	var d decoder
	d.table(l.schema, files.tree, v)
	c := checker{Machine: m, decoder: &d, tree: files.tree}
	c.fill(l.settings, l.machineID)
	c.check()
	main, _ := files.locate("")
	c.checkRemoval(main, l.paths.VMDirs)
	return m, d.problems(files.origin)
}

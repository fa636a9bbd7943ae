package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Kind says what a file of an [Environment] defines.
type Kind string

// The kinds, in the order in which they are needed by one another.
const (
	KindSettings      Kind = "settings"
	KindImage         Kind = "image"
	KindSecurityGroup Kind = "security_group"
	KindNetwork       Kind = "network"
	KindTemplate      Kind = "template"
	KindVM            Kind = "vm"
)

// Kinds are all of them, in that order.
func Kinds() []Kind {
	return []Kind{KindSettings, KindImage, KindSecurityGroup, KindNetwork, KindTemplate, KindVM}
}

// Environment is what several files or tables declare together.
type Environment struct {
	Files []EnvironmentFile // by kind and path
}

// EnvironmentFile is one file that an environment is to have in the
// administrator's directories.
type EnvironmentFile struct {
	Kind   Kind
	Name   string // of the machine, network …; "" for the settings
	DropIn bool
	Path   string      // where it goes
	From   string      // the file that says so
	Table  string      // in which table of it, "" for all of it
	Text   string      // what it is going to be, without the mark (Marked)
	Mode   os.FileMode // for its owner alone, where it has a secret
	source *source
}

// place is where the files of a kind lie: a directory of the administrator's in
// the system's configuration, and the name of the directory in an environment.
type kindPlace struct {
	kind   Kind
	folder string // in an environment
	dir    string // of the host, "" where there is none
	schema reflect.Type
}

// places are those of the kinds of which each thing has a file of its own.
func (p Paths) kindPlaces() []kindPlace {
	second := func(dirs []string) string {
		if len(dirs) < 2 {
			return ""
		}
		return dirs[1]
	}
	places := []kindPlace{
		{KindTemplate, "templates", second(p.TemplateDirs), reflect.TypeFor[Machine]()},
		{KindVM, "vms", second(p.VMDirs), reflect.TypeFor[Machine]()},
	}
	if !p.User { // who has no part in the host's networks
		places = append(places,
			kindPlace{KindSecurityGroup, "security-groups", second(p.SecurityGroupDirs), reflect.TypeFor[SecurityGroup]()},
			kindPlace{KindNetwork, "networks", second(p.NetworkDirs), reflect.TypeFor[Network]()})
	}
	return places
}

// settingsName and the names of images are drop-ins of tables that several have a
// part in.
const (
	settingsName = "vmctl"
	appliedBase  = "50-apply"
)

// imagePath is where an environment has an image's table.
func (p Paths) imagePath(image string) string {
	return filepath.Join(p.ImageTableDirs[1], imageTable+suffix+".d", appliedBase+"-"+image+suffix)
}

// settingsPath is where an environment has settings of the host.
func (p Paths) settingsPath() string {
	return filepath.Join(p.SettingsDirs[1], settingsName+suffix+".d", appliedBase+suffix)
}

// EnvironmentFileOf is a file of an environment whose text was made of what the file
// from says. It is false where a thing of that kind has no place: a user has no
// networks.
func EnvironmentFileOf(p Paths, kind Kind, name, from, text string) (EnvironmentFile, bool) {
	places := p.kindPlaces()
	i := slices.IndexFunc(places, func(k kindPlace) bool { return k.kind == kind })
	if i < 0 {
		return EnvironmentFile{}, false
	}
	f := EnvironmentFile{Kind: kind, Name: name, Path: Definition(places[i].dir, name), From: from, Text: text}
	f.source = &source{file: f.Path, tree: newTree(0)}
	f.source.parse(text)
	f.Mode = modeOf(schemaOf(places[i].schema), f.source.tree, 0o644)
	return f, true
}

// ReadEnvironment reads a file with the tables of an environment, or a directory
// with the files of one, laid out as /etc/vmctl is.
func ReadEnvironment(p Paths, path string) (*Environment, []Problem) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, []Problem{{File: path, Text: statError(path, err).Error()}}
	}
	if info.IsDir() {
		r := environmentReader{paths: p}
		r.directory(path)
		return r.environment()
	}
	data, err := readFile(path)
	if err != nil {
		return nil, []Problem{{File: path, Text: err.Error()}}
	}
	return ParseEnvironment(p, path, string(data), info.Mode())
}

// ParseEnvironment reads the tables of an environment; file is for messages, mode
// says who may read what it says.
func ParseEnvironment(p Paths, file, text string, mode os.FileMode) (*Environment, []Problem) {
	r := environmentReader{paths: p}
	r.document(file, text, mode)
	return r.environment()
}

type environmentReader struct {
	paths    Paths
	files    []EnvironmentFile
	problems []Problem
}

func (r *environmentReader) environment() (*Environment, []Problem) {
	slices.SortStableFunc(r.files, func(a, b EnvironmentFile) int {
		return cmp.Or(cmp.Compare(slices.Index(Kinds(), a.Kind), slices.Index(Kinds(), b.Kind)), strings.Compare(a.Path, b.Path))
	})
	for i := 1; i < len(r.files); i++ {
		if r.files[i].Path == r.files[i-1].Path {
			r.bad(r.files[i].From, "is twice what %s is to be: %s too", r.files[i].Path, r.files[i-1].From)
		}
	}
	SortProblems(r.problems)
	return &Environment{r.files}, r.problems
}

func (r *environmentReader) bad(file, format string, args ...any) {
	r.problems = append(r.problems, Problem{File: file, Text: fmt.Sprintf(format, args...)})
}

// directory reads an environment that is a directory. What is no TOML is nobody's
// business, but TOML in a place that means nothing is a mistake.
func (r *environmentReader) directory(dir string) {
	places := r.paths.kindPlaces()
	for _, name := range r.list(dir) {
		path := filepath.Join(dir, name)
		i := slices.IndexFunc(places, func(k kindPlace) bool { return k.folder == name })
		switch {
		case i >= 0 && isDir(path):
			r.folder(path, places[i])
		case name == imageTable+suffix:
			r.images(path)
		case name == settingsName+suffix:
			r.add(EnvironmentFile{Kind: KindSettings, DropIn: true, Path: r.paths.settingsPath(), From: path}, reflect.TypeFor[Settings]())
		case isDir(path) && hasTOML(path), strings.HasSuffix(name, suffix):
			var known []string
			for _, k := range places {
				known = append(known, k.folder+"/")
			}
			r.bad(path, "want one of %s, %s and %s", strings.Join(known, ", "), imageTable+suffix, settingsName+suffix)
		}
	}
}

// folder reads the files of one kind, with their drop-ins.
func (r *environmentReader) folder(dir string, k kindPlace) {
	for _, name := range r.list(dir) {
		path := filepath.Join(dir, name)
		main, isFile := strings.CutSuffix(name, suffix)
		owner, isDropIns := strings.CutSuffix(name, suffix+".d")
		f := EnvironmentFile{Kind: k.kind, Name: main, Path: filepath.Join(k.dir, name), From: path}
		switch {
		case isDropIns && (wantName(owner) == "" || k.kind == KindVM && owner == common):
			for _, dropIn := range r.list(path) {
				if strings.HasSuffix(dropIn, suffix) {
					f.Name, f.DropIn, f.Path, f.From = owner, true, filepath.Join(k.dir, name, dropIn), filepath.Join(path, dropIn)
					r.add(f, k.schema)
				}
			}
		case isFile && wantName(main) != "":
			r.problems = append(r.problems, badName(path, wantName(main)))
		case isFile:
			r.add(f, k.schema)
		case isDir(path) && hasTOML(path):
			r.bad(path, "want NAME.toml and NAME.toml.d/ in it, got another directory")
		}
	}
}

// add reads a file that goes as it is to where it belongs.
func (r *environmentReader) add(f EnvironmentFile, schema reflect.Type) {
	data, err := readFile(f.From)
	info, statErr := os.Stat(f.From)
	if err = cmp.Or(err, statErr); err != nil {
		r.bad(f.From, "%v", err)
		return
	}
	if len(data) == 0 {
		r.bad(f.From, "want a definition, got an empty file")
		return
	}
	f.Text = strings.TrimPrefix(string(data), "\ufeff")
	f.source = &source{file: f.Path, dropIn: f.DropIn, tree: newTree(0)}
	f.source.parse(f.Text)
	f.Mode = modeOf(schemaOf(schema), f.source.tree, info.Mode())
	r.files = append(r.files, f)
}

// images makes a drop-in of each table of images.toml, since several environments
// may have images.
func (r *environmentReader) images(file string) {
	data, err := readFile(file)
	if err != nil {
		r.bad(file, "%v", err)
		return
	}
	doc := &source{file: file, tree: newTree(0)}
	doc.parse(string(data))
	if doc.problem != nil {
		r.problems = append(r.problems, *doc.problem)
		return
	}
	for i, name := range doc.tree.keys {
		r.image(doc, nil, name, doc.tree.nodes[i])
	}
}

// image adds the table of an image, in a table of tables.
func (r *environmentReader) image(doc *source, above []string, name string, node any) {
	if want := wantImage(name); want != "" {
		r.problems = append(r.problems, origin{sources: []*source{doc}}.problem(shown(append(above, name)), strings.Join(append(above, name), "."), "want "+want+", got "+show(name)))
		return
	}
	t := newTree(1)
	t.set(name, node)
	f := EnvironmentFile{Kind: KindImage, Name: name, DropIn: true, Path: r.paths.imagePath(name), From: doc.file, Mode: 0o644}
	schema := &table{byKey: map[string]*field{}, fields: []field{{key: name, sub: schemaOf(reflect.TypeFor[ImageSource]())}}}
	schema.byKey[name] = &schema.fields[0]
	r.piece(doc, f, above, schema, t)
}

// piece adds a part of a document as a file of its own. above is the table in which
// all that the file says is.
func (r *environmentReader) piece(doc *source, f EnvironmentFile, above []string, schema *table, t *tree) {
	var b strings.Builder
	writeTable(&b, schema, t, "")
	f.Text, f.Table = strings.TrimPrefix(b.String(), "\n"), shown(above)
	prefix := strings.Join(append(above, ""), ".")
	f.source = &source{file: f.Path, dropIn: f.DropIn, tree: t, places: func() map[string]place {
		inside := map[string]place{}
		for key, at := range doc.places() {
			if rest, is := strings.CutPrefix(key, prefix); is {
				inside[rest] = at
			}
		}
		return inside
	}}
	r.files = append(r.files, f)
}

// document reads an environment that is one file.
func (r *environmentReader) document(file, text string, mode os.FileMode) {
	doc := &source{file: file, tree: newTree(0)}
	doc.parse(text)
	if doc.problem != nil {
		r.problems = append(r.problems, *doc.problem)
		return
	}
	o := origin{sources: []*source{doc}}
	places := r.paths.kindPlaces()
	for i, key := range doc.tree.keys {
		t, isTable := doc.tree.nodes[i].(*tree)
		k := slices.IndexFunc(places, func(k kindPlace) bool { return string(k.kind) == key })
		switch {
		case k < 0 && (key == string(KindNetwork) || key == string(KindSecurityGroup)):
			r.problems = append(r.problems, o.problem(key, key, "want none with --user: networks are the system's"))
		case k < 0 && key != string(KindImage) && key != string(KindSettings):
			r.problems = append(r.problems, o.problem(shown([]string{key}), key, "want one of [vm.NAME], [network.NAME], [template.NAME], [security_group.NAME], [image.NAME] and [settings], got "+show(key)))
		case !isTable:
			r.problems = append(r.problems, o.problem(key, key, "want a table, got "+show(doc.tree.nodes[i])))
		case key == string(KindSettings):
			schema := schemaOf(reflect.TypeFor[Settings]())
			r.piece(doc, EnvironmentFile{Kind: KindSettings, DropIn: true, Path: r.paths.settingsPath(), From: file, Mode: 0o644}, []string{key}, schema, t)
		default:
			for j, name := range t.keys {
				if key == string(KindImage) {
					r.image(doc, []string{key}, name, t.nodes[j])
				} else {
					r.thing(doc, places[k], mode, name, t.nodes[j])
				}
			}
		}
	}
}

// thing adds one table of a document that becomes a file.
func (r *environmentReader) thing(doc *source, k kindPlace, mode os.FileMode, name string, node any) {
	above := []string{string(k.kind), name}
	at := strings.Join(above, ".")
	t, isTable := node.(*tree)
	want := wantName(name)
	if want == "" && !isTable {
		want, name = "a table such as ["+string(k.kind)+".NAME]", show(node)
	}
	if want != "" {
		r.problems = append(r.problems, origin{sources: []*source{doc}}.problem(shown(above), at, "want "+want+", got "+show(name)))
		return
	}
	schema := schemaOf(k.schema)
	r.piece(doc, EnvironmentFile{
		Kind: k.kind, Name: name, Path: Definition(k.dir, name), From: doc.file, Mode: modeOf(schema, t, mode),
	}, above, schema, t)
}

// list are the names in a directory, without hidden ones.
func (r *environmentReader) list(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		r.bad(dir, "%v", cause(err))
	}
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// hasTOML says whether a directory has a file that could be meant for us.
func hasTOML(dir string) bool {
	found, _ := filepath.Glob(filepath.Join(dir, "*"+suffix))
	return len(found) > 0
}

// modeOf is who may read a file that says what t does, in one that mode is of.
func modeOf(s *table, t *tree, mode os.FileMode) os.FileMode {
	if mode&0o044 != 0o044 || s.hasSecret(t) {
		return 0o600
	}
	return 0o644
}

// hasSecret says whether a table has anything that is not for everybody: the texts
// for cloud-init are often scripts with passwords.
func (s *table) hasSecret(t *tree) bool {
	for i, key := range t.keys {
		f := s.byKey[key]
		if f == nil {
			continue
		}
		text, isText := t.nodes[i].(string)
		_, isPath := Text(text).Path()
		sub, isTable := t.nodes[i].(*tree)
		switch {
		case f.secret && text != "",
			f.typ == reflect.TypeFor[Text]() && isText && !isPath && text != "",
			f.typ == reflect.TypeFor[[]Credential](),
			isTable && f.sub != nil && !f.named && f.sub.hasSecret(sub):
			return true
		}
	}
	return false
}

// AtSource is a problem of a file that is going to be where people wrote what is
// wrong. The line is that already.
func (f EnvironmentFile) AtSource(p Problem) Problem {
	if p.File == f.Path {
		p.File = f.From
		if f.Table != "" && p.Key != "" {
			p.Key = f.Table + "." + p.Key
		}
	}
	p.Text = strings.ReplaceAll(p.Text, f.Path, f.From)
	return p
}

// With is p as if an environment's files were there, and those in removed were not.
// What is wrong with them is told by Path and the line in From.
func (p Paths) With(files []EnvironmentFile, removed []string) Paths {
	p.drafts = map[string]*source{}
	for _, f := range files {
		p.drafts[f.Path] = f.dated()
	}
	for _, path := range removed {
		p.drafts[path] = nil
	}
	return p
}

// dated is the source of a file that changes now, or of one that is there as it is
// going to be and has been for longer.
func (f EnvironmentFile) dated() *source {
	s := *f.source
	s.changed = newest
	data, changed, err := readDated(f.Path)
	if err != nil {
		return &s
	}
	_, unmarked, _ := strings.Cut(string(data), "\n")
	if _, intact := Mark(string(data)); string(data) == f.Text || intact && unmarked == f.Text {
		s.changed = changed
	}
	return &s
}

// source reads a file, or has it as it is going to be.
func (p Paths) source(file string, dropIn bool) *source {
	s, draft := p.drafts[file]
	switch {
	case draft && s == nil:
		return &source{file: file, dropIn: dropIn, tree: newTree(0), problem: &Problem{File: file, Text: fs.ErrNotExist.Error()}}
	case draft:
		return s
	}
	return readSource(file, dropIn)
}

// isThere says whether there is a file, or is going to be.
func (p Paths) isThere(file string) bool {
	if s, draft := p.drafts[file]; draft {
		return s != nil
	}
	_, err := os.Lstat(file)
	return err == nil
}

// list are the names in a directory, sorted, as they are going to be.
func (p Paths) list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		if s, draft := p.drafts[filepath.Join(dir, e.Name())]; !draft || s != nil {
			names = append(names, e.Name())
		}
	}
	if len(p.drafts) == 0 {
		return names, err
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for path, s := range p.drafts {
		switch in := filepath.Dir(path); {
		case s != nil && in == dir:
			names = append(names, filepath.Base(path))
		case s != nil && filepath.Dir(in) == dir:
			names = append(names, filepath.Base(in))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), err
}

// mark is what the first line of a file begins with that vmctl apply has written.
const mark = "# Written by vmctl apply from "

// Marked is a text as vmctl apply writes it: with a line before it that says from
// what, and by which is seen whether somebody has changed it since.
func Marked(from, text string) string {
	return mark + strconv.Quote(from) + ", which is where to change it (" + sumOf(text) + ")\n" + text
}

func sumOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// Mark reads the first line of a file: what vmctl apply has written it from, "" where
// it has not, and whether it is as it was written.
func Mark(content string) (from string, intact bool) {
	line, text, _ := strings.Cut(content, "\n")
	rest, is := strings.CutPrefix(line, mark)
	quoted, err := strconv.QuotedPrefix(rest)
	if !is || err != nil {
		return "", false
	}
	from, err = strconv.Unquote(quoted)
	return from, err == nil && strings.HasSuffix(line, "("+sumOf(text)+")")
}

// AppliedFile is a file that vmctl apply has written.
type AppliedFile struct {
	Kind   Kind
	Name   string
	DropIn bool
	Path   string
	Intact bool // nobody has changed it since
}

// AppliedFrom finds the files that vmctl apply has written from one source.
func AppliedFrom(p Paths, from string) ([]AppliedFile, error) {
	var found []AppliedFile
	look := func(f AppliedFile) error {
		content, err := readFile(f.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
		source, intact := Mark(string(content))
		if f.Intact = intact; source == from {
			found = append(found, f)
		}
		return nil
	}
	dir := func(dir string, f AppliedFile) error {
		files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
		for _, path := range files {
			f.Path = path
			if !f.DropIn {
				f.Name = strings.TrimSuffix(filepath.Base(path), suffix)
			}
			err = errors.Join(err, look(f))
		}
		return err
	}
	var errs []error
	for _, k := range p.kindPlaces() {
		errs = append(errs, dir(k.dir, AppliedFile{Kind: k.kind}))
		dropIns, _ := filepath.Glob(filepath.Join(k.dir, "*"+suffix+".d"))
		for _, d := range dropIns {
			name := strings.TrimSuffix(filepath.Base(d), suffix+".d")
			errs = append(errs, dir(d, AppliedFile{Kind: k.kind, Name: name, DropIn: true}))
		}
	}
	images, _ := filepath.Glob(p.imagePath("*"))
	for _, path := range images {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), appliedBase+"-"), suffix)
		errs = append(errs, look(AppliedFile{Kind: KindImage, Name: name, DropIn: true, Path: path}))
	}
	errs = append(errs, look(AppliedFile{Kind: KindSettings, DropIn: true, Path: p.settingsPath()}))
	slices.SortStableFunc(found, func(a, b AppliedFile) int {
		return cmp.Compare(slices.Index(Kinds(), a.Kind), slices.Index(Kinds(), b.Kind))
	})
	return found, errors.Join(errs...)
}

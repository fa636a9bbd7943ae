package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/config/importer"
	"github.com/vmctl/vmctl/config/importer/corvus"
	"github.com/vmctl/vmctl/config/importer/libvirt"
	"github.com/vmctl/vmctl/config/importer/mvirt"
	"github.com/vmctl/vmctl/hypervisor/access"
)

func newImportCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import",
		Short: "Write definitions of what other managers have: mvirt, Corvus, libvirt",
		Long: `Write definitions of the VMs and networks of other managers, and say what they
could not carry over: which element or key, why, and what to do instead, a line
each on stderr. Nothing is started, and disks stay where they are and as they are;
shut the VM down over there first. man vmctl tells more under MIGRATING.`,
		Example: `  virsh dumpxml --inactive web | vmctl import libvirt --dry-run -
  vmctl import corvus --base /home/corvus/VMs environment.yml
  vmctl import mvirt /var/lib/mvirt/vmm/mvirt.db`,
		GroupID: groupDefine,
		Args:    noCommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newImportFromCommand(a, source{
			name: "corvus", files: "FILE.yml|-", short: "Write definitions of Corvus's environments and templates",
			what: "Write definitions of the VMs, networks and templates of a file for crv apply or crv\ntemplate create; - is stdin. Disks are named where crv apply has put them.",
			example: `  vmctl import corvus --base /home/corvus/VMs environment.yml
  vmctl import corvus --dry-run environment.yml`,
			ending: []string{"yml", "yaml"}, based: true,
			convert: func(o importOptions, file string, data []byte) (importer.Result, error) {
				return corvus.Converter{Base: o.base}.Convert(file, data)
			},
		}),
		newImportFromCommand(a, source{
			name: "libvirt", files: "FILE.xml|-", short: "Write definitions of libvirt's domains and networks",
			what: "Write definitions of domains and networks of libvirt, as virsh dumpxml --inactive\nand virsh net-dumpxml print them; - is stdin.",
			example: `  virsh dumpxml --inactive web | vmctl import libvirt -
  vmctl import libvirt --dry-run /etc/libvirt/qemu/*.xml
  vmctl import libvirt /etc/libvirt/qemu/networks/*.xml /etc/libvirt/qemu/*.xml`,
			ending: []string{"xml"}, convert: func(_ importOptions, file string, data []byte) (importer.Result, error) {
				return libvirt.Convert(file, data)
			},
		}),
		newImportFromCommand(a, source{
			name: "mvirt", files: "FILE|-", short: "Write definitions of mvirt-vmm's VMs",
			what: "Write definitions of the VMs in a database of mvirt-vmm, which sqlite3 reads; or of\nits rows as sqlite3 -json prints them, where - is stdin.",
			example: `  vmctl import mvirt /var/lib/mvirt/vmm/mvirt.db
  ssh host sqlite3 -json /var/lib/mvirt/mvirt.db "'SELECT * FROM vms'" | vmctl import mvirt --dry-run -`,
			ending: []string{"db", "json"}, database: mvirt.Query, convert: func(_ importOptions, file string, data []byte) (importer.Result, error) {
				return mvirt.Convert(file, data)
			},
		}),
	)
	return cmd
}

// source is another manager, from which definitions come.
type source struct {
	name, files, short, what, example string

	ending   []string // of its files
	database string   // the query whose rows are converted, where a file is an SQLite database
	convert  func(o importOptions, file string, data []byte) (importer.Result, error)
	based    bool // it has files whose directory it does not say
}

type importOptions struct {
	dryRun    bool
	force     bool
	strict    bool
	directory string
	base      string
}

func newImportFromCommand(a *app, s source) *cobra.Command {
	var opts importOptions
	cmd := &cobra.Command{
		Use:   s.name + " " + s.files + "...",
		Short: s.short,
		Long: s.what + `

Each definition is checked as vmctl check does it, with all others that are
imported with it. Of a file all definitions are written or none. A name that is
taken is refused, and one that is none here is changed. Nothing is started.`,
		Example: s.example,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("want a file to import (%s)", s.files)}
			}
			return nil
		},
		ValidArgsFunction: cobra.FixedCompletions(s.ending, cobra.ShellCompDirectiveFilterFileExt),
		RunE:              func(cmd *cobra.Command, args []string) error { return runImport(cmd.Context(), a, s, opts, args) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&opts.dryRun, "dry-run", "n", false, "print the definitions, and write nothing")
	flags.BoolVarP(&opts.force, "force", "f", false, "replace definitions that are there")
	flags.BoolVar(&opts.strict, "strict", false, "refuse a file of which something is not carried over")
	flags.StringVar(&opts.directory, "directory", "", "write to this directory, laid out as /etc/vmctl is, which vmctl apply takes")
	_ = cmd.MarkFlagDirname("directory")
	if s.based {
		flags.StringVar(&opts.base, "base", filepath.Join(os.Getenv("HOME"), "VMs"), "directory that paths of disks begin at")
		_ = cmd.MarkFlagDirname("base")
	}
	cmd.MarkFlagsMutuallyExclusive("dry-run", "directory")
	return cmd
}

// importedFile is one file that is imported.
type importedFile struct {
	name       string
	all        []*imported
	notCarried []importer.NotCarried // of no definition
	err        error                 // why nothing of it is written
}

// imported is one definition that was made of it.
type imported struct {
	importer.Definition `json:"-"`
	environment         config.EnvironmentFile
	target              string // the file that is written
	replaced            bool   // another was there

	Name       string                `json:"name"`
	Path       string                `json:"path"` // "" where nothing was written
	SourceName string                `json:"source_name"`
	SourceFile string                `json:"source_file"`
	Text       string                `json:"text"`
	NotCarried []importer.NotCarried `json:"not_carried"`
}

// importResult is vmctl import -o json.
type importResult struct {
	Machines  []*imported `json:"machines"`
	Networks  []*imported `json:"networks"`
	Templates []*imported `json:"templates"`
	// NotCarried is what is of none of them.
	NotCarried []importer.NotCarried `json:"not_carried"`
	Warnings   []finding             `json:"warnings"`
}

func runImport(ctx context.Context, a *app, s source, opts importOptions, names []string) error {
	var files []*importedFile
	for _, name := range names {
		files = append(files, a.readImport(ctx, s, opts, name))
	}
	refuseTwice(files)
	for _, f := range files {
		if f.err == nil {
			f.err = a.importFree(opts, f)
		}
	}
	warnings, err := a.checkImport(files)
	if err != nil {
		return err
	}
	result := importResult{[]*imported{}, []*imported{}, []*imported{}, []importer.NotCarried{}, warnings}
	var errs []error
	for _, f := range files {
		if f.err == nil && !opts.dryRun {
			f.err = a.writeImport(opts, f)
		}
		if f.err != nil {
			a.ui.errorf(f.err)
			if errs = append(errs, f.err); !opts.dryRun {
				continue
			}
		}
		a.tellImport(opts, f)
		result.NotCarried = append(result.NotCarried, f.notCarried...)
		for _, i := range f.all {
			switch i.Kind {
			case config.KindVM:
				result.Machines = append(result.Machines, i)
			case config.KindNetwork:
				result.Networks = append(result.Networks, i)
			default:
				result.Templates = append(result.Templates, i)
			}
		}
	}
	for _, w := range warnings {
		a.ui.warnf("%v", w.Problem)
	}
	if a.ui.format == jsonFormat {
		if err := a.ui.json(result); err != nil {
			return err
		}
	}
	if err := worst(errs); err != nil {
		return &statusError{errors.Join(errs...), exitStatus(err)}
	}
	return nil
}

// maxImport is how much is read of a file, in bytes: the definition of a machine
// has some thousands.
const maxImport = 4 << 20

// readImport reads and converts a file.
func (a *app) readImport(ctx context.Context, s source, opts importOptions, name string) *importedFile {
	f := &importedFile{name: name}
	in := io.Reader(a.ui.in)
	if name == "-" {
		f.name = "stdin"
	} else {
		file, err := os.Open(name)
		if err != nil {
			f.err = err
			return f
		}
		defer file.Close()
		in = file
	}
	data, err := io.ReadAll(io.LimitReader(in, maxImport+1))
	if err == nil && s.database != "" && bytes.HasPrefix(data, []byte(sqliteMagic)) {
		data, err = databaseRows(ctx, name, s.database)
	}
	if err == nil && len(data) > maxImport {
		err = config.Problem{File: f.name, Text: fmt.Sprintf("want at most %d bytes, which is more than definitions have", maxImport)}
	}
	if err != nil {
		f.err = asInvalid(err)
		return f
	}
	converted, err := s.convert(opts, f.name, data)
	f.err, f.notCarried = asInvalid(err), converted.NotCarried
	if opts.strict && err == nil {
		f.err = notAll(converted)
	}
	for _, d := range converted.Definitions {
		i := &imported{Definition: *d, Name: d.Name, SourceName: d.Called, SourceFile: f.name, NotCarried: append([]importer.NotCarried{}, d.NotCarried...)}
		i.Text = definitionText("vmctl import "+s.name+" from "+printable(f.name), d.Draft)
		var there bool
		if i.environment, there = config.EnvironmentFileOf(a.paths, d.Kind, d.Name, f.name, i.Text); !there {
			f.err = asInvalid(config.Problem{File: f.name, Line: d.Line, Text: "want no network with --user: networks are the system's"})
			return f
		}
		i.target = i.environment.Path
		if opts.directory != "" {
			i.target = filepath.Join(opts.directory, filepath.Base(filepath.Dir(i.environment.Path)), filepath.Base(i.environment.Path))
		}
		f.all = append(f.all, i)
	}
	return f
}

// sqliteMagic is what SQLite databases begin with.
const sqliteMagic = "SQLite format 3\x00"

// databaseRows has sqlite3 print rows of a database as JSON. A library that reads
// databases would be as large as vmctl, for what is done once in a host's life.
func databaseRows(ctx context.Context, file, query string) ([]byte, error) {
	if file == "-" {
		return nil, config.Problem{File: "stdin", Text: "want a database as a file, or what sqlite3 -json prints of it"}
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	program, err := exec.LookPath("sqlite3")
	if err != nil {
		return nil, withHint(fmt.Errorf("%s: sqlite3, which reads databases, is not installed", file),
			"install it (Debian: sqlite3), or have it print the rows elsewhere:\n"+"sqlite3 -json "+filepath.Base(file)+" '"+query+"' | vmctl import mvirt -")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // for one that was made to take for ever
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-readonly", "-safe", "-batch", "-init", "/dev/null", "-json", path, query)
	var why bytes.Buffer
	cmd.Stderr = &why
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	rows, err := io.ReadAll(io.LimitReader(out, maxImport+1))
	cancelled := len(rows) > maxImport
	if cancelled {
		cancel()
	}
	if waitErr := cmd.Wait(); err == nil && waitErr != nil && !cancelled {
		text, _, _ := strings.Cut(strings.TrimSpace(why.String()), "\n")
		err = config.Problem{File: file, Text: "want a database that sqlite3 reads: " + printable(cmp.Or(text, waitErr.Error()))}
	}
	return rows, err
}

// notAll is the error of a file of which not all is carried over.
func notAll(r importer.Result) error {
	left := slices.Clone(r.NotCarried)
	for _, d := range r.Definitions {
		left = append(left, d.NotCarried...)
	}
	var problems []config.Problem
	for _, n := range left {
		problems = append(problems, config.Problem{File: n.File, Line: n.Line, Text: n.Text()})
	}
	if problems == nil {
		return nil
	}
	return &invalidError{problems}
}

// refuseTwice refuses the second of two definitions that would have one name.
func refuseTwice(files []*importedFile) {
	first := map[string]*imported{}
	for _, f := range files {
		for _, i := range f.all {
			other := first[i.target]
			if other == nil {
				first[i.target] = i
			} else if f.err == nil {
				f.err = &stateError{fmt.Errorf("%s: %s is the name of %q too, of %s", f.name, i.Name, other.Called, other.SourceFile)}
			}
		}
	}
}

// importFree says whether all names of a file are free, or may be replaced.
func (a *app) importFree(opts importOptions, f *importedFile) error {
	for _, i := range f.all {
		dirs := map[config.Kind][]string{config.KindVM: a.paths.VMDirs, config.KindNetwork: a.paths.NetworkDirs, config.KindTemplate: a.paths.TemplateDirs}[i.Kind]
		if opts.directory != "" || opts.dryRun {
			dirs = []string{filepath.Dir(i.target)}
		}
		for _, dir := range dirs {
			there := config.Definition(dir, i.Name)
			before := slices.Index(dirs, dir) < slices.Index(dirs, filepath.Dir(i.target))
			if opts.dryRun || !access.IsThere(there) || opts.force && !before {
				continue
			}
			err := &stateError{fmt.Errorf("%s: the name %s is taken: %s is there", f.name, i.Name, there)}
			switch {
			case before:
				return withHint(err, "it goes before what would be written to "+i.target)
			case there != i.target:
				return withHint(err, "--force puts "+i.target+" before it")
			}
			return withHint(err, "--force replaces it")
		}
	}
	return nil
}

// checkImport checks all definitions together, as if they were there. Those of a
// file with a problem are left out, and with them what needs them.
func (a *app) checkImport(files []*importedFile) ([]finding, error) {
	l := a.lookups()
	for {
		var env []config.EnvironmentFile
		for _, f := range files {
			for _, i := range f.all {
				if f.err == nil {
					env = append(env, i.environment)
				}
			}
		}
		next := *a
		next.paths = a.paths.With(env, nil)
		set, err := config.Load(next.paths)
		if err != nil {
			return nil, err
		}
		warnings, sound := []finding{}, true
		for _, f := range files {
			if f.err != nil {
				continue
			}
			var problems []config.Problem
			for _, found := range next.findings(set, l, f) {
				if found.isError() {
					problems = append(problems, found.Problem)
				} else if !slices.Contains(warnings, found) {
					warnings = append(warnings, found)
				}
			}
			if len(problems) > 0 {
				f.err, sound = &invalidError{problems}, false
			}
		}
		if sound {
			return warnings, nil
		}
	}
}

// findings are what is wrong with the definitions of a file, told where they come
// from.
func (a *app) findings(set *config.Set, l lookups, f *importedFile) []finding {
	var all []finding
	for _, i := range f.all {
		var found []finding
		switch i.Kind {
		case config.KindVM:
			if vm, err := a.findIn(set, i.Name); err == nil {
				found = a.check(vm, l)
			}
		case config.KindNetwork:
			for _, n := range set.Networks {
				if n.Name == i.Name {
					found = severity("error", n.Problems)
				}
			}
		case config.KindTemplate:
			if t, err := config.LoadTemplate(a.paths, i.Name); err == nil {
				found = severity("error", t.Problems)
			}
		}
		for _, finding := range found {
			switch {
			case finding.isOfHost():
				finding.File = ""
			case finding.File == i.environment.Path:
				if finding.isError() && strings.HasSuffix(finding.Key, ".network") {
					finding.Text += "; import it with this, or before"
				}
				// A line of what is not written is of no use to anybody.
				finding.File, finding.Line = f.name, i.Line
				finding.Key = strings.Trim(i.Name+": "+finding.Key, ": ")
			}
			all = append(all, finding)
		}
	}
	return all
}

// writeImport writes all definitions of a file, or none.
func (a *app) writeImport(opts importOptions, f *importedFile) (err error) {
	var undo []func() error
	defer func() {
		for _, back := range slices.Backward(undo) {
			if err != nil {
				err = errors.Join(err, back())
			}
		}
	}()
	for _, i := range f.all {
		begun := time.Now()
		back, err := i.write(opts)
		if i.Kind == config.KindVM && opts.directory == "" {
			a.note(string(opCreate), "", i.Name, begun, err)
		}
		if err != nil {
			return inName("import", i.Name, err)
		}
		undo = append(undo, back)
		i.Path = i.target
	}
	return nil
}

// write writes one definition, and returns what takes it back.
func (i *imported) write(opts importOptions) (undo func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(i.target), 0o755); err != nil {
		return nil, err
	}
	text, mode := []byte(i.Text), i.environment.Mode
	if before, err := config.ReadFile(i.target); err == nil && opts.force {
		was := mode
		if info, err := os.Stat(i.target); err == nil {
			was = info.Mode().Perm()
		}
		i.replaced = true
		// Somebody may have closed it.
		return func() error { return access.WriteFile(i.target, before, was, true) }, access.WriteFile(i.target, text, mode&was, true)
	}
	err = access.CreateFile(i.target, text, mode, true)
	if errors.Is(err, fs.ErrExist) { // meanwhile
		err = &stateError{fmt.Errorf("the name is taken: %s is there", i.target)}
	}
	return func() error { return os.Remove(i.target) }, err
}

// tellImport tells people what has become of a file.
func (a *app) tellImport(opts importOptions, f *importedFile) {
	tell := func(left []importer.NotCarried) {
		for _, n := range left {
			if a.ui.format == textFormat {
				a.ui.warnf("%s", n)
			}
		}
	}
	tell(f.notCarried)
	for k, i := range f.all {
		tell(i.NotCarried)
		done := "created"
		if i.replaced {
			done = "replaced"
		}
		switch {
		case !opts.dryRun && len(i.NotCarried) == 0:
			a.ui.printf("%s: %s %s", i.Name, done, i.Path)
		case !opts.dryRun:
			a.ui.printf("%s: %s %s; %s not carried over", i.Name, done, i.Path, count(len(i.NotCarried), "thing"))
		case a.ui.format == textFormat:
			if k > 0 {
				a.ui.printf("")
			}
			a.ui.printf("# %s", i.target)
			fmt.Fprint(a.ui.out, i.Text)
		}
	}
}

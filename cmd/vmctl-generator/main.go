// vmctl-generator is run by systemd, early at boot and at each reload
// (systemd.generator(7)): it reads every definition and writes what systemd
// has to be told of each. A definition with problems gets a unit that fails
// with them, and costs no other machine anything.
//
// It may not assume /var, the network, a logger, D-Bus or any other process,
// and starts none; what it may link is bounded by deps_test.go.
package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/all"
	"github.com/vmctl/vmctl/units"
)

func main() {
	opts, err := parse(os.Args, os.Getenv)
	if err != nil {
		fmt.Fprintf(os.Stderr, "vmctl-generator: %v\n%s", err, usage)
		os.Exit(2)
	}
	// It lives for a moment: collecting little is a third of the time saved,
	// up to a size that ten thousand machines reach.
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(170 << 20)
	os.Exit(run(opts, os.Stdout, newLog(opts.kernelLog)))
}

const usage = `usage: vmctl-generator DIR [EARLY-DIR LATE-DIR]   write units below DIR
       vmctl-generator -n [--user]                    show them instead
  --root DIR  read definitions below DIR, as if it were /
`

// options is what is asked for.
type options struct {
	dir       string // where units go; "" for a dry run
	dryRun    bool
	initrd    bool         // in the initial RAM disk, where no machine runs
	kernelLog bool         // systemd runs it, not a person
	root      string       // directory that stands for /; "" for none
	paths     config.Paths // as seen from within root
}

// parse reads the command line and the environment.
func parse(argv []string, getenv func(string) string) (options, error) {
	o := options{
		initrd:    getenv("SYSTEMD_IN_INITRD") == "1",
		kernelLog: getenv("SYSTEMD_SCOPE") == "system",
	}
	user := isUser(argv[0], getenv("SYSTEMD_SCOPE"))
	var dirs []string
	for args := argv[1:]; len(args) > 0; args = args[1:] {
		switch arg := args[0]; {
		case arg == "-n":
			o.dryRun = true
		case arg == "--user":
			user = true
		case arg == "--root" && len(args) > 1:
			args = args[1:]
			o.root = filepath.Clean(args[0])
		case strings.HasPrefix(arg, "-"):
			return o, fmt.Errorf("unknown option %s", arg)
		default:
			dirs = append(dirs, arg)
		}
	}
	switch {
	case o.dryRun && len(dirs) > 0:
		return o, errors.New("-n writes nothing, so it takes no directory")
	case !o.dryRun && len(dirs) != 1 && len(dirs) != 3:
		return o, fmt.Errorf("want 1 or 3 directories, got %d", len(dirs))
	case !o.dryRun:
		// The first of the three: below /etc, above /usr.
		o.dir = dirs[0]
	}
	if user && o.root != "" {
		return o, errors.New("--root is for the system's service manager")
	}
	if !user {
		o.paths = config.SystemPaths("")
		return o, nil
	}
	home := getenv("HOME")
	if home == "" && getenv("XDG_CONFIG_HOME") == "" {
		return o, errors.New("neither HOME nor XDG_CONFIG_HOME is set")
	}
	o.paths = config.UserPaths(
		cmp.Or(getenv("XDG_CONFIG_HOME"), filepath.Join(home, ".config")),
		cmp.Or(getenv("XDG_DATA_HOME"), filepath.Join(home, ".local/share")),
		cmp.Or(getenv("XDG_RUNTIME_DIR"), fmt.Sprintf("/run/user/%d", os.Getuid())))
	return o, nil
}

// isUser says whether a user's service manager runs the program: that says
// SYSTEMD_SCOPE since systemd 251, else the directory it is installed in.
func isUser(program, scope string) bool {
	if scope != "" {
		return scope == "user"
	}
	return strings.Contains(filepath.Base(program), "user") ||
		strings.Contains(filepath.Base(filepath.Dir(program)), "user")
}

// run makes the units and returns the exit status: 1 where anything was wrong,
// though everything else was written.
func run(o options, out io.Writer, log *log) int {
	if o.initrd {
		return 0
	}
	from := o.paths
	if o.root != "" {
		from = config.SystemPaths(o.root)
	}
	set, err := config.Load(from)
	if err != nil {
		log.error(err.Error())
		return 1
	}
	for _, p := range within(o.root, set.Problems) {
		log.error(p.Error())
	}
	var dir *os.Root
	if !o.dryRun {
		if dir, err = os.OpenRoot(o.dir); err != nil {
			log.error(fmt.Sprintf("opening the directory for units: %v", err))
			return 1
		}
		defer dir.Close()
	}
	g := generator{root: o.root, paths: o.paths, host: hypervisor.Probe(o.root), dir: dir}
	made := g.all(set.VMs)
	if !o.paths.User {
		made = append(made, g.networks(set.Networks)...)
	}
	for _, m := range made {
		report(log, m, o.dryRun)
	}
	if o.dryRun {
		show(out, o.paths.GeneratorDir, made)
	}
	if log.failed {
		return 1
	}
	return 0
}

// report logs what is wrong with one definition. The kernel's log takes ten
// lines in five seconds from a program, and the unit has them all, so it gets
// the first; a person gets the warnings too.
func report(log *log, m unit, all bool) {
	for i, p := range m.problems {
		if i == 0 || all {
			log.error(p.Error())
		}
	}
	for _, w := range m.warnings {
		if all {
			log.warning(m.vm + ": " + w)
		}
	}
	if m.err != nil {
		log.error(m.err.Error())
	}
}

// unit is what came of one definition.
type unit struct {
	vm       string
	files    []units.File // nil once written
	err      error        // of writing
	problems []config.Problem
	warnings []string
}

// generator is what the units of all machines depend on.
type generator struct {
	root  string
	paths config.Paths
	host  hypervisor.Host
	dir   *os.Root // where units are written; nil: nowhere
}

// all makes the units of all machines, on as many processors as there are, and
// returns them in order. It forgets each machine once done: with thousands,
// that is most of the memory.
func (g *generator) all(vms []config.VM) []unit {
	made := make([]unit, len(vms))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(vms)/16+1) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(vms); i = int(next.Add(1)) - 1 {
				made[i] = g.one(vms[i])
				vms[i].Machine = nil
				if g.dir != nil {
					made[i].err = units.Write(g.dir, made[i].files)
					made[i].files = nil
				}
			}
		})
	}
	wg.Wait()
	return made
}

// within names the files of problems as they are named within root.
func within(root string, problems []config.Problem) []config.Problem {
	for i, p := range problems {
		problems[i].File = strings.TrimPrefix(p.File, root)
	}
	return problems
}

// one makes the unit of one machine: definition, plan, text.
func (g *generator) one(vm config.VM) unit {
	vm.File = strings.TrimPrefix(vm.File, g.root)
	env := units.EnvOf(g.root, g.paths, g.host.Systemd, vm.Name)
	refuse := func(problems []config.Problem) unit {
		vm.Problems = within(g.root, problems)
		return unit{vm: vm.Name, files: units.RenderError(vm, env), problems: vm.Problems}
	}
	if len(vm.Problems) > 0 {
		return refuse(vm.Problems)
	}
	plan, problems := all.Plan(vm.Machine, g.host, g.paths)
	if len(problems) > 0 {
		return refuse(problems)
	}
	files, problems := units.Render(vm, plan, hypervisor.Digest(vm.Machine, plan), env)
	if len(problems) > 0 {
		return refuse(problems)
	}
	return unit{vm: vm.Name, files: files, warnings: plan.Warnings}
}

// networks makes the units of all networks.
func (g *generator) networks(files []config.NetworkFile) []unit {
	var made []unit
	env := units.Env{Paths: g.paths, Systemd: g.host.Systemd}
	for _, n := range files {
		n.File = strings.TrimPrefix(n.File, g.root)
		n.Problems = within(g.root, n.Problems)
		u := unit{files: units.RenderNetwork(n, env), problems: n.Problems}
		if g.dir != nil {
			u.err, u.files = units.Write(g.dir, u.files), nil
		}
		made = append(made, u)
	}
	return made
}

// show prints files as systemctl cat does, in order of their names.
func show(out io.Writer, dir string, made []unit) {
	var files []units.File
	for _, m := range made {
		files = append(files, m.files...)
	}
	slices.SortFunc(files, func(a, b units.File) int { return cmp.Compare(a.Name, b.Name) })
	for i, f := range files {
		if i > 0 {
			fmt.Fprintln(out)
		}
		name := filepath.Join(dir, f.Name)
		if f.Link != "" {
			fmt.Fprintf(out, "# %s -> %s\n", name, f.Link)
			continue
		}
		fmt.Fprintf(out, "# %s\n%s", name, f.Text)
	}
}

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
	os.Exit(run(opts, os.Stdout, newLog(opts.dryRun)))
}

const usage = `usage: vmctl-generator DIR [EARLY-DIR LATE-DIR]   write units below DIR
       vmctl-generator [--user] [--root DIR] -n       show them instead
`

// options is what is asked for.
type options struct {
	dir    string // where units go; "" for a dry run
	dryRun bool
	initrd bool // in the initial RAM disk, where no machine runs
	root   string
	paths  config.Paths
}

// parse reads the command line and the environment.
func parse(argv []string, getenv func(string) string) (options, error) {
	o := options{initrd: getenv("SYSTEMD_IN_INITRD") == "1"}
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
	if !user {
		o.paths = config.SystemPaths(o.root)
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
	set, err := config.Load(o.paths)
	if err != nil {
		log.error(err.Error())
		return 1
	}
	for _, p := range set.Problems {
		log.error(p.Error())
	}
	made := generate(set.VMs, hypervisor.Probe(o.root), o.paths)
	var files []units.File
	for _, m := range made {
		files = append(files, m.files...)
		report(log, m, o.dryRun)
	}
	if o.dryRun {
		show(out, o.paths.GeneratorDir, files)
	} else if err := write(o.dir, files); err != nil {
		log.error(err.Error())
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
}

// unit is what came of one definition.
type unit struct {
	vm       string
	files    []units.File
	problems []config.Problem
	warnings []string
}

// generate makes the units of all machines, on as many processors as there
// are, and returns them in order.
func generate(vms []config.VM, host hypervisor.Host, paths config.Paths) []unit {
	made := make([]unit, len(vms))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(vms)/16+1) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(vms); i = int(next.Add(1)) - 1 {
				made[i] = generateOne(vms[i], host, paths)
			}
		})
	}
	wg.Wait()
	return made
}

// generateOne makes the unit of one machine: definition, plan, text.
func generateOne(vm config.VM, host hypervisor.Host, paths config.Paths) unit {
	env := units.Env{Paths: paths, Systemd: host.Systemd}
	refuse := func(problems []config.Problem) unit {
		vm.Problems = problems
		return unit{vm: vm.Name, files: units.RenderError(vm, env), problems: problems}
	}
	if len(vm.Problems) > 0 {
		return refuse(vm.Problems)
	}
	h, ok := all.ByName(vm.Machine.Hypervisor)
	if !ok {
		return refuse([]config.Problem{vm.Machine.Problem("hypervisor", "%s is not supported", vm.Machine.Hypervisor)})
	}
	plan, problems := h.Plan(vm.Machine, host, paths)
	if len(problems) > 0 {
		return refuse(problems)
	}
	files, problems := units.Render(vm, plan, hypervisor.Digest(vm.Machine, plan), env)
	if len(problems) > 0 {
		return refuse(problems)
	}
	return unit{vm: vm.Name, files: files, warnings: plan.Warnings}
}

func write(dir string, files []units.File) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("opening the directory for units: %w", err)
	}
	return errors.Join(units.Write(root, files), root.Close())
}

// show prints files as systemctl cat does, in order of their names.
func show(out io.Writer, dir string, files []units.File) {
	files = slices.SortedFunc(slices.Values(files), func(a, b units.File) int { return cmp.Compare(a.Name, b.Name) })
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

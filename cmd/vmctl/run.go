package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/disk"
	"github.com/vmctl/vmctl/hypervisor/throwaway"
	"github.com/vmctl/vmctl/units/bus"
)

// opRun is for messages: no state refuses it.
const opRun transition = "run"

// runOptions are the flags of vmctl run.
type runOptions struct {
	draftOptions
	name    string
	rm      bool
	console bool
	detach  bool
	waitOptions
}

func newRunCommand(a *app) *cobra.Command {
	var opts runOptions
	cmd := &cobra.Command{
		Use:   "run IMAGE",
		Short: "Make a throw-away VM from an image, and start it",
		Long: `Make a throw-away VM from an image, and start it: the definition is written to
/run/vmctl/vms, which a reboot of the host empties. IMAGE is a stored image, a
short name that can be pulled, a URL, or, with a slash, an image file of this host,
which is not written to: changes are thrown away at each stop. An .iso is a CD-ROM.

With --rm systemd removes the VM when it ends, however it does: definition, disks
and all. Without, vmctl delete removes it. The name is printed.

Without --nic it has one card in a network of its own that reaches out.`,
		Example: `  vmctl run debian-13 --name try --ssh-key ~/.ssh/id_ed25519.pub --forward 2222:22
  vmctl run --rm -t alpine-3.22
  name=$(vmctl run -d --rm golden --cpus 4 --memory 8G --user-data job.yaml)
  vmctl run ./appliance.qcow2 --set tpm.enabled=true`,
		GroupID: groupDefine,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("want one image, got %d arguments", len(args))}
			}
			return nil
		},
		ValidArgsFunction: a.completeRun,
		RunE:              func(cmd *cobra.Command, args []string) error { return runRun(cmd.Context(), a, opts, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.name, "name", "", "`NAME` of the VM; default: the image's, with some letters more")
	flags.BoolVar(&opts.rm, "rm", false, "remove it with all that was made for it when it ends")
	flags.BoolVarP(&opts.console, "console", "t", false, "sit down at its console once it runs")
	flags.BoolVarP(&opts.detach, "detach", "d", false, "print the name alone")
	flags.BoolVar(&opts.noWait, "no-wait", false, "do not wait until it runs")
	flags.Var(&opts.timeout, "timeout", "wait no longer than this, e.g. 30s; it goes on all the same")
	opts.draftOptions.addFlags(cmd, a.settledPaths)
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions)
	return cmd
}

// completeRun completes images, stored ones and those that can be pulled, and
// files.
func (a *app) completeRun(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if strings.ContainsRune(prefix, filepath.Separator) {
		return nil, cobra.ShellCompDirectiveDefault
	}
	stored, _ := a.completeImages(cmd, args, prefix)
	pulled, _ := a.completeSources(cmd, stored, prefix)
	return append(stored, pulled...), cobra.ShellCompDirectiveDefault
}

// ran is vmctl run -o json.
type ran struct {
	Name  string `json:"name"`
	File  string `json:"file"` // the definition
	State state  `json:"state"`
}

func runRun(ctx context.Context, a *app, opts runOptions, image string) error {
	switch {
	case opts.console && a.ui.format == jsonFormat:
		return usageError{errors.New("the console is bytes, not JSON")}
	case opts.console && (opts.detach || opts.noWait):
		return usageError{errors.New("--console: want neither --detach nor --no-wait beside it")}
	}
	if opts.name != "" {
		if err := checkName(opts.name); err != nil {
			return err
		}
	}
	draft, err := opts.finish(a.paths, true)
	if err != nil {
		return err
	}
	if opts.rm {
		if err := draft.Set("lifecycle.remove_on_stop", "true"); err != nil {
			return err
		}
	}
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	base, err := a.runImage(ctx, draft, image)
	if err != nil {
		return err
	}
	f := &freshener{app: a, conn: conn, host: a.probe()}
	made, err := a.makeRun(ctx, f, opts, draft, base)
	if err != nil {
		return inName(string(opRun), image, err)
	}
	defer made.release()
	begun := time.Now()
	err = a.startRun(ctx, f, opts, made)
	a.note(string(opRun), "", made.name, begun, err)
	if err != nil {
		return inName(string(opRun), made.name, err)
	}
	return a.tellRun(ctx, opts, made)
}

// tellRun says what has come of it, and goes on with the console where it was
// asked for.
func (a *app) tellRun(ctx context.Context, opts runOptions, made madeRun) error {
	r := ran{Name: made.name, File: made.file, State: running}
	if opts.noWait {
		r.State = starting
	}
	switch {
	case a.ui.format == jsonFormat:
		return a.ui.json(r)
	case opts.console:
		return runConsole(ctx, a, consoleOptions{}, made.name)
	}
	a.ui.printf("%s", made.name)
	if !opts.detach && a.ui.interactive() && isTerminal(a.ui.out) {
		fmt.Fprintf(a.ui.err, "vmctl console %s sits down at it.\n", made.name)
	}
	return nil
}

// runImage has the machine's first disk begin with what was asked for, which is
// pulled where it is not stored. It returns what a machine of it is named after.
func (a *app) runImage(ctx context.Context, draft *config.Draft, image string) (string, error) {
	switch {
	case strings.Contains(image, "://"):
		r, err := a.pullRequest(pullOptions{}, image)
		if err != nil {
			return "", err
		}
		if _, _, err := a.pull(ctx, r, false); err != nil {
			return "", pullError(r, err)
		}
		return r.Name, draft.Set("disk.root.image", r.Name)
	case strings.ContainsRune(image, filepath.Separator):
		return runFile(draft, image)
	}
	found, err := a.image(image)
	if err == nil {
		err = a.store().Check(found)
	}
	if err == nil {
		return image, draft.Set("disk.root.image", image)
	}
	if exitStatus(err) != exitNotFound {
		return "", err
	}
	if !a.canPull(image) {
		if access.IsThere(image) {
			return "", withHint(err, "vmctl run ./"+image+" takes the file of this name")
		}
		return "", err
	}
	r, err := a.pullRequest(pullOptions{}, image)
	if err != nil {
		return "", err
	}
	if _, _, err := a.pull(ctx, r, false); err != nil {
		return "", pullError(r, err)
	}
	return image, draft.Set("disk.root.image", image)
}

// runFile has the machine's first disk begin with a file of the host.
func runFile(draft *config.Draft, file string) (string, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(path); err != nil {
		return "", given(file, err)
	} else if info.IsDir() {
		return "", usageError{fmt.Errorf("want an image, got the directory %s", file)}
	}
	ending := filepath.Ext(path)
	key, value := "disk.root.ephemeral", "true"
	if strings.EqualFold(ending, ".iso") {
		key, value = "disk.root.media", "cdrom"
	}
	if err := draft.Set(key, value); err != nil {
		return "", err
	}
	return strings.TrimSuffix(filepath.Base(path), ending), draft.Set("disk.root.path", path)
}

// madeRun is a machine that vmctl run has written.
type madeRun struct {
	name    string
	file    string
	rm      bool
	release func() // from then on, who finds it not running may remove it
}

// makeRun writes the definition, by a name that is free.
func (a *app) makeRun(ctx context.Context, f *freshener, opts runOptions, draft *config.Draft, base string) (madeRun, error) {
	text := definitionText("vmctl run", draft)
	for tries := 1; ; tries++ {
		name := opts.name
		if name == "" {
			name = randomName(base)
		}
		made, err := a.makeNamed(ctx, f, opts.rm, name, text)
		if opts.name != "" || !errors.Is(err, fs.ErrExist) || tries == 100 {
			return made, err
		}
	}
}

// nameTail is how many letters are added to an image's name.
const nameTail = 5

// randomName is a legal name that begins with base.
func randomName(base string) string {
	const letters = "abcdefghijkmnpqrstuvwxyz23456789" // none that is taken for another
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(base))
	name = name[:min(len(name), 40)]
	name = strings.Trim(name, "-")
	if name == "" {
		name = "vm"
	}
	tail := make([]byte, nameTail)
	for i := range tail {
		tail[i] = letters[rand.IntN(len(letters))]
	}
	return name + "-" + string(tail)
}

// makeNamed writes the definition by a name; the error is fs.ErrExist where
// something has it. What is wrong with it is found before anything is written.
func (a *app) makeNamed(ctx context.Context, f *freshener, rm bool, name, text string) (made madeRun, err error) {
	made = madeRun{name: name, file: config.Definition(a.paths.VMDirs[0], name), rm: rm, release: func() {}}
	if err := a.nameFree(ctx, f.conn, name); err != nil {
		return made, err
	}
	p := a.plan(config.Try(a.paths, made.file, text), f.host)
	problems := p.Problems
	if len(problems) == 0 {
		problems = append(a.checkImages(p.VM.Machine), checkFormats(p.VM.Machine)...)
	}
	if len(problems) > 0 {
		return made, draftError(made.file, problems)
	}
	if rm {
		if made.release, err = throwaway.Reserve(a.paths, name); errors.Is(err, fs.ErrExist) {
			return made, a.taken(name, a.paths.StateDir(name))
		} else if err != nil {
			return made, err
		}
	}
	if err := a.writeNew(made.file, text, p.VM.Machine, false); err != nil {
		return made, errors.Join(err, a.unmake(made))
	}
	if !f.place(ctx, p) {
		if err := f.conn.Reload(ctx); err != nil {
			return made, errors.Join(err, a.unmake(made))
		}
	}
	return made, nil
}

// checkFormats finds disks by path whose format is not what the definition says,
// by the files as they are now.
func checkFormats(m *config.Machine) []config.Problem {
	var problems []config.Problem
	for _, d := range m.Disks {
		if d.Path == "" {
			continue
		}
		f, err := os.Open(d.Path)
		if err == nil {
			err = disk.Check(f, d.Format)
			f.Close()
		}
		if err != nil {
			problems = append(problems, m.Problem(d.Key()+".format", "%v (--set %s.format=…)", err, d.Key()))
		}
	}
	return problems
}

// writeNew writes a definition that must not be there yet. One with secrets is
// for its owner alone.
func (a *app) writeNew(file, text string, m *config.Machine, durable bool) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	err := access.CreateFile(file, []byte(text), definitionMode(m), durable)
	if errors.Is(err, fs.ErrExist) {
		return a.taken(m.Name, file)
	}
	return err
}

// definitionMode is who may read a definition.
func definitionMode(m *config.Machine) os.FileMode {
	secret := m.CloudInit.PasswordHash != ""
	for _, c := range m.Credentials {
		secret = secret || c.Value != ""
	}
	for _, t := range []config.Text{m.CloudInit.UserData, m.CloudInit.MetaData, m.CloudInit.NetworkConfig, m.CloudInit.VendorData} {
		_, file := t.Path()
		secret = secret || t != "" && !file
	}
	if secret {
		return 0o600
	}
	return 0o644
}

// takenError is a name that something has.
type takenError struct{ *stateError }

func (e *takenError) Unwrap() error { return e.stateError }

// Is makes it fs.ErrExist.
func (e *takenError) Is(target error) bool { return target == fs.ErrExist }

// taken is the error for a name that something has.
func (a *app) taken(name, by string) error {
	hint := "vmctl show " + name + " tells what it is; another name is free"
	return withHint(&takenError{&stateError{fmt.Errorf("the name %s is taken: %s is there", name, by)}}, hint)
}

// nameFree says whether nothing has a name: no definition, masked or not, no
// unit that does something, nothing that was left of an earlier machine.
func (a *app) nameFree(ctx context.Context, conn lister, name string) error {
	for _, dir := range a.paths.VMDirs {
		if file := config.Definition(dir, name); access.IsThere(file) {
			return a.taken(name, file)
		}
	}
	if dir := a.paths.StateDir(name); access.IsThere(dir) {
		return withHint(a.taken(name, dir), "it is what is left of an earlier VM; vmctl delete "+name+" removes it")
	}
	found, err := conn.Units(ctx, config.Unit(name))
	if err != nil {
		return err
	}
	for _, u := range found {
		if (look{unit: u}).inUse() {
			return a.taken(name, "a unit that is "+u.Active)
		}
	}
	return nil
}

// unmake removes what makeNamed made of a machine that was never started.
func (a *app) unmake(made madeRun) error {
	defer made.release()
	if made.rm {
		return throwaway.Remove(a.paths, made.name)
	}
	return errors.Join(os.RemoveAll(made.file), os.RemoveAll(a.paths.Generated(made.name)))
}

// startRun starts a machine that was just made. With --rm, systemd has removed
// all of it where that failed.
func (a *app) startRun(ctx context.Context, f *freshener, opts runOptions, made madeRun) error {
	unit := config.Unit(made.name)
	if opts.noWait {
		_, err := f.conn.Begin(ctx, bus.Start, unit)
		return a.notStarted(made, err)
	}
	progress := a.ui.progress(string(opRun), []string{made.name})
	defer progress.stop()
	ctx, cancel := opts.context(ctx)
	defer cancel()
	watched, end := context.WithCancel(ctx)
	last := make(chan string, 1)
	go func() {
		said := ""
		// Where it cannot be watched, there is only less to say.
		_ = f.conn.WatchUnit(watched, unit, func(s bus.State) {
			if s.StatusText != "" {
				said = s.StatusText
			}
		})
		last <- said
	}()
	begun := time.Now()
	err := f.conn.Start(ctx, unit)
	end()
	said := <-last
	if err == nil {
		return nil
	}
	if _, failed := errors.AsType[*bus.JobError](err); !failed && ctx.Err() == nil {
		return a.notStarted(made, err)
	}
	if !made.rm || ctx.Err() != nil {
		return a.startError(ctx, f.conn, made.name, begun, err)
	}
	if said != "" {
		err = errors.New(printable(strings.TrimPrefix(said, "Ended: ")))
	}
	return withHint(err, "nothing of it is left; "+logsHint(a, made.name))
}

// notStarted takes back what was made of a machine that systemd has not even
// tried to start.
func (a *app) notStarted(made madeRun, err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(err, a.unmake(made))
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/units/bus"
)

// deviceDropIn is a change of what a definition says of one disk, card or share.
type deviceDropIn struct {
	file string
	text string // "": no file
	was  string // what is there now
	plan planned
}

// planDropIn works out what a machine's definition would be with a drop-in for a
// disk, card or share, with "" without it. The error is what would be wrong with it.
func (a *app) planDropIn(vm config.VM, file, text string) (deviceDropIn, error) {
	d := deviceDropIn{file: file, text: text}
	old, err := os.ReadFile(d.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	d.was = string(old)
	if d.was != "" && !strings.HasPrefix(d.was, config.DropInMark) {
		return d, &stateError{fmt.Errorf("%s was not written by vmctl, which leaves it alone: change it by hand", d.file)}
	}
	with, err := config.LoadVMWith(a.paths, vm.Name, d.file, text)
	if err != nil {
		return d, err
	}
	d.plan = a.plan(with, a.probe())
	problems := d.plan.Problems
	if len(problems) == 0 {
		// What it has in common with others is no reason to refuse, where it has it already.
		problems = slices.DeleteFunc(config.ProblemsAmong(a.paths, with), func(p config.Problem) bool {
			return slices.ContainsFunc(vm.Problems, func(old config.Problem) bool { return old.Text == p.Text })
		})
	}
	if len(problems) > 0 {
		return d, draftError(d.file, problems)
	}
	return d, nil
}

// write makes the change. systemd does not know of it yet.
func (d deviceDropIn) write() error {
	if d.text == d.was {
		return nil
	}
	if d.text == "" {
		if err := os.Remove(d.file); err != nil {
			return err
		}
		// Of others' drop-ins it is not empty.
		_ = os.Remove(filepath.Dir(d.file))
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(d.file), 0o755); err != nil {
		return err
	}
	return access.WriteFile(d.file, []byte(d.text), definitionMode(d.plan.VM.Machine), true)
}

// dropInText is a drop-in of keys of a disk, card or share, by a command (who) that
// another (undo) takes back.
func (c *hotChange) dropInText(who, undo string, draft *config.Draft) string {
	kind, _, _ := strings.Cut(c.key, ".")
	return fmt.Sprintf("%[1]s%[2]s %[3]s: vmctl %[2]s %[4]s takes it back\n\n%[5]s", config.DropInMark, kind, who, undo, draft.Text())
}

// without is the drop-in after which the definition has not got the disk, card or share:
// none, where only that of vmctl has it.
func (c *hotChange) without() (string, error) {
	without, err := config.LoadVMWith(c.paths, c.look.vm.Name, c.dropIn(), "")
	if err != nil {
		return "", err
	}
	// Where it is broken without it, it may be because the device is in it.
	if without.Machine != nil && !hasDevice(without.Machine, c.key) {
		return "", nil
	}
	draft := config.NewDraft()
	if err := draft.Set(c.key+".enabled", "false"); err != nil {
		return "", err
	}
	return c.dropInText("detach", "attach --persist", draft), nil
}

// dropIn is the file of such a drop-in.
func (c *hotChange) dropIn() string { return c.paths.DeviceDropIn(c.look.vm, c.key) }

// hotChange is a change of a disk, card or share of a machine, which may run.
type hotChange struct {
	*app
	conn *bus.Conn
	look look
	key  string // of the disk, card or share: "disk.data"
}

// newHotChange looks at the machine. The caller closes the connection.
func (a *app) newHotChange(ctx context.Context, vm, key string) (*hotChange, error) {
	conn, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	l, err := a.lookAt(ctx, conn, vm)
	if err == nil && (l.state == starting || l.state == stopping) {
		err = &transitionError{From: l.state, Reason: "its disks, cards and shares change while it runs, or does not"}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &hotChange{app: a, conn: conn, look: l, key: key}, nil
}

// defined says whether the definition has the disk, card or share.
func (c *hotChange) defined() bool {
	return c.look.vm.Machine != nil && hasDevice(c.look.vm.Machine, c.key)
}

// before is the machine as it was defined before its disk, card or share was detached
// with --persist, nil where there is none.
func (c *hotChange) before() *config.Machine {
	if c.look.vm.File == "" {
		return nil
	}
	without, err := config.LoadVMWith(c.paths, c.look.vm.Name, c.dropIn(), "")
	if err != nil || without.Machine == nil || !hasDevice(without.Machine, c.key) {
		return nil
	}
	return without.Machine
}

// alone is the machine that a draft of nothing but the disk, card or share makes, with
// the board and the hypervisor of the real one, on which defaults depend.
func (c *hotChange) alone(draft *config.Draft) (*config.Machine, error) {
	like := ""
	if m := c.look.machine(); m != nil {
		like = fmt.Sprintf("machine = %q\nhypervisor = %q\n", m.MachineType, m.Hypervisor)
	}
	file := c.look.vm.Name + ".toml" // by which a card's address is derived
	text := like + "boot.kernel = \"/x\"\n" + draft.Text()
	vm := config.Parse(c.paths, file, text)
	if len(vm.Problems) > 0 {
		return nil, draftError(file, vm.Problems)
	}
	return vm.Machine, nil
}

// keep works out the drop-in by which the definition has the disk, card or share, with
// the keys of draft where that is not nil, or has not got it, and the digest of
// what the machine then runs with: "" where it runs with something else already.
func (c *hotChange) keep(who string, draft *config.Draft) (deviceDropIn, string, error) {
	if c.look.vm.File == "" {
		return deviceDropIn{}, "", withHint(&stateError{errors.New("the machine has no definition to write it to")}, "without --persist it is done until the machine stops")
	}
	text := ""
	switch {
	case draft != nil:
		text = c.dropInText(who, "detach --persist", draft)
	case who == "attach" && c.defined():
		return deviceDropIn{}, "", nil // it says so already
	case who == "attach": // as before it was detached
	default:
		var err error
		if text, err = c.without(); err != nil {
			return deviceDropIn{}, "", err
		}
	}
	return c.keepText(c.dropIn(), text)
}

// keepText is keep for a file and its text.
func (c *hotChange) keepText(file, text string) (deviceDropIn, string, error) {
	kept, err := c.planDropIn(c.look.vm, file, text)
	if err != nil || !c.look.active() || c.outdated(c.look, c.probe()) {
		return kept, "", err
	}
	return kept, kept.plan.Digest, nil
}

// cold refuses what would not outlast the command: "--persist attaches it" is how it
// would.
func (c *hotChange) cold(persist bool, verb string) error {
	if persist || c.look.active() {
		return nil
	}
	return withHint(&stateError{errors.New("the machine does not run")}, "--persist "+verb+" from the next start on")
}

// definedAlready refuses to attach another device under the name of one that the
// definition has; what is "card".
func (c *hotChange) definedAlready(what string) error {
	_, name, _ := strings.Cut(c.key, ".")
	return withHint(&stateError{fmt.Errorf("the definition has a %s named %s already", what, name)},
		fmt.Sprintf("without flags it is attached as it is defined; another %s wants another name", what))
}

// keepDetached is keep for a card or share that is to be detached; missing is the error
// where there is none, neither in the definition nor in a machine that runs.
func (c *hotChange) keepDetached(persist bool, missing error) (kept deviceDropIn, digest string, err error) {
	if err := c.cold(persist, "detaches it"); err != nil {
		return kept, "", err
	}
	switch {
	case persist && c.look.vm.File != "" && c.look.vm.Machine == nil:
		return kept, "", invalid(c.look.vm, c.look.vm.Problems)
	case persist && c.defined():
		return c.keep("detach", nil)
	case !c.look.active():
		return kept, "", missing
	}
	return kept, "", nil
}

// attachedText and detachedText say what was done to a card or share, and for how long:
// the latter before the definition is written.
func (c *hotChange) attachedText(persist bool) string {
	switch {
	case !c.look.active():
		return "is attached from the next start on"
	case persist:
		return "attached for good"
	case !c.defined():
		return "attached until the machine stops"
	}
	return "attached"
}

func (c *hotChange) detachedText(persist bool) string {
	switch {
	case !c.look.active():
		return "is detached from the next start on"
	case c.defined() && !persist:
		return "detached until the machine is started again"
	}
	return "detached"
}

// persist writes a drop-in and has systemd know of it.
func (c *hotChange) persist(ctx context.Context, kept deviceDropIn) error {
	if kept.text == kept.was {
		return nil
	}
	what := "it is done"
	if !c.look.active() {
		what = "nothing is done"
	}
	if err := kept.write(); err != nil {
		return fmt.Errorf("%s, but could not be written to the definition: %w", what, err)
	}
	return c.conn.Reload(ctx)
}

// hasDevice says whether a machine has a device of the key "disk.data".
func hasDevice(m *config.Machine, key string) bool {
	return slices.ContainsFunc(m.Devices(), func(d config.Device) bool { return d.Key() == key })
}

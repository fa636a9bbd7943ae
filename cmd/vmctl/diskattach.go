package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmctl/vmctl/config"
	"github.com/vmctl/vmctl/hypervisor"
	"github.com/vmctl/vmctl/hypervisor/access"
	"github.com/vmctl/vmctl/hypervisor/disk"
)

// attachOptions are the flags of vmctl disk attach.
type attachOptions struct {
	keys    []attachKey
	persist bool
}

// attachKey is a key of the disk that a flag sets.
type attachKey struct{ key, value string }

func newDiskAttachCommand(a *app) *cobra.Command {
	var opts attachOptions
	cmd := &cobra.Command{
		Use:   "attach VM DISK [--path PATH | --size SIZE | --image NAME]",
		Short: "Plug a disk into a machine, while it runs too",
		Long: `Plug a disk into a machine. Where that runs, its guest sees the disk at once; with
--persist the machine has it after a restart too, by a drop-in of its definition,
VM.toml.d/60-disk-DISK.toml. Where it does not run, only --persist makes sense.
Without a source, the disk is the one that the definition has by that name, which
was detached.

A machine that runs takes disks on virtio, scsi, usb and nvme; of the boards,
microvm takes none. There is room for some disks on virtio and nvme (on q35 four),
which a restart makes again.`,
		Example: `  vmctl disk attach web data --path /srv/data.qcow2
  vmctl disk attach web scratch --size 20G --bus scsi --persist`,
		Args:              vmAndDisk,
		ValidArgsFunction: a.completeVMDisk,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runDiskAttach(cmd.Context(), a, opts, args[0], args[1])
		},
	}
	flags := cmd.Flags()
	key := func(name, typ, usage string) {
		flags.Var(settingFlag{typ, func(text string) error {
			opts.keys = append(opts.keys, attachKey{name, text})
			return nil
		}}, name, usage)
	}
	flags.Var(settingFlag{"PATH", func(text string) error {
		path, err := filepath.Abs(text)
		opts.keys = append(opts.keys, attachKey{"path", path})
		return err
	}}, "path", "existing image file or block device")
	key("size", "SIZE", "a new empty disk of this size, or with --image what it is grown to")
	key("image", "NAME", "a new disk that begins with this stored image")
	key("format", "FORMAT", "format of the file; default: by its name's ending")
	key("bus", "BUS", "virtio (default), scsi, usb or nvme")
	key("serial", "TEXT", "serial number that the guest sees; default: the disk's name")
	key("cache", "MODE", "auto, none, writeback, writethrough, directsync or unsafe")
	key("aio", "WAY", "auto, io_uring, native or threads")
	key("readonly", "bool", "the guest cannot write")
	flags.Lookup("readonly").NoOptDefVal = "true"
	flags.BoolVar(&opts.persist, "persist", false, "write it to the definition, as a drop-in")
	completeFormats(cmd, "format")
	_ = cmd.RegisterFlagCompletionFunc("bus", cobra.FixedCompletions([]cobra.Completion{"virtio", "scsi", "usb", "nvme"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("image", a.completeImages)
	return cmd
}

// vmAndDisk accepts the name of a machine and of one of its disks.
func vmAndDisk(_ *cobra.Command, args []string) error {
	if len(args) != 2 {
		return usageError{fmt.Errorf("want VM DISK, got %d arguments", len(args))}
	}
	if err := checkName(args[0]); err != nil {
		return err
	}
	if err := config.CheckName(args[1]); err != nil {
		return usageError{fmt.Errorf("name of a disk: %w", err)}
	}
	return nil
}

// completeVMDisk completes the name of a machine, then of one of its disks.
func (a *app) completeVMDisk(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	a.settle()
	if len(args) == 1 {
		return a.completeDisks(args[0], prefix)
	}
	return a.completeName(cmd, args, prefix)
}

// plugged is vmctl disk attach, detach, eject and insert -o json.
type plugged struct {
	VM        string `json:"vm"`
	Disk      string `json:"disk"`
	File      string `json:"file"`
	Running   bool   `json:"running"`   // the guest sees the change
	Persisted bool   `json:"persisted"` // a restart keeps it
	Existed   bool   `json:"existed"`   // its file was there already
}

func runDiskAttach(ctx context.Context, a *app, opts attachOptions, vm, name string) error {
	return a.plug(ctx, "attach", vm, name, func(p *plugging) (string, error) { return p.attach(ctx, opts) })
}

// plugging is a change of a machine's disks.
type plugging struct {
	*hotChange
	place
	result plugged
}

// plug does something to a disk of a machine, and tells of it.
func (a *app) plug(ctx context.Context, verb, vm, name string, do func(*plugging) (string, error)) error {
	p := place{vm: vm, disk: name}
	c, err := a.newHotChange(ctx, vm, "disk."+name)
	if err != nil {
		return inPlace(verb, p, err)
	}
	defer c.conn.Close()
	g := &plugging{hotChange: c, place: p, result: plugged{VM: vm, Disk: name, Running: c.look.active()}}
	text, err := do(g)
	if err != nil {
		return inPlace(verb, p, err)
	}
	if a.ui.format == jsonFormat {
		return a.ui.json(g.result)
	}
	a.ui.printf("%s: %s", p, text)
	return nil
}

// attach plugs the disk in.
func (p *plugging) attach(ctx context.Context, opts attachOptions) (string, error) {
	d, draft, err := p.wanted(opts)
	if err != nil {
		return "", err
	}
	var kept deviceDropIn
	digest := ""
	switch {
	case !opts.persist && !p.look.active():
		return "", withHint(&stateError{errors.New("the machine does not run")}, "--persist attaches it from the next start on")
	case opts.persist:
		if kept, digest, err = p.keep("attach", draft); err != nil {
			return "", err
		}
	}
	p.result.File = p.paths.DiskFile(p.vm, d)
	if err := p.checkBase(d); err != nil {
		return "", err
	}
	if p.look.active() {
		if err := p.request(ctx, hypervisor.DiskAttach, hypervisor.DiskRequest{Disk: d, Digest: digest}); err != nil {
			return "", err
		}
	} else if err := checkCold(d); err != nil {
		return "", err
	}
	text := "attached"
	if opts.persist {
		p.result.Persisted = true
		if err := p.persist(ctx, kept); err != nil {
			return "", err
		}
		text += " for good"
	}
	switch {
	case !p.look.active():
		text = "is attached from the next start on"
	case !opts.persist && !p.defined():
		text += " until the machine stops"
	}
	if p.result.Existed {
		text += "; its file was there already, with what is on it"
	}
	return text, nil
}

// checkBase refuses to let a guest write to a file that others stand on, or to a
// stored image.
func (p *plugging) checkBase(d config.Disk) error {
	if d.Path == "" || !d.Keeps() {
		return nil
	}
	if image := p.imageOf(d.Path); image != "" {
		return withHint(&stateError{fmt.Errorf("%s is the stored image %s, which is never written to", d.Path, image)},
			"--image "+image+" attaches a new disk that begins with it")
	}
	t, err := p.target(place{path: d.Path}, d.Format)
	if err != nil {
		return err
	}
	defer t.close()
	return p.checkNotBelow(t)
}

// wanted is the disk that is asked for, and the keys that say so; those are nil
// for one that the definition has.
func (p *plugging) wanted(opts attachOptions) (config.Disk, *config.Draft, error) {
	if p.defined() {
		if len(opts.keys) > 0 {
			return config.Disk{}, nil, withHint(&stateError{fmt.Errorf("the definition has a disk named %s already", p.disk)},
				"without flags it is attached as it is defined; another disk wants another name")
		}
		return findIn(p.look.vm.Machine, p.disk), nil, nil
	}
	if len(opts.keys) == 0 {
		d, err := p.detached()
		return d, nil, err
	}
	draft := config.NewDraft()
	for _, k := range opts.keys {
		if err := draft.Set("disk."+p.disk+"."+k.key, k.value); err != nil {
			return config.Disk{}, nil, usageError{fmt.Errorf("--%s: %w", k.key, err)}
		}
	}
	m, err := p.alone(draft)
	if err != nil {
		return config.Disk{}, nil, err
	}
	return m.Disks[0], draft, nil
}

// detached is the disk as the definition had it before vmctl disk detach
// --persist.
func (p *plugging) detached() (config.Disk, error) {
	if m := p.before(); m != nil {
		return findIn(m, p.disk), nil
	}
	return config.Disk{}, withHint(usageError{fmt.Errorf("the definition has no disk named %s: want --path, --size or --image", p.disk)},
		"vmctl disk attach --help lists the flags")
}

func findIn(m *config.Machine, name string) config.Disk {
	return m.Disks[slices.IndexFunc(m.Disks, func(d config.Disk) bool { return d.Name == name })]
}

// request has the machine's disk changed while it runs.
func (p *plugging) request(ctx context.Context, what string, q hypervisor.DiskRequest) error {
	var result hypervisor.DiskResult
	err := p.operate(ctx, p.conn, p.vm, "disk", what, q, &result)
	p.result.Existed = result.Existed
	return err
}

// checkCold looks at the file of a disk that the next start is to have.
func checkCold(d config.Disk) error {
	if d.Path == "" {
		return nil
	}
	f, err := access.Open(d.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return &notFoundError{Kind: "file", Name: d.Path}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return disk.Check(f, d.Format)
}

// releaseTime is how long a guest may take to let go of a disk where nothing is
// said: those that wait for somebody to press the button once more take 5 s.
const releaseTime = 30 * time.Second
